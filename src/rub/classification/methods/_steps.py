"""Pieces that several methods share: rounds of batches, frozen copies, distillation, learning rates, finiteness."""

import math
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rub.classification.context import UnlearnContext
from rub.errors import Diverged, RubError
from rub.images.samples import Samples


class Batch(NamedTuple):
    """A training batch: its epoch (from 0), the part it belongs to, images (B, C, H, W) in [0, 1], labels (B,)."""

    epoch: int
    part: str
    x: Tensor
    y: Tensor


def rounds(context: UnlearnContext, epochs: int, parts: Callable[[int], Mapping[str, Samples]]) -> Iterator[Batch]:
    """Yield shuffled, augmented batches: in every epoch, one pass over each part in turn; progress is reported.

    Args:
        context: source of batches and random numbers.
        epochs: number of rounds.
        parts: epoch (from 0) -> name -> samples, asked for when the epoch begins.
    """
    generator, done = context.generator("batches"), 0
    for epoch in range(epochs):
        current = parts(epoch)
        each = sum(math.ceil(len(samples) / context.batch_size) for samples in current.values())
        total = done + (epochs - epoch) * each
        for part, samples in current.items():
            for x, y in context.batches(samples, generator):
                yield Batch(epoch, part, x, y)
                done += 1
                context.progress(done, total, f"epoch {epoch + 1}/{epochs}")


def endless(context: UnlearnContext, samples: Samples, stream: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield shuffled, augmented batches for ever, in a new order on every pass."""
    if len(samples) == 0:
        raise RubError(f"no samples to cycle over ({stream}): give at least one")
    generator = context.generator(stream)
    while True:
        yield from context.batches(samples, generator)


def frozen(model: nn.Module) -> nn.Module:
    """Return an independent copy in eval mode whose parameters take no gradient."""
    return deepcopy(model).eval().requires_grad_(False)


def distillation(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return T^2 KL(softmax(teacher/T) || softmax(student/T)), averaged over the batch; logits (B, C).

    Example:
        >>> distillation(torch.zeros(2, 3), torch.zeros(2, 3)).item()
        0.0
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def convolutions(model: nn.Module, method: str) -> dict[str, nn.Conv2d]:
    """Return the model's 2-d convolutions by name.

    Raises:
        RubError: there is none, and the method edits convolutions.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    if not found:
        raise RubError(f"{method}: {type(model).__name__} has no Conv2d layer; use a convolutional network")
    return found


def require_finite(model: nn.Module, method: str) -> None:
    """Refuse weights that an edit made infinite or NaN.

    Raises:
        Diverged: names the first such parameter.
    """
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise Diverged(f"{method}: parameter {name} is not finite")
