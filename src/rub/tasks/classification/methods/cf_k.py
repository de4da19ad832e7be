"""CF-k: fine-tune the last k layers on the retain set, and rely on forgetting."""

import math
from itertools import repeat
from typing import Annotated

import torch
from torch import nn
from torch.nn import functional as F

from rub.config.hyperparameters import Epochs, Hyper, Positive, PositiveInt, Rate, Weight
from rub.data.samples import Samples
from rub.errors import RubError
from rub.pipeline.checkpointing import Changing
from rub.registry import Card, method
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.classification.methods._steps import clipped_step, rounds
from rub.training.context import set_rate

PAPER = "Goel et al., Towards Adversarial Evaluations for Inexact Machine Unlearning, arXiv 2201.06640 (2022)"
UPSTREAM = "shash42/Evaluating-Inexact-Unlearning e315401, src/methods.py, src/learn.py and src/unlearn.py"
DIFFERENCES = (
    "a layer is a convolution or a linear layer, counted from the end in order of definition; what lies between, such"
    " as batch normalisation, moves with them, as upstream",
    "running statistics of batch normalisation move in all layers, as upstream",
    "batch size is the experiment's; upstream 64",
)
CARD = Card(
    paper=PAPER,
    equation="min CE_r over the weights of the last k layers, started from the original's; the others stay",
    upstream=UPSTREAM,
    differences=DIFFERENCES,
)

Layers = Annotated[PositiveInt, Hyper("last convolutions and linear layers that are trained",
    source="Hsu et al. 2025, arXiv 2601.22359: two blocks of ResNet-18 and its last layer; upstream tries 1 to"
    " 7")]  # fmt: skip
MaxRate = Annotated[Rate, Hyper("rate of SGD (momentum .9) at the start of every cycle; cycles of 1, 2, 4, ... epochs",
    source="upstream maxlr")]  # fmt: skip
MinRate = Annotated[Weight, Hyper("rate that a cycle falls to, as a cosine", source="upstream minlr")]
Passes = Annotated[Epochs, Hyper("passes over the retain set; 2^n - 1 end a cycle", source="upstream epochs-ftF")]
Decay = Annotated[Weight, Hyper("weight decay of SGD", source="upstream")]
Clip = Annotated[Positive, Hyper("most that the gradient's L2 norm may be", source="upstream")]


def last_layers(model: nn.Module, k: int, method: str) -> list[nn.Module]:
    """Modules with weights of their own, from the k-th last convolution or linear layer on, in order of definition.

    Raises:
        RubError: the network has fewer such layers.
    """
    holders = [module for module in model.modules() if next(module.parameters(recurse=False), None) is not None]
    places = [place for place, module in enumerate(holders) if isinstance(module, nn.Conv2d | nn.Linear)]
    if len(places) < k:
        raise RubError(f"{method}: k = {k}, but {type(model).__name__} has {len(places)} layers; give at most as many")
    return holders[places[-k] :]


def warm_restarts(lr: float, min_lr: float, epoch: int) -> float:
    """Rate of an epoch (from 0): min_lr + (lr - min_lr) (1 + cos(pi t / T)) / 2 in cycles of T = 1, 2, 4, ... epochs.

    Example:
        >>> [warm_restarts(1.0, 0.0, epoch) for epoch in range(3)]
        [1.0, 1.0, 0.5]
    """
    length = 2 ** ((epoch + 1).bit_length() - 1)
    return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * (epoch + 1 - length) / length)) / 2


def train_last(
    model: nn.Module, layers: list[nn.Module], retain: Samples, context: UnlearnContext, *, lr: float, min_lr: float,
    epochs: int, weight_decay: float, clip: float,
) -> nn.Module:  # fmt: skip
    """Run the loop that CF-k and EU-k share: train these layers alone on the retain set."""
    weights = [weight for layer in layers for weight in layer.parameters(recurse=False)]
    model.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_()
    model.train()
    optimizer = torch.optim.SGD(weights, lr=lr, momentum=0.9, weight_decay=weight_decay)
    changing: Changing = {"model": model, "optimizer": optimizer}
    for epoch, _, x, y in rounds(context, lambda: repeat({"retain": retain}, epochs), changing):
        set_rate(optimizer, warm_restarts(lr, min_lr, epoch))
        context.backward(F.cross_entropy(context.forward(model, x), y), optimizer)
        clipped_step(optimizer, clip)
    return model.requires_grad_()


@method("cf-k", task="classification", card=CARD)
def catastrophic_forgetting_k(
    model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext, *,
    k: Layers = 5, lr: MaxRate = 0.1, min_lr: MinRate = 0.005, epochs: Passes = 62, weight_decay: Decay = 5e-5,
    clip: Clip = 10.0,
) -> nn.Module:  # fmt: skip
    """Fine-tune the last k layers on the retain set with cross-entropy. The forget set is not used.

    Raises:
        RubError: the network has fewer than k layers.
    """
    return train_last(
        model, last_layers(model, k, "cf-k"), retain, context,
        lr=lr, min_lr=min_lr, epochs=epochs, weight_decay=weight_decay, clip=clip,
    )  # fmt: skip
