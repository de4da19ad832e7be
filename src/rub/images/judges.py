"""The judge of generated images: trained on the suite's own data, or Inception; gives features and logits."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rub.images.context import Augmentation, TrainContext
from rub.images.data import Bundle, bundle_of, trainable
from rub.images.fidelity import Extractor
from rub.images.inception import load_inception
from rub.images.judging import INCEPTION_FILE
from rub.images.networks import build_network
from rub.images.training import embed, predict, train
from rub.pipeline.plan import Stage
from rub.pipeline.stages import Runtime
from rub.store.artifacts import Artifact
from rub.weights import check_keys, read_state, save_weights

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
        features = embed(self.model, images, batch_size=self.batch_size, device=self.device)
        head: nn.Module = self.model.fc  # type: ignore[assignment]
        with torch.no_grad():
            return features, head(features.to(self.device)).cpu()


def judge(stage: Stage, inputs: Mapping[str, Artifact], out: Path, runtime: Runtime) -> None:
    """Stage function: train the classifier on all classes and write down how good it is, or take in Inception."""
    spec = stage.spec
    if spec["name"] == "inception":
        (out / INCEPTION_FILE).write_bytes(stage.files["weights"].read_bytes())
        (out / FACTS).write_text(json.dumps({"name": "inception-v3-compat"}), encoding="utf-8")
        return
    bundle, training = bundle_of(inputs, runtime), spec["training"]
    context = TrainContext(
        seed=spec["seed"],
        batch_size=training["batch_size"],
        augmentation=Augmentation(training["padding"], bundle.flip),
        precision=training["precision"],
        device=torch.device(runtime.device),
        progress=runtime.progress,
    )
    model = _network(spec["model"], bundle, spec["seed"]).to(runtime.device)
    schedule = {name: training[name] for name in ("epochs", "lr", "schedule", "momentum", "weight_decay")}
    train(model, trainable(bundle, spec["validation"]), context, **schedule)
    logits = predict(model, bundle.test, batch_size=runtime.batch_size, device=runtime.device)
    right = (logits.argmax(1) == bundle.test.labels).double().mean()
    save_weights(model, out / WEIGHTS)
    facts = {"name": spec["name"], "model": spec["model"], "accuracy": round(float(right), 4), "n": len(logits)}
    (out / FACTS).write_text(json.dumps(facts), encoding="utf-8")


def load_judge(artifact: Artifact, inputs: Mapping[str, Artifact], runtime: Runtime) -> Extractor:
    """Return the judge of a judge artifact, once per process."""

    def load() -> Extractor:
        facts = artifact.json(FACTS)
        if "model" not in facts:
            path = artifact.file(INCEPTION_FILE)
            return load_inception(path, batch_size=runtime.batch_size, device=runtime.device)
        bundle = bundle_of(inputs, runtime)
        model = _network(facts["model"], bundle, seed=0)
        state = read_state(artifact.file(WEIGHTS))
        check_keys(state, model.state_dict(), artifact.file(WEIGHTS))
        model.load_state_dict(state)
        head: nn.Linear = model.fc  # type: ignore[assignment]
        return ClassifierExtractor(
            facts["name"],
            artifact.sha256(WEIGHTS),
            head.in_features,
            head.out_features,
            model.to(runtime.device).eval(),
            runtime.batch_size,
            runtime.device,
        )

    return runtime.memo.get((artifact.key, runtime.device), load)


def described(artifact: Artifact) -> str:
    """Return how good the judge is on real test images, in words; nothing for Inception."""
    facts = artifact.json(FACTS)
    if "accuracy" not in facts:
        return ""
    return f"classifier right on {100 * facts['accuracy']:.1f} % of {facts['n']} real test images"


def _network(spec: Mapping[str, object], bundle: Bundle, seed: int) -> nn.Module:
    return build_network(
        str(spec["arch"]),
        num_classes=len(bundle.classes),
        channels=bundle.train.images.shape[1],
        stem=spec["stem"],  # type: ignore[arg-type]
        width=spec["width"],  # type: ignore[arg-type]
        mean=bundle.mean,
        std=bundle.std,
        seed=seed,
    )
