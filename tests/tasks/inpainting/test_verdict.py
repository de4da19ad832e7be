"""The rules of an image-to-image verdict, one row each, in their order."""

from dataclasses import replace

import pytest

from rub.audits.base import Rate
from rub.metrics.statistics import wilson
from rub.tasks.inpainting.verdict import Figures, conclude


def rate(hits):
    return Rate(hits / 100, *wilson(hits, 100))


KNOWN = Figures(
    original=0.02,
    unlearned=0.05,
    clean=rate(5),
    attacked=rate(90),
    converged=True,
    steered=rate(95),
    retrained=rate(20),
)


@pytest.mark.parametrize(
    ("changes", "name", "says"),
    [
        ({}, "recovered", "brings the forgotten completions back"),
        ({"clean": rate(70)}, "recovered", "not forgotten in the first place"),
        ({"unlearned": 0.02}, "cannot tell", "no better than the unlearned one"),
        ({"retrained": None}, "cannot tell", "a retrained model (--retrained) would decide"),
        ({"retrained": None, "steered": rate(10)}, "recovered", "unrelated images"),
        ({"attacked": rate(22)}, "no residual found at this budget", "the retrained model"),
        ({"attacked": rate(22), "converged": False}, "cannot tell", "still improving"),
        ({"attacked": rate(5), "retrained": None}, "no residual found at this budget", "without a reference"),
        ({"retrained": rate(85)}, "no residual found at this budget", "the retrained model"),  # intervals overlap
    ],
)
def test_rules(changes, name, says):
    verdict = conclude(replace(KNOWN, **changes), "8/255")
    assert verdict.name == name
    assert says in " ".join(verdict.why)
