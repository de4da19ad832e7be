"""CT: transpose every convolution kernel, then fine-tune."""

import math
from itertools import repeat
from typing import Annotated

import torch
from torch import nn
from torch.nn import functional as F

from rub.config.hyperparameters import Epochs, Hyper, Rate
from rub.data.samples import Samples
from rub.errors import RubError
from rub.pipeline.checkpointing import Changing
from rub.registry import Card, method
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.classification.methods._steps import convolutions, rounds
from rub.training.context import set_rate

CARD = Card(
    paper="Cadet et al., Deep Unlearn, EuroS&P 2025, arXiv 2410.01276 (CT, from the NeurIPS 2023 competition)",
    equation="W[o, i, h, w] <- W[o, i, w, h] in every convolution; then min_theta CE_r",
    upstream="xcadet/deepunlearn 6830ff6, munl/unlearning/kgltop5.py",
    differences=("batch size is the experiment's; upstream 64",),
)


@torch.no_grad()
def transpose_kernels(model: nn.Module) -> None:
    """Swap height and width of every 2-d convolution kernel, in place.

    Raises:
        RubError: there is no convolution, or a kernel is not square.
    """
    for name, layer in convolutions(model, "ct").items():
        height, width = layer.weight.shape[2:]
        if height != width:
            raise RubError(
                f"ct: convolution '{name}' has a {height}x{width} kernel; only square ones can be transposed"
            )
        layer.weight.copy_(layer.weight.transpose(2, 3).clone())


@method("ct", task="classification", card=CARD)
def convolution_transpose(
    model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext, *,
    lr: Annotated[Rate, Hyper("first learning rate of SGD (momentum .9, weight decay 5e-4); cosine over the epochs",
        source="upstream ORIGINAL_LR")] = 1e-3,
    epochs: Annotated[Epochs, Hyper("passes over the retain set", source="upstream ORIGINAL_NUM_EPOCHS")] = 3,
) -> nn.Module:  # fmt: skip
    """Transpose every convolution kernel and fine-tune on the retain set. The forget set is not used.

    Raises:
        RubError: the model has no convolution, or one that is not square.
    """
    transpose_kernels(model)
    model.train()
    optimizer = context.sgd(model, lr)
    changing: Changing = {"model": model, "optimizer": optimizer}
    for epoch, _, x, y in rounds(context, lambda: repeat({"retain": retain}, epochs), changing):
        set_rate(optimizer, lr * (1 + math.cos(math.pi * epoch / epochs)) / 2)
        context.descend(F.cross_entropy(context.forward(model, x), y), optimizer)
    return model
