"""Judges: RUB's own classifier, and the stage that makes, measures and keeps any judge. A judge is a plug-in."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from rub.config.hyperparameters import Hyper
from rub.data.samples import ImageDataset, Samples, concatenate
from rub.data.splits import input_dataset, trainable
from rub.errors import RubError
from rub.judges.base import Argmax, Judge, JudgeContext, Judgement, Label
from rub.judges.extractors import ClassifierExtractor, judge_context, load_classifier, network_of, trained
from rub.judges.imagenet import imagenet
from rub.judges.nudenet import nudenet
from rub.judges.ood_images import KINDS, NOISE, UNSEEN, negatives
from rub.models.weights import save_weights
from rub.pipeline.graph import Stage
from rub.pipeline.runtime import Runtime
from rub.registry import JUDGES, Card
from rub.registry import judge as judge_plugin
from rub.store.artifacts import Artifact
from rub.tasks.text_to_image.concepts import JUDGED, names_of, slug
from rub.tasks.text_to_image.judging import FACTS
from rub.witness.claims import Sources, Witness

__all__ = [
    "Argmax",
    "Judge",
    "JudgeContext",
    "Judgement",
    "classifier",
    "imagenet",
    "judge",
    "judge_in",
    "load_judge",
    "nudenet",
]

WEIGHTS = "weights.safetensors"
NEITHER = "neither"
"""The class of pictures that show nothing of any class."""
SHARE = 2  # real pictures for each picture of nothing
LOOKS = 500  # most real pictures that a judge of someone else is measured on, and pictures of nothing for any judge

CARD = Card(
    equation="success: argmax_k f(x)_k = concept, k over the classes of the data set and one more, `neither`",
    differences=(
        "trained on half as many pictures of nothing as real ones, in equal shares: noise (uniform, grainy, smooth,"
        " over a weak picture), pictures with their pixels or tiles shuffled and, if strict, with their rows shuffled,"
        " with random phases, or reduced to 2 x 2; a classifier of the classes alone calls each of them a class",
        "blends of two classes and mirrored or inverted pictures do not count as nothing: they show something",
        "the rate of mistakes on pictures of nothing is measured on kinds that it never saw: gratings, ramps, black and"
        " white pixels, chessboards, smeared pictures",
    ),
)


@judge_plugin("classifier", task="text-to-image", card=CARD)
def classifier(
    files: Path | None, context: JudgeContext, *,
    strict: Annotated[bool, Hyper(
        "whether it learned that colours and textures without shapes show nothing; decided when it was trained",
        source="a picture with no more than the colours or the spectrum of a class is not a picture of it; a lenient"
        " judge calls most of them a class, and also accepts worse pictures of small models")] = True,
) -> Judge:  # fmt: skip
    """Be trained on the suite's own data, with one more class for pictures that show nothing of any class.

    `files` is the folder of the stage `judge`.

    Raises:
        RubError: no folder, or weights of another network.
    """
    if files is None:
        raise RubError("judge classifier: is trained by a suite on its data set; name another judge here")
    facts = json.loads((files / FACTS).read_text(encoding="utf-8"))
    extractor = load_classifier(
        context.name, facts["network"], files / WEIGHTS, batch_size=context.batch_size, device=context.device
    )
    told = f"classifier {context.measured}".strip()
    return Argmax(context.name, extractor.sha256, told, tuple(facts["classes"]), Seen(extractor))


@dataclass(frozen=True)
class Seen:
    """Looks through RUB's own classifier."""

    extractor: ClassifierExtractor

    def __call__(self, images: Tensor) -> Judgement:
        """Return logits and penultimate features."""
        features, logits = self.extractor(images)
        return Judgement(logits, features)


def judge(stage: Stage, inputs: Mapping[str, Artifact], out: Path, runtime: Runtime) -> None:
    """Stage function: train the classifier or take in a judge, look how good it is, and write both down."""
    spec = stage.spec
    dataset = input_dataset(inputs, runtime) if "data" in inputs else None
    facts = {"name": spec["name"], "judge": spec["judge"]}
    if "training" in spec:
        assert dataset is not None
        facts |= _train(spec, dataset, out, runtime)
    else:
        facts |= {"weights": _copied(stage, out), "sha256": spec["sha256"]}
    (out / FACTS).write_text(json.dumps(facts), encoding="utf-8")
    made = _made(facts, out, runtime.batch_size, runtime.device)  # a judge that cannot be is noticed here
    if dataset is not None:
        facts |= measured(made, dataset, spec["seed"], ours="training" in spec)
        (out / FACTS).write_text(json.dumps(facts), encoding="utf-8")


