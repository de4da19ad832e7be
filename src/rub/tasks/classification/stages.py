"""The stage functions that make models and probes: train, import, shadow, unlearn, attack."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rub.attacks.base import AttackContext, Probes
from rub.data.samples import ImageDataset, Samples
from rub.data.splits import Splits, input_dataset, split, subset, trainable, training_set
from rub.errors import NothingToMeasure
from rub.models.formats.classifier import load_weights
from rub.models.lookup import hyperparameters_in
from rub.models.network import build_network
from rub.models.weights import save_weights
from rub.pipeline.graph import Stage
from rub.pipeline.rng import seeded
from rub.pipeline.runtime import Runtime
from rub.registry import ATTACKS, unlearner
from rub.store.artifacts import Artifact
from rub.tasks.classification.attacks.base import Target, other_classes
from rub.tasks.classification.attacks.harness import make_target, run_attacks
from rub.tasks.classification.budgets import Budget
from rub.tasks.classification.context import UnlearnContext
from rub.training.batches import Augmentation
from rub.training.classifier import predict
from rub.training.classifier import train as fit
from rub.training.counting import counting
from rub.training.finite import check_outputs, check_weights, looked_at

Inputs = Mapping[str, Artifact]
UNTRAINED_SEED = 0
WEIGHTS, NETWORK, COST = "weights.safetensors", "network.json", "cost.json"


def train(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Train a network from scratch on all training data, on the retain set, or on that and a dose of the forget set."""
    spec, dataset = stage.spec, input_dataset(inputs, runtime)
    model = _fit(spec, dataset, training_set(dataset, spec["subset"], spec["validation"]), spec["seed"], runtime)
    _save_model(model, spec["model"], dataset, out)


