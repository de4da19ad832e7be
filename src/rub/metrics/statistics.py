"""Intervals and tests over images x models: what a number rests on, and which methods the data do not tell apart.

A cell of a table is a mean over *runs*: the models of one row, made from one or several originals with several
unlearning seeds, all measured on the same images, and for membership with several seeds of the attack. Images are
crossed with models, membership seeds with unlearning seeds, and unlearning seeds are nested in originals. The variance
of the mean is that which a bootstrap that draws each of these again has in the limit, without its draws:

    V = sum over non-empty sets S of the dimensions of (-1)^(|S|+1) V_S,
    V_S = G/(G-1) sum_g (sum_{k in g} w_k (x_k - mean))^2

with g the G cells that the labels of S make together (Cameron, Gelbach & Miller, JBES 2011), x_k the value of one image
in one run and w_k its weight in the mean. Three originals say little about all originals, so tails are not the
normal's: they are Student's with G_d - 1 degrees of freedom, mixed by each dimension's part of V,

    P(|T| > t) = sum_d V_d / V P(|t_{G_d - 1}| > t).

In simulations with 2, 3 and 5 models and any part of the variance between models, images and both, 95 % intervals cover
94.5 to 99 % (Satterthwaite's degrees of freedom: 91 to 98 %).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
SAMPLES, OWN, ORIGINALS, SEEDS, MIA_SEEDS = "samples", "own samples", "originals", "unlearning seeds", "MIA seeds"
LEVEL = 0.05
_STEP = 1e-6  # how near a quantile is found
NORMAL = 1.959963984540054  # half width of a 95 % interval in standard errors


@dataclass(frozen=True, eq=False)
class PerSample:
    """What a metric gives for each sample; its mean is the metric.

    Attributes:
        ids: (N,), each once, integers or text.
        values: float64 (N,), finite.
    """

    ids: NDArray[Any]
    values: Floats


@dataclass(frozen=True, eq=False)
class Run:
    """One result of a row: one model, and of membership one seed of the attack.

    Attributes:
        value: the metric.
        original: which original the model was made from.
        seed: unlearning seed.
        mia: membership seed, None where there is none.
        n: number of samples behind the value.
        error: standard error of the value over its samples; None where unknown.
        samples: the values of single samples, where they are known; `error` is then not read.
    """

    value: float
    original: int = 0
    seed: int = 0
    mia: int | None = None
    n: int = 0
    error: float | None = None
    samples: PerSample | None = None

    @property
    def key(self) -> tuple[int, int, int | None]:
        """What two rows share where they are paired."""
        return self.original, self.seed, self.mia


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval.

    Attributes:
        mean: over runs.
        low: lower end; NaN where nothing is known of how the mean would change.
        high: upper end.
        over: what the interval is over, some of `SAMPLES` (the same ones in every run), `OWN` (samples, by each run's
            own error), `ORIGINALS` or `SEEDS`, and `MIA_SEEDS`; what is not in it is given.
    """

    mean: float
    low: float
    high: float
    over: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference(Interval):
    """A paired difference; `p` is that of the test that it is 0, and 1 where nothing is known."""

    p: float = 1.0


def wilson(successes: float, n: float, quantile: float = NORMAL) -> tuple[float, float]:
    """Wilson score interval (low, high), within [0, 1], of a proportion of independent trials.

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n) with p = successes/n (Wilson, JASA 1927).

    Args:
        successes: number of successes, 0 to n.
        n: number of trials, above 0; an effective number need not be whole.
        quantile: z, of 95 % unless given.

    Raises:
        ValueError: n not above 0, or successes outside 0..n.

    Example:
        >>> low, high = wilson(8, 10)
        >>> round(low, 4), round(high, 4)
        (0.4902, 0.9433)
    """
    if not 0 <= successes <= n or n <= 0:
        raise ValueError(f"wilson needs 0 <= successes <= n and n > 0, got {successes} of {n}")
    p = successes / n
    scale = 1 + quantile**2 / n
    centre = (p + quantile**2 / (2 * n)) / scale
    half = quantile * math.sqrt(p * (1 - p) / n + (quantile / (2 * n)) ** 2) / scale
    # at 0 and n the bound is exact, and rounding would push it past the range
    return 0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half


