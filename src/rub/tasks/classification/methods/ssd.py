"""SSD: dampen the weights that matter much more to the forget set than to all data."""

from collections.abc import Iterator
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rub.config.hyperparameters import Hyper, PositiveInt, Weight
from rub.data.samples import Samples, concatenate
from rub.registry import Card, method
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.classification.methods._steps import require_finite
from rub.training.saliency import squared_gradients

CARD = Card(
    paper="Foster et al., Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening,"
    " AAAI 2024, arXiv 2308.07707",
    equation="where F_u > alpha F_D: theta <- min(lambda F_D / F_u, 1) theta;"
    " F = mean over batches of (batch gradient)^2",
    upstream="if-loops/selective-synaptic-dampening cdfdc0e, ssd.py",
    differences=(
        "batches of 64 images whatever the training's are, as upstream: F depends on their size, and alpha on F",
        "where whole classes are forgotten, batches hold one class after another, as upstream; within a class, and for"
        " other forget sets, their order is random and seeded",
        "no augmentation, eval mode, as upstream; F_D is taken over forget and retain set together",
    ),
    version=2,
)


def ordered(samples: Samples, context: UnlearnContext, stream: str) -> Samples:
    """Samples in random order; where whole classes are forgotten, one class after another."""
    mixed = samples.select(torch.randperm(len(samples), generator=context.generator(stream)))
    return mixed.select(mixed.labels.argsort(stable=True)) if context.forget_classes else mixed


def importance(
    model: nn.Module, samples: Samples, context: UnlearnContext, stream: str, batch_size: int
) -> dict[str, Tensor]:
    """F by parameter name: the mean over batches of the squared gradient of the batch-mean cross-entropy."""
    own, total = ordered(samples, context, stream), -(-len(samples) // batch_size)
    batches = context.batches(own, context.generator(""), batch_size=batch_size, shuffle=False, augment=False)

    def losses() -> Iterator[Tensor]:
        for count, (x, y) in enumerate(batches, 1):
            yield F.cross_entropy(context.forward(model, x), y)
            context.progress(count, total, f"importance of {stream}")

    return squared_gradients(dict(model.named_parameters()), losses())


@torch.no_grad()
def dampen(weight: Tensor, forget: Tensor, full: Tensor, alpha: float, lambda_: float) -> Tensor:
    """Weight times min(lambda F_D / F_u, 1) where F_u > alpha F_D, else unchanged; any shape.

    Example:
        >>> dampen(torch.ones(2), torch.tensor([4.0, 1.0]), torch.ones(2), alpha=2.0, lambda_=1.0).tolist()
        [0.25, 1.0]
    """
    factor = (lambda_ * full / forget).clamp(max=1)
    return torch.where(forget > alpha * full, weight * factor, weight)


@method("ssd", task="classification", card=CARD)
def selective_synaptic_dampening(
    model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext, *,
    alpha: Annotated[Weight, Hyper(
        "selection threshold; larger selects fewer weights. Whole classes: F_D is about the mean of the classes' F, so"
        " that from alpha = C / (forgotten classes) on next to nothing is selected",
        source="upstream selection_weighting for ResNet18 (ViT 5; PinsFaceRecognition 50), for 1 class of 20 or"
        " 100")] = 10.0,
    lambda_: Annotated[Weight, Hyper("dampening constant; smaller dampens more",
        source="upstream dampening_constant (PinsFaceRecognition 0.1)")] = 1.0,
    batch_size: Annotated[PositiveInt, Hyper("images of a batch whose gradient is squared",
        source="upstream forget_full_class_main.py -b")] = 64,
) -> nn.Module:  # fmt: skip
    """Dampen weights whose importance to the forget set exceeds alpha times their importance to all data.

    Raises:
        Diverged: a weight is not finite after the edit.
    """
    model.eval()
    of_forget = importance(model, forget, context, "forget set", batch_size)
    of_all = importance(model, concatenate([forget, retain]), context, "all data", batch_size)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(dampen(weight, of_forget[name], of_all[name], alpha, lambda_))
    require_finite(model, "ssd")
    return model
