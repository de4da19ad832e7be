"""Witnesses of recovered images: the perturbed visible patches, and the check that scores them again."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rub.data.samples import Samples
from rub.errors import Diverged, RubError
from rub.models.mae.checkpoints import load_mae
from rub.models.mae.masks import gather, keyed_noise, make_mask, scatter
from rub.models.mae.model import MaskedAutoencoder
from rub.pipeline.graph import Stage
from rub.pipeline.runtime import Runtime
from rub.store.artifacts import Artifact
from rub.tasks.inpainting.attacks.base import FREE, GRIDDED, Budget, apply_delta
from rub.tasks.inpainting.attacks.harness import make_target, score
from rub.tasks.inpainting.stages import WEIGHTS, eval_set, model_of
from rub.witness.claims import Sources, Witness, model_file, write_witness
from rub.witness.images import claimed_images, data_reference, image_sha256, model_reference

CLAIM = "mean squared error, on masked patches in [0, 1] pixels, of f_u(x + delta; m) to f(x; m)"
WEAKEST = 0.02  # mean squared error (17 dB) up to which a protocol may call an image recovered
SLACK = 1.01  # float32 sums differ between machines by far less; a probe at the threshold still holds


def save_witnesses(
    stage: Stage,
    inputs: Mapping[str, Artifact],
    delta: Tensor,
    loss: Tensor,
    recovered: np.ndarray[Any, np.dtype[np.bool_]],
    out: Path,
    runtime: Runtime,
) -> None:
    """Write the recovered forget images of a measuring stage as witnesses, the closest first; nothing where none is."""
    spec, side = stage.spec, eval_set("forget", inputs, runtime)
    model = model_of(inputs, "original", runtime)
    places = torch.from_numpy(np.flatnonzero(recovered))
    places = places[loss[places].argsort(stable=True)][: spec["witnesses"]]
    if not len(places):
        return
    samples, mask = side.samples.select(places), side.mask(model).select(places)
    visible = gather(model.patchify(delta[places].float()), mask.keep)
    small = delta.dtype == GRIDDED and bool(visible.abs().max() <= torch.iinfo(torch.int8).max)
    kept = visible.to(torch.int8 if small else GRIDDED if delta.dtype == GRIDDED else FREE)
    chosen = stage.inputs["chosen"].spec
    witness = {
        "task": "inpainting",
        **{name: spec[name] for name in ("method", "attack", "budget")},
        "unlearn_seed": spec["seed"],
        "split": "forget",
        "claim": CLAIM,
        "at_most": spec["recovered_below"],
        "models": {role: model_reference(inputs[role], WEIGHTS) for role in ("original", "unlearned")},
        "data": data_reference(inputs["data"], "test" if chosen["images"] == "test" else "train"),
        "settings": {"mask_seed": chosen["mask_seed"], "mask_ratio": chosen["mask_ratio"]},
        "samples": [
            {"id": int(identity), "sha256": image_sha256(image), "value": float(loss[place])}
            for identity, image, place in zip(samples.ids, samples.images, places, strict=True)
        ],
    }
    write_witness(witness, {"delta": kept}, out)


def verify(witness: Witness, tensors: Mapping[str, Tensor], sources: Sources) -> tuple[int, list[str]]:
    """How many probes of a claim hold when they are scored again, and one line for each that does not."""
    if not witness.at_most <= WEAKEST:
        raise RubError(f"the claim allows a distance of {witness.at_most:g}; beyond {WEAKEST:g} outputs are not alike")
    original, unlearned = (_model(witness, role, sources) for role in ("original", "unlearned"))
    samples = claimed_images(witness, sources)
    delta, ratio = tensors.get("delta"), witness.settings.get("mask_ratio")
    seed = witness.settings.get("mask_seed")
    if delta is None or not isinstance(ratio, float) or not isinstance(seed, int):
        raise RubError("the claim lacks its delta, mask ratio or mask seed")
    if delta.dtype not in (torch.int8, GRIDDED, FREE) or isinstance(seed, bool):
        raise RubError(
            f"the claim's delta should be int8, {GRIDDED} or {FREE}, its mask seed a number; not {delta.dtype}"
        )
    patches = original.config.patches
    mask = make_mask(keyed_noise(samples.ids, patches, seed), ratio)
    if delta.shape != (len(samples), mask.keep.shape[1], original.config.patch_dim):
        raise RubError(f"delta of shape {tuple(delta.shape)}: not the visible patches of {len(samples)} images")
    blank = torch.zeros(len(samples), patches, original.config.patch_dim, dtype=delta.dtype)
    whole = original.unpatchify(scatter(delta, mask.keep, blank))
    whole = whole if whole.dtype.is_floating_point else whole.to(GRIDDED)
    device, images = torch.device(sources.device), samples.images
    try:
        target = make_target(original, unlearned, images, mask, sources.batch_size, device)
    except Diverged as error:  # weights of others may hold anything
        raise RubError(str(error)) from None
    loss = score(target, images, whole, sources.batch_size, device)
    broken = list(_broken(witness, samples, whole, loss))
    return len(samples) - len(broken), broken


def _model(witness: Witness, role: str, sources: Sources) -> MaskedAutoencoder:
    path = model_file(witness, role, sources)
    return sources.cache.get(("mae", path), lambda: load_mae(path))


def _broken(witness: Witness, samples: Samples, delta: Tensor, loss: Tensor) -> Iterator[str]:
    budget, gridded = Budget.parse(witness.budget), delta.dtype == GRIDDED
    reach = delta.abs().flatten(1).amax(1)
    for row, (identity, value) in enumerate(zip(samples.ids.tolist(), loss.tolist(), strict=True)):
        probe = apply_delta(samples.take([row])[0], delta[row])
        if budget.gridded != gridded or (budget.levels is not None and reach[row] > budget.levels):
            yield f"image {identity}: its probe is outside the budget {budget}"
        elif budget.gridded and not 0 <= float(probe.min()) <= float(probe.max()) <= 1:
            yield f"image {identity}: its probe is no image: pixels outside [0, 1]"
        elif not value <= witness.at_most * SLACK:
            yield f"image {identity}: {value:.6f}, claimed at most {witness.at_most:g}"