def estimate(runs: Sequence[Run], *, share: bool = False) -> Interval:
    """Mean over runs with its 95 % interval over samples, models and membership seeds, as far as they are known.

    mean -+ t sqrt(V), V and t as at the head of this module. Models are clustered by original where there are two,
    else by unlearning seed. Where samples are not known one by one, V has the square of the mean of the runs' own
    errors added, as if the runs erred together, which is the most that it can be.

    Args:
        runs: at least one.
        share: whether the value lies in 0..1: the interval is then Wilson's with the t quantile and the number of
            trials that V stands for, p(1-p)/V, which lies in 0..1 too and has a width at 0 and 1.

    Raises:
        ValueError: no run, or a value that is not finite.

    Example:
        >>> found = estimate([Run(0.2, seed=0), Run(0.4, seed=1), Run(0.3, seed=2)])
        >>> round(found.mean, 3), round(found.low, 3), found.over
        (0.3, 0.052, ('unlearning seeds',))
    """
    spread = _spread(runs)
    mean, variance, over = spread.mean, spread.variance, spread.over
    if not over:
        return Interval(mean, math.nan, math.nan)
    if share and 0 <= mean <= 1:
        count = min(mean * (1 - mean) / variance, spread.trials) if variance and 0 < mean < 1 else spread.samples
        if math.isfinite(count) and count > 0:
            low, high = wilson(min(mean * count, count), count, spread.quantile)
            return Interval(mean, min(low, mean), max(high, mean), over)
    half = spread.quantile * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half, over)


def difference(one: Sequence[Run], other: Sequence[Run], *, share: bool = False) -> Difference:
    """Mean of one minus other over the runs that both have, with interval and p of the paired test.

    Runs are paired by original, unlearning seed and membership seed, and within them values by sample; a side of one
    run stands beside every run of the other. Samples that the two do not share, or that are not known one by one, are
    no pairs: the squares of both sides' own errors are added.

    Args:
        one: runs of the first row.
        other: runs of the second.
        share: whether values lie in 0..1: the standard error is then at least one sample's.

    Raises:
        ValueError: no run is shared, or a value is not finite.

    Example:
        >>> a, b = [Run(0.5, seed=0), Run(0.7, seed=1)], [Run(0.4, seed=0), Run(0.5, seed=1), Run(0.9, seed=2)]
        >>> found = difference(a, b)
        >>> round(found.mean, 3), round(found.p, 3)
        (0.15, 0.205)
    """
    pairs = _pairs(one, other)
    if not pairs:
        raise ValueError(f"difference needs a run that both have, got {[r.key for r in one]}, {[r.key for r in other]}")
    return _tested(_spread([_paired(*pair) for pair in pairs]), share=share)


