"""Witnesses of recovered images: the perturbed visible patches, and the check that scores them again."""

from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from rub.errors import Diverged, RubError
from rub.images.data import load_bundle
from rub.images.folders import Selection
from rub.images.samples import Samples
from rub.images.sources import load_images
from rub.images.specs import DatasetSpec
from rub.inpainting.attacks.harness import make_target, score
from rub.inpainting.checkpoints import load_mae
from rub.inpainting.masks import gather, keyed_noise, make_mask, scatter
from rub.inpainting.probing import FREE, GRIDDED, Budget, apply_delta
from rub.inpainting.stages import WEIGHTS, model_of, side_of
from rub.pipeline.plan import Stage
from rub.pipeline.stages import Runtime
from rub.registry import first_error
from rub.store.artifacts import Artifact
from rub.store.witnesses import Sources, Witness, model_file, write_witness

CLAIM = "mean squared error, on masked patches in [0, 1] pixels, of f_u(x + delta; m) to f(x; m)"
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
    """Write the recovered forget images of a measuring stage as witnesses, the closest first; nothing where none is.

    Args:
        stage: names the row and how many to keep.
        inputs: data, chosen, original, unlearned.
        delta: perturbations (N, C, H, W).
        loss: float32 (N,), the re-evaluated distances.
        recovered: bool (N,).
        out: the artifact's folder.
        runtime: device and memo.
    """
    spec, side = stage.spec, side_of("forget", inputs, runtime)
    model = model_of(inputs, "original", runtime)
    places = torch.from_numpy(np.flatnonzero(recovered))
    places = places[loss[places].argsort(stable=True)][: spec["witnesses"]]
    if not len(places):
        return
    samples, mask = side.samples.select(places), side.mask(model).select(places)
    visible = gather(model.patchify(delta[places].float()), mask.keep)
    small = delta.dtype == GRIDDED and bool(visible.abs().max() <= torch.iinfo(torch.int8).max)
    kept = visible.to(torch.int8 if small else GRIDDED if delta.dtype == GRIDDED else FREE)
    chosen, dataset = stage.inputs["chosen"].spec, inputs["data"].manifest["spec"]
    witness = {
        "task": "inpainting",
        **{name: spec[name] for name in ("method", "attack", "budget")},
        "unlearn_seed": spec["seed"],
        "split": "forget",
        "claim": CLAIM,
        "at_most": spec["recovered_below"],
        "models": {role: _reference(inputs[role]) for role in ("original", "unlearned")},
        "data": {"key": inputs["data"].key, "images": chosen["images"], "spec": _dataset(dataset)},
        "settings": {"mask_seed": chosen["mask_seed"], "mask_ratio": chosen["mask_ratio"]},
        "samples": [
            {"id": int(identity), "sha256": _hash(image), "value": float(loss[place])}
            for identity, image, place in zip(samples.ids, samples.images, places, strict=True)
        ],
    }
    write_witness(witness, {"delta": kept}, out)


def verify(witness: Witness, tensors: Mapping[str, Tensor], sources: Sources) -> tuple[int, list[str]]:
    """Score the probes of a claim again, with forward passes only.

    Returns:
        How many claims hold, and one line for each that does not.

    Raises:
        RubError: the models or the data are not there, or the claim is not one of this task.
    """
    original, unlearned = (load_mae(model_file(witness, role, sources)) for role in ("original", "unlearned"))
    samples = _samples(witness, sources)
    delta, ratio = tensors.get("delta"), witness.settings.get("mask_ratio")
    seed = witness.settings.get("mask_seed")
    if delta is None or not isinstance(ratio, float) or not isinstance(seed, int):
        raise RubError("the claim lacks its delta, mask ratio or mask seed")
    patches = original.config.patches
    mask = make_mask(keyed_noise(samples.ids, patches, seed), ratio)
    if delta.shape != (len(samples), mask.keep.shape[1], original.config.patch_dim):
        raise RubError(f"delta of shape {tuple(delta.shape)}: not the visible patches of {len(samples)} images")
    blank = torch.zeros(len(samples), patches, original.config.patch_dim, dtype=delta.dtype)
    whole = original.unpatchify(scatter(delta, mask.keep, blank))
    whole = whole if whole.dtype.is_floating_point else whole.to(GRIDDED)
    device = torch.device(sources.device)
    try:
        target = make_target(original, unlearned, samples.images, mask, sources.batch_size, device)
    except Diverged as error:  # weights of others may hold anything
        raise RubError(str(error)) from None
    loss = score(target, samples.images, whole, sources.batch_size, device)
    broken = list(_broken(witness, samples, whole, loss))
    return len(samples) - len(broken), broken


def _broken(witness: Witness, samples: Samples, delta: Tensor, loss: Tensor) -> Iterator[str]:
    """Yield a line for each probe that leaves its budget or does not recover its image."""
    budget, gridded = Budget.parse(witness.budget), delta.dtype == GRIDDED
    reach = delta.abs().flatten(1).amax(1)
    for row, (identity, value) in enumerate(zip(samples.ids.tolist(), loss.tolist(), strict=True)):
        probe = apply_delta(samples.images[row], delta[row])
        if budget.gridded != gridded or (budget.levels is not None and reach[row] > budget.levels):
            yield f"image {identity}: its probe is outside the budget {budget}"
        elif budget.gridded and not 0 <= float(probe.min()) <= float(probe.max()) <= 1:
            yield f"image {identity}: its probe is no image: pixels outside [0, 1]"
        elif not value <= witness.at_most * SLACK:
            yield f"image {identity}: {value:.6f}, claimed at most {witness.at_most:g}"


def _samples(witness: Witness, sources: Sources) -> Samples:
    """Return the claim's images, out of the store's data or the data root, after comparing their SHA-256."""
    key, images = str(witness.data.get("key", "")), witness.data.get("images")
    artifact = sources.store.find("data", key) if sources.store is not None else None
    if artifact is not None:
        bundle = load_bundle(artifact)
        pool = bundle.test if images == "test" else bundle.train
    else:
        try:
            spec = DatasetSpec.model_validate(witness.data.get("spec", {}))
        except ValidationError as error:
            raise RubError(first_error(error, "the claim's data set", DatasetSpec.model_fields)) from None
        selection = Selection.of(spec.model_dump(exclude_defaults=True))
        loaded = load_images(spec.name, sources.data_root, size=spec.size, selection=selection)
        pool = loaded.test if images == "test" else loaded.train
    place = {int(identity): row for row, identity in enumerate(pool.ids)}
    missing = [sample.id for sample in witness.samples if sample.id not in place]
    if missing:
        raise RubError(f"the data has no {images} image {missing[0]}: another data set, or another version of it")
    samples = pool.select([place[sample.id] for sample in witness.samples])
    for image, sample in zip(samples.images, witness.samples, strict=True):
        if _hash(image) != sample.sha256:
            raise RubError(f"image {sample.id} is not the one of the claim (another SHA-256): another data set?")
    return samples


def _hash(image: Tensor) -> str:
    return sha256(image.contiguous().numpy().tobytes()).hexdigest()


def _reference(artifact: Artifact) -> dict[str, Any]:
    given = artifact.manifest["spec"].get("sha256", {}) if artifact.manifest["kind"] == "import" else {}
    return {
        "kind": artifact.manifest["kind"],
        "key": artifact.key,
        "file": WEIGHTS,
        "sha256": artifact.sha256(WEIGHTS),
        "sources": sorted(given.values()),
    }


def _dataset(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data stage's spec as a `DatasetSpec`; a path of this machine is nobody else's."""
    return {name: value for name, value in spec.items() if name != "fingerprint"}
