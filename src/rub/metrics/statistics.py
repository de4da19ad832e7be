"""Intervals that respect clusters: Wilson, clustered and paired t intervals, and groups of methods that are tied.

The cluster of RUB is the unlearning seed: 10 seeds x 5 membership seeds are 10 independent results, not 50, because the
five share one unlearned model. Values are never clipped to a metric's range, so that a width is always readable.
"""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval; both ends are NaN when fewer than two clusters make them unknowable."""

    mean: float
    low: float
    high: float
    clusters: int

    def overlaps(self, other: "Interval") -> bool:
        """Say whether two closed intervals share a point; an unknown end (NaN) excludes nothing."""
        return not (self.low > other.high or other.low > self.high)


@dataclass(frozen=True)
class Tied:
    """One method's place in an ordering with ties; two methods share a letter in `groups` exactly when tied."""

    name: str
    interval: Interval
    groups: tuple[str, ...]


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval (low, high), within [0, 1], of a proportion of independent trials.

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n) with p = successes/n (Wilson, JASA 1927). Use
    `clustered_mean` when the trials share seeds.

    Args:
        successes: number of successes, 0 to n.
        n: number of trials, at least 1.
        confidence: coverage, in (0, 1).

    Raises:
        ValueError: n < 1, successes outside 0..n, or confidence outside (0, 1).

    Example:
        >>> low, high = wilson(8, 10)
        >>> round(low, 4), round(high, 4)
        (0.4902, 0.9433)
    """
    from scipy.special import ndtri

    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"wilson needs 0 <= successes <= n and n >= 1, got {successes} of {n}")
    _check_confidence(confidence)
    z = float(ndtri((1 + confidence) / 2))
    p = successes / n
    scale = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    # at 0 and n the bound is exact, and rounding would push it past the range
    return 0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half


def clustered_mean(values: ArrayLike, clusters: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean of all values with a t interval whose standard error is clustered; NaN ends for one cluster only.

    SE^2 = G/(G-1) sum_g (sum_{i in g} (x_i - mean))^2 / n^2, df = G - 1 (Liang & Zeger 1986; Miller, "Adding Error
    Bars to Evals", arXiv 2411.00640, with the small-sample factor). With clusters of equal size this is the t interval
    of the G cluster means; with one value per cluster it is the ordinary t interval.

    Args:
        values: float (n,), finite; one result each, booleans allowed.
        clusters: (n,), the cluster (unlearning seed) of each value; any sortable kind.
        confidence: coverage, in (0, 1).

    Raises:
        ValueError: no values, values that are not finite, lengths that differ, or confidence outside (0, 1).

    Example:
        >>> interval = clustered_mean([0.0, 0.2, 0.4, 0.6], [1, 1, 2, 2])
        >>> round(interval.mean, 3), interval.clusters
        (0.3, 2)
    """
    from scipy.special import stdtrit

    _check_confidence(confidence)
    x, labels = _finite(values), np.asarray(clusters)
    if labels.shape != x.shape:
        raise ValueError(f"need one cluster per value, got {x.shape} values and {labels.shape} clusters")
    _, index = np.unique(labels, return_inverse=True)
    sums = np.bincount(index, weights=x - x.mean())
    count = len(sums)
    error = math.sqrt(count / (count - 1) * float(np.sum(sums**2))) / len(x) if count > 1 else math.nan
    half = float(stdtrit(count - 1, (1 + confidence) / 2)) * error if count > 1 else math.nan
    return Interval(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half, count)


