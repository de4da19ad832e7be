"""Boundary Shrink: relabel every forget image with the class just across its nearest decision boundary."""

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rub.config.hyperparameters import Epochs, Hyper, Rate, Weight
from rub.data.samples import Samples
from rub.models.weights import frozen
from rub.registry import Card, method
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.classification.methods._steps import BatchNorm, input_gradient, train_mode

CARD = Card(
    paper="Chen et al., Boundary Unlearning, CVPR 2023, arXiv 2303.11570",
    equation="min_theta E_{D_u} CE(f_theta(x), y'), y' = argmax f_0(x + b sign(grad_x CE(f_0(x), y))),"
    " f_0 the original",
    upstream="TY-LEE-KR/Boundary-Unlearning-Code 86c2f1f, boundary_unlearning.py (the authors'); also"
    " OPTML-Group/Unlearn-Saliency a6e89fd, Classification/unlearn/boundary_sh.py",
    differences=(
        "no weight decay, as the authors; Unlearn-Saliency has 5e-4",
        "batch size is the experiment's; the authors' 64, with which an epoch has more steps",
        "batch normalisation in train mode, as upstream: its statistics drift to the forget set, see `batch_norm`",
        "the crossed point is clamped to [0, 1] and rounded to 1/255, as upstream",
        "y' is the frozen model's argmax there, as upstream: where FGSM does not cross a boundary, the"
        " true label stays",
    ),
    version=2,
)


def nearest_labels(original: nn.Module, x: Tensor, y: Tensor, bound: float, context: UnlearnContext) -> Tensor:
    """Frozen original's argmax (int64, (B,)) at the FGSM points of x (B, C, H, W) in [0, 1]."""
    _, gradient = input_gradient(original, x, y, context)
    point = (x + bound * gradient.sign()).clamp(0, 1).mul(255).round().div(255)
    with torch.no_grad():
        return context.forward(original, point).argmax(dim=1)


@method("boundary-shrink", task="classification", card=CARD)
def boundary_shrink(
    model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext, *,
    lr: Annotated[Rate, Hyper("learning rate of SGD (momentum .9, no weight decay)",
        source="the authors' code and paper; Scissorhands 73ae065 has 1e-6, others search upwards from 1e-8")] = 1e-5,
    epochs: Annotated[Epochs, Hyper("passes over the forget set", source="the authors' code and paper")] = 10,
    bound: Annotated[Weight, Hyper("FGSM step b in the pixel range [0, 1]", source="upstream")] = 0.1,
    batch_norm: Annotated[BatchNorm, Hyper(source="the authors' code calls unlearn_model.train()")] = "train",
) -> nn.Module:  # fmt: skip
    """Train the forget set on the labels that the original gives across the nearest boundary. Retain is not used."""
    original = frozen(model)
    train_mode(model, batch_norm)
    optimizer = context.sgd(model, lr, weight_decay=0.0)
    for x, y in context.epochs(forget, epochs, {"model": model, "optimizer": optimizer}):
        nearest = nearest_labels(original, x, y, bound, context)
        context.descend(F.cross_entropy(context.forward(model, x), nearest), optimizer)
    return model
