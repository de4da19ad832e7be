"""Boundary Expand: train the forget set on a class that does not exist, then drop that class."""

from typing import Annotated

import torch
from torch import nn
from torch.nn import functional as F

from rub.config.hyperparameters import Epochs, Hyper, Rate
from rub.data.samples import Samples
from rub.errors import RubError
from rub.models.network import head, outputs
from rub.registry import Card, method
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.classification.methods._steps import BatchNorm, train_mode

CARD = Card(
    paper="Chen et al., Boundary Unlearning, CVPR 2023, arXiv 2303.11570",
    equation="min_{theta, w, b} E_{D_u} CE([f_theta(x), w.phi_theta(x) + b], C), phi the inputs of the last layer; then"
    " f_theta alone",
    upstream="TY-LEE-KR/Boundary-Unlearning-Code 86c2f1f, boundary_unlearning.py (the authors'); also"
    " OPTML-Group/Unlearn-Saliency 3152cfe, Classification/unlearn/boundary_ex.py",
    differences=(
        "the extra class is dropped at the end, as the authors; Unlearn-Saliency evaluates with C + 1 outputs, and"
        " takes C from --num_classes, 10 unless it is given",
        "no weight decay, as the authors; Unlearn-Saliency has 5e-4",
        "batch size is the experiment's; the authors' 64, with which an epoch has more steps",
        "batch normalisation in train mode, as upstream: its statistics drift to the forget set, see `batch_norm`",
    ),
)


@method("boundary-expand", task="classification", card=CARD)
def boundary_expand(
    model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext, *,
    lr: Annotated[Rate, Hyper("learning rate of SGD (momentum .9, no weight decay)",
        source="the authors' code; Scissorhands 73ae065 has 1e-6, others search upwards from 1e-8")] = 1e-5,
    epochs: Annotated[Epochs, Hyper("passes over the forget set", source="the authors' code")] = 10,
    batch_norm: Annotated[BatchNorm, Hyper(source="the authors' code calls widen_model.train()")] = "train",
) -> nn.Module:  # fmt: skip
    """Train the forget set on one more class, whose row is dropped at the end. Retain is not used.

    Raises:
        RubError: the network's last layer is not linear.
    """
    layer = head(model)
    if not isinstance(layer, nn.Linear):
        raise RubError(f"boundary-expand: {type(model).__name__} has no linear last layer that could get one more row")
    extra = nn.Linear(layer.in_features, 1, device="meta").to_empty(device="cpu")
    nn.init.xavier_normal_(extra.weight, generator=context.generator("extra"))
    nn.init.zeros_(extra.bias)
    extra = extra.to(layer.weight)
    train_mode(model, batch_norm)
    optimizer = torch.optim.SGD([*model.parameters(), *extra.parameters()], lr=lr, momentum=0.9)
    for x, _ in context.epochs(forget, epochs, {"model": model, "extra": extra, "optimizer": optimizer}):
        with context.autocast():
            made = outputs(model, x)
            logits = torch.cat([made.logits, extra(made.features)], dim=1).float()
        context.descend(F.cross_entropy(logits, torch.full((len(x),), layer.out_features, device=x.device)), optimizer)
    return model
