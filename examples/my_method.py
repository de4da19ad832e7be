"""A method of your own, in one file: fine-tune on retain while smoothing the labels of the forget set.

    rub run quick --plugin examples/my_method.py

It then stands in every table beside the methods that ship with RUB, measured and attacked in the same way.
"""

from typing import Annotated

from pydantic import Field
from torch import nn
from torch.nn import functional as F

import rub
from rub.data.samples import Samples
from rub.tasks.classification.context import UnlearnContext

CARD = rub.Card(
    paper="an example, not a published method",
    equation="min_theta E_{D_r} CE(f_theta(x), y) + weight * E_{D_u} CE(f_theta(x), (1 - s) onehot(y) + s / C)",
    defaults={
        "lr": "0.01: that of ft, not tuned",
        "epochs": "5: enough on digits, not tuned",
        "smoothing": "1.0: the target is uniform over all classes",
        "weight": "1.0: both terms count the same",
    },
)


@rub.method("my-method", task="classification", card=CARD)
def my_method(
    model: nn.Module,
    forget: Samples,
    retain: Samples,
    context: UnlearnContext,
    *,
    lr: Annotated[float, Field(gt=0)] = 0.01,
    epochs: Annotated[int, Field(ge=1)] = 5,
    smoothing: Annotated[float, Field(gt=0, le=1)] = 1.0,
    weight: Annotated[float, Field(ge=0)] = 1.0,
) -> nn.Module:
    """Fine-tune on retain with its labels and on forget with smoothed ones.

    The keyword-only arguments are the hyperparameters: `rub show my-method --plugin FILE` lists them with their ranges,
    and a suite or ``--set methods.my-method.epochs=2`` changes them.

    Args:
        model: a trainable copy of the original; changed in place.
        forget: D_u, the samples to forget.
        retain: D_r, the samples to keep.
        context: seed, batches, device and steps; draw all random numbers from it, and results repeat exactly.
        lr: learning rate of SGD (momentum .9, weight decay 5e-4), > 0.
        epochs: passes over the retain set, >= 1.
        smoothing: s, the share of a forget sample's label that is spread over all classes, in (0, 1].
        weight: of the forget term, >= 0.

    Raises:
        Diverged: the loss is not finite; the method's cells are then marked as failed, and the others go on.
    """
    model.train()
    optimizer = context.sgd(model, lr)
    to_forget = context.endless(forget, "my-method-forget")  # it is smaller than the retain set
    # What one step leaves to the next is kept in checkpoints: a run that was killed goes on where it was.
    for x, y in context.epochs(retain, epochs, {"model": model, "optimizer": optimizer, "to_forget": to_forget}):
        x_forget, y_forget = next(to_forget)
        keep = F.cross_entropy(context.forward(model, x), y)
        drop = F.cross_entropy(context.forward(model, x_forget), y_forget, label_smoothing=smoothing)
        context.descend(keep + weight * drop, optimizer)
    return model
