"""Boundary Shrink: relabel every forget image with the class just across its nearest decision boundary."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rub.config.hyperparameters import Epochs, Rate, Weight
from rub.data.samples import Samples
from rub.registry import Card, method
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.classification.methods._steps import frozen

CARD = Card(
    paper="Chen et al., Boundary Unlearning, CVPR 2023, arXiv 2303.11570",
    equation="min_theta E_{D_u} CE(f_theta(x), y'), y' = argmax f_0(x + b sign(grad_x CE(f_0(x), y))),"
    " f_0 the original",
    upstream="OPTML-Group/Unlearn-Saliency a6e89fd, Classification/unlearn/boundary_sh.py",
    defaults={
        "lr": "1e-6: JingWu321/Scissorhands 73ae065 (CIFAR and class-wise SVHN); others search upwards from 1e-8",
        "epochs": "10: JingWu321/Scissorhands 73ae065",
        "bound": "0.1: upstream FGSM step, in the pixel range [0, 1]",
    },
    differences=(
        "the crossed point is clamped to [0, 1] and rounded to 1/255, as upstream",
        "y' is the frozen model's argmax there, as upstream: where FGSM does not cross a boundary, the"
        " true label stays",
    ),
)


def nearest_labels(original: nn.Module, x: Tensor, y: Tensor, bound: float, context: UnlearnContext) -> Tensor:
    """Return the frozen original's argmax (int64, (B,)) at the FGSM points of x (B, C, H, W) in [0, 1]."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(context.forward(original, leaf), y), leaf)
    point = (x + bound * gradient.sign()).clamp(0, 1).mul(255).round().div(255)
    with torch.no_grad():
        return context.forward(original, point).argmax(dim=1)


@method("boundary-shrink", task="classification", card=CARD)
def boundary_shrink(
    model: nn.Module,
    forget: Samples,
    retain: Samples,
    context: UnlearnContext,
    *,
    lr: Rate = 1e-6,
    epochs: Epochs = 10,
    bound: Weight = 0.1,
) -> nn.Module:
    """Train the forget set on the labels that the original gives across the nearest boundary. Retain is not used.

    Args:
        model: trainable copy of the original; changed in place.
        forget: D_u.
        retain: D_r, unused.
        context: batches, seed and steps.
        lr: learning rate of SGD (momentum .9, weight decay 5e-4), > 0.
        epochs: passes over the forget set, >= 1.
        bound: FGSM step b in the pixel range [0, 1], >= 0.

    Raises:
        Diverged: the loss is not finite.
    """
    original = frozen(model)
    model.train()
    optimizer = context.sgd(model, lr)
    for x, y in context.epochs(forget, epochs, {"model": model, "optimizer": optimizer}):
        nearest = nearest_labels(original, x, y, bound, context)
        context.descend(F.cross_entropy(context.forward(model, x), nearest), optimizer)
    return model
