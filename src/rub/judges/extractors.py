"""The judge of generated images: trained on the suite's own data, or Inception; gives features and logits."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rub.data.samples import ImageDataset, Samples
from rub.data.splits import input_dataset, trainable
from rub.judges.extractor_stage import INCEPTION_FILE
from rub.judges.inception import load_inception
from rub.metrics.generative import Extractor
from rub.models.network import build_network, head
from rub.models.weights import check_keys, read_state, save_weights
from rub.pipeline.graph import Stage
from rub.pipeline.runtime import Runtime
from rub.store.artifacts import Artifact, file_sha256
from rub.training.classifier import look, predict, train
from rub.training.context import Augmentation, TrainContext

WEIGHTS, FACTS = "weights.safetensors", "judge.json"


@dataclass(frozen=True)
class ClassifierExtractor:
    """A classifier of the suite's own data as a judge.

    Attributes:
        name: data set and architecture, such as ``digits-resnet10``.
        sha256: of its weights.
        dimension: width of its penultimate features.
        classes: number of its logits.
        model: in eval mode, on the device.
        batch_size: images per forward pass.
        device: where the model is.
    """

    name: str
    sha256: str
    dimension: int
    classes: int
    model: nn.Module
    batch_size: int
    device: str

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return float32 features (N, D) and logits (N, C) of uint8 images (N, C, H, W)."""
        logits, features = look(self.model, images, batch_size=self.batch_size, device=self.device)
        return features, logits


def judge(stage: Stage, inputs: Mapping[str, Artifact], out: Path, runtime: Runtime) -> None:
    """Stage function: train the classifier on all classes and write down how good it is, or take in Inception."""
    spec = stage.spec
    if spec["name"] == "inception":
        (out / INCEPTION_FILE).write_bytes(stage.files["weights"].read_bytes())
        (out / FACTS).write_text(json.dumps({"name": "inception-v3-compat"}), encoding="utf-8")
        return
    dataset = input_dataset(inputs, runtime)
    network = network_of(spec["model"], dataset, len(dataset.classes))
    model = trained(network, trainable(dataset, spec["validation"]), judge_context(spec, dataset, runtime), spec)
    logits = predict(model, dataset.test, batch_size=runtime.batch_size, device=runtime.device)
    right = (logits.argmax(1) == dataset.test.labels).double().mean()
    save_weights(model, out / WEIGHTS)
    facts = {"name": spec["name"], "model": spec["model"], "accuracy": round(float(right), 4), "n": len(logits)}
    (out / FACTS).write_text(json.dumps(facts), encoding="utf-8")


def judge_context(spec: Mapping[str, Any], dataset: ImageDataset, runtime: Runtime) -> TrainContext:
    """Return how a judge is trained, from its stage's ``training`` and ``seed``."""
    training = spec["training"]
    return TrainContext(
        seed=spec["seed"],
        batch_size=training["batch_size"],
        augmentation=Augmentation(training["padding"], dataset.flip),
        precision=training["precision"],
        **runtime.shared(),
    )


def trained(network: Mapping[str, Any], samples: Samples, context: TrainContext, spec: Mapping[str, Any]) -> nn.Module:
    """Return a judge's classifier, trained on these samples.

    Args:
        network: from `network_of`.
        samples: the training set.
        context: from `judge_context`.
        spec: of the stage; ``training`` is read.
    """
    schedule = {name: spec["training"][name] for name in ("epochs", "lr", "schedule", "momentum", "weight_decay")}
    return train(build_network(**network, seed=context.seed).to(context.device), samples, context, **schedule)


def network_of(model: Mapping[str, Any], dataset: ImageDataset, classes: int) -> dict[str, Any]:
    """Return the arguments of `build_network` for a classifier of a data set; JSON values only."""
    return {
        **{name: model[name] for name in ("arch", "stem", "width")},
        "num_classes": classes,
        "channels": dataset.train.shape[0],
        "mean": dataset.mean,
        "std": dataset.std,
    }


def load_judge(artifact: Artifact, inputs: Mapping[str, Artifact], runtime: Runtime) -> Extractor:
    """Return the judge of a judge artifact, once per process."""

    def load() -> Extractor:
        facts = artifact.json(FACTS)
        if "model" not in facts:
            path = artifact.file(INCEPTION_FILE)
            return load_inception(path, batch_size=runtime.batch_size, device=runtime.device)
        dataset = input_dataset(inputs, runtime)
        network = network_of(facts["model"], dataset, len(dataset.classes))
        return load_classifier(
            facts["name"], network, artifact.file(WEIGHTS), batch_size=runtime.batch_size, device=runtime.device
        )

    return runtime.cache.get((artifact.key, runtime.device), load)


def load_classifier(
    name: str, network: Mapping[str, Any], path: Path, *, batch_size: int, device: str
) -> ClassifierExtractor:
    """Return a trained classifier as an extractor.

    Args:
        name: as reports print it.
        network: from `network_of`.
        path: of its weights.
        batch_size: images per forward pass.
        device: where it runs.

    Raises:
        RubError: the file holds weights of another network.
    """
    model = build_network(**network)
    state = read_state(path)
    check_keys(state, model.state_dict(), path)
    model.load_state_dict(state)
    layer: nn.Linear = head(model)  # type: ignore[assignment]
    width, classes = layer.in_features, layer.out_features
    return ClassifierExtractor(name, file_sha256(path), width, classes, model.to(device).eval(), batch_size, device)


def described(artifact: Artifact) -> str:
    """Return how good the judge is on real test images, in words; nothing for Inception."""
    facts = artifact.json(FACTS)
    if "accuracy" not in facts:
        return ""
    return f"classifier right on {100 * facts['accuracy']:.1f} % of {facts['n']} real test images"
