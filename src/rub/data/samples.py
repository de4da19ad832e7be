"""`Samples`, images with labels and stable ids: the one form in which image data travels; and decoded data sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Samples:
    """A set of labelled 8-bit images: rows of an array that may be larger than memory and is then a mapped file.

    A subset shares the array, so that splits cost nothing. Take batches with `take`; `images` copies a subset whole.

    Attributes:
        stored: uint8, shape (M, C, H, W), values 0 to 255.
        labels: int64, shape (N,), class indices.
        ids: int64, shape (N,), unique within a split and stable across versions: of class folders made of the file's
            name, else the position in the data set's official order.
        rows: int64, shape (N,): which of the stored images these are; None: all, in order.

    Example:
        >>> some = Samples(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.arange(4), torch.arange(4)).select([3, 1])
        >>> some.take([0]).shape, some.labels
        (torch.Size([1, 1, 2, 2]), tensor([3, 1]))
    """

    stored: Tensor
    labels: Tensor
    ids: Tensor
    rows: Tensor | None = None

    def __post_init__(self) -> None:
        if self.stored.dtype != torch.uint8 or self.stored.ndim != 4:
            raise ValueError(f"images must be uint8 (N, C, H, W), got {self.stored.dtype} {tuple(self.stored.shape)}")
        count = len(self.stored if self.rows is None else self.rows)
        if not count == len(self.labels) == len(self.ids):
            raise ValueError(f"lengths differ: {count} images, {len(self.labels)} labels, {len(self.ids)} ids")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> Tensor:
        """All images, uint8 (N, C, H, W): of a subset, a copy."""
        return self.stored if self.rows is None else self.stored[self.rows]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.stored.shape[1:]
        return channels, height, width

    def take(self, index: Tensor | Sequence[int] | slice) -> Tensor:
        """Images at these positions, uint8 (B, C, H, W)."""
        chosen = index if isinstance(index, slice) else torch.as_tensor(index)
        return self.stored[chosen if self.rows is None else self.rows[chosen]]

    def select(self, index: Tensor | Sequence[int]) -> "Samples":
        """Samples at these positions (int64) or where this mask (bool, shape (N,)) is true."""
        chosen = torch.as_tensor(index)
        chosen = chosen if chosen.dtype == torch.bool else chosen.long()
        rows = torch.arange(len(self.stored)) if self.rows is None else self.rows
        return Samples(self.stored, self.labels[chosen], self.ids[chosen], rows[chosen])

    def of_ids(self, ids: Tensor) -> "Samples":
        """Samples with these ids, int64 (K,), all of which are here, in their order."""
        order = self.ids.argsort()
        return self.select(order[torch.searchsorted(self.ids[order], ids)])


@dataclass(frozen=True)
class ImageDataset:
    """A decoded data set; images of the store are memory-mapped, so that they cost no memory until they are read.

    Attributes:
        classes: class names, in the order of the labels; their number is C.
        train: training samples, in official order.
        test: test samples, in official order.
        mean: per-channel mean for the network's normalisation, in [0, 1] pixel space.
        std: per-channel standard deviation, likewise.
        flip: whether mirroring an image keeps its class.
        skipped: names of images left out because they cannot be decoded, when that was asked for.
        notes: what was done to some images as they were decoded, one line each.
        files: sample id -> name of its file, when it has just been read from files; the store keeps it apart.
    """

    classes: tuple[str, ...]
    train: Samples
    test: Samples
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    files: Mapping[int, str] = field(default_factory=dict)


def concatenate(parts: Sequence[Samples]) -> Samples:
    """Join sample sets, in order; parts of one array share it still."""
    labels, ids = torch.cat([part.labels for part in parts]), torch.cat([part.ids for part in parts])
    stored = parts[0].stored
    if all(part.stored is stored for part in parts):
        whole = torch.arange(len(stored))
        return Samples(stored, labels, ids, torch.cat([whole if it.rows is None else it.rows for it in parts]))
    return Samples(torch.cat([part.images for part in parts]), labels, ids)


def to_unit(images: Tensor) -> Tensor:
    """Map uint8 images 0..255 to float32 in [0, 1] (division by 255)."""
    return images.to(torch.float32).div_(255.0)
