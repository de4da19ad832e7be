"""Noise images, the forget target of several methods."""

from typing import Literal

import torch
from torch import Tensor

Noise = Literal["normal", "uniform", "constant"]


def noise_images(batch: Tensor, count: int, noise: Noise, generator: torch.Generator) -> Tensor:
    """Noise images (count, C, H, W) in [0, 1] with the statistics of a batch (Li et al.'s released code).

    ``"normal"``: clamp(randn * std + mean, 0, 1), the mean and the standard deviation being two numbers over the whole
    batch; ``"uniform"``: U[0, 1); ``"constant"``: the mean everywhere.

    Args:
        batch: float (B, C, H, W) in [0, 1].
        count: number of noise images.
        noise: which distribution.
        generator: on the CPU; nothing is drawn for ``"constant"``.

    Example:
        >>> noise_images(torch.full((2, 1, 1, 2), 0.5), 1, "constant", torch.Generator()).tolist()
        [[[[0.5, 0.5]]]]
    """
    shape = (count, *batch.shape[1:])
    if noise == "constant":
        return batch.mean().expand(shape)
    if noise == "uniform":
        return torch.rand(shape, generator=generator).to(batch.device)
    drawn = torch.randn(shape, generator=generator).to(batch.device)
    return (drawn * batch.std() + batch.mean()).clamp(0, 1)
