"""The benchmark's file on the Hub declares every leaderboard that results name."""

from pathlib import Path

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries

from rub import read_records
from rub.errors import RubError
from rub.leaderboard.exports.eval_results import eval_results
from rub.leaderboard.exports.eval_yaml import eval_yaml

RESULTS = Path(__file__).parents[2] / "results"


def named(records):
    """Task ids that `.eval_results` files of all rows name, as the Hub's own reader reads them."""
    methods = {record.method for record in records if record.value is not None}
    files = [yaml.safe_load(eval_results(records, method=method)) for method in sorted(methods)]
    return {entry.task_id for file in files for entry in parse_eval_result_entries(file)}


def test_task_ids_are_those_of_the_eval_results_of_every_row(records):
    found = yaml.safe_load(eval_yaml(records))
    ids = [task["id"] for task in found["tasks"]]
    assert set(ids) == named(records)
    assert len(ids) == len(set(ids))
    assert {tuple(task) for task in found["tasks"]} == {("id", "config", "split")}
    assert list(found) == ["name", "description", "evaluation_framework", "tasks"]
    assert (found["name"], found["evaluation_framework"]) == ("RUB: image classification", "rub-bench")


def test_cells_that_failed_everywhere_are_no_leaderboards(make_row):
    rows = [make_row("ft", "ua", 0.5), make_row("ft", "ra", None, split="retain", status="failed", reason="x")]
    assert [task["id"] for task in yaml.safe_load(eval_yaml(rows))["tasks"]] == [
        "ua/forget/none/none/rub-paper-1/cifar10"
    ]
    for none in (rows[1:], []):
        with pytest.raises(RubError, match="no record is measured"):
            eval_yaml(none)


def test_each_task_has_a_data_set_of_its_own(make_row):
    rows = [make_row("ft", "ua", 0.5), make_row("ft", "ua", 0.5).model_copy(update={"task": "an\x1bother"})]
    with pytest.raises(RubError, match=r"2 tasks.* --task, one of classification, an\?other") as caught:
        eval_yaml(rows)
    assert str(caught.value).isprintable()
    assert yaml.safe_load(eval_yaml(rows[1:]))["name"] == "RUB: an?other"


def test_hostile_names_break_no_yaml(make_row):
    name = "- a: {b\n  # \x1b[2J ../x"
    fields = {"split": name, "suite": name, "experiment": name, "dataset": name, "protocol": name, "extractor": name}
    row = make_row("ft", "ua", 0.5, **fields).model_copy(update={"task": name})
    text = eval_yaml([row])
    assert text.replace("\n", "").isprintable()
    assert {task["id"] for task in yaml.safe_load(text)["tasks"]} == named([row])


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["audit-resnet20", "inpainting-digits", "text-to-image-imagenette"])
def test_real_results(folder):
    records = read_records(RESULTS / folder)
    assert {task["id"] for task in yaml.safe_load(eval_yaml(records))["tasks"]} == named(records)
