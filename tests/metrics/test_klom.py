"""KLOM against a histogram and an entropy of other libraries, by hand, and on models of known difference."""

import math

import numpy as np
import pytest
from scipy.stats import entropy

from rub.errors import RubError
from rub.metrics.klom import klom


def by_libraries(unlearned, retrained):
    found = []
    for u, r in zip(unlearned.T, retrained.T, strict=True):
        edges = np.linspace(min(u.min(), r.min()), max(u.max(), r.max()), 21)
        p, q = (np.histogram(side, edges)[0] / len(side) for side in (u, r))
        found.append(entropy(p, np.where((p > 0) & (q < 1e-5), 1e-5, q)))
    return np.array(found)


def test_as_a_histogram_and_an_entropy_have_it():
    rng = np.random.default_rng(0)
    unlearned, retrained = rng.normal(1, 2, (40, 6)), rng.normal(0, 1, (25, 6))
    assert klom(unlearned, retrained) == pytest.approx(by_libraries(unlearned, retrained), rel=1e-9)


def test_two_bins_by_hand():
    unlearned = np.array([0.0] * 8 + [1.0] * 2)[:, None]
    retrained = np.array([0.0] * 5 + [1.0] * 5)[:, None]
    assert klom(unlearned, retrained)[0] == pytest.approx(0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5))
    assert klom(np.zeros((10, 1)), np.zeros((10, 1))).tolist() == [0.0], "one value has one bin"


def test_it_grows_with_the_distance_of_the_models():
    rng = np.random.default_rng(1)
    retrained = rng.normal(0, 1, (200, 30))
    means = [klom(rng.normal(shift, 1, (200, 30)), retrained).mean() for shift in (0.0, 0.5, 1.0, 2.0)]
    assert means == sorted(means) and means[-1] > 4 * means[0]


def test_few_models_are_refused():
    with pytest.raises(RubError, match="9 retrained models; it takes 10"):
        klom(np.zeros((10, 1)), np.zeros((9, 1)))
