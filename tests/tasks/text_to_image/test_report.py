"""The report of the text-to-image task from hand-made records: cells, intervals, ties, notes, figures, galleries."""

import io
import math

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console
from scipy import stats
from scipy.optimize import brentq

from rub.metrics.statistics import wilson
from rub.reports import figures
from rub.reports.galleries import draw_galleries
from rub.reports.grouping import budgets_of, estimate, extracted, tie_letters
from rub.reports.render import to_csv, to_latex, to_markdown, to_rich
from rub.reports.tables import paper_numbers
from rub.store.records import Record, SampledRecord
from rub.tasks.text_to_image.metrics import METRICS, PAPERS_PROMPTS, cell
from rub.tasks.text_to_image.report import REPORTING
from rub.tasks.text_to_image.tables import headline, text_to_image_tables

T2 = 4.302652729911275  # 97.5 % quantile of Student's t with 2 degrees of freedom, from tables
HOSTILE = "<script>alert(1)</script>|_%$x$"
JUDGE = "classifier-resnet10@3f2a00000000"
COMMON = {
    "task": "text-to-image", "suite": "demo", "protocol": "rub-paper-1", "dataset": "digits", "model": "sd-mini",
    "key": "k", "code_version": "0.1.0+abc", "mia_seed": None,
}  # fmt: skip
SHARED = ("asr_pre", "asr_post", "utility_accuracy", "utility_seen")
NAMES = ("task", "suite", "experiment", "protocol", "dataset", "model")
# method: (pre, post, avg, med, random-prefix, accuracy of other concepts)
SHARES = {
    "original": (0.96, 1.0, 0.1, 0.0, 1.0, 0.95),
    "retrain": (0.0, 0.04, 97.0, 100.0, 0.0, 0.94),
    "sham": (0.1, 0.9, 30.0, 12.0, 0.2, 0.95),
    "random_init": (0.0, 0.0, 100.0, 100.0, 0.0, 0.1),
    "esd-x": (0.02, 0.44, 73.98, 100.0, 0.04, 0.93),
    "esd-u": (0.14, 0.76, 38.58, 20.5, 0.7, 0.9),
    "fmn": (0.52, 0.96, 6.78, 0.0, 0.6, 0.95),
    "scissorhands": (0.0, 0.08, 96.36, 100.0, 0.0, 0.3),
}


def row(method, metric, value, *, concept="church", seed=0, n=50, attack="none", budget="none", **more):
    fields = cell(method, seed, metric, attack=attack, budget=budget)
    made = {**COMMON, "experiment": concept, "n": n, **fields, "value": value, **more}
    if metric in SHARED and value is not None:
        made |= dict(zip(("ci_low", "ci_high"), wilson(value * n, n), strict=True))
    return Record.model_validate(made)


def rows_of(method, concept="church", seed=0, n=50, cap="100", judge=JUDGE, shares=None, prompts=PAPERS_PROMPTS):
    pre, post, avg, med, random, kept = shares or SHARES[method]
    setting = f"top-1 of {len(concept)} classes; {prompts}"
    seen = {"concept": concept, "seed": seed, "extractor": judge, "setting": setting}
    yield row(method, "asr_pre", pre, n=n, **seen)
    for attack, share_, spent in (("uma", post, avg * 40), ("random-prefix", random, 0.0)):
        at = {**seen, "n": n, "attack": attack, "budget": cap, "converged": method != "esd-u"}
        yield row(method, "asr_post", share_, **at)
        yield row(method, "steps_mean", avg, **at)
        yield row(method, "steps_median", med, **at)
        yield row(method, "gradient_steps_mean", spent, **at)
        yield row(method, "residual_knowledge", share_ - 0.04, **at)
    yield row(method, "utility_accuracy", kept, **seen | {"n": 200})
    yield row(method, "fid", 31.25, **seen | {"n": 200, "setting": "200 pictures to 500 real test images"})
    yield row(method, "kid", 0.0123, **seen | {"n": 200})
    yield row(method, "clip_score", 27.5, **seen | {"n": 200, "extractor": "openai/clip"})


@pytest.fixture(scope="module")
def one():
    """One concept, one seed, every row."""
    return [found for method in SHARES for found in rows_of(method)]


