"""JiT: flatten the network around every forget image."""

from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor, nn

from rub.config.hyperparameters import Epochs, Hyper, Positive, PositiveInt, Rate
from rub.data.samples import Samples
from rub.models.network import normalisation
from rub.registry import Card, method
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.classification.methods._steps import BatchNorm, train_mode
from rub.training.batches import Augmentation

CARD = Card(
    paper="Foster et al., Zero-Shot Machine Unlearning at Scale via Lipschitz Regularization, 2024 (later: An"
    " Information Theoretic Approach to Machine Unlearning), arXiv 2402.01401",
    equation="min_theta sum over a batch of D_u of (1/N) sum_{i=1..N} ||f_theta(x) - f(x + xi_i)||_2 / ||xi_i||_2,"
    " xi ~ N(0, sigma^2), no gradient through f(x + xi_i)",
    upstream="jwf40/Information-Theoretic-Unlearning f207655, src/lipschitz.py and forget_full_class_main.py",
    differences=(
        "every step has its own gradient; upstream never clears it, so that each adds to all before",
        "the loss is a sum over the batch, as upstream: the rate goes with the batch size, the experiment's (upstream"
        " 128)",
        "noise and distances where the network has normalised its images, and points clamped to the batch's range"
        " there, as upstream; no augmentation, as upstream; shuffled, upstream in file order",
        "train mode, dropout included, as upstream, whose networks have no batch normalisation: here it stays the"
        " original's, as the noise would move its statistics at every copy, see `batch_norm`",
    ),
)


def perturbed(x: Tensor, sigma: float, mean: Tensor, std: Tensor, draw: torch.Generator) -> Tensor:
    """Images x (B, C, H, W) with noise on their normalised values, clamped to the range of these in the batch."""
    values = (x - mean) / std
    noise = torch.randn(x.shape, generator=draw).to(x.device)
    return mean + std * torch.clamp(values + sigma * noise, values.min(), values.max())


@method("jit", task="classification", card=CARD)
def just_in_time(
    model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext, *,
    lr: Annotated[Rate, Hyper("eta, learning rate of SGD without momentum or decay",
        source="upstream, VGG-11, classes and random samples (ViT, classes: 1.5)")] = 3e-4,
    sigma: Annotated[Positive, Hyper("standard deviation of the noise, of normalised images",
        source="upstream, VGG-11, classes (random samples: 0.01; ViT, classes: 0.8)")] = 0.5,
    samples: Annotated[PositiveInt, Hyper("N, noisy copies of each image", source="upstream")] = 25,
    epochs: Annotated[Epochs, Hyper("passes over the forget set", source="upstream")] = 1,
    batch_norm: Annotated[BatchNorm, Hyper(source="upstream's networks have none")] = "eval",
) -> nn.Module:  # fmt: skip
    """Descend the change of the output per change of the input at the forget images. Retain is not used."""
    mean, std = normalisation(model)
    train_mode(model, batch_norm)
    optimizer = context.sgd(model, lr, momentum=0.0, weight_decay=0.0)
    draw, plain = context.generator("noise"), replace(context, augmentation=Augmentation(padding=0, flip=False))
    for x, _ in plain.epochs(forget, epochs, {"model": model, "optimizer": optimizer, "draw": draw}):
        here, loss = context.forward(model, x), torch.zeros((), device=x.device)
        for _ in range(samples):
            near = perturbed(x, sigma, mean, std, draw)
            with torch.no_grad():
                there = context.forward(model, near)
            change = ((near - x) / std).flatten(1).norm(dim=1)
            loss = loss + ((here - there).norm(dim=1) / change).sum() / samples
        context.descend(loss, optimizer)
    return model
