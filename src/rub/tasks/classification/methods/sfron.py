"""SFRon: ascend on the forget set, most where it is known least well, between steps down the retain set."""

import math
from typing import Annotated

from torch import Tensor, nn
from torch.nn import functional as F

from rub.config.hyperparameters import Hyper, Iterations, Positive, PositiveInt, Rate, Weight
from rub.data.samples import Samples
from rub.pipeline.checkpointing import Changing
from rub.registry import Card, method
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.classification.methods._steps import clipped_step
from rub.training.context import set_rate
from rub.training.saliency import squared_gradients

CARD = Card(
    paper="Huang et al., Unified Gradient-Based Machine Unlearning with Remain Geometry Enhancement, NeurIPS 2024,"
    " arXiv 2409.19732",
    equation="every k-th step: theta <- theta + m * grad(alpha_t sum_i w_i CE_i over a batch of D_u), w_i ="
    " CE_i^-lambda / sum_j CE_j^-lambda, m = [F_u / F_r >= gamma], F = mean over batches of (batch gradient)^2; every"
    " step: theta <- theta - grad CE_r; alpha_t and the rate fall as a cosine",
    upstream="K1nght/Unified-Unlearning-w-Remain-Geometry 1837bf6, Classification/unlearn/sfron.py",
    differences=(
        "no average of the weights with those of the step before: upstream's ema_beta of 1 leaves them as they are",
        "the mask covers the gradient of the ascent alone, as upstream: momentum and weight decay move the other"
        " weights too",
        "forget and retain batches have the experiment's size, and so have those of F; upstream 128",
        "upstream reads F from a file of an earlier run where there is one, of whatever model; here it is made anew",
    ),
)


def saliency(
    model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext, gamma: float
) -> dict[str, Tensor]:
    """Bool masks by parameter name: True where F_u / F_r >= gamma; eval mode, one augmented pass of each set."""
    model.eval()
    generator = context.generator("saliency")
    of_forget, of_retain = (
        squared_gradients(
            dict(model.named_parameters()),
            (F.cross_entropy(context.forward(model, x), y) for x, y in context.batches(samples, generator)),
        )
        for samples in (forget, retain)
    )
    return {name: (of_forget[name] + 1e-15) / (of_retain[name] + 1e-15) >= gamma for name in of_forget}


def adaptive(losses: Tensor, lam: float) -> Tensor:
    """sum_i w_i l_i, w_i = l_i^-lambda / sum_j l_j^-lambda without a gradient of its own; losses (B,).

    Example:
        >>> adaptive(Tensor([1.0, 4.0]), 0.5).item()
        2.0
    """
    weights = 1 / (losses.detach() ** lam + 1e-15)
    return (weights / weights.sum() * losses).sum()


@method("sfron", task="classification", card=CARD)
def sfron(
    model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext, *,
    lr: Annotated[Rate, Hyper("first learning rate of SGD (momentum .9, weight decay 5e-4); cosine over the steps",
        source="upstream, CIFAR-10 (10 % random)")] = 0.01,
    iterations: Annotated[Iterations, Hyper("steps down the retain set",
        source="upstream, CIFAR-10 (Tiny-ImageNet 500)")] = 1500,
    forget_every: Annotated[PositiveInt, Hyper("k: steps for each ascent on the forget set",
        source="upstream, CIFAR-10 (Tiny-ImageNet 1)")] = 5,
    alpha: Annotated[Weight, Hyper("first weight of the ascent",
        source="upstream, CIFAR-10 (Tiny-ImageNet 500)")] = 25.0,
    lam: Annotated[Weight, Hyper("lambda: how much less images count that are lost already",
        source="upstream")] = 0.5,
    gamma: Annotated[Weight, Hyper("least F_u / F_r of the weights that the ascent may move", source="upstream")] = 1.0,
    clip: Annotated[Positive, Hyper("most that the ascent's L2 norm may be", source="upstream")] = 7.0,
) -> nn.Module:  # fmt: skip
    """Alternate: ascend an adaptive loss of the forget set on salient weights, then descend on the retain set.

    Raises:
        RubError: a set is empty.
    """
    forgotten, kept = context.endless(forget, "forget"), context.endless(retain, "retain")
    masks = saliency(model, forget, retain, context, gamma)
    named = dict(model.named_parameters())
    model.train()
    optimizer = context.sgd(model, lr)
    changing: Changing = {"model": model, "optimizer": optimizer, "forgotten": forgotten, "kept": kept}
    for step in context.counted(iterations, changing):
        cosine = (1 + math.cos(math.pi * step / iterations)) / 2
        set_rate(optimizer, lr * cosine)
        if step % forget_every == 0:
            x, y = next(forgotten)
            losses = F.cross_entropy(context.forward(model, x), y, reduction="none")
            context.backward(-alpha * cosine * adaptive(losses, lam), optimizer)
            for name, weight in named.items():
                if weight.grad is not None:
                    weight.grad.mul_(masks[name])
            clipped_step(optimizer, clip)
        x, y = next(kept)
        context.descend(F.cross_entropy(context.forward(model, x), y), optimizer)
    return model
