"""Dose-equivalents recover a known dose with their stated coverage; validity; what a fit that is flat cannot say."""

import math
from itertools import permutations

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.isotonic import IsotonicRegression

from rub.metrics.dose import DoseEquivalent, Measurement, dose_equivalent, dose_of, validity

DOSES = (0, 0.5, 2, 5, 10, 30, 100)
SEEDS = 2


def by_value(values):
    """A scale of models known by their values alone."""
    return {dose: [Measurement(value) for value in models] for dose, models in values.items()}


def simulated(rng, doses, models, noise, images=100):
    """Models of these doses on the same images: a sigmoid in log dose, plus noise of model, image and both."""
    easy = rng.normal(scale=2, size=images)

    def model(dose):
        level = 6 / (1 + math.exp(math.log(3) - math.log(max(dose, 0.25)))) + rng.normal(scale=noise)
        values = level + easy + rng.normal(size=images)
        return Measurement(float(values.mean()), images=dict(enumerate(values.tolist())))

    return {dose: [model(dose) for _ in range(count)] for dose, count in zip(doses, models, strict=True)}


def test_dose_of_every_row():
    assert [dose_of(row) for row in ("retrain", "dose-0.5", "dose-30", "original")] == [0, 0.5, 30, 100]
    assert [dose_of(row) for row in ("ft", "dose", "dose-", "dose-x", "dose-1-2", "sham")] == [None] * 6


@pytest.mark.slow
@pytest.mark.parametrize("placed", [1, 3])
@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_interval_covers_the_true_dose(noise, placed):
    rng, truth, count, covered = np.random.default_rng(0), 7.0, 200, 0
    for _ in range(count):
        scale = simulated(rng, (*DOSES, truth), [SEEDS] * len(DOSES) + [placed], noise)
        measured = scale.pop(truth)
        found = dose_equivalent(scale, measured, seed=0, draws=300)
        covered += found.low <= truth <= found.high
    # 3 standard errors of a share of 200 below .95; noise that images share makes the interval a little wide
    assert covered / count >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / count)


def test_fit_and_its_inverse_equal_scikit_learn():
    rng = np.random.default_rng(3)
    for _ in range(20):
        values = {dose: rng.normal(loc=math.log(dose + 0.3), size=rng.integers(1, 4)) for dose in DOSES}
        fit = IsotonicRegression().fit(
            np.repeat(DOSES, [len(values[dose]) for dose in DOSES]), np.concatenate([values[dose] for dose in DOSES])
        )
        levels = fit.predict(DOSES)
        at = rng.uniform(levels[1], levels[-1])
        found = dose_equivalent(by_value(values), [Measurement(at)], seed=0, rising=True)
        # back on the fit: what the fit gives, linear in log dose between the positive doses, at the dose found
        assert np.interp(math.log(found.percent), np.log(DOSES[1:]), levels[1:]) == pytest.approx(at)


def test_a_falling_metric_is_the_mirror_of_a_rising_one():
    values = {0: [1.0, 1.1], 1: [2.0], 10: [2.5, 3.1], 100: [4.0]}
    up = dose_equivalent(by_value(values), [Measurement(2.7)], seed=1)
    fallen = by_value({dose: [-value for value in models] for dose, models in values.items()})
    assert dose_equivalent(fallen, [Measurement(-2.7)], seed=1) == up
    assert dose_equivalent(fallen, [Measurement(-2.7)], seed=1, rising=False) == up


def test_ends_are_bounds():
    scale = by_value({0: [0.0], 1: [1.0], 10: [2.0], 100: [3.0]})
    assert dose_equivalent(scale, [Measurement(-1.0)], seed=0) == DoseEquivalent(1, 0, 1, "<=")
    assert dose_equivalent(scale, [Measurement(0.5)], seed=0) == DoseEquivalent(1, 0, 1, "<=")
    assert dose_equivalent(scale, [Measurement(9.0)], seed=0) == DoseEquivalent(100, 100, 100, ">=")
    assert dose_equivalent(scale, [Measurement(1.5)], seed=0).percent == pytest.approx(math.sqrt(10))


def test_a_saturated_metric_gives_bounds_at_its_plateaus():
    scale = by_value({0: [0.0], 1: [0.0], 2: [0.0], 10: [1.0], 30: [1.0], 100: [1.0]})
    assert dose_equivalent(scale, [Measurement(0.0)], seed=0) == DoseEquivalent(2, 0, 2, "<=")
    assert dose_equivalent(scale, [Measurement(1.0)], seed=0) == DoseEquivalent(10, 10, 100, ">=")


def test_a_plateau_inside_is_its_middle_and_its_range():
    scale = by_value({0: [0.0], 1: [1.0], 4: [1.0], 100: [2.0]})
    found = dose_equivalent(scale, [Measurement(1.0)], seed=0)
    # the value of the smallest dose is at the scale's lower bound: a plateau above it is a range
    assert found == DoseEquivalent(4, 0, 4, "<=")
    higher = by_value({0: [0.0], 1: [0.5], 4: [1.0], 9: [1.0], 100: [2.0]})
    assert dose_equivalent(higher, [Measurement(1.0)], seed=0) == DoseEquivalent(6, 4, 9)


def test_a_flat_metric_does_not_rise_and_places_nothing():
    scale = by_value({dose: [0.5, 0.5] for dose in DOSES})
    found = validity(scale, seed=0)
    assert math.isnan(found.spearman)
    assert (found.p, found.smallest, found.rises) == (1.0, None, False)
    placed = dose_equivalent(scale, [Measurement(0.5)], seed=0)
    assert (placed.low, placed.high, placed.side) == (0, 100, "")


