"""Where knowledge of forgotten classes still is: in the head, the features, or so near in the weights that it returns.

Pure functions of logits, features and labels, in float64; a head is (weight (C, D), bias (C,)) of the layer that makes
logits of penultimate features. None of the scores of a head depends on its *gauge*: a vector that is added to every row
changes no probability, and no score here. Images are few and balanced, so that chance is 1/2 for every data set.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rub.metrics.accuracy import check_classes, checked

Floats = NDArray[np.float64]
Head = tuple[NDArray[np.floating], NDArray[np.floating]]


def log_odds(logits: ArrayLike, label: int) -> Floats:
    """Log-odds of a class, z_c - logsumexp_{j != c} z_j, float64 (N,): log p_c / (1 - p_c) of the softmax.

    It is the same for every head of the same function, which z_c is not.

    Args:
        logits: float (N, C), C >= 2.
        label: the class c.

    Example:
        >>> log_odds([[3.0, 1.0], [7.0, 5.0]], 0).tolist()
        [2.0, 2.0]
    """
    from scipy.special import logsumexp

    z = np.asarray(logits, np.float64)
    return np.asarray(z[:, label] - logsumexp(np.delete(z, label, axis=1), axis=1))


def log_odds_auc(logits: ArrayLike, labels: ArrayLike, forget_classes: Sequence[int]) -> float:
    """How well forgotten classes' log-odds rank test images, in [0, 1]: images of the class against all others.

    mean over c of AUC(`log_odds` of images with y = c against those of the others). A constant that is added to an
    output changes nothing, so it is 1 for a model whose forgotten output is merely lowered, while its UA is 0.

    Args:
        logits: float (N, C), test logits, images of all classes.
        labels: integer (N,).
        forget_classes: classes to average over, at least one, each with test images.

    Raises:
        RubError: no forgotten class, or one for which the labels hold no image, or nothing else.
        ValueError, Diverged: as in `rub.metrics.accuracy.correct`.

    Example:
        >>> log_odds_auc([[1.0, -9.0], [0.5, -8.0], [0.9, -9.5]], [0, 1, 0], [1])
        1.0
    """
    from sklearn.metrics import roc_auc_score

    z, y = checked(logits, labels)
    check_classes(y, forget_classes, "test labels")
    return float(np.mean([roc_auc_score(y == c, log_odds(z, c)) for c in forget_classes]))


def read_by(head: Head, features: ArrayLike) -> Floats:
    """Logits float64 (N, C) that a head makes of features (N, D), its own network's or another's."""
    weight, bias = (np.asarray(part, np.float64) for part in head)
    return np.asarray(np.asarray(features, np.float64) @ weight.T + bias)


def balanced_accuracy(predicted: ArrayLike, labels: ArrayLike, forget_classes: Sequence[int]) -> float:
    """Mean of two shares, in [0, 1]: forgotten images given their class, and kept images given no forgotten one.

    Args:
        predicted: integer (N,).
        labels: integer (N,); each forgotten class counts alike, whatever its number of images.
        forget_classes: at least one, each with images, beside which there are others.

    Raises:
        RubError: as in `log_odds_auc`.

    Example:
        >>> balanced_accuracy([0, 1, 1, 2], [0, 0, 1, 2], [0])
        0.75
    """
    said, y = np.asarray(predicted), np.asarray(labels)
    check_classes(y, forget_classes, "test labels")
    recall = np.mean([np.mean(said[y == c] == c) for c in forget_classes])
    kept = ~np.isin(y, forget_classes)
    return float((recall + np.mean(~np.isin(said[kept], forget_classes))) / 2)


def few(labels: ArrayLike, forget_classes: Sequence[int], seed: int = 0) -> NDArray[np.int64]:
    """Rows of all images of forgotten classes and of as many kept ones, spread evenly over the kept classes, drawn.

    Example:
        >>> few([0, 0, 1, 1, 1, 2, 2, 2], [0]).tolist()
        [0, 1, 4, 7]
    """
    y, rng = np.asarray(labels), np.random.default_rng(seed)
    forgotten = np.flatnonzero(np.isin(y, forget_classes))
    kept = [rng.permutation(np.flatnonzero(y == c)) for c in np.unique(y) if c not in forget_classes]
    by_turns = [rows[turn] for turn in range(max(map(len, kept))) for rows in kept if turn < len(rows)]
    return np.sort(np.concatenate([forgotten, np.array(by_turns[: len(forgotten)], np.int64)]))


def head_refit(
    features: ArrayLike,
    labels: ArrayLike,
    test_features: ArrayLike,
    test_labels: ArrayLike,
    head: Head,
    forget_classes: Sequence[int],
) -> float:
    """Balanced accuracy, in [0, 1], after the head's rows of forgotten classes are fitted anew; all others stay.

    The logit of a forgotten class is m(x) + v . s(x) + b: m is the mean of the kept logits and s the features,
    standardised, so that the penalty |v|^2 / 2 knows no gauge. The rows minimise the sum of the cross-entropy over all
    classes plus that penalty (L-BFGS; the problem is convex and has one solution).

    Args:
        features: float (N, D), of the images to fit to: `few`.
        labels: integer (N,).
        test_features: float (M, D), of unseen images of all classes.
        test_labels: integer (M,).
        head: of the same network.
        forget_classes: at least one, with images on both sides, beside which there are others.

    Raises:
        RubError: as in `log_odds_auc`.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    x, y = np.asarray(features, np.float64), np.asarray(labels)
    check_classes(y, forget_classes, "training labels")
    columns, rows = list(forget_classes), np.arange(len(y))
    kept = np.setdiff1d(np.arange(len(head[0])), columns)
    center, spread = x.mean(axis=0), x.std(axis=0)

    def parts(given: Floats) -> tuple[Floats, Floats]:
        """Logits in which forgotten classes have the mean of the kept, and the standardised features beside a 1."""
        logits = read_by(head, given)
        logits[:, columns] = logits[:, kept].mean(axis=1, keepdims=True)
        return logits, np.column_stack([(given - center) / np.where(spread > 0, spread, 1), np.ones(len(given))])

    base, seen = parts(x)
    shape = len(columns), seen.shape[1]

    def loss(flat: Floats) -> tuple[float, Floats]:
        v, logits = flat.reshape(shape), base.copy()
        logits[:, columns] += seen @ v.T
        log_p = log_softmax(logits, axis=1)
        wrong = np.exp(log_p)
        wrong[rows, y] -= 1
        slope = wrong[:, columns].T @ seen
        slope[:, :-1] += v[:, :-1]
        return float((v[:, :-1] ** 2).sum() / 2 - log_p[rows, y].sum()), slope.ravel()

    found = minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 0})
    logits, unseen = parts(np.asarray(test_features, np.float64))
    logits[:, columns] += unseen @ found.x.reshape(shape).T
    return balanced_accuracy(logits.argmax(axis=1), test_labels, forget_classes)


