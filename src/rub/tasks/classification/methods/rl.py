"""RL: train the forget set on random labels, and the retain set on its own."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rub.config.hyperparameters import Epochs, Hyper, SgdRate
from rub.data.samples import Samples, concatenate
from rub.registry import Card, method
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.classification.methods._steps import Parts, rounds

Mixing = Literal["sequential", "mixed"]

CARD = Card(
    paper="Golatkar et al., Eternal Sunshine of the Spotless Net, CVPR 2020, arXiv 1911.04933 (as the RL baseline)",
    equation="min_theta E_{D_u} CE(f_theta(x), y') + E_{D_r} CE(f_theta(x), y), y' ~ U{0..C-1} (SalUn, Eq. 6)",
    upstream="OPTML-Group/Unlearn-Saliency a6e89fd, Classification/unlearn/RL.py",
    differences=(
        "labels cover all C classes of the data set; upstream draws from --num_classes, 10 unless it is given",
        "one algorithm for every data set, chosen by `mixing`; upstream switches with the data set's name",
        "no warm-up: upstream's uses an undefined index and ramps to the training rate",
    ),
)


def random_labels(labels: Tensor, num_classes: int, generator: torch.Generator, exclude_true: bool) -> Tensor:
    """Labels drawn uniformly from {0..C-1}, or from the C-1 wrong ones; int64, same shape (N,).

    Example:
        >>> random_labels(torch.tensor([0, 1]), 2, torch.Generator(), exclude_true=True).tolist()
        [1, 0]
    """
    if exclude_true:
        shift = torch.randint(1, num_classes, labels.shape, generator=generator)
        return (labels + shift) % num_classes
    return torch.randint(0, num_classes, labels.shape, generator=generator)


def relabel_and_train(
    model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext,
    descend: Callable[[Tensor, torch.optim.Optimizer], object], *, lr: float, epochs: int, mixing: Mixing,
    exclude_true: bool,
) -> nn.Module:  # fmt: skip
    """Run the loop that RL and SalUn share; they differ in `descend`, which takes one step down a loss."""

    def parts() -> Iterator[Parts]:
        generator = context.generator("labels")
        for _ in range(epochs):
            fresh = random_labels(forget.labels, context.num_classes, generator, exclude_true)
            relabelled = replace(forget, labels=fresh)
            mixed = mixing == "mixed"
            yield {"all": concatenate([relabelled, retain])} if mixed else {"forget": relabelled, "retain": retain}

    model.train()
    optimizer = context.sgd(model, lr)
    for batch in rounds(context, parts, {"model": model, "optimizer": optimizer}):
        descend(F.cross_entropy(context.forward(model, batch.x), batch.y), optimizer)
    return model


@method("rl", task="classification", card=CARD)
def random_label(
    model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext, *,
    lr: Annotated[SgdRate, Hyper(source="upstream arg_parser unlearn_lr")] = 0.01,
    epochs: Annotated[Epochs, Hyper("passes over both sets", source="upstream arg_parser unlearn_epochs")] = 10,
    mixing: Annotated[Mixing, Hyper(
        "`sequential`: all forget batches, then all retain batches; `mixed`: shuffled together",
        source="upstream on CIFAR-10 and SVHN; upstream on CIFAR-100 and Tiny-ImageNet is mixed")] = "sequential",
    exclude_true: Annotated[bool, Hyper("draw among the wrong labels only",
        source="upstream may draw the true label (probability 1/C)")] = False,
) -> nn.Module:  # fmt: skip
    """Train the forget set on fresh random labels and the retain set on its own, in every epoch."""
    return relabel_and_train(
        model, forget, retain, context, context.descend,
        lr=lr, epochs=epochs, mixing=mixing, exclude_true=exclude_true,
    )  # fmt: skip
