"""A method of your own, in one file: fine-tune on retain while smoothing the labels of the forget set.

    rub run quick --plugin examples/my_method.py

It then stands in every table beside the methods that ship with RUB, measured and attacked in the same way.
"""

from typing import Annotated

from torch import nn
from torch.nn import functional as F

import rub
from rub.data.samples import Samples
from rub.tasks.classification.context import UnlearnContext

CARD = rub.Card(
    paper="an example, not a published method",
    equation="min_theta E_{D_r} CE(f_theta(x), y) + weight * E_{D_u} CE(f_theta(x), (1 - s) onehot(y) + s / C)",
)


@rub.method("my-method", task="classification", card=CARD)
def my_method(
    model: nn.Module,
    forget: Samples,
    retain: Samples,
    context: UnlearnContext,
    *,
    lr: Annotated[float, rub.Hyper("learning rate of SGD", source="that of ft, not tuned", gt=0)] = 0.01,
    epochs: Annotated[int, rub.Hyper("passes over the retain set", source="enough on digits, not tuned", ge=1)] = 5,
    smoothing: Annotated[
        float,
        rub.Hyper("s, share of a label that is spread over all classes", source="the target is uniform", gt=0, le=1),
    ] = 1.0,
    weight: Annotated[float, rub.Hyper("weight of the forget term", source="both terms count the same", ge=0)] = 1.0,
) -> nn.Module:
    """Fine-tune on retain with its labels and on forget with smoothed ones.

    The first four arguments are the same for every method of a task: a trainable copy of the original, the data to
    forget and to keep, and a context, from which alone random numbers, batches and steps come, so that results repeat.
    The keyword-only ones are the hyperparameters: `rub show my-method --plugin FILE` prints them, and a suite or
    ``--set methods.my-method.epochs=2`` changes them.
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
