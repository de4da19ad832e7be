"""The training loop that the methods share: balanced batches, AdamW, a learning rate per step, clipped gradients."""

from collections.abc import Callable, Iterable, Mapping
from operator import methodcaller
from typing import Annotated

import torch
from torch import Tensor, nn

from rub.config.hyperparameters import Epochs, Fraction, Hyper, Positive, Rate, Weight
from rub.data.samples import Samples
from rub.pipeline.checkpointing import Changing, ParameterState
from rub.tasks.inpainting.context import UnlearnContext
from rub.training.context import set_rate, warmup_cosine

RateAt = Callable[[int, int], float]

PeakRate = Annotated[Rate, Hyper(
    "peak learning rate of AdamW",
    source="ours, for the small models that RUB trains itself; upstream 1e-4 x batch / 256 for ViT-B, which the"
    " ImageNet suites set")]  # fmt: skip
Passes = Annotated[Epochs, Hyper("passes over the longer set", source="upstream")]
Warmup = Annotated[Fraction, Hyper(
    "fraction of the steps with a rising learning rate; half a cosine follows",
    source="upstream (5 of 6 epochs)")]  # fmt: skip
Decay = Annotated[Weight, Hyper("weight decay of AdamW", source="upstream; 0 on biases and norms")]
Clip = Annotated[Positive, Hyper("largest norm of the gradient", source="upstream")]


def ramp(lr: float, warmup: float) -> RateAt:
    """(step, total) -> learning rate: a linear warm-up over that fraction of the steps, then half a cosine."""
    return lambda step, total: warmup_cosine(lr, step, total, round(warmup * total))


def minimise(
    loss: Callable[[Tensor, Tensor], Tensor], parameters: Iterable[tuple[str, nn.Parameter]], forget: Samples,
    retain: Samples, context: UnlearnContext, *, draws: Mapping[str, torch.Generator], rate: RateAt, epochs: int,
    weight_decay: float, clip: float, step: Callable[[torch.optim.Optimizer], object] = methodcaller("step"),
) -> None:  # fmt: skip
    """Minimise loss(x_f, x_r) by AdamW over balanced batches.

    Args:
        loss: scalar loss of as many forget as retain images, each float32 (B, C, H, W) in [0, 1].
        parameters: the ones to train, with their names.
        forget: D_u.
        retain: D_r.
        context: batches, seed and steps.
        draws: name -> what the loss draws from.
        rate: (step, total) -> learning rate.
        epochs: passes over the longer set.
        weight_decay: of AdamW, on matrices only.
        clip: largest norm of the gradient.
        step: takes the step once the clipped gradients are in place.

    Raises:
        Diverged: the loss is not finite.
    """
    named = list(parameters)
    optimizer = context.adamw(named, rate(0, 1), weight_decay)
    total = context.steps(forget, retain, epochs)
    changing: Changing = {"weights": ParameterState(dict(named)), "optimizer": optimizer, **draws}
    for index, x_f, x_r in context.pairs(forget, retain, epochs, changing):
        set_rate(optimizer, rate(index, total))
        with context.autocast():
            value = loss(x_f, x_r)
        context.backward(value, optimizer)
        nn.utils.clip_grad_norm_([parameter for _, parameter in named], clip)
        step(optimizer)
