"""The stage functions that measure: what models make of the evaluation sets, clean and attacked, and its metrics."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rub.data.samples import ImageDataset, Samples, concatenate
from rub.data.splits import Splits, input_dataset, split, subset, trainable, training_set
from rub.metrics.base import Measured, Metric, Outputs, joined, measure_metric, origin_of, row_of
from rub.metrics.membership import Shadows
from rub.metrics.signals import logit_confidence
from rub.models.network import head
from rub.pipeline.graph import Stage
from rub.pipeline.runtime import Runtime
from rub.registry import METRICS as OWN_METRICS
from rub.store.artifacts import Artifact
from rub.tasks.classification.metrics import (
    GAPS,
    POPULATION,
    attacked_metrics,
    cell,
    clean_metrics,
    metrics_of_stage,
    right,
)
from rub.tasks.classification.stages import COST, WEIGHTS, load_model, untrained
from rub.tasks.classification.witnesses import save_witnesses
from rub.training.batches import Augmentation
from rub.training.classifier import look
from rub.training.context import TrainContext
from rub.training.relearning import relearn

Inputs = Mapping[str, Artifact]
Rows = list[dict[str, Any]]


def measure(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Measure one model on clean images."""
    facts = origin_of(inputs["unlearned"].sha256(WEIGHTS), inputs["unlearned"])
    measured, view = Measured(cell, stage.spec["method"], stage.spec["seed"], facts), View(stage, inputs, runtime)
    made, held_out = stage.spec["made"], stage.spec["validation"] > 0
    counted = {"passes": view.passes} if made else {}
    for metric in clean_metrics(bool(view.parts.forget_classes), shadows=view.shadows, held_out=held_out, made=made):
        outputs = replace(metric.asked(view), facts=counted)
        for where, shadows in view.shadowed(metric):
            measured.compute(metric, replace(outputs, shadows=shadows), **where)
    measured.save(out)


