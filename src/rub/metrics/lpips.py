"""LPIPS where its network is on this machine (Zhang et al., CVPR 2018, arXiv 1801.03924), through torchmetrics."""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

BACKBONE = "alexnet-owt-7be5be79.pth"  # torchvision's file; torchmetrics ships only the linear heads


@cache
def lpips_or_none(device: str) -> Callable[[Tensor, Tensor], Tensor] | None:
    """A function from pairs of images (N, C, H, W) in [0, 1] to LPIPS (N,), or None where it cannot be computed.

    It needs torchvision and AlexNet's weights in torch's hub folder; nothing is downloaded. Grey images are repeated
    to three channels, and images below 64 pixels are enlarged to it, as AlexNet needs.
    """
    present = (Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE).is_file()
    if find_spec("torchvision") is None or not present:
        return None
    from torchmetrics.functional.image.lpips import _LPIPS

    network = _LPIPS(pretrained=True, net="alex", use_dropout=True).to(device).eval().requires_grad_(False)

    def distance(images: Tensor, others: Tensor) -> Tensor:
        first, second = (_fit(side) for side in (images, others))
        values: Tensor = network(first, second, normalize=True)
        return values.reshape(len(images))

    return distance


def _fit(images: Tensor) -> Tensor:
    images = images if images.shape[1] == 3 else images.expand(-1, 3, -1, -1)
    if min(images.shape[2:]) >= 64:
        return images
    return torch.nn.functional.interpolate(images, size=64, mode="bilinear", align_corners=False)
