"""The stage functions that measure: clean metrics of one model, and what an attack brought back from it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rub.data.samples import ImageDataset, Samples
from rub.data.splits import Splits, input_dataset, split, subset
from rub.metrics.accuracy import correct, probe_accuracy, residual_knowledge, residual_ratio
from rub.metrics.base import Measured, Outputs, measure_metric, origin_of, row_of
from rub.metrics.membership import (
    MembershipAttack,
    ShadowOutputs,
    audit_auc,
    lira_scores,
    rmia_scores,
    shokri_fit,
    svc_fit,
    tune_offline_a,
)
from rub.pipeline.graph import Stage
from rub.pipeline.runtime import Runtime
from rub.registry import METRICS as OWN_METRICS
from rub.store.artifacts import Artifact
from rub.tasks.classification.graph import LIRA_SHADOWS
from rub.tasks.classification.metrics import METRICS, cell
from rub.tasks.classification.stages import WEIGHTS, load_model
from rub.tasks.classification.witnesses import save_witnesses
from rub.training.classifier import look, predict

Inputs = Mapping[str, Artifact]
Rows = list[dict[str, Any]]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]

_METRICS = {metric.name: metric for metric in METRICS}
POPULATION = 2000  # held-out images that RMIA compares with
TUNING_POINTS = 2000  # enough to choose RMIA's a from eleven values
OFFLINE_A = 0.33  # with too few shadows to tune it: the value of the RMIA paper's code for CIFAR


def measure(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Measure one model on clean images: accuracies, membership inference, bias-free metrics."""
    spec, dataset = stage.spec, input_dataset(inputs, runtime)
    parts = split(dataset, spec["forget"], spec["validation"])
    model = load_model(inputs["unlearned"], dataset).to(runtime.device)
    facts = origin_of(inputs["unlearned"].sha256(WEIGHTS), inputs["unlearned"])
    measured = Measured(cell, spec["method"], spec["seed"], facts)
    view = View(model, runtime, dataset, parts)
    retain_part = subset(parts.retain, spec["retain_samples"], "measure-retain")
    made = {"test": view(parts.test), "retain": view(retain_part), "forget": view(parts.forget)}
    test, retain, forget = (outputs.logits for outputs in made.values())
    kept = ~np.isin(parts.test.labels.numpy(), parts.forget_classes)
    made["forget_test"] = made["test"].select(~kept)
    for name in ("ta", "ta_all", "ra", "ua", *(("ua_test", "logit_auc") if parts.forget_classes else ())):
        measured.compute(_METRICS[name], made[_METRICS[name].split])
    if parts.forget_classes:
        probe = _probe(view, made["test"].features, spec["probe_per_class"], spec["probe_total"])
        measured.add("probe_accuracy", probe, int((~kept).sum()))
    kept_test = (test[kept], parts.test.labels.numpy()[kept])
    attack = svc_fit((retain, retain_part.labels), kept_test, seed=spec["seed"])
    measured.share("mia_svc", attack.members(forget, parts.forget.labels))
    for mia_seed, called in shadow_members(spec, inputs, runtime, forget, parts.forget.labels.numpy()):
        measured.share("mia_shadow", called, mia_seed=mia_seed)
    if "shadow_0" in inputs:
        _scores(measured, view, inputs, forget, test)
    measured.save(out)


