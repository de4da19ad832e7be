"""The Hub's own reader against what we write for it, and a model card beside its controls."""

from pathlib import Path

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries

from rub import read_records
from rub.errors import RubError
from rub.leaderboard.exports.eval_results import eval_results
from rub.leaderboard.exports.model_card import model_card
from rub.leaderboard.exports.scores import BENCHMARK

NASTY = "<script>\n- dataset: {id: x}\n| a | ../x \x1b[2J #*_`[z](javascript:1)"
UA16 = "ua/forget/uma/16-255/rub-paper-1/cifar10"
RESULTS = Path(__file__).parents[2] / "results"


def read(text):
    return {entry.task_id: entry for entry in parse_eval_result_entries(yaml.safe_load(text))}


def labels(card):
    return [line.split(" | ")[0].removeprefix("| ") for line in card.splitlines() if line.startswith("| ")]


def test_entry_holds_the_mean_of_the_raw_records(records):
    found = read(eval_results(records, method="salun", source="https://example.org/r"))
    entry = found[UA16]
    assert entry.dataset_id == BENCHMARK.format(task="classification") == "rub-bench/classification"
    assert entry.value == pytest.approx((0.25 + 0.27 + 0.29) / 3)
    assert entry.date == "2026-01-01T00:00:00+00:00"
    assert (entry.source_url, entry.source_name) == ("https://example.org/r", "RUB records")
    said = entry.notes.split("; ")
    assert said[:3] == ["ua of salun on forget after uma at 16/255", "fraction, lower is better", "N 100"]
    assert (
        "mean over 3 models, 95 % interval 0.2203 to 0.3197 over unlearning seeds" in said[3]
    )  # .27 +- 4.3027 * .02 / sqrt(3)
    assert "the attack was still improving at its last step" in said
    assert "controls: original 1, retrain 0, sham 0" in said
    assert said[-1] == "protocol rub-paper-1, data cifar10, model resnet10-w8, suite demo"
    assert len(found) == len({(r.metric, r.split, r.attack, r.budget) for r in records if r.method == "salun"})


def test_failed_cells_are_left_out_and_counted(records):
    ta = read(eval_results(records, method="rl"))["ta/test/none/none/rub-paper-1/cifar10"]
    assert ta.value == pytest.approx(0.9)
    assert "1 of 3 results failed and are left out" in ta.notes
    assert ta.source_url is None
    with pytest.raises(RubError, match=r"every cell of method 'ga' failed; measured: .*ft"):
        eval_results(records, method="ga")


def test_a_failed_stage_that_names_no_judge_still_counts(make_row):
    judged = make_row("ft", "ua", 0.5, extractor="judge@1", ci_low=0.4, ci_high=0.6)
    alone = read(eval_results([judged], method="ft"))["ua/forget/none/none/rub-paper-1/cifar10/judge-1"]
    assert "one model, 95 % interval 0.4 to 0.6 over samples" in alone.notes
    failed = make_row("ft", "ua", None, seed=1, status="failed", reason="x")
    [entry] = read(eval_results([judged, failed], method="ft")).values()
    assert "1 of 2 results failed" in entry.notes
    assert "judge judge@1" in entry.notes


def test_a_dose_equivalent_keeps_the_interval_of_its_record(make_row):
    row = make_row("ft", "ua", 0.5, ci_low=0.0, ci_high=2.05, n=6, setting="<=").model_copy(
        update={"metric": "ua_dose", "direction": "reference", "unlearn_seed": None}
    )
    [entry] = read(eval_results([row], method="ft")).values()
    said = entry.notes.split("; ")
    assert said[1:4] == [
        "percent, closest to the retrained model is best",
        "6 models together, 95 % interval 0 to 2.05 over images x dose models x the row's own models",
        "a bound: the dose is <= this",
    ]


def test_unknown_method_names_the_known_ones_on_one_line(records, make_row):
    others = [*records, make_row(NASTY, "ta", 0.5, split="test")]
    for export in (eval_results, model_card):
        with pytest.raises(RubError, match="unknown method 'saluun': did you mean 'salun'") as caught:
            export(others, method="saluun")
        assert str(caught.value).isprintable()


def test_two_values_for_one_leaderboard_are_refused(make_row):
    rows = [make_row("ft", "ua", 0.5), make_row("ft", "ua", 0.7, model="resnet18")]
    with pytest.raises(RubError, match=r"two values of 'ft' for ua/.* resnet10-w8, .* and .* resnet18, .*") as caught:
        eval_results(rows, method="ft")
    assert str(caught.value).isprintable()
    rows[1] = rows[1].model_copy(update={"experiment": "other"})
    assert len(read(eval_results(rows, method="ft"))) == 2


