"""Every metric of the image-to-image task, with the function that computes it, and its per-image scores."""

import math
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rub.metrics.base import Cells, Counted, Metric, Outputs
from rub.metrics.generative import frechet_distance, inception_score, kernel_distance, singular_covariance
from rub.metrics.statistics import NORMAL, wilson

if TYPE_CHECKING:
    from torch import Tensor

PAIRED = "own"  # what steered images are contrasted with: the same ones on the way to their own output
ROUNDING = 1 / 255**2 / 12  # mean squared error of rounding to 8 bits
KEEPS = 0.95  # of the original's skill on kept images: a method that leaves less damaged what it was to keep
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


def skill(outputs: Outputs) -> NDArray[np.float64]:
    """Skill of each image, float (N,): 1 - its error over the mean error of painting in the mean colour of the rest.

    The error is the mean squared one to the true masked patches (skill score against a reference forecast, Murphy,
    Monthly Weather Review 1988). 1 is the true image; 0 and below is no better than a colour.
    """
    return _skill(outputs, "mse_input")


def _skill(outputs: Outputs, error: str) -> NDArray[np.float64]:
    flat: float = outputs.scores["mse_flat"].mean(dtype=np.float64)
    return np.asarray(1 - outputs.scores[error].astype(np.float64) / flat)


def skill_contrast(outputs: Outputs) -> Counted:
    """Fall of skill since the original, in the mean: that on forgotten images minus that on kept ones."""
    falls = [_skill(side, "mse_before") - _skill(side, "mse_input") for side in (outputs, outputs["retain"])]
    value = float(falls[0].mean() - falls[1].mean())
    half = NORMAL * math.sqrt(sum(fall.var(ddof=1) / len(fall) for fall in falls))
    return Counted(value, sum(map(len, falls)), value - half, value + half)


def contrast(score: Callable[[Outputs], float], sign: int, outputs: Outputs) -> Counted:
    """Change of a set's score since the original, times `sign`: that of forgotten images minus that of kept ones."""
    sides = outputs, outputs["retain"]
    changes = [score(side) - score(replace(side["original"], others=side.others, spec=side.spec)) for side in sides]
    return Counted(sign * (changes[0] - changes[1]), sum(map(len, sides)))


def back(outputs: Outputs) -> Counted:
    """Share of the images that had gone which the search brought back; NaN where none had gone."""
    gone = outputs.scores["start"] > outputs.spec["recovered_below"]
    hits, n = int(recovered(outputs)[gone].sum()), int(gone.sum())
    return Counted(hits / n, n, *wilson(hits, n)) if n else Counted(math.nan, 0)


def selectivity(outputs: Outputs) -> NDArray[np.float64]:
    """log2 of the distance left to an unrelated output over that left to the own one, float (N,), on the same images.

    Distances below the rounding of 8-bit images count as that.
    """
    own, count = outputs[PAIRED], len(outputs)
    if not np.array_equal(outputs.ids, own.ids[:count]):
        raise ValueError("other images were steered than are attacked")
    distances = (side.scores["mse_original"][:count].astype(np.float64) for side in (outputs, own))
    other, near = (np.maximum(distance, ROUNDING) for distance in distances)
    return np.asarray(np.log2(other / near))


def excess(outputs: Outputs) -> NDArray[np.float64]:
    """Whether each image is recovered, minus whether it is from the retrained model, float (N,)."""
    reference = outputs["retrained"]
    if not np.array_equal(reference.ids, outputs.ids):
        raise ValueError("the retrained model was attacked on other images")
    return recovered(outputs).astype(np.float64) - (reference.scores["step"] >= 0)


def both_ended(other: str, outputs: Outputs) -> dict[str, bool]:
    """Whether the search had ended, and the one beside it too; nothing without a search."""
    if "converged" not in outputs.facts:
        return {}
    return {"converged": outputs.facts["converged"] and outputs[other].facts["converged"]}


