"""The dose scale: what a metric says of models whose truth is known, and where on that scale another model stands.

A dose is the share of the forget set, in percent, that a model trained from scratch has seen beside the retain set:
0 is the retrained model, 100 the original. A metric measures what is left where it rises, or falls, with the dose
(`validity`); a model's *dose-equivalent* is the dose at which the metric has the model's value (`dose_equivalent`).

What is drawn for the intervals. **Images** are resampled, the same ones for every model, since all models are measured
on them; a model that is known by its own interval only is drawn from that. **Models** have one noise per metric: its
variance is pooled over the doses that were trained more than once and over the model that is placed, each draw takes it
over chi-square / df and adds it to the mean of each dose. Two seeds a dose say too little each; six doses of two seeds
together have six degrees of freedom. Where no dose has two seeds the intervals are over images alone.
"""

import math
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from rub.metrics.statistics import NORMAL

Floats = NDArray[np.float64]
Side = Literal["", "<=", ">="]

WHOLE = 100.0
DOSES = "doses"  # the row of what is said of metrics themselves
DOSE, SPEARMAN, SMALLEST = "_dose", "_spearman", "_smallest"  # behind a metric's name
FLAT = "does not rise"  # said of a metric that does not go with the dose, up or down
_ELSEWHERE = ("retain", "steered", "other", "floor")
_ROW = re.compile(r"dose-(\d+(?:\.\d+)?)")
_DRAWS = 2000
_CLOSE = 1e-9  # of the fit's range: values this near are equal


class Place(NamedTuple):
    """The fields of a record that say which number of a model is meant."""

    metric: str
    split: str
    attack: str
    budget: str

    @classmethod
    def of(cls, cell: Mapping[str, Any]) -> Self:
        """Place of a cell, or of a measured row."""
        return cls(*(cell[name] for name in cls._fields))


@dataclass(frozen=True)
class Measurement:
    """What one metric says of one model.

    Attributes:
        value: the metric; the mean of `images` where there are any.
        low: lower end of its 95 % interval over images, None where unknown.
        high: upper end.
        images: sample id -> value of that image, where the metric is a mean over images; its interval is then not read.
        original: which original the model was unlearned from.
    """

    value: float
    low: float | None = None
    high: float | None = None
    images: Mapping[int | str, float] | None = None
    original: int = 0

    def __post_init__(self) -> None:
        """Refuse what is not finite, and images whose mean is another value."""
        if not math.isfinite(self.value):
            raise ValueError(f"a measurement needs a finite value, got {self.value}")
        if self.images and not math.isclose(np.mean([*self.images.values()]), self.value, rel_tol=1e-6, abs_tol=1e-6):
            raise ValueError(f"value {self.value} is not the mean {np.mean([*self.images.values()])} of its images")


Scale = Mapping[float, Sequence[Measurement]]
"""Dose in percent -> what a metric says of each model of that dose."""


@dataclass(frozen=True)
class DoseEquivalent:
    """The dose that a model stands at, in percent, with its 95 % interval.

    Attributes:
        percent: the dose; a bound where `side` says so.
        low: lower end, 0 where the smallest dose is not told from none.
        high: upper end.
        side: ``<=``: at or below the smallest dose that the metric tells apart; ``>=``: at or above the largest.
    """

    percent: float
    low: float
    high: float
    side: Side = ""

    @property
    def parts(self) -> tuple[str, ...]:
        """The dose as tables print it, and its interval unless a bound says it already.

        Example:
            >>> DoseEquivalent(4.04, 2, 9.3).parts, DoseEquivalent(0.5, 0, 0.5, "<=").parts
            (('4', '2-9.3'), ('<= 0.5',))
        """
        said = f"{self.side} {_digits(self.percent)}".strip()
        ends = _digits(self.low), _digits(self.high)
        known = {"<=": ("0", _digits(self.percent)), ">=": (_digits(self.percent), "100")}.get(self.side)
        return (said,) if ends == known else (said, "-".join(ends))

    @property
    def text(self) -> str:
        """Both on one line.

        Example:
            >>> DoseEquivalent(4.04, 2, 9.3).text
            '4 (2-9.3)'
        """
        return " ".join((self.parts[0], *(f"({ends})" for ends in self.parts[1:])))


