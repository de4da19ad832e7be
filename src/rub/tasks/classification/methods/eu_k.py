"""EU-k: draw the last k layers anew and train them on the retain set."""

import torch
from torch import nn

from rub.data.samples import Samples
from rub.registry import Card, method
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.classification.methods.cf_k import (
    DIFFERENCES,
    PAPER,
    UPSTREAM,
    Clip,
    Decay,
    Layers,
    MaxRate,
    MinRate,
    Passes,
    last_layers,
    train_last,
)  # fmt: skip

CARD = Card(
    paper=PAPER,
    equation="min CE_r over the weights of the last k layers, started anew: W ~ N(0, 2 / fan_in), b = 0; the others"
    " stay the original's",
    upstream=UPSTREAM,
    differences=(
        *DIFFERENCES,
        "batch normalisation among the last k layers keeps its weights and statistics, as upstream: exact unlearning of"
        " k layers would draw them anew, too",
    ),
)


@torch.no_grad()
def redraw(layers: list[nn.Module], generator: torch.Generator) -> None:
    """Draw the weights of convolutions and linear layers anew (Kaiming normal, fan-in), and set their biases to 0."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fresh = torch.empty(layer.weight.shape, dtype=layer.weight.dtype)
            layer.weight.copy_(nn.init.kaiming_normal_(fresh, generator=generator))
            if layer.bias is not None:
                layer.bias.zero_()


@method("eu-k", task="classification", card=CARD)
def exact_unlearning_k(
    model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext, *,
    k: Layers = 5, lr: MaxRate = 0.1, min_lr: MinRate = 0.005, epochs: Passes = 62, weight_decay: Decay = 5e-5,
    clip: Clip = 10.0,
) -> nn.Module:  # fmt: skip
    """Train the last k layers from the start on the retain set with cross-entropy. The forget set is not used.

    Raises:
        RubError: the network has fewer than k layers.
    """
    layers = last_layers(model, k, "eu-k")
    redraw(layers, context.generator("redraw"))
    return train_last(
        model, layers, retain, context,
        lr=lr, min_lr=min_lr, epochs=epochs, weight_decay=weight_decay, clip=clip,
    )  # fmt: skip
