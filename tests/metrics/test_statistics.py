"""Intervals against SciPy and by-hand numbers; coverage under cluster correlation; what tie letters mean."""

import math

import numpy as np
import pytest
from scipy import stats

from rub.metrics.statistics import Interval, clustered_mean, paired_difference, tie_groups, wilson


def test_wilson_known_value():
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=5e-5)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 50), (50, 50), (3, 7), (499, 1000)])
def test_wilson_equals_scipy(successes, n, confidence):
    expected = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    got = wilson(successes, n, confidence)
    assert got == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= got[0] <= successes / n <= got[1] <= 1


@pytest.mark.parametrize(("successes", "n", "confidence"), [(1, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)])
def test_wilson_refuses(successes, n, confidence):
    with pytest.raises(ValueError, match="got"):
        wilson(successes, n, confidence)


def test_one_value_per_cluster_is_the_ordinary_t_interval():
    x = np.random.default_rng(0).normal(size=9)
    got = clustered_mean(x, np.arange(9), 0.9)
    expected = stats.t.interval(0.9, 8, loc=x.mean(), scale=stats.sem(x))
    assert (got.low, got.high) == pytest.approx(expected)
    assert got.clusters == 9


def test_equal_clusters_are_the_t_interval_of_their_means():
    x = np.random.default_rng(1).normal(size=(10, 5))
    got = clustered_mean(x.ravel(), np.repeat(np.arange(10), 5))
    means = x.mean(axis=1)
    expected = stats.t.interval(0.95, 9, loc=means.mean(), scale=stats.sem(means))
    assert (got.low, got.high) == pytest.approx(expected)


def test_unequal_clusters_by_hand():
    # mean 2; residual sums of clusters a, b, c: -2, 1, 1; SE^2 = 3/2 * (4 + 1 + 1) / 5^2 = .36; t_.975,2 = 4.302653
    got = clustered_mean([1, 1, 3, 2, 3], ["a", "a", "b", "c", "c"])
    assert got.mean == 2
    assert got.high - got.mean == pytest.approx(4.302653 * 0.6, rel=1e-6)
    assert got.mean - got.low == pytest.approx(got.high - got.mean)


def test_one_cluster_has_no_interval():
    got = clustered_mean([0.2, 0.4], [7, 7])
    assert (got.mean, got.clusters) == (pytest.approx(0.3), 1)
    assert math.isnan(got.low) and math.isnan(got.high)


@pytest.mark.parametrize(("values", "clusters"), [([], []), ([1, math.nan], [0, 1]), ([1, 2], [0])])
def test_clustered_mean_refuses(values, clusters):
    with pytest.raises(ValueError, match="need"):
        clustered_mean(values, clusters)


def test_clustered_intervals_cover_and_naive_ones_do_not():
    """10 seeds x 5 repeats with most variance between seeds: 95 % must mean 95 %."""
    rng, runs = np.random.default_rng(2), 1500
    clusters, clustered, naive = np.repeat(np.arange(10), 5), 0, 0
    for _ in range(runs):
        x = np.repeat(rng.normal(size=10), 5) + 0.4 * rng.normal(size=50)
        ours, other = clustered_mean(x, clusters), clustered_mean(x, np.arange(50))
        clustered += ours.low <= 0 <= ours.high
        naive += other.low <= 0 <= other.high
    assert clustered / runs == pytest.approx(0.95, abs=0.02)  # 3.5 standard errors
    assert naive / runs < 0.75


def test_paired_difference_equals_the_paired_t_test():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(6, 4)), rng.normal(size=(6, 3)) + 0.5
    left = {**{seed: a[seed] for seed in range(6)}, "only here": [100.0]}
    got = paired_difference(left, {seed: b[seed] for seed in reversed(range(6))}, 0.9)
    expected = stats.ttest_rel(a.mean(axis=1), b.mean(axis=1)).confidence_interval(0.9)
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high))
    assert got.clusters == 6


def test_pairing_removes_the_cluster_effect():
    seeds = {seed: [float(seed)] for seed in range(5)}
    shifted = {seed: [seed + 0.1 + 0.001 * (-1) ** seed] for seed in range(5)}
    assert paired_difference(shifted, seeds).low > 0.09
    with pytest.raises(ValueError, match="shared cluster"):
        paired_difference({0: [1.0]}, {1: [1.0]})


def spread(mean, half):
    """Two cluster means whose 95 % interval is mean -+ half (t quantile of one degree of freedom)."""
    step = half / stats.t.ppf(0.975, 1)
    return {0: mean - step, 1: mean + step}


def test_letters_of_a_chain():
    """x-y and y-z overlap, x-z do not: y carries both letters, and nobody is tied by transitivity."""
    rows = tie_groups({"z": spread(3.6, 1), "x": spread(0, 1), "far": spread(9, 1), "y": spread(1.8, 1)}, "down")
    assert [(row.name, row.groups) for row in rows] == [
        ("x", ("a",)),
        ("y", ("a", "b")),
        ("z", ("b",)),
        ("far", ("c",)),
    ]
    assert rows[0].interval.low == pytest.approx(-1) and rows[0].interval.high == pytest.approx(1)


def test_direction_and_names_decide_the_order():
    runs = {"b": spread(0.5, 0.1), "a": spread(0.5, 0.1), "c": spread(0.9, 0.1)}
    assert [row.name for row in tie_groups(runs, "up")] == ["c", "a", "b"]
    assert [row.name for row in tie_groups(runs, "down")] == ["a", "b", "c"]
    assert tie_groups(runs, "up") == tie_groups(dict(reversed(runs.items())), "up")
    with pytest.raises(ValueError, match="reference"):
        tie_groups(runs, "reference")
    assert tie_groups({}, "up") == ()


def test_a_single_seed_separates_nothing():
    rows = tie_groups({"one": {0: 0.0}, "x": spread(5, 1), "y": spread(9, 1)}, "down")
    groups = {row.name: set(row.groups) for row in rows}
    assert groups["one"] & groups["x"] and groups["one"] & groups["y"] and not groups["x"] & groups["y"]


def test_sharing_a_letter_means_overlap_and_nothing_else():
    rng = np.random.default_rng(4)
    for _ in range(30):
        runs = {f"m{i}": spread(rng.uniform(0, 10), rng.uniform(0.1, 3)) for i in range(rng.integers(1, 12))}
        rows = tie_groups(runs, "up")
        for p in rows:
            assert p.groups
            for q in rows:
                apart = p.interval.high < q.interval.low or q.interval.high < p.interval.low
                assert bool(set(p.groups) & set(q.groups)) is not apart
                assert p.interval.overlaps(q.interval) is not apart


def test_more_groups_than_letters():
    rows = tie_groups({f"m{i:02}": spread(i, 0.1) for i in range(29)}, "down")
    assert [rows[i].groups for i in (0, 25, 26, 28)] == [("a",), ("z",), ("aa",), ("ac",)]


def test_unknown_ends_exclude_nothing():
    unknown = Interval(0.0, math.nan, math.nan, 1)
    assert unknown.overlaps(Interval(5.0, 4.0, 6.0, 3)) and Interval(5.0, 4.0, 6.0, 3).overlaps(unknown)
