"""Common corruptions of images (Hendrycks & Dietterich, ICLR 2019, arXiv:1903.12261): changes without an adversary.

Strengths are those of CIFAR-10-C (hendrycks/robustness ca36008, make_cifar_c.py), made for images of 32 px; lengths in
pixels grow with the shorter side. Random numbers are keyed by the image's id, so that each image has one version of
each corruption and severity, which anyone can make again.

Left out: fog, snow, frost and spatter, which need a fractal or pictures, and glass blur. Differences: grey pixels stay
grey when saturated; motion blur is a half Gaussian along the direction, read between pixels and held at the edge,
instead of ImageMagick's; zoomed images and the elastic affine map are read between pixels, mirrored at the edge;
images are rounded to the nearest level, not down.
"""

import math
from collections.abc import Callable
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.stats import poisson
from torch import Tensor
from torch.nn import functional as F

from rub.data.samples import to_unit
from rub.errors import RubError
from rub.pipeline.rng import keyed_uniform

SIDE = 32  # pixels: of the images that the strengths were chosen for
TOGETHER = 64  # images: in float, all of them take much memory
DEVIATION = 2  # levels by which decoders and sums of machines differ

Random = Callable[[str, int], Tensor]
"""(stream, count) -> uniform numbers in [0, 1), float32 (N, count), of each image's own."""


def corrupted(name: str, images: Tensor, ids: Tensor, severity: int) -> Tensor:
    """Images after one corruption, uint8 (N, C, H, W).

    Args:
        name: one of `CORRUPTIONS`.
        images: uint8, (N, C, H, W) with 1 or 3 channels.
        ids: int64 (N,), which decide the random numbers.
        severity: 1 to 5.

    Raises:
        RubError: other numbers of channels.
    """
    if images.shape[1] not in (1, 3):
        raise RubError(f"corruptions: are for images of 1 or 3 channels; these have {images.shape[1]}")

    made = []
    for start in range(0, len(images), TOGETHER):
        part = slice(start, start + TOGETHER)

        def random(stream: str, count: int, part: slice = part) -> Tensor:
            return keyed_uniform(severity, f"{name} {stream}", ids[part].cpu(), 0, count)

        x = CORRUPTIONS[name](to_unit(images[part].cpu()), severity - 1, random)
        made.append((x.clamp(0, 1) * 255).round().to(torch.uint8))
    return torch.cat(made)


def is_corrupted(probes: Tensor, images: Tensor, ids: Tensor, severity: int) -> Tensor:
    """Whether each probe is its image, or a corruption of it of this severity, up to `DEVIATION` levels; bool (N,)."""
    probes, images = probes.cpu().to(torch.int16), images.cpu()
    known = (probes == images).flatten(1).all(1)
    for name in CORRUPTIONS:
        other = corrupted(name, images, ids, severity)
        known |= (probes - other).abs().flatten(1).amax(1) <= DEVIATION
    return known


def gaussian_noise(x: Tensor, level: int, random: Random) -> Tensor:
    """Normal noise, x + sigma n."""
    return x + (0.04, 0.06, 0.08, 0.09, 0.10)[level] * _normal(random, x)


def speckle_noise(x: Tensor, level: int, random: Random) -> Tensor:
    """Normal noise on the scale of each value, x + sigma x n."""
    return x + (0.06, 0.1, 0.12, 0.16, 0.2)[level] * x * _normal(random, x)


def shot_noise(x: Tensor, level: int, random: Random) -> Tensor:
    """Poisson(c x) / c."""
    count = (500, 250, 100, 75, 50)[level]
    u = random("counts", x[0].numel()).reshape(x.shape).double() + 2.0**-25  # away from 0
    return torch.from_numpy(poisson.ppf(u.numpy(), (x.double() * count).numpy())).to(x) / count


