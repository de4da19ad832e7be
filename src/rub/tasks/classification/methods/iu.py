"""IU: one influence-function step, with the inverse of the empirical Fisher matrix by Woodbury's identity."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

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

CARD = Card(
    paper="Izzo et al., Approximate Data Deletion from Machine Learning Models, AISTATS 2021, arXiv 2002.10077;"
    " Singh and Alistarh, WoodFisher, NeurIPS 2020, arXiv 2004.14340",
    equation="theta <- theta + alpha F^-1 v, F = damping I + (1/m) sum_i g_i g_i^T over m retain samples,"
    " v = 1/(n_f+n_r) sum_{D_u} grad CE - n_f/((n_f+n_r) n_r) sum_{D_r} grad CE",
    upstream="OPTML-Group/Unlearn-Sparse 80ba55d, unlearn/Wfisher.py",
    differences=(
        "F^-1 v is exact; upstream never re-derives o for a new sample, so its k - v stays parallel to one gradient",
        "m is min(samples, n_r) and divides the sum; upstream divides by 1000 whatever it read",
        "samples in a fixed, seeded order and no augmentation; upstream takes file order with random augmentation",
        "g_r comes from the retain set; the ImageNet branch of Unlearn-Saliency reads the forget set there",
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


def upstream_recurrence(model: nn.Module, samples: Samples, context: UnlearnContext, v: Tensor) -> Tensor:
    """Published code's k: o = g_1; for i >= 2: s = o.g_i, k -= (k.g_i)/(N+s) o, o -= s/(N+s) o, N = m."""
    k, o, count = v.clone(), torch.zeros_like(v), len(samples)
    for start, block in gradient_blocks(model, samples, context, block_rows(v)):
        for offset, g in enumerate(block):
            if start + offset == 0:
                o = g.clone()
                continue
            s = o @ g
            k -= (k @ g) / (count + s) * o
            o -= s / (count + s) * o
        context.progress(start + len(block), count, "Fisher")
    return k


@method("iu", task="classification", card=CARD)
def influence_unlearning(
    model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext, *,
    alpha: Annotated[float, Hyper("step scale",
        source="JingWu321/Scissorhands 73ae065, class-wise (SVHN class 0); random samples of CIFAR-10: 10, of"
        " CIFAR-100: 20")] = 2.0,
    damping: Annotated[Positive, Hyper("multiple of the identity in F; `upstream` fixes it to 1",
        source="upstream's recurrence starts at k = v, that is F_0 = I; the WoodFisher paper takes 1e-5")] = 1.0,
    samples: Annotated[PositiveInt, Hyper("most retain samples whose gradients make F",
        source="upstream's N (it reads at most 1002 samples)")] = 1000,
    recurrence: Annotated[Literal["woodfisher", "upstream"], Hyper(
        "`woodfisher`: the exact inverse; `upstream`: the published code's formula",
        source="ours: exact")] = "woodfisher",
) -> nn.Module:  # fmt: skip
    """Take one step theta + alpha F^-1 v that removes the forget set's influence; alpha = 0 changes nothing.

    All in float32 and eval mode: an inverse amplifies rounding, so that autocast is not used here.

    Raises:
        Diverged: a weight is not finite after the step.
    """
    model.eval()
    n_f, n_r = len(forget), len(retain)
    v = weighted_gradient(model, forget, context, torch.full((n_f,), 1 / (n_f + n_r)))
    v -= weighted_gradient(model, retain, context, torch.full((n_r,), n_f / ((n_f + n_r) * n_r)))
    chosen = retain.select(torch.randperm(n_r, generator=context.generator("fisher"))[:samples])
    if recurrence == "woodfisher":
        k = woodfisher(model, chosen, context, v, damping)
    else:
        k = upstream_recurrence(model, chosen, context, v)
    with torch.no_grad():
        start = 0
        for parameter in model.parameters():
            end = start + parameter.numel()
            parameter.add_(alpha * k[start:end].view_as(parameter))
            start = end
    require_finite(model, "iu")
    return model
