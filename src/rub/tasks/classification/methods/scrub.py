"""SCRUB: a student that leaves its teacher on the forget set and stays with it on the retain set."""

from collections.abc import Iterator
from typing import Annotated

import torch
from torch import nn
from torch.nn import functional as F

from rub.config.hyperparameters import Count, Epochs, Hyper, Positive, SgdRate, Weight
from rub.data.samples import Samples
from rub.models.weights import frozen
from rub.registry import Card, method
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.classification.methods._steps import Parts, distillation, rounds
from rub.training.context import set_rate

CARD = Card(
    paper="Kurmanji et al., Towards Unbounded Machine Unlearning, NeurIPS 2023, arXiv 2302.09880",
    equation="max-step: -d(x) on D_u; min-step: gamma CE_r + alpha d(x) on D_r; d = T^2 KL(teacher/T || student/T)",
    upstream="meghdadk/SCRUB 98ffb11, thirdparty/repdistiller/helper/loops.py (train_distill) and its MIA notebook",
    differences=(
        "forget and retain batches have the same size; upstream's large-scale notebook uses 128 and 32",
        "no stochastic weight average: upstream keeps one but evaluates the student",
        "no rewinding (SCRUB+R): it needs a validation set of the forgotten distribution",
    ),
)


def decayed_rate(lr: float, epoch: int, decay_epochs: tuple[int, ...], decay: float) -> float:
    """Decayed rate lr * decay^(number of decay epochs already passed), epochs counted from 0.

    Example:
        >>> [decayed_rate(1.0, epoch, (2, 3), 0.5) for epoch in range(4)]
        [1.0, 1.0, 0.5, 0.25]
    """
    return float(lr * decay ** sum(epoch >= start for start in decay_epochs))


@method("scrub", task="classification", card=CARD)
def scrub(
    model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext, *,
    lr: Annotated[SgdRate, Hyper(source="MIA notebook")] = 5e-4,
    epochs: Annotated[Epochs, Hyper("rounds; each ends with a min-step epoch", source="MIA notebook")] = 5,
    msteps: Annotated[Count, Hyper("rounds that begin with a max-step epoch", source="MIA notebook")] = 3,
    gamma: Annotated[Weight, Hyper("weight of the retain cross-entropy",
        source="MIA notebook (large-scale notebook: 0.99)")] = 1.0,
    alpha: Annotated[Weight, Hyper("weight of the retain distillation",
        source="MIA notebook (large-scale notebook: 0.001)")] = 0.5,
    temperature: Annotated[Positive, Hyper("T of the distillation", source="MIA notebook")] = 4.0,
    decay_epochs: Annotated[tuple[int, ...], Hyper("numbers of rounds after which the rate is multiplied by `decay`",
        source="MIA notebook")] = (3, 5, 9),
    decay: Annotated[Positive, Hyper("factor of the learning rate", source="the notebook's lr_decay_rate")] = 0.1,
) -> nn.Module:  # fmt: skip
    """Alternate: move away from the original on the forget set, then stay with it and the labels on the retain set."""
    teacher = frozen(model)
    model.train()
    optimizer = context.sgd(model, lr)

    def parts() -> Iterator[Parts]:
        for epoch in range(epochs):
            yield {"forget": forget, "retain": retain} if epoch < msteps else {"retain": retain}

    for epoch, part, x, y in rounds(context, parts, {"model": model, "optimizer": optimizer}):
        set_rate(optimizer, decayed_rate(lr, epoch, decay_epochs, decay))
        with torch.no_grad():
            reference = context.forward(teacher, x)
        student = context.forward(model, x)
        divergence = distillation(student, reference, temperature)
        keep = gamma * F.cross_entropy(student, y) + alpha * divergence
        context.descend(-divergence if part == "forget" else keep, optimizer)
    return model
