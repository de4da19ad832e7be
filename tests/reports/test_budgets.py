"""What a folder of others may ask of a report."""

import pytest

from rub.errors import RubError
from rub.reports.folders import _check_budget
from rub.reports.render import _no_formula
from rub.store.records import Record

ROW = {
    "task": "classification", "suite": "s", "experiment": "", "protocol": "rub-quick-1", "dataset": "digits",
    "model": "m",
    "method": "ft", "attack": "none", "budget": "none", "metric": "ua", "split": "forget", "n": 4, "unlearn_seed": 0,
    "mia_seed": None, "direction": "down", "key": "0", "value": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([{"method": f"m{i}"} for i in range(301)], "301 methods"),
        ([{"dataset": f"d{i}"} for i in range(61)], "61 pages"),
        ([{"method": "x" * 50_000}], "a name of 50000 characters"),
        ([{"ci_low": 1e12, "ci_high": -1e12}], "ends before it begins"),
    ],
)
def test_a_folder_that_asks_too_much_is_refused(tmp_path, changes, words):
    with pytest.raises(RubError, match=words):
        _check_budget(tmp_path, [Record(**{**ROW, **change}) for change in changes])
    _check_budget(tmp_path, [Record(**ROW)])


@pytest.mark.parametrize("text", ["=cmd", " =cmd", "\t=cmd", "\r@x", "\uff1dcmd", "+1", "-1"])
def test_no_cell_is_a_formula(text):
    assert _no_formula(text) == f"'{text}"
