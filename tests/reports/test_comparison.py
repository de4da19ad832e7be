"""Two result folders: equal ones differ in nothing, changed ones in what was changed, strangers are told so."""

import json
from dataclasses import replace

import pytest

from rub.errors import RubError
from rub.reports.comparison import apart, compare
from rub.reports.folders import read_folder
from rub.reports.result_folder import Result, write_result
from rub.reports.writing import write_reports
from rub.store.records import Record

ROW = {
    "task": "classification", "suite": "s", "experiment": "", "protocol": "rub-curve-2", "dataset": "digits",
    "model": "m", "method": "ft", "attack": "none", "budget": "none", "split": "test", "mia_seed": None,
    "direction": "up", "key": "0", "metric": "ta", "n": 400,
}  # fmt: skip


def folder(values, like, method="ft", **changes):
    rows = [
        Record(**{**ROW, "method": method, "value": value, "unlearn_seed": seed, **changes})
        for seed, value in enumerate(values)
    ]
    return replace(like, records=rows, suite={})


@pytest.fixture(scope="module")
def run(tiny_out):
    return read_folder(tiny_out)


def test_a_folder_is_like_itself(run):
    found = compare(run, run)
    assert (found.settings, found.only) == ((), (0, 0))
    assert len(found.cells) > 50
    assert not any(cell.told for cell in found.cells)
    assert all(cell.one == cell.other for cell in found.cells)


def test_differences_are_paired_by_seed_and_corrected(run):
    one = folder([0.50, 0.60, 0.70, 0.80], run)
    other = folder([0.55, 0.651, 0.752, 0.85], run)
    [cell] = compare(one, other).cells
    assert cell.other - cell.one == pytest.approx(0.05075)
    assert cell.told
    assert cell.difference.mean == pytest.approx(0.05075)
    assert cell.difference.low < cell.difference.mean < cell.difference.high
    [same] = compare(one, folder([0.8, 0.5, 0.7, 0.6], run)).cells
    assert not same.told


def test_what_only_one_has_is_counted(run):
    one = replace(run, records=[*folder([0.5], run).records, *folder([0.5], run, method="rl").records], suite={})
    assert compare(one, folder([0.5], run)).only == (1, 0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dataset": "cifar10"}, "dataset digits in the first, cifar10 in the second"),
        ({"protocol": "rub-paper-1"}, "protocol rub-curve-2 in the first, rub-paper-1 in the second"),
        ({"metric": "ra", "split": "retain"}, "no row and metric is in both"),
    ],
)
def test_folders_without_a_common_cell_say_why(run, changes, says):
    with pytest.raises(RubError, match=says):
        compare(folder([0.5], run), folder([0.5], run, **changes))


def test_settings_that_changed_are_named(run):
    suite = json.loads(json.dumps(run.suite))
    suite["experiments"][0]["training"]["lr"] = 0.3
    suite["experiments"][0]["methods"]["rl"] = {"epochs": 2}
    found = {path: values for path, *values in compare(run, replace(run, suite=suite)).settings}
    assert found == {"classification.training.lr": [0.1, 0.3], "classification.methods.rl.epochs": [None, 2]}


def test_the_command(tiny_out, rub):
    said = rub("compare", tiny_out, tiny_out)
    assert said.code == 0, said.err
    assert "0 told apart (5 %, Holm over all of them); 0 only in the first, 0 only in the second" in said.out
    assert "difference" in rub("compare", tiny_out, tiny_out, "--all").out
    found = json.loads(rub("compare", tiny_out, tiny_out, "--all", "--json").out)
    assert found["settings"] == []
    assert {cell["method"] for cell in found["cells"]} >= {"ft", "original"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"training.batch_size": (64, 512)}, ["training.batch_size 64", "training.batch_size 512"]),
        ({"methods.ft.lr": (0.1, 0.2)}, ["methods.ft.lr 0.1", "methods.ft.lr 0.2"]),
        ({"forget.classes": ([0], [1])}, ["forget.classes [0]", "forget.classes [1]"]),
        ({"dataset.size": (None, 16)}, ["dataset.size None", "dataset.size 16"]),
        ({"seeds.unlearn": (1, 1, 1)}, ["run 1", "run 2", "run 3"]),
        (dict.fromkeys("abcde", (1, 2)), ["a 1, b 1, c 1 and 2 more", "a 2, b 2, c 2 and 2 more"]),
        ({"a": ("x" * 1000, "\x1b[2J")}, ["a " + "x" * 40, "a ?[2J"]),
        ({"training.batch_size": (64,)}, [""]),
    ],
)  # fmt: skip
def test_runs_that_look_alike_are_told_apart_by_their_settings(given, words):
    count = len(next(iter(given.values())))
    runs = [{path: values[run] for path, values in given.items()} for run in range(count)]
    assert apart([{"experiments": [{"task": "t", "name": "", **own}]} for own in runs]) == words


def test_a_setting_that_one_run_has_not_is_left_out():
    asked = [{"task": "t", "dataset": {"name": "d"}}, {"task": "t", "dataset": {"name": "d", "size": 16}}]
    assert apart([{"experiments": [one]} for one in asked]) == ["dataset.size left out", "dataset.size 16"]


def test_a_board_tells_apart_two_runs_that_differ_in_batch_size(tmp_path):
    """Their rows share suite, data, network and protocol; the same training twice, other values."""
    places = []
    for size, value in ((64, 0.5), (512, 0.4)):
        row = {**ROW, "protocol": "rub-quick-1", "unlearn_seed": 0, "value": value, "key": str(size)}
        suite = {"name": "s", "experiments": [{"task": "classification", "name": "", "training": {"batch_size": size}}]}
        places.append(tmp_path / f"b{size}")
        write_result(Result((Record(**row),), suite=suite), places[-1], "rub run s")
    page, refused = write_reports(places, tmp_path / "site")
    assert not refused
    text = page.read_text()
    for size in (64, 512):  # on the row, and in the list of experiments
        assert text.count(f"<small>training.batch_size {size}</small>") == 2
    alone, _ = write_reports(places[:1], tmp_path / "alone")
    assert "batch_size" not in alone.read_text()
