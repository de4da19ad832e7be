"""Rows of models that lost most of what they should have kept: named, and without a rank."""

import pytest

from rub.reports.board import boards
from rub.reports.grouping import grouped
from rub.reports.task_report import report_of
from rub.reports.wrecks import wrecks
from rub.store.records import Record

SHARED = {
    "task": "classification", "suite": "s", "experiment": "", "protocol": "rub-curve-2", "dataset": "digits",
    "model": "resnet10", "n": 100, "unlearn_seed": 0, "mia_seed": None, "key": "k",
}  # fmt: skip


def rows(method, ta, ua, setting="of 9 classes"):
    clean = {"attack": "none", "budget": "none"}
    return [
        Record(**SHARED, **clean, method=method, metric="ta", split="test", value=ta, direction="up", setting=setting),
        Record(**SHARED, **clean, method=method, metric="ua", split="forget", value=ua, direction="down"),
        Record(
            **SHARED,
            attack="uma",
            budget="8/255",
            method=method,
            metric="ua",
            split="forget",
            value=ua,
            direction="down",
        ),
    ]


MEASURED = [*rows("original", 0.9, 1.0), *rows("ft", 0.85, 0.4), *rows("iu", 0.12, 0.0), *rows("ga", 0.52, 0.2)]


def test_less_than_half_of_what_is_above_chance_is_a_wreck():
    found = wrecks(MEASURED, report_of("classification").utility)
    assert set(found) == {"iu"}
    assert found["iu"] == "TA 12.0 %, the original's 90.0 %"
    two = [*rows("original", 0.9, 1.0, "of 2 classes"), *rows("guesser", 0.55, 0.1, "of 2 classes")]
    assert set(wrecks(two, report_of("classification").utility)) == {"guesser"}, "half is chance there"
    assert wrecks(rows("ft", 0.1, 0.0), report_of("classification").utility) == {}, "nothing to compare with"


def test_a_wreck_is_last_however_little_it_recognises():
    [(group, own)] = grouped(MEASURED, "classification").items()
    [board] = boards([("page", group, own, "uma")])
    assert [row.method for row in board.rows if not row.control] == ["ga", "ft", "iu"]
    assert [row.method for row in board.rows if row.destroyed] == ["iu"]


@pytest.mark.parametrize("suffix", ["md", "tex"])
def test_tables_and_pages_say_so(suffix, tmp_path):
    from rub.reports.render import to_latex, to_markdown

    tables = report_of("classification").tables_of(MEASURED, {})
    text = {"md": to_markdown, "tex": to_latex}[suffix](tables[0])
    assert "DESTROYED: iu: TA 12.0" in text
