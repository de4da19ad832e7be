"""One perturbation for the whole forget set: what it brings back is knowledge of the class, not of an image."""

from collections.abc import Iterator
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from rub.attacks.base import AttackContext, Probes
from rub.attacks.linf import has_converged
from rub.attacks.regions import Region
from rub.attacks.search import StepSize
from rub.config.hyperparameters import Hyper, PositiveInt
from rub.data.samples import to_unit
from rub.registry import Card, attack
from rub.tasks.classification.attacks.base import Budget, Target
from rub.tasks.classification.attacks.divergences import Divergence
from rub.tasks.classification.attacks.scoring import Scorer
from rub.tasks.classification.budgets import SEARCHED

CARD = Card(
    version=2,
    paper="Moosavi-Dezfooli et al., Universal Adversarial Perturbations, CVPR 2017 (arXiv:1610.08401); the projected"
    " sign step is Shafahi et al., AAAI 2020 (arXiv:1811.11304), minimising UMA's objective (arXiv:2504.14798, eq. 2)",
    equation="min_delta sum_x D[f_u(clip(x + delta)), f(x)] s.t. ||delta||_inf <= eps;"
    " delta <- P(delta - step_size * eps * sign(sum_x grad D))",
    differences=(
        "the gradient is summed over all images before each step, so that batches do not matter",
        "delta is the one that recovered most images, ties broken by the lower total D",
        "delta is scored on the 1/255 grid; an image that is better off without it keeps its clean form in the harness",
        "it always starts at zero: probes of a smaller budget are compared by the harness only",
    ),
    other_class=False,
    budgets=SEARCHED,
)


class Pass(NamedTuple):
    """One delta on all images: D and recovered per image (N,), and the summed gradient (1, C, H, W)."""

    loss: Tensor
    recovered: Tensor
    gradient: Tensor


class Universal:
    """The images and their target, seen as one function of delta."""

    def __init__(self, images: Tensor, region: Region, scorer: Scorer, context: AttackContext) -> None:
        """Hold the uint8 images (N, C, H, W), whose rows are those of the scorer's target."""
        self.images, self.region, self.scorer, self.context = images, region, scorer, context

    def __call__(self, delta: Tensor) -> Pass:
        """Score one delta (1, C, H, W) on all images; pixels that the range [0, 1] clips carry no gradient."""
        losses, recovered, gradient = [], [], torch.zeros_like(delta, dtype=torch.float64)
        for rows, clean in self._batches():
            moved = ((clean + self.levels(delta) / 255) * 255).round_().div_(255)
            score = self.scorer.guide(moved.clamp(0, 1), rows, gradient=True)
            assert score.gradient is not None
            free = (moved >= 0) & (moved <= 1)
            gradient += (score.gradient * free).sum(0, keepdim=True, dtype=torch.float64)
            losses.append(score.loss)
            recovered.append(score.recovered)
        return Pass(torch.cat(losses), torch.cat(recovered), gradient.float())

    def levels(self, delta: Tensor) -> Tensor:
        """Delta as it is stored: whole steps of 1/255, inside the region."""
        return self.region.whole(delta * 255)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        device = self.context.device
        for start in range(0, len(self.images), self.context.batch_size):
            clean = to_unit(self.images[start : start + self.context.batch_size].to(device))
            yield torch.arange(start, start + len(clean), device=device), clean


def apply(images: Tensor, levels: Tensor) -> Tensor:
    """clip(images + levels) as uint8, for uint8 images (N, C, H, W) and whole steps of 1/255 (1, C, H, W)."""
    return (images.to(torch.int16) + levels.cpu().to(torch.int16)).clamp_(0, 255).to(torch.uint8)


@attack("universal", task="classification", card=CARD)
def universal(
    target: Target, images: Tensor, budget: Budget, context: AttackContext, *,
    divergence: Annotated[Divergence, Hyper("what is minimised, summed over the images; as for `uma`",
        source="as uma")] = "kl",
    steps: Annotated[PositiveInt, Hyper("passes over all images", source="as uma")] = 100,
    step_size: StepSize = None,
) -> Probes:  # fmt: skip
    """Search one perturbation that recovers as many images as possible at once."""
    scorer = Scorer(target, divergence, context)
    region = budget.region
    score = Universal(images, region, scorer, context)
    delta = torch.zeros_like(images[:1], dtype=torch.float32, device=context.device)
    alpha, best, before = (step_size or 2.5 / steps) * budget.eps, delta, delta
    counts, totals, moves, found = [-1], [float("inf")], [0], 0
    for step in range(steps + 1):
        loss, recovered, gradient = score(delta)
        count, total = int(recovered.sum()), float(loss.double().sum())
        if (count, -total) > (counts[-1], -totals[-1]):
            best, found = delta, step
        else:
            count, total = counts[-1], totals[-1]
        counts.append(count)
        totals.append(total)
        moves.append(moves[-1] + int(not torch.equal(score.levels(delta), score.levels(before))))
        before, delta = delta, region.near(delta - alpha * region.steepest(gradient))
        context.progress(step, steps, f"recovered {count} of {len(loss)}")
    images = apply(images, score.levels(best))
    exact = scorer.exact(images, torch.arange(len(images)))
    steps_found = torch.where(exact.recovered, found, -1).cpu()
    successes, losses = (tuple(value / len(images) for value in curve[1:]) for curve in (counts, totals))
    converged = has_converged(successes, losses, moves[1:])
    return Probes(images, exact.loss.cpu(), steps_found, successes, losses, scorer.evaluations, converged)
