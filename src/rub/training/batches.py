"""Batches that go on where a run was killed: they are drawn anew from the start, and only those that are left are made.

What is *drawn* costs random numbers alone: an int64 row per image, its place in the set and what its augmentation
draws. What is *made* of it are the images of a batch. So the number of batches given is all the state there is.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

D = TypeVar("D")
T = TypeVar("T")


class Stream(Generic[D, T]):
    """Items of an iterator, which knows its place; see `rub.pipeline.checkpointing`.

    Example:
        >>> squares = Stream(lambda: iter(range(9)), lambda drawn: drawn**2)
        >>> squares.load_state_dict({"given": 3})
        >>> next(squares), squares.state_dict()
        (9, {'given': 4})
    """

    def __init__(self, draw: Callable[[], Iterator[D]], make: Callable[[D], T]) -> None:
        """`draw` begins anew, from fresh generators, whenever it is called; `make` draws nothing."""
        self._draw, self.make = draw, make
        self._drawn, self.given = draw(), 0

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        made = self.make(next(self._drawn))
        self.given += 1
        return made

    def state_dict(self) -> dict[str, Any]:
        """Number of items given."""
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go on after so many items."""
        self.given = state["given"]
        self._drawn = islice(self._draw(), self.given, None)


def refilled(parts: Iterator[Tensor], size: int) -> Iterator[Tensor]:
    """The rows of endless parts, `size` at a time: a batch may hold the last of one part and the first of the next.

    Example:
        >>> thirds = refilled(iter([torch.tensor([1, 2]), torch.tensor([3, 4])]), 3)
        >>> next(thirds).tolist()
        [1, 2, 3]
    """
    waiting: Tensor | None = None
    for part in parts:
        waiting = part if waiting is None else torch.cat([waiting, part])
        while len(waiting) >= size:
            yield waiting[:size]
            waiting = waiting[size:]


def orders(count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Permutations of the rows 0 to count - 1 without end, int64 (count,)."""
    while True:
        yield torch.randperm(count, generator=generator)


def cuts(count: int, size: int, *, lone: bool = False) -> list[slice]:
    """Where batches lie in a pass over `count` rows; a last single row makes one only if it is alone or `lone`.

    Batch normalisation needs two images.

    Example:
        >>> cuts(5, 2), cuts(1, 2)
        ([slice(0, 2, None), slice(2, 4, None)], [slice(0, 1, None)])
    """
    parts = [slice(start, min(start + size, count)) for start in range(0, count, size)]
    return [part for part in parts if lone or count == 1 or part.stop - part.start > 1]


@dataclass(frozen=True)
class Augmentation:
    """Random crop with zero padding and horizontal flip, drawn per batch from a generator.

    Attributes:
        padding: pixels of zero padding on each side before the crop; 0 switches the crop off.
        flip: whether to mirror each image with probability 1/2 (off for digits, where it changes the class).
    """

    padding: int = 4
    flip: bool = True

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augmented images of the same shape (N, C, H, W) and dtype."""
        return self.apply(images, self.draw(len(images), generator))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """What so many images draw, int64 (N, 3): shift down, shift right, mirrored or not; (N, 0) without any."""
        if self.padding == 0 and not self.flip:
            return torch.empty(count, 0, dtype=torch.int64)
        shift = torch.randint(0, 2 * self.padding + 1, (2, count), generator=generator)
        mirrored = torch.randint(0, 2, (count,), generator=generator).bool() & self.flip
        return torch.stack([*shift, mirrored.long()], 1)

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Images (N, C, H, W) under what was drawn for them."""
        if not drawn.shape[1]:
            return images
        (count, _, height, width), pad, device = images.shape, self.padding, images.device
        rows = torch.arange(height) + drawn[:, 0, None]
        columns = torch.arange(width) + drawn[:, 1, None]
        columns = torch.where(drawn[:, 2, None].bool(), columns.flip(1), columns)
        padded = F.pad(images, (pad, pad, pad, pad))
        batch = torch.arange(count, device=device)[:, None, None]
        picked = padded[batch, :, rows.to(device)[:, :, None], columns.to(device)[:, None, :]]
        return picked.permute(0, 3, 1, 2)
