"""Intervals against SciPy, a crossed bootstrap and simulated truth; paired tests, Holm, and what letters mean."""

import math
from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from rub.metrics.statistics import (
    MIA_SEEDS,
    ORIGINALS,
    OWN,
    SAMPLES,
    SEEDS,
    PerSample,
    Run,
    difference,
    estimate,
    holm,
    letters,
    tie_letters,
    wilson,
)


def runs(*values, **fields):
    """One run for each value, each of its own unlearning seed."""
    return [Run(value, seed=seed, **fields) for seed, value in enumerate(values)]


def crossed(values, originals=None, mia=None):
    """Runs from values (models, images)."""
    return [
        Run(
            float(row.mean()),
            original=originals[k] if originals else 0,
            seed=k,
            mia=mia[k] if mia else None,
            n=len(row),
            samples=PerSample(np.arange(len(row)), row.astype(float)),
        )
        for k, row in enumerate(values)
    ]


def test_wilson_known_value():
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=5e-5)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 50), (50, 50), (3, 7), (499, 1000)])
def test_wilson_equals_scipy(successes, n, confidence):
    expected = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    got = wilson(successes, n, stats.norm.ppf((1 + confidence) / 2))
    assert got == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= got[0] <= successes / n <= got[1] <= 1


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (3, 2), (-1, 2)])
def test_wilson_refuses(successes, n):
    with pytest.raises(ValueError, match="got"):
        wilson(successes, n)


def test_seeds_alone_are_the_ordinary_t_interval():
    x = np.random.default_rng(0).normal(size=9)
    got = estimate(runs(*x))
    expected = stats.t.interval(0.95, 8, loc=x.mean(), scale=stats.sem(x))
    assert (got.low, got.high) == pytest.approx(expected)
    assert got.over == (SEEDS,)


def test_originals_are_the_clusters_where_there_are_several():
    x = np.random.default_rng(1).normal(size=(4, 5))
    found = [Run(x[k, s], original=k, seed=5 * k + s) for k, s in product(range(4), range(5))]
    means = x.mean(axis=1)
    expected = stats.t.interval(0.95, 3, loc=means.mean(), scale=stats.sem(means))
    got = estimate(found)
    assert (got.low, got.high) == pytest.approx(expected)
    assert got.over == (ORIGINALS,)


def test_one_model_is_the_t_interval_over_its_images():
    x = np.random.default_rng(2).normal(size=(1, 40))
    got = estimate(crossed(x))
    assert (got.low, got.high) == pytest.approx(stats.t.interval(0.95, 39, loc=x.mean(), scale=stats.sem(x[0])))
    assert got.over == (SAMPLES,)


def test_one_model_without_images_has_no_interval():
    got = estimate(runs(0.3))
    assert (got.mean, got.over) == (0.3, ())
    assert math.isnan(got.low)
    assert math.isnan(got.high)


def test_two_ways_by_hand():
    # 2 seeds x 2 images: values 0 2 / 4 10, mean 4; deviations -4 -2 / 0 6, each of weight 1/4
    # seeds: 2/1 ((-6/4)^2 + (6/4)^2) = 9; images: 2/1 ((-4/4)^2 + (4/4)^2) = 4; single values: 4/3 (16 + 4 + 36)/16
    got = estimate(crossed(np.array([[0, 2], [4, 10]])))
    # not 9 + 4 - 4/3 * 56/16, which is less than that of seeds alone; both have one degree of freedom
    assert got.high - got.mean == pytest.approx(stats.t.ppf(0.975, 1) * 3)
    assert got.over == (SAMPLES, SEEDS)


def test_variance_is_that_of_a_crossed_bootstrap():
    rng = np.random.default_rng(3)
    models, images = 40, 200  # many of both, so that a bootstrap needs no correction for few
    x = rng.normal(size=(models, 1)) + 2 * rng.normal(size=(1, images)) + 0.2 * rng.normal(size=(models, images))
    got = estimate(crossed(x))
    draws = [
        (rng.multinomial(models, [1 / models] * models) @ x @ rng.multinomial(images, [1 / images] * images))
        / (models * images)
        for _ in range(4000)
    ]
    half = (got.high - got.low) / 2
    assert half == pytest.approx(2.0 * np.std(draws), rel=0.06)  # the quantile of some hundred degrees of freedom
    assert half > 1.2 * stats.sem(x.mean(axis=1)) * 1.96  # models alone say less than models and images


