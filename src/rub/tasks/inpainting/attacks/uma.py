"""The Unlearning Mapping Attack on inpainting: signed gradients inside a ball, Adam where there is none."""

from functools import partial
from typing import Annotated

from torch import Tensor

from rub.attacks.base import Probes
from rub.attacks.rules import AdamDescent, SignDescent
from rub.attacks.search import FinishBelow, Rule, Schedule
from rub.config.hyperparameters import Hyper, PositiveInt, Rate
from rub.registry import Card, attack
from rub.tasks.inpainting.attacks.base import AttackContext, Budget, Target
from rub.tasks.inpainting.attacks.search import confine, search

CARD = Card(
    paper="Xuan, Li: Robust Unlearning Benchmark / Verifying Robust Unlearning, 2025 (arXiv:2504.14798); the searches"
    " are Madry et al., ICLR 2018 (arXiv:1706.06083) and Adam, Kingma & Ba, ICLR 2015 (arXiv:1412.6980)",
    equation="min_delta MSE(f_u(x + delta; m), f(x; m)) over masked patches (eq. 2, D = MSE);"
    " bounded: delta <- P(delta - step_size * eps * sign(grad)); unbounded, free: Adam on x + delta",
    differences=(
        "the probe is x + delta, with the mask of the reference; eq. 2 writes f_u(delta)",
        "the loss compares outputs with a fixed target; a model's own loss would let the search edit the target, since"
        " that is the input's masked patches",
        "the variable is the visible patches; masked ones never reach the network and stay clean",
        "the paper's unlimited strength is two budgets: any 8-bit image (unbounded) and any real numbers (free)",
        "every iterate that counts is a file (8-bit pixels; float16 deltas for free), its gradient straight through",
        "each sample keeps its best iterate, not its last",
        "Adam sees the summed squared error, whose gradients are large against its 1e-8",
    ),
)


@attack("uma", task="inpainting", card=CARD)
def uma(
    target: Target, images: Tensor, budget: Budget, context: AttackContext, *,
    steps: Annotated[PositiveInt, Hyper("signed steps per start, for bounded budgets",
        source="open in the paper")] = 100,
    step_size: Annotated[float | None, Hyper("size of signed steps in units of eps; none: 2.5 / steps",
        source="open in the paper: 2.5 eps / steps (Madry et al., section 5)", gt=0)] = None,
    adam_steps: Annotated[PositiveInt, Hyper("steps of Adam per start, for budgets without a bound",
        source="open in the paper")] = 300,
    lr: Annotated[Rate, Hyper("learning rate of Adam, in pixel units",
        source="open in the paper; betas .9 and .999 are Adam's")] = 0.01,
    restarts: Annotated[PositiveInt, Hyper(
        "starts per sample: first the clean image, then random points of the ball, or random images",
        source="open in the paper: the clean image only; raise it for random starts")] = 1,
    finish_below: FinishBelow = 0.0,
) -> Probes:  # fmt: skip
    """Search visible patches from which the unlearned model reconstructs what the original made of the image."""
    rule: Rule = AdamDescent(lr=lr, confine=partial(confine, budget=budget))
    if budget.eps is not None:
        rule = SignDescent(eps=budget.eps, step_size=(step_size or 2.5 / steps) * budget.eps)
    schedule = Schedule(steps if budget.bounded else adam_steps, restarts)
    return search(rule, schedule, target, images, budget, context, finish_below=finish_below)