@dataclass(frozen=True)
class Validity:
    """Whether a metric measures what is left.

    Attributes:
        spearman: rank correlation of dose and value over all models; NaN where all values, or all doses, are equal.
        p: share of the orders of the models that correlate as much (both ways where no direction was given).
        smallest: smallest dose that the metric tells from dose 0, and every larger one too; None where there is none.
        models: how many models there are.
    """

    spearman: float
    p: float
    smallest: float | None
    models: int

    @property
    def rises(self) -> bool:
        """Whether the metric goes with the dose, at p <= .05, and tells any dose from none."""
        return self.p <= 0.05 and self.smallest is not None


def dose_row(percent: float) -> str:
    """Row id of the models of a dose in percent.

    Example:
        >>> dose_row(0.5), dose_row(10)
        ('dose-0.5', 'dose-10')
    """
    return f"dose-{percent:g}"


def dose_of(method: str) -> float | None:
    """Dose in percent of a row's models; None for a row whose truth is not known.

    Example:
        >>> dose_of("retrain"), dose_of("dose-0.5"), dose_of("original"), dose_of("salun")
        (0.0, 0.5, 100.0, None)
    """
    named = _ROW.fullmatch(method)
    return float(named[1]) if named else {"retrain": 0.0, "original": WHOLE}.get(method)


def cells_on_scale(
    method: str, cells: Iterable[Mapping[str, Any]], scale: Iterable[Mapping[str, Any]], metrics: Container[str]
) -> Iterator[dict[str, Any]]:
    """Cells of a method's dose-equivalents, or of `DOSES`.

    Args:
        method: the row.
        cells: those that it is measured in.
        scale: those that the dose models are measured in.
        metrics: measures of what is left; what they say of kept images, or of a search elsewhere, has no place.
    """
    left = {Place.of(cell) for cell in scale if cell["metric"] in metrics and cell["split"] not in _ELSEWHERE}
    for cell in cells:
        if Place.of(cell) not in left:
            continue
        left.remove(Place.of(cell))
        for suffix in (SPEARMAN, SMALLEST) if method == DOSES else (DOSE,):
            shared = {"method": method, "unlearn_seed": None, "mia_seed": None, "direction": "reference"}
            yield {**cell, **shared, "metric": cell["metric"] + suffix}


def dose_equivalent(
    scale: Scale, measured: Sequence[Measurement], *, seed: int, rising: bool | None = None, draws: int = _DRAWS
) -> DoseEquivalent:
    """Dose at which the metric has the value that a method's models have.

    The isotonic fit f of value over dose (Barlow et al., 1972), one mean per dose weighted by its models, is linear in
    log dose between the doses; the dose-equivalent is f^-1 of the mean over the models. What lies between dose 0 and
    the smallest dose has no place on that axis and is ``<=`` the smallest. On a plateau of the fit it is the middle in
    log dose, and its ends belong to the interval; on the lowest or highest plateau it is a bound, the plateau's end.
    The interval is from the 2.5 % quantile of the lower to the 97.5 % quantile of the upper ends over the draws.

    Args:
        scale: at least two doses, at least one model each.
        measured: the models of one method, of all seeds. Models of one original count once, where there are several.
        seed: of the draws.
        rising: whether the value rises with what is left; None: as the sign of Spearman's correlation says.
        draws: how many.

    Raises:
        ValueError: fewer than two doses, a dose outside 0..100 or without models, or nothing measured.

    Example:
        >>> scale = {dose: [Measurement(value)] for dose, value in ((0, 0.5), (1, 0.6), (10, 0.8), (100, 1.0))}
        >>> round(dose_equivalent(scale, [Measurement(0.7)], seed=0).percent, 2)
        3.16
    """
    if not measured:
        raise ValueError("dose_equivalent needs at least one measured model")
    doses, drawn = _drawn(scale, measured, seed, draws)
    sign = _sign(scale) if rising is None else (1 if rising else -1)
    weights = np.array([len(scale[dose]) for dose in doses])
    low, high = _inverse(doses, weights, sign * drawn[:, :-1], sign * drawn[:, -1])
    least, most = min(dose for dose in doses if dose > 0), doses[-1]
    bottom = min(float(np.quantile(low[1:], 0.025)), float(low[0]))
    top = max(float(np.quantile(high[1:], 0.975)), float(high[0]))
    ends = 0.0 if bottom <= least else bottom, WHOLE if top >= most else top
    below, above = low[0] <= least, high[0] >= most
    if below == above:  # inside the scale, or a fit that is flat from end to end
        return DoseEquivalent(math.sqrt(low[0] * high[0]), *ends)
    return DoseEquivalent(float(high[0]), *ends, "<=") if below else DoseEquivalent(float(low[0]), *ends, ">=")