def holm(ps: Sequence[float]) -> list[float]:
    """Each p corrected for all of them together (Holm, 1979): the largest of (m - rank) p over those up to it.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    corrected, highest = [1.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda k: ps[k])):
        highest = max(highest, min((len(ps) - rank) * ps[index], 1.0))
        corrected[index] = highest
    return corrected


def tie_letters(
    rows: Mapping[str, Sequence[Run]], direction: Literal["up", "down"], *, share: bool = False
) -> dict[str, str]:
    """Letters of the groups of rows that the data do not tell apart, a for the best; none where no pair can be tested.

    Two rows are told apart when the p of their paired difference, corrected by Holm for all pairs of rows, is at most
    .05; **two rows share a letter exactly when they are not** (compact letter display: the letters are the maximal sets
    in which no two are told apart).

    Three models of a row cannot carry a correction for a hundred pairs, but those of all rows can: the variance of a
    pair between models is at least the mean of all pairs', and its degrees of freedom are those of all, (rows - 1)
    (models - 1), as in an analysis of variance with models for blocks.

    Args:
        rows: name -> its runs, at least one each.
        direction: ``"up"`` when higher is better, ``"down"`` when lower is.
        share: as for `difference`.

    Example:
        >>> def runs(*values):
        ...     return [Run(value, seed=seed) for seed, value in enumerate(values)]
        >>> rows = {"x": runs(0.10, 0.11, 0.1), "y": runs(0.9, 0.91, 0.9), "z": runs(0.11, 0.10, 0.12)}
        >>> tie_letters(rows, "down")
        {'x': 'a', 'z': 'a', 'y': 'b'}
    """
    sign = -1 if direction == "up" else 1
    order = sorted(rows, key=lambda name: (sign * float(np.mean([run.value for run in rows[name]])), name))
    pairs = list(combinations(order, 2))
    joint = {pair: _pairs(*(rows[name] for name in pair)) for pair in pairs}
    spreads = {pair: _spread([_paired(*each) for each in found]) for pair, found in joint.items() if found}
    tests = {pair: _tested(one, share=share) for pair, one in _pooled(spreads, len(order)).items()}
    if not any(test.over for test in tests.values()):
        return {}
    corrected = holm([tests[pair].p if pair in tests else 1.0 for pair in pairs])
    tied: dict[str, set[str]] = {name: set() for name in order}
    for (one, other), p in zip(pairs, corrected, strict=True):
        if p > LEVEL:
            tied[one].add(other)
            tied[other].add(one)
    groups = sorted(_cliques(tied), key=lambda group: sorted(order.index(name) for name in group))
    return {name: "".join(letters(k) for k, group in enumerate(groups) if name in group) for name in order}


def letters(index: int) -> str:
    """Letters a, b, ..., z, aa, ab, ... for 0, 1, ..., 25, 26, 27, ..."""
    head, last = divmod(index, 26)
    return (letters(head - 1) if head else "") + chr(ord("a") + last)


@dataclass(frozen=True)
class _Spread:
    """How a mean over runs would vary.

    Attributes:
        mean: over runs.
        variance: of the mean.
        parts: (what, its part of the variance, its degrees of freedom); the parts may sum to more.
        over: as `Interval` has it.
        samples: how many there are.
        trials: how many there are in all runs.
    """

    mean: float
    variance: float
    parts: tuple[tuple[str, float, float], ...]
    over: tuple[str, ...]
    samples: float
    trials: float

    @property
    def tails(self) -> list[tuple[float, float]]:
        """Parts that sum to one with their degrees of freedom; the normal's where nothing varies."""
        whole = sum(part for _, part, _ in self.parts)
        return [(part / whole, freedom) for _, part, freedom in self.parts if part > 0] or [(1.0, math.inf)]

    @property
    def quantile(self) -> float:
        """Standard errors that 5 % lie outside of."""
        from scipy.optimize import brentq
        from scipy.special import stdtrit

        ends = [NORMAL if math.isinf(freedom) else float(stdtrit(freedom, 1 - LEVEL / 2)) for _, freedom in self.tails]
        if len(ends) == 1:
            return ends[0]
        return float(brentq(lambda t: self.outside(t) - LEVEL, min(ends) - _STEP, max(ends) + _STEP, xtol=_STEP))

    def outside(self, t: float) -> float:
        """Probability of more than t standard errors, either way."""
        from scipy.special import ndtr, stdtr

        return sum(2 * part * float(ndtr(-t) if math.isinf(free) else stdtr(free, -t)) for part, free in self.tails)


def _pooled(spreads: Mapping[tuple[str, str], _Spread], rows: int) -> dict[tuple[str, str], _Spread]:
    """Spreads of pairs whose parts between models are at least the mean over pairs, with the freedom of all rows."""
    found: dict[str, list[tuple[float, float]]] = {}
    for spread in spreads.values():
        for name, part, freedom in spread.parts:
            if name in (ORIGINALS, SEEDS, MIA_SEEDS):
                found.setdefault(name, []).append((part, freedom))
    pool = {
        name: (float(np.mean([part for part, _ in parts])), (rows - 1) * min(freedom for _, freedom in parts))
        for name, parts in found.items()
    }
    made = {}
    for pair, spread in spreads.items():
        parts = [(n, max(part, pool[n][0]), pool[n][1]) if n in pool else (n, part, f) for n, part, f in spread.parts]
        more = sum(new - old for (_, new, _), (_, old, _) in zip(parts, spread.parts, strict=True))
        made[pair] = replace(spread, variance=spread.variance + more, parts=tuple(parts))
    return made


def _tested(spread: _Spread, *, share: bool) -> Difference:
    if not spread.over:
        return Difference(spread.mean, math.nan, math.nan)
    least = spread.samples**-2 if share and math.isfinite(spread.samples) else 0.0
    error = math.sqrt(max(spread.variance, least))
    half = spread.quantile * error
    p = min(spread.outside(abs(spread.mean) / error), 1.0) if error else float(spread.mean == 0)
    return Difference(spread.mean, spread.mean - half, spread.mean + half, spread.over, p)


def _pairs(one: Sequence[Run], other: Sequence[Run]) -> list[tuple[Run, Run, Run]]:
    """Runs of both sides that belong together, and that of the two which says from what model."""
    if len(one) == 1 or len(other) == 1:
        return [(left, right, left if len(one) > 1 else right) for left in one for right in other]
    found = {run.key: run for run in other}
    return [(run, found[run.key], run) for run in one if run.key in found]