def measure_gap(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Compare what was measured of a row without an attack with what was measured of the retrained model."""
    found = {
        role: {row["metric"]: row for row in inputs[role].json("rows.json")} for role in ("unlearned", "retrained")
    }
    sides = {
        role: Outputs(
            np.arange(rows["ua"]["n"]), np.empty(0, np.int64), facts={name: rows[name]["value"] for name in GAPS}
        )
        for role, rows in found.items()
    }
    facts = {name: found["unlearned"]["ua"][name] for name in ("weights_sha256", "seconds", "device")}
    measured = Measured(cell, stage.spec["method"], stage.spec["seed"], facts)
    for metric in metrics_of_stage("gap"):
        measured.compute(metric, replace(sides["unlearned"], others={"retrained": sides["retrained"]}))
    measured.save(out)


def measure_klom(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Compare what all models of a method say of forgotten images with what all retrained models say of them."""
    view = View(stage, inputs, runtime)
    margins: dict[str, list[NDArray[np.float64]]] = {"unlearned": [], "retrained": []}
    for role in sorted(inputs):
        if (side := role.partition("_")[0]) in margins:
            seen = view.look(role, view.parts.forget)
            margins[side].append(logit_confidence(seen.logits, seen.labels))
            view.models.clear()  # one model at a time in memory
    ids, labels = view.parts.forget.ids.numpy(), view.parts.forget.labels.numpy()
    sides = {side: Outputs(ids, labels, scores={"margins": np.stack(own, 1)}) for side, own in margins.items()}
    measured = Measured(cell, stage.spec["method"], None, {})
    for metric in metrics_of_stage("klom"):
        measured.compute(metric, replace(sides["unlearned"], others={"retrained": sides["retrained"]}))
    measured.save(out)


def measure_ulira(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Tell what shadow models forgot from what they never saw, each by all others."""
    found = [np.load(inputs[role].file("forget.npz"), allow_pickle=False) for role in sorted(inputs)]
    signals = np.stack([logit_confidence(one["logits"], one["labels"]) for one in found], 1)
    scores = {"signals": signals, "member": np.stack([one["member"] for one in found], 1)}
    outputs = Outputs(found[0]["ids"], found[0]["labels"], scores=scores)
    measured = Measured(cell, stage.spec["method"], None, {})
    for metric in metrics_of_stage("ulira"):
        measured.compute(metric, outputs)
    measured.save(out)


def measure_attack(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Re-evaluate the stored probes in float32 and count what they recover, beside the retrained model's."""
    spec, view = stage.spec, View(stage, inputs, runtime)
    cells = {"attack": spec["attack"], "budget": spec["budget"]}
    samples: Rows = []
    curves: Rows = []
    measured = Measured(cell, spec["method"], spec["seed"], {})
    for name in spec["splits"]:
        artifact, facts = inputs[f"attack_{name}"], inputs[f"attack_{name}"].json("attack.json")
        probes, listed = view.searched(artifact)
        images = replace(view.clean(probes, name), labels=probes.labels)
        others = {"clean": view.look("unlearned", images), **_retrained(inputs)}
        outputs = replace(view.look("unlearned", probes), facts=facts, others=others)
        made = {fact: artifact.manifest[fact] for fact in ("seconds", "device")}
        searched = {fact: facts[fact] for fact in ("converged", "evaluations")}
        measured.facts = {"weights_sha256": inputs["unlearned"].sha256(WEIGHTS), **searched, **made}
        for metric in attacked_metrics(name, shadows=view.shadows, retrained="attack_retrained" in inputs):
            for where, shadows in view.shadowed(metric):
                measured.compute(metric, replace(outputs, shadows=shadows), split=name, **where, **cells)
        samples += _sample_rows(spec, name, artifact, listed, right(outputs), right(outputs["clean"]))
        curves.append({**row_of(spec, name), **facts})
        if name == "forget":
            logits = torch.from_numpy(outputs.logits)
            save_witnesses(stage, inputs, images, probes.images, logits, right(outputs["clean"]), out)
    measured.save(out, samples=samples, curves=curves)


def measure_relearning(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Fine-tune copies on a few images of all classes, and of those kept alone, until forgotten ones are recognised."""
    spec, view = stage.spec, View(stage, inputs, runtime)
    given, shown = spec["relearn"], view.of_each_class("relearn", spec["relearn"]["images"])
    unseen, before = view.samples("forget_test"), view.look("original", view.samples("forget_test"))
    context = TrainContext(
        seed=0, batch_size=given["batch_size"], augmentation=Augmentation(0, flip=False), **runtime.shared()
    )
    kept = [part for label, part in shown.items() if label not in view.parts.forget_classes]
    made: dict[str, Any] = {"lr": given["lr"], "most": given["steps"], "enough": right(before).mean() / 2}
    steps, scores = {}, {}
    for name, parts in (("relearn", [*shown.values()]), ("relearn_retain", kept)):
        steps[name], scores[name] = relearn(view.model("unlearned"), concatenate(parts), unseen, context, **made)
    outputs = Outputs(before.ids, before.labels, scores=scores, facts=steps, others={"original": before}, spec=spec)
    measured = Measured(
        cell, spec["method"], spec["seed"], origin_of(inputs["unlearned"].sha256(WEIGHTS), inputs["unlearned"])
    )
    for metric in metrics_of_stage("relearn"):
        measured.compute(metric, outputs)
    found: dict[str, Any] = {**scores, **{f"{name}_steps": np.array(taken) for name, taken in steps.items()}}
    np.savez(out / "relearning.npz", **found)
    measured.save(out)


def metric(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Measure a metric of a plug-in on what one model makes of the evaluation sets, or of an attack's probes."""
    view, asked = View(stage, inputs, runtime), OWN_METRICS.get(stage.spec["metric"], stage.task).load()
    facts = origin_of(inputs["unlearned"].sha256(WEIGHTS), inputs.get("attack", inputs["unlearned"]))
    if "attack" in inputs:
        searched = inputs["attack"].json("attack.json")
        facts |= {name: searched[name] for name in ("converged", "evaluations")}
        probes, _ = view.searched(inputs["attack"])

    def outputs(name: str) -> Outputs:
        if name == "original":
            searched = "attack" in inputs
            return view.look("original", view.clean(probes, asked.split) if searched else view.samples(asked.split))
        return view.look("unlearned", probes) if "attack" in inputs and name == asked.split else view(name)

    measure_metric(stage.task, stage.spec, outputs, facts, out, view.shadowed(asked))


@dataclass(frozen=True, eq=False)
class View:
    """What the models of a measuring stage make of its evaluation sets, in float32 and eval mode.

    `view(name)` are the outputs of the unlearned model for a set, which is looked at once: ``forget``, ``retain``,
    ``test``, ``forget_test``, ``validation``, and what single metrics need: ``probe``, ``few``, ``population``, and
    ``original``, of which only the head is looked at.
    """

    stage: Stage
    inputs: Inputs
    runtime: Runtime
    seen: dict[str, Outputs] = field(default_factory=dict)
    models: dict[str, nn.Module] = field(default_factory=dict)

    @cached_property
    def dataset(self) -> ImageDataset:
        """Decoded images."""
        return input_dataset(self.inputs, self.runtime)

    @cached_property
    def parts(self) -> Splits:
        """Their splits."""
        return split(self.dataset, self.stage.spec["forget"], self.stage.spec["validation"])

    @property
    def shadows(self) -> int:
        """Number of shadow models among the stage's inputs."""
        return sum(role.startswith("shadow_") for role in self.inputs)

    def __call__(self, name: str) -> Outputs:
        """Outputs of the unlearned model for a set."""
        if name not in self.seen:
            self.seen[name] = self._made(name)
        return self.seen[name]

    def samples(self, name: str) -> Samples:
        """Images of a set."""
        if name == "retain":
            return subset(self.parts.retain, self.stage.spec["retain_samples"], "measure-retain")
        if name == "population":
            return subset(self.parts.validation, POPULATION, "rmia-population")
        if name == "validation":
            return self.parts.validation
        if name == "forget_test":
            return self.parts.unseen
        return self.parts.forget if name == "forget" else self.parts.test

    def model(self, role: str) -> nn.Module:
        """A model among the stage's inputs, or the unlearned one's network ``untrained``, made once."""
        if role not in self.models:
            made = untrained if role == "untrained" else load_model
            artifact = self.inputs["unlearned" if role == "untrained" else role]
            self.models[role] = made(artifact, self.dataset).to(self.runtime.device)
        return self.models[role]

    @property
    def passes(self) -> float | None:
        """Images that went through the network while the measured model was made, per training image; None if unknown.

        Training takes its set once an epoch; what a method took was counted while it ran.
        """
        made = self.inputs["unlearned"]
        everything = len(trainable(self.dataset, self.stage.spec["validation"]))
        if made.manifest["kind"] == "train":
            spec = made.manifest["spec"]
            trained = training_set(self.dataset, spec["subset"], spec["validation"])
            return float(spec["training"]["epochs"] * len(trained) / everything)
        return made.json(COST)["images"] / everything if COST in made.manifest["files"] else None

    def look(self, role: str, samples: Samples) -> Outputs:
        """Outputs of a model for some images."""
        model, runtime = self.model(role), self.runtime
        made = look(model, samples, batch_size=runtime.batch_size, device=runtime.device) if len(samples) else None
        arrays: dict[str, Any] = {} if made is None else {name: part.numpy() for name, part in made._asdict().items()}
        return Outputs(
            samples.ids.numpy(),
            samples.labels.numpy(),
            **arrays,
            num_classes=len(self.dataset.classes),
            forget_classes=tuple(self.parts.forget_classes),
            spec=self.stage.spec,
            head=_head(model),
            runtime=runtime,
        )

    def searched(self, artifact: Artifact) -> tuple[Samples, Mapping[str, NDArray[Any]]]:
        """Probes that an attack found, with the labels that it aimed at, and what it says of each."""
        listed = np.load(artifact.file("samples.npz"), allow_pickle=False)
        probes = torch.from_numpy(np.load(artifact.file("probes.npy"), allow_pickle=False))
        return Samples(probes, torch.from_numpy(listed["labels"]), torch.from_numpy(listed["ids"])), listed

    def clean(self, probes: Samples, name: str) -> Samples:
        """Images of a set that probes were made of."""
        pool = self.dataset.test if name == "forget_test" else self.dataset.train
        return pool.select(torch.from_numpy(np.searchsorted(pool.ids.numpy(), probes.ids.numpy())))

    def shadowed(self, metric: Metric) -> Iterator[tuple[dict[str, Any], Shadows | None]]:
        """(Record fields, shadow models) of each value of a metric."""
        if not metric.shadows:
            yield {}, None
        elif metric.seeded:
            count = self.stage.spec["shadows_per_seed"]
            for seed in range(self.stage.spec["mia_seeds"]):
                yield {"mia_seed": seed}, self._shadows(range(seed * count, (seed + 1) * count), seed)
        else:
            yield {}, self._shadows(range(self.shadows), 0)

    def _made(self, name: str) -> Outputs:
        if name == "forget_test":  # they are in there
            test = self("test")
            return test.select(np.isin(test.ids, self.parts.unseen.ids.numpy()))
        if name == "original":
            return self.look("original", self.parts.test.select([]))
        if name == "untrained":
            return self.look("untrained", self.parts.forget)
        if name in ("probe", "few"):
            count = self.stage.spec["probe_per_class" if name == "probe" else "few_images"]
            return joined([self.look("unlearned", part) for part in self.of_each_class(name, count).values()])
        return self.look("unlearned", self.samples(name))

    def of_each_class(self, name: str, count: int) -> dict[int, Samples]:
        """Class -> a fixed random subset of its training images; the forgotten classes first."""
        forgotten = self.parts.forget_classes
        kept = (label for label in range(len(self.dataset.classes)) if label not in forgotten)
        parts = {label: self.parts.forget if label in forgotten else self.parts.retain for label in (*forgotten, *kept)}
        return {
            label: subset(part.select(part.labels == label), count, f"{name}-{label}") for label, part in parts.items()
        }

    # All measured rows share these, and the attack that is fitted to them.
    def _shadows(self, which: range, seed: int) -> Shadows:
        models = tuple(self.inputs[f"shadow_{index}"] for index in which)
        train, test = self.dataset.train, self.dataset.test
        made = Shadows(models, train.ids.numpy(), train.labels.numpy(), test.labels.numpy(), seed)
        return self.runtime.cache.get(("shadows", seed, *(model.key for model in models)), lambda: made)


def _head(model: nn.Module) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    layer = head(model)
    if layer is None or not isinstance(getattr(layer, "weight", None), Tensor):
        return None
    weight = cast(Tensor, layer.weight).detach().float().cpu().flatten(1)
    bias = torch.zeros(len(weight)) if layer.bias is None else cast(Tensor, layer.bias).detach().float().cpu()
    return weight.numpy(), bias.numpy()


def _retrained(inputs: Inputs) -> dict[str, Outputs]:
    if "attack_retrained" not in inputs:
        return {}
    artifact = inputs["attack_retrained"]
    listed = np.load(artifact.file("samples.npz"), allow_pickle=False)
    found = Outputs(
        listed["ids"], listed["labels"], scores={"step": listed["step"]}, facts=artifact.json("attack.json")
    )
    return {"retrained": found}


def _sample_rows(
    spec: Mapping[str, Any],
    name: str,
    artifact: Artifact,
    listed: Mapping[str, NDArray[Any]],
    recovered: NDArray[np.bool_],
    clean: NDArray[np.bool_],
) -> Rows:
    shared = row_of(spec, name)
    return [
        {
            **shared,
            "sample_id": int(listed["ids"][index]),
            "label": int(listed["labels"][index]),
            "clean": bool(clean[index]),
            "recovered": bool(recovered[index]),
            "distance": round(float(listed["loss"][index]), 6),
            "step": int(listed["step"][index]),
            "linf": int(listed["linf"][index]),
            "probe": f"{artifact.key}:{index}",
        }
        for index in range(len(recovered))
    ]
