"""Tables against numbers worked out by hand, and every rendering against hostile names."""

import csv
import io
import math
import subprocess
import sys
from itertools import combinations

import pytest
from rich.console import Console
from scipy import stats

import rub
from rub.errors import RubError
from rub.metrics.statistics import MIA_SEEDS, SEEDS
from rub.registry import scoped
from rub.reports.grouping import main_attack
from rub.reports.render import to_csv, to_latex, to_markdown, to_rich
from rub.reports.tables import paper_numbers
from rub.tasks.classification.report import REPORTING
from rub.tasks.classification.tables import classification_tables, leaders

T2 = 4.302652729911275  # 97.5 % quantile of Student's t with 2 degrees of freedom, from tables


def terminal(table, width=80):
    console = Console(width=width, force_terminal=False, file=io.StringIO(), legacy_windows=False)
    console.print(to_rich(table))
    return console.file.getvalue()


def cell(table, method, group, name):
    index = [(column.group, column.name) for column in table.columns].index((group, name))
    return next(row for row in table.rows if row.label == method).cells[index]


@pytest.fixture
def tables(records):
    return {table.name: table for table in classification_tables(records, paper_numbers("table1/cifar10"))}


def test_table1_has_the_papers_shape(tables, hostile):
    table = tables["table1-cifar10"]
    assert [(column.group, column.title) for column in table.columns] == [
        ("", "TA ↑"), ("none", "UA ↓"), ("none", "MIA ↓"), ("8/255", "UA ↓"), ("8/255", "MIA ↓"),
        ("16/255", "UA ↓"), ("16/255", "MIA ↓"), ("", "tie"),
    ]  # fmt: skip
    labels = [row.label for row in table.rows]
    assert labels == ["original", "retrain", "sham", "ft", "rl", "salun", "ga", "neggrad-plus", hostile]
    assert [row.control for row in table.rows] == [True] * 3 + [False] * 6


def test_mean_interval_and_paper_number_of_one_cell(tables):
    ta = cell(tables["table1-cifar10"], "ft", "", "TA")
    half = T2 * 2 / math.sqrt(3)  # 90, 92, 94: standard deviation 2
    assert (ta.value, ta.low, ta.high) == pytest.approx((92, 92 - half, 92 + half))
    assert ta.parts == ("92.00", "±4.97", "(91.82)")
    assert cell(tables["table1-cifar10"], "ft", "8/255", "UA").parts == ("50.00", "±0.00", "(99.96)")
    assert cell(tables["table1-cifar10"], "original", "", "TA").parts == ("95.00", "(94.13)")
    assert cell(tables["table1-cifar10"], "sham", "", "TA").parts == ("95.00",)


def test_membership_seeds_are_not_independent_results(tables):
    mia = cell(tables["table1-cifar10"], "ft", "16/255", "MIA")
    # means of seeds .15 .35 .55, of MIA seeds .3 .4: as independent the six values would give .196. Both dimensions
    # have the single values' variance in them, 6/5 (5 * .05^2 + ...) / 36, so that the sum is less than that of seeds
    seeds, members = 0.2**2 / 3, 0.1**2 / 4
    t = (mia.high - mia.value) / math.sqrt(seeds)
    outside = 2 * (seeds * stats.t.sf(t, 2) + members * stats.t.sf(t, 1)) / (seeds + members)
    assert (mia.value, outside) == pytest.approx((0.35, 0.05), rel=1e-4)
    assert mia.parts == ("0.350", "±0.590", "(0.995)")
    assert mia.over == (SEEDS, MIA_SEEDS)


