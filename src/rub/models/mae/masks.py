"""Masks of the autoencoder: which patches it sees, fixed per image, independent of batch and order."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rub.errors import RubError
from rub.pipeline.rng import keyed_uniform


@dataclass(frozen=True)
class Mask:
    """Which patches the encoder sees, for N images.

    Attributes:
        keep: int64 (N, K), visible patches, by ascending noise.
        hidden: int64 (N, L - K), masked patches, by ascending noise.
    """

    keep: Tensor
    hidden: Tensor

    @property
    def restore(self) -> Tensor:
        """int64 (N, L): the place of each patch in the order [keep, hidden]."""
        return torch.cat([self.keep, self.hidden], 1).argsort(dim=1)

    @property
    def removed(self) -> Tensor:
        """Bool (N, L), True where a patch is masked."""
        shape = len(self.keep), self.keep.shape[1] + self.hidden.shape[1]
        return torch.zeros(shape, dtype=torch.bool, device=self.keep.device).scatter_(1, self.hidden, True)

    def select(self, index: Tensor | slice) -> "Mask":
        """Masks of these images."""
        return Mask(self.keep[index], self.hidden[index])

    def to(self, device: torch.device | str) -> "Mask":
        """Masks on a device."""
        return Mask(self.keep.to(device), self.hidden.to(device))


def make_mask(noise: Tensor, ratio: float) -> Mask:
    """Mask that noise gives: the K = int(L (1 - ratio)) patches of least noise stay visible.

    Args:
        noise: float (N, L); ties go to the earlier patch.
        ratio: fraction of masked patches, inside (0, 1).

    Raises:
        RubError: a ratio that leaves no visible or no masked patch.

    Example:
        >>> import torch
        >>> make_mask(torch.tensor([[0.9, 0.1, 0.5, 0.3]]), 0.75)
        Mask(keep=tensor([[1]]), hidden=tensor([[3, 2, 0]]))
    """
    count = noise.shape[1]
    visible = int(count * (1 - ratio))
    if not 0 < ratio < 1 or not 0 < visible < count:
        raise RubError(f"mask ratio {ratio}: should be inside (0, 1) and leave some of the {count} patches visible")
    order = noise.argsort(dim=1, stable=True)
    return Mask(order[:, :visible], order[:, visible:])


def keyed_noise(ids: Tensor, patches: int, seed: int = 0) -> Tensor:
    """Mask noise, float32 (N, L) in [0, 1), of L patches, that depends on the ids, int64 (N,), and the seed alone."""
    return keyed_uniform(seed, "mask", ids, 0, patches)


def gather(patches: Tensor, index: Tensor) -> Tensor:
    """Patches (N, K, P) at index (N, K) out of patches (N, L, P)."""
    return patches.gather(1, index[..., None].expand(-1, -1, patches.shape[-1]))


def scatter(patches: Tensor, index: Tensor, into: Tensor) -> Tensor:
    """Copy of `into` (N, L, P) with patches (N, K, P) at index (N, K)."""
    return into.scatter(1, index[..., None].expand(-1, -1, patches.shape[-1]), patches)
