"""What membership attacks look at: per-sample signals of logits and labels, in float64 and without rounding at p = 1.

Every function accepts NumPy arrays or CPU tensors.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr, log_softmax, logsumexp, softmax

from rub.errors import unknown
from rub.metrics.accuracy import checked, correct

Floats = NDArray[np.float64]
Feature = Literal["confidence", "correctness", "entropy", "modified_entropy", "prob"]


def true_log_probability(logits: ArrayLike, labels: ArrayLike) -> Floats:
    """Logarithm of p_y, float64 (N,), of logits (N, C) and labels (N,)."""
    z, y = checked(logits, labels)
    return np.asarray(log_softmax(z, axis=1)[np.arange(len(y)), y])


def logit_confidence(logits: ArrayLike, labels: ArrayLike) -> Floats:
    """Logit-scaled confidence log p_y - log(1 - p_y) = z_y - logsumexp_{j != y} z_j.

    Float64 (N,), finite: the signal of LiRA (Carlini et al., IEEE S&P 2022). Computed from logits, it stays exact where
    p_y rounds to 1.

    Args:
        logits: float (N, C), C >= 2, finite.
        labels: integer (N,).

    Example:
        >>> logit_confidence([[100.0, 0.0]], [0]).tolist()
        [100.0]
    """
    z, y = checked(logits, labels)
    rows = np.arange(len(y))
    others = z.copy()
    others[rows, y] = -np.inf
    return np.asarray(z[rows, y] - logsumexp(others, axis=1))


def entropy(logits: ArrayLike) -> Floats:
    """Entropy -sum_j p_j log p_j, float64 (N,), in [0, log C], of logits (N, C)."""
    return np.asarray(entr(softmax(np.asarray(logits, np.float64), axis=1)).sum(axis=1))


def modified_entropy(logits: ArrayLike, labels: ArrayLike) -> Floats:
    """Modified entropy -(1 - p_y) log p_y - sum_{j != y} p_j log(1 - p_j) (Song & Mittal, USENIX Security 2021).

    Float64 (N,), >= 0 and finite: near 0 for a confident right answer and large for a confident wrong one. Unlike
    SalUn's `evaluation/SVC_MIA.py`, a sample's value does not depend on the other samples of its batch.

    Args:
        logits: float (N, C), C >= 2, finite; pass log-probabilities when only those are known.
        labels: integer (N,).

    Example:
        >>> bool(modified_entropy([[9.0, 0.0]], [0])[0] < 0.01 < modified_entropy([[9.0, 0.0]], [1])[0])
        True
    """
    z, y = checked(logits, labels)
    log_p = np.asarray(log_softmax(z, axis=1))
    p, rows, top = np.exp(log_p), np.arange(len(y)), z.argmax(axis=1)
    log_rest = np.log1p(-np.where(np.arange(z.shape[1]) == top[:, None], 0, p))
    # 1 - p of the largest probability may round to 0: take it from the logits
    log_rest[rows, top] = log_p[rows, top] - logit_confidence(z, top)
    terms = p * log_rest
    terms[rows, y] = np.exp(log_rest[rows, y]) * log_p[rows, y]
    return np.asarray(-terms.sum(axis=1))


def shokri_features(logits: ArrayLike, labels: ArrayLike) -> Floats:
    """Features, float (N, 3 + min(3, C)): logit-scaled confidence, the three largest p, entropy, correctness."""
    z, y = checked(logits, labels)
    top = -np.sort(-np.asarray(softmax(z, axis=1)), axis=1)[:, :3]
    return np.column_stack([logit_confidence(z, y), top, entropy(z), correct(z, y)])


def svc_features(feature: Feature) -> Callable[[ArrayLike, ArrayLike], Floats]:
    """Function (logits, labels) -> float (N, F) of one of SalUn's five features; F = 1 but for "prob"."""
    table: dict[str, Callable[[ArrayLike, ArrayLike], Floats]] = {
        "confidence": lambda z, y: np.exp(true_log_probability(z, y))[:, None],
        "correctness": lambda z, y: correct(z, y).astype(np.float64)[:, None],
        "entropy": lambda z, y: entropy(z)[:, None],
        "modified_entropy": lambda z, y: modified_entropy(z, y)[:, None],
        "prob": lambda z, y: np.asarray(softmax(checked(z, y)[0], axis=1)),
    }
    if feature not in table:
        raise unknown("SVC feature", feature, table)
    return table[feature]
