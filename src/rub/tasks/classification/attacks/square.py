"""Square attack: random search that sees scores only, so that hidden gradients hide nothing from it."""

from typing import Annotated

import torch
from torch import Tensor

from rub.attacks.base import AttackContext, Probes
from rub.attacks.linf import column, project
from rub.attacks.search import FinishBelow, Schedule, State
from rub.config.hyperparameters import Hyper, PositiveInt
from rub.pipeline.rng import keyed_uniform
from rub.registry import Card, attack
from rub.tasks.classification.attacks.base import Budget, Target
from rub.tasks.classification.attacks.divergences import Divergence
from rub.tasks.classification.attacks.search import search

SCHEDULE = (10, 50, 200, 1000, 2000, 4000, 6000, 8000)  # of 10 000 queries: where the area of the squares is halved

CARD = Card(
    paper="Andriushchenko, Croce, Flammarion, Hein: Square Attack, ECCV 2020 (arXiv:1912.00049), algorithms 1 and 2",
    equation="x' = P(x + d), d = +-2 eps (one sign per channel) on a random square of side round(sqrt(p H W)),"
    " 0 elsewhere; x <- x' where D(x') < D(x)",
    differences=(
        "minimises D towards the original's answer instead of the margin of a wrong class",
        "starts at the probe of a smaller budget instead of stripes where the context has one",
    ),
)


class Squares:
    """Random search: keep the last square where it helped, then try another."""

    gradient = False

    def __init__(self, *, eps: float, seed: int, fraction: float, steps: int, warm: bool) -> None:
        """Set the radius in pixel units, the seed, the first area fraction, and whether the start is worth keeping."""
        self.eps, self.seed, self.fraction, self.warm = eps, seed, fraction, warm
        self.halvings = torch.tensor(SCHEDULE) * steps / 10_000

    def begin(self, state: State) -> None:
        """Nothing is accepted yet."""
        state["accepted"] = state["x"]
        state["accepted_loss"] = torch.full_like(state["row"], torch.inf, dtype=torch.float32)

    def move(self, state: State, loss: Tensor, gradient: Tensor | None) -> None:
        """Accept the present proposal where it lowered D, and make the next one."""
        # The stripes are where the search begins, so they are accepted whatever the clean image scored.
        begins = (state["t"] == 1) & (not self.warm)
        accept = (loss < state["accepted_loss"]) | begins
        state["accepted"] = torch.where(column(accept, state["x"]), state["x"], state["accepted"])
        state["accepted_loss"] = torch.where(accept, loss, state["accepted_loss"])
        stripes = (state["t"] == 0) & (not self.warm)
        clean, count = state["clean"], state["clean"].shape[1]
        u = keyed_uniform(self.seed, "square", state["id"], state["t"], 2 + count)
        corner = clean + self.eps * _signs(u[:, 2:])[:, :, None, None]
        x = torch.where(self._square(state["t"], u, clean), corner, state["accepted"])
        if stripes.any():
            x = torch.where(column(stripes, x), self._stripes(state), x)
        state["x"] = project(x, clean, self.eps)

    def _square(self, t: Tensor, u: Tensor, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        halved = (t[:, None] > self.halvings.to(t.device)).sum(1)
        side = (self.fraction * 0.5**halved * height * width).sqrt().round().clamp(1, min(height, width))
        top, left = (u[:, 0] * (height - side + 1)).floor(), (u[:, 1] * (width - side + 1)).floor()
        rows, columns = torch.arange(height, device=t.device), torch.arange(width, device=t.device)
        inside_rows = (rows >= top[:, None]) & (rows < (top + side)[:, None])
        inside_columns = (columns >= left[:, None]) & (columns < (left + side)[:, None])
        return inside_rows[:, None, :, None] & inside_columns[:, None, None, :]

    def _stripes(self, state: State) -> Tensor:
        clean = state["clean"]
        count, width = clean.shape[1], clean.shape[3]
        u = keyed_uniform(self.seed, "stripes", state["id"], 0, count * width)
        return clean + self.eps * _signs(u).reshape(-1, count, 1, width)


def _signs(u: Tensor) -> Tensor:
    return (u >= 0.5).to(u.dtype) * 2 - 1


@attack("square", task="classification", card=CARD)
def square(
    target: Target, images: Tensor, budget: Budget, context: AttackContext, *,
    divergence: Annotated[Divergence, Hyper("what is minimised, as for `uma`", source="as uma")] = "kl",
    steps: Annotated[PositiveInt, Hyper("queries per sample after the clean image",
        source="ours; the paper uses 10 000 and scales the schedule to other budgets")] = 1000,
    fraction: Annotated[float, Hyper("share p of the image that the first squares cover",
        source="paper, section 5; halved at 10, 50, 200, 1000, ... of 10 000 queries", gt=0, le=1)] = 0.05,
    finish_below: FinishBelow = 0.0,
) -> Probes:  # fmt: skip
    """Search by random squares with scores alone (black box)."""
    warm = context.start is not None
    rule = Squares(eps=budget.eps, seed=context.seed, fraction=fraction, steps=steps, warm=warm)
    return search(
        rule, Schedule(steps), target, images, budget, context, divergence=divergence, finish_below=finish_below
    )
