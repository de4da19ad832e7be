"""Gradient saliency that methods share: summed and squared gradients, global top-k masks, steps that obey a mask."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

Parameters = Mapping[str, Tensor]


def gradients(parameters: Parameters, losses: Iterable[Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield d loss / d parameter for every loss; parameters that a loss does not reach get zeros.

    Args:
        parameters: name -> trainable parameter, such as ``dict(model.named_parameters())``.
        losses: scalar losses; pass a generator, so that only one graph is alive at a time.

    Example:
        >>> weight = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> [g["w"].tolist() for g in gradients({"w": weight}, [(weight**2).sum()])]
        [[2.0, 4.0]]
    """
    tensors = list(parameters.values())
    for loss in losses:
        found = torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)
        yield dict(zip(parameters, found, strict=True))


def summed_gradients(parameters: Parameters, losses: Iterable[Tensor]) -> dict[str, Tensor]:
    """G = sum over losses of their signed gradients (no absolute value inside the sum).

    Example:
        >>> weight = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> summed_gradients({"w": weight}, [weight.sum(), -3 * weight[0]])["w"].tolist()
        [-2.0, 1.0]
    """
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for found in gradients(parameters, losses):
        for name, gradient in found.items():
            total[name] += gradient
    return total


def squared_gradients(parameters: Parameters, losses: Iterable[Tensor]) -> dict[str, Tensor]:
    """F = mean over losses of their squared gradients: the diagonal of the empirical Fisher matrix of a batch.

    Example:
        >>> weight = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> squared_gradients({"w": weight}, [weight.sum(), -3 * weight[0]])["w"].tolist()
        [5.0, 0.5]
    """
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    count = 0
    for found in gradients(parameters, losses):
        count += 1
        for name, gradient in found.items():
            total[name] += gradient.square()
    return {name: value / max(count, 1) for name, value in total.items()}


def top_mask(scores: Mapping[str, Tensor], fraction: float) -> dict[str, Tensor]:
    """Bool masks that keep the round(fraction * P) largest scores, ranked over all tensors together.

    Ties go to the earlier position, so that the masks hold exactly that many ones and never depend on the sort.

    Args:
        scores: name -> scores of any shape; P is their total number.
        fraction: share to keep, 0 to 1.

    Example:
        >>> masks = top_mask({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0, 0.0])}, 0.5)
        >>> masks["a"].tolist(), masks["b"].tolist()
        ([True, False], [True, False])
    """
    flat = torch.cat([score.flatten() for score in scores.values()])
    count = round(fraction * len(flat))
    if 0 < count < len(flat):
        least = flat.kthvalue(len(flat) - count + 1).values  # a sort would take several times the memory
        keep = flat > least
        level = flat == least
        keep |= level & (level.cumsum(0, dtype=torch.int32) <= count - keep.sum())
    else:
        keep = torch.full_like(flat, count > 0, dtype=torch.bool)
    parts = torch.split(keep, [score.numel() for score in scores.values()])
    return {name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}


class MaskedStep:
    """An optimiser step that moves kept weights as usual and leaves the others exactly at their start.

    g <- g*m; step; theta <- m*theta + (1-m)*theta_0; state <- m*state. Masking gradients alone is not enough: weight
    decay and momentum would still move the weights that should stay.

    Example:
        >>> weight = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> step = MaskedStep({"w": weight}, {"w": torch.tensor([True, False])})
        >>> weight.sum().backward()
        >>> step(torch.optim.SGD([weight], lr=0.5, weight_decay=0.1))
        >>> weight.tolist()[1]
        2.0
    """

    def __init__(self, parameters: Parameters, masks: Mapping[str, Tensor]) -> None:
        """Remember where the weights start; `masks` are bool, one per parameter name, True where it may move."""
        self._rows = [(tensor, ~masks[name], tensor.detach().clone()) for name, tensor in parameters.items()]

    @torch.no_grad()
    def __call__(self, optimizer: torch.optim.Optimizer) -> None:
        """Take one step with the gradients that are in place."""
        for parameter, frozen, _ in self._rows:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(frozen, 0)
        optimizer.step()
        for parameter, frozen, start in self._rows:
            parameter.copy_(torch.where(frozen, start, parameter))
            for state in optimizer.state.get(parameter, {}).values():
                if isinstance(state, Tensor) and state.shape == parameter.shape:
                    state.masked_fill_(frozen, 0)
