"""Pictures that show nothing of any class, for judges: a classifier without them calls any noise a class."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from rub.images.context import seeded
from rub.images.samples import Samples

Maker = Callable[[Tensor, torch.Generator], Tensor]


def uniform(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return uniform noise."""
    return torch.rand(images.shape, generator=generator)


def smooth(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return blurred noise of several scales and contrasts: what an untrained network draws."""
    count, channels, height, width = images.shape
    parts = torch.zeros(images.shape)
    for side in (2, 3, 4, 6):
        coarse = torch.randn(count, channels, side, side, generator=generator)
        weight = torch.rand(count, 1, 1, 1, generator=generator)
        parts += weight * F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    contrast = 0.05 + 0.6 * torch.rand(count, 1, 1, 1, generator=generator)
    return torch.rand(count, channels, 1, 1, generator=generator) + contrast * parts


def grainy(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return Gaussian noise of any contrast around a flat colour; next to none of it is a flat picture."""
    count, channels = images.shape[:2]
    contrast = 0.5 * torch.rand(count, 1, 1, 1, generator=generator) ** 2
    flat = torch.rand(count, channels, 1, 1, generator=generator)
    return flat + contrast * torch.randn(images.shape, generator=generator)


def scattered(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return pictures with their pixels in another order."""
    flat = images.flatten(2)
    order = torch.rand(len(images), 1, flat.shape[2], generator=generator).argsort(2).expand_as(flat)
    return flat.gather(2, order).reshape(images.shape)


def tiled(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return pictures cut in 4 x 4 tiles that are put together in another order."""
    side = images.shape[2] // 4
    if images.shape[2] % 4 or images.shape[3] != images.shape[2]:
        return scattered(images, generator)
    tiles = F.unfold(images, side, stride=side)
    order = torch.rand(len(images), 1, 16, generator=generator).argsort(2).expand_as(tiles)
    return F.fold(tiles.gather(2, order), images.shape[2:], side, stride=side)


def blended(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return a picture and the noise of a weak signal: a fifth of it in noise, as a failed run of a sampler leaves."""
    share = 0.2 * torch.rand(len(images), 1, 1, 1, generator=generator)
    return share * images + (1 - share) * (0.5 + 0.35 * torch.randn(images.shape, generator=generator))


KINDS: Mapping[str, Maker] = {
    "uniform": uniform,
    "smooth": smooth,
    "grainy": grainy,
    "scattered": scattered,
    "tiled": tiled,
    "blended": blended,
}
"""Every kind, in equal shares."""


def negatives(samples: Samples, count: int, label: int, seed: int) -> Samples:
    """Return pictures of nothing, the same number of each of `KINDS`.

    Args:
        samples: real pictures, which some kinds are made from.
        count: how many, rounded up to a multiple of the kinds.
        label: their label.
        seed: of all draws.
    """
    each, made = -(-count // len(KINDS)), []
    for name, maker in KINDS.items():
        generator = seeded(seed, f"nothing-{name}")
        rows = torch.randint(0, len(samples), (each,), generator=generator)
        pictures = maker(samples.images[rows].float() / 255, generator)
        made.append((pictures * 255).round().clamp(0, 255).to(torch.uint8))
    images = torch.cat(made)
    return Samples(images, torch.full((len(images),), label), torch.arange(len(images)))
