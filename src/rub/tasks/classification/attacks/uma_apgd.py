"""The Unlearning Mapping Attack with APGD's adaptive step size, which needs no tuning."""

from typing import Annotated

from torch import Tensor

from rub.attacks.base import AttackContext, Probes
from rub.attacks.rules import AdaptiveDescent
from rub.attacks.search import FinishBelow, Restarts, Schedule
from rub.config.hyperparameters import Fraction, Hyper, PositiveInt
from rub.registry import Card, attack
from rub.tasks.classification.attacks.base import Budget, Target
from rub.tasks.classification.attacks.divergences import Divergence
from rub.tasks.classification.attacks.search import Grid, search
from rub.tasks.classification.budgets import SEARCHED

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
    budgets=SEARCHED,
)


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
    rule = AdaptiveDescent(eps=budget.region, steps=steps, rho=rho, device=context.device)
    return search(
        rule, Schedule(steps, restarts), target, images, budget, context,
        divergence=divergence, finish_below=finish_below, grid=grid,
    )  # fmt: skip
