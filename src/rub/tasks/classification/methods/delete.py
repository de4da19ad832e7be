"""DELETE: distil the original with the true class struck out, on the forget set alone."""

from typing import Annotated

import torch
from torch import Tensor, nn

from rub.config.hyperparameters import Epochs, Hyper, Rate
from rub.data.samples import Samples
from rub.models.weights import frozen
from rub.registry import Card, method
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.classification.methods._steps import BatchNorm, distillation, train_mode

CARD = Card(
    paper="Zhou et al., Decoupled Distillation to Erase: A General Unlearning Method for Any Class-centric Tasks,"
    " CVPR 2025",
    equation="min_theta E_{D_u} KL(softmax(z_0 with z_0[y] = -1e10) || softmax(f_theta(x))), z_0 the original's logits",
    upstream="shaaaaron/DELETE 60018a1, method/delete.py",
    differences=(
        "the KL is that of upstream's code, target first (its kl_div receives the student's log-probabilities)",
        "only the sample's own class is struck out, as upstream:"
        " jointly forgotten classes may receive each other's mass",
        "batch normalisation in train mode, as upstream but for one class of Tiny-ImageNet, see `batch_norm`",
    ),
)


def without_true_class(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (B, C) with each row's label entry at -1e10, so that its softmax there is exactly 0.

    Example:
        >>> without_true_class(torch.zeros(1, 3), torch.tensor([1])).softmax(1).tolist()
        [[0.5, 0.0, 0.5]]
    """
    return logits.scatter(1, labels[:, None], -1e10)


@method("delete", task="classification", card=CARD)
def delete(
    model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext, *,
    lr: Annotated[Rate, Hyper("learning rate of SGD (momentum .9, no weight decay)",
        source="upstream on CIFAR-10 (CIFAR-100 and Tiny-ImageNet 5e-5)")] = 1e-4,
    epochs: Annotated[Epochs, Hyper("passes over the forget set", source="upstream")] = 20,
    batch_norm: Annotated[BatchNorm, Hyper(
        source="upstream; for a single class of Tiny-ImageNet it is `eval` there")] = "train",
) -> nn.Module:  # fmt: skip
    """Match the original's distribution over the other classes on the forget set. Retain is not used."""
    teacher = frozen(model)
    train_mode(model, batch_norm)
    optimizer = context.sgd(model, lr, weight_decay=0.0)
    for x, y in context.epochs(forget, epochs, {"model": model, "optimizer": optimizer}):
        with torch.no_grad():
            target = without_true_class(context.forward(teacher, x), y)
        context.descend(distillation(context.forward(model, x), target), optimizer)
    return model