@pytest.mark.parametrize("source", ["results", "javascript:alert(1)", "https://", "https://a b", "https://a/\x1b[2J"])
def test_source_is_a_web_address(records, source):
    with pytest.raises(RubError, match="should be a web address") as caught:
        eval_results(records, method="ft", source=source)
    assert str(caught.value).isprintable()


def test_dates_that_are_none_are_left_out(make_row):
    for created, date in (("", None), ("<b>", None), ("2026-01-02", "2026-01-02T00:00:00+00:00")):
        [entry] = read(eval_results([make_row("ft", "ua", 0.5, created=created)], method="ft")).values()
        assert entry.date == date


def test_controls_stand_beside_the_method(records):
    card = model_card(records, method="salun")
    assert labels(card) == ["method", r"\[original\]", r"\[retrain\]", r"\[sham\]", "salun"]
    assert card.startswith("## Robust Unlearning Benchmark: image classification\n")
    assert "- `sham` (control): the original with" in card
    assert "### Table 1 (demo, cifar10, resnet10-w8, rub-paper-1)" in card
    assert "| 27.00! ±4.97 |" in card
    assert "N: 900 for TA" in card
    assert "tie" not in card
    assert "ga" not in card.split()


def test_groups_without_the_method_are_left_out(make_row):
    rows = [make_row(name, "ta", 0.5, split="test", dataset="digits") for name in ("original", "ft")]
    rows += [make_row("original", "ta", 0.5, split="test", dataset="cifar10")]
    card = model_card(rows, method="ft")
    assert "digits" in card
    assert "cifar10" not in card
    strangers = [row.model_copy(update={"task": "another"}) for row in rows]
    with pytest.raises(RubError, match="not known here"):
        model_card(strangers, method="ft")
    [entry] = read(eval_results(strangers, method="ft")).values()
    assert entry.dataset_id == "rub-bench/another"


@pytest.mark.parametrize("name", [NASTY, "../x", "- a: b # c", "", "null", "a|b"])
def test_hostile_names_break_neither_yaml_nor_markdown(make_row, name):
    fields = {"split": "test", "suite": name, "experiment": name, "dataset": name, "model": name, "protocol": name}
    fields |= {"setting": name, "reason": name, "created": name}
    rows = [make_row(method, "ta", 0.5, **fields) for method in ("original", name)]
    text = eval_results(rows, method=name)
    [entry] = read(text).values()
    assert entry.value == 0.5
    assert entry.notes.isprintable()
    assert {"<", ">", "..", "\x1b", " ", "\n"}.isdisjoint(entry.task_id.split("/")[-1])
    assert text.replace("\n", "").isprintable()
    card = model_card(rows, method=name)
    assert "<" not in card
    assert "[z]" not in card
    assert card.replace("\n", "").isprintable()
    rows_of_table = [line for line in card.splitlines() if line.startswith("|")]
    assert {line.replace(r"\|", "").count("|") for line in rows_of_table} == {3}
    assert len(rows_of_table) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "method", "place", "begins", "title"),
    [
        ("table1-cifar10-resnet10", "salun", ("ua", "forget", "uma", "16/255"), "ua/forget/uma/16-255/", "Table 1"),
        ("inpainting-digits", "i2i", ("fid", "forget", "uma", "unbounded"), "fid/forget/uma/unb", "Table 2: FID"),
        ("text-to-image-digits", "esd-x", ("asr_post", "forget", "uma", "20"), "asr-post/forget/uma/20/", "Table 3"),
    ],
)
def test_real_results(folder, method, place, begins, title):
    records = read_records(RESULTS / folder)
    own = [record for record in records if record.method == method]
    values = [r.value for r in own if (r.metric, r.split, r.attack, r.budget) == place]
    found = read(eval_results(records, method=method))
    [entry] = [entry for name, entry in found.items() if name.startswith(begins)]
    assert entry.value == pytest.approx(sum(values) / len(values))
    assert len(found) == len({(r.metric, r.split, r.attack, r.budget, r.extractor) for r in own})
    assert "controls: original" in entry.notes
    card = model_card(records, method=method)
    assert f"### {title}" in card
    assert {method, r"\[original\]", r"\[retrain\]"} <= set(labels(card))