def of_contrast(setting: Callable[[Outputs], dict[str, str]], outputs: Outputs) -> dict[str, Any]:
    """What the contrast of a score depends on: what the score does, on both sets."""
    return {**setting(outputs), **both_ended("retain", outputs)}


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
           needs=("real",), attacked=True, facts=to_real, knowledge="falls"),
    Metric("fid_original", "FID", "FID to the original model's reconstructions", fid_original, "down", "distance", 2,
           high=_INF, needs=("original",), attacked=True, facts=to_original, knowledge="falls"),
    Metric("kid", "KID", "KID to the real images; unbiased, unlike FID of few", kid, "down", "distance", 4, low=-1,
           high=_INF, needs=("real",), attacked=True, facts=unbiased, knowledge="falls"),
    Metric("mse_original", "MSE", "masked patches against the original's output", partial(mean_of, "mse_original"),
           "down", "mse", 4, high=_INF, attacked=True, knowledge="falls"),
    Metric("mse_input", "MSE", "masked patches against the true image", partial(mean_of, "mse_input"), "down", "mse", 4,
           high=_INF, attacked=True, knowledge="falls"),
    Metric("psnr", "PSNR", "masked patches against the original's output, mean of dB", partial(mean_of, "psnr"), "up",
           "dB", 1, high=_INF, attacked=True, knowledge="rises"),
    Metric("ssim", "SSIM", "pasted reconstruction against the original's", partial(mean_of, "ssim"), "up", "score", 3,
           low=-1, attacked=True, knowledge="rises"),
    Metric("lpips", "LPIPS", "pasted reconstruction against the original's", partial(mean_of, "lpips"), "down",
           "distance", 3, high=_INF, attacked=True, optional=True, knowledge="falls"),
    Metric("skill", "skill", "explained of the masked patches beyond the mean colour of the visible ones", skill, "up",
           low=-_INF, attacked=True, knowledge="rises"),
    Metric("skill_contrast", "F - R", "fall of skill since the original on forgotten images minus that on kept ones",
           skill_contrast, "reference", low=-_INF, high=_INF, needs=("retain",), attacked=True,
           facts=partial(both_ended, "retain"), knowledge="falls"),
    Metric("fid_contrast", "F - R", "rise of FID since the original on forgotten images minus that on kept ones",
           partial(contrast, fid, 1), "reference", "distance", 2, low=-_INF, high=_INF,
           needs=("retain", "real", "original"), attacked=True, facts=partial(of_contrast, to_real)),
    Metric("kid_contrast", "F - R", "rise of KID since the original on forgotten images minus that on kept ones",
           partial(contrast, kid, 1), "reference", "distance", 4, low=-_INF, high=_INF,
           needs=("retain", "real", "original"), attacked=True, facts=partial(of_contrast, unbiased)),
    Metric("is_contrast", "F - R", "fall of IS since the original on forgotten images minus that on kept ones",
           partial(contrast, inception, -1), "reference", "score", 2, low=-_INF, high=_INF,
           needs=("retain", "original"), attacked=True, facts=partial(of_contrast, by_splits)),
    Metric("back", "back", "of the images that had gone without an attack, those that it brings back", back,
           "reference", stage="", attacked=True, facts=threshold, share=True),
    Metric("selectivity", "selectivity", "log2 of the distance left to an unrelated output over that to the own",
           selectivity, "reference", "bits", 1, low=-_INF, high=_INF, needs=(PAIRED,), stage="",
           attacked=True, facts=partial(both_ended, PAIRED), knowledge="rises"),
    Metric("recovered", "recovered", "images within the protocol's distance of the original's output", recovered,
           "reference", attacked=True, facts=threshold, knowledge="rises", share=True),
    Metric("residual_knowledge", "excess", "recovered forget images minus the retrained model's", excess, "down",
           low=-1, needs=("retrained",), stage="", attacked=True, facts=partial(both_ended, "retrained")),
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


def metrics_for(split: str, others: Collection[str] = (), *, attacked: bool = False) -> list[Metric]:
    """Metrics of the images of a set: of those that were steered, how far they are from it, and whether they got there.

    Args:
        split: the set.
        others: what is known beside its outputs, of what `Metric.needs` names; see `beside`.
        attacked: whether they come from a search.
    """
    found = [item for item in METRICS if set(item.needs) <= set(others) and (item.stage or attacked)]
    if split != "steered":
        return found
    return [item for item in found if item.name in ("mse_original", "recovered") or PAIRED in item.needs]


def split_of(metric: Metric, split: str) -> str:
    """Set that a value measured on a set is of: a contrast of steered images with themselves is of the forgotten ones.

    Example:
        >>> [split_of(metric, "steered") for metric in METRICS if metric.name in ("recovered", "selectivity")]
        ['forget', 'steered']
    """
    return metric.split if PAIRED in metric.needs else split


def beside(split: str, splits: Collection[str], *, retrained: bool = False) -> set[str]:
    """What is known beside the outputs of a set where these sets, and perhaps the retrained model, are attacked too."""
    if split == "steered":
        return {PAIRED} if "forget" in splits else set()
    found = {"real", "original"}
    if split == "forget":
        found |= set(splits) & {"retain"} | ({"retrained"} if retrained else set())
    return found


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
