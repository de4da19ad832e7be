"""Random noise in the ball: the control that spends as many evaluations as a search and looks at nothing."""

from typing import Annotated, Literal

from torch import Tensor

from rub.attacks.linf import keyed_uniform, project
from rub.attacks.search import FinishBelow, State
from rub.config.hyperparameters import Hyper, PositiveInt
from rub.registry import Card, attack
from rub.tasks.classification.attacks.base import AttackContext, Budget, Probes, Target
from rub.tasks.classification.attacks.divergences import Divergence
from rub.tasks.classification.attacks.search import Schedule, search

Distribution = Literal["sign", "uniform"]

CARD = Card(
    equation="best of n draws x + eps u, u_i uniform on {-1, 1} (sign) or on [-1, 1] (uniform)",
    differences=("a control of this benchmark; not in the paper",),
)


class Draw:
    """x <- P(clean + eps u) with fresh u at every step."""

    gradient = False

    def __init__(self, *, eps: float, seed: int, distribution: Distribution) -> None:
        """Set the radius in pixel units, the seed and the distribution of u."""
        self.eps, self.seed, self.distribution = eps, seed, distribution

    def begin(self, state: State) -> None:
        """Keep nothing."""

    def move(self, state: State, loss: Tensor, gradient: Tensor | None) -> None:
        """Draw the next noise of each sample."""
        clean = state["clean"]
        u = 2 * keyed_uniform(self.seed, "noise", state["id"], state["t"], clean[:1].numel()).reshape(clean.shape) - 1
        if self.distribution == "sign":
            u = (u >= 0).to(u.dtype) * 2 - 1
        state["x"] = project(clean + self.eps * u, clean, self.eps)


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
    rule = Draw(eps=budget.eps, seed=context.seed, distribution=distribution)
    plan = Schedule(divergence, steps, finish_below=finish_below)
    return search(rule, plan, target, images, budget, context)