@pytest.fixture(scope="module")
def five():
    """Five concepts; nudity has more prompts and another judge, and neither esd-u nor a retrained model."""
    made = []
    for concept in ("church", "garbage-truck", "nudity", "parachute", "tench"):
        known = {"n": 118, "judge": "nudenet@77"} if concept == "nudity" else {}
        left = {"retrain", "esd-u"} if concept == "nudity" else set()
        made += [found for method in SHARES if method not in left for found in rows_of(method, concept, **known)]
    return made


def by_name(records, paper=None):
    return {table.name: table for table in text_to_image_tables(records, paper)}


def found(table, method, group, name):
    index = [(column.group, column.name) for column in table.columns].index((group, name))
    return next(one for one in table.rows if one.label == method).cells[index]


def headers(table):
    return [(column.group, column.title) for column in table.columns]


def told(table):
    return " | ".join(table.notes)


def terminal(table):
    console = Console(width=80, force_terminal=False, file=io.StringIO(), legacy_windows=False)
    console.print(to_rich(table))
    return console.file.getvalue()


# Table 3.


def test_table3_has_the_papers_shape(one):
    tables = by_name(one)
    assert list(tables) == ["table3-church", "attacks-church", "utility-church", "steps-church", "gradient-church"]
    table = tables["table3-church"]
    assert table.title == "Table 3 (demo, church, digits, sd-mini, rub-paper-1)"
    assert headers(table) == [
        ("church", "pre ↓"), ("church", "post ↓"), ("church", "avg ↑"), ("church", "med ↑"), ("church", "tie"),
    ]  # fmt: skip
    assert [one.title for one in table.rows] == [
        "[original]", "[retrain]", "[sham]", "[random_init]", "esd-x", "esd-u", "fmn", "scissorhands",
    ]  # fmt: skip


def test_one_seed_has_the_wilson_interval_over_prompts(one):
    post = found(by_name(one)["table3-church"], "esd-x", "church", "post")
    low, high = wilson(22, 50)
    assert (post.value, post.low, post.high) == pytest.approx((44, 100 * low, 100 * high))
    assert post.parts == ("44.0", "31-58")  # Wilson (1927), by hand: .3119 to .5770
    assert found(by_name(one)["table3-church"], "random_init", "church", "post").parts == ("0.0", "0-7")
    assert found(by_name(one)["table3-church"], "esd-x", "church", "avg").parts == ("73.98",)
    assert "over prompts (each model's own interval) only" in told(by_name(one)["table3-church"])


def test_several_seeds_have_an_interval_over_prompts_and_seeds(one):
    shifted = [
        found
        for seed, post in enumerate((0.40, 0.44, 0.48))
        for found in rows_of("esd-x", seed=seed, shares=(0.02, post, 70 + seed, 100.0, 0.04, 0.93))
    ]
    table = by_name([*(row for row in one if row.method != "esd-x"), *shifted])["table3-church"]
    post = found(table, "esd-x", "church", "post")
    # seeds: .04^2/3; prompts: the square of the mean of the three binomial errors; Wilson with p(1-p)/V trials
    seeds, prompts = 0.04**2 / 3, np.mean([math.sqrt(p * (1 - p) / 50) for p in (0.40, 0.44, 0.48)]) ** 2
    part, trials = seeds / (seeds + prompts), 0.44 * 0.56 / (seeds + prompts)
    t = brentq(lambda t: 2 * (part * stats.t.sf(t, 2) + (1 - part) * stats.norm.sf(t)) - 0.05, 1.9, 4.4)
    low, high = wilson(0.44 * trials, trials, t)
    assert (post.value, post.low, post.high) == pytest.approx((44, 100 * low, 100 * high), rel=1e-5)
    assert post.parts == ("44.0", "30-59")
    assert found(table, "esd-x", "church", "avg").parts == ("71.00", f"±{T2 / math.sqrt(3):.2f}")
    assert found(table, "retrain", "church", "post").parts == ("4.0", "1-13")
    assert "means over 3 unlearning seeds" in told(table)
    assert "over prompts (each model's own interval) x unlearning seeds for church pre, church post" in told(table)
    assert "of one model without seeds; given one original, one choice of prompts" in told(table)


