"""Tables of the dose scale: dose-equivalents and validity, in every form, and where there are none."""

import csv
import io

import pytest
from rich.console import Console

from rub.metrics.dose import FLAT
from rub.reports.board import boards
from rub.reports.grouping import grouped
from rub.reports.pages import tables_of
from rub.reports.render import to_csv, to_latex, to_markdown, to_rich
from rub.reports.task_report import report_of
from rub.reports.writing import write_report

PLACES = {
    "ua": {"split": "forget"},
    "log_odds_auc": {"split": "test"},
    "probe_accuracy": {"split": "forget_test"},
    "ua_test": {"split": "forget_test", "attack": "uma", "budget": "16/255"},
}
AT = {  # percent, low, high, side
    "ft": {"ua": (0.5, 0, 2, "<="), "log_odds_auc": (4.04, 2, 9.3, ""), "probe_accuracy": (100, 100, 100, ">=")},
    "salun": {"ua": (0.5, 0, 0.5, "<="), "log_odds_auc": (0.7, 0.1, 1.2, ""), "probe_accuracy": (61, 12, 100, "")},
    "sham": {"ua": (0.5, 0, 0.5, "<="), "log_odds_auc": (100, 83, 100, ">="), "probe_accuracy": (100, 70, 100, ">=")},
}
VALID = {"ua": (0.93, 10.0, 1e-4), "log_odds_auc": (0.97, 0.5, 1e-4), "probe_accuracy": (0.31, None, 0.3)}


@pytest.fixture
def scale(make_row):
    """Records of a scale with four metrics, of which the probe does not go with the dose; salun's last stage failed."""

    def made(method, metric, suffix, value, **more):
        where = PLACES[metric]
        one = make_row(method, metric, value, **{"n": 12, **where})
        return one.model_copy(
            update={"metric": metric + suffix, "unlearn_seed": None, "direction": "reference", **more}
        )

    found = []
    for method, metrics in AT.items():
        for metric, (value, low, high, side) in metrics.items():
            found.append(made(method, metric, "_dose", value, n=3, ci_low=low, ci_high=high, setting=side))
    for metric, (spearman, smallest, p) in VALID.items():
        setting = f"p = {p:.2g}" + f", {FLAT}" * (p > 0.05)
        found += [made("doses", metric, "_spearman", spearman, setting=setting)]
        found += [made("doses", metric, "_smallest", smallest, setting=setting)]
    found += [made("ft", "ua_test", "_dose", 3.0, ci_low=1.0, ci_high=5.0)]
    found += [made("salun", "ua_test", "_dose", None, n=0, status="failed", reason="scale: no space left")]
    found += [
        made("doses", "ua_test", s, None, n=0, status="failed", reason="no space") for s in ("_spearman", "_smallest")
    ]
    return found


@pytest.fixture
def tables(records, scale):
    return {table.name: table for table in tables_of([*records, *scale], {}, set())}


def cell(table, row, name):
    index = [column.name for column in table.columns].index(name)
    return next(one for one in table.rows if one.label == row).cells[index]


def test_dose_equivalents_and_their_intervals(tables):
    table = tables["dose-cifar10"]
    assert [row.title for row in table.rows] == ["[sham]", "ft", "salun"]
    assert cell(table, "ft", "UA").parts == ("<= 0.5", "0-2")
    assert cell(table, "salun", "UA").parts == ("<= 0.5",)
    assert cell(table, "ft", "log-odds AUC").parts == ("4", "2-9.3")
    assert (cell(table, "ft", "log-odds AUC").value, cell(table, "ft", "log-odds AUC").high) == (4.04, 9.3)
    assert cell(table, "sham", "log-odds AUC").parts == (">= 100", "83-100")
    assert cell(table, "ft", "linear probe").parts == (">= 100",)
    assert cell(table, "salun", "UA test 16/255").parts == ("failed",)
    assert cell(table, "sham", "UA test 16/255").parts == ("-",)


