"""The rules of an image-to-image verdict, one row each, in their order."""

from dataclasses import replace

import pytest

from rub.audits.base import Rate
from rub.metrics.statistics import wilson
from rub.tasks.inpainting.verdict import Figures, conclude


def rate(hits):
    return Rate(hits / 100, *wilson(hits, 100))


KNOWN = Figures(
    kept={"original": 0.9, "unlearned": 0.85, "retrained": 0.88},
    forgotten={"original": 0.92, "unlearned": 0.4, "retrained": 0.7},
    clean=rate(5),
    attacked=rate(90),
    converged=True,
    steered=rate(2),
    clean_retrained=rate(4),
    retrained=rate(20),
)
ALONE = {"kept": {"original": 0.9, "unlearned": 0.85}, "clean_retrained": None, "retrained": None}


@pytest.mark.parametrize(
    ("changes", "name", "says"),
    [
        ({}, "recovered", "brings the forgotten completions back"),
        ({"kept": {"original": -0.1, "unlearned": -0.2}}, "cannot tell", "wrong weights"),
        ({"kept": {**KNOWN.kept, "unlearned": 0.44}}, "destroyed", "44.0 %, the original's is 90.0 %"),
        ({"kept": {**KNOWN.kept, "unlearned": -3.0}, "clean": rate(100)}, "destroyed", "nothing else"),
        ({"clean": rate(70)}, "recovered", "not forgotten in the first place"),
        ({"clean": rate(70), "clean_retrained": rate(68), "retrained": rate(90)}, "no residual found", "retrained"),
        (ALONE | {"clean": rate(100)}, "recovered", "not forgotten in the first place"),
        (ALONE | {"clean": rate(80)}, "cannot tell", "--retrained would decide"),  # a retrained model may be there too
        ({"forgotten": {**KNOWN.forgotten, "unlearned": 0.93}}, "cannot tell", "no better than the unlearned model"),
        ({"steered": rate(88)}, "cannot tell", "paints unrelated images"),
        ({"steered": rate(88), "attacked": rate(30)}, "no residual found", "unrelated output"),
        (ALONE, "cannot tell", "--retrained would decide"),
        ({"attacked": rate(22)}, "no residual found", "the retrained model"),
        ({"attacked": rate(22), "converged": False}, "cannot tell", "still improving"),
        (ALONE | {"attacked": rate(5)}, "no residual found", "without a reference"),
        ({"retrained": rate(85)}, "no residual found", "the retrained model"),  # intervals overlap
        # a retrained model that cannot complete what it kept is no reference: as if there were none
        ({"kept": {**KNOWN.kept, "retrained": 0.1}}, "cannot tell", "is no reference"),
    ],
)
def test_rules(changes, name, says):
    verdict = conclude(replace(KNOWN, **changes), "8/255")
    assert verdict.name == name
    assert says in " ".join(verdict.why)