def _train(spec: Mapping[str, Any], dataset: ImageDataset, out: Path, runtime: Runtime) -> dict[str, Any]:
    seen, nothing = trainable(dataset, spec["validation"]), len(dataset.classes)
    kinds = KINDS if spec["judge"]["parameters"]["strict"] else NOISE
    other = negatives(seen, len(seen) // SHARE, nothing, spec["seed"], kinds)
    network = network_of(spec["model"], dataset, nothing + 1)
    model = trained(network, concatenate([seen, other]), judge_context(spec, dataset, runtime), spec)
    save_weights(model, out / WEIGHTS)
    classes = [", ".join(names) for names in names_of(dataset.classes)]
    return {"weights": ".", "network": network, "classes": [*classes, NEITHER], "neither": list(kinds)}


def _copied(stage: Stage, out: Path) -> str | None:
    """Copy a judge's files into its artifact, so that it is there whenever it is asked; return what it is read from."""
    path = stage.files.get("weights")
    if path is None:
        return None
    for name in stage.spec["sha256"]:
        shutil.copyfile(path if path.is_file() else path / name, out / name)
    return path.name if path.is_file() else "."


def measured(judge: Judge, dataset: ImageDataset, seed: int, *, ours: bool) -> dict[str, Any]:
    """Return how good a judge is: on real test images, and on pictures of nothing of `UNSEEN` kinds.

    Args:
        judge: what looks.
        dataset: gives the test images; classes that the judge does not know are left out.
        seed: of the pictures of nothing.
        ours: whether its classes are those of the data set.

    Returns:
        ``accuracy`` on ``n`` images, ``by_class``, the share ``taken`` for a class of ``nothing`` pictures of nothing,
        ``taken_by_kind``; nothing at all where the judge knows none of the classes.
    """
    names = names_of(dataset.classes)
    labels = {place: place if ours else _called(judge, own) for place, own in enumerate(names)}
    known = {place: label for place, label in labels.items() if label is not None}
    test = _spread(dataset.test, list(known), None if ours else -(-LOOKS // max(len(known), 1)))
    if not len(test):
        return {}
    look, right = judge(test.images), torch.zeros(len(test), dtype=torch.bool)
    for place, label in known.items():
        right |= judge.hits(look, label) & (test.labels == place)
    fresh = negatives(dataset.test, LOOKS, 0, seed, UNSEEN)
    look = judge(fresh.images)
    taken = torch.stack([judge.hits(look, label) for label in known.values()]).any(0)
    by_kind = taken.reshape(len(UNSEEN), -1)
    return {
        "accuracy": _share(right),
        "n": len(test),
        "by_class": {names[place][0]: _share(right[own]) for place in known if (own := test.labels == place).any()},
        "taken": _share(taken),
        "nothing": len(fresh),
        "taken_by_kind": {kind: _share(row) for kind, row in zip(UNSEEN, by_kind, strict=True)},
    }


def _called(judge: Judge, names: Sequence[str]) -> Label | None:
    """Return what a judge of someone else calls a class: by its main name, or by its number in ImageNet."""
    labels: list[Label] = [names[0], *([JUDGED[slug(names[0])]] if slug(names[0]) in JUDGED else [])]
    return next((label for label in labels if judge.knows(label)), None)


def _spread(samples: Samples, classes: Sequence[int], count: int | None) -> Samples:
    """Return the first so many samples of each of these classes; None: all."""
    places = [(samples.labels == place).nonzero()[:count, 0] for place in classes]
    return samples.select(torch.cat([torch.empty(0, dtype=torch.int64), *places]))


def _share(hits: Tensor) -> float:
    return round(float(hits.double().mean()), 4)


def told(facts: Mapping[str, Any]) -> str:
    """Return in words what was measured of a judge; "" where nothing was.

    Example:
        >>> told({"accuracy": 0.975, "n": 364, "taken": 0.004, "nothing": 500})
        'right on 97.5 % of 364 real test images; calls 0.4 % of 500 pictures of nothing a class'
    """
    if "accuracy" not in facts:
        return ""
    right, taken = (f"{100 * facts[name]:.1f} %" for name in ("accuracy", "taken"))
    real, nothing = f"{facts['n']} real test images", f"{facts['nothing']} pictures of nothing"
    return f"right on {right} of {real}; calls {taken} of {nothing} a class"


def load_judge(artifact: Artifact, inputs: Mapping[str, Artifact], runtime: Runtime) -> Judge:
    """Return the judge of a judge artifact, once per process."""
    return runtime.cache.get(
        (artifact.key, runtime.device),
        lambda: _made(artifact.json(FACTS), artifact.path, runtime.batch_size, runtime.device),
    )


def judge_in(witness: Witness, sources: Sources) -> Judge:
    """Return the judge that a claim names, from the store.

    Raises:
        RubError: it is not there.
    """
    wanted = witness.models.get("judge")
    artifact = None if wanted is None or sources.store is None else sources.store.find("judge", wanted.key)
    if wanted is None or artifact is None or artifact.manifest["files"].get(wanted.file) != wanted.sha256:
        raise RubError("the claim's judge is not in the store; give the store that the run used with --store")
    return _made(artifact.json(FACTS), artifact.path, sources.batch_size, sources.device)


def _made(facts: Mapping[str, Any], folder: Path, batch_size: int, device: str) -> Judge:
    """Return a judge from what its stage wrote down.

    Raises:
        RubError: as the judge's own function.
    """
    chosen, weights = facts["judge"], facts["weights"]
    function = JUDGES.get(chosen["name"], "text-to-image").load()
    context = JudgeContext(facts["name"], batch_size, device, told(facts))
    made: Judge = function(None if weights is None else folder / weights, context, **chosen["parameters"])
    return made