def impulse_noise(x: Tensor, level: int, random: Random) -> Tensor:
    """A share of all values at 0 or 1."""
    share, u = (0.01, 0.02, 0.03, 0.05, 0.07)[level], random("values", x[0].numel()).reshape(x.shape)
    return torch.where(u < share / 2, 0.0, torch.where(u >= 1 - share / 2, 1.0, x))


def gaussian_blur(x: Tensor, level: int, random: Random) -> Tensor:
    """A Gaussian of width sigma."""
    sigma = (0.4, 0.6, 0.7, 0.8, 1.0)[level] * _scale(x)
    return torch.from_numpy(gaussian_filter(x.numpy(), (0, 0, sigma, sigma), mode="nearest"))


def defocus_blur(x: Tensor, level: int, random: Random) -> Tensor:
    """A disk, smoothed by a Gaussian over its neighbours."""
    radius, smooth = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))[level]
    radius *= _scale(x)
    reach, width = math.ceil(radius), 1 if radius <= 8 else 2
    line = torch.arange(-reach - width, reach + width + 1)
    disk = (line[:, None] ** 2 + line**2 <= radius**2).float()
    bell = torch.exp(-(torch.arange(-width, width + 1) ** 2) / (2 * smooth**2))
    bell = bell / bell.sum()
    kernel = F.conv2d((disk / disk.sum())[None, None], (bell[:, None] * bell)[None, None], padding=width)
    size = min(reach + width, *(length - 1 for length in x.shape[-2:]))
    middle = slice(reach + width - size, reach + width + size + 1)
    kernel = kernel[..., middle, middle]
    padded = F.pad(x, [size] * 4, mode="reflect").flatten(0, 1)[:, None]
    return F.conv2d(padded, kernel / kernel.sum()).reshape(x.shape)


def motion_blur(x: Tensor, level: int, random: Random) -> Tensor:
    """A half Gaussian along a direction between -45 and 45 degrees."""
    radius, sigma = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))[level]
    angle = (random("angle", 1) - 0.5) * (math.pi / 2)
    steps = torch.arange(2 * math.ceil(radius * _scale(x)) + 1)
    weights = torch.exp(-(steps**2) / (2 * (sigma * _scale(x)) ** 2))
    moved = torch.zeros_like(x)
    for step, weight in zip(steps.tolist(), (weights / weights.sum()).tolist(), strict=True):
        if weight > 1e-6:
            moved += weight * _read(x, (step * angle.sin())[..., None], (step * angle.cos())[..., None], "border")
    return moved


def zoom_blur(x: Tensor, level: int, random: Random) -> Tensor:
    """The mean of the image and of zooms into its middle."""
    zooms = [1 + step / 100 for step in range((6, 11, 16, 21, 26)[level])]
    rows, columns = (torch.arange(length) - (length - 1) / 2 for length in x.shape[-2:])
    total = x.clone()
    for zoom in zooms:
        shift = 1 / zoom - 1
        total += _read(x, (shift * rows)[None, :, None], (shift * columns)[None, None], "reflection")
    return total / (len(zooms) + 1)


def brightness(x: Tensor, level: int, random: Random) -> Tensor:
    """HSV's value, the largest of the channels, raised; hue and saturation stay."""
    value = x.amax(1, keepdim=True)
    raised = (value + (0.05, 0.1, 0.15, 0.2, 0.3)[level]).clamp(max=1)
    return torch.where(value > 0, x * raised / value.clamp_min(1e-6), raised)


def contrast(x: Tensor, level: int, random: Random) -> Tensor:
    """Every channel's distance from its mean, made smaller."""
    mean = x.mean((2, 3), keepdim=True)
    return mean + (0.75, 0.5, 0.4, 0.3, 0.15)[level] * (x - mean)


def saturate(x: Tensor, level: int, random: Random) -> Tensor:
    """HSV's saturation times a factor, plus a constant; hue and value stay."""
    factor, more = ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2))[level]
    value = x.amax(1, keepdim=True)
    before = (value - x.amin(1, keepdim=True)) / value.clamp_min(1e-6)
    after = (before * factor + more).clamp(0, 1)
    return torch.where(before > 0, value - (value - x) * after / before.clamp_min(1e-6), x)


