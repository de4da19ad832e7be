"""Metrics against direct computations, the controls they exist for, and their declaration."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from rub.errors import Diverged, RubError
from rub.metrics.accuracy import correct, probe_accuracy, residual_knowledge, residual_ratio
from rub.tasks.classification.metrics import METRICS


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    x, y = data.data / 16, data.target
    return x[:1200], y[:1200], x[1200:], y[1200:]


def test_declared_ids_directions_and_ranges():
    directions = {metric.name: metric.direction for metric in METRICS}
    assert len(directions) == len(METRICS)
    assert {name for name, way in directions.items() if way == "up"} == {"ta", "va", "ra"}
    assert {name for name, way in directions.items() if way == "down"} == {
        "ua", "ua_test", "ua_before", "residual_knowledge", "residual_ratio", "mia_svc", "mia_shadow",
    }  # fmt: skip
    assert all(metric.low < metric.high and metric.meaning and metric.title and metric.unit for metric in METRICS)


@pytest.mark.slow
def test_listing_the_metrics_loads_no_heavy_library():
    code = "import sys, rub.tasks.classification.metrics; print({'torch', 'sklearn', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_correct_takes_arrays_and_tensors():
    logits, labels = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 9.0]]), torch.tensor([0, 1])
    assert correct(logits, labels).tolist() == correct(logits.numpy(), labels.numpy()).tolist() == [True, False]


@pytest.mark.parametrize(
    ("logits", "labels", "error"),
    [
        ([[1.0, 2.0]], [0, 1], ValueError),
        ([[1.0, 2.0]], [2], ValueError),
        ([[1.0, 2.0]], [-1], ValueError),
        (np.zeros((0, 2)), [], ValueError),
        ([[1.0, np.nan]], [0], Diverged),
    ],
)
def test_correct_refuses(logits, labels, error):
    with pytest.raises(error):
        correct(logits, labels)


def test_probe_finds_a_class_in_features_and_not_in_noise(digits):
    x, y, x_test, y_test = digits
    assert probe_accuracy(x, y, x_test, y_test, [3, 5], seed=0) > 0.8
    noise = np.random.default_rng(0).normal(size=(len(y) + len(y_test), 16))
    assert probe_accuracy(noise[: len(y)], y, noise[len(y) :], y_test, [3, 5], seed=0) < 0.3


def test_probe_is_the_mean_recall_of_forgotten_classes():
    """Two informative coordinates of three classes: class 2 looks like class 0, so its recall is about a half."""
    rng = np.random.default_rng(1)
    y = np.repeat([0, 1, 2], 200)
    x = np.column_stack([np.where(y == 1, 5.0, -5.0), np.zeros(600)]) + rng.normal(size=(600, 2))
    both = probe_accuracy(x[::2], y[::2], x[1::2], y[1::2], [1, 2], seed=0)
    first, second = (probe_accuracy(x[::2], y[::2], x[1::2], y[1::2], [c], seed=0) for c in (1, 2))
    assert first == 1.0
    assert 0.2 < second < 0.8
    assert both == pytest.approx((first + second) / 2)


def test_probe_caps_are_seeded_and_even(digits):
    x, y, x_test, y_test = digits
    small = [probe_accuracy(x, y, x_test, y_test, [3], seed=seed, per_class=4) for seed in (0, 0, 1, 2, 3)]
    assert small[0] == small[1]
    assert len(set(small)) > 1
    same = probe_accuracy(x, y, x_test, y_test, [3], seed=0, per_class=99, total=40)
    assert same == small[0]  # 40 samples of 10 classes are 4 of each
    with pytest.raises(RubError, match="test labels"):
        probe_accuracy(x, y, x_test[y_test != 3], y_test[y_test != 3], [3], seed=0)


def test_residual_knowledge_and_ratio_by_hand():
    unlearned, retrained = [True, True, True, False, False], [True, False, False, False, False]
    assert residual_knowledge(unlearned, retrained) == pytest.approx(0.4)
    assert residual_knowledge(retrained, unlearned) == pytest.approx(-0.4)
    assert residual_ratio(unlearned, retrained) == 2.0
    assert residual_ratio(unlearned, [False] * 5) == 4.0
    assert residual_ratio([False] * 5, [False] * 5) == 1.0
    for function in (residual_knowledge, residual_ratio):
        with pytest.raises(ValueError, match="paired"):
            function([True], [True, False])
