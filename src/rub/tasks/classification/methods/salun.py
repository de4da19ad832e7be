"""SalUn: random-label unlearning confined to the weights that are salient for the forget set."""

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rub.config.hyperparameters import Epochs, Fraction, Hyper, SgdRate
from rub.data.samples import Samples
from rub.registry import Card, method
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.classification.methods.rl import Mixing, relabel_and_train
from rub.training.saliency import MaskedStep, summed_gradients, top_mask

CARD = Card(
    paper="Fan et al., SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency, ICLR 2024,"
    " arXiv 2310.12508",
    equation="theta_u = m * theta + (1 - m) * theta_0, m = 1 on the top fraction k of |sum_{D_u} grad CE|;"
    " theta by RL (Eq. 6)",
    upstream="OPTML-Group/Unlearn-Saliency a6e89fd, Classification/generate_mask.py and unlearn/RL.py",
    differences=(
        "weights outside the mask stay exactly at theta_0 (upstream since PR 33 of February 2026; before, weight decay"
        " and momentum moved them)",
        "mask from the signed sum of batch gradients in eval mode (upstream since bc74947), ranked over all parameters",
        "exactly round(k P) weights are kept; ties go to the earlier weight",
        "labels cover all C classes of the data set; upstream draws from --num_classes, 10 unless it is given",
        "the mask covers parameters, not buffers: running statistics of batch normalisation move, as upstream",
    ),
)


def saliency_mask(model: nn.Module, forget: Samples, context: UnlearnContext, k: float) -> dict[str, Tensor]:
    """Bool masks by parameter name: True on the top fraction k of |G|, G = sum over forget batches of grad CE.

    The gradients are taken in eval mode over one augmented pass; the model is left in eval mode, unchanged.
    """
    model.eval()
    batches = context.batches(forget, context.generator("saliency"))
    losses = (F.cross_entropy(context.forward(model, x), y) for x, y in batches)
    total = summed_gradients(dict(model.named_parameters()), losses)
    return top_mask({name: gradient.abs() for name, gradient in total.items()}, k)


@method("salun", task="classification", card=CARD)
def salun(
    model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext, *,
    k: Annotated[Fraction, Hyper("fraction of weights that may move", source="upstream README")] = 0.5,
    lr: Annotated[SgdRate, Hyper(source="upstream README (CIFAR-10, 10 % random, 10 epochs); Scissorhands 73ae065:"
        " 5e-3, and 5e-2 for class-wise SVHN")] = 0.013,
    epochs: Annotated[Epochs, Hyper("passes over both sets", source="upstream README")] = 10,
    mixing: Annotated[Mixing, Hyper(
        "`sequential`: all forget batches, then all retain batches; `mixed`: shuffled together",
        source="upstream on CIFAR-10 and SVHN")] = "sequential",
    exclude_true: Annotated[bool, Hyper("draw among the wrong labels only",
        source="upstream may draw the true label (probability 1/C)")] = False,
) -> nn.Module:  # fmt: skip
    """Unlearn by random labels on the salient weights only; with k = 1 this is exactly RL."""
    step = MaskedStep(dict(model.named_parameters()), saliency_mask(model, forget, context, k))

    def descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        context.backward(loss, optimizer)
        step(optimizer)

    return relabel_and_train(
        model, forget, retain, context, descend, lr=lr, epochs=epochs, mixing=mixing, exclude_true=exclude_true
    )
