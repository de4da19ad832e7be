"""The stage functions that measure: what a model draws of the concept and of others, clean and attacked."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rub.data.splits import input_dataset
from rub.judges.base import identity
from rub.judges.stage import load_judge
from rub.metrics.base import Measured, Outputs, measure_metric, origin_of, row_of
from rub.pipeline.graph import Stage
from rub.pipeline.runtime import Runtime
from rub.registry import METRICS
from rub.store.artifacts import Artifact
from rub.tasks.text_to_image.attacks.base import Prompts
from rub.tasks.text_to_image.metrics import FLOOR, attacked_metrics, cell
from rub.tasks.text_to_image.metrics import METRICS as SHIPPED
from rub.tasks.text_to_image.settings import ResolvedConcept, resolve_concept
from rub.tasks.text_to_image.stages import batch_of, clean_hits, clean_images, drawing_of, prompts_in, weights_of
from rub.tasks.text_to_image.witnesses import save_witnesses

Inputs = Mapping[str, Artifact]
RETAIN_SEED = 5000  # first seed of the retained pictures: not those of the concept's prompts


def retained(facts: ResolvedConcept, count: int, guidance: float) -> tuple[Prompts, list[int]]:
    """Prompts for pictures of retained concepts, "a photo of ..." by turns, and which concept each names."""
    which = [place % len(facts.retained_names) for place in range(count)]
    ids = torch.arange(count)
    texts = tuple(f"a photo of {facts.retained_names[place]}" for place in which)
    return Prompts(ids, texts, RETAIN_SEED + ids, torch.full((count,), guidance)), which


def reference(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Draw the original's picture for every prompt, and look once at real pictures of the retained classes."""
    spec, facts = stage.spec, resolve_concept(stage.spec["concept"], inputs, runtime)
    drawing = drawing_of(inputs, "original", spec, runtime)
    np.save(out / "images.npy", clean_images(drawing, prompts_in(inputs["prompts"]), batch_of(runtime)).numpy())
    judge, told = load_judge(inputs["judge"], inputs, runtime), "the original's pictures of the same prompts"
    if "data" in inputs:
        test = input_dataset(inputs, runtime).test
        chosen = test.select(torch.isin(test.labels, torch.tensor(facts.retained_classes)))
        images = chosen.take(slice(spec["real"]))
        told = f"{len(images)} real test images of retained classes"
    elif facts.retained_names:
        asked, _ = retained(facts, spec["retained"], spec["retain_guidance"])
        images = clean_images(drawing, asked, batch_of(runtime))
    else:
        images = torch.empty(0)
    if len(images):
        np.save(out / "real.npy", judge(images).features.numpy())
    (out / "reference.json").write_text(json.dumps({"real": told}), encoding="utf-8")