def measure_attack(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Re-evaluate the stored probes in float32 and count what they recover, beside the retrained model's."""
    spec, dataset = stage.spec, input_dataset(inputs, runtime)
    model = load_model(inputs["unlearned"], dataset).to(runtime.device)
    cells = {"attack": spec["attack"], "budget": spec["budget"]}
    samples: Rows = []
    curves: Rows = []
    measured = Measured(cell, spec["method"], spec["seed"], {"weights_sha256": inputs["unlearned"].sha256(WEIGHTS)})
    for name in spec["splits"]:
        artifact = inputs[f"attack_{name}"]
        facts = artifact.json("attack.json")
        probes = torch.from_numpy(np.load(artifact.file("probes.npy"), allow_pickle=False))
        listed = np.load(artifact.file("samples.npz"), allow_pickle=False)
        outputs = predict(model, probes, batch_size=runtime.batch_size, device=runtime.device)
        logits = outputs.numpy()
        recovered = correct(logits, listed["labels"])
        searched = {name: facts[name] for name in ("converged", "evaluations")}
        made = {name: artifact.manifest[name] for name in ("seconds", "device")}
        measured.facts = {**measured.facts, **searched, **made}
        measured.share("ua_test" if name == "forget_test" else "ua", recovered, split=name, **cells)
        samples += _sample_rows(spec, name, artifact, listed, recovered)
        curves.append({**row_of(spec, name), **facts})
        if name == "forget":
            places = np.searchsorted(dataset.train.ids.numpy(), listed["ids"])
            images = dataset.train.select(torch.from_numpy(places))
            save_witnesses(stage, inputs, images, probes, outputs, listed["step"] == 0, out)
            if "attack_retrained" in inputs:
                _residuals(measured, inputs["attack_retrained"], listed["ids"], recovered, cells)
            for mia_seed, called in shadow_members(spec, inputs, runtime, logits, listed["labels"]):
                measured.share("mia_shadow", called, mia_seed=mia_seed, **cells)
    measured.save(out, samples=samples, curves=curves)


def metric(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Measure a metric of a plug-in on what one model makes of the evaluation sets, or of an attack's probes."""
    spec, dataset = stage.spec, input_dataset(inputs, runtime)
    parts = split(dataset, spec["forget"], spec["validation"])
    sets = {
        "forget": parts.forget,
        "retain": subset(parts.retain, spec["retain_samples"], "measure-retain"),
        "test": parts.test,
        "forget_test": parts.test_where(forgotten=True) if parts.forget_classes else parts.test,
    }
    split_name = OWN_METRICS.get(spec["metric"], stage.task).load().split
    facts = origin_of(inputs["unlearned"].sha256(WEIGHTS), inputs.get("attack", inputs["unlearned"]))
    own = sets[split_name]
    if "attack" in inputs:
        searched = inputs["attack"].json("attack.json")
        facts |= {name: searched[name] for name in ("converged", "evaluations")}
        listed = np.load(inputs["attack"].file("samples.npz"), allow_pickle=False)
        place = {number: row for row, number in enumerate(own.ids.tolist())}
        own = own.select(torch.tensor([place[number] for number in listed["ids"].tolist()]))

    @cache
    def view(role: str) -> View:
        return View(load_model(inputs[role], dataset).to(runtime.device), runtime, dataset, parts)

    def outputs(name: str) -> Outputs:
        samples = own if name == "original" else sets[name]
        if name == split_name:
            samples = own
            if "attack" in inputs:
                probes = torch.from_numpy(np.load(inputs["attack"].file("probes.npy"), allow_pickle=False))
                samples = Samples(probes, torch.from_numpy(listed["labels"]), own.ids)
        return view("original" if name == "original" else "unlearned")(samples)

    measure_metric(stage.task, stage.spec, outputs, facts, out)


def _residuals(
    measured: Measured, retrained: Artifact, ids: NDArray[np.int64], recovered: Bools, cells: Mapping[str, str]
) -> None:
    reference = np.load(retrained.file("samples.npz"), allow_pickle=False)
    if not np.array_equal(reference["ids"], ids):
        raise ValueError("the retrained model was attacked on other images")
    given_up, own = reference["step"] >= 0, measured.facts
    measured.facts = {**own, "converged": own["converged"] and retrained.json("attack.json")["converged"]}
    measured.add("residual_knowledge", residual_knowledge(recovered, given_up), len(ids), **cells)
    measured.add("residual_ratio", residual_ratio(recovered, given_up), len(ids), **cells)
    measured.facts = own


@dataclass(frozen=True)
class View:
    """What a model makes of sample sets, in float32 eval mode."""

    model: nn.Module
    runtime: Runtime
    dataset: ImageDataset
    parts: Splits

    def __call__(self, samples: Samples) -> Outputs:
        """Outputs for one set."""
        logits, features = look(self.model, samples, batch_size=self.runtime.batch_size, device=self.runtime.device)
        return Outputs(
            ids=samples.ids.numpy(),
            labels=samples.labels.numpy(),
            logits=logits.numpy(),
            features=features.numpy(),
            num_classes=len(self.dataset.classes),
            forget_classes=tuple(self.parts.forget_classes),
        )


def shadow_members(
    spec: Mapping[str, Any], inputs: Inputs, runtime: Runtime, logits: Floats, labels: NDArray[np.int64]
) -> Iterator[tuple[int, Bools]]:
    """(MIA seed, which samples the shadow attack of that seed calls members), each seed with its own shadows."""
    if "shadow_0" not in inputs:
        return
    for mia_seed in range(spec["mia_seeds"]):
        first = mia_seed * spec["shadows_per_seed"]
        attack = _shadow_attack(inputs, runtime, range(first, first + spec["shadows_per_seed"]), mia_seed)
        yield mia_seed, attack.members(logits, labels)


def _shadow_attack(inputs: Inputs, runtime: Runtime, indices: range, mia_seed: int) -> MembershipAttack:
    # It depends on the shadows alone, so all measured rows share one fit.
    def fit() -> MembershipAttack:
        shadows = _shadows(inputs, indices, "train", input_dataset(inputs, runtime))
        return shokri_fit(shadows.points(np.flatnonzero(_trained_on(inputs))), seed=mia_seed)

    return runtime.cache.get(("shadow attack", mia_seed, *(inputs[f"shadow_{i}"].key for i in indices)), fit)


def _scores(measured: Measured, view: View, inputs: Inputs, forget: Floats, test: Floats) -> None:
    # RMIA and LiRA, offline: forgotten training images against unseen test images of the same classes
    dataset, parts = view.dataset, view.parts
    count = sum(role.startswith("shadow_") for role in inputs)
    train = _shadows(inputs, range(count), "train", dataset)
    unseen = _shadows(inputs, range(count), "test", dataset)
    forgotten = np.flatnonzero(np.isin(dataset.train.ids.numpy(), parts.forget.ids.numpy()))
    same = (
        np.isin(parts.test.labels.numpy(), parts.forget_classes) if parts.forget_classes else np.ones(len(test), bool)
    )
    others = np.random.default_rng(0).permutation(np.flatnonzero(same))
    if len(parts.validation):
        held = subset(parts.validation, POPULATION, "rmia-population")
        outside = np.flatnonzero(np.isin(dataset.train.ids.numpy(), held.ids.numpy()))
        population, seen = train.points(outside), view(held).logits
    else:  # nothing was held out: half of the unseen images are the population, the other half the non-members
        others, outside = others[::2], others[1::2]
        population, seen = unseen.points(outside), test[outside]
    audited = _joined(train.points(forgotten), unseen.points(others))
    logits = np.concatenate([forget, test[others]])
    member = np.arange(len(logits)) < len(forget)
    if count >= LIRA_SHADOWS:
        pool = np.random.default_rng(0).permutation(np.flatnonzero(_trained_on(inputs)))[:TUNING_POINTS]
        a = tune_offline_a(train.points(pool), population)
    else:
        a = OFFLINE_A
    rmia = rmia_scores(logits, audited, seen, population, offline_a=a)
    measured.add("mia_rmia", audit_auc(rmia, member), len(logits))
    if count >= LIRA_SHADOWS:
        measured.add("mia_lira", audit_auc(lira_scores(logits, audited), member), len(logits))


def _probe(view: View, test_features: Floats, per_class: int, total: int) -> float:
    forgotten, unseen = view.parts.forget_classes, view.parts.test.labels
    kept = (label for label in range(len(view.dataset.classes)) if label not in forgotten)
    chosen = []
    for label in (*forgotten, *kept):
        part = view.parts.forget if label in forgotten else view.parts.retain
        chosen.append(subset(part.select(part.labels == label), per_class, f"probe-{label}"))
    features = np.concatenate([view(part).features for part in chosen])
    labels = np.concatenate([part.labels.numpy() for part in chosen])
    return probe_accuracy(features, labels, test_features, unseen, forgotten, seed=0, per_class=per_class, total=total)


def _sample_rows(
    spec: Mapping[str, Any], name: str, artifact: Artifact, listed: Mapping[str, NDArray[Any]], recovered: Bools
) -> Rows:
    shared = row_of(spec, name)
    return [
        {
            **shared,
            "sample_id": int(listed["ids"][index]),
            "label": int(listed["labels"][index]),
            "clean": bool(listed["step"][index] == 0),
            "recovered": bool(recovered[index]),
            "distance": round(float(listed["loss"][index]), 6),
            "step": int(listed["step"][index]),
            "linf": int(listed["linf"][index]),
            "probe": f"{artifact.key}:{index}",
        }
        for index in range(len(recovered))
    ]


def _trained_on(inputs: Inputs) -> Bools:
    # in one half of a pair or the other
    first, second = (np.load(inputs[f"shadow_{index}"].file("member.npy"), allow_pickle=False) for index in (0, 1))
    return np.asarray(first | second)


def _shadows(inputs: Inputs, indices: range, part: str, dataset: ImageDataset) -> ShadowOutputs:
    artifacts = [inputs[f"shadow_{index}"] for index in indices]
    logits = np.stack(
        [np.load(item.file(f"{part}_logits.npy"), mmap_mode="r", allow_pickle=False) for item in artifacts]
    )
    if part == "train":
        member = np.stack([np.load(item.file("member.npy"), allow_pickle=False) for item in artifacts])
        return ShadowOutputs(logits, member, dataset.train.labels.numpy())
    # Nobody trained on test points; half of the shadows are set aside for each all the same, so that members and
    # non-members are judged by equally many: a mean of more shadows is another quantity.
    aside = np.random.default_rng(1).random((len(logits) // 2, logits.shape[1])) < 0.5
    member = np.stack([aside, ~aside], axis=1).reshape(logits.shape[:2])
    return ShadowOutputs(logits, member, dataset.test.labels.numpy())


def _joined(first: ShadowOutputs, second: ShadowOutputs) -> ShadowOutputs:
    return ShadowOutputs(
        np.concatenate([first.logits, second.logits], axis=1),
        np.concatenate([first.member, second.member], axis=1),
        np.concatenate([first.labels, second.labels]),
    )
