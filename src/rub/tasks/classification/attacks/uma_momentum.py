"""The Unlearning Mapping Attack with momentum and falling steps: what counts is whether an image can be recovered."""

import math
from typing import Annotated

from torch import Tensor

from rub.attacks.base import AttackContext, Probes
from rub.attacks.rules import MomentumDescent
from rub.attacks.search import FinishBelow, Restarts, Schedule
from rub.config.hyperparameters import Hyper, PositiveInt
from rub.registry import Card, attack
from rub.tasks.classification.attacks.base import Budget, Target
from rub.tasks.classification.attacks.divergences import Minimised
from rub.tasks.classification.attacks.search import search
from rub.tasks.classification.budgets import SEARCHED

CARD = Card(
    paper="Dong et al., Boosting Adversarial Attacks with Momentum, CVPR 2018 (arXiv:1710.06081), minimising UMA's"
    " objective (arXiv:2504.14798, eq. 2)",
    equation="v <- .75 v + grad D / mean|grad D|; delta <- P(delta - eta_t sign(v)),"
    " eta_t = eps / 4 (1 + cos(pi t / steps))",
    differences=(
        "steps start at half of eps and fall to 0 along half a cosine; Dong et al. take eps / steps",
        "momentum .75 instead of 1",
        "D is taken at the image rounded to 8 bits, its gradient straight through: no success is lost by rounding, and"
        " steps of such sizes do not rest between two levels",
    ),
    budgets=SEARCHED,
)


@attack("uma-momentum", task="classification", card=CARD)
def uma_momentum(
    target: Target, images: Tensor, budget: Budget, context: AttackContext, *,
    divergence: Minimised = "kl",
    steps: Annotated[PositiveInt, Hyper("gradient steps per start",
        source="ours: 50 reach what APGD reaches in 100")] = 50,
    restarts: Restarts = 1,
    finish_below: FinishBelow = math.inf,
) -> Probes:  # fmt: skip
    """Run UMA with momentum, until an image is recovered."""
    rule = MomentumDescent(eps=budget.region, steps=steps)
    return search(
        rule, Schedule(steps, restarts), target, images, budget, context,
        divergence=divergence, finish_below=finish_below,
    )  # fmt: skip
