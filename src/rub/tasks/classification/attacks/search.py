"""Images as the objective of `rub.attacks.search`: how they start, are stored and scored."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from rub.attacks.base import AttackContext, Probes
from rub.attacks.linf import project
from rub.attacks.rules import uniform_like
from rub.attacks.search import Rule, Schedule, Score, State, minimise
from rub.config.hyperparameters import Hyper
from rub.data.samples import to_unit
from rub.tasks.classification.attacks.base import Budget, Target
from rub.tasks.classification.attacks.divergences import Divergence
from rub.tasks.classification.attacks.scoring import Scorer

Grid = Annotated[bool, Hyper(
    "score iterates as 8-bit images; False is the textbook search, rounded only at the end",
    source="what is stored is an 8-bit image")]  # fmt: skip


def search(
    rule: Rule, schedule: Schedule, target: Target, images: Tensor, budget: Budget, context: AttackContext, *,
    divergence: Divergence = "kl", finish_below: float = 0.0, grid: bool = True,
) -> Probes:  # fmt: skip
    """Run a rule on every image and keep each one's best probe: recovered first, then the lowest D.

    Args:
        rule: how iterates move.
        schedule: steps and restarts.
        target: what the attack aims at; row i belongs to image i.
        images: uint8 (N, C, H, W), the clean images.
        budget: how far probes may go.
        context: seed, ids, batch size, device, start, and whether to search in bfloat16.
        divergence: the D that is minimised.
        finish_below: a sample is finished once it is recovered and D <= this; inf: being recovered is enough; 0: never.
        grid: score every iterate rounded to the 1/255 grid, with a straight-through gradient.
    """
    objective = Images(Scorer(target, divergence, context), images, budget.eps, context, finish_below, grid)
    return minimise(rule, schedule, objective, images, context)


def on_grid(x: Tensor) -> Tensor:
    """The 8-bit image nearest to x (values k/255), exactly as `to_unit` gives it."""
    return (x * 255).round_().div_(255)


def to_bytes(x: Tensor) -> Tensor:
    """Float images in [0, 1] as uint8, rounded to the nearest level."""
    return (x * 255).round_().to(torch.uint8)


@dataclass(frozen=True)
class Images:
    """Images (B, C, H, W) inside a ball, stored as uint8; see `rub.attacks.search.Objective`."""

    scorer: Scorer
    images: Tensor
    eps: float
    context: AttackContext
    finish_below: float
    grid: bool

    @property
    def is_exact(self) -> bool:
        """Whether the guide is the float32 model and scores 8-bit images."""
        return self.scorer.is_exact and self.grid

    def admit(self, rows: Tensor, restart: int) -> State:
        """Clean images, and a start: themselves, the context's, or a random point of the ball."""
        context, device = self.context, self.context.device
        start = clean = to_unit(self.images[rows].to(device))
        if restart:
            noise = uniform_like(clean, context.seed, "start", context.ids[rows].to(device), restart)
            start = project(clean + self.eps * (2 * noise - 1), clean, self.eps)
        elif context.start is not None:
            start = project(to_unit(context.start[rows].to(device)), clean, self.eps)
        return {"clean": clean, "x": start}

    def stored(self, state: State) -> Tensor:
        """Iterates as uint8."""
        return to_bytes(state["x"])

    def guide(self, state: State, stored: Tensor, *, gradient: bool) -> Score:
        """Scores of the 8-bit images, with straight-through gradients, or of the iterates themselves."""
        x = on_grid(state["x"]) if self.grid else state["x"]
        return self.scorer.guide(x, state["row"], gradient=gradient)

    def exact(self, state: State, which: Tensor, stored: Tensor) -> Score:
        """Float32 scores."""
        return self.scorer.exact(stored, state["row"][which])

    def finished(self, score: Score) -> Tensor:
        """Recovered with D <= `finish_below`, unless that is 0."""
        return score.recovered & (score.loss <= self.finish_below) & (self.finish_below > 0)

    def lower(self, first: Tensor, second: Tensor, /) -> Tensor:
        """The lower of two losses; NaN where one is."""
        return torch.minimum(first, second)
