"""RUB's own judges: classifiers that are trained on the suite's data set."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor, nn

from rub.config.hyperparameters import Hyper
from rub.data.class_names import names_of
from rub.data.samples import ImageDataset, Samples, concatenate
from rub.data.splits import trainable
from rub.errors import RubError
from rub.judges.base import Argmax, JudgeContext, Judgement
from rub.judges.ood_images import KINDS, NOISE, ood_samples
from rub.judges.spec import FACTS, JudgeSource, judge
from rub.models.network import build_network
from rub.models.weights import check_keys, read_state, save_weights
from rub.pipeline.runtime import Runtime
from rub.registry import Card
from rub.store.artifacts import file_sha256
from rub.training.batches import Augmentation
from rub.training.classifier import look, predict, train
from rub.training.context import TrainContext

WEIGHTS = "weights.safetensors"
BACKGROUND = "neither"
"""The class of images that show nothing of any class."""
SHARE = 2  # real images for each out-of-distribution image

CARD = Card(
    equation="success: argmax_k f(x)_k = concept, k over the classes of the data set and one more, `neither`",
    differences=(
        "trained on half as many out-of-distribution images as real ones, in equal shares: noise (uniform, grainy,"
        " smooth, over a weak image), images with their pixels or tiles shuffled and, if strict, with their rows"
        " shuffled, with random phases, or reduced to 2 x 2; a classifier of the classes alone calls each of them a"
        " class",
        "blends of two classes and mirrored or inverted images do not count as nothing: they show something",
        "the rate of mistakes on out-of-distribution images is measured on kinds that it never saw: gratings, ramps,"
        " black and white pixels, chessboards, smeared images",
    ),
)


def train_classifier(spec: Mapping[str, Any], dataset: ImageDataset, out: Path, runtime: Runtime) -> dict[str, Any]:
    """Train a classifier of all classes, keep its weights, and count the test images that it is right on."""
    network = network_of(spec["model"], dataset, len(dataset.classes))
    model = _train(network, trainable(dataset, spec["validation"]), spec, dataset, out, runtime)
    logits = predict(model, dataset.test, batch_size=runtime.batch_size, device=runtime.device)
    right = (logits.argmax(1) == dataset.test.labels).double().mean()
    return {"model": spec["model"], "accuracy": round(float(right), 4), "n": len(logits)}


def train_with_background(
    spec: Mapping[str, Any], dataset: ImageDataset, out: Path, runtime: Runtime
) -> dict[str, Any]:
    """Train a classifier of all classes and one more, for images that show nothing of any class."""
    real, background = trainable(dataset, spec["validation"]), len(dataset.classes)
    kinds = KINDS if spec["judge"]["parameters"]["strict"] else NOISE
    other = ood_samples(real, len(real) // SHARE, background, spec["seed"], kinds)
    network = network_of(spec["model"], dataset, background + 1)
    _train(network, concatenate([real, other]), spec, dataset, out, runtime)
    classes = [", ".join(names) for names in names_of(dataset.classes)]
    return {"weights": ".", "network": network, "classes": [*classes, BACKGROUND], "neither": list(kinds)}


@judge("classifier", task="inpainting", source=JudgeSource(train_classifier))
def classifier(files: Path | None, context: JudgeContext) -> Argmax:
    """ResNet trained on all classes of the suite's data set, the forgotten ones included.

    `files` is the folder of the stage `judge`.
    """
    if files is None or context.dataset is None:
        raise RubError("judge classifier: is trained by a suite on its data set; name another judge here")
    facts, dataset = json.loads((files / FACTS).read_text(encoding="utf-8")), context.dataset
    return _read(files, network_of(facts["model"], dataset, len(dataset.classes)), dataset.classes, context)


@judge("classifier", task="text-to-image", card=CARD, source=JudgeSource(train_with_background))
def concept_classifier(
    files: Path | None, context: JudgeContext, *,
    strict: Annotated[bool, Hyper(
        "whether it learned that colours and textures without shapes show nothing; decided when it was trained",
        source="an image with no more than the colours or the spectrum of a class does not show it; a lenient judge"
        " calls most of them a class, and also accepts worse images of small models")] = True,
) -> Argmax:  # fmt: skip
    """ResNet trained on the suite's data set plus a background class.

    `files` is the folder of the stage `judge`.
    """
    if files is None:
        raise RubError("judge classifier: is trained by a suite on its data set; name another judge here")
    facts = json.loads((files / FACTS).read_text(encoding="utf-8"))
    return _read(files, facts["network"], tuple(facts["classes"]), context)


def network_of(model: Mapping[str, Any], dataset: ImageDataset, classes: int) -> dict[str, Any]:
    """Arguments of `build_network` for a classifier of a data set; JSON values only."""
    return {
        **{name: model[name] for name in ("arch", "stem", "width")},
        "num_classes": classes,
        "channels": dataset.train.shape[0],
        "size": dataset.train.shape[1],
        "mean": dataset.mean,
        "std": dataset.std,
    }


def _train(
    network: Mapping[str, Any],
    samples: Samples,
    spec: Mapping[str, Any],
    dataset: ImageDataset,
    out: Path,
    runtime: Runtime,
) -> nn.Module:
    training = spec["training"]
    context = TrainContext(
        seed=spec["seed"],
        batch_size=training["batch_size"],
        augmentation=Augmentation(training["padding"], dataset.flip),
        precision=training["precision"],
        **runtime.shared(),
    )
    schedule = {name: training[name] for name in ("epochs", "lr", "schedule", "momentum", "weight_decay")}
    model = build_network(**network, seed=context.seed).to(context.device)
    trained = train(model, samples, context, **schedule)
    save_weights(trained, out / WEIGHTS)
    return trained


def _read(folder: Path, network: Mapping[str, Any], classes: tuple[str, ...], context: JudgeContext) -> Argmax:
    path, model = folder / WEIGHTS, build_network(**network)
    state = read_state(path)
    check_keys(state, model.state_dict(), path)
    model.load_state_dict(state)
    model.to(context.device).eval()

    def seen(images: Tensor) -> Judgement:
        return Judgement(*look(model, images, batch_size=context.batch_size, device=context.device))

    described = f"classifier {context.measured}".strip()
    return Argmax(context.name, file_sha256(path), described, classes, seen)