def test_a_metric_that_does_not_rise_says_so_in_its_head(tables):
    heads = [(column.group, column.name) for column in tables["dose-cifar10"].columns]
    assert heads == [
        ("no attack", "UA"), ("no attack", "log-odds AUC"), (FLAT, "UA test 16/255"), (FLAT, "linear probe"),
    ]  # fmt: skip
    assert any(FLAT in note for note in tables["dose-cifar10"].notes)


def test_validity_of_every_metric(tables):
    table = tables["validity-cifar10"]
    assert [row.label for row in table.rows] == [
        "UA", f"UA test 16/255 ({FLAT})", "log-odds AUC", f"linear probe ({FLAT})",
    ]  # fmt: skip
    texts = {row.label: [one.text for one in row.cells] for row in table.rows}
    assert texts["log-odds AUC"] == ["0.97", "0.0001", "0.5", "12"]
    assert texts[f"linear probe ({FLAT})"] == ["0.31", "0.3", "-", "12"]
    assert texts[f"UA test 16/255 ({FLAT})"] == ["failed", "-", "failed", "0"]


def test_every_form_has_them(tables):
    table, other = tables["dose-cifar10"], tables["validity-cifar10"]
    console = Console(width=80, force_terminal=False, file=io.StringIO(), legacy_windows=False)
    console.print(to_rich(table), to_rich(other))
    shown = console.file.getvalue()
    assert "<= 0.5" in shown
    assert "metric" in shown
    assert f"| {FLAT} linear probe |" in to_markdown(table)
    assert "| metric | Spearman | p | told from | models |" in to_markdown(other)
    assert r"\textless{}= 0.5" in to_latex(table)
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    found = next(row for row in rows if row["method"] == "ft" and row["column"] == "log-odds AUC")
    assert [float(found[name]) for name in ("value", "low", "high")] == [4.04, 2, 9.3]


def test_without_such_records_there_is_no_table(records):
    assert not [table for table in tables_of(records, {}, set()) if table.name.startswith(("dose", "validity"))]


def test_other_tables_boards_and_pages_are_as_without_them(records, scale, tmp_path):
    plain = tables_of(records, {}, set())
    assert [
        table for table in tables_of([*records, *scale], {}, set()) if table.name in {t.name for t in plain}
    ] == plain
    [(group, both)] = grouped([*records, *scale], "classification").items()
    [with_doses], [without] = boards([("p", group, both, "uma")]), boards([("p", group, records, "uma")])
    assert {row.method: row.cells[-len(without.columns) :] for row in with_doses.rows} == {
        row.method: row.cells for row in without.rows
    }
    write_report([*records, *scale], (), tmp_path, {})
    page = next((tmp_path / "report" / "experiments").glob("*.html")).read_text(encoding="utf-8")
    assert "Dose-equivalents" in page
    assert '<button type="button">metric</button>' in page
    assert not (tmp_path / "report" / "methods" / "doses.html").exists()
    assert "Further metrics" not in page
    assert (tmp_path / "tables" / "dose-cifar10.csv").is_file()


def test_budgets_of_the_headline_have_columns(scale, make_row):
    at = make_row("ft", "ua", 7.0, attack="uma", budget="2/255", setting="")
    more = [
        at.model_copy(update={"metric": "ua_dose", "unlearn_seed": None}),
        at.model_copy(update={"method": "doses", "metric": "ua_spearman", "unlearn_seed": None, "value": 0.9}),
    ]
    report = report_of("classification")
    [table] = [t for t in report.tables_of([*scale, *more], {}) if t.name.startswith("dose")]
    assert ("2/255", "UA") in [
        (c.group, c.name) for c in table.columns
    ]  # the two largest where the paper's are not there
    far = [make_row("ft", "ua", 0.5, attack="uma", budget=f"{k}/255") for k in (8, 16)]
    [table] = [t for t in report.tables_of([*scale, *more, *far], {}) if t.name.startswith("dose")]
    assert "2/255" not in [column.group for column in table.columns]
