"""Every metric of the image-to-image task, with the function that computes it, and its per-image scores."""

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rub.metrics.base import Cells, Metric, Outputs
from rub.metrics.generative import frechet_distance, inception_score, kernel_distance, singular_covariance

if TYPE_CHECKING:
    from torch import Tensor

KID_SUBSETS, KID_SIZE = 100, 1000  # torch-fidelity's; with fewer images all of them are one subset


def inception(outputs: Outputs) -> float:
    """Inception Score by the judge's logits."""
    return inception_score(outputs.logits, splits=outputs.spec["is_splits"])[0]


def fid(outputs: Outputs) -> float:
    """FID to the real images."""
    return frechet_distance(outputs.features, outputs["real"].features)


def fid_original(outputs: Outputs) -> float:
    """FID to what the original makes."""
    return frechet_distance(outputs.features, outputs["original"].features)


def kid(outputs: Outputs) -> float:
    """KID to the real images."""
    size = min(KID_SIZE, len(outputs))
    real = outputs["real"].features
    return kernel_distance(outputs.features, real, subsets=KID_SUBSETS, subset_size=size, seed=2020)[0]


def mean_of(score: str, outputs: Outputs) -> float | None:
    """Mean of one of the per-image scores; None where it could not be had."""
    import torch

    values = outputs.scores.get(score)
    return None if values is None else float(torch.from_numpy(values).double().mean())


def recovered(outputs: Outputs) -> NDArray[np.bool_]:
    """Which images are as near to the original's output as the protocol asks."""
    return np.asarray(outputs.scores["mse_original"] <= outputs.spec["recovered_below"])


def excess(outputs: Outputs) -> float:
    """Share recovered minus that of the retrained model."""
    reference = outputs["retrained"]
    if not np.array_equal(reference.ids, outputs.ids):
        raise ValueError("the retrained model was attacked on other images")
    return float(recovered(outputs).mean() - (reference.scores["step"] >= 0).mean())


def both_converged(outputs: Outputs) -> dict[str, bool]:
    """Whether the search had ended, and that on the retrained model too."""
    return {"converged": outputs.facts["converged"] and outputs["retrained"].facts["converged"]}


def by_splits(outputs: Outputs) -> dict[str, str]:
    """What the Inception Score depends on."""
    return _judged(outputs, f"{outputs.spec['is_splits']} splits, shuffled, seed 2020")


def to_real(outputs: Outputs) -> dict[str, str]:
    """What FID to the real images depends on."""
    return _judged(outputs, f"to the same {len(outputs)} real images{_few(outputs)}")


def to_original(outputs: Outputs) -> dict[str, str]:
    """What FID to the original's reconstructions depends on."""
    return _judged(outputs, f"to the original's reconstructions{_few(outputs)}")


def unbiased(outputs: Outputs) -> dict[str, str]:
    """What KID depends on."""
    return _judged(outputs, f"to the same {len(outputs)} real images")


def threshold(outputs: Outputs) -> dict[str, str]:
    """What counts as recovered."""
    return {"setting": f"mse_original <= {outputs.spec['recovered_below']:g}"}


def _judged(outputs: Outputs, setting: str) -> dict[str, str]:
    told = "; ".join(part for part in (setting, outputs.facts["judge"]) if part)
    return {"extractor": outputs.facts["extractor"], "setting": told}


def _few(outputs: Outputs) -> str:
    count, dimension = outputs.features.shape
    few = f"; {count} images for {dimension} features: FID is biased up"
    return few if singular_covariance(count, dimension) else ""


_INF = float("inf")

METRICS: tuple[Metric, ...] = (
    Metric("is", "IS", "Inception Score of the pasted reconstructions", inception, "up", "score", 2, low=1, high=_INF,
           attacked=True, facts=by_splits),
    Metric("fid", "FID", "FID of the pasted reconstructions to the real images", fid, "down", "distance", 2, high=_INF,
           needs=("real",), attacked=True, facts=to_real),
    Metric("fid_original", "FID", "FID to the original model's reconstructions", fid_original, "down", "distance", 2,
           high=_INF, needs=("original",), attacked=True, facts=to_original),
    Metric("kid", "KID", "KID to the real images; unbiased, unlike FID of few", kid, "down", "distance", 4, low=-1,
           high=_INF, needs=("real",), attacked=True, facts=unbiased),
    Metric("mse_original", "MSE", "masked patches against the original's output", partial(mean_of, "mse_original"),
           "down", "mse", 4, high=_INF, attacked=True),
    Metric("mse_input", "MSE", "masked patches against the true image", partial(mean_of, "mse_input"), "down", "mse", 4,
           high=_INF, attacked=True),
    Metric("psnr", "PSNR", "masked patches against the original's output, mean of dB", partial(mean_of, "psnr"), "up",
           "dB", 1, high=_INF, attacked=True),
    Metric("ssim", "SSIM", "pasted reconstruction against the original's", partial(mean_of, "ssim"), "up", "score", 3,
           low=-1, attacked=True),
    Metric("lpips", "LPIPS", "pasted reconstruction against the original's", partial(mean_of, "lpips"), "down",
           "distance", 3, high=_INF, attacked=True, optional=True),
    Metric("recovered", "recovered", "images within the protocol's distance of the original's output", recovered,
           "reference", attacked=True, facts=threshold),
    Metric("residual_knowledge", "excess", "recovered forget images minus the retrained model's", excess, "down",
           low=-1, needs=("retrained",), stage="", attacked=True, facts=both_converged),
)  # fmt: skip
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


def metrics_for(split: str, *, retrained: bool = False) -> list[Metric]:
    """Metrics of the images of a set: of those that were steered, whether they got there."""
    if split == "steered":
        return [item for item in METRICS if item.name in ("mse_original", "recovered")]
    return [item for item in METRICS if item.stage or (retrained and split == "forget")]


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
