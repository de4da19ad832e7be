"""The declaration of every metric of the image-to-image task, and its per-image scores as pure functions."""

from typing import TYPE_CHECKING, Any

from rub.metrics.base import Cells, Metric

if TYPE_CHECKING:
    from torch import Tensor

METRICS_DECLARED: tuple[Metric, ...] = (
    Metric("is", "up", "score", 1, float("inf"), "Inception Score of the pasted reconstructions"),
    Metric("fid", "down", "distance", 0, float("inf"), "FID of the pasted reconstructions to the real images"),
    Metric("fid_original", "down", "distance", 0, float("inf"), "FID to the original model's reconstructions"),
    Metric("kid", "down", "distance", -1, float("inf"), "KID to the real images; unbiased, unlike FID of few"),
    Metric("mse_original", "down", "mse", 0, float("inf"), "masked patches against the original's output"),
    Metric("mse_input", "down", "mse", 0, float("inf"), "masked patches against the true image"),
    Metric("psnr", "up", "dB", 0, float("inf"), "masked patches against the original's output, mean of dB"),
    Metric("ssim", "up", "score", -1, 1, "pasted reconstruction against the original's"),
    Metric("lpips", "down", "distance", 0, float("inf"), "pasted reconstruction against the original's"),
    Metric(
        "recovered", "reference", "fraction", 0, 1, "images within the protocol's distance of the original's output"
    ),
    Metric("residual_knowledge", "down", "fraction", -1, 1, "recovered forget images minus the retrained model's"),
)
"""Every metric of the task, in the order of its tables, with its direction on *retained* images, which should stay as
the original has them. On forgotten images none is better as such: a model that never saw them is the reference."""
_cells = Cells(METRICS_DECLARED)
_EXCESS = "residual_knowledge"


def cell(
    method: str, seed: int, metric: str, split: str, *, attack: str = "none", budget: str = "none"
) -> dict[str, Any]:
    """Return the record fields that name one cell; on forget images the direction is ``reference``.

    Example:
        >>> cell("i2i", 0, "fid", "retain")["direction"], cell("i2i", 0, "fid", "forget")["direction"]
        ('down', 'reference')
    """
    fields = _cells(method, seed, metric, split, attack=attack, budget=budget)
    return fields if split == "retain" or metric == _EXCESS else {**fields, "direction": "reference"}


def psnr(mse: "Tensor") -> "Tensor":
    """Return 10 log10(1 / mse), in dB for images of range 1; capped at 100 dB, which is an error below 8-bit rounding.

    Example:
        >>> import torch
        >>> psnr(torch.tensor([0.01, 0.0]))
        tensor([ 20., 100.])
    """
    return (-10 * mse.clamp_min(1e-10).log10()).clamp_max(100.0)


def ssim(images: "Tensor", others: "Tensor") -> "Tensor":
    """Return the structural similarity of each pair (Wang et al. 2004; torchmetrics' Gaussian window), float32 (N,).

    Args:
        images: float (N, C, H, W) in [0, 1].
        others: likewise.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    scores: Tensor = structural_similarity_index_measure(images, others, data_range=1.0, reduction="none")
    return scores.reshape(len(images))
