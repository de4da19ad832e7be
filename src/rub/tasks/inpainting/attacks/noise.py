"""Random noise: the control that spends as many evaluations as a search and looks at nothing."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from rub.attacks.linf import keyed_uniform, project
from rub.attacks.search import State
from rub.registry import Card, attack
from rub.tasks.inpainting.attacks.base import AttackContext, Budget, Probes, Target
from rub.tasks.inpainting.attacks.search import Schedule, search

Distribution = Literal["sign", "uniform"]

CARD = Card(
    equation="best of n draws of the visible pixels: x + eps u, u_i uniform on {-1, 1} (sign) or on [-1, 1] (uniform);"
    " without a bound, uniform on [0, 1]",
    defaults={
        "distribution": "sign: corners of the ball, the strongest noise of its radius",
        "steps": "100 draws, the evaluations of uma's default",
    },
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
    target: Target,
    probe_from: Tensor,
    budget: Budget,
    context: AttackContext,
    *,
    distribution: Distribution = "sign",
    steps: Annotated[int, Field(ge=1)] = 100,
    finish_below: Annotated[float, Field(ge=0, allow_inf_nan=True)] = 0.0,
) -> Probes:
    """Keep the best of the clean image and n random points that the budget allows.

    Args:
        target: the unlearned model, the masks, and the original's reconstructions of the clean images.
        probe_from: uint8 (N, C, H, W), the clean images.
        budget: how far probes may go.
        context: seed, ids, threshold, batch size, device.
        distribution: inside a ball, ``sign`` puts every pixel at -eps or +eps, ``uniform`` anywhere between.
        steps: number of draws.
        finish_below: a sample is finished once recovered with D <= this; inf: being recovered is enough; 0: never.
    """
    rule = Draw(eps=budget.eps, seed=context.seed, distribution=distribution)
    return search(rule, Schedule(steps, finish_below=finish_below), target, probe_from, budget, context)