def test_noise_without_a_trend_rarely_rises():
    rng, count = np.random.default_rng(5), 60
    found = [
        validity(by_value({d: rng.normal(size=SEEDS) for d in DOSES}), seed=0, rising=True, draws=200)
        for _ in range(count)
    ]
    assert sum(one.rises for one in found) <= 8  # .05 x 60 = 3 expected; 9 or more has probability .003
    # ten false "told" of the largest dose, on which `smallest` rests, has probability .001 at 2.5 %
    assert sum(one.smallest is not None for one in found) <= 6


def test_spearman_and_p_equal_scipy_and_all_orders():
    values = {0: [0.2, 0.1], 5: [0.3], 30: [0.25], 100: [0.9, 0.7]}
    doses, flat = zip(*[(dose, value) for dose, models in values.items() for value in models], strict=True)
    found = validity(by_value(values), seed=0, rising=True)
    assert found.spearman == pytest.approx(spearmanr(doses, flat).statistic)
    orders = [spearmanr(order, flat).statistic for order in permutations(doses)]
    assert found.p == pytest.approx(np.mean(np.array(orders) >= found.spearman - 1e-12))
    assert found.models == 6


def test_smallest_dose_told_needs_every_larger_one():
    clear = by_value({0: [0.0, 0.1], 1: [0.1, 0.0], 10: [2.0, 2.1], 100: [3.0, 3.1]})
    assert validity(clear, seed=0, rising=True).smallest == 10
    assert validity(clear, seed=0, rising=False).smallest is None
    fallen = by_value({0: [0.0, 0.1], 1: [5.0, 5.1], 10: [0.1, 0.0], 100: [3.0, 3.1]})
    assert validity(fallen, seed=0, rising=True).smallest == 100
    assert validity(by_value({1: [0.0], 10: [1.0]}), seed=0).smallest is None  # nothing was trained without the data


def test_shared_images_cancel():
    rng = np.random.default_rng(2)
    scale = simulated(rng, DOSES, [1] * len(DOSES), 0.0, images=50)
    measured = [scale[10][0]]
    paired = dose_equivalent(scale, measured, seed=0)
    ends = {d: [Measurement(m.value, m.value - 0.6, m.value + 0.6) for m in models] for d, models in scale.items()}
    own = dose_equivalent(ends, ends[10], seed=0)
    assert (paired.low, paired.high) == (10, 10)  # the same images make the same model move with its own dose
    assert own.low < 10 < own.high


def test_models_of_one_original_count_once():
    scale = by_value({0: [0.0, 0.0], 1: [1.0, 1.0], 10: [2.0, 2.0], 100: [3.0, 3.0]})
    spread = (1.4, 1.6)
    apart = dose_equivalent(scale, [Measurement(v, original=k) for k, v in enumerate(spread)], seed=0)
    twice = [Measurement(v, original=k) for k, v in enumerate(spread) for _ in range(2)]
    assert dose_equivalent(scale, twice, seed=0) == apart
    split = dose_equivalent(scale, [Measurement(v) for v in spread * 2], seed=0)
    assert split.high / split.low < apart.high / apart.low


def test_the_same_seed_gives_the_same_draws():
    rng = np.random.default_rng(0)
    scale = simulated(rng, DOSES, [SEEDS] * len(DOSES), 0.4)
    first, second, other = (dose_equivalent(scale, scale[5], seed=seed) for seed in (0, 0, 1))
    assert first == second
    assert (first.low, first.high) != (other.low, other.high)
    assert first.percent == other.percent
    assert validity(scale, seed=3) == validity(scale, seed=3)


def test_images_that_a_model_lacks_are_left_out():
    rng = np.random.default_rng(0)
    scale = simulated(rng, (0, 1, 100), [1, 1, 1], 0.0)
    images = {name: value for name, value in scale[1][0].images.items() if name % 2}
    found = dose_equivalent(scale, [Measurement(float(np.mean([*images.values()])), images=images)], seed=0)
    assert found.low <= found.percent <= found.high


@pytest.mark.parametrize(
    ("scale", "measured", "words"),
    [
        ({}, [Measurement(1.0)], "two doses"),
        ({0: [Measurement(1.0)]}, [Measurement(1.0)], "two doses"),
        ({0: [Measurement(1.0)], 5: []}, [Measurement(1.0)], "two doses"),
        ({0: [Measurement(1.0)], 101: [Measurement(1.0)]}, [Measurement(1.0)], "two doses in 0..100"),
        ({0: [Measurement(1.0)], 5: [Measurement(2.0)]}, [], "at least one measured"),
    ],
)
def test_degenerate_input_is_refused(scale, measured, words):
    with pytest.raises(ValueError, match=words):
        dose_equivalent(scale, measured, seed=0)


def test_a_measurement_is_finite_and_the_mean_of_its_images():
    with pytest.raises(ValueError, match="finite"):
        Measurement(math.nan)
    with pytest.raises(ValueError, match="not the mean"):
        Measurement(1.0, images={"a": 1.0, "b": 2.0})


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (DoseEquivalent(4, 2, 9), "4 (2-9)"),
        (DoseEquivalent(0.5, 0, 2, "<="), "<= 0.5 (0-2)"),
        (DoseEquivalent(100, 64, 100, ">="), ">= 100 (64-100)"),
        (DoseEquivalent(100, 100, 100, ">="), ">= 100"),
        (DoseEquivalent(10, 10, 100, ">="), ">= 10"),
        (DoseEquivalent(41.2, 3.14, 100), "41 (3.1-100)"),
    ],
)
def test_text(found, text):
    assert found.text == text
