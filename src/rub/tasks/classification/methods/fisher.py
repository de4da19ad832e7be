"""Fisher forgetting: noise on every weight, the more the less the retain set needs it."""

from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from rub.config.hyperparameters import Hyper, PositiveInt, Weight
from rub.data.samples import Samples
from rub.models.network import head
from rub.registry import Card, method
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.classification.methods._steps import require_finite
from rub.tasks.classification.methods.iu import block_rows, drawn, flat, sample_gradients

CARD = Card(
    paper="Golatkar et al., Eternal Sunshine of the Spotless Net: Selective Forgetting in Deep Networks, CVPR 2020,"
    " arXiv 1911.04933",
    equation="theta <- theta + N(0, alpha min(1 / F, 1e3)), F = E_{D_r} sum_y p(y|x) (grad -log p(y|x))^2, the"
    " variance averaged over a weight's inputs; last layer: min(1 / F, 1e2), and it and vectors 10 alpha",
    upstream="AdityaGolatkar/SelectiveForgetting 6bf8e6f, main.ipynb; the same in shash42/Evaluating-Inexact-Unlearning"
    " e315401, src/golatkar.py, and if-loops/selective-synaptic-dampening 77161cc, where the facts were read",
    differences=(
        "`last_layer`: where whole classes are forgotten, the code sets their rows of the last layer to N(0, 1e-3),"
        " which is in no equation of the paper: `erase`; without, `noise`",
        "the last layer is the network's head; upstream takes every weight whose first size is the number of classes",
        "F from at most `samples` retain images, where that is given; upstream takes all of them, C passes for each",
        "no augmentation, eval mode, float32; batch normalisation's statistics stay, as upstream",
    ),
)


def fisher_information(model: nn.Module, samples: Samples, context: UnlearnContext) -> dict[str, Tensor]:
    """F by parameter name: E sum_y p(y|x) (grad -log p(y|x))^2, the diagonal of the Fisher matrix; eval mode."""
    model.eval()
    parameters = dict(model.named_parameters())
    total = torch.zeros_like(flat(parameters).detach())
    rows = min(block_rows(total), context.batch_size)
    batches = context.batches(samples, context.generator(""), batch_size=rows, shuffle=False, augment=False)
    for number, (x, _) in enumerate(batches):
        with torch.no_grad():
            likely = model(x).softmax(1)
        for label, p in enumerate(likely.T):
            total += p @ sample_gradients(model, x, torch.full((len(x),), label, device=x.device)).square()
        context.progress(min((number + 1) * rows, len(samples)), len(samples), "Fisher")
    parts = torch.split(total / len(samples), [parameter.numel() for parameter in parameters.values()])
    return {name: part.view_as(parameters[name]) for name, part in zip(parameters, parts, strict=True)}


def variance(fisher: Tensor, alpha: float, is_last: bool) -> Tensor:
    """Variance of the noise on a weight, of the shape of its F.

    Example:
        >>> variance(torch.tensor([[1.0, 0.25], [0.0, 0.0]]), 1.0, False)
        tensor([[   2.5000,    2.5000],
                [1000.0000, 1000.0000]])
    """
    inverse = (1 / (fisher + 1e-8)).clamp(max=1e2 if is_last else 1e3)
    if inverse.ndim > 1:
        inverse = inverse.mean(dim=1, keepdim=True).expand_as(fisher)
    return alpha * inverse * (10 if is_last or fisher.ndim == 1 else 1)


@method("fisher", task="classification", card=CARD)
def fisher_forgetting(
    model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext, *,
    alpha: Annotated[Weight, Hyper("scale of the variance", source="upstream, what is applied")] = 1e-6,
    samples: Annotated[PositiveInt | None, Hyper("most retain images that make F; None: all",
        source="upstream")] = None,
    last_layer: Annotated[Literal["erase", "noise"], Hyper("`erase`: the rows of forgotten classes are set to noise"
        " about 0 of variance 1e-3; `noise`: they get theirs like all others", source="upstream")] = "erase",
) -> nn.Module:  # fmt: skip
    """Add Gaussian noise to the weights, of a variance that falls with their Fisher information on the retain set.

    Raises:
        Diverged: a weight is not finite after it.
    """
    fisher = fisher_information(model, drawn(retain, context, samples or len(retain)), context)
    draw, layer = context.generator("noise"), head(model)
    last = set() if layer is None else {id(weight) for weight in layer.parameters()}
    erased = list(context.forget_classes) if last_layer == "erase" else []
    with torch.no_grad():
        for name, weight in model.named_parameters():
            spread = variance(fisher[name], alpha, id(weight) in last)
            if id(weight) in last:
                weight[erased], spread[erased] = 0, 1e-3
            weight.add_(spread.sqrt() * torch.randn(weight.shape, generator=draw).to(weight.device))
    require_finite(model, "fisher")
    return model