@pytest.mark.slow
@pytest.mark.parametrize(("model", "image"), [(0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.3, 1.0)])
@pytest.mark.parametrize("nested", [False, True])
def test_interval_covers_the_truth(model, image, nested):
    """Three originals of two seeds, or three seeds, of a mean that is 0; images matter as much as six models do."""
    rng, count, covered = np.random.default_rng(4), 400, 0
    for _ in range(count):
        level = np.repeat(rng.normal(size=3), 2) + 0.5 * rng.normal(size=6) if nested else rng.normal(size=3)
        x = model * level[:, None] / 5 + image * rng.normal(size=60) + 0.5 * rng.normal(size=(len(level), 60))
        got = estimate(crossed(x, originals=[0, 0, 1, 1, 2, 2] if nested else None))
        covered += got.low <= 0 <= got.high
    assert covered / count >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / count)


def test_membership_seeds_are_crossed_with_unlearning_seeds():
    # one membership seed says .86 .81 .83 of three models, the other 0: two independent seeds, not six results
    values = [0.86, 0.81, 0.83, 0.0, 0.0, 0.0]
    found = [Run(v, seed=k % 3, mia=k // 3) for k, v in enumerate(values)]
    got = estimate(found)
    assert got.over == (SEEDS, MIA_SEEDS)
    assert got.high - got.mean > 12 * abs(0.83 - 0.0) / 2 / math.sqrt(2)  # t of one degree of freedom is 12.7


def test_shares_stay_in_range_and_have_a_width_at_the_ends():
    whole = crossed(np.ones((3, 200)))
    got = estimate(whole, share=True)
    assert (got.mean, got.high) == (1.0, 1.0)
    assert got.low == pytest.approx(wilson(200, 200)[0])  # the same 200 images three times are 200
    wild = estimate(runs(0.0, 1.0, n=50), share=True)
    assert 0 <= wild.low < 0.02
    assert 0.98 < wild.high <= 1


def test_a_share_of_one_model_without_single_images_is_wilson():
    p, n = 0.44, 50
    got = estimate([Run(p, n=n, error=math.sqrt(p * (1 - p) / n))], share=True)
    assert (got.low, got.high) == pytest.approx(wilson(22, 50))
    assert got.over == (OWN,)


def test_own_errors_are_added_to_the_spread_of_models():
    got = estimate([Run(v, seed=k, error=0.3) for k, v in enumerate((1.0, 2.0, 3.0))])
    assert got.over == (OWN, SEEDS)
    variance, seeds = 1 / 3 + 0.3**2, 1 / 3
    t = (got.high - 2) / math.sqrt(variance)
    part = seeds / variance
    assert 2 * (part * stats.t.sf(t, 2) + (1 - part) * stats.norm.sf(t)) == pytest.approx(0.05)


def test_some_images_unknown_means_own_errors():
    known = crossed(np.random.default_rng(0).normal(size=(2, 30)))
    got = estimate([*known, Run(0.1, seed=2, error=0.2)])
    assert got.over == (OWN, SEEDS)


@pytest.mark.parametrize("values", [[], [math.nan, 1.0], [math.inf]])
def test_not_finite_is_refused(values):
    with pytest.raises(ValueError, match="finite"):
        estimate(runs(*values))


def test_paired_difference_over_seeds_is_the_paired_t_test():
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(2, 6))
    got = difference(runs(*a), runs(*b, 9.0))
    expected = stats.ttest_rel(a, b)
    ends = expected.confidence_interval()
    assert (got.p, got.low, got.high) == pytest.approx((expected.pvalue, ends.low, ends.high))


def test_paired_difference_over_images_is_the_paired_t_test():
    rng = np.random.default_rng(6)
    a, b = rng.normal(size=(2, 1, 40)) + rng.normal(scale=3, size=40)
    got = difference(crossed(a), crossed(b))
    assert got.p == pytest.approx(stats.ttest_rel(a[0], b[0]).pvalue)
    assert got.over == (SAMPLES,)


def test_images_that_are_not_shared_are_not_paired():
    rng = np.random.default_rng(7)
    a, b = rng.normal(size=(2, 1, 50))
    other = [Run(float(b.mean()), n=50, samples=PerSample(np.arange(100, 150), b[0]))]
    got = difference(crossed(a), other)
    error = math.hypot(stats.sem(a[0]), stats.sem(b[0]))
    assert got.p == pytest.approx(2 * stats.norm.sf(abs(a.mean() - b.mean()) / error))
    assert got.over == (OWN,)


def test_one_run_stands_beside_every_run_of_the_other():
    got = difference(runs(0.5, 0.7, 0.6), [Run(0.4, seed=7)])
    expected = stats.ttest_1samp([0.5, 0.7, 0.6], 0.4)
    assert got.p == pytest.approx(expected.pvalue)
    back = difference([Run(0.4, seed=7)], runs(0.5, 0.7, 0.6))
    assert (back.mean, back.p) == pytest.approx((-got.mean, got.p))


def test_rows_without_a_common_run_are_refused():
    with pytest.raises(ValueError, match="both have"):
        difference(runs(1.0, 2.0), [Run(1.0, original=1, seed=5), Run(1.0, original=1, seed=6)])


def test_one_image_of_many_tells_no_shares_apart():
    a, b = np.zeros((2, 3, 200))
    b[:, 0] = 1  # in every seed the same single image
    got = difference(crossed(a), crossed(b), share=True)
    assert got.p > 0.05
    b[:, :20] = 1
    assert difference(crossed(a), crossed(b), share=True).p < 0.001
    assert difference(crossed(a), crossed(a), share=True).p == 1


def test_tests_of_equal_methods_hold_their_level():
    rng, count = np.random.default_rng(8), 400
    rejected = 0
    for _ in range(count):
        easy = rng.normal(size=100)
        a, b = (rng.normal(size=(2, 1)) * 0.3 + easy + 0.5 * rng.normal(size=(2, 100)) for _ in range(2))
        rejected += difference(crossed(a), crossed(b)).p <= 0.05
    assert rejected / count <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / count)


