"""Accuracy, and what a model still knows of forgotten classes: pure functions on logits, features and labels.

All functions accept NumPy arrays or CPU tensors and compute in float64. scikit-learn is imported inside the functions
that use it, so that listing the metrics stays fast.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rub.errors import Diverged, RubError


def correct(logits: ArrayLike, labels: ArrayLike) -> NDArray[np.bool_]:
    """Which samples, bool (N,), the largest logit classifies right; its mean is TA, RA or UA of that set.

    Args:
        logits: float (N, C), finite; the first class wins a tie.
        labels: integer (N,), in 0..C-1.

    Raises:
        ValueError: the shapes do not fit or a label is outside 0..C-1.
        Diverged: a logit is not finite.

    Example:
        >>> correct([[2.0, 1.0], [0.0, 3.0]], [0, 0]).tolist()
        [True, False]
    """
    z, y = checked(logits, labels)
    return np.asarray(z.argmax(axis=1) == y)


def probe_accuracy(
    train_features: ArrayLike,
    train_labels: ArrayLike,
    test_features: ArrayLike,
    test_labels: ArrayLike,
    forget_classes: Sequence[int],
    *,
    seed: int,
    per_class: int = 300,
    total: int = 3000,
) -> float:
    """Recall of forgotten classes (its mean, in [0, 1]) on test images by a linear probe on penultimate features.

    A multinomial logistic regression (L2, C = 1, classes weighted to balance) on standardised features, trained on
    training images of all classes, forgotten ones included; the head of the unlearned model plays no part.

    Args:
        train_features: float (N, D), features of training images, forgotten and kept.
        train_labels: integer (N,).
        test_features: float (M, D), features of test images; only those of forgotten classes count.
        test_labels: integer (M,).
        forget_classes: classes to average over, at least one, present on both sides.
        seed: draws the training images.
        per_class: most training images per class.
        total: most training images in all, shared evenly by the classes (a cost bound for data with many classes).

    Raises:
        RubError: no forgotten class, or one that is missing on either side.

    Example:
        >>> x = [[0.0, 1.0], [0.1, 0.9], [1.0, 0.0], [0.9, 0.1]]
        >>> probe_accuracy(x, [0, 0, 1, 1], x, [0, 0, 1, 1], [1], seed=0)
        1.0
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import recall_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = np.asarray(train_features, np.float64), np.asarray(train_labels)
    x_test, y_test = np.asarray(test_features, np.float64), np.asarray(test_labels)
    check_classes(y, forget_classes, "training labels")
    check_classes(y_test, forget_classes, "test labels", others=False)
    rng, classes = np.random.default_rng(seed), np.unique(y)
    cap = min(per_class, max(1, total // len(classes)))
    kept = np.concatenate([rng.permutation(np.flatnonzero(y == c))[:cap] for c in classes])
    probe = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=300, tol=1e-3))
    probe.fit(x[kept], y[kept])
    asked = np.isin(y_test, list(forget_classes))
    found = probe.predict(x_test[asked])
    return float(recall_score(y_test[asked], found, labels=list(forget_classes), average="macro", zero_division=0))


def js_divergence(logits: ArrayLike, other_logits: ArrayLike) -> NDArray[np.float64]:
    """Jensen-Shannon divergence of two predictions of each sample, float (N,), log base 2, in [0, 1].

    JS(p, q) = (KL(p || m) + KL(q || m)) / 2, m = (p + q) / 2.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> js_divergence([[0.0, 0.0], [99.0, 0.0]], [[0.0, 0.0], [0.0, 99.0]]).round(6).tolist()
        [0.0, 1.0]
    """
    from scipy.special import log_softmax, rel_entr

    p, q = (np.exp(log_softmax(np.asarray(part, np.float64), axis=1)) for part in (logits, other_logits))
    if p.shape != q.shape:
        raise ValueError(f"predictions differ in shape: {p.shape} and {q.shape}")
    middle = (p + q) / 2
    both = rel_entr(p, middle).sum(axis=1) + rel_entr(q, middle).sum(axis=1)
    return np.asarray(np.clip(both / (2 * np.log(2)), 0.0, 1.0))


def residual_knowledge(recovered_unlearned: ArrayLike, recovered_retrained: ArrayLike) -> float:
    """How much more of the forget set the attack recovers from the unlearned than from the retrained model.

    mean(u - r), in [-1, 1], paired by sample: the part of UA after the attack that an attack on a model which never saw
    the data does not explain.

    Args:
        recovered_unlearned: bool (N,), whether the attack recovered each sample from the unlearned model.
        recovered_retrained: bool (N,), the same samples, attack and budget against the retrained model.

    Raises:
        ValueError: the two are empty or differ in shape.

    Example:
        >>> residual_knowledge([True, True, False, True], [False, True, False, False])
        0.5
    """
    u, r = _paired(recovered_unlearned, recovered_retrained)
    return float(u.mean() - r.mean())


def residual_ratio(recovered_unlearned: ArrayLike, recovered_retrained: ArrayLike) -> float:
    """Ratio Pr[unlearned recovers] / Pr[retrained recovers], smoothed by one count on each side.

    (1 + sum u) / (1 + sum r), in [1/(N+1), N+1], after the residual knowledge of RURK (NeurIPS 2025, arXiv 2601.22359).
    The added count keeps it finite where the retrained model recovers nothing, the usual case; 1 means no excess.

    Args:
        recovered_unlearned: bool (N,), as in `residual_knowledge`.
        recovered_retrained: bool (N,), likewise.

    Raises:
        ValueError: the two are empty or differ in shape.

    Example:
        >>> residual_ratio([True, True, True, False], [False, False, False, False])
        4.0
    """
    u, r = _paired(recovered_unlearned, recovered_retrained)
    return float((1 + u.sum()) / (1 + r.sum()))


def checked(logits: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits as float64 (N, C) and labels as int64 (N,), N >= 1, checked.

    Raises:
        ValueError: the shapes do not fit or a label is outside 0..C-1.
        Diverged: a logit is not finite.
    """
    z, y = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    if z.ndim != 2 or y.shape != z.shape[:1] or len(y) == 0:
        raise ValueError(f"need logits (N, C) and labels (N,) with N >= 1, got {z.shape} and {y.shape}")
    if y.min() < 0 or y.max() >= z.shape[1]:
        raise ValueError(f"labels must lie in 0..{z.shape[1] - 1}, got {y.min()}..{y.max()}")
    if not np.isfinite(z).all():
        raise Diverged(f"the logits of {int((~np.isfinite(z)).any(axis=1).sum())} of {len(z)} samples are not finite")
    return z, y


def check_classes(labels: NDArray[np.int64], classes: Sequence[int], where: str, *, others: bool = True) -> None:
    """Refuse labels that lack a forgotten class, or that hold nothing else, unless that may be.

    Raises:
        RubError: no class is given, or one is missing, or no other one is there.
    """
    present = set(labels.tolist())
    missing = sorted(set(classes) - present)
    if not classes or missing:
        raise RubError(f"forget_classes {list(classes)}: need at least one, all in the {where}; missing: {missing}")
    if others and len(present) < 2:
        raise RubError(f"forget_classes {list(classes)}: the {where} hold no other class to compare with")


def _paired(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    u, r = np.asarray(first, np.bool_), np.asarray(second, np.bool_)
    if u.ndim != 1 or u.shape != r.shape or len(u) == 0:
        raise ValueError(f"need two paired outcome lists of one length, got shapes {u.shape} and {r.shape}")
    return u, r
