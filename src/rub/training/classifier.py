"""Training a classifier from scratch, and looking at one: logits and features of sample sets."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from rub.data.samples import Samples, to_unit
from rub.errors import unknown
from rub.models.network import Outputs, outputs
from rub.pipeline.checkpointing import Changing
from rub.training.batches import cuts
from rub.training.context import TrainContext, set_rate
from rub.training.device import on_device, tf32


def learning_rate(schedule: str, lr: float, progress: float) -> float:
    """Learning rate after a fraction `progress` in [0, 1] of all steps.

    ``steps``: lr x 0.1 at 91/182 and again at 136/182 (epochs of Unlearn-Saliency's `arg_parser.py`);
    ``onecycle``: linear up to lr over the first fifth, then linear to 0; ``cosine``: lr (1 + cos(pi progress)) / 2.

    Raises:
        RubError: an unknown schedule.

    Example:
        >>> learning_rate("onecycle", 0.4, 0.1)
        0.2
    """
    if schedule == "steps":
        return lr * 0.1 ** ((progress >= 91 / 182) + (progress >= 136 / 182))
    if schedule == "onecycle":
        return lr * min(progress / 0.2, (1 - progress) / 0.8)
    if schedule == "cosine":
        return lr * (1 + math.cos(math.pi * progress)) / 2
    raise unknown("schedule", schedule, ("steps", "onecycle", "cosine"))


def train(
    model: nn.Module, samples: Samples, context: TrainContext, *, epochs: int, lr: float, schedule: str = "steps",
    momentum: float = 0.9, weight_decay: float = 5e-4,
) -> nn.Module:  # fmt: skip
    """Train with cross-entropy and SGD (nesterov with ``onecycle``), and return the model in eval mode.

    Args:
        model: trained in place.
        samples: the training set.
        context: seed, batch size, augmentation, precision, device, progress, checkpointer.
        epochs: passes over the samples.
        lr: peak learning rate, see `learning_rate`.
        schedule: ``steps``, ``onecycle`` or ``cosine``.
        momentum: SGD momentum.
        weight_decay: SGD weight decay, on all parameters.

    Raises:
        Diverged: the loss became NaN or infinite.
        RubError: an unknown schedule.
    """
    model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    nesterov = schedule == "onecycle"
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum, weight_decay=weight_decay, nesterov=nesterov)
    total, batches = epochs * len(cuts(len(samples), context.batch_size)), context.endless(samples, "batches")
    changing: Changing = {"model": model, "optimizer": optimizer, "batches": batches}
    for step in context.counted(total, changing, epochs=epochs):
        set_rate(optimizer, learning_rate(schedule, lr, (step + 0.5) / total))  # mid-step: 0 at neither end
        x, y = next(batches)
        context.descend(nn.functional.cross_entropy(context.forward(model, x), y), optimizer)
    return model.eval()


def predict(
    model: nn.Module, samples: Samples | Tensor, *, batch_size: int = 500, device: torch.device | str = "cpu"
) -> Tensor:
    """float32 logits (N, C) on the CPU, in eval mode and full precision.

    Args:
        model: maps [0, 1] images to logits; the mode of each of its modules is restored afterwards.
        samples: `Samples`, or uint8 images (N, C, H, W).
        batch_size: images per forward pass; does not change results beyond rounding.
        device: where the model lives.
    """
    return _map(model, lambda x: (model(x),), samples, batch_size, device)[0]


def embed(
    model: nn.Module, samples: Samples | Tensor, *, batch_size: int = 500, device: torch.device | str = "cpu"
) -> Tensor:
    """Penultimate features, float32 (N, D) on the CPU; arguments as for `predict`."""
    return look(model, samples, batch_size=batch_size, device=device).features


def look(
    model: nn.Module, samples: Samples | Tensor, *, batch_size: int = 500, device: torch.device | str = "cpu"
) -> Outputs:
    """Logits (N, C) and penultimate features (N, D), float32 on the CPU; arguments as for `predict`."""
    return Outputs(*_map(model, partial(outputs, model), samples, batch_size, device))


@torch.no_grad()
def _map(
    model: nn.Module, function: Callable[[Tensor], tuple[Tensor, ...]], samples: Samples | Tensor, batch_size: int,
    device: torch.device | str,
) -> tuple[Tensor, ...]:  # fmt: skip
    take = on_device(samples, torch.device(device)).take if isinstance(samples, Samples) else samples.__getitem__
    modes = {module: module.training for module in model.modules()}  # a method may hold its batch norms in eval mode
    model.eval()
    parts = []
    with torch.autocast(torch.device(device).type, enabled=False), tf32(False):
        for start in range(0, max(len(samples), 1), batch_size):  # no images: one empty batch gives the shape (0, C)
            x = to_unit(take(slice(start, start + batch_size)).to(device)).contiguous(memory_format=torch.channels_last)
            parts.append([part.float().cpu() for part in function(x)])
    for module, training in modes.items():
        module.training = training
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))
