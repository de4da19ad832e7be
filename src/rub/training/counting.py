"""What a method costs: the images that a network is given while it runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def counting(model: nn.Module) -> Iterator[list[int]]:
    """Batch sizes of what a network and its copies are given in the body, in a list.

    A teacher that is a copy counts like the network itself; under `torch.vmap` every image of the mapped batch counts.

    Example:
        >>> network = nn.Linear(2, 3)
        >>> with counting(network) as images:
        ...     _ = network(torch.zeros(5, 2)), network(torch.zeros(4, 2))
        >>> sum(images)
        9
    """
    images: list[int] = []

    def count(module: nn.Module, given: tuple[Any, ...]) -> None:
        if given and isinstance(given[0], Tensor) and given[0].ndim:
            each = given[0][0].numel()
            images.append(_unwrapped(given[0]).numel() // max(each, 1))

    hook: Any = torch.compiler.disable(count)  # type: ignore[no-untyped-call]
    handle = model.register_forward_pre_hook(hook)  # copies of the network have it too
    try:
        yield images
    finally:
        handle.remove()


def _unwrapped(x: Tensor) -> Tensor:
    """All that a tensor of `torch.func` stands for: of a batched one, the whole batch."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        x = functorch.get_unwrapped(x)
    return x
