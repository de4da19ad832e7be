"""The stage functions that make models and probes: choose, train, import, initialise, unlearn, attack."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rub.attacks.base import Probes
from rub.data.samples import ImageDataset, Samples, to_unit
from rub.data.splits import input_dataset, split, subset, training_set
from rub.errors import RubError
from rub.models.mae.checkpoints import load_mae, refuse_normalised, save_mae
from rub.models.mae.masks import Mask, keyed_noise, make_mask
from rub.models.mae.model import ARCHITECTURES, MaskedAutoencoder, build_mae
from rub.pipeline.checkpointing import Changing
from rub.pipeline.graph import Stage
from rub.pipeline.rng import seeded
from rub.pipeline.runtime import Runtime
from rub.registry import ATTACKS, unlearner
from rub.store.artifacts import Artifact
from rub.tasks.inpainting.attacks.base import AttackContext, Budget, Target
from rub.tasks.inpainting.attacks.harness import make_target, run_attack, union
from rub.tasks.inpainting.context import UnlearnContext
from rub.training.batches import Augmentation, cuts
from rub.training.context import set_rate, warmup_cosine
from rub.training.device import compiled
from rub.training.finite import check_outputs, check_weights, looked_at

Inputs = Mapping[str, Artifact]
WEIGHTS = "weights.safetensors"
SIDES = ("forget", "retain")
MOST_MASK_TOKENS = 1024  # noise is stored for this many patches, more than any published model has


@dataclass(frozen=True)
class EvalSet:
    """The images that stand for F or R in every column, with their masks.

    Attributes:
        samples: N images with ids and labels.
        noise: float32 (N, `MOST_MASK_TOKENS`); a model of L patches uses the first L.
        ratio: fraction of masked patches.
    """

    samples: Samples
    noise: Tensor
    ratio: float

    def mask(self, model: MaskedAutoencoder) -> Mask:
        """Masks of the images for a model of at most `MOST_MASK_TOKENS` patches."""
        if model.config.patches > self.noise.shape[1]:
            raise RubError(f"model: {model.config.patches} patches; at most {self.noise.shape[1]} can be masked here")
        return make_mask(self.noise[:, : model.config.patches], self.ratio)


def choose(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Choose the images of F and R, their mask noise, and the unrelated images of the steering control."""
    spec, dataset = stage.spec, input_dataset(inputs, runtime)
    parts = split(dataset, spec["forget"], spec["validation"])
    pools = {"forget": parts.forget, "retain": parts.retain}
    if spec["images"] != "train":
        unseen = parts.test if spec["images"] == "test" else parts.validation
        gone = torch.isin(unseen.labels, torch.tensor(parts.forget_classes))
        pools = {"forget": unseen.select(gone), "retain": unseen.select(~gone)}
    chosen = {name: subset(pool, spec["samples"], f"evaluate-{name}") for name, pool in pools.items()}
    for name, samples in chosen.items():
        if len(samples) < 2:
            hint = "; set dataset.validation" if spec["images"] == "validation" else ""
            raise RubError(f"forget: {len(samples)} {spec['images']} images of {name}: FID needs at least two{hint}")
        np.save(out / f"{name}_ids.npy", samples.ids.numpy())
        np.save(out / f"{name}_noise.npy", keyed_noise(samples.ids, MOST_MASK_TOKENS, spec["mask_seed"]).numpy())
    count = min(spec["steered_samples"], len(chosen["forget"]))
    pick = torch.randint(0, len(chosen["retain"]), (count,), generator=seeded(0, "steer"))
    np.save(out / "steered_pick.npy", pick.numpy())
    facts = {name: spec[name] for name in ("images", "mask_ratio")}
    (out / "chosen.json").write_text(json.dumps(facts), encoding="utf-8")


def eval_set(name: str, inputs: Inputs, runtime: Runtime) -> EvalSet:
    """Images of F (``forget``) or R (``retain``), as the choosing stage wrote them down."""
    dataset, chosen = input_dataset(inputs, runtime), inputs["chosen"]
    facts = chosen.json("chosen.json")
    pool = dataset.test if facts["images"] == "test" else dataset.train
    ids = torch.from_numpy(np.load(chosen.file(f"{name}_ids.npy"), allow_pickle=False))
    noise = torch.from_numpy(np.load(chosen.file(f"{name}_noise.npy"), allow_pickle=False))
    return EvalSet(pool.of_ids(ids), noise, facts["mask_ratio"])