def _cliques(near: Mapping[str, set[str]]) -> list[frozenset[str]]:
    """Maximal sets in which all are near each other (Bron & Kerbosch, 1973)."""
    found: list[frozenset[str]] = []

    def extend(group: frozenset[str], open_: set[str], done: set[str]) -> None:
        if not open_ and not done:
            found.append(group)
            return
        pivot = max(open_ | done, key=lambda name: len(near[name] & open_))
        for name in sorted(open_ - near[pivot]):
            extend(group | {name}, open_ & near[name], done & near[name])
            open_, done = open_ - {name}, done | {name}

    extend(frozenset(), set(near), set())
    return found


def _paired(one: Run, other: Run, named: Run) -> Run:
    """The difference of two runs, over the samples that both have where these are known."""
    n = min(one.n, other.n)
    if one.samples is not None and other.samples is not None:
        ids, left, right = np.intersect1d(one.samples.ids, other.samples.ids, return_indices=True)
        if len(ids):
            values = one.samples.values[left] - other.samples.values[right]
            pairs = PerSample(ids, values)
            return Run(float(values.mean()), *named.key, len(ids), samples=pairs)
    errors = _error(one), _error(other)
    error = None if None in errors else math.hypot(*(error for error in errors if error is not None))
    return Run(one.value - other.value, *named.key, n, error)


def _error(run: Run) -> float | None:
    if run.samples is None:
        return run.error
    count = len(run.samples.values)
    return float(np.std(run.samples.values, ddof=1)) / math.sqrt(count) if count > 1 else None


def _spread(runs: Sequence[Run]) -> _Spread:
    values = np.array([run.value for run in runs], np.float64)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"needs at least one run, and finite values, got {values.tolist()}")
    mean = float(values.mean())
    originals = [run.original for run in runs]
    nested = {ORIGINALS: originals} if len(set(originals)) > 1 else {SEEDS: [run.seed for run in runs]}
    named = {**nested, MIA_SEEDS: [-1 if run.mia is None else run.mia for run in runs]}
    labels = {name: _codes(found) for name, found in named.items() if len(set(found)) > 1}
    known = [run.samples for run in runs if run.samples is not None]
    ids = _codes(np.concatenate([one.ids for one in known])) if len(known) == len(runs) else None
    errors = [_error(run) for run in runs]
    extra = None
    if ids is not None and ids.any():
        counts = [len(one.values) for one in known]
        within = np.repeat(1 / (len(runs) * np.array(counts)), counts)
        influence = within * (np.concatenate([one.values for one in known]) - mean)
        labels = {SAMPLES: ids, **{name: np.repeat(codes, counts) for name, codes in labels.items()}}
    else:
        influence = (values - mean) / len(values)
        extra = None if None in errors else float(np.mean([error or 0.0 for error in errors])) ** 2
    over = (*(() if extra is None else (OWN,)), *labels)
    most = max(run.n for run in runs)
    samples, trials = (most, sum(run.n for run in runs)) if most else (math.inf, math.inf)
    return _Spread(mean, *_crossed(influence, labels, extra or 0.0), over, samples, trials)


def _crossed(
    influence: Floats, labels: Mapping[str, NDArray[np.intp]], extra: float
) -> tuple[float, tuple[tuple[str, float, float], ...]]:
    """Variance of a sum by inclusion and exclusion over crossed clusters, and its parts.

    `extra` is known from elsewhere, with no end of freedom. The variance is at least that of every dimension alone;
    what several dimensions share is counted to the models, of which there are fewer.
    """
    total, alone = 0.0, {}
    for size in range(1, len(labels) + 1):
        for chosen in combinations(labels, size):
            codes = labels[chosen[0]]
            for name in chosen[1:]:
                codes = _codes(codes * (int(labels[name].max()) + 1) + labels[name])
            sums = np.bincount(codes, weights=influence)
            part = len(sums) / (len(sums) - 1) * float(sums @ sums)
            total -= (-1) ** size * part
            if size == 1:
                alone[chosen[0]] = (part, len(sums) - 1)
    total = max([total, *(part for part, _ in alone.values())], default=0.0)
    few = [(name, part, freedom) for name, (part, freedom) in alone.items() if name != SAMPLES]
    rest = max(total - sum(part for _, part, _ in few), 0.0)
    many = (SAMPLES, rest, alone[SAMPLES][1] if SAMPLES in alone else math.inf)
    return total + extra, (*few, many, (OWN, extra, math.inf))


def _codes(labels: Iterable[Any]) -> NDArray[np.intp]:
    return np.unique(np.asarray(labels), return_inverse=True)[1]
