"""l1-sparse: fine-tune on the retain set under an l1 penalty that fades."""

from itertools import repeat
from typing import Annotated

from torch import nn
from torch.nn import functional as F

from rub.config.hyperparameters import Count, Epochs, Hyper, SgdRate, Weight
from rub.data.samples import Samples
from rub.registry import Card, method
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.classification.methods._steps import rounds

CARD = Card(
    paper="Jia et al., Model Sparsity Can Simplify Machine Unlearning, NeurIPS 2023, arXiv 2304.04934",
    equation="min_theta CE_r + a_t ||theta||_1, a_t = alpha (1 - t / (E - E_0)) and 0 in the last E_0 epochs",
    upstream="OPTML-Group/Unlearn-Sparse 80ba55d, unlearn/FT.py (FT_l1)",
    differences=(
        "the default alpha, see above",
        "the penalty covers all parameters, batch normalisation and biases included, and nothing is"
        " pruned, as upstream",
    ),
)


def l1_weight(alpha: float, epoch: int, epochs: int, no_l1_epochs: int) -> float:
    """a_t = alpha (1 - t / (E - E_0)) for epoch t (from 0) of E, and 0 in the last E_0 epochs.

    Example:
        >>> [l1_weight(1.0, epoch, 5, 1) for epoch in range(5)]
        [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    active = epochs - no_l1_epochs
    return alpha * (1 - epoch / active) if epoch < active else 0.0


@method("l1-sparse", task="classification", card=CARD)
def l1_sparse(
    model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext, *,
    alpha: Annotated[Weight, Hyper("weight of the penalty in the first epoch",
        source="JingWu321/Scissorhands 73ae065 (CIFAR-10 and class-wise SVHN); upstream's 0.2 destroys the"
        " model")] = 1e-4,
    lr: Annotated[SgdRate, Hyper(source="upstream arg_parser unlearn_lr and Scissorhands 73ae065")] = 0.01,
    epochs: Annotated[Epochs, Hyper("E, passes over the retain set",
        source="upstream arg_parser unlearn_epochs and Scissorhands 73ae065")] = 10,
    no_l1_epochs: Annotated[Count, Hyper("E_0, last epochs without the penalty", source="upstream arg_parser")] = 0,
) -> nn.Module:  # fmt: skip
    """Fine-tune on the retain set with a fading l1 penalty on all weights. The forget set is not used."""
    model.train()
    optimizer = context.sgd(model, lr)
    for batch in rounds(context, lambda: repeat({"retain": retain}, epochs), {"model": model, "optimizer": optimizer}):
        loss = F.cross_entropy(context.forward(model, batch.x), batch.y)
        weight = l1_weight(alpha, batch.epoch, epochs, no_l1_epochs)
        if weight > 0:
            loss = loss + weight * sum(parameter.abs().sum() for parameter in model.parameters())
        context.descend(loss, optimizer)
    return model
