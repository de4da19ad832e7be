"""The Unlearning Mapping Attack by projected signed gradient descent."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from rub.attacks.linf import accumulate, sign_step
from rub.attacks.search import State
from rub.registry import Card, attack
from rub.tasks.classification.attacks.base import AttackContext, Budget, Probes, Target
from rub.tasks.classification.attacks.divergences import Divergence
from rub.tasks.classification.attacks.search import Schedule, search

CARD = Card(
    paper="Xuan, Li: Robust Unlearning Benchmark / Verifying Robust Unlearning, 2025 (arXiv:2504.14798); the search is"
    " Madry et al., ICLR 2018 (arXiv:1706.06083), momentum Dong et al., CVPR 2018 (arXiv:1710.06081)",
    equation="min_delta D[f_u(x + delta), f(x)] s.t. ||delta||_inf <= eps (eq. 2);"
    " delta <- P(delta - step_size * eps * sign(grad D))",
    defaults={
        "divergence": "KL on classification logits (paper); its direction and T = 1 are open: KL(p_orig || p_unl)",
        "steps": "open in the paper: 100",
        "step_size": "open in the paper: 2.5 eps / steps (Madry et al., section 5)",
        "restarts": "open in the paper: the clean image only; raise it for random starts",
        "momentum": "open in the paper: 0",
    },
    differences=(
        "every iterate that counts is an 8-bit image: D is taken at the rounded image, its gradient straight through",
        "each sample keeps its best iterate (recovered first, then the lowest D), not its last",
    ),
)


class SignDescent:
    """x <- P(x - step_size * sign(g)), g the gradient or its running average."""

    gradient = True

    def __init__(self, *, eps: float, step_size: float, momentum: float) -> None:
        """Set the radius and step size, both in pixel units, and the momentum."""
        self.eps, self.step_size, self.momentum = eps, step_size, momentum

    def begin(self, state: State) -> None:
        """Start with no velocity."""
        if self.momentum:
            state["velocity"] = torch.zeros_like(state["x"])

    def move(self, state: State, loss: Tensor, gradient: Tensor | None) -> None:
        """Take one projected step."""
        assert gradient is not None
        if self.momentum:
            gradient = state["velocity"] = accumulate(state["velocity"], gradient, self.momentum)
        state["x"] = sign_step(state["x"], gradient, state["clean"], self.step_size, self.eps)


@attack("uma", task="classification", card=CARD)
def uma(
    target: Target,
    probe_from: Tensor,
    budget: Budget,
    context: AttackContext,
    *,
    divergence: Divergence = "kl",
    steps: Annotated[int, Field(ge=1)] = 100,
    step_size: Annotated[float, Field(gt=0)] | None = None,
    momentum: Annotated[float, Field(ge=0)] = 0.0,
    restarts: Annotated[int, Field(ge=1)] = 1,
    finish_below: Annotated[float, Field(ge=0, allow_inf_nan=True)] = 0.0,
    grid: bool = True,
) -> Probes:
    """Search each image's neighbourhood for a probe that the unlearned model maps to what the original said.

    Args:
        target: the unlearned model, and the original's answers on the clean images.
        probe_from: uint8 (N, C, H, W), the clean images.
        budget: radius of the ball.
        context: seed, ids, batch size, device.
        divergence: what is minimised: ``kl`` = KL(p_orig || p_unl), ``ce``, ``margin``, ``logits-l2``, ``features-l2``.
        steps: gradient steps per start.
        step_size: in units of eps; None means 2.5 / steps.
        momentum: weight of the running average of normalised gradients; 0 uses the plain gradient.
        restarts: starts per sample: first the clean image, then random points of the ball.
        finish_below: a sample is finished once recovered with D <= this; inf: being recovered is enough; 0: never.
        grid: score iterates as 8-bit images; False is the textbook search, rounded only at the end.
    """
    rule = SignDescent(eps=budget.eps, step_size=(step_size or 2.5 / steps) * budget.eps, momentum=momentum)
    plan = Schedule(divergence, steps, restarts, finish_below, grid)
    return search(rule, plan, target, probe_from, budget, context)
