"""The declaration of every metric of the image-to-image task, and its per-image scores as pure functions."""

from typing import TYPE_CHECKING, Any

from rub.metrics.base import Cells, Metric

if TYPE_CHECKING:
    from torch import Tensor

_INF = float("inf")

METRICS: tuple[Metric, ...] = (
    Metric("is", "IS", "Inception Score of the pasted reconstructions", "up", "score", 2, low=1, high=_INF),
    Metric("fid", "FID", "FID of the pasted reconstructions to the real images", "down", "distance", 2, high=_INF),
    Metric("fid_original", "FID", "FID to the original model's reconstructions", "down", "distance", 2, high=_INF),
    Metric(
        "kid", "KID", "KID to the real images; unbiased, unlike FID of few", "down", "distance", 4, low=-1, high=_INF
    ),
    Metric("mse_original", "MSE", "masked patches against the original's output", "down", "mse", 4, high=_INF),
    Metric("mse_input", "MSE", "masked patches against the true image", "down", "mse", 4, high=_INF),
    Metric("psnr", "PSNR", "masked patches against the original's output, mean of dB", "up", "dB", 1, high=_INF),
    Metric("ssim", "SSIM", "pasted reconstruction against the original's", "up", "score", 3, low=-1),
    Metric("lpips", "LPIPS", "pasted reconstruction against the original's", "down", "distance", 3, high=_INF),
    Metric("recovered", "recovered", "images within the protocol's distance of the original's output", "reference"),
    Metric("residual_knowledge", "excess", "recovered forget images minus the retrained model's", "down", low=-1),
)
"""Every metric of the task, in the order of its tables, with its direction on *retained* images, which should stay as
the original has them. On forgotten images none is better as such: a model that never saw them is the reference."""
_cells = Cells(METRICS)
_EXCESS = "residual_knowledge"


def cell(
    method: str, seed: int, metric: str, split: str, *, attack: str = "none", budget: str = "none"
) -> dict[str, Any]:
    """Record fields that name one cell; on forget images the direction is ``reference``.

    Example:
        >>> cell("i2i", 0, "fid", "retain")["direction"], cell("i2i", 0, "fid", "forget")["direction"]
        ('down', 'reference')
    """
    fields = _cells(method, seed, metric, split, attack=attack, budget=budget)
    return fields if split == "retain" or metric == _EXCESS else {**fields, "direction": "reference"}


def psnr(mse: "Tensor") -> "Tensor":
    """10 log10(1 / mse), in dB for images of range 1; capped at 100 dB, which is an error below 8-bit rounding.

    Example:
        >>> import torch
        >>> psnr(torch.tensor([0.01, 0.0]))
        tensor([ 20., 100.])
    """
    return (-10 * mse.clamp_min(1e-10).log10()).clamp_max(100.0)


def ssim(images: "Tensor", others: "Tensor") -> "Tensor":
    """Structural similarity of each pair (Wang et al. 2004; torchmetrics' Gaussian window), float32 (N,).

    Args:
        images: float (N, C, H, W) in [0, 1].
        others: likewise.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    scores: Tensor = structural_similarity_index_measure(images, others, data_range=1.0, reduction="none")
    return scores.reshape(len(images))