def other_pictures(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Draw the original's pictures of retained concepts, by turns, one for every prompt."""
    spec, facts = stage.spec, resolve_concept(stage.spec["concept"], inputs, runtime)
    asked, _ = retained(facts, len(prompts_in(inputs["prompts"])), spec["retain_guidance"])
    drawing = drawing_of(inputs, "original", spec, runtime)
    np.save(out / "images.npy", clean_images(drawing, asked, batch_of(runtime)).numpy())


def measure(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Measure one model without an attack: whether it draws the concept, and how well it draws others."""
    spec = stage.spec
    measured = Measured(cell, spec["method"], spec["seed"], origin(inputs["unlearned"], inputs["unlearned"]))
    drawing = drawing_of(inputs, "unlearned", spec, runtime)
    images, seen = clean_hits(drawing, prompts_in(inputs["prompts"]), batch_of(runtime))
    np.save(out / "images.npy", images.numpy())
    judge = load_judge(inputs["judge"], inputs, runtime)
    asked = {"extractor": identity(judge), "setting": _asked(inputs, judge.description)}
    ids, hits = prompts_in(inputs["prompts"]).ids.numpy(), seen.numpy()
    found = {
        "forget": Outputs(ids, np.full_like(ids, -1), images=images.numpy(), scores={"hit": hits}, facts=asked),
        **_of_others(inputs, spec, runtime),
    }
    for metric in SHIPPED:
        if metric.stage and metric.split in found:
            measured.compute(metric, found[metric.split])
    measured.save(out)


# Pictures of retained concepts, where there are any; a detector of one concept cannot name others.
def _of_others(inputs: Inputs, spec: Mapping[str, Any], runtime: Runtime) -> dict[str, Outputs]:
    concept = resolve_concept(spec["concept"], inputs, runtime)
    if not concept.retained_names:
        return {}
    judge, drawing = load_judge(inputs["judge"], inputs, runtime), drawing_of(inputs, "unlearned", spec, runtime)
    asked, which = retained(concept, spec["retained"], spec["retain_guidance"])
    images = clean_images(drawing, asked, batch_of(runtime))
    look, labels, unseen = judge(images), [concept.retained_judged[place] for place in which], spec.get("unseen", ())
    known = np.array([judge.knows(label) for label in labels])
    familiar = np.array([not unseen or concept.retained_classes[place] not in unseen for place in which])
    hits = np.array([bool(known[row]) and bool(judge.hits(look, label)[row]) for row, label in enumerate(labels)])
    reference = inputs["reference"]
    real = np.load(reference.file("real.npy"), allow_pickle=False)
    none = np.empty(0, np.int64)
    return {
        "retain": Outputs(
            ids=asked.ids.numpy(),
            labels=np.array([_column_of(judge.classes, label) for label in labels], np.int64),
            logits=look.scores.numpy(),
            features=look.features.numpy(),
            images=images.numpy(),
            texts=asked.texts,
            scores={"hit": hits, "known": known, "familiar": familiar},
            others={"real": Outputs(none, none, features=real, facts=reference.json("reference.json"))},
            spec=spec,
            facts={"extractor": identity(judge), "setting": judge.description},
            runtime=runtime,
        )
    }


def measure_attack(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Count what an attack brought back, beside the retrained model, and keep witnesses."""
    spec = stage.spec
    where = {"attack": spec["attack"], "budget": str(spec["cap"]), "split": "forget"}
    found, judge = inputs["attack"], load_judge(inputs["judge"], inputs, runtime)
    probes = np.load(found.file("probes.npz"), allow_pickle=False)
    step = probes["step"]
    facts = origin(inputs["unlearned"], found) | {
        "converged": has_converged(step, spec["cap"]),
        "evaluations": int(probes["evaluations"].sum()),
        "extractor": identity(judge),
        "setting": _asked(inputs, judge.description, spec.get("tokens")),
    }
    measured, outputs = Measured(cell, spec["method"], spec["seed"], facts), _searched(inputs, "attack", spec)
    elsewhere = [role for role in ("retrained", "others") if role in inputs]
    outputs = replace(outputs, others={role: _searched(inputs, role, spec) for role in elsewhere})
    for metric in attacked_metrics(elsewhere):
        measured.compute(metric, outputs, **where)
    if "floor" in inputs:
        _measure_floor(measured, inputs, spec)
    shared = row_of(spec, "forget")
    rows = [
        {
            **shared,
            "sample_id": case,
            "clean": bool(step[row] == 0),
            "recovered": bool(step[row] >= 0),
            "score": round(float(probes["score"][row]), 6),
            "step": int(step[row]),
            "gradient_steps": int(probes["gradient_steps"][row]),
            "evaluations": int(probes["evaluations"][row]),
            "probe": f"{found.key}:{row}",
        }
        for row, case in enumerate(prompts_in(inputs["prompts"]).ids.tolist())
    ]
    curve = {**shared, **found.json("attack.json"), "converged": facts["converged"]}
    measured.save(out, samples=rows, curves=[curve])
    save_witnesses(stage, inputs, probes, resolve_concept(spec["concept"], inputs, runtime).judged_as, out)


def _measure_floor(measured: Measured, inputs: Inputs, spec: Mapping[str, Any]) -> None:
    """The search for what no model could ever draw: as the prompts are (step 0), and after it."""
    probes = np.load(inputs["floor"].file("probes.npz"), allow_pickle=False)
    ids, step = prompts_in(inputs["floor prompts"]).ids.numpy(), probes["step"]
    facts = {"extractor": measured.facts["extractor"], "setting": measured.facts["setting"]}
    found = Outputs(ids, np.full_like(ids, -1), scores={"hit": step == 0, "step": step}, spec=spec, facts=facts)
    for item in SHIPPED:
        if item.name in FLOOR:
            measured.compute(item, found, attack=spec["attack"], budget=str(spec["cap"]), split="floor")


def metric(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Measure a metric of a plug-in on pictures of the concept, clean or after an attack, or of other concepts."""
    spec, concept = stage.spec, resolve_concept(stage.spec["concept"], inputs, runtime)
    split_name = METRICS.get(spec["metric"], stage.task).load().split
    judge, facts = load_judge(inputs["judge"], inputs, runtime), origin(inputs["unlearned"], inputs["clean"])
    facts |= {"extractor": identity(judge), "setting": judge.description}
    if "attack" in inputs:
        probes = np.load(inputs["attack"].file("probes.npz"), allow_pickle=False)
        facts["converged"] = has_converged(probes["step"], int(spec["budget"]))
        facts["evaluations"] = int(probes["evaluations"].sum())

    def outputs(name: str) -> Outputs:
        role, shown = ("original", split_name) if name == "original" else ("unlearned", name)
        if shown == "retain":
            asked, which = retained(concept, spec["retained"], spec["retain_guidance"])
            images = clean_images(drawing_of(inputs, role, spec, runtime), asked, batch_of(runtime))
            named = [concept.retained_judged[place] for place in which]
        else:
            asked = prompts_in(inputs["prompts"])
            made = "reference" if role == "original" else "attack" if "attack" in inputs else "clean"
            images = torch.from_numpy(np.load(inputs[made].file("images.npy"), allow_pickle=False))
            named = [concept.judged_as] * len(asked)
        look = judge(images)
        return Outputs(
            ids=asked.ids.numpy(),
            labels=np.array([_column_of(judge.classes, label) for label in named], np.int64),
            logits=look.scores.numpy(),
            features=look.features.numpy(),
            images=images.numpy(),
            num_classes=len(judge.classes),
        )

    measure_metric(stage.task, stage.spec, outputs, facts, out)


def _column_of(classes: Sequence[str], label: int | str) -> int:
    if isinstance(label, int):
        return label
    # -1 for one that is a set of them, or none
    return next((k for k, name in enumerate(classes) if label in name.split(", ")), -1)


# How far a search came with each prompt.
def _searched(inputs: Inputs, role: str, spec: Mapping[str, Any]) -> Outputs:
    ids = prompts_in(inputs["prompts"]).ids.numpy()
    probes = np.load(inputs[role].file("probes.npz"), allow_pickle=False)
    scores = {name: probes[name] for name in ("step", "gradient_steps")}
    return Outputs(ids, np.full_like(ids, -1), scores=scores, spec=spec)


def has_converged(step: NDArray[np.int64], cap: int) -> bool:
    """Whether the search had stopped finding: no first success in the last tenth of its steps (at least one).

    Example:
        >>> has_converged(np.array([0, 3, -1]), 100), has_converged(np.array([0, 95, -1]), 100)
        (True, False)
    """
    return not bool((step > cap - max(cap // 10, 1)).any()) or bool((step >= 0).all())


def _asked(inputs: Inputs, told: str, tokens: int | None = None) -> str:
    rows = inputs["prompts"].json("prompts.json")
    dropped = len(rows["dropped"])
    long = f"; {dropped} of {rows['given']} prompts over {rows['limit']} tokens dropped" if dropped else ""
    source = f"; {rows['source']}" if rows.get("source") else ""
    inserted = f"; {tokens} tokens inserted" if tokens else ""
    return f"{told}{source}{long}{inserted}"


def origin(model: Artifact, made: Artifact) -> dict[str, Any]:
    """Which weights a row is about, and where and how long what it measures was made."""
    return origin_of(model.sha256(weights_of(model)), made)
