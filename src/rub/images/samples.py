"""`Samples`: images with labels and stable ids, the one form in which image data travels through RUB."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Samples:
    """A set of labelled 8-bit images.

    Attributes:
        images: uint8, shape (N, C, H, W), values 0 to 255.
        labels: int64, shape (N,), class indices.
        ids: int64, shape (N,): position in the data set's official order; unique within a split, stable for ever.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor

    def __post_init__(self) -> None:
        """Refuse tensors that are not what the attributes promise."""
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(f"images must be uint8 (N, C, H, W), got {self.images.dtype} {tuple(self.images.shape)}")
        if not len(self.images) == len(self.labels) == len(self.ids):
            raise ValueError(
                f"lengths differ: {len(self.images)} images, {len(self.labels)} labels, {len(self.ids)} ids"
            )

    def __len__(self) -> int:
        """Return N, the number of samples."""
        return len(self.images)

    def select(self, index: Tensor | Sequence[int]) -> "Samples":
        """Return the samples at these positions (int64) or where this mask (bool, shape (N,)) is true."""
        chosen = torch.as_tensor(index)
        chosen = chosen if chosen.dtype == torch.bool else chosen.long()
        return Samples(self.images[chosen], self.labels[chosen], self.ids[chosen])


def concatenate(parts: Sequence[Samples]) -> Samples:
    """Join sample sets, in order."""
    return Samples(
        torch.cat([part.images for part in parts]),
        torch.cat([part.labels for part in parts]),
        torch.cat([part.ids for part in parts]),
    )


def to_unit(images: Tensor) -> Tensor:
    """Map uint8 images 0..255 to float32 in [0, 1] (division by 255)."""
    return images.to(torch.float32).div_(255.0)
