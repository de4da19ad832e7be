"""IU: one influence-function step, as the published code takes it and with the exact inverse of the Fisher matrix."""

from collections.abc import Iterator, Mapping
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from rub.config.hyperparameters import Hyper, Positive, PositiveInt
from rub.data.samples import Samples
from rub.registry import Card, method
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.classification.methods._steps import require_finite
from rub.training.saliency import gradients

PAPER = (
    "Izzo et al., Approximate Data Deletion from Machine Learning Models, AISTATS 2021, arXiv 2002.10077;"
    " Singh and Alistarh, WoodFisher, NeurIPS 2020, arXiv 2004.14340"
)
INFLUENCE = "v = 1/(n_f+n_r) sum_{D_u} grad CE - n_f/((n_f+n_r) n_r) sum_{D_r} grad CE"
UPSTREAM = "OPTML-Group/Unlearn-Sparse 80ba55d, unlearn/Wfisher.py"
ALWAYS = (
    "samples in a seeded order and no augmentation; upstream takes file order with random augmentation",
    "g_r comes from the retain set; the ImageNet branch of Unlearn-Saliency reads the forget set there",
)
CARD = Card(
    paper=PAPER,
    equation=f"theta <- theta + alpha k, {INFLUENCE}; k = v, o = g_1, and for i = 2, 3, ...: s = o.g_i,"
    " k <- k - (k.g_i)/(N+s) o, o <- o - s/(N+s) o, with g_i the gradient of retain sample i",
    upstream=UPSTREAM,
    differences=(
        "the formula is upstream's: o is never derived anew for a sample, so that k - v stays parallel to g_1, and k"
        " is all but v; iu-exact has the inverse that it stands for",
        *ALWAYS,
    ),
    version=2,
)
EXACT = Card(
    paper=PAPER,
    equation=f"theta <- theta + alpha F^-1 v, {INFLUENCE}, F = damping I + (1/m) sum_i g_i g_i^T over m retain samples",
    upstream=UPSTREAM,
    differences=(
        "F^-1 v is exact; upstream's recurrence (iu) leaves v almost as it is",
        "m is min(samples, n_r) and divides the sum; upstream divides by 1000 whatever it read",
        *ALWAYS,
    ),
)


def flat(parts: Mapping[str, Tensor], start: int = 0) -> Tensor:
    """Join tensors by name into one vector, keeping the first `start` dimensions."""
    return torch.cat([part.flatten(start) for part in parts.values()], dim=start)


def weighted_gradient(model: nn.Module, samples: Samples, context: UnlearnContext, weights: Tensor) -> Tensor:
    """sum_i w_i grad CE_i as one vector (P,); weights (N,). The model is in eval mode."""
    batches = context.batches(samples, context.generator(""), shuffle=False, augment=False)
    shares = torch.split(weights.to(context.device), context.batch_size)
    losses = (
        (F.cross_entropy(model(x), y, reduction="none") * share).sum()
        for (x, y), share in zip(batches, shares, strict=True)
    )
    parameters = dict(model.named_parameters())
    total = torch.zeros_like(flat(parameters))
    for found in gradients(parameters, losses):
        total += flat(found)
    return total