def train(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Train an autoencoder from scratch on all training images, on the retain set, or that and a dose of the rest."""
    spec, dataset = stage.spec, input_dataset(inputs, runtime)
    which = {"kind": spec["subset"], "forget": spec["forget"], **spec.get("dose", {})}
    samples = training_set(dataset, which, spec["validation"])
    training = spec["training"]
    model = _built(spec["model"], dataset, spec["seed"]).to(runtime.device)
    fit(model, samples, _context(spec["seed"], spec["model"]["mask_ratio"], training, dataset, runtime), training)
    save_mae(model, out / WEIGHTS)


def fit(
    model: MaskedAutoencoder, samples: Samples, context: UnlearnContext, training: Mapping[str, Any]
) -> MaskedAutoencoder:
    """Train by the masked loss (He et al. 2022, section 3) and return the model in eval mode, changed in place.

    `training` has epochs, lr, weight_decay and warmup, as in `TrainingSpec`.
    """
    model.train()
    optimizer = context.adamw(model.named_parameters(), training["lr"], training["weight_decay"])
    masks = context.generator("masks")
    total = training["epochs"] * len(cuts(len(samples), context.batch_size))
    batches = context.endless(samples, "batches")
    masked_loss = compiled(model.loss, context.compile)
    changing: Changing = {"model": model, "optimizer": optimizer, "batches": batches, "masks": masks}
    for step in context.counted(total, changing, epochs=training["epochs"]):
        set_rate(optimizer, warmup_cosine(training["lr"], step, total, round(training["warmup"] * total)))
        x, _ = next(batches)
        with context.autocast():
            loss = masked_loss(x, context.masks(len(x), model.config.patches, masks))
        context.descend(loss, optimizer)
    return model.eval()


def import_weights(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Read a checkpoint that someone else made; refuse one that predicts normalised patches."""
    dataset, path = input_dataset(inputs, runtime), stage.files["weights"]
    arch, sizes = stage.spec["arch"], dict(stage.spec["sizes"])
    if arch in ARCHITECTURES:
        sizes |= {"heads": ARCHITECTURES[arch][4], "decoder_heads": ARCHITECTURES[arch][7]}
    model = load_mae(path, **{name: value for name, value in sizes.items() if value is not None})
    images = looked_at(dataset.train)
    wanted = (model.config.channels, model.config.image_size, model.config.image_size)
    if images.shape != wanted:
        raise RubError(f"checkpoint {path}: takes images {wanted}, but the data has {images.shape}; set dataset.size")
    refuse_normalised(model, images.images, path)
    _check_outputs(model, images, runtime)
    save_mae(model, out / WEIGHTS)


def initialise(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Write an autoencoder of the original's sizes that was never trained: the control that knows nothing."""
    config = load_mae(inputs["original"].file(WEIGHTS)).config
    save_mae(MaskedAutoencoder(config, stage.spec["seed"]), out / WEIGHTS)


def unlearn(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Run an unlearning method on a private copy of the original model."""
    spec, dataset = stage.spec, input_dataset(inputs, runtime)
    parts = split(dataset, spec["forget"], spec["validation"])
    context = _context(spec["seed"], spec["mask_ratio"], spec, dataset, runtime)
    method = unlearner(spec["method"]["name"], "inpainting").load()
    original = load_mae(inputs["original"].file(WEIGHTS)).to(runtime.device)
    # A method may draw from torch's global generator (a plug-in, say): seeding it keeps the stage a pure function.
    with torch.random.fork_rng():
        torch.manual_seed(spec["seed"])
        model = method(original, parts.forget, parts.retain, context, **spec["method"]["parameters"])
    check_weights(model)
    _check_outputs(model.eval(), looked_at(dataset.train), runtime)
    save_mae(model, out / WEIGHTS)


@torch.no_grad()
def _check_outputs(model: MaskedAutoencoder, shown: Samples, runtime: Runtime) -> None:
    device = torch.device(runtime.device)
    mask = make_mask(keyed_noise(shown.ids, model.config.patches), 0.5).to(device)
    check_outputs(model.to(device).reconstruct(to_unit(shown.images.to(device)), mask), "reconstructions")


def attack(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Search probes for one model, budget and set of images; keep them with their curves."""
    side, target = target_of(stage.spec["split"], inputs, runtime)
    start = None
    if "warm" in inputs:
        start = torch.from_numpy(np.load(inputs["warm"].file("delta.npy"), allow_pickle=False))
    save_probes(search(stage.spec, side.samples, target, start, runtime), side.samples, out)


def search(spec: Mapping[str, Any], samples: Samples, target: Target, start: Tensor | None, runtime: Runtime) -> Probes:
    """The best probe of each sample, of all ``runs`` of a spec at its ``budget``; `start` as in `AttackContext`."""
    context = AttackContext(
        seed=spec["seed"],
        ids=samples.ids,
        batch_size=runtime.batch_size,
        threshold=spec["recovered_below"],
        start=start,
        **runtime.shared(),
    )
    budget = Budget.parse(spec["budget"])
    found, images = [], samples.images
    for run in spec["runs"]:
        function = ATTACKS.get(run["name"], "inpainting").load()
        found.append(run_attack(function, run["parameters"], target, images, budget, context))
    return union(found)


def target_of(name: str, inputs: Inputs, runtime: Runtime) -> tuple[EvalSet, Target]:
    """Images of a split, and the target that the search maps them to.

    ``forget`` and ``retain`` images aim at what the original model makes of themselves (paper eq. 2). ``steered`` is
    the negative control: forget images aim at what the original makes of an unrelated, retained image under their own
    mask. If they arrive as often, visible patches can steer the decoder anywhere, and a recovery is no evidence of
    knowledge about the forgotten image.
    """
    side, aims = eval_set("retain" if name == "retain" else "forget", inputs, runtime), None
    if name == "steered":
        pick = torch.from_numpy(np.load(inputs["chosen"].file("steered_pick.npy"), allow_pickle=False))
        aims = eval_set("retain", inputs, runtime).samples.select(pick).images
        side = EvalSet(side.samples.select(range(len(pick))), side.noise[: len(pick)], side.ratio)
    original, unlearned = model_of(inputs, "original", runtime), model_of(inputs, "unlearned", runtime)
    device, mask = torch.device(runtime.device), side.mask(original)
    target = make_target(original, unlearned, side.samples.images, mask, runtime.batch_size, device, targets=aims)
    return side, target


def save_probes(probes: Probes, samples: Samples, out: Path) -> None:
    """Write the perturbations with their images' ids, per-sample results and curves."""
    np.save(out / "delta.npy", probes.inputs.numpy())
    np.savez(
        out / "samples.npz",
        ids=samples.ids.numpy(),
        labels=samples.labels.numpy(),
        loss=probes.loss.numpy(),
        start=probes.start.numpy(),
        step=probes.step.numpy(),
        linf=probes.inputs.float().abs().amax(dim=(1, 2, 3)).numpy(),
    )
    facts = {
        "success_curve": [round(value, 6) for value in probes.success_curve],
        "loss_curve": [round(value, 8) for value in probes.loss_curve],
        "evaluations": probes.evaluations,
        "converged": probes.converged,
    }
    (out / "attack.json").write_text(json.dumps(facts), encoding="utf-8")


def model_of(inputs: Inputs, role: str, runtime: Runtime) -> MaskedAutoencoder:
    """A stage's model in eval mode on the device, frozen, loaded once per process."""

    def load() -> MaskedAutoencoder:
        return load_mae(inputs[role].file(WEIGHTS)).to(runtime.device).eval().requires_grad_(False)

    return runtime.cache.get((inputs[role].key, runtime.device), load)


def _built(spec: Mapping[str, Any], dataset: ImageDataset, seed: int) -> MaskedAutoencoder:
    channels, height, width = dataset.train.shape
    if height != width:
        raise RubError(f"data: images of {width} x {height} pixels; the autoencoder takes square ones")
    return build_mae(
        spec["arch"],
        channels=channels,
        mean=dataset.mean,
        std=dataset.std,
        image_size=height,
        patch_size=spec["patch_size"],
        seed=seed,
    )


def _context(
    seed: int, mask_ratio: float, training: Mapping[str, Any], dataset: ImageDataset, runtime: Runtime
) -> UnlearnContext:
    return UnlearnContext(
        seed=seed,
        mask_ratio=mask_ratio,
        batch_size=training["batch_size"],
        augmentation=Augmentation(training["padding"], dataset.flip),
        precision=training["precision"],
        **runtime.shared(),
    )
