"""Controls of the classification task: models that are no result of unlearning, measured beside those that are."""

from typing import Annotated

import torch
from torch import Tensor, nn

from rub.config.hyperparameters import Hyper
from rub.data.samples import Samples
from rub.errors import RubError
from rub.models.network import head
from rub.registry import Card, control
from rub.tasks.classification.context import UnlearnContext

CARD = Card(
    paper="a control of this benchmark, not a method",
    equation="z_c(x) <- z_c(x) + shift for every forgotten class c; nothing else changes",
    upstream="",
    differences=("needs a forget set of whole classes",),
)


@control("sham", task="classification", card=CARD)
def sham(
    model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext, *,
    shift: Annotated[float, Hyper("what is added to the forgotten classes' logits",
        source="enough that no input within 16/255 recovers the class, while the class logit's AUC stays at"
        " 1", lt=0)] = -50.0,
) -> nn.Module:  # fmt: skip
    """Lower the forgotten classes' output biases and change nothing else: b_c <- b_c + shift.

    Raises:
        RubError: the forget set is not made of whole classes, or the model's last layer has no bias.
    """
    if not context.forget_classes:
        raise RubError("sham needs forgotten classes: use a class-wise forget set, or leave sham out")
    bias = getattr(head(model), "bias", None)
    if not isinstance(bias, Tensor):
        raise RubError(f"sham: the last layer of {type(model).__name__} has no bias that could be lowered")
    with torch.no_grad():
        bias[list(context.forget_classes)] += shift
    return model