def jpeg(x: Tensor, level: int, random: Random) -> Tensor:
    """Compressed by JPEG and read again."""
    return _by_pillow(x, lambda image: _through_jpeg(image, (80, 65, 58, 50, 40)[level]))


def pixelate(x: Tensor, level: int, random: Random) -> Tensor:
    """Made smaller and larger again by averages of boxes."""
    share = (0.95, 0.9, 0.85, 0.75, 0.65)[level]

    def through(image: Image.Image) -> Image.Image:
        small = tuple(max(1, int(length * share)) for length in image.size)
        return image.resize((small[0], small[1]), Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)

    return _by_pillow(x, through)


def elastic(x: Tensor, level: int, random: Random) -> Tensor:
    """A random affine map, then smooth random displacements."""
    height, width = x.shape[-2:]
    side = min(height, width)
    most, smooth, corner = (
        side * share for share in ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05),
                                   (0.1, 0.03, 0.03))[level]
    )  # fmt: skip
    middle, reach = torch.tensor([width // 2, height // 2]), side // 3
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    before = torch.cat([middle + reach * signs, torch.ones(3, 1)], 1)
    after = before[:, :2] + corner * (2 * random("corners", 6).reshape(-1, 3, 2) - 1)
    homogeneous = torch.cat([after, torch.ones(len(x), 3, 1)], 2)
    back = torch.linalg.solve(homogeneous.double(), before[:, :2].double().expand(len(x), 3, 2)).float()  # (N, 3, 2)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    source = torch.stack([columns, rows, torch.ones_like(rows)], -1).float() @ back[:, None]  # (N, H, W, 2)
    x = _read(x, source[..., 1] - rows, source[..., 0] - columns, "reflection")
    if not most:
        return x
    noise = 2 * random("field", 2 * height * width).reshape(-1, 2, height, width) - 1
    field = torch.from_numpy(gaussian_filter(noise.numpy(), (0, 0, smooth, smooth), mode="reflect", truncate=3)) * most
    return _read(x, field[:, 1], field[:, 0], "reflection")


CORRUPTIONS: dict[str, Callable[[Tensor, int, Random], Tensor]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        gaussian_noise, shot_noise, impulse_noise, speckle_noise, gaussian_blur, defocus_blur, motion_blur, zoom_blur,
        brightness, contrast, saturate, jpeg, pixelate, elastic,
    )
}  # fmt: skip
"""By name, in order."""


def _scale(x: Tensor) -> float:
    return min(x.shape[-2:]) / SIDE


def _normal(random: Random, x: Tensor) -> Tensor:
    u = random("values", x[0].numel()).reshape(x.shape).double() + 2.0**-25
    return (math.sqrt(2) * torch.erfinv(2 * u - 1)).to(x)


def _read(x: Tensor, down: Tensor, right: Tensor, edge: str) -> Tensor:
    """Images read at each pixel's place plus a displacement in pixels, (N or 1, H or 1, W or 1), linearly between."""
    count, _, height, width = x.shape
    rows = (torch.arange(height)[:, None] + down).expand(count, height, width)
    columns = (torch.arange(width) + right).expand(count, height, width)
    grid = torch.stack([2 * columns / max(width - 1, 1) - 1, 2 * rows / max(height - 1, 1) - 1], -1)
    return F.grid_sample(x, grid.to(x), mode="bilinear", padding_mode=edge, align_corners=True)


def _by_pillow(x: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    pixels: NDArray[np.uint8] = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    images = (Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in pixels)
    changed = np.stack([np.asarray(change(image)).reshape(pixels.shape[1:]) for image in images])
    return torch.from_numpy(changed).permute(0, 3, 1, 2).to(torch.float32) / 255


def _through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    held = BytesIO()
    image.save(held, "JPEG", quality=quality)
    return Image.open(held)