def sample_gradients(model: nn.Module, x: Tensor, y: Tensor, chunk: int = 32) -> Tensor:
    """Gradient of every sample's cross-entropy, (B, P), computed `chunk` samples at a time."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, weights, (image[None],))
        return F.cross_entropy(logits, label[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))
    rows = [flat(each(parameters, *part), 1) for part in zip(torch.split(x, chunk), torch.split(y, chunk), strict=True)]
    return torch.cat(rows)


def gradient_blocks(
    model: nn.Module, samples: Samples, context: UnlearnContext, rows: int, skip: int = 0
) -> Iterator[tuple[int, Tensor]]:
    """Yield (position of the first row, gradients (<= rows, P)) over the samples from position `skip` on."""
    rest = samples.select(torch.arange(skip, len(samples)))
    batches = context.batches(rest, context.generator(""), batch_size=rows, shuffle=False, augment=False)
    for number, (x, y) in enumerate(batches):
        yield skip + number * rows, sample_gradients(model, x, y)


def block_rows(vector: Tensor) -> int:
    """Number of gradients in a block: 1 GiB on a CPU, 4 GiB elsewhere, so that memory never grows with m."""
    return max(1, (2**30 if vector.device.type == "cpu" else 2**32) // (vector.element_size() * len(vector)))


def woodfisher(model: nn.Module, samples: Samples, context: UnlearnContext, v: Tensor, damping: float) -> Tensor:
    """(damping I + (1/m) G^T G)^-1 v exactly, G (m, P) the per-sample gradients, without a P x P matrix.

    Woodbury: k = (v - G^T c) / damping with (m damping I + G G^T) c = G v. The m x m matrix is filled block by block;
    blocks are computed again rather than kept, so at most two are in memory.
    """
    count, rows = len(samples), block_rows(v)
    gram = torch.zeros(count, count, dtype=torch.float64)
    projected = torch.zeros(count, dtype=torch.float64)
    for i, left in gradient_blocks(model, samples, context, rows):
        here = slice(i, i + len(left))
        gram[here, here] = (left @ left.T).double().cpu()
        projected[here] = (left @ v).double().cpu()
        for j, right in gradient_blocks(model, samples, context, rows, skip=i + len(left)):
            there = slice(j, j + len(right))
            gram[here, there] = (left @ right.T).double().cpu()
            gram[there, here] = gram[here, there].T
        context.progress(i + len(left), count, "Fisher")
    system = gram + count * damping * torch.eye(count, dtype=torch.float64)
    coefficients = torch.linalg.solve(system, projected).to(v.dtype)
    return (v - weighted_gradient(model, samples, context, coefficients)) / damping


def recurrence(model: nn.Module, samples: Samples, context: UnlearnContext, v: Tensor, scale: int) -> Tensor:
    """Published code's k: o = g_1; for i >= 2: s = o.g_i, k -= (k.g_i)/(N+s) o, o -= s/(N+s) o, N the scale."""
    k, o = v.clone(), torch.zeros_like(v)
    for start, block in gradient_blocks(model, samples, context, block_rows(v)):
        for offset, g in enumerate(block):
            if start + offset == 0:
                o = g.clone()
                continue
            s = o @ g
            k -= (k @ g) / (scale + s) * o
            o -= s / (scale + s) * o
        context.progress(start + len(block), len(samples), "Fisher")
    return k


def influence(model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext) -> Tensor:
    """Direction v (P,) = 1/(n_f+n_r) sum_{D_u} grad CE - n_f/((n_f+n_r) n_r) sum_{D_r} grad CE, in eval mode."""
    model.eval()
    n_f, n_r = len(forget), len(retain)
    v = weighted_gradient(model, forget, context, torch.full((n_f,), 1 / (n_f + n_r)))
    return v - weighted_gradient(model, retain, context, torch.full((n_r,), n_f / ((n_f + n_r) * n_r)))


def drawn(retain: Samples, context: UnlearnContext, count: int) -> Samples:
    """At most so many retain samples, in a random order of their own."""
    return retain.select(torch.randperm(len(retain), generator=context.generator("fisher"))[:count])


@torch.no_grad()
def moved(model: nn.Module, step: Tensor, method: str) -> nn.Module:
    """Model after a step (P,) of all its parameters.

    Raises:
        Diverged: a weight is not finite after it.
    """
    parameters = list(model.parameters())
    parts = torch.split(step, [parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.add_(part.view_as(parameter))
    require_finite(model, method)
    return model


@method("iu", task="classification", card=CARD)
def influence_unlearning(
    model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext, *,
    alpha: Annotated[float, Hyper("step scale",
        source="JingWu321/Scissorhands 73ae065, class-wise (SVHN class 0); random samples of CIFAR-10: 10, of"
        " CIFAR-100: 20")] = 2.0,
    samples: Annotated[PositiveInt, Hyper("N of the recurrence, which reads at most N + 2 retain samples",
        source="upstream, fixed")] = 1000,
) -> nn.Module:  # fmt: skip
    """Take one step theta + alpha k that removes the forget set's influence, k by upstream's recurrence.

    All in float32 and eval mode: autocast is not used here. With alpha = 0 nothing changes.

    Raises:
        Diverged: a weight is not finite after the step.
    """
    v = influence(model, forget, retain, context)
    return moved(model, alpha * recurrence(model, drawn(retain, context, samples + 2), context, v, samples), "iu")


@method("iu-exact", task="classification", card=EXACT)
def exact_influence_unlearning(
    model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext, *,
    alpha: Annotated[float, Hyper("step scale", source="1 is the influence function's own step; iu's is made for"
        " another direction")] = 1.0,
    damping: Annotated[Positive, Hyper("multiple of the identity in F",
        source="upstream's recurrence starts at k = v, that is F_0 = I; the WoodFisher paper takes 1e-5")] = 1.0,
    samples: Annotated[PositiveInt, Hyper("most retain samples whose gradients make F",
        source="upstream's N")] = 1000,
) -> nn.Module:  # fmt: skip
    """Take one step theta + alpha F^-1 v that removes the forget set's influence, with the exact inverse.

    All in float32 and eval mode: an inverse amplifies rounding, so that autocast is not used here. With alpha = 0
    nothing changes.

    Raises:
        Diverged: a weight is not finite after the step.
    """
    v = influence(model, forget, retain, context)
    return moved(model, alpha * woodfisher(model, drawn(retain, context, samples), context, v, damping), "iu-exact")