def validity(scale: Scale, *, seed: int, rising: bool | None = None, draws: int = _DRAWS) -> Validity:
    """Whether, and from which dose, a metric tells models that saw more of the forget set from those that saw less.

    Spearman's correlation of dose and value over all models, with the p of permuting them (exact for up to seven
    models); and the smallest dose whose mean differs from that of dose 0, in the right direction, in 95 % of the draws,
    as every larger dose does.

    Args:
        scale: at least two doses, at least one model each.
        seed: of the draws and permutations.
        rising: whether the value should rise with the dose, or fall; None: either.
        draws: how many.

    Raises:
        ValueError: fewer than two doses, or a dose outside 0..100 or without models.

    Example:
        >>> models = {dose: [Measurement(dose), Measurement(dose + 1)] for dose in (0, 10, 100)}
        >>> found = validity(models, seed=0, rising=True)
        >>> round(found.spearman, 2), found.rises, found.smallest
        (0.96, True, 10)
    """
    from scipy.stats import permutation_test, rankdata

    doses, drawn = _drawn(scale, (), seed, draws)
    sign = _sign(scale) if rising is None else (1 if rising else -1)
    ranks, values = (rankdata(side) for side in _sides(scale))
    told = {
        dose: doses[0] == 0 and float(np.quantile(sign * (drawn[1:, k] - drawn[1:, 0]), 0.025)) > 0
        for k, dose in enumerate(doses)
        if dose > 0
    }
    smallest = None
    for dose in reversed(told):
        if not told[dose]:
            break
        smallest = dose
    if np.ptp(ranks) == 0 or np.ptp(values) == 0:
        return Validity(math.nan, 1.0, smallest, len(values))

    def correlation(order: Floats, axis: int) -> Floats:
        centred = order - order.mean(axis=axis, keepdims=True)
        return np.asarray(centred @ (values - values.mean()) / (len(values) * ranks.std() * values.std()))

    alternative = "two-sided" if rising is None else "greater" if rising else "less"
    found = permutation_test(
        (ranks,), correlation, permutation_type="pairings", vectorized=True, axis=-1, n_resamples=9999,
        alternative=alternative, rng=np.random.default_rng(seed),
    )  # fmt: skip
    return Validity(float(found.statistic), float(found.pvalue), smallest, len(values))


def _sides(scale: Scale) -> tuple[Floats, Floats]:
    """Dose and value of every model."""
    pairs = [(dose, model.value) for dose in sorted(scale) for model in scale[dose]]
    return np.array([dose for dose, _ in pairs], np.float64), np.array([value for _, value in pairs], np.float64)


def _sign(scale: Scale) -> int:
    from scipy.stats import rankdata

    ranks, values = (rankdata(side) for side in _sides(scale))
    return -1 if (ranks - ranks.mean()) @ values < 0 else 1