@pytest.mark.filterwarnings("ignore:Precision loss")  # seeds that agree
def test_methods_share_a_letter_when_paired_tests_do_not_tell_them_apart(tables, records, hostile):
    tie = {row.label: set(row.cells[-1].text) for row in tables["table1-cifar10"].rows if row.cells[-1].text}
    assert list(tie) == ["ft", "rl", "salun", "neggrad-plus", hostile]  # no control, and ga failed
    found = {name: [r.value for r in records if (r.method, r.metric, r.attack, r.budget, r.split)
                    == (name, "ua", "uma", "16/255", "forget")] for name in tie}  # fmt: skip
    pairs = combinations(tie, 2)
    # Holm by hand: the smallest of m tests is compared with .05/m, the next with .05/(m-1), until one fails
    tests = sorted((float(stats.ttest_rel(found[a], found[b]).pvalue), a, b) for a, b in pairs)
    told = [p <= 0.05 / (len(tests) - rank) for rank, (p, _, _) in enumerate(tests)]
    first = told.index(False) if False in told else len(told)
    for rank, (_, a, b) in enumerate(tests):
        assert tie[a].isdisjoint(tie[b]) == (rank < first), (a, b)


def test_one_seed_gives_no_interval_and_no_ties(records):
    table = classification_tables([record for record in records if record.unlearn_seed == 0])[0]
    assert "tie" not in [column.name for column in table.columns]
    assert cell(table, "ft", "", "TA").parts == ("90.00",)
    assert cell(table, "ft", "", "TA").low is None


def test_failed_cells_say_so_and_notes_say_why(tables):
    table = tables["table1-cifar10"]
    assert {text.text for row in table.rows if row.label == "ga" for text in row.cells[:-1]} == {"failed"}
    partly = cell(table, "rl", "", "TA")
    assert partly.parts[0] == "90.00*"
    assert "out of memory" in partly.note
    assert "failed cells of rl: unlearn rl, seed 2: out of memory" in table.notes
    assert "failed cells of ga: unlearn ga, seed 1: diverged" in table.notes


def test_an_unfinished_search_is_marked(tables):
    table = tables["attacks-16-cifar10"]
    assert cell(table, "salun", "uma", "UA").parts[0] == "27.0!"
    assert cell(table, "rl", "uma", "UA").parts[0] == "22.0"
    assert any(note.startswith("! ") for note in table.notes)


def test_a_note_says_where_membership_calls_what_nobody_trained_on_a_member(records, tables):
    (note,) = (note for note in tables["table1-cifar10"].notes if "calls retrain's members" in note)
    assert "(0.350 at 8/255, 0.350 at 16/255)" in note
    lowered = [
        row.model_copy(update={"value": 0.0}) if (row.method, row.metric) == ("retrain", "mia_shadow") else row
        for row in records
    ]
    assert not any("calls retrain's" in note for table in classification_tables(lowered) for note in table.notes)


def test_attack_table_has_controls_and_every_further_attack(tables):
    table = tables["attacks-16-cifar10"]
    assert [column.title for column in table.columns] == ["UA ↓", "excess ↓", "test ↓", "steer", "UA ↓"]
    assert cell(table, "ft", "noise", "UA").value == pytest.approx(25)
    assert [column.name for column in tables["attacks-8-cifar10"].columns] == ["UA", "excess", "test", "steer"]
    assert "N: 100 for uma UA, uma excess, uma test, uma steer, noise UA" in table.notes


