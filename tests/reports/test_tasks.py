"""All that reports goes through the tasks: lists, `rub show`, the page, and the galleries that a run collects."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from rub import registry
from rub.cli.inspect import describe, listing
from rub.config.suite import Suite, load_suite
from rub.errors import RubError
from rub.pipeline.graph import Graph, Stage
from rub.pipeline.inline import Outcome
from rub.reports import figures
from rub.reports.grouping import Place, board_of, budgets_of, grouped, row_order
from rub.reports.result_folder import collect
from rub.reports.task_report import report_of, reports_of
from rub.reports.writing import write_report
from rub.store.artifacts import Store
from rub.tasks.classification.report import REPORTING
from rub.tasks.classification.task import TASK

OTHER = replace(REPORTING, title="other", first="Table 9", prefix="table9")


@pytest.fixture
def other(monkeypatch):
    """A second task with the classification's protocols and one of its metrics."""
    monkeypatch.setattr("rub.tasks.classification.report.OTHER", OTHER, raising=False)
    target = "rub.tasks.classification.report:OTHER"
    task = SimpleNamespace(metrics=TASK.metrics[:1], report=target, experiment=TASK.experiment)
    registry.TASKS.add(registry.Entry("other", "other", "a task of a test", task, "test"))
    registry.CONTROLS.add(
        registry.Entry("original", "other", "another's", "rub.tasks.classification.stages:train", "rub")
    )
    fields = registry.PROTOCOLS.get("rub-paper-1", "classification").load()
    registry.PROTOCOLS.add(registry.Entry("rub-paper-1", "other", "of another task", fields, "rub"))


@pytest.mark.usefixtures("other")
def test_lists_hold_every_task_or_the_one_that_is_asked_for():
    for what in ("protocols", "metrics"):
        tasks = [row["task"] for row in listing(what, None)]
        assert tasks[0] == "classification"
        assert tasks[-1] == "other"
        assert {row["task"] for row in listing(what, "other")} == {"other"}
    assert [row["name"] for row in listing("metrics", "other")] == ["ta"]
    with pytest.raises(RubError, match="did you mean 'other'"):
        listing("metrics", "othr")


@pytest.mark.slow
@pytest.mark.usefixtures("other")
def test_show_tells_what_each_task_has_under_a_name():
    for name, kind in (("rub-paper-1", "protocol"), ("ta", "metric"), ("original", "control")):
        heads = [line for line in describe(name, None) if line.startswith(f"[b]{name}[/b]")]
        assert f"{kind}, classification" in heads[0]
        assert f"{kind}, other" in heads[-1]
        [head] = [line for line in describe(name, "other") if line.startswith(f"[b]{name}[/b]")]
        assert f"{kind}, other" in head
    with pytest.raises(RubError, match="unknown component"):
        list(describe("ua", "other"))
    with pytest.raises(RubError, match="unknown task"):
        list(describe("ua", "othr"))


def test_tasks_come_in_the_order_of_the_registry_and_unknown_ones_are_left_out():
    assert list(reports_of(["nowhere", "classification"])) == ["classification"]
    assert report_of("classification") is REPORTING
    with pytest.raises(RubError, match="did you mean 'classification'"):
        report_of("clasification")


def test_the_page_names_the_tasks_that_it_leaves_out(make_row, tmp_path):
    rows = [make_row("ft", "ua", 0.5), make_row("ft", "ua", 0.5, task="<unheard-of>")]
    text = write_report(rows, [], tmp_path, {}).read_text()
    assert "records of &lt;unheard-of&gt;</th><td>this installation does not know the task" in text


def test_controls_come_first_then_the_methods_of_the_task():
    methods = ["ft", "salun", "random_init", "sham", "retrained", "retrain", "original", "i2i"]
    assert row_order(methods, "classification") == [
        "original", "retrain", "retrained", "sham", "random_init", "ft", "salun", "i2i",
    ]  # fmt: skip
    assert row_order(methods, "inpainting")[:4] == ["original", "retrain", "retrained", "random_init"]


def test_records_of_two_tasks_or_two_extractors_never_meet(make_row):
    rows = [
        make_row("ft", "ua", 0.5),
        make_row("ft", "ua", 0.1, task="other"),
        make_row("ft", "ua", 0.9, extractor="a"),
    ]
    [(group, own)] = grouped(rows, "classification").items()
    assert group.task == group[0] == "classification"
    assert len(own) == 2
    board = board_of(own)
    assert [one.value for one in board["ft", Place("ua", "forget", "none", "none")]] == [0.5]
    assert [one.value for one in board["ft", Place("ua", "forget", "none", "none", "a")]] == [0.9]


def test_budgets_without_a_number_are_the_largest(make_row):
    given = ["free", "unbounded", "16/255", "none", "2/255"]
    rows = [make_row("ft", "ua", 0.5, attack="uma", budget=budget) for budget in given]
    assert budgets_of(rows, "uma") == ["2/255", "16/255", "unbounded", "free"]


def test_names_that_look_like_formulas_are_drawn_as_text(make_row):
    rows = [make_row(r"$\frac{$", "ua", 0.5, **at) for at in ({}, {"attack": "uma", "budget": "$8$"})]
    rows.append(make_row(r"$\frac{$", "ta", 0.5, split="test"))
    figures._robustness(rows, ["$8$"], REPORTING, "uma").draw_without_rendering()
    figures._utility(rows, "$8$", REPORTING, "uma").draw_without_rendering()


def test_a_run_collects_the_galleries_of_its_stages(tmp_path):
    def fill(out):
        for split in ("forget", "retain"):
            np.savez(out / f"gallery_{split}.npz", ids=np.arange(2))
        parts = [{"split": split, "file": f"gallery_{split}.npz"} for split in ("forget", "retain")]
        facts = {"method": "ft", "unlearn_seed": 0, "parts": parts}
        (out / "gallery.json").write_text(json.dumps(facts), encoding="utf-8")

    experiment = load_suite("quick", task="classification").experiments[0]
    stages = [Stage("classification", "gallery", 1, name, {"of": name}) for name in ("made", "lost", "without")]
    store = Store(tmp_path)
    made = store.write("gallery", stages[0].key, {}, fill)
    plain = store.write("gallery", stages[2].key, {}, lambda out: None)
    outcomes = dict(
        zip(
            [stage.key for stage in stages],
            [Outcome("done", made), Outcome("failed", reason="lost: no"), Outcome("cached", plain)],
            strict=True,
        )
    )
    common = {"task": "classification", "experiment": "", "protocol": "p", "dataset": "digits", "model": "m"}
    suite = Suite(name="demo", experiments=(experiment,))
    result = collect(suite, [(experiment, Graph(tuple(stages), common))], outcomes)
    assert result.failures == ("lost: no",)
    expected = {**common, "suite": "demo", "method": "ft", "unlearn_seed": 0}
    assert list(result.galleries) == [
        {**expected, "split": split, "path": made.path / f"gallery_{split}.npz"} for split in ("forget", "retain")
    ]