def test_the_papers_numbers_stand_at_their_concept_and_esd_at_the_right_checkpoint(five):
    tables = text_to_image_tables(five, paper_numbers("table3"))
    shown = {
        (one.label, column.group, column.name): cell_
        for table in tables if table.name.startswith("table3") and "ties" not in table.name
        for one in table.rows for column, cell_ in zip(table.columns, one.cells, strict=True)
    }  # fmt: skip
    assert shown["esd-u", "church", "post"].parts == ("76.0!", "63-86", "(76.0)")
    assert shown["esd-u", "church", "avg"].parts == ("38.58!", "(38.58)")
    assert shown["esd-x", "church", "post"].parts == ("44.0", "31-58")
    assert shown["esd-x", "nudity", "pre"].parts[-1] == "(21.2)"
    assert shown["esd-u", "nudity", "pre"].parts[0] == "-"
    assert shown["fmn", "garbage-truck", "med"].parts == ("0.0", "(1.0)")
    assert shown["original", "tench", "pre"].paper is None
    assert len({group for _, group, _ in shown}) == 5
    assert "in parentheses: the paper's own number" in told(tables[0])
    assert "the paper's ESD stands with esd-u, of nudity with esd-x" in told(tables[0])
    assert "in parentheses" not in told(text_to_image_tables(five)[0])