def test_many_budgets_give_a_curve_and_many_attacks_a_continued_table(make_row, records):
    more = [
        make_row("ft", "ua", level / 100, attack="uma", budget=f"{level}/255", seed=seed)
        for level in (1, 2, 4, 32) for seed in range(3)
    ]  # fmt: skip
    more += [make_row("ft", "ua", 0.5, attack=f"attack-number-{k}", budget="16/255") for k in range(9)]
    tables = {table.name: table for table in classification_tables([*records, *more])}
    curve = tables["curve-cifar10"]
    assert [column.name for column in curve.columns] == [
        "none", "1/255", "2/255", "4/255", "8/255", "16/255", "32/255"
    ]  # fmt: skip
    assert cell(curve, "ft", "UA at", "4/255").value == pytest.approx(4)
    beside = [(column.group, column.title) for column in tables["curve-cifar10-2"].columns]
    assert beside == [
        ("test at", "none ↓"), ("test at", "8/255 ↓"), ("test at", "16/255 ↓"),
        ("steer at", "8/255"), ("steer at", "16/255"),
    ]  # fmt: skip
    assert cell(tables["curve-cifar10-2"], "ft", "steer at", "8/255").value == pytest.approx(10)
    assert any(note.startswith("test: unseen images of forgotten classes; steer:") for note in curve.notes)
    assert [column.group for column in tables["table1-cifar10"].columns if column.name == "UA"] == [
        "none", "8/255", "16/255"
    ]  # fmt: skip
    parts = [table for name, table in tables.items() if name.startswith("attacks-16-cifar10")]
    groups = [column.group for table in parts for column in table.columns]
    assert len(parts) > 1
    assert [name for name in groups if name.startswith("attack-number")] == [f"attack-number-{k}" for k in range(9)]
    for table in tables.values():
        assert max(map(len, terminal(table).splitlines())) <= 80


def test_a_leaderboard_shows_the_curve_where_there_is_one_and_the_paired_contrast(make_row, records):
    def heads(rows):
        return [(column.group, column.name) for column in leaders(rows)]

    assert ("2/255", "UA") not in heads(records) and ("16/255", "excess") in heads(records)
    found = heads([*records, make_row("ft", "ua", 0.7, attack="uma", budget="2/255")])
    assert found[1:8] == [
        ("no attack", "UA"), ("2/255", "UA"), ("8/255", "UA"), ("16/255", "UA"), ("16/255", "excess"),
        ("no attack", "own"), ("no attack", "selectivity"),
    ]  # fmt: skip


def test_a_control_that_failed_is_said_under_table_1(make_row, records):
    def said(*more):
        rows = [row for row in records if row.method != "original"]
        return [note for note in classification_tables([*rows, *more])[0].notes if note.startswith("CONTROL FAILED")]

    at = {"attack": "uma", "budget": "8/255"}
    assert not said() and not said(make_row("original", "ua", 0.98, **at))
    [weak] = said(make_row("original", "ua", 0.31, **at))
    assert "at 8/255 the search brings back 31 %" in weak and "from the original itself" in weak
    [blind] = said(make_row("ft", "other_reached", 0.2), make_row("salun", "other_reached", 0.97))
    assert blind.startswith("CONTROL FAILED: of ft, most images reach no other class")


def test_every_cell_is_whole_in_a_terminal_of_80_columns(tables):
    for table in tables.values():
        printed = terminal(table)
        assert max(len(line) for line in printed.splitlines()) <= 80
        assert "…" not in printed
        words = printed.split()
        for row in table.rows:
            assert all(part in words for cell in row.cells for part in cell.parts if part)


def test_markup_and_control_characters_in_names_do_nothing_in_a_terminal(make_row):
    name = "[red]x[/red]\x1b[2J"
    [table] = classification_tables([make_row(name, "ta", 0.5, split="test")])[:1]
    assert table.rows[0].label == "[red]x[/red]?[2J"
    assert "\x1b" not in terminal(table)


def test_markdown_is_one_table_of_even_rows_without_raw_html(tables):
    text = to_markdown(tables["table1-cifar10"])
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in lines} == {10}
    assert "<" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\|\\_%" in text
    assert "| 92.00 ±4.97 (91.82) |" in text