def paired_difference(
    a: Mapping[Hashable, ArrayLike], b: Mapping[Hashable, ArrayLike], confidence: float = 0.95
) -> Interval:
    """Mean of a - b with the paired t interval over the clusters that both have; NaN ends for one cluster only.

    d_g = mean(a_g) - mean(b_g); mean(d) -+ t_{G-1} sd(d)/sqrt(G). Pairing removes what a cluster adds to both sides.

    Args:
        a: cluster -> values of the first side, float, at least one each.
        b: cluster -> values of the second side; clusters that only one side has are left out.
        confidence: coverage, in (0, 1).

    Raises:
        ValueError: no cluster is shared, a value is not finite, or confidence is outside (0, 1).

    Example:
        >>> paired_difference({0: [0.5], 1: [0.7]}, {0: [0.4], 1: [0.5], 2: [0.9]}).clusters
        2
    """
    shared = [cluster for cluster in a if cluster in b]
    if not shared:
        raise ValueError(f"paired_difference needs a shared cluster, got {list(a)} and {list(b)}")
    differences = [float(_finite(a[cluster]).mean() - _finite(b[cluster]).mean()) for cluster in shared]
    return clustered_mean(differences, np.arange(len(shared)), confidence)


def tie_groups(
    means: Mapping[str, Mapping[Hashable, float]], direction: Literal["up", "down"], confidence: float = 0.95
) -> tuple[Tied, ...]:
    """Order methods from best to worst (equal means by name) and letter the groups of methods that are tied.

    Two methods are tied when the t intervals of their cluster means overlap. Groups are the largest sets in which all
    are tied (the maximal cliques of the overlap graph), lettered a, b, ... from the best: **two methods share a letter
    exactly when their intervals overlap**, so the letters can be checked by eye against the printed intervals. Overlap
    is a cautious rule: it may tie two methods that `paired_difference` separates. A method with one cluster has no
    interval, so it is tied with all.

    Args:
        means: method -> cluster -> that cluster's mean value, finite.
        direction: ``"up"`` when higher is better, ``"down"`` when lower is; for a metric read against a reference, pass
            distances to the reference with ``"down"``.
        confidence: coverage of each interval, in (0, 1).

    Raises:
        ValueError: a direction other than the two, a method without values, or a value that is not finite.

    Example:
        >>> runs = {"x": {0: 0.10, 1: 0.11}, "y": {0: 0.90, 1: 0.91}, "z": {0: 0.11, 1: 0.12}}
        >>> [(row.name, row.groups) for row in tie_groups(runs, "down")]
        [('x', ('a',)), ('z', ('a',)), ('y', ('b',))]
    """
    if direction not in ("up", "down"):
        raise ValueError(f"direction must be 'up' or 'down', got {direction!r}")
    sign = -1 if direction == "up" else 1
    intervals = {
        name: clustered_mean(list(runs.values()), np.arange(len(runs)), confidence) for name, runs in means.items()
    }
    order = sorted(intervals, key=lambda name: (sign * intervals[name].mean, name))
    groups = maximal_overlaps([intervals[name] for name in order])
    return tuple(
        Tied(name, intervals[name], tuple(letters(g) for g, group in enumerate(groups) if rank in group))
        for rank, name in enumerate(order)
    )


def maximal_overlaps(intervals: list[Interval]) -> list[frozenset[int]]:
    """Largest sets of positions whose intervals all share a point, ordered by their first members.

    On a line, intervals that overlap pairwise share a point, and the highest lower end among them is such a point.
    """
    ends = [(-math.inf, math.inf) if math.isnan(i.low) else (i.low, i.high) for i in intervals]
    around = {frozenset(k for k, (low, high) in enumerate(ends) if low <= point <= high) for point, _ in ends}
    return sorted((s for s in around if not any(s < other for other in around)), key=sorted)


def letters(index: int) -> str:
    """Letters a, b, ..., z, aa, ab, ... for 0, 1, ..., 25, 26, 27, ..."""
    head, last = divmod(index, 26)
    return (letters(head - 1) if head else "") + chr(ord("a") + last)


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) == 0 or not np.isfinite(x).all():
        raise ValueError(f"need a non-empty list of finite values, got shape {x.shape}: {x.ravel()[:5].tolist()}")
    return x


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