def initialise(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Write a network that was never trained: the control that knows nothing."""
    spec, dataset = stage.spec, input_dataset(inputs, runtime)
    _save_model(_network(spec["model"], dataset, spec["seed"]), spec["model"], dataset, out)


def import_weights(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Read a checkpoint that someone else made into an artifact; its hash is in the spec.

    A mean and std that the spec gives hold, whatever the checkpoint's layout says.
    """
    dataset, given = input_dataset(inputs, runtime), stage.spec["model"]
    model = _network(given, dataset, seed=0)
    load_weights(stage.files["weights"], model)
    set_normalisation(model, given)
    _check_outputs(model.to(runtime.device), dataset, runtime)
    _save_model(model, stage.spec["model"], dataset, out)


def set_normalisation(model: nn.Module, given: Mapping[str, Any]) -> None:
    """Put a given mean and std in place of those of the checkpoint."""
    for name in ("mean", "std"):
        if given[name]:
            getattr(model, name).copy_(torch.tensor(given[name]).reshape(1, -1, 1, 1))


def shadow(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Train a shadow model on one half of the training data and keep what it says of every sample.

    Shadows 2i and 2i + 1 get complementary halves, so each sample is out of exactly half of all shadows.
    """
    spec, dataset = stage.spec, input_dataset(inputs, runtime)
    own = _half(spec, dataset)
    model = _fit(spec, dataset, own, spec["seed"], runtime)
    np.save(out / "member.npy", torch.isin(dataset.train.ids, own.ids).numpy())
    for name, part in (("train", dataset.train), ("test", dataset.test)):
        logits = predict(model, part, batch_size=runtime.batch_size, device=runtime.device)
        np.save(out / f"{name}_logits.npy", logits.numpy().astype(np.float32))


def train_half(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Train a model as shadow models are, on one half of the training data, and keep it, for methods to be run on."""
    spec, dataset = stage.spec, input_dataset(inputs, runtime)
    own = _half(spec, dataset)
    _save_model(_fit(spec, dataset, own, spec["seed"], runtime), spec["model"], dataset, out)
    np.save(out / "ids.npy", own.ids.numpy())


def unlearn_half(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Run a method on a model of one half, with what is forgotten of that half; keep what it says of the forget set."""
    spec, dataset = stage.spec, input_dataset(inputs, runtime)
    parts = split(dataset, spec["forget"], spec["validation"])
    seen = torch.from_numpy(np.load(inputs["original"].file("ids.npy"), allow_pickle=False))
    member = torch.isin(parts.forget.ids, seen)
    forget, retain = parts.forget.select(member), parts.retain.select(torch.isin(parts.retain.ids, seen))
    context = replace(_context(spec["seed"], spec, dataset, runtime), forget_classes=parts.forget_classes)
    original = load_model(inputs["original"], dataset).to(runtime.device)
    model = _forgotten(spec, original, forget, retain, context)
    logits = predict(model, parts.forget, batch_size=runtime.batch_size, device=runtime.device)
    np.savez(
        out / "forget.npz", ids=parts.forget.ids.numpy(), labels=parts.forget.labels.numpy(), member=member.numpy(),
        logits=logits.numpy().astype(np.float32),
    )  # fmt: skip


def unlearn(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Run an unlearning method on a private copy of the original model."""
    spec, dataset = stage.spec, input_dataset(inputs, runtime)
    parts = split(dataset, spec["forget"], spec["validation"])
    context = replace(_context(spec["seed"], spec, dataset, runtime), forget_classes=parts.forget_classes)
    original = load_model(inputs["original"], dataset).to(runtime.device)
    with counting(original) as images:
        context.checkpointer.images = images
        model = _forgotten(spec, original, parts.forget, parts.retain, context)
    _check_outputs(model, dataset, runtime)
    (out / COST).write_text(json.dumps({"images": context.checkpointer.counted}), encoding="utf-8")
    save_weights(model, out / WEIGHTS)
    (out / NETWORK).write_text(json.dumps(inputs["original"].json(NETWORK)), encoding="utf-8")


def attack(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Search probes for one model, budget and set of images; keep them with their curves."""
    spec, dataset = stage.spec, input_dataset(inputs, runtime)
    samples, target = aim(spec, inputs, dataset, runtime)
    context = AttackContext(seed=spec["seed"], ids=samples.ids, batch_size=runtime.batch_size, **runtime.shared())
    if "warm" in inputs:
        context = replace(context, start=torch.from_numpy(np.load(inputs["warm"].file("probes.npy"))))
    runs = [(ATTACKS.get(run["name"], "classification").load(), run["parameters"]) for run in spec["runs"]]
    found = run_attacks(runs, target, samples.images, Budget.of(spec["levels"]), context)
    save_probes(found, samples, target.labels, out)


def aim(spec: Mapping[str, Any], inputs: Inputs, dataset: ImageDataset, runtime: Runtime) -> tuple[Samples, Target]:
    """Images of a split and the target that the search maps them to.

    ``forget`` and ``forget_test`` images aim at what the original model says of themselves (paper eq. 2). ``other`` is
    the paired control: the ``forget`` images aim at another class, with the original's answer to match. ``retain``
    images are the negative control: each is steered towards what the original says of a random *forget* image. If they
    arrive as often, a recovery is ordinary adversarial vulnerability and no evidence of knowledge about that image.
    """
    original = runtime.cache.get(
        (inputs["original"].key, runtime.device), lambda: load_model(inputs["original"], dataset).to(runtime.device)
    )
    unlearned = load_model(inputs["unlearned"], dataset).to(runtime.device)
    parts = split(dataset, spec["forget"], spec["validation"])
    if spec.get("eligible") and spec["split"] != "retain":
        samples = eligible(parts, spec["split"], spec["samples"], inputs, dataset, runtime)
    else:
        samples = choose(parts, spec["split"], spec["samples"])
    source = samples
    if spec["split"] == "retain":
        pick = torch.randint(0, len(parts.forget), (len(samples),), generator=seeded(0, "steer"))
        source = parts.forget.select(pick)
    device = torch.device(runtime.device)
    target = make_target(original, unlearned, source.images, source.labels, runtime.batch_size, device)
    if spec["split"] == "other":
        target = target.towards(wrong_classes(unlearned, samples, parts, dataset, runtime))
    return samples, target


def wrong_classes(model: nn.Module, samples: Samples, parts: Splits, dataset: ImageDataset, runtime: Runtime) -> Tensor:
    """Kept class for each image, int64 (N,), that is not its own and that the model does not say of it."""
    said = predict(model, samples, batch_size=runtime.batch_size, device=runtime.device).argmax(1)
    kept = [label for label in range(len(dataset.classes)) if label not in parts.forget_classes]
    return other_classes(samples, said, kept)


def choose(parts: Splits, name: str, count: int | None) -> Samples:
    """Images that an attack on this split works on."""
    if name in ("forget", "other"):
        return subset(parts.forget, count, "attack-forget")
    if name == "forget_test":
        return subset(parts.unseen, count, "attack-forget-test")
    return subset(parts.retain, count if count is not None else len(parts.forget), "attack-retain")


def eligible(
    parts: Splits, name: str, count: int | None, inputs: Inputs, dataset: ImageDataset, runtime: Runtime
) -> Samples:
    """Images that the original gets right, at most `count`: only what it knew can come back.

    Where an experiment has several originals, all of them get these images right, and every row has the same.

    Args:
        parts: the splits.
        name: ``forget`` or ``other``, which are the same images, or ``forget_test`` for unseen images of their classes.
        count: most images; all when None.
        inputs: a stage's, with ``original``, and all originals as ``known_...`` where there are several.
        dataset: what they classify.
        runtime: keeps what was found for this process.

    Raises:
        NothingToMeasure: there is no such image.
    """
    pool, stream = parts.forget, "eligible-forget"
    if name == "forget_test":
        pool, stream = parts.unseen, "eligible-unseen"

    def right(original: Artifact) -> Tensor:
        model = load_model(original, dataset).to(runtime.device)
        said = predict(model, pool, batch_size=runtime.batch_size, device=runtime.device).argmax(1)
        return said == pool.labels

    originals = [inputs[role] for role in inputs if role.startswith("known_")] or [inputs["original"]]
    place = pool.ids.numpy().tobytes()
    answers = [runtime.cache.get(("eligible", one.key, place), partial(right, one)) for one in originals]
    known = torch.stack(answers).all(0)
    if not known.any():
        who = "the original is" if len(originals) == 1 else "the originals are together"
        what = f"{who} right on none of the {len(pool)} {name} images"
        raise NothingToMeasure(f"{what}: nothing can be brought back")
    order = torch.randperm(len(pool), generator=seeded(0, stream))
    return pool.select(order[known[order]][:count].sort().values)


def save_probes(probes: Probes, samples: Samples, labels: Tensor, out: Path) -> None:
    """Write the probes with their images' ids, the labels they aim at, per-sample results and curves."""
    np.save(out / "probes.npy", probes.inputs.numpy())
    np.savez(
        out / "samples.npz",
        ids=samples.ids.numpy(),
        labels=labels.cpu().numpy(),
        loss=probes.loss.numpy(),
        step=probes.step.numpy(),
        linf=(probes.inputs.int() - samples.images.int()).abs().amax(dim=(1, 2, 3)).numpy(),
    )
    facts = {
        "success_curve": [round(value, 6) for value in probes.success_curve],
        "loss_curve": [round(value, 6) for value in probes.loss_curve],
        "evaluations": probes.evaluations,
        "converged": probes.converged,
    }
    (out / "attack.json").write_text(json.dumps(facts), encoding="utf-8")


def load_model(artifact: Artifact, dataset: ImageDataset) -> nn.Module:
    """Network of a model artifact, in eval mode, on the CPU."""
    model = _network(artifact.json(NETWORK), dataset, seed=0)
    load_weights(artifact.file(WEIGHTS), model)
    return model.eval()


def untrained(artifact: Artifact, dataset: ImageDataset) -> nn.Module:
    """The network of a model artifact as it is before training, in eval mode, on the CPU."""
    return _network(artifact.json(NETWORK), dataset, seed=UNTRAINED_SEED).eval()


def _check_outputs(model: nn.Module, dataset: ImageDataset, runtime: Runtime) -> None:
    shown = looked_at(dataset.train)
    check_outputs(predict(model, shown, batch_size=runtime.batch_size, device=runtime.device), "logits")


def _half(spec: Mapping[str, Any], dataset: ImageDataset) -> Samples:
    """Training samples of one of two complementary halves, drawn by the spec's ``half_seed``."""
    samples = trainable(dataset, spec["validation"])
    order = torch.randperm(len(samples), generator=seeded(spec["half_seed"], "half"))
    member = torch.zeros(len(samples), dtype=torch.bool)
    member[order[: len(samples) // 2]] = True
    return samples.select((member if spec["half"] == 0 else ~member).nonzero()[:, 0])


def _forgotten(
    spec: Mapping[str, Any], original: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext
) -> nn.Module:
    """What a method makes of a model, in eval mode.

    Raises:
        Diverged: its weights are not finite.
    """
    method = unlearner(spec["method"]["name"], "classification").load()
    # A method may draw from torch's global generator (a plug-in, say): seeding it keeps the stage a pure function.
    with torch.random.fork_rng():
        torch.manual_seed(spec["seed"])
        model: nn.Module = method(original, forget, retain, context, **spec["method"]["parameters"])
    check_weights(model)
    return model.eval()


def _save_model(model: nn.Module, spec: Mapping[str, Any], dataset: ImageDataset, out: Path) -> None:
    def values(name: str) -> list[float]:
        buffer: Callable[[], Tensor] | Tensor = getattr(model, name)
        return [float(value) for value in buffer.flatten()]  # type: ignore[union-attr]

    save_weights(model, out / WEIGHTS)
    facts = {**spec, "mean": values("mean"), "std": values("std"), "classes": list(dataset.classes)}
    (out / NETWORK).write_text(json.dumps(facts), encoding="utf-8")


def _network(spec: Mapping[str, Any], dataset: ImageDataset, seed: int) -> nn.Module:
    channels, size, _ = dataset.train.shape
    return build_network(
        spec["arch"],
        num_classes=len(dataset.classes),
        channels=channels,
        size=size,
        mean=spec["mean"] or dataset.mean,
        std=spec["std"] or dataset.std,
        seed=seed,
        **hyperparameters_in(spec),
    )


def _fit(spec: Mapping[str, Any], dataset: ImageDataset, samples: Samples, seed: int, runtime: Runtime) -> nn.Module:
    training = spec["training"]
    settings = {name: training[name] for name in ("epochs", "lr", "schedule", "momentum", "weight_decay")}
    model = _network(spec["model"], dataset, seed).to(runtime.device)
    return fit(model, samples, _context(seed, training, dataset, runtime), **settings)


def _context(seed: int, settings: Mapping[str, Any], dataset: ImageDataset, runtime: Runtime) -> UnlearnContext:
    return UnlearnContext(
        seed=seed,
        num_classes=len(dataset.classes),
        batch_size=settings["batch_size"],
        augmentation=Augmentation(settings["padding"], dataset.flip),
        precision=settings["precision"],
        **runtime.shared(),
    )
