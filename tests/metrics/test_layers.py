"""Layers against independent computations: pair counts, scikit-learn, plain loops; and the gauge moves none of them."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import softmax
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import pairwise_distances_argmin, recall_score
from sklearn.preprocessing import StandardScaler

from rub.errors import RubError
from rub.metrics.layers import (
    balanced_accuracy,
    few,
    head_refit,
    log_odds,
    log_odds_auc,
    probe_balanced,
    prototypes,
    read_by,
    steps_until,
)


@pytest.fixture(scope="module")
def case():
    """Features of digits, a head that was fitted to them, and few images of each class."""
    data = load_digits()
    x, y = data.data / 16, data.target
    fitted = LogisticRegression(max_iter=500).fit(x[:1000], y[:1000])
    shown = np.concatenate([np.flatnonzero(y[:1000] == c)[:20] for c in range(10)])
    return (x[shown], y[shown], x[1000:], y[1000:]), (fitted.coef_, fitted.intercept_)


def gauged(head, vector, shift):
    weight, bias = head
    return weight - vector, bias - shift


def test_log_odds_are_those_of_the_softmax():
    logits = np.random.default_rng(0).normal(size=(50, 5))
    p = softmax(logits, axis=1)[:, 2]
    assert log_odds(logits, 2) == pytest.approx(np.log(p / (1 - p)))
    assert log_odds([[900.0, 0.0]], 0) == 900.0, "no rounding at p = 1"


def test_their_auc_equals_pair_counting():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(60, 4)), rng.integers(0, 4, 60)
    p = softmax(logits, axis=1)
    expected = []
    for c in (1, 3):
        score = np.log(p[:, c] / (1 - p[:, c]))
        wins = [(a > b) + 0.5 * (a == b) for a in score[labels == c] for b in score[labels != c]]
        expected.append(np.mean(wins))
    assert log_odds_auc(logits, labels, (1, 3)) == pytest.approx(np.mean(expected))


def test_a_raw_logit_depends_on_the_gauge_and_the_log_odds_do_not(case):
    """The same function in another gauge: the AUC of z_c falls from .99 to .5."""
    from sklearn.metrics import roc_auc_score

    (_, _, x, y), head = case
    other = gauged(head, head[0][0], head[1][0])
    one, same = read_by(head, x), read_by(other, x)
    assert softmax(one, axis=1) == pytest.approx(softmax(same, axis=1), abs=1e-9)
    assert roc_auc_score(y == 0, one[:, 0]) > 0.98
    assert roc_auc_score(y == 0, same[:, 0].round(9)) == 0.5
    assert log_odds_auc(one, y, [0]) == pytest.approx(log_odds_auc(same, y, [0]), abs=1e-9)


def test_a_constant_that_lowers_an_output_changes_no_score_of_the_head(case):
    (x, y, x_test, y_test), (weight, bias) = case
    sham = weight, bias - 50.0 * (np.arange(10) == 3)
    assert not (read_by(sham, x_test).argmax(1) == 3).any()
    for score in (lambda head: log_odds_auc(read_by(head, x_test), y_test, [3]),
                  lambda head: head_refit(x, y, x_test, y_test, head, [3])):  # fmt: skip
        assert score(sham) == pytest.approx(score((weight, bias)), abs=1e-9)


@pytest.mark.parametrize("classes", [(0,), (3, 5)])
def test_no_score_of_the_head_depends_on_the_gauge(case, classes):
    (x, y, x_test, y_test), head = case
    rows = few(y, classes)
    wanted = head_refit(x[rows], y[rows], x_test, y_test, head, classes)
    for vector, shift in ((head[0][0], head[1][0]), (np.random.default_rng(1).normal(size=64) * 5, 30.0)):
        other = gauged(head, vector, shift)
        assert head_refit(x[rows], y[rows], x_test, y_test, other, classes) == pytest.approx(wanted, abs=1e-6)
    assert wanted > 0.9


def test_a_refitted_head_minimises_its_loss(case):
    """Against a general optimiser on the loss as it is written, for one class: a logistic regression with an offset."""
    (x, y, x_test, y_test), head = case
    rows = few(y, [0])
    x, y = x[rows], y[rows]
    center, spread = x.mean(0), np.where(x.std(0) > 0, x.std(0), 1)
    others = np.arange(1, 10)

    def score(given, v):
        z = given @ head[0].T + head[1]
        return z[:, others].mean(1) + (given - center) / spread @ v[:-1] + v[-1] - np.log(np.exp(z[:, others]).sum(1))

    def loss(v):
        return np.log1p(np.exp(-np.where(y == 0, 1, -1) * score(x, v))).sum() + (v[:-1] ** 2).sum() / 2

    found = minimize(loss, np.zeros(65), method="SLSQP", options={"maxiter": 1000, "ftol": 1e-12}).x
    ahead = (
        score(x_test, found)
        + np.log(np.exp((z := x_test @ head[0].T + head[1])[:, others]).sum(1))
        - z[:, others].max(1)
    )
    expected = (np.mean(ahead[y_test == 0] > 0) + np.mean(ahead[y_test != 0] <= 0)) / 2
    assert head_refit(x, y, x_test, y_test, head, [0]) == pytest.approx(expected, abs=2e-3)


def test_a_refit_needs_the_class_in_the_features():
    rng = np.random.default_rng(0)
    noise, labels = rng.normal(size=(400, 8)), np.repeat(np.arange(4), 100)
    head = rng.normal(size=(4, 8)), np.zeros(4)
    shown, rows = slice(0, None, 2), slice(1, None, 2)
    balanced = few(labels[shown], [0])
    found = head_refit(noise[shown][balanced], labels[shown][balanced], noise[rows], labels[rows], head, [0])
    assert found == pytest.approx(0.5, abs=0.15)


def test_the_balanced_accuracy_is_that_of_recall_and_specificity():
    rng = np.random.default_rng(0)
    said, labels = rng.integers(0, 6, 500), rng.integers(0, 6, 500)
    recall = recall_score(labels, said, labels=[1, 4], average="macro")
    kept = [s not in (1, 4) for s, y in zip(said, labels, strict=True) if y not in (1, 4)]
    assert balanced_accuracy(said, labels, [1, 4]) == pytest.approx((recall + np.mean(kept)) / 2)


def test_the_probe_is_a_regression_on_standardised_features(case):
    (x, y, x_test, y_test), _ = case
    scale = StandardScaler().fit(x)
    other = LogisticRegression(max_iter=5000, tol=1e-8).fit(scale.transform(x), y)
    expected = balanced_accuracy(other.predict(scale.transform(x_test)), y_test, [3, 5])
    assert probe_balanced(x, y, x_test, y_test, [3, 5]) == pytest.approx(expected, abs=0.01)


def test_prototypes_are_the_nearest_means_on_the_sphere(case):
    (x, y, x_test, y_test), _ = case
    means = np.stack([x[y == c].mean(0) for c in range(10)])
    center = means.mean(0)

    def onto(rows):
        return (rows - center) / np.linalg.norm(rows - center, axis=1, keepdims=True)

    expected = balanced_accuracy(pairwise_distances_argmin(onto(x_test), onto(means)), y_test, [3])
    assert prototypes(x, y, x_test, y_test, [3]) == pytest.approx(expected) and expected > 0.8
    assert prototypes(np.zeros_like(x), y, np.zeros_like(x_test), y_test, [3]) == 0.5, "dead features say nothing"


def test_few_images_are_balanced():
    labels = np.repeat(np.arange(10), 50)
    chosen = labels[few(labels, [3, 5])]
    counts = np.bincount(chosen, minlength=10)
    assert counts[[3, 5]].tolist() == [50, 50] and counts.sum() == 200
    assert set(np.delete(counts, [3, 5])) <= {12, 13}
    assert np.array_equal(few(labels, [3, 5]), few(labels, [3, 5]))
    assert len(few(np.array([0, 0, 0, 1]), [0])) == 4, "no more kept images than there are"


@pytest.mark.parametrize(
    ("shares", "wanted", "value"),
    [([0.5, 0.6, 0.7], 0.5, -1.0), ([0.0, 0.5, 0.7], 0.5, 0.0), ([0.0, 0.0, 0.7], 0.5, 1.0), ([0, 0, 0], 0.5, 5.0)],
)
def test_steps_until(shares, wanted, value):
    assert steps_until([0, 1, 2], shares, wanted, 16) == value


def test_classes_without_images_are_refused():
    features, head = np.zeros((4, 3)), (np.zeros((3, 3)), np.zeros(3))
    for labels, classes in (([0, 1, 0, 1], [2]), ([0, 1, 0, 1], []), ([1, 1, 1, 1], [1])):
        for score in (
            lambda y, c: log_odds_auc(features, y, c),
            lambda y, c: head_refit(features, y, features, y, head, c),
            lambda y, c: probe_balanced(features, y, features, y, c),
            lambda y, c: prototypes(features, y, features, y, c),
        ):
            with pytest.raises(RubError, match="forget_classes"):
                score(labels, classes)
