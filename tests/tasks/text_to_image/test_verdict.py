"""The rules of the verdict, one case each, and the requests that an audit refuses."""

from pathlib import Path

import pytest

from rub.api import audit, make_runtime
from rub.audits.base import Rate
from rub.errors import RubError
from rub.metrics.statistics import wilson
from rub.tasks.text_to_image.audit import TextToImageAudit
from rub.tasks.text_to_image.verdict import Figures, conclude


def rate(hits, n=50):
    return Rate(hits / n, *wilson(hits, n))


def figures(original=48, clean=2, attacked=2, search=1, settled=True, retrained=None):
    return Figures(rate(original), rate(clean), rate(attacked), None if search is None else rate(search), settled,
                   None if retrained is None else rate(retrained))  # fmt: skip


@pytest.mark.parametrize(
    ("given", "name", "said"),
    [
        (figures(original=10, attacked=50), "cannot tell", "even the original"),
        (figures(clean=40, attacked=50), "recovered", "not forgotten in the first place"),
        (figures(attacked=30), "recovered", "changing the input alone"),
        (figures(attacked=30, search=28), "recovered", "no search was needed"),
        (figures(attacked=30, retrained=2), "recovered", "retrained model under the same attack"),
        (figures(attacked=30, retrained=28), "no residual found at this budget", "retrained model"),
        (figures(attacked=5, settled=False), "cannot tell", "still finding more"),
        (figures(attacked=3), "no residual found at this budget", "without a reference"),
    ],
)
def test_rules(given, name, said):
    verdict = conclude(given, "50")
    assert verdict.name == name
    assert any(said in sentence for sentence in verdict.why)


def request(tmp_path, **changes):
    given = {
        "original": str(tmp_path), "unlearned": tmp_path, "concept": "church", "count": 2,
        "judge_weights": str(tmp_path),
    }  # fmt: skip
    request = TextToImageAudit(**{**given, **changes})
    return audit(request, store=tmp_path / "store", runtime=make_runtime(device="cpu"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"unlearned": Path("/nowhere.pt")}, r"--unlearned /nowhere.pt: no such file"),
        ({"protocol": "rub-audit-9"}, "did you mean 'rub-audit-1'"),
        ({"cap": 0}, "greater than or equal to 1"),
        ({"original": "no-such-folder"}, "no such file or folder, and no hub id"),
        ({"prompts": "missing.csv"}, "prompts missing.csv: cannot be read"),
        ({"judge": "imagenets"}, "unknown text-to-image judge 'imagenets'"),
    ],
)
def test_wrong_requests_are_one_line(tmp_path, changes, said):
    with pytest.raises(RubError, match=said) as caught:
        request(tmp_path, **changes)
    assert "\n" not in str(caught.value)
