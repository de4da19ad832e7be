"""Images as the objective of `rub.attacks.search`: how they start, are stored and scored."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from rub.attacks.base import AttackContext, Probes
from rub.attacks.regions import Region
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
    objective = Images(Scorer(target, divergence, context), images, budget.region, context, finish_below, grid)
    return minimise(rule, schedule, objective, images, context)


@dataclass(frozen=True)
class Images:
    """Images (B, C, H, W) inside a region, stored as uint8; see `rub.attacks.search.Objective`."""

    scorer: Scorer
    images: Tensor
    region: Region
    context: AttackContext
    finish_below: float
    grid: bool

    @property
    def is_exact(self) -> bool:
        """Whether the guide is the float32 model and scores 8-bit images."""
        return self.scorer.is_exact and self.grid

    def admit(self, rows: Tensor, restart: int) -> State:
        """Clean images, and a start: themselves, the context's, or a random point of the region."""
        context, device = self.context, self.context.device
        start = clean = to_unit(self.images[rows].to(device))
        if restart:
            noise = uniform_like(clean, context.seed, "start", context.ids[rows].to(device), restart)
            start = self.region.confine(clean + self.region.draw(noise), clean)
        elif context.start is not None:
            start = self.region.confine(to_unit(context.start[rows].to(device)), clean)
        return {"clean": clean, "x": start}

    def stored(self, state: State) -> Tensor:
        """Iterates as uint8, rounded so that they stay inside the region."""
        return self.region.stored(state["x"], state["clean"])

    def guide(self, state: State, stored: Tensor, *, gradient: bool) -> Score:
        """Scores of the 8-bit images, with straight-through gradients, or of the iterates themselves."""
        x = to_unit(stored) if self.grid else state["x"]
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
