"""One perturbation for the whole forget set: what it brings back is knowledge of the class, not of an image."""

from collections.abc import Iterator
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from rub.attacks.linf import accumulate, has_converged
from rub.data.samples import to_unit
from rub.registry import Card, attack
from rub.tasks.classification.attacks.base import AttackContext, Budget, Probes, Target
from rub.tasks.classification.attacks.divergences import Divergence
from rub.tasks.classification.attacks.scoring import Scorer
from rub.tasks.classification.attacks.search import on_grid

CARD = Card(
    paper="Moosavi-Dezfooli et al., Universal Adversarial Perturbations, CVPR 2017 (arXiv:1610.08401); the projected"
    " sign step is Shafahi et al., AAAI 2020 (arXiv:1811.11304), minimising UMA's objective (arXiv:2504.14798, eq. 2)",
    equation="min_delta sum_x D[f_u(clip(x + delta)), f(x)] s.t. ||delta||_inf <= eps;"
    " delta <- P(delta - step_size * eps * sign(sum_x grad D))",
    defaults={"steps": "100 passes over the forget set", "step_size": "2.5 eps / steps, as for uma", "momentum": "0"},
    differences=(
        "the gradient is summed over all images before each step, so that batches do not matter",
        "delta is the one that recovered most images, ties broken by the lower total D",
        "delta is scored on the 1/255 grid; an image that is better off without it keeps its clean form in the harness",
        "it always starts at zero: probes of a smaller budget are compared by the harness only",
    ),
)


class Pass(NamedTuple):
    """One delta on all images: D and recovered per image (N,), and the summed gradient (1, C, H, W)."""

    loss: Tensor
    recovered: Tensor
    gradient: Tensor


class Universal:
    """The images and their target, seen as one function of delta."""

    def __init__(self, images: Tensor, scorer: Scorer, context: AttackContext) -> None:
        """Hold the uint8 images (N, C, H, W), whose rows are those of the scorer's target."""
        self.images, self.scorer, self.context = images, scorer, context

    def __call__(self, delta: Tensor) -> Pass:
        """Score one delta (1, C, H, W) on all images; pixels that the range [0, 1] clips carry no gradient."""
        losses, recovered, gradient = [], [], torch.zeros_like(delta, dtype=torch.float64)
        for rows, clean in self._batches():
            moved = on_grid(clean + on_grid(delta))
            score = self.scorer.guide(moved.clamp(0, 1), rows, gradient=True)
            assert score.gradient is not None
            free = (moved >= 0) & (moved <= 1)
            gradient += (score.gradient * free).sum(0, keepdim=True, dtype=torch.float64)
            losses.append(score.loss)
            recovered.append(score.recovered)
        return Pass(torch.cat(losses), torch.cat(recovered), gradient.float())

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        device = self.context.device
        for start in range(0, len(self.images), self.context.batch_size):
            clean = to_unit(self.images[start : start + self.context.batch_size].to(device))
            yield torch.arange(start, start + len(clean), device=device), clean


def apply(images: Tensor, delta: Tensor) -> Tensor:
    """Return clip(images + delta) as uint8, for uint8 images (N, C, H, W) and delta (1, C, H, W) in [-1, 1]."""
    levels = (delta.cpu() * 255).round().to(torch.int16)
    return (images.to(torch.int16) + levels).clamp_(0, 255).to(torch.uint8)


@attack("universal", task="classification", card=CARD)
def universal(
    target: Target,
    probe_from: Tensor,
    budget: Budget,
    context: AttackContext,
    *,
    divergence: Divergence = "kl",
    steps: Annotated[int, Field(ge=1)] = 100,
    step_size: Annotated[float, Field(gt=0)] | None = None,
    momentum: Annotated[float, Field(ge=0)] = 0.0,
) -> Probes:
    """Search one perturbation that recovers as many images as possible at once.

    Args:
        target: the unlearned model, and the original's answers on the clean images.
        probe_from: uint8 (N, C, H, W), the clean images.
        budget: radius of the ball.
        context: seed, ids, batch size, device.
        divergence: what is minimised, summed over the images; as for ``uma``.
        steps: passes over all images.
        step_size: in units of eps; None means 2.5 / steps.
        momentum: weight of the running average of normalised gradients; 0 uses the plain gradient.
    """
    scorer = Scorer(target, divergence, context)
    score = Universal(probe_from, scorer, context)
    delta = torch.zeros_like(probe_from[:1], dtype=torch.float32, device=context.device)
    alpha, velocity, best = (step_size or 2.5 / steps) * budget.eps, torch.zeros_like(delta), delta
    counts, totals, found = [-1], [float("inf")], 0
    for step in range(steps + 1):
        loss, recovered, gradient = score(delta)
        count, total = int(recovered.sum()), float(loss.double().sum())
        if (count, -total) > (counts[-1], -totals[-1]):
            best, found = delta, step
        else:
            count, total = counts[-1], totals[-1]
        counts.append(count)
        totals.append(total)
        velocity = accumulate(velocity, gradient, momentum) if momentum else gradient
        delta = (delta - alpha * velocity.sign()).clamp(-budget.eps, budget.eps)
        context.progress(step, steps, f"recovered {count} of {len(loss)}")
    images = apply(probe_from, best)
    exact = scorer.exact(images, torch.arange(len(images)))
    steps_found = torch.where(exact.recovered, found, -1).cpu()
    successes, losses = (tuple(value / len(images) for value in curve[1:]) for curve in (counts, totals))
    converged = has_converged(successes, losses)
    return Probes(images, exact.loss.cpu(), steps_found, successes, losses, scorer.evaluations, converged)
