"""Controls of the classification task: models that are no result of unlearning, measured beside those that are."""

from typing import Annotated

import torch
from torch import Tensor, nn

from rub.config.hyperparameters import Hyper, PositiveInt
from rub.data.samples import Samples
from rub.errors import RubError
from rub.models.network import batch_norms, head
from rub.registry import Card, control
from rub.tasks.classification.context import UnlearnContext

PAPER = "a control of this benchmark, not a method"
WHOLE_CLASSES = ("needs a forget set of whole classes",)


def last_layer(model: nn.Module, context: UnlearnContext, name: str) -> tuple[Tensor, Tensor | None]:
    """Weights (C, ...) and biases (C,) of the model's last layer, one row for each class; None without biases.

    Raises:
        RubError: no class is forgotten as a whole, or the model has no last layer with a row for each class.
    """
    if not context.forget_classes:
        raise RubError(f"{name} needs forgotten classes: use a class-wise forget set, or leave {name} out")
    layer = head(model)
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    if not isinstance(weight, Tensor) or len(weight) != context.num_classes:
        raise RubError(f"{name}: {type(model).__name__} has no last layer with one row for each class")
    return weight, bias if isinstance(bias, Tensor) else None


def with_biases(bias: Tensor | None, model: nn.Module, name: str) -> Tensor:
    """The biases themselves.

    Raises:
        RubError: there are none.
    """
    if bias is None:
        raise RubError(f"{name}: the last layer of {type(model).__name__} has no bias that could be lowered")
    return bias


@control(
    "sham",
    task="classification",
    card=Card(
        paper=PAPER,
        equation="z_c(x) <- z_c(x) + shift for every forgotten class c; nothing else changes",
        differences=WHOLE_CLASSES,
    ),
)
@torch.no_grad()
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
    _, bias = last_layer(model, context, "sham")
    with_biases(bias, model, "sham")[list(context.forget_classes)] += shift
    return model


@control(
    "zero-row",
    task="classification",
    card=Card(
        paper=PAPER,
        equation="w_c <- 0, b_c <- bias for every forgotten class c, (w_c, b_c) its row of the last layer",
        differences=WHOLE_CLASSES,
    ),
)
@torch.no_grad()
def zero_row(
    model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext, *,
    bias: Annotated[float, Hyper("the forgotten classes' logits, whatever the image", source="that of sham's shift",
        lt=0)] = -50.0,
) -> nn.Module:  # fmt: skip
    """Delete the forgotten classes from the last layer: w_c <- 0, b_c <- bias; everything below it stays.

    Raises:
        RubError: the forget set is not made of whole classes, or the model's last layer has no bias.
    """
    weight, biases = last_layer(model, context, "zero-row")
    rows = list(context.forget_classes)
    with_biases(biases, model, "zero-row")[rows] = bias
    weight[rows] = 0
    return model


@control(
    "gauge",
    task="classification",
    card=Card(
        paper=PAPER,
        equation="(w_j, b_j) <- (w_j - w_c, b_j - b_c) for every class j, c the first forgotten class: the softmax is"
        " the same for every x",
        differences=WHOLE_CLASSES,
    ),
)
@torch.no_grad()
def gauge(model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext) -> nn.Module:
    """Subtract the first forgotten class's row of the last layer from every row: the same function, other weights.

    Raises:
        RubError: the forget set is not made of whole classes, or the model's last layer has no row for each class.
    """
    weight, bias = last_layer(model, context, "gauge")
    for rows in (weight,) if bias is None else (weight, bias):
        rows.sub_(rows[context.forget_classes[0]].clone())
    return model


@control(
    "drift",
    task="classification",
    card=Card(
        paper=PAPER,
        equation="mu, sigma^2 <- .9 (mu, sigma^2) + .1 (those of a batch of D_u), batch by batch, in every batch"
        " normalisation; no weight moves",
        differences=("the momentum is each layer's own; .1 is torch's default",),
    ),
)
@torch.no_grad()
def drift(
    model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext, *,
    passes: Annotated[PositiveInt, Hyper("passes over the forget set in train mode",
        source="as many epochs as forget-only methods have in the suites that two cores run")] = 2,
) -> nn.Module:  # fmt: skip
    """Pass the forget set through the network in train mode, without a step: what batch normalisation does alone.

    Raises:
        RubError: the network has no batch normalisation that keeps running statistics.
    """
    if not batch_norms(model):
        raise RubError(f"drift: {type(model).__name__} has no batch normalisation that could drift; leave drift out")
    model.train()
    for x, _ in context.epochs(forget, passes, {"model": model}):
        context.forward(model, x)
    return model
