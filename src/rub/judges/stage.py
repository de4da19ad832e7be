"""The stage that makes, measures and keeps a judge, and reading the judge that it kept."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rub.data.class_names import IMAGENET_LABELS, names_of, slug
from rub.data.samples import ImageDataset, Samples
from rub.data.splits import input_dataset
from rub.judges.base import ConceptJudge, Judge, JudgeContext, Label
from rub.judges.ood_images import HELD_OUT, ood_samples
from rub.judges.spec import FACTS, source_of
from rub.pipeline.graph import Stage
from rub.pipeline.runtime import Runtime
from rub.registry import JUDGES
from rub.store.artifacts import Artifact

MOST_IMAGES = 500  # real images that a judge of someone else is measured on, and out-of-distribution images for any


def judge(stage: Stage, inputs: Mapping[str, Artifact], out: Path, runtime: Runtime) -> None:
    """Stage function: train the judge or take it in, measure how good it is, and write both down."""
    spec = stage.spec
    dataset = input_dataset(inputs, runtime) if "data" in inputs else None
    source = source_of(_component(spec)["name"], stage.task)
    facts = {"name": spec["name"], **({"judge": spec["judge"]} if "judge" in spec else {})}
    if source.train is not None:
        assert dataset is not None  # `judge_stage`
        facts |= source.train(spec, dataset, out, runtime)
    elif source.kept_as:
        shutil.copyfile(stage.files["weights"], out / source.kept_as)
    else:
        facts |= {"weights": _copied(stage, out), "sha256": spec["sha256"]}
    (out / FACTS).write_text(json.dumps(facts), encoding="utf-8")
    made = _load(stage.task, facts, out, dataset, runtime.batch_size, runtime.device)  # one that cannot be ends here
    if dataset is not None and "judge" in spec and isinstance(made, ConceptJudge):
        facts |= measured(made, dataset, spec["seed"], own=source.train is not None)
        (out / FACTS).write_text(json.dumps(facts), encoding="utf-8")


def _copied(stage: Stage, out: Path) -> str | None:
    # The files of the judge, so that it is there whenever it is asked; and what it is read from.
    path = stage.files.get("weights")
    if path is None:
        return None
    for name in stage.spec["sha256"]:
        shutil.copyfile(path if path.is_file() else path / name, out / name)
    return path.name if path.is_file() else "."


def measured(judge: ConceptJudge, dataset: ImageDataset, seed: int, *, own: bool) -> dict[str, Any]:
    """How good a judge is: on real test images, and on out-of-distribution images of kinds that none learns from.

    Classes that it does not know are left out; with `own`, its classes are those of the data set.

    Returns:
        ``accuracy`` on ``n`` images, ``by_class``, the share ``taken`` for a class of ``nothing`` out-of-distribution
        images, ``taken_by_kind``; nothing at all where the judge knows none of the classes.
    """
    names = names_of(dataset.classes)
    labels = {place: place if own else _label(judge, given) for place, given in enumerate(names)}
    known = {place: label for place, label in labels.items() if label is not None}
    test = _spread(dataset.test, list(known), None if own else -(-MOST_IMAGES // max(len(known), 1)))
    if not len(test):
        return {}
    judgement, right = judge(test.images), torch.zeros(len(test), dtype=torch.bool)
    for place, label in known.items():
        right |= judge.hits(judgement, label) & (test.labels == place)
    judgement = judge(ood_samples(dataset.test, MOST_IMAGES, 0, seed, HELD_OUT).images)
    taken = torch.stack([judge.hits(judgement, label) for label in known.values()]).any(0)
    by_kind = taken.reshape(len(HELD_OUT), -1)
    return {
        "accuracy": _share(right),
        "n": len(test),
        "by_class": {names[place][0]: _share(right[mine]) for place in known if (mine := test.labels == place).any()},
        "taken": _share(taken),
        "nothing": len(taken),
        "taken_by_kind": {kind: _share(row) for kind, row in zip(HELD_OUT, by_kind, strict=True)},
    }


def _label(judge: ConceptJudge, names: Sequence[str]) -> Label | None:
    # What a judge of someone else calls a class: its main name, or its number in ImageNet.
    number = IMAGENET_LABELS.get(slug(names[0]))
    labels: list[Label] = [names[0], *([] if number is None else [number])]
    return next((label for label in labels if judge.knows(label)), None)


def _spread(samples: Samples, classes: Sequence[int], count: int | None) -> Samples:
    # The first so many samples of each of these classes; None: all.
    places = [(samples.labels == place).nonzero()[:count, 0] for place in classes]
    return samples.select(torch.cat([torch.empty(0, dtype=torch.int64), *places]))


def _share(hits: Tensor) -> float:
    return round(float(hits.double().mean()), 4)


def in_words(facts: Mapping[str, Any]) -> str:
    """What was measured of a judge; "" where nothing was.

    Example:
        >>> in_words({"accuracy": 0.975, "n": 364, "taken": 0.004, "nothing": 500})
        'right on 97.5 % of 364 real test images; calls 0.4 % of 500 pictures of nothing a class'
    """
    if "accuracy" not in facts:
        return ""
    right = f"right on {100 * facts['accuracy']:.1f} % of {facts['n']} real test images"
    if "taken" not in facts:
        return right
    return f"{right}; calls {100 * facts['taken']:.1f} % of {facts['nothing']} pictures of nothing a class"


def load_judge(artifact: Artifact, inputs: Mapping[str, Artifact], runtime: Runtime) -> Any:
    """Judge of a judge artifact, read once per process: a `Judge`; a `ConceptJudge` where the task needs one."""
    dataset = input_dataset(inputs, runtime) if "data" in inputs else None
    return runtime.cache.get(
        (artifact.key, runtime.device), lambda: stored_judge(artifact, dataset, runtime.batch_size, runtime.device)
    )


def stored_judge(artifact: Artifact, dataset: ImageDataset | None, batch_size: int, device: str) -> Any:
    """Judge of a judge artifact; `dataset` is what RUB's own classifier of the image-to-image task was trained on."""
    facts = artifact.json(FACTS)
    return _load(artifact.manifest["task"], facts, artifact.path, dataset, batch_size, device)


def _component(facts: Mapping[str, Any]) -> dict[str, Any]:
    # Two judges without settings do not say their name: the classifier has an architecture, the other is Inception.
    name = "classifier" if "model" in facts else "inception"
    component: dict[str, Any] = facts.get("judge", {"name": name, "parameters": {}})
    return component


def _load(
    task: str, facts: Mapping[str, Any], folder: Path, dataset: ImageDataset | None, batch_size: int, device: str
) -> Judge:
    component = _component(facts)
    weights = facts.get("weights", source_of(component["name"], task).kept_as)
    context = JudgeContext(facts["name"], batch_size, device, in_words(facts), dataset)
    function = JUDGES.get(component["name"], task).load()
    made: Judge = function(None if weights is None else folder / weights, context, **component["parameters"])
    return made