def test_latex_is_booktabs_and_escaped(tables):
    text = to_latex(tables["table1-cifar10"])
    body = text.split(r"\midrule")[1:]
    rows = [line for part in body for line in part.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 9
    assert {line.count("&") for line in rows} == {8}
    assert r"\textless{}script\textgreater{}alert(1)\textless{}/script\textgreater{}\textbar{}\_\%" in text
    assert r"92.00 $\pm$4.97 (91.82)" in text
    assert r"\multicolumn{2}{c}{16/255}" in text
    assert r"\cmidrule(lr){3-4}\cmidrule(lr){5-6}\cmidrule(lr){7-8}" in text
    assert not any(line.startswith("[") for line in text.splitlines())  # would be an argument of the \\ before


def test_csv_keeps_the_raw_numbers(tables):
    rows = list(csv.DictReader(io.StringIO(to_csv(tables["table1-cifar10"]))))
    [ta] = [row for row in rows if (row["method"], row["column"]) == ("ft", "TA")]
    half = T2 * 2 / math.sqrt(3)
    assert [float(ta[name]) for name in ("value", "low", "high", "paper")] == pytest.approx(
        [92, 92 - half, 92 + half, 91.82]
    )
    assert (ta["unit"], ta["control"]) == ("percent", "0")
    assert len(rows) == 9 * 8


def test_paper_numbers_by_key():
    assert paper_numbers("") is None
    numbers = paper_numbers("table1/cifar100")
    assert numbers["salun"] == {
        "ta": 73.89, "none": {"ua": 4.13, "mia": 0.221}, "8/255": {"ua": 61.57, "mia": 0.788},
        "16/255": {"ua": 85.16, "mia": 0.888},
    }  # fmt: skip
    with pytest.raises(RubError, match="did you mean 'table1/cifar10'"):
        paper_numbers("table1/cifar-10")


def test_groups_are_never_mixed(records):
    other = [record.model_copy(update={"protocol": "rub-strict-1", "value": 0.0}) for record in records if record.value]
    tables = [table for table in classification_tables([*records, *other]) if table.name == "table1-cifar10"]
    assert [cell(table, "ft", "", "TA").value for table in tables] == pytest.approx([92, 0])


@pytest.mark.slow
def test_no_part_of_the_report_imports_torch():
    code = (
        "import sys, rub.reports.site, rub.reports.galleries; from rub.reports.task_report import report_of;"
        " report_of('classification'); import rub.tasks.inpainting.report; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_metrics_of_plug_ins_have_a_table_of_their_own_known_here_or_not(make_row):
    rows = [make_row("ft", "ta", 0.5, split="test"), make_row("ft", "ua", 1.25)]
    rows.append(make_row("ft", "ua", 2.5, attack="uma", budget="8/255"))
    rows = [row if row.metric == "ta" else row.model_copy(update={"metric": "drift"}) for row in rows]
    [table] = [table for table in REPORTING.tables_of(rows, {}) if table.name.startswith("metrics")]
    assert [(column.group, column.name) for column in table.columns] == [("no attack", "drift"), ("uma 8/255", "drift")]
    assert cell(table, "ft", "no attack", "drift").text == "1.2500"
    with scoped():

        @rub.metric("drift", task="classification", title="drift of logits", unit="logits", decimals=1, direction="up")
        def drift(outputs):
            """How far logits moved."""
            return 0.0

        [table] = [table for table in REPORTING.tables_of(rows, {}) if table.name.startswith("metrics")]
        assert table.columns[0].title == "drift of logits ↑"
        assert cell(table, "ft", "uma 8/255", "drift of logits").text == "2.5"
        assert ",logits,1.25," in to_csv(table)


def test_the_main_attack_decides_the_columns(make_row):
    at = {"attack": "mine", "budget": "8/255"}
    rows = [
        make_row("ft", "ua", 0.1),
        make_row("ft", "ua", 0.9, **at),
        make_row("ft", "ua", 0.3, **{**at, "attack": "b"}),
    ]
    mains = {(rows[0].task, rows[0].protocol): "b"}
    for said, value in ((None, "90.00"), (mains, "30.00")):
        table = classification_tables(rows, None, said)[0]
        assert cell(table, "ft", "8/255", "UA").parts[0] == value
    assert main_attack([*rows, make_row("ft", "ua", 0.2, attack="uma", budget="8/255")]) == "uma"
