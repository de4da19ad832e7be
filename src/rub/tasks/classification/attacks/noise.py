"""Random noise in the ball: the control that spends as many evaluations as a search and looks at nothing."""

from typing import Annotated

from torch import Tensor

from rub.attacks.base import AttackContext, Probes
from rub.attacks.rules import Distribution, Draw
from rub.attacks.search import FinishBelow, Schedule
from rub.config.hyperparameters import Hyper, PositiveInt
from rub.registry import Card, attack
from rub.tasks.classification.attacks.base import Budget, Target
from rub.tasks.classification.attacks.divergences import Divergence
from rub.tasks.classification.attacks.search import search
from rub.tasks.classification.budgets import SEARCHED

CARD = Card(
    equation="best of n draws x + eps u, u_i uniform on {-1, 1} (sign) or on [-1, 1] (uniform)",
    differences=("a control of this benchmark; not in the paper",),
    budgets=SEARCHED,
)


@attack("noise", task="classification", card=CARD)
def noise(
    target: Target, images: Tensor, budget: Budget, context: AttackContext, *,
    divergence: Annotated[Divergence, Hyper("what decides between draws, as for `uma`", source="as uma")] = "kl",
    distribution: Annotated[Distribution, Hyper("`sign`: every pixel at -eps or +eps; `uniform`: anywhere between",
        source="corners of the ball, the strongest noise of its radius")] = "sign",
    steps: Annotated[PositiveInt, Hyper("number of draws", source="the evaluations of uma's default")] = 100,
    finish_below: FinishBelow = 0.0,
) -> Probes:  # fmt: skip
    """Keep the best of the clean image and n random points of its ball."""
    rule = Draw(eps=budget.region, seed=context.seed, distribution=distribution)
    return search(
        rule, Schedule(steps), target, images, budget, context, divergence=divergence, finish_below=finish_below
    )
