"""KLOM: how far the outputs of many unlearned models are from those of many retrained ones, image by image."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rub.errors import RubError

BINS = 20
LEAST = 1e-5  # probability of a bin that no retrained model falls into
LARGEST = 100.0  # margins are cut there
FEWEST = 10  # models a side: of fewer, most of the divergence is that of few draws


def klom(unlearned: ArrayLike, retrained: ArrayLike) -> NDArray[np.float64]:
    """KL divergence of margins of each image, float (N,), in nats, from 0 (Georgiev et al. 2024, arXiv 2410.23232).

    D_KL(h(m_u) || h(m_r)), with m the margins log p_y / (1 - p_y) of an image in every model, and h their histogram
    over 20 equal bins between the smallest and the largest of both; a bin that no retrained model falls into counts
    1e-5. Their code loses the largest margin of each image, on the edge of the last bin; here it is in that bin.

    Args:
        unlearned: margins, float (M, N), of models that one method made, each with a seed of its own.
        retrained: margins, float (R, N), of retrained models.

    Raises:
        RubError: fewer than `FEWEST` models on a side.

    Example:
        >>> margins = np.arange(10.0)[:, None]
        >>> klom(margins, margins).round(6).tolist(), klom(margins, margins + 20).round(1).tolist()
        ([0.0], [9.6])
    """
    sides = [np.clip(np.asarray(part, np.float64), -LARGEST, LARGEST) for part in (unlearned, retrained)]
    for side, name in zip(sides, ("unlearned", "retrained"), strict=True):
        if len(side) < FEWEST:
            raise RubError(f"KLOM: {len(side)} {name} models; it takes {FEWEST} of both at least")
    both = np.concatenate(sides)
    low, high = both.min(axis=0), both.max(axis=0)
    width = np.where(high > low, high - low, 1.0)
    shares = []
    for side in sides:
        places = np.minimum(((side - low) / width * BINS).astype(np.int64), BINS - 1)
        shares.append(np.stack([(places == k).mean(axis=0) for k in range(BINS)]))
    p, q = shares[0], np.where(shares[0] > 0, np.maximum(shares[1], LEAST), shares[1])
    q /= q.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log(p / q), 0.0)
    return np.asarray(terms.sum(axis=0))
