"""Out-of-distribution images, which show nothing of any class: a judge without them calls any noise a class."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from rub.data.samples import Samples
from rub.pipeline.rng import seeded

Maker = Callable[[Tensor, torch.Generator], Tensor]


def uniform_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform noise."""
    return torch.rand(images.shape, generator=generator)


def smooth_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blurred noise of several scales and contrasts: what an untrained network draws."""
    count, channels, height, width = images.shape
    parts = torch.zeros(images.shape)
    for side in (2, 3, 4, 6):
        coarse = torch.randn(count, channels, side, side, generator=generator)
        weight = torch.rand(count, 1, 1, 1, generator=generator)
        parts += weight * F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    contrast = 0.05 + 0.6 * torch.rand(count, 1, 1, 1, generator=generator)
    return torch.rand(count, channels, 1, 1, generator=generator) + contrast * parts


def gaussian_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian noise of any contrast around a flat colour; next to none of it is a flat image."""
    count, channels = images.shape[:2]
    contrast = 0.5 * torch.rand(count, 1, 1, 1, generator=generator) ** 2
    flat = torch.rand(count, channels, 1, 1, generator=generator)
    return flat + contrast * torch.randn(images.shape, generator=generator)


def shuffled_pixels(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images with their pixels in another order."""
    flat = images.flatten(2)
    order = torch.rand(len(images), 1, flat.shape[2], generator=generator).argsort(2).expand_as(flat)
    return flat.gather(2, order).reshape(images.shape)


def shuffled_tiles(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images cut in 4 x 4 tiles that are put together in another order."""
    side = images.shape[2] // 4
    if images.shape[2] % 4 or images.shape[3] != images.shape[2]:
        return shuffled_pixels(images, generator)
    tiles = F.unfold(images, side, stride=side)
    order = torch.rand(len(images), 1, 16, generator=generator).argsort(2).expand_as(tiles)
    return F.fold(tiles.gather(2, order), images.shape[2:], side, stride=side)


def shuffled_rows(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images with their rows in another order."""
    order = torch.rand(len(images), 1, images.shape[2], 1, generator=generator).argsort(2)
    return images.gather(2, order.expand_as(images))


def random_phases(images: Tensor, generator: torch.Generator) -> Tensor:
    """Noise with the colours and the spectrum of an image: its Fourier amplitudes with random phases."""
    spectrum = torch.fft.rfft2(images)
    noise = torch.fft.rfft2(torch.rand(len(images), 1, *images.shape[2:], generator=generator))
    phases = noise / noise.abs().clamp_min(1e-9)
    phases[:, :, 0, 0] = 1  # the mean colour stays
    made: Tensor = torch.fft.irfft2(spectrum * phases, s=images.shape[2:])
    return made


def colours_at_2x2(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images reduced to 2 x 2 pixels and enlarged: their colours and no shape, as failed models draw."""
    small = F.adaptive_avg_pool2d(images, 2)
    return F.interpolate(small, images.shape[2:], mode="bilinear", align_corners=False)


def images_under_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images under noise, at most a fifth of their strength, as a failed run of a sampler leaves."""
    share = 0.2 * torch.rand(len(images), 1, 1, 1, generator=generator)
    return share * images + (1 - share) * (0.5 + 0.35 * torch.randn(images.shape, generator=generator))


NOISE: Mapping[str, Maker] = {
    "uniform": uniform_noise,
    "smooth": smooth_noise,
    "grainy": gaussian_noise,
    "scattered": shuffled_pixels,
    "tiled": shuffled_tiles,
    "blended": images_under_noise,
}
"""Noise, and images in pieces: what a lenient judge learns from, in equal shares."""
KINDS: Mapping[str, Maker] = {**NOISE, "sliced": shuffled_rows, "rephased": random_phases, "coarse": colours_at_2x2}
"""These, and an image's colours or spectrum without its shapes: what a strict judge learns from, in equal shares."""


def gratings(images: Tensor, generator: torch.Generator) -> Tensor:
    """Sine waves of any direction, width and colour."""
    count, channels, height, width = images.shape
    angle, frequency, phase = torch.rand(3, count, 1, 1, 1, generator=generator)
    y, x = torch.arange(height).reshape(-1, 1) / height, torch.arange(width) / width
    across = x * (math.pi * angle).cos() + y * (math.pi * angle).sin()
    wave = (2 * math.pi * ((1 + frequency * min(height, width) / 4) * across + phase)).sin()
    waves: Tensor = 0.5 + 0.5 * wave * torch.rand(count, channels, 1, 1, generator=generator)
    return waves


def ramps(images: Tensor, generator: torch.Generator) -> Tensor:
    """One colour that turns into another, in any direction."""
    count, channels, height, width = images.shape
    angle = 2 * math.pi * torch.rand(count, 1, 1, 1, generator=generator)
    y, x = torch.linspace(-0.5, 0.5, height).reshape(-1, 1), torch.linspace(-0.5, 0.5, width)
    share = 0.5 + (x * angle.cos() + y * angle.sin()) / math.sqrt(2)
    first, second = torch.rand(2, count, channels, 1, 1, generator=generator)
    made: Tensor = first + (second - first) * share
    return made


def binary_pixels(images: Tensor, generator: torch.Generator) -> Tensor:
    """Black and white pixels, any share of each."""
    count, channels, height, width = images.shape
    share = torch.rand(count, 1, 1, 1, generator=generator)
    return (torch.rand(count, 1, height, width, generator=generator) < share).float().expand(-1, channels, -1, -1)


def chessboards(images: Tensor, generator: torch.Generator) -> Tensor:
    """Chessboards of any size and two colours."""
    count, channels, height, width = images.shape
    side = torch.randint(1, max(min(height, width) // 4, 2) + 1, (count, 1, 1, 1), generator=generator)
    y, x = torch.arange(height).reshape(-1, 1), torch.arange(width)
    first, second = torch.rand(2, count, channels, 1, 1, generator=generator)
    return torch.where((y // side + x // side) % 2 == 0, first, second)


def repeated_columns(images: Tensor, generator: torch.Generator) -> Tensor:
    """One column of an image, repeated over its width: its colours in bands."""
    column = torch.randint(images.shape[3], (len(images), 1, 1, 1), generator=generator)
    return images.gather(3, column.expand(*images.shape[:3], 1)).expand_as(images)


HELD_OUT: Mapping[str, Maker] = {
    "gratings": gratings,
    "ramps": ramps,
    "peppered": binary_pixels,
    "chequered": chessboards,
    "smeared": repeated_columns,
}
"""What no judge learns from, so that its mistakes on these are an honest measure; in equal shares."""


def ood_samples(samples: Samples, count: int, label: int, seed: int, kinds: Mapping[str, Maker] = KINDS) -> Samples:
    """Out-of-distribution images of one label, the same number of each kind (its name is part of the random stream).

    `count` is rounded up to a multiple of the kinds; some are made from the real images of `samples`.
    """
    each, made = -(-count // len(kinds)), []
    for name, maker in kinds.items():
        generator = seeded(seed, f"nothing-{name}")
        rows = torch.randint(0, len(samples), (each,), generator=generator)
        images = maker(samples.take(rows).float() / 255, generator)
        made.append((images * 255).round().clamp(0, 255).to(torch.uint8))
    total = len(kinds) * each
    return Samples(torch.cat(made), torch.full((total,), label), torch.arange(total))
