"""The Unlearning Mapping Attack by projected signed gradient descent."""

from typing import Annotated

from torch import Tensor

from rub.attacks.base import AttackContext, Probes
from rub.attacks.rules import SignDescent
from rub.attacks.search import FinishBelow, Restarts, Schedule, StepSize
from rub.config.hyperparameters import Hyper, PositiveInt
from rub.registry import Card, attack
from rub.tasks.classification.attacks.base import Budget, Target
from rub.tasks.classification.attacks.divergences import Minimised
from rub.tasks.classification.attacks.search import Grid, search
from rub.tasks.classification.budgets import SEARCHED

CARD = Card(
    paper="Xuan, Li: Robust Unlearning Benchmark / Verifying Robust Unlearning, 2025 (arXiv:2504.14798); the search is"
    " Madry et al., ICLR 2018 (arXiv:1706.06083)",
    equation="min_delta D[f_u(x + delta), f(x)] s.t. ||delta||_inf <= eps (eq. 2);"
    " delta <- P(delta - step_size * eps * sign(grad D))",
    differences=(
        "every iterate that counts is an 8-bit image: D is taken at the rounded image, its gradient straight through;"
        " with `grid` off the iterates are floats and the best one is rounded at the end, as in the paper",
        "each sample keeps its best iterate (recovered first, then the lowest D), not its last",
    ),
    budgets=SEARCHED,
)


@attack("uma", task="classification", card=CARD)
def uma(
    target: Target, images: Tensor, budget: Budget, context: AttackContext, *,
    divergence: Minimised = "kl",
    steps: Annotated[PositiveInt, Hyper("gradient steps per start", source="open in the paper")] = 100,
    step_size: StepSize = None,
    restarts: Restarts = 1,
    finish_below: FinishBelow = 0.0,
    grid: Grid = True,
) -> Probes:  # fmt: skip
    """Search each image's neighbourhood for a probe that the unlearned model maps to what the original said."""
    rule = SignDescent(eps=budget.region, step_size=(step_size or 2.5 / steps) * budget.eps)
    return search(
        rule, Schedule(steps, restarts), target, images, budget, context,
        divergence=divergence, finish_below=finish_below, grid=grid,
    )  # fmt: skip