def _drawn(scale: Scale, measured: Sequence[Measurement], seed: int, draws: int) -> tuple[list[float], Floats]:
    """Doses, ascending, and the mean of each, and of `measured` in the last column: as measured, then the draws."""
    doses = sorted(scale)
    if len(doses) < 2 or not all(0 <= dose <= WHOLE and len(scale[dose]) for dose in doses):
        raise ValueError(f"a scale needs two doses in 0..100 with models, got { ({d: len(scale[d]) for d in doses}) }")
    rng = np.random.default_rng(seed)
    several = len({model.original for model in measured}) > 1
    # each group is a list of clusters that are independent of each other; a cluster is a list of positions in `models`
    models: list[Measurement] = [model for dose in doses for model in scale[dose]] + list(measured)
    places: dict[float, dict[int, list[int]]] = {}
    owners = [dose for dose in doses for _ in scale[dose]] + [-1.0] * len(measured)
    for k, (model, owner) in enumerate(zip(models, owners, strict=True)):
        places.setdefault(owner, {}).setdefault(model.original if several and owner == -1.0 else k, []).append(k)
    values = _over_images(models, rng, draws)
    groups = [[values[:, cluster].mean(axis=1) for cluster in places[owner].values()] for owner in places]
    freedom = sum(len(group) - 1 for group in groups)
    spread = sum(float(np.var([cluster[0] for cluster in group])) * len(group) for group in groups)
    noise = np.zeros((draws + 1, len(groups)))
    if freedom:
        scales = np.sqrt(spread / rng.chisquare(freedom, size=(draws, 1)))
        noise[1:] = scales * rng.standard_normal((draws, len(groups))) / np.sqrt([len(group) for group in groups])
    return doses, np.stack([np.mean(group, axis=0) for group in groups], axis=1) + noise


def _over_images(models: Sequence[Measurement], rng: np.random.Generator, draws: int) -> Floats:
    """Value of each model, (draws + 1, models): as measured, then with the images drawn again."""
    found = np.tile(np.array([model.value for model in models], np.float64), (draws + 1, 1))
    ids = sorted({name for model in models for name in model.images or ()}, key=str)
    if ids:
        counts = rng.multinomial(len(ids), np.full(len(ids), 1 / len(ids)), size=draws).astype(np.float64)
    for k, model in enumerate(models):
        if model.images:
            known = np.array([name in model.images for name in ids])
            weights = counts[:, known]
            total = weights.sum(axis=1)
            values = np.array([model.images[name] for name in ids if name in model.images])
            found[1:, k] = np.where(total > 0, weights @ values / np.maximum(total, 1), model.value)
        elif model.low is not None and model.high is not None:
            found[1:, k] += rng.standard_normal(draws) * (model.high - model.low) / (2 * NORMAL)
    return found


def _inverse(doses: Sequence[float], weights: NDArray[np.int64], means: Floats, at: Floats) -> tuple[Floats, Floats]:
    """Ends of the doses at which the isotonic fit of each row of `means`, (rows, doses), has the value in `at`."""
    from scipy.optimize import isotonic_regression

    fits = np.stack([isotonic_regression(row, weights=weights).x for row in means])
    smallest = min(dose for dose in doses if dose > 0)
    axis = np.log(np.maximum(doses, smallest))
    close = _CLOSE * np.maximum(fits[:, -1] - fits[:, 0], np.finfo(float).tiny) + np.finfo(float).eps * np.abs(at)
    value = np.clip(at, fits[:, 0], fits[:, -1])
    rows, last = np.arange(len(fits)), len(doses) - 1

    def position(upper: NDArray[np.intp]) -> Floats:
        right, left = np.clip(upper, 0, last), np.clip(upper - 1, 0, last)
        rise = fits[rows, right] - fits[rows, left]
        share = np.where(rise > 0, (value - fits[rows, left]) / np.where(rise > 0, rise, 1), 0)
        found: Floats = np.exp(axis[left] + np.clip(share, 0, 1) * (axis[right] - axis[left])).round(9)
        return found

    low = position((fits < (value - close)[:, None]).sum(axis=1))
    high = position((fits <= (value + close)[:, None]).sum(axis=1))
    return low, high


def _digits(percent: float) -> str:
    return f"{percent:.2g}" if percent < 9.95 else f"{percent:.0f}"
