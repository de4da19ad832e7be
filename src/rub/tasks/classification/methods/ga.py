"""GA: climb the loss of the forget set."""

from typing import Annotated

from torch import nn
from torch.nn import functional as F

from rub.config.hyperparameters import Epochs, Hyper, SgdRate
from rub.data.samples import Samples
from rub.registry import Card, method
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.classification.methods._steps import BatchNorm, train_mode

CARD = Card(
    paper="Thudi et al., Unrolling SGD: Understanding Factors Influencing Machine Unlearning, EuroS&P 2022,"
    " arXiv 2109.13398",
    equation="max_theta E_{D_u} CE(f_theta(x), y), started from the original weights",
    upstream="OPTML-Group/Unlearn-Sparse 80ba55d, unlearn/GA.py",
    differences=(
        "weight decay keeps shrinking weights while the loss climbs, as upstream",
        "batch normalisation in train mode, as upstream: its statistics drift to the forget set, see `batch_norm`",
    ),
)


@method("ga", task="classification", card=CARD)
def gradient_ascent(
    model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext, *,
    lr: Annotated[SgdRate, Hyper(source="Unlearn-Sparse; also Scissorhands 73ae065. Its maintainers advise 5e-4 to 1e-3"
        " where that is too weak")] = 1e-4,
    epochs: Annotated[Epochs, Hyper("passes over the forget set",
        source="Unlearn-Sparse and Scissorhands 73ae065")] = 5,
    batch_norm: Annotated[BatchNorm, Hyper(source="upstream calls model.train()")] = "train",
) -> nn.Module:  # fmt: skip
    """Ascend the cross-entropy of the forget set: min_theta -CE_u. The retain set is not used."""
    train_mode(model, batch_norm)
    optimizer = context.sgd(model, lr)
    for x, y in context.epochs(forget, epochs, {"model": model, "optimizer": optimizer}):
        context.descend(-F.cross_entropy(context.forward(model, x), y), optimizer)
    return model
