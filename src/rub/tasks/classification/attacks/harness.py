"""The one way to run an attack: it searches, the harness decides what it found, in float32 on 8-bit images."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from rub.attacks.base import AttackContext, Probes, check_request, merged, require_finite
from rub.attacks.linf import better, column, has_converged
from rub.attacks.search import Score
from rub.data.samples import to_unit
from rub.errors import RubError
from rub.models.network import outputs
from rub.models.weights import freeze
from rub.tasks.classification.attacks.base import Attack, Budget, Target
from rub.tasks.classification.attacks.divergences import Divergence
from rub.tasks.classification.attacks.scoring import Scorer

MISSED = 0.005  # share of images known to be recoverable that a search may miss and still be called converged


@torch.no_grad()
def make_target(
    original: nn.Module, unlearned: nn.Module, images: Tensor, labels: Tensor, batch_size: int, device: torch.device
) -> Target:
    """Target of an attack: the frozen unlearned model, and f(x) and features of the clean images.

    Both models are frozen in place and moved to the device.

    Args:
        original: f, called in float32 on [0, 1] images.
        unlearned: f_u.
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        batch_size: images per forward pass; does not change the result beyond rounding.
        device: where the models are to run.
    """
    original, unlearned = freeze(original).to(device), freeze(unlearned).to(device)
    logits, features = [], []
    for start in range(0, len(images), batch_size):
        x = to_unit(images[start : start + batch_size].to(device))
        found = outputs(original, x)
        logits.append(found.logits.float().cpu())
        features.append(found.features.float().cpu())
    return Target(unlearned, labels, torch.cat(logits), torch.cat(features))


def run_attack(
    function: Attack, parameters: Mapping[str, Any], target: Target, images: Tensor, budget: Budget,
    context: AttackContext,
) -> Probes:  # fmt: skip
    """Run an attack and return probes whose every claim is re-evaluated: 8-bit, in budget, scored in float32.

    A sample keeps its clean image, or its probe of a smaller budget (`context.start`), where that is better than what
    the attack found; so recovery never falls below clean accuracy and never falls as eps grows. `step` is 0 where the
    clean image is recognised, -1 exactly where float32 says that the returned probe is not recovered, and the last
    value of the success curve is the re-evaluated fraction. Budget 0 scores the clean images without a search.

    Args:
        function: the attack; called as ``function(target, images, budget, context, **parameters)``. One that returns
            its uint8 probes (N, C, H, W) alone counts as a search of one step.
        parameters: its hyperparameters; ``divergence`` (default ``"kl"``) also decides how probes are re-scored.
        target: the unlearned model, frozen in eval mode, and what it is compared with.
        images: uint8 (N, C, H, W), the clean images.
        budget: how far a probe may go.
        context: seed, ids, batch size, device.

    Raises:
        RubError: the model is in training mode, the lengths disagree, or the attack broke its budget or contract.
        Diverged: the unlearned model does not give finite logits.
    """
    name = getattr(function, "__name__", "attack")
    parts = {"labels": target.labels, "references": target.reference, "ids": context.ids}
    check_request(target.model, images, **parts)
    scorer = Scorer(target, parameters.get("divergence", "kl"), replace(context, fast=False))
    rows = torch.arange(len(images))
    clean = _finite(scorer.exact(images, rows), name)
    budget.check(*images.shape[2:])
    if not budget.size:
        return _unsearched(images, clean)
    candidates = [(images, clean)]
    if context.start is not None:
        _check_probes(context.start, images, context.ids, budget, "the start of the search")
        candidates.append((context.start, _finite(scorer.exact(context.start, rows), name)))
    with _counted(target.model) as passes:
        found = function(target, images, budget, context, **parameters)
    probes = found if isinstance(found, Tensor) else found.inputs
    _check_probes(probes, images, context.ids, budget, f"attack '{name}'")
    score = _finite(scorer.exact(probes, rows), name)
    if isinstance(found, Tensor):
        found = _one_step(found, clean, score, sum(passes))
    best, step, missed = found.inputs, found.step, 0.0
    for other, known in candidates:
        missed = max(missed, float((known.recovered & ~score.recovered).double().mean()))
        win = better(known.recovered, known.loss, score.recovered, score.loss).cpu()
        best = torch.where(column(win, best), other, best)
        step = torch.where(win, 0, step)  # known before the first step
        score = Score(torch.where(win, known.loss, score.loss), torch.where(win, known.recovered, score.recovered))
    step = torch.where(clean.recovered.cpu(), 0, step)  # recognised without a search, whatever the search says of it
    converged = found.converged and missed <= MISSED
    found = replace(found, inputs=best, loss=score.loss, step=step, start=clean.loss, converged=converged)
    return _claims(found, score.recovered)


def run_attacks(
    runs: Sequence[tuple[Attack, Mapping[str, Any]]], target: Target, images: Tensor, budget: Budget,
    context: AttackContext,
) -> Probes:  # fmt: skip
    """Run several attacks and return the best probe of each image, with D of the first divergence, KL, for all.

    A run for which being recovered is enough (``finish_below: inf``) searches only images that no run before it has
    recovered.

    Args:
        runs: attacks with their hyperparameters, in order; at least one.
        target: as in `run_attack`.
        images: likewise.
        budget: likewise.
        context: likewise.
    """
    if len(runs) == 1:
        return run_attack(*runs[0], target, images, budget, context)
    found: list[Probes] = []
    recovered = torch.zeros(len(images), dtype=torch.bool)
    for function, parameters in runs:
        enough = parameters.get("finish_below") == inf
        rows = torch.nonzero(~recovered if enough else torch.ones_like(recovered)).squeeze(1)
        if not len(rows):
            continue
        aim, place = target.select(rows), context.select(rows)
        run = run_attack(function, parameters, aim, images[rows], budget, place)
        found.append(_spread(rescored(run, aim, place), rows, images))
        recovered |= found[-1].step >= 0
    return union(found)


def union(found: Sequence[Probes]) -> Probes:
    """Attacks on the same images as one; see `rub.attacks.base.merged`.

    Losses of different divergences do not compare: give all runs one scale first, with `rescored`.

    Args:
        found: results of at least one run, each with N samples.
    """
    return reduce(merged, found)


def rescored(found: Probes, target: Target, context: AttackContext, divergence: Divergence = "kl") -> Probes:
    """The same probes with D of one divergence, in float32, so that runs with different ones compare."""
    scorer = Scorer(target, divergence, replace(context, fast=False))
    score = scorer.exact(found.inputs, torch.arange(len(found.inputs)))
    return replace(found, loss=score.loss.cpu())


def _claims(found: Probes, recovered: Tensor) -> Probes:
    last = len(found.success_curve) - 1
    step = torch.where(recovered, torch.where(found.step < 0, last, found.step), -1)
    final = float(recovered.double().mean())
    curve = (*(min(value, final) for value in found.success_curve[:-1]), final)
    return replace(found, step=step, success_curve=curve)


def _spread(found: Probes, rows: Tensor, images: Tensor) -> Probes:
    # as probes of all images: those that were not searched are clean, and lose against any other
    if len(rows) == len(images):
        return found
    step, loss, inputs = torch.full((len(images),), -1), torch.full((len(images),), inf), images.clone()
    step[rows], loss[rows], inputs[rows] = found.step, found.loss, found.inputs
    return replace(found, inputs=inputs, loss=loss, step=step)


def _unsearched(images: Tensor, clean: Score) -> Probes:
    step = torch.where(clean.recovered, 0, -1)
    success, loss = float(clean.recovered.double().mean()), float(clean.loss.double().mean())
    return Probes(images, clean.loss, step, (success,), (loss,), len(images), True, clean.loss)


def _one_step(images: Tensor, clean: Score, score: Score, evaluations: int) -> Probes:
    step = torch.where(clean.recovered, 0, torch.where(score.recovered, 1, -1))
    successes = [float(hits.double().mean()) for hits in (clean.recovered, step >= 0)]
    losses = [float(loss.double().mean()) for loss in (clean.loss, torch.minimum(clean.loss, score.loss))]
    converged = has_converged(successes, losses, range(2))
    return Probes(images, score.loss, step, tuple(successes), tuple(losses), evaluations, converged)


@contextmanager
def _counted(model: nn.Module) -> Iterator[list[int]]:
    counts: list[int] = []
    handle = model.register_forward_pre_hook(lambda module, inputs: counts.append(len(inputs[0])))
    try:
        yield counts
    finally:
        handle.remove()


def _finite(score: Score, name: str) -> Score:
    return Score(require_finite(score.loss, name), score.recovered.cpu())


def _check_probes(probes: Tensor, images: Tensor, ids: Tensor, budget: Budget, source: str) -> None:
    if probes.dtype != torch.uint8 or probes.shape != images.shape:
        wanted = f"torch.uint8 {tuple(images.shape)}"
        raise RubError(f"{source}: wanted probes {wanted}, got {probes.dtype} {tuple(probes.shape)}")
    outside = (~budget.holds(probes.cpu(), images.cpu(), ids)).nonzero()
    if len(outside):
        row = int(outside[0])
        far = int((probes[row].to(torch.int16) - images[row].to(torch.int16)).abs().max())
        where = f"lies {far}/255 from its image" if budget.kind == "linf" else "is not within"
        raise RubError(f"{source}: a probe {where}; the budget is {budget.name}")
