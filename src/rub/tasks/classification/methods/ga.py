"""GA: climb the loss of the forget set."""

from torch import nn
from torch.nn import functional as F

from rub.config.hyperparameters import Epochs, Rate
from rub.data.samples import Samples
from rub.registry import Card, method
from rub.tasks.classification.context import UnlearnContext

CARD = Card(
    paper="Thudi et al., Unrolling SGD: Understanding Factors Influencing Machine Unlearning, EuroS&P 2022,"
    " arXiv 2109.13398",
    equation="max_theta E_{D_u} CE(f_theta(x), y), started from the original weights",
    upstream="OPTML-Group/Unlearn-Sparse 80ba55d, unlearn/GA.py",
    defaults={
        "lr": "1e-4: Unlearn-Sparse; also Scissorhands 73ae065."
        " Its maintainers advise 5e-4 to 1e-3 where that is too weak",
        "epochs": "5: Unlearn-Sparse and Scissorhands 73ae065",
    },
    differences=("weight decay keeps shrinking weights while the loss climbs, as upstream",),
)


@method("ga", task="classification", card=CARD)
def gradient_ascent(
    model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext, *, lr: Rate = 1e-4, epochs: Epochs = 5
) -> nn.Module:
    """Ascend the cross-entropy of the forget set: min_theta -CE_u. The retain set is not used.

    Args:
        model: trainable copy of the original; changed in place.
        forget: D_u.
        retain: D_r, unused.
        context: batches, seed and steps.
        lr: learning rate of SGD (momentum .9, weight decay 5e-4), > 0.
        epochs: passes over the forget set, >= 1.

    Raises:
        Diverged: the loss is not finite.
    """
    model.train()
    optimizer = context.sgd(model, lr)
    for x, y in context.epochs(forget, epochs, {"model": model, "optimizer": optimizer}):
        context.descend(-F.cross_entropy(context.forward(model, x), y), optimizer)
    return model
