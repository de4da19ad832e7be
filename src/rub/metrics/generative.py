"""Scores of generated images as pure functions on features and logits: FID, KID, Inception Score.

All functions accept NumPy arrays or CPU tensors and compute in float64: float32 covariances gave negative distances for
sets of the same law. The features and logits come from a `rub.judges.base.Judge`, which says by name and SHA-256
which network judged; numbers of two judges, or of two different N, are not comparable.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rub.errors import RubError

Matrix = NDArray[np.float64]
LARGEST = 1e30  # of a feature or logit: cubes of products of larger ones are beyond float64


def singular_covariance(count: int, dimension: int) -> bool:
    """Whether the covariance of N images and d features is singular, where the upward bias of FID is large.

    A centred set of N images has rank N - 1 at most, so this is N <= d. FID still has a value, but two such values
    compare only at the same N; the authors of FID ask for N > d (2048), better 5,000.

    Example:
        >>> singular_covariance(2048, 2048), singular_covariance(2049, 2048)
        (True, False)
    """
    return count <= dimension


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    r"""Frechet distance (FID), >= 0, of the normal laws fitted to two sets of features; squared, as FID always is.

    \|mu_a - mu_b\|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2), with unbiased covariances (Heusel et al. 2017). The last
    trace is the nuclear norm of A B^T, where A and B are the centred features over sqrt(n - 1); sets much larger than d
    go through the eigenvalues of S_a^(1/2) S_b S_a^(1/2) instead, whichever is less work.

    Args:
        a: features (N, d), any finite values.
        b: features (M, d).

    Raises:
        RubError: features of another shape than (N, d), of two different d or not finite; fewer than two in a set.

    Example:
        >>> frechet_distance([[0.0], [2.0]], [[3.0], [7.0]])  # means 1 and 5, standard deviations 2^.5 and 8^.5
        18.0
    """
    first, second = _pair(a, b)
    mean_a, mean_b = first.mean(0), second.mean(0)
    A = (first - mean_a) / np.sqrt(len(first) - 1)
    B = (second - mean_b) / np.sqrt(len(second) - 1)
    cross = _trace_nuclear(A, B) if _nuclear_is_cheaper(len(A), len(B), A.shape[1]) else _trace_eigen(A, B)
    distance = np.square(mean_a - mean_b).sum() + np.square(A).sum() + np.square(B).sum() - 2 * cross
    return float(max(distance, 0.0))


def _nuclear_is_cheaper(n: int, m: int, d: int) -> bool:
    # Multiplications: product and singular values of (n, m), against covariances and eigenvalues of (d, d).
    return n * m * (2 * d + 4 * min(n, m)) <= 2 * d**2 * (n + m) + 15 * d**3


def _trace_nuclear(A: Matrix, B: Matrix) -> float:
    return float(np.linalg.svd(A @ B.T, compute_uv=False).sum())


def _trace_eigen(A: Matrix, B: Matrix) -> float:
    values, vectors = np.linalg.eigh(A.T @ A)  # what rounding puts below 0 counts as 0
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    return float(np.sqrt(np.linalg.eigvalsh(root @ (B.T @ B) @ root).clip(0)).sum())


def kernel_distance(
    a: ArrayLike, b: ArrayLike, *, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> tuple[float, float]:
    """Kernel distance (KID) of two sets of features: mean and population standard deviation over random subsets.

    The unbiased squared MMD with the kernel k(x, y) = (x . y / d + 1)^3 (Binkowski et al. 2018). Unlike FID it is not
    biased by N, and may fall below 0. Subsets are drawn as torch-fidelity draws them. A set of up to ``subset_size``
    images is always taken whole; when both are, there is one estimate, and its standard deviation is 0.

    Args:
        a: features (N, d), any finite values.
        b: features (M, d).
        subsets: how many estimates to average, at least 1.
        subset_size: images of each set per estimate, at least 2.
        seed: of NumPy's RandomState that draws the subsets.

    Raises:
        RubError: features that do not fit, as for `frechet_distance`; subsets below 1, or of fewer than two images.

    Example:
        >>> kernel_distance([[0.0], [1.0]], [[0.0], [1.0]])  # unbiased: below 0 for two equal sets
        (-3.5, 0.0)
    """
    first, second = _pair(a, b)
    if subsets < 1 or subset_size < 2:
        raise RubError(f"KID: {subsets} subsets of {subset_size} images: needs 1 or more subsets of 2 or more")
    if max(len(first), len(second)) <= subset_size:
        return _squared_mmd(first, second), 0.0
    random = np.random.RandomState(seed)
    estimates = []
    for _ in range(subsets):
        x, y = (s[random.choice(len(s), min(len(s), subset_size), replace=False)] for s in (first, second))
        estimates.append(_squared_mmd(x, y))
    return float(np.mean(estimates)), float(np.std(estimates))


def _squared_mmd(x: Matrix, y: Matrix) -> float:
    same_x, same_y, across = ((u @ v.T / u.shape[1] + 1) ** 3 for u, v in ((x, x), (y, y), (x, y)))
    # Unbiased: pairs of an image with itself do not count.
    within = (float((k.sum() - k.trace()) / (len(k) * (len(k) - 1))) for k in (same_x, same_y))
    return sum(within) - 2 * float(across.mean())


def inception_score(logits: ArrayLike, *, splits: int = 10, seed: int | None = 2020) -> tuple[float, float]:
    """Inception Score of a set of logits: mean, 1 to C, and population standard deviation over splits.

    exp(mean_i KL(p_i || mean_i p_i)) of each split, p_i = softmax(logits_i) (Salimans et al. 2016). A split cannot
    score above its number of images or of classes, and images sorted by class score low; so images are shuffled first,
    as torch-fidelity does, and N and the splits belong beside every value.

    Args:
        logits: (N, C), any finite values.
        splits: how many equal parts, 1 to N.
        seed: of NumPy's RandomState that shuffles; None keeps the order.

    Raises:
        RubError: logits of another shape than (N, C) or not finite; fewer images than splits, or no split.

    Example:
        >>> inception_score(1e3 * np.eye(4), splits=1)  # four images, each surely of another class
        (4.0, 0.0)
    """
    values = _matrix(logits, "logits", "C")
    count = len(values)
    if not 1 <= splits <= count:
        raise RubError(f"Inception Score: {count} images in {splits} splits: needs 1 or more images in each")
    if seed is not None:
        values = values[np.random.RandomState(seed).permutation(count)]
    shifted = values - values.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    p = np.exp(log_p)
    scores = []
    for i in range(splits):
        part = slice(i * count // splits, (i + 1) * count // splits)
        q = p[part].mean(0)
        # Mean KL = entropy of the mean - mean entropy; a class that no image has counts 0, not 0 * log 0.
        information = (p[part] * log_p[part]).sum(1).mean() - (q * np.log(np.where(q > 0, q, 1))).sum()
        scores.append(np.exp(information))
    return float(np.mean(scores)), float(np.std(scores))


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[Matrix, Matrix]:
    first, second = _matrix(a, "features", "d"), _matrix(b, "features", "d")
    if first.shape[1] != second.shape[1]:
        raise RubError(f"features: d = {first.shape[1]} in one set, {second.shape[1]} in the other; use one judge")
    if (fewest := min(len(first), len(second))) < 2:
        raise RubError(f"features: {fewest} images in a set: a spread needs 2 or more")
    return first, second


def _matrix(values: ArrayLike, what: str, width: str) -> Matrix:
    try:
        given = np.asarray(values)
        matrix = given.astype(np.float64, copy=False) if not np.iscomplexobj(given) else None
    except (TypeError, ValueError, RuntimeError):  # text, rows of several lengths, a tensor with gradients
        matrix = None
    if matrix is None:
        raise RubError(f"{what}: should be real numbers (N, {width}), of an array or a detached tensor on the CPU")
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise RubError(f"{what}: shape {matrix.shape}; should be (N, {width}), a row per image")
    if bad := int((~np.isfinite(matrix).all(1)).sum()):
        raise RubError(f"{what}: not finite for {bad} of {len(matrix)} images; look at the images and the judge")
    if large := int((np.abs(matrix) > LARGEST).any(1).sum()):
        raise RubError(f"{what}: beyond {LARGEST:g} for {large} of {len(matrix)} images; look at the judge")
    return matrix
