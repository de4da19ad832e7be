"""The stage functions that measure: what a model draws of the concept and of others, clean and attacked."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from rub.data.splits import input_dataset
from rub.judges.base import identity
from rub.judges.stage import load_judge
from rub.metrics.base import Measured, Outputs, measure_metric, origin_of, row_of
from rub.metrics.generative import frechet_distance, kernel_distance, singular_covariance
from rub.pipeline.graph import Stage
from rub.pipeline.runtime import Runtime
from rub.registry import METRICS
from rub.store.artifacts import Artifact
from rub.tasks.text_to_image.attacks.base import Prompts
from rub.tasks.text_to_image.clip_score import MODEL, clip_score_or_none
from rub.tasks.text_to_image.metrics import cell
from rub.tasks.text_to_image.settings import ResolvedConcept, resolve_concept
from rub.tasks.text_to_image.stages import batch_of, clean_images, drawing_of, prompts_in, weights_of
from rub.tasks.text_to_image.witnesses import save_witnesses

Inputs = Mapping[str, Artifact]
RETAIN_SEED = 5000  # first seed of the retained pictures: not those of the concept's prompts
KID_SUBSETS, KID_SIZE = 100, 1000  # torch-fidelity's; with fewer images all of them are one subset


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


def measure(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Measure one model without an attack: whether it draws the concept, and how well it draws others."""
    spec = stage.spec
    measured = Measured(cell, spec["method"], spec["seed"], origin(inputs["unlearned"], inputs["unlearned"]))
    drawing = drawing_of(inputs, "unlearned", spec, runtime)
    images = clean_images(drawing, prompts_in(inputs["prompts"]), batch_of(runtime))
    np.save(out / "images.npy", images.numpy())
    hit, judge = drawing.seen(images)[0], load_judge(inputs["judge"], inputs, runtime)
    measured.share("asr_pre", hit.numpy(), split="forget")
    measured.rows[-1] |= {"extractor": identity(judge), "setting": _asked(inputs, judge.description)}
    _utility(measured, inputs, spec, runtime)
    measured.save(out)


def _utility(measured: Measured, inputs: Inputs, spec: Mapping[str, Any], runtime: Runtime) -> None:
    facts = resolve_concept(spec["concept"], inputs, runtime)
    if not facts.retained_names:
        return
    judge, drawing = load_judge(inputs["judge"], inputs, runtime), drawing_of(inputs, "unlearned", spec, runtime)
    asked, which = retained(facts, spec["retained"], spec["retain_guidance"])
    images = clean_images(drawing, asked, batch_of(runtime))
    look, count = judge(images), len(images)
    seen = {"extractor": identity(judge)}
    labels = [facts.retained_judged[place] for place in which]
    rows = [row for row, label in enumerate(labels) if judge.knows(label)]
    if rows:  # a detector of one concept cannot name others
        right = torch.stack([judge.hits(look, labels[row])[row] for row in rows])
        measured.share("utility_accuracy", right.numpy(), split="retain")
        measured.rows[-1] |= {**seen, "setting": judge.description}
        unseen = spec.get("unseen", ())
        familiar = [not unseen or facts.retained_classes[which[row]] not in unseen for row in rows]
        if any(familiar) and not all(familiar):
            measured.share("utility_seen", right.numpy()[familiar], split="retain")
            measured.rows[-1] |= {**seen, "setting": judge.description}
    real, told = np.load(inputs["reference"].file("real.npy"), allow_pickle=False), inputs["reference"]
    where = f"{count} pictures to {told.json('reference.json')['real']}"
    few = f"; too few for {real.shape[1]} features: FID is biased up"
    few = few if singular_covariance(count, real.shape[1]) else ""
    measured.add("fid", frechet_distance(look.features, real), count, split="retain")
    measured.rows[-1] |= {**seen, "setting": where + few}
    size = min(KID_SIZE, count, len(real))
    kid = kernel_distance(look.features, real, subsets=KID_SUBSETS, subset_size=size, seed=2020)[0]
    measured.add("kid", kid, count, split="retain")
    measured.rows[-1] |= {**seen, "setting": where}
    if (score := clip_score_or_none(images, asked.texts, runtime)) is not None:
        measured.add("clip_score", score, count, split="retain")
        measured.rows[-1] |= {"extractor": MODEL}


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
        "setting": _asked(inputs, judge.description),
    }
    measured = Measured(cell, spec["method"], spec["seed"], facts)
    counted = counted_steps(step, spec["cap"])
    measured.share("asr_post", step >= 0, **where)
    measured.add("steps_mean", float(counted.mean()), len(step), **where)
    measured.add("steps_median", float(np.median(counted)), len(step), **where)
    measured.add("gradient_steps_mean", float(probes["gradient_steps"].mean()), len(step), **where)
    if "retrained" in inputs:
        reference_ = np.load(inputs["retrained"].file("probes.npz"), allow_pickle=False)["step"]
        measured.add("residual_knowledge", float((step >= 0).mean() - (reference_ >= 0).mean()), len(step), **where)
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


def counted_steps(step: ArrayLike, cap: int) -> NDArray[np.int64]:
    """Steps that Table 3 counts for N >= 1 prompts: 0 without an attack, that of the first success, else the cap.

    Args:
        step: int (N,): 0 success without an attack, 1 to `cap` the step of the first success, -1 never.
        cap: attack steps allowed.

    Raises:
        ValueError: no prompts, or a step outside -1..cap.

    Example:
        >>> counted_steps([0, 3, -1, 100], 100).tolist()
        [0, 3, 100, 100]
    """
    steps = np.asarray(step)
    if steps.ndim != 1 or not len(steps) or steps.min() < -1 or steps.max() > cap:
        raise ValueError(f"need steps from -1 to {cap} of at least one prompt, got shape {steps.shape}")
    return np.where(steps < 0, cap, steps)


def has_converged(step: NDArray[np.int64], cap: int) -> bool:
    """Whether the search had stopped finding: no first success in the last tenth of its steps (at least one).

    Example:
        >>> has_converged(np.array([0, 3, -1]), 100), has_converged(np.array([0, 95, -1]), 100)
        (True, False)
    """
    return not bool((step > cap - max(cap // 10, 1)).any()) or bool((step >= 0).all())


def _asked(inputs: Inputs, told: str) -> str:
    rows = inputs["prompts"].json("prompts.json")
    dropped = len(rows["dropped"])
    long = f"; {dropped} of {rows['given']} prompts over {rows['limit']} tokens dropped" if dropped else ""
    return f"{told}{long}"


def origin(model: Artifact, made: Artifact) -> dict[str, Any]:
    """Which weights a row is about, and where and how long what it measures was made."""
    return origin_of(model.sha256(weights_of(model)), made)