def probe_balanced(
    features: ArrayLike,
    labels: ArrayLike,
    test_features: ArrayLike,
    test_labels: ArrayLike,
    forget_classes: Sequence[int],
) -> float:
    """Balanced accuracy, in [0, 1], of a linear probe: multinomial regression (L2, C = 1) on standardised features.

    Args:
        features: float (N, D), of equally many images of every class.
        labels: integer (N,).
        test_features: float (M, D), of unseen images of all classes.
        test_labels: integer (M,).
        forget_classes: as in `head_refit`.

    Raises:
        RubError: as in `log_odds_auc`.

    Example:
        >>> x = [[0.0, 1.0], [0.1, 0.9], [1.0, 0.0], [0.9, 0.1]]
        >>> probe_balanced(x, [0, 0, 1, 1], x, [0, 0, 1, 1], [1])
        1.0
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    check_classes(np.asarray(labels), forget_classes, "training labels")
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, tol=1e-3))
    probe.fit(np.asarray(features, np.float64), np.asarray(labels))
    return balanced_accuracy(probe.predict(np.asarray(test_features, np.float64)), test_labels, forget_classes)


def prototypes(
    features: ArrayLike,
    labels: ArrayLike,
    test_features: ArrayLike,
    test_labels: ArrayLike,
    forget_classes: Sequence[int],
) -> float:
    """Balanced accuracy, in [0, 1], of the nearest class mean: largest cosine of features about their common mean.

    Arguments and errors are those of `probe_balanced`.

    Example:
        >>> x = [[0.0, 1.0], [0.1, 0.9], [1.0, 0.0], [0.9, 0.1]]
        >>> prototypes(x, [0, 0, 1, 1], x, [0, 0, 1, 1], [1])
        1.0
    """
    x, y = np.asarray(features, np.float64), np.asarray(labels)
    check_classes(y, forget_classes, "training labels")
    classes = np.unique(y)
    means = np.stack([x[y == c].mean(axis=0) for c in classes])
    center = means.mean(axis=0)
    cosines = _unit(np.asarray(test_features, np.float64) - center) @ _unit(means - center).T
    return balanced_accuracy(classes[cosines.argmax(axis=1)], test_labels, forget_classes)


def steps_until(steps: Sequence[int], shares: ArrayLike, wanted: float, most: int) -> float:
    """Binary logarithm of the first number of steps with a share of `wanted` or more; -1 for 0 steps.

    Where none has it, the logarithm of twice the most: censored, and not a number of steps that was seen.

    Args:
        steps: numbers of steps, increasing.
        shares: float (E,), after each of them.
        wanted: in [0, 1].
        most: steps that were allowed.

    Example:
        >>> steps_until([0, 1, 2, 4], [0.0, 0.1, 0.4, 0.6], 0.5, 64), steps_until([0, 64], [0.0, 0.2], 0.5, 64)
        (2.0, 7.0)
    """
    reached = [step for step, share in zip(steps, np.asarray(shares), strict=True) if share >= wanted]
    return float(np.log2(max(reached[0], 0.5) if reached else 2 * most))


def _unit(rows: Floats) -> Floats:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1))
