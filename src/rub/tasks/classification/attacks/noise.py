"""Random noise in the ball: the control that spends as many evaluations as a search and looks at nothing."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from rub.attacks.linf import keyed_uniform, project
from rub.attacks.search import State
from rub.registry import Card, attack
from rub.tasks.classification.attacks.base import AttackContext, Budget, Probes, Target
from rub.tasks.classification.attacks.divergences import Divergence
from rub.tasks.classification.attacks.search import Schedule, search

Distribution = Literal["sign", "uniform"]

CARD = Card(
    equation="best of n draws x + eps u, u_i uniform on {-1, 1} (sign) or on [-1, 1] (uniform)",
    defaults={
        "distribution": "sign: corners of the ball, the strongest noise of its radius",
        "steps": "100 draws, the evaluations of uma's default",
    },
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
    target: Target,
    probe_from: Tensor,
    budget: Budget,
    context: AttackContext,
    *,
    divergence: Divergence = "kl",
    distribution: Distribution = "sign",
    steps: Annotated[int, Field(ge=1)] = 100,
    finish_below: Annotated[float, Field(ge=0, allow_inf_nan=True)] = 0.0,
) -> Probes:
    """Keep the best of the clean image and n random points of its ball.

    Args:
        target: the unlearned model, and the original's answers on the clean images.
        probe_from: uint8 (N, C, H, W), the clean images.
        budget: radius of the ball.
        context: seed, ids, batch size, device.
        divergence: what decides between draws, as for ``uma``.
        distribution: ``sign`` puts every pixel at -eps or +eps, ``uniform`` anywhere between, rounded to 8 bits.
        steps: number of draws.
        finish_below: a sample is finished once recovered with D <= this; inf: being recovered is enough; 0: never.
    """
    rule = Draw(eps=budget.eps, seed=context.seed, distribution=distribution)
    plan = Schedule(divergence, steps, finish_below=finish_below)
    return search(rule, plan, target, probe_from, budget, context)
