"""FT: fine-tune on the retain set and rely on forgetting."""

from typing import Annotated

from torch import nn
from torch.nn import functional as F

from rub.config.hyperparameters import Epochs, Hyper, SgdRate
from rub.data.samples import Samples
from rub.registry import Card, method
from rub.tasks.classification.context import UnlearnContext

CARD = Card(
    paper="Warnecke et al., Machine Unlearning of Features and Labels, NDSS 2023, arXiv 2108.11577 (as FT)",
    equation="min_theta E_{D_r} CE(f_theta(x), y), started from the original weights",
    upstream="OPTML-Group/Unlearn-Saliency a6e89fd, Classification/unlearn/FT.py",
    differences=(
        "the learning rate is constant: upstream's milestones 91 and 136 are never reached within its 10 epochs",
        "every epoch ends on the last weights: upstream does the same for unlearning",
    ),
)


@method("ft", task="classification", card=CARD)
def fine_tune(
    model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext, *,
    lr: Annotated[SgdRate, Hyper(source="upstream arg_parser unlearn_lr; also JingWu321/Scissorhands 73ae065 (CIFAR and"
        " class-wise SVHN)")] = 0.01,
    epochs: Annotated[Epochs, Hyper("passes over the retain set", source="upstream arg_parser unlearn_epochs")] = 10,
) -> nn.Module:  # fmt: skip
    """Fine-tune on the retain set with cross-entropy: min_theta CE_r. The forget set is not used."""
    model.train()
    optimizer = context.sgd(model, lr)
    for x, y in context.epochs(retain, epochs, {"model": model, "optimizer": optimizer}):
        context.descend(F.cross_entropy(context.forward(model, x), y), optimizer)
    return model
