"""The Unlearning Mapping Attack with APGD's adaptive step size, which needs no tuning."""

from itertools import pairwise
from typing import Annotated

import torch
from torch import Tensor

from rub.attacks.linf import column, momentum_step, review_steps, should_halve
from rub.attacks.search import FinishBelow, Restarts, State
from rub.config.hyperparameters import Fraction, Hyper, PositiveInt
from rub.registry import Card, attack
from rub.tasks.classification.attacks.base import AttackContext, Budget, Probes, Target
from rub.tasks.classification.attacks.divergences import Divergence
from rub.tasks.classification.attacks.search import Grid, Schedule, search

CARD = Card(
    paper="Croce, Hein: Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free"
    " Attacks, ICML 2020 (arXiv:2003.01690), minimising UMA's objective (arXiv:2504.14798, eq. 2)",
    equation="z = P(x - eta sign(grad D)); x <- P(x + .75 (z - x) + .25 (x - x_before)); at checkpoints"
    " w_j = ceil(p_j N) eta is halved and x returns to the best point when progress stalls (algorithm 1)",
    upstream="fra31/auto-attack a392200",
    differences=(
        "checkpoints as in the paper; the authors' code rounds them down",
        "the first start is the clean image instead of a random point; restarts are random",
        "D is taken at the image rounded to 8 bits, its gradient straight through",
    ),
)


class AdaptiveDescent:
    """APGD's iteration with a step size for each sample."""

    gradient = True

    def __init__(self, *, eps: float, steps: int, rho: float, device: torch.device) -> None:
        """Lay out the checkpoints: for every step, the number of steps since the last one, or 0 for none."""
        self.eps, self.rho = eps, rho
        points = review_steps(steps)
        self.interval = torch.zeros(steps + 1, dtype=torch.int64, device=device)
        for before, now in pairwise(points):
            self.interval[now] = now - before

    def begin(self, state: State) -> None:
        """Start with step size 2 eps and nothing improved."""
        row = state["row"]
        infinite = torch.full_like(row, torch.inf, dtype=torch.float32)
        state["before"] = state["x"]
        state["eta"] = torch.full_like(infinite, 2 * self.eps)
        state["improvements"], state["unchanged"] = torch.zeros_like(row), torch.zeros_like(row, dtype=torch.bool)
        state["last_loss"] = state["low"] = state["low_before"] = infinite
        state["low_x"], state["low_gradient"] = state["x"], torch.zeros_like(state["x"])

    def move(self, state: State, loss: Tensor, gradient: Tensor | None) -> None:
        """Note the present point, review the step size at a checkpoint, and take one step."""
        assert gradient is not None
        lower = loss < state["low"]
        state["low"] = torch.where(lower, loss, state["low"])
        state["low_x"] = torch.where(column(lower, gradient), state["x"], state["low_x"])
        state["low_gradient"] = torch.where(column(lower, gradient), gradient, state["low_gradient"])
        state["improvements"] = state["improvements"] + ((loss < state["last_loss"]) & (state["t"] > 0))
        state["last_loss"] = loss

        back = column(self._review(state), gradient)
        x, before = torch.where(back, state["low_x"], state["x"]), state["before"]
        gradient = torch.where(back, state["low_gradient"], gradient)
        alpha = torch.where(state["t"] == 0, 1.0, 0.75)
        state["before"] = x
        state["x"] = momentum_step(x, before, gradient, state["clean"], state["eta"], alpha, self.eps)

    def _review(self, state: State) -> Tensor:
        """Halve step sizes where progress stalled at a checkpoint, and return where, bool (B,)."""
        interval = self.interval[state["t"]]
        due = interval > 0
        stalled = should_halve(
            state["improvements"], interval, self.rho, state["unchanged"], state["low"], state["low_before"]
        )
        halve = due & stalled
        state["eta"] = torch.where(halve, state["eta"] / 2, state["eta"])
        state["unchanged"] = torch.where(due, ~halve, state["unchanged"])
        state["low_before"] = torch.where(due, state["low"], state["low_before"])
        state["improvements"] = torch.where(due, 0, state["improvements"])
        return halve


@attack("uma-apgd", task="classification", card=CARD)
def uma_apgd(
    target: Target, images: Tensor, budget: Budget, context: AttackContext, *,
    divergence: Annotated[Divergence, Hyper("what is minimised, as for `uma`", source="as uma")] = "kl",
    steps: Annotated[PositiveInt, Hyper("gradient steps per start", source="paper")] = 100,
    rho: Annotated[Fraction, Hyper(
        "fraction of the steps between checkpoints that must improve D for the step size to stay",
        source="paper")] = 0.75,
    restarts: Restarts = 1,
    finish_below: FinishBelow = 0.0,
    grid: Grid = True,
) -> Probes:  # fmt: skip
    """Run UMA with the step size that APGD adapts for each sample."""
    rule = AdaptiveDescent(eps=budget.eps, steps=steps, rho=rho, device=context.device)
    plan = Schedule(divergence, steps, restarts, finish_below, grid)
    return search(rule, plan, target, images, budget, context)