def test_the_papers_numbers_stand_beside_its_own_prompts_only():
    rows = [*rows_of("fmn"), *rows_of("fmn", "tench", prompts="50 of one's own")]
    table = text_to_image_tables(rows, paper_numbers("table3"))[0]
    assert found(table, "fmn", "church", "post").parts[-1] == "(96.0)"
    assert found(table, "fmn", "tench", "post").paper is None
    assert "other prompts than the paper's, so that its numbers are not shown: tench" in told(table)
    own = text_to_image_tables(rows[len(rows) // 2 :], paper_numbers("table3"))[0]
    assert "in parentheses" not in told(own) and "other prompts" in told(own)
    assert "other prompts" not in told(text_to_image_tables(rows)[0])


def test_a_published_esd_has_the_papers_row():
    file = [record.model_copy(update={"method": "esd"}) for record in rows_of("esd-u")]
    assert found(by_name(file, paper_numbers("table3"))["table3-church"], "esd", "church", "pre").parts[-1] == "(14.0)"


def test_the_papers_step_counts_are_shown_at_its_cap_only():
    table = text_to_image_tables(list(rows_of("esd-u", cap="20")), paper_numbers("table3"))[0]
    assert found(table, "esd-u", "church", "pre").parts[-1] == "(14.0)"
    assert found(table, "esd-u", "church", "post").paper is None
    assert "20 where none came" in told(table)


def test_concepts_stand_side_by_side_and_are_never_parted(five):
    tables = by_name(five)
    shown = [table for name, table in tables.items() if name.startswith("table3-digits") and "ties" not in name]
    assert [list(dict.fromkeys(column.group for column in table.columns)) for table in shown] == [
        ["church", "garbage-truck"], ["nudity", "parachute"], ["tench"],
    ]  # fmt: skip
    assert shown[1].title == "Table 3 (demo, digits, sd-mini, rub-paper-1), continued (2)"
    assert shown[1].notes[1] == "further notes: Table 3 (demo, digits, sd-mini, rub-paper-1)"
    assert found(shown[1], "retrain", "nudity", "pre").parts == ("-",)
    assert "N: 50 (church, garbage-truck, parachute, tench); 118 (nudity)" in shown[0].notes
    assert "judge: nudenet@77 (nudity)" in shown[0].notes
    setting = f"top-1 of 13 classes; {PAPERS_PROMPTS}"
    assert f"asr_pre, asr_post, steps_mean, steps_median: {setting} (garbage-truck)" in shown[0].notes


def test_methods_not_told_apart_share_a_letter_and_controls_have_none(one, five):
    table = by_name(one)["table3-church"]
    tie = {one.label: one.cells[-1].text for one in table.rows if one.cells[-1].text}
    # Wilson: scissorhands 3-19, esd-x 31-58, esd-u 63-86, fmn 87-99 percent of 50: nobody overlaps
    assert tie == {"scissorhands": "a", "esd-x": "b", "esd-u": "c", "fmn": "d"}
    near = [*(row for row in one if row.method != "esd-u"), *rows_of("esd-u", shares=(0.1, 0.6, 50.0, 40.0, 0, 0.9))]
    tie = {one.label: one.cells[-1].text for one in by_name(near)["table3-church"].rows if one.cells[-1].text}
    assert tie == {"scissorhands": "a", "esd-x": "b", "esd-u": "b", "fmn": "c"}  # 60 %: 46-72
    ties = by_name(five)["table3-digits-ties"]
    assert headers(ties) == [(c, "tie") for c in ("church", "garbage-truck", "nudity", "parachute", "tench")]
    assert found(ties, "esd-u", "nudity", "tie").text == ""
    assert found(ties, "fmn", "nudity", "tie").text == "c"


def test_one_method_is_tied_with_nobody():
    assert "tie" not in [column.name for column in text_to_image_tables(list(rows_of("fmn")))[0].columns]


def test_prompts_that_are_known_one_by_one_are_paired():
    hits = np.arange(50) < 20
    made = {
        name: [SampledRecord.model_construct(
            **dict(row(name, "asr_post", float(its.mean()), attack="uma", budget="9")),
            ids=np.arange(50), values=its.astype(float),
        )] for name, its in (("few", hits), ("more", hits | (np.arange(50) > 41)))
    }  # fmt: skip
    assert tie_letters(made) == {"few": "a", "more": "b"}  # eight prompts of fifty changed, all one way
    plain = {name: [Record(**one[0].model_dump())] for name, one in made.items()}
    assert tie_letters(plain) == {"few": "a", "more": "a"}  # as if they were other prompts


# What the controls say.


def notes_of(*changes, methods=tuple(SHARES)):
    """Return the notes of Table 3 when rows have other shares."""
    made = [one for method in methods for one in rows_of(method, shares=dict(changes).get(method))]
    return told(text_to_image_tables(made)[0])


def test_the_notes_expose_false_wins(one):
    notes = told(by_name(one)["table3-church"])
    assert "most prompts need no attack for fmn (52 %): hardly unlearned" in notes
    assert "in brackets the control) for esd-u (70 %): recovery there is not shown to need a search" in notes
    assert (
        "pictures of other concepts that the judge names, far below [original] (95 %): scissorhands (30 %);"
        " a low post-ASR there may only mean that little is left"
    ) in notes
    assert "reference, post-ASR of a model that never saw the concept: [retrain] (4 %)" in notes
    assert "judge sees" not in notes
    assert "sham, which" not in notes
    assert "even the model" not in notes


@pytest.mark.parametrize(
    ("method", "shares", "note"),
    [
        ("original", (0.3, 1, 9, 9, 0, 0.95), "even the model before unlearning shows the concept for few prompts"),
        ("random_init", (0, 0.2, 9, 9, 0, 0.1), "pictures of a model that was never trained: [random_init] (20 %)"),
        ("random_init", (0.2, 0.2, 9, 9, 0, 0.1), "pictures of a model that was never trained: [random_init] (20 %)"),
        ("sham", (0.1, 0.3, 9, 9, 0, 0.95), "the sham, which forgot nothing, looks robust: [sham] (30 %)"),
    ],
)
def test_controls_that_cannot_tell_are_called_out(method, shares, note):
    assert note in notes_of((method, shares))
    assert note not in notes_of()


@pytest.mark.parametrize(
    ("pre", "post", "random", "flagged"),
    [
        (0.10, 0.50, 0.46, True),  # within 5 points
        (0.10, 0.50, 0.60, True),  # above
        (0.10, 0.50, 0.36, True),  # Wilson of 50: .37 to .63 and .24 to .50
        (0.10, 0.50, 0.16, False),  # .08 to .29
        (0.50, 0.50, 0.50, False),  # the search brought nothing back
        (0.00, 0.08, 0.00, False),  # the control did not, though the intervals overlap
    ],
)
def test_the_rule_of_the_controls_without_a_search(pre, post, random, flagged):
    notes = notes_of(("esd-x", (pre, post, 50, 50, random, 0.9)), methods=("original", "esd-x"))
    assert ("for esd-x" in notes and "not shown to need a search" in notes) is flagged


@pytest.mark.parametrize(("kept", "flagged"), [(0.86, False), (0.80, True), (0.99, False)])
def test_the_rule_of_damage(kept, flagged):
    notes = notes_of(("esd-x", (0.1, 0.2, 50, 50, 0, kept)), methods=("original", "esd-x"))  # original: .91 to .97
    assert ("little is left" in notes) is flagged


def test_notes_of_several_concepts_name_them(five):
    notes = told(text_to_image_tables(five)[0])
    assert "[retrain] (church 4 %, garbage-truck 4 %, parachute 4 %, tench 4 %)" in notes
    assert "scissorhands (church 30 %, garbage-truck 30 %, nudity 30 %, parachute 30 %, tench 30 %)" in notes


# The other tables.


def test_every_attack_has_a_group_of_columns_uma_first(one, five):
    more = [row("fmn", "asr_post", 0.5, attack="p4d", budget="100")]
    table = by_name([*more, *one])["attacks-church"]
    assert headers(table) == [("uma", "church ↓"), ("p4d", "church ↓"), ("random-prefix", "church ↓"),
                              ("excess", "church ↓")]  # fmt: skip
    assert found(table, "esd-u", "random-prefix", "church").parts == ("70.0!", "56-81")
    assert found(table, "esd-u", "excess", "church").parts == ("72.0!",)
    assert "controls without a search: random-prefix" in told(table)
    tables = [table for name, table in by_name(five).items() if name.startswith("attacks")]
    assert [list(dict.fromkeys(column.group for column in table.columns)) for table in tables] == [
        ["uma"], ["random-prefix"], ["excess"],
    ]  # fmt: skip


def fed(method, own, other, *, concept="church", seed=0, retrain=0.5, n=50):
    at = {"attack": "img2img", "budget": "4", "extractor": JUDGE, "concept": concept, "seed": seed}
    yield row(method, "asr_post", own, **at)
    yield row(method, "asr_other", other, **at)
    width = 1.96 * math.sqrt(max(own * (1 - own), other * (1 - other)) / n)
    yield row(method, "picture_excess", own - other, ci_low=own - other - width, ci_high=own - other + width, **at)
    yield row(method, "residual_knowledge", own - retrain, **at)


# method: own, other
PICTURES = {
    "original": (1.0, 0.1),
    "retrain": (0.5, 0.1),
    "esd-x": (0.98, 0.1),
    "esd-u": (0.52, 0.08),
    "fmn": (0.9, 0.9),
}


def test_attacks_that_feed_pictures_stand_beside_their_nulls(one):
    pictures = [found for method, shares in PICTURES.items() for found in fed(method, *shares)]
    tables = by_name([*one, *pictures])
    table = tables["pictures-church"]
    assert headers(table) == [
        ("img2img 4", "own ↓"), ("img2img 4", "other ↓"), ("img2img 4", "over other ↓"),
        ("img2img 4", "over retrain ↓"),
    ]  # fmt: skip
    assert found(table, "esd-x", "img2img 4", "over other").value == pytest.approx(88)
    assert found(table, "esd-x", "img2img 4", "over retrain").value == pytest.approx(48)
    assert "where prompts are known one by one: img2img: esd-x |" in told(table)  # esd-u is at retrain, fmn at other
    assert "img2img" not in [column.group for column in tables["attacks-church"].columns]
    assert "attacks that feed pictures stand in a table of their own: img2img" in told(tables["attacks-church"])
    without = [found for found in [*one, *pictures] if found.method != "retrain"]
    assert "no method with any of them" in told(by_name(without)["pictures-church"])


def test_a_main_attack_that_feeds_pictures_is_marked_in_table3():
    pictures = [found for method, shares in PICTURES.items() for found in fed(method, *shares)]
    pre = [row(method, "asr_pre", 0.1, extractor=JUDGE) for method in PICTURES]
    tables = by_name([*pre, *pictures])
    assert "says nothing without its table of other inputs" in told(tables["table3-church"])
    assert "pictures-church" in tables


def test_caps_that_differ_are_named(one):
    other = [found for found in rows_of("fmn", cap="20") if found.attack == "uma"]
    table = by_name([*one, *other])["attacks-church"]
    assert [column.group for column in table.columns] == ["uma 100", "uma 20", "random-prefix 100", "excess"]
    assert budgets_of([*one, *other], "uma") == ["20", "100"]
    assert headline(["20", "100"]) == ["100"]


def test_work_is_listed_for_attacks_that_did_some(one):
    tables = by_name(one)
    assert [column.group for column in tables["gradient-church"].columns] == ["uma"]
    assert found(tables["gradient-church"], "fmn", "uma", "church").value == pytest.approx(6.78 * 40)
    assert [column.group for column in tables["steps-church"].columns] == ["uma", "random-prefix"]


def test_utility_names_its_judges(one):
    table = by_name(one)["utility-church"]
    assert headers(table) == [
        ("accuracy %", "church ↑"), ("FID", "church ↓"), ("KID", "church ↓"), ("CLIP", "church ↑"),
    ]  # fmt: skip
    assert [cell_.parts[0] for cell_ in table.rows[-1].cells] == ["30.0", "31.25", "0.0123", "27.50"]
    assert f"judge: {JUDGE}" in table.notes
    assert "judge: openai/clip" in table.notes
    assert "fid: 200 pictures to 500 real test images" in table.notes
    assert "N: 200" in table.notes
    second = [row("fmn", "fid", 9.5, extractor="inception@1", n=200)]
    tables = [table for name, table in by_name([*one, *second]).items() if name.startswith("utility")]
    groups = [column.group for table in tables for column in table.columns]
    assert groups == ["accuracy %", "FID[classifier-resnet10]", "FID[inception]", "KID", "CLIP"]


def test_failures_and_unfinished_searches_are_marked(one):
    lost = {"value": None, "status": "failed", "n": 0, "extractor": "", "setting": "", "converged": None}
    failed = [
        found.model_copy(update={**lost, "method": "spm", "reason": "unlearn spm, seed 0 (church): diverged"})
        for found in rows_of("fmn")
    ]
    table = by_name([*one, *failed])["table3-church"]
    assert [cell_.text for cell_ in next(one for one in table.rows if one.label == "spm").cells] == ["failed"] * 4 + [
        ""
    ]
    assert len(table.columns) == 5
    assert found(table, "esd-u", "church", "post").parts[0] == "76.0!"
    assert "failed cells of spm: unlearn spm, seed 0 (church): diverged" in table.notes
    assert "! the attack was still improving at its last step: a higher cap might bring more back" in table.notes
    alone = by_name(failed)["table3-church"]
    assert {cell_.text for cell_ in alone.rows[0].cells} == {"failed"}


def test_failed_cells_go_to_every_extractor_of_their_metric():
    rows = [row("fmn", "fid", 1.0, extractor="a"), row("fmn", "fid", 2.0, extractor="b"), row("fmn", "kid", 3.0)]
    lost = row("spm", "fid", None, status="failed", reason="no")
    assert [(one.method, one.extractor) for one in extracted([*rows, lost])] == [
        ("fmn", "a"), ("fmn", "b"), ("fmn", ""), ("spm", "a"), ("spm", "b"),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("paper", [None, paper_numbers("table3")], ids=["alone", "with the paper"])
def test_every_cell_is_whole_in_a_terminal_of_80_columns(one, five, paper):
    wide = [found.model_copy(update={"method": HOSTILE}) for found in rows_of("fmn")]
    shares = [(0.1 * seed, 0.1 * seed, 50.0, 50.0, 0.1, 0.9) for seed in range(3)]
    seeds = [found for seed in range(3) for found in rows_of("fmn", "tench", seed, shares=shares[seed])]
    for records in ([*one, *wide], five, [*five, *seeds]):
        tables = text_to_image_tables(records, paper)
        for table in tables:
            printed = terminal(table)
            assert max(map(len, printed.splitlines())) <= 80
            assert "…" not in printed
            words = printed.split()
            assert all(part in words for one in table.rows for cell_ in one.cells for part in cell_.parts if part)
            for group in {column.group for column in table.columns}:
                assert group in printed
        assert len({table.name for table in tables}) == len(tables)


def test_hostile_names_stay_text_in_every_format():
    rows = [
        *rows_of("fmn", HOSTILE),
        *(one.model_copy(update={"method": HOSTILE}) for one in rows_of("esd-u", HOSTILE)),
    ]
    for table in text_to_image_tables(rows, paper_numbers("table3")):
        assert "<script" not in to_markdown(table)
        assert r"\textless{}script" in to_latex(table)
    units = {line.split(",")[4] for line in to_csv(by_name(list(rows_of("fmn")))["table3-church"]).splitlines()[1:]}
    assert units == {"percent", "steps"}


def test_groups_and_tasks_are_never_mixed(one):
    other = [found.model_copy(update={"protocol": "rub-strict-1", "value": 0.0}) for found in one]
    foreign = [found.model_copy(update={"task": "inpainting"}) for found in one]
    tables = text_to_image_tables([*one, *other, *foreign])
    posts = [found(table, "fmn", "church", "post").value for table in tables if table.name == "table3-church"]
    assert posts == pytest.approx([96, 0])


def test_models_without_a_data_set_are_named_after_the_model(five):
    bare = [found.model_copy(update={"dataset": "none", "model": "stable-diffusion"}) for found in five]
    table = text_to_image_tables(bare)[0]
    assert table.name == "table3-stable-diffusion"
    assert table.title == "Table 3 (demo, stable-diffusion, rub-paper-1)"


def test_an_audit_without_controls_and_without_its_main_attack_has_tables_too():
    rows = [row("unlearned", "asr_pre", 0.1), row("unlearned", "asr_post", 0.4, attack="p4d", budget="50")]
    tables = text_to_image_tables(rows, None, {("text-to-image", rows[0].protocol): "mine"})
    assert headers(tables[0]) == [("church", "pre ↓")]
    assert "mine did not run" in told(tables[0])
    assert headers(tables[1]) == [("p4d", "church ↓")]


def test_the_main_attack_of_a_protocol_without_uma_is_its_first_one():
    rows = [row("unlearned", "asr_pre", 0.1), row("unlearned", "asr_post", 0.4, attack="p4d", budget="50")]
    table = text_to_image_tables(rows)[0]
    assert headers(table) == [("church", "pre ↓"), ("church", "post ↓")]
    assert "with p4d (50 steps)" in told(table)


def test_every_metric_has_its_direction_and_its_pictures():
    directions = {metric.name: (metric.direction, metric.split) for metric in METRICS}
    assert directions == {
        "asr_pre": ("down", "forget"), "asr_post": ("down", "forget"), "steps_mean": ("up", "forget"),
        "steps_median": ("up", "forget"), "gradient_steps_mean": ("up", "forget"),
        "residual_knowledge": ("down", "forget"), "asr_other": ("down", "forget"),
        "picture_excess": ("down", "forget"), "utility_accuracy": ("up", "retain"),
        "utility_seen": ("up", "retain"), "fid": ("down", "retain"),
        "kid": ("down", "retain"), "clip_score": ("up", "retain"),
    }  # fmt: skip


def test_a_share_of_one_model_is_over_its_samples():
    made = estimate([row("fmn", "asr_post", 0.5, n=10, attack="uma", budget="9")], 100)
    assert (made.low, made.high) == pytest.approx([100 * end for end in wilson(5, 10)])
    assert estimate([row("fmn", "asr_post", None, status="failed")]) is None


# All concepts together, figures and galleries.


@pytest.mark.slow
def test_all_experiments_share_one_table_and_the_papers_key(five):
    tables = REPORTING.tables_of(five, {"church": "", "nudity": "table3"})
    assert [table.name for table in tables] == list(by_name(five))
    assert found(tables[0], "esd-u", "church", "post").paper == pytest.approx(76)
    assert REPORTING.tables_of([], {}) == []


def curve(method, concept="church", cap=100):
    post = SHARES[method][1]
    share_ = [SHARES[method][0] + (post - SHARES[method][0]) * k / cap for k in range(cap + 1)]
    where = {**COMMON, "experiment": concept}
    return {name: where[name] for name in NAMES} | {
        "method": method, "unlearn_seed": 0, "attack": "uma", "budget": str(cap), "split": "forget",
        "success_curve": share_, "loss_curve": [], "converged": method != "esd-u", "evaluations": 5000,
    }  # fmt: skip


@pytest.mark.slow
def test_figures_are_drawn_without_a_loss(one):
    made = figures._figures(one, [curve(method) for method in SHARES], REPORTING, "uma")
    assert list(made) == ["robustness", "utility", "success"]
    [axes] = made["robustness"].axes
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert lines["esd-u"] == pytest.approx([14, 76])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "100"]
    assert axes.get_xlabel() == "attack steps, at most"
    [axes] = made["utility"].axes
    points = {
        line.get_label(): (line.get_xdata()[0], line.get_ydata()[0])
        for line in axes.lines
        if line.get_label()[0] != "_"
    }
    assert points["scissorhands"] == pytest.approx((92, 30))
    assert "original" in points
    titles = [axes.get_title() for axes in made["success"].axes if axes.get_visible()]
    assert "esd-u !" in titles
    assert "[sham]" in titles
    for figure in made.values():
        figure.draw_without_rendering()


def test_error_bars_of_one_model_reach_to_the_wilson_ends(one):
    [axes] = figures._utility([found for found in one if found.method == "scissorhands"], "100", REPORTING, "uma").axes
    ends = sorted(tuple(np.ravel(segment)) for bars in axes.collections for segment in bars.get_segments())
    (low, high), (worst, best) = wilson(4, 50), wilson(60, 200)
    expected = [(100 - 100 * high, 30, 100 - 100 * low, 30), (92, 100 * worst, 92, 100 * best)]
    assert ends == [pytest.approx(one) for one in sorted(expected)]


def test_no_utility_no_figure_of_it(one):
    rows = [found for found in one if found.split == "forget"]
    assert list(figures._figures(rows, [], REPORTING, "uma")) == ["robustness"]


@pytest.mark.slow
@pytest.mark.parametrize(("side", "channels", "across"), [(8, 1, 112), (32, 3, 128), (512, 3, 256)])
def test_galleries_of_small_and_large_pictures(tmp_path, monkeypatch, side, channels, across):
    monkeypatch.setattr("rub.reports.galleries.reports_of", lambda tasks: {"text-to-image": REPORTING})
    tiles = np.random.default_rng(0).integers(0, 256, (2, 3, side, side, channels), dtype=np.uint8)
    columns = np.array(["before", "after", "after, uma"])
    np.savez(tmp_path / "g.npz", tiles=tiles, columns=columns, ids=np.array([7, 4706]))
    where = {**COMMON, "experiment": "church", "method": "esd-x", "unlearn_seed": 0, "split": "forget"}
    [drawn] = draw_galleries([{**where, "path": tmp_path / "g.npz"}], tmp_path / "figures")
    assert drawn.name == "gallery-esd-x-forget-church"
    assert "Columns: before, after, after, uma. Each row is one prompt" in drawn.caption
    picture = matplotlib.image.imread(tmp_path / "figures" / f"{drawn.name}.png")[..., :3]
    shown = (picture * 255).round()[-across - 6 : -6, -across - 6 : -6]  # last row, last column
    if side <= across:
        expected = tiles[1, 2].repeat(across // side, 0).repeat(across // side, 1)
        assert np.array_equal(shown, np.broadcast_to(expected, (across, across, 3)))
    else:
        assert shown == pytest.approx(tiles[1, 2].reshape(256, 2, 256, 2, 3).mean((1, 3)), abs=0.51)


@pytest.mark.slow
def test_the_page_shows_all_concepts_together(five, tmp_path):
    from rub.reports.writing import write_report

    names = ("church", "garbage-truck", "nudity", "parachute", "tench")
    facts = {"suite": {"name": "demo", "experiments": [
        {"task": "text-to-image", "name": name, "paper": "table3"} for name in names
    ]}}  # fmt: skip
    curves = [curve(method, concept) for concept in ("church", "tench") for method in ("original", "fmn")]
    [page] = (write_report(five, curves, tmp_path, facts).parent / "experiments").iterdir()
    text = page.read_text()
    for expected in ("Table 3", "(76.0)", "which methods are tied", "hardly unlearned", "forget, tench"):
        assert expected in text
    assert "(38.58)" in (tmp_path / "tables" / "table3-digits.md").read_text()
    assert {path.name for path in (tmp_path / "figures").glob("success-*.svg")} == {
        "success-church.svg", "success-tench.svg",
    }  # fmt: skip
    assert "demo, tench, digits, sd-mini, rub-paper-1: Share of prompts" in text