def test_holm_by_hand_and_its_order():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_letters():
    assert [letters(k) for k in (0, 25, 26, 27, 701, 702)] == ["a", "z", "aa", "ab", "zz", "aaa"]


def test_two_rows_share_a_letter_exactly_when_not_told_apart():
    rng = np.random.default_rng(9)
    for spread in (0.02, 0.1, 0.3):
        x = np.array([rng.normal(k / 10, spread, size=4) for k in range(7)])
        found = tie_letters({f"m{k}": runs(*row) for k, row in enumerate(x)}, "down")
        # an analysis of variance by hand: methods, and models as blocks; its residual has 6 x 3 degrees of freedom
        rest = x - x.mean(axis=1, keepdims=True) - x.mean(axis=0) + x.mean()
        pooled = 2 * (rest**2).sum() / 18
        pairs = list(combinations(range(7), 2))
        ps = []
        for a, b in pairs:
            own = np.var(x[a] - x[b], ddof=1)
            ps.append(2 * stats.t.sf(abs(x[a].mean() - x[b].mean()) / math.sqrt(max(own, pooled) / 4), 18))
        for (a, b), p in zip(pairs, holm(ps), strict=True):
            assert bool(set(found[f"m{a}"]) & set(found[f"m{b}"])) == (p > 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("model", [0.0, 0.3, 1.0])
def test_equal_methods_are_rarely_told_apart(model):
    """Ten methods of equal mean, three originals of two seeds, 100 images: in few tables are any two told apart."""
    rng, count, wrong = np.random.default_rng(10), 60, 0
    for _ in range(count):
        easy, shared = rng.normal(size=100), rng.normal(size=3)
        rows = {}
        for k in range(10):
            level = np.repeat(shared + rng.normal(size=3), 2) + 0.3 * rng.normal(size=6)
            x = easy + model * level[:, None] + 0.5 * rng.normal(size=(6, 100))
            rows[f"m{k}"] = crossed(x, originals=[0, 0, 1, 1, 2, 2])
        found = tie_letters(rows, "down")
        wrong += any(set(found[a]).isdisjoint(found[b]) for a, b in combinations(found, 2))
    assert wrong <= 8  # of .05 x 60 = 3 expected; 9 or more has probability .003


def test_a_pair_that_did_not_vary_has_the_other_pairs_variance():
    steady, same = runs(0.50, 0.52, 0.48), runs(0.51, 0.53, 0.49)  # exactly .01 apart in every seed
    assert difference(steady, same).p < 1e-6
    wild = runs(0.2, 0.9, 0.4)
    found = tie_letters({"steady": steady, "same": same, "wild": wild}, "down")
    assert set(found["steady"]) & set(found["same"])


def test_letters_start_with_the_best():
    rows = {"low": runs(0.1, 0.11, 0.1), "high": runs(0.9, 0.9, 0.91)}
    assert tie_letters(rows, "down") == {"low": "a", "high": "b"}
    assert list(tie_letters(rows, "up").items()) == [("high", "a"), ("low", "b")]


def test_rows_that_cannot_be_tested_have_no_letters():
    assert tie_letters({"x": runs(0.1), "y": runs(0.2)}, "down") == {}
    mixed = {"x": runs(0.1, 0.1, 0.11), "y": runs(0.9, 0.9, 0.91), "z": [Run(0.5, original=3, seed=9)] * 2}
    found = tie_letters(mixed, "down")
    assert set(found["z"]) >= {*found["x"], *found["y"]}  # no common run: told apart from none
