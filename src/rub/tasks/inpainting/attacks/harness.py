"""The one way to run an attack: it searches, the harness decides what it found, in float32 on the stored deltas."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from rub.attacks.base import Attack, Probes, check_request, merged, require_finite
from rub.attacks.linf import column
from rub.data.samples import to_unit
from rub.errors import Diverged, RubError
from rub.models.mae.masks import Mask, gather
from rub.models.mae.model import MaskedAutoencoder
from rub.models.weights import freeze
from rub.tasks.inpainting.attacks.base import FREE, GRIDDED, AttackContext, Budget, Target, apply_delta, divergence

CHUNK = 256


@torch.no_grad()
def make_target(
    original: MaskedAutoencoder, unlearned: MaskedAutoencoder, images: Tensor, mask: Mask, batch_size: int,
    device: torch.device, targets: Tensor | None = None,
) -> Target:  # fmt: skip
    """Target of an attack: the frozen unlearned model, the masks, and f(x; m) on masked patches.

    Both models are frozen in place and moved to the device.

    Args:
        original: f.
        unlearned: f_u; cuts images into the same patches.
        images: uint8 (N, C, H, W).
        mask: m, N rows.
        batch_size: images per forward pass; does not change the result beyond rounding.
        device: where the models are to run.
        targets: uint8 (N, C, H, W), images whose reconstructions under the same masks are aimed at; None: `images`.

    Raises:
        RubError: lengths or shapes disagree.
        Diverged: the original's reconstructions are not finite.
    """
    aims = images if targets is None else targets
    if aims.shape != images.shape or len(mask.keep) != len(images):
        raise RubError(
            f"attack target: {len(images)} images {tuple(images.shape[1:])}, {len(mask.keep)} masks and targets"
            f" {tuple(aims.shape)}; should have the same number and shape"
        )
    layouts = [(c.image_size, c.patch_size, c.channels) for c in (original.config, unlearned.config)]
    if layouts[0] != layouts[1]:
        raise RubError(f"attack target: image, patch size and channels are {layouts[0]} and {layouts[1]}; should agree")
    original, unlearned = freeze(original).to(device), freeze(unlearned).to(device)
    parts = []
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        parts.append(original.reconstruct(to_unit(aims[part].to(device)), mask.select(part).to(device)).float().cpu())
    c = original.config
    reference = torch.cat(parts) if parts else torch.empty(0, mask.hidden.shape[1], c.patch_dim)
    if not reference.isfinite().all():
        raise Diverged("attack target: the original's reconstructions are not finite")
    return Target(unlearned, mask.to("cpu"), reference)


@torch.no_grad()
def score(target: Target, images: Tensor, delta: Tensor | None, batch_size: int, device: torch.device) -> Tensor:
    """D (N,), float32 on the CPU: whole images through f_u, masked patches against the reference.

    Args:
        target: what is aimed at.
        images: uint8 (N, C, H, W), the clean images.
        delta: as in `Probes`; None: the clean images.
        batch_size: images per forward pass.
        device: where the model lives.
    """
    losses = [torch.empty(0)]
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        x = to_unit(images[part]) if delta is None else apply_delta(images[part], delta[part])
        predicted = target.model.reconstruct(x.to(device), target.mask.select(part).to(device))
        losses.append(divergence(predicted, target.reference[part].to(device)).cpu())
    return torch.cat(losses)


def run_attack(
    function: Attack, parameters: Mapping[str, Any], target: Target, images: Tensor, budget: Budget,
    context: AttackContext,
) -> Probes:  # fmt: skip
    """Run an attack and return probes whose every claim is re-evaluated: within the budget, scored in float32.

    A sample keeps its clean image, or its probe of a smaller budget (`context.start`), where that is better than what
    the attack found; so D never rises, and recovery never falls as eps grows. `step` is 0 exactly where the clean image
    is recovered and -1 exactly where float32 says that the returned probe is not (1 where the start recovers already);
    the success curve follows from the steps, and the loss curve ends at the re-evaluated mean. The budget ``"none"``
    scores the clean images only.

    Args:
        function: the attack; called as ``function(target, images, budget, context, **parameters)``.
        parameters: its hyperparameters.
        target: the unlearned model, frozen in eval mode, the masks, and what its output is compared with.
        images: uint8 (N, C, H, W), the clean images.
        budget: how far a probe may go.
        context: seed, ids, threshold, batch size, device.

    Raises:
        RubError: the model is in training mode, the lengths disagree, or the attack broke its budget or contract.
        Diverged: the unlearned model does not give finite outputs.
    """
    name = getattr(function, "__name__", "of no name")
    parts = {"masks": target.mask.keep, "references": target.reference, "ids": context.ids}
    check_request(target.model, images, **parts)
    clean = _scored(target, images, None, context, name)
    blank = torch.zeros(images.shape, dtype=GRIDDED if budget.gridded else FREE)
    candidates = [(blank, clean)]
    if budget.levels == 0:
        step = torch.where(clean <= context.threshold, 0, -1)
        return _claims(Probes(blank, clean, step, (0.0,), (0.0,), len(images), True, clean), context.threshold)
    if context.start is not None:
        start = context.start
        if start.dtype == GRIDDED and not budget.gridded:
            start = (start.float() / 255).to(FREE)
            context = replace(context, start=start)
        _check_delta(start, images, target, budget, "the start of the search")
        candidates.append((start, _scored(target, images, start, context, name)))
    found = function(target, images, budget, context, **parameters)
    _check_found(found, images, target, budget, f"attack '{name}'")
    delta, loss, step = found.inputs, _scored(target, images, found.inputs, context, name), found.step
    for other, known in candidates:
        win = known < loss
        delta = torch.where(column(win, delta), other, delta)
        loss, step = torch.where(win, known, loss), torch.where(win, 1, step)
    step = torch.where(clean <= context.threshold, 0, step)
    return _claims(replace(found, inputs=delta, loss=loss, start=clean, step=step), context.threshold)


def union(found: Sequence[Probes]) -> Probes:
    """Attacks on the same images as one; see `rub.attacks.base.merged`.

    Args:
        found: results of `run_attack` at one budget and threshold, each with N samples; at least one.
    """

    def both(first: Probes, second: Probes) -> Probes:
        one = merged(first, second)
        return replace(one, loss_curve=_ending(one.loss_curve, one.loss))

    return reduce(both, found)


def _claims(found: Probes, threshold: float) -> Probes:
    length = len(found.loss_curve)
    reached = torch.where(found.step < 0, length - 1, found.step.clamp_max(length - 1))
    first = found.start <= threshold
    step = torch.where(found.loss <= threshold, torch.where(first, 0, reached.clamp_min(min(1, length - 1))), -1)
    highest = float(found.start.double().mean())
    curve = _ending(tuple(min(value, highest) for value in found.loss_curve), found.loss)
    return replace(found, step=step, success_curve=_successes(step, length), loss_curve=curve)


def _successes(step: Tensor, length: int) -> tuple[float, ...]:
    hits = torch.bincount(step[step >= 0], minlength=length).cumsum(0)
    return tuple((hits.double() / len(step)).tolist())


def _ending(curve: tuple[float, ...], loss: Tensor) -> tuple[float, ...]:
    final = float(loss.double().mean())
    return (*(max(value, final) for value in curve[:-1]), final)


def _scored(target: Target, images: Tensor, delta: Tensor | None, context: AttackContext, name: str) -> Tensor:
    return require_finite(score(target, images, delta, context.batch_size, context.device), name)


def _check_found(found: Probes, images: Tensor, target: Target, budget: Budget, source: str) -> None:
    _check_delta(found.inputs, images, target, budget, source)
    if found.step.shape != (len(images),) or found.step.dtype != torch.int64:
        raise RubError(f"{source}: wanted steps torch.int64 ({len(images)},), got {found.step.dtype}"
                       f" {tuple(found.step.shape)}")  # fmt: skip
    if not found.loss_curve or not all(math.isfinite(value) for value in found.loss_curve):
        raise RubError(f"{source}: wanted a finite loss before the first step and after each, got {found.loss_curve}")


def _check_delta(delta: Tensor, images: Tensor, target: Target, budget: Budget, source: str) -> None:
    kind = GRIDDED if budget.gridded else FREE
    if delta.dtype != kind or delta.shape != images.shape:
        raise RubError(
            f"{source}: wanted a delta {kind} {tuple(images.shape)} on the CPU for the budget {budget}, got"
            f" {delta.dtype} {tuple(delta.shape)}"
        )
    for start in range(0, len(images), CHUNK):  # copies of all would take much memory
        part = slice(start, start + CHUNK)
        _check_part(delta[part], images[part], target, target.mask.hidden[part], budget, source)


def _check_part(delta: Tensor, images: Tensor, target: Target, hidden: Tensor, budget: Budget, source: str) -> None:
    if gather(target.model.patchify(delta), hidden).any():
        raise RubError(
            f"{source}: a probe changes masked patches, which never reach the model; delta should be 0 there"
        )
    if not budget.gridded:
        if not delta.isfinite().all():
            raise RubError(f"{source}: a probe is not finite")
        return
    far = int(delta.to(torch.int32).abs().max())
    if budget.levels is not None and far > budget.levels:
        raise RubError(f"{source}: a probe lies {far}/255 from its image; the budget is {budget}")
    probes = images.to(torch.int32) + delta
    if int(probes.min()) < 0 or int(probes.max()) > 255:
        raise RubError(f"{source}: a probe has pixels outside 0 to 255")
