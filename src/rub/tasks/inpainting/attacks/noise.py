"""Random noise: the control that spends as many evaluations as a search and looks at nothing."""

from typing import Annotated, Literal

from torch import Tensor

from rub.attacks.linf import keyed_uniform, project
from rub.attacks.search import FinishBelow, State
from rub.config.hyperparameters import Hyper, PositiveInt
from rub.registry import Card, attack
from rub.tasks.inpainting.attacks.base import AttackContext, Budget, Probes, Target
from rub.tasks.inpainting.attacks.search import Schedule, search

Distribution = Literal["sign", "uniform"]

CARD = Card(
    equation="best of n draws of the visible pixels: x + eps u, u_i uniform on {-1, 1} (sign) or on [-1, 1] (uniform);"
    " without a bound, uniform on [0, 1]",
    differences=("a control of this benchmark; not in the paper",),
)


class Draw:
    """x <- P(clean + eps u), or a random image where there is no bound, fresh at every step."""

    gradient = False

    def __init__(self, *, eps: float | None, seed: int, distribution: Distribution) -> None:
        """Set the radius in pixel units (None: no bound), the seed and the distribution of u."""
        self.eps, self.seed, self.distribution = eps, seed, distribution

    def begin(self, state: State) -> None:
        """Keep nothing."""

    def move(self, state: State, gradient: Tensor | None) -> None:
        """Draw the next point of each sample."""
        clean = state["clean"]
        drawn = keyed_uniform(self.seed, "noise", state["id"], state["t"], clean[:1].numel()).reshape(clean.shape)
        if self.eps is None:
            state["x"] = drawn
            return
        u = 2 * drawn - 1
        if self.distribution == "sign":
            u = (u >= 0).to(u.dtype) * 2 - 1
        state["x"] = project(clean + self.eps * u, clean, self.eps)


@attack("noise", task="inpainting", card=CARD)
def noise(
    target: Target, images: Tensor, budget: Budget, context: AttackContext, *,
    distribution: Annotated[Distribution, Hyper("`sign`: every pixel at -eps or +eps; `uniform`: anywhere between",
        source="corners of the ball, the strongest noise of its radius")] = "sign",
    steps: Annotated[PositiveInt, Hyper("number of draws", source="the evaluations of uma's default")] = 100,
    finish_below: FinishBelow = 0.0,
) -> Probes:  # fmt: skip
    """Keep the best of the clean image and n random points that the budget allows."""
    rule = Draw(eps=budget.eps, seed=context.seed, distribution=distribution)
    return search(rule, Schedule(steps, finish_below=finish_below), target, images, budget, context)
