"""What a folder of others may ask of a report."""

import json

import pytest

from rub.errors import RubError
from rub.registry import METHODS, Entry
from rub.reports import folders, lineage
from rub.reports.folders import Gallery, _check_budget
from rub.reports.render import _no_formula
from rub.store.manifest import seal_folder
from rub.store.records import Record, write_records

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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"command": "rub run " + "x" * 10_000_000}, "a command of more than 20000 characters"),
        ({"command": ["rub"] * 20_000}, "a command of more than 20000 characters"),
        ({"data": [{"task": "t"}]}, "experiment"),
        ({"data": "x" * 1000}, "manifest.json"),
    ],
)
def test_a_manifest_that_asks_too_much_is_refused(tmp_path, change, words):
    write_records([Record(**ROW)], {}, tmp_path)
    seal_folder(tmp_path, {"command": "rub run s", **change})
    with pytest.raises(RubError, match=words) as error:
        folders.read_folder(tmp_path)
    assert len(str(error.value)) < 400


def test_more_curves_than_a_page_shows_are_refused(tmp_path):
    write_records([Record(**ROW)], {}, tmp_path)
    names = ("task", "suite", "experiment", "dataset", "model", "protocol", "method", "unlearn_seed", "split")
    curve = {name: ROW[name] for name in names}
    curve |= {"attack": "uma", "budget": "8/255", "success_curve": [0.0], "loss_curve": [0.0], "evaluations": 1}
    (tmp_path / "curves.json").write_text(json.dumps([{**curve, "converged": True}] * 5001))
    seal_folder(tmp_path, {})
    with pytest.raises(RubError, match="5001 curves; at most 5000 are shown"):
        folders.read_folder(tmp_path)


@pytest.mark.parametrize("name", ["curves.json", "galleries.json", "submission.json", "stages.json", "suite.yaml"])
def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch, name):
    write_records([Record(**ROW)], {}, tmp_path)
    (tmp_path / name).write_text(" " * (3 << 20))
    seal_folder(tmp_path, {})
    for module in (folders, lineage):
        monkeypatch.setattr(module, "_LARGEST", 1 << 21)
    with pytest.raises(RubError, match=r"MiB|characters of YAML"):
        folders.read_folder(tmp_path)


@pytest.mark.parametrize("text", ["=cmd", " =cmd", "\t=cmd", "\r@x", "\uff1dcmd", "+1", "-1"])
def test_no_cell_is_a_formula(text):
    assert _no_formula(text) == f"'{text}"


@pytest.mark.parametrize(
    ("field", "name", "refused"),
    [
        ("method", "s\u0430lun", True), ("method", "\u0441\u0442", True), ("dataset", "cif\u0430r10", True),
        ("attack", "\uff55ma", True), ("metric", "u\u0391", True), ("model", "r\U0001d41esnet", True),
        ("dataset", "donn\u00e9es", False), ("suite", "\u0446\u0438\u0444\u0440\u044b-28 px", False),
        ("experiment", "\u732b\u3068\u30cd\u30b3", False),
    ],
)  # fmt: skip
def test_names_that_look_like_others_are_refused(tmp_path, field, name, refused):
    record = Record(**{**ROW, field: name})
    if not refused:
        _check_budget(tmp_path, [record])
        return
    with pytest.raises(RubError, match="letters that look like others"):
        _check_budget(tmp_path, [record])


def test_a_component_has_a_plain_name():
    for name in ("s\u0430lun", "", "a b", "../x", "-x", "x" * 65):
        with pytest.raises(RubError, match="a name should have"):
            METHODS.add(Entry(name, "classification", "", "math:pi", "mine"))


def test_pictures_are_counted_before_they_are_read(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setattr(folders, "_ALL_PIXELS", 5000)
    (tmp_path / "figures").mkdir()
    Image.new("RGB", (60, 50)).save(tmp_path / "figures" / "gallery-a.png")
    one = Gallery(group=("a",) * 6, name="gallery-a", caption="")
    folders._check_pictures(tmp_path, [one])
    with pytest.raises(RubError, match="more than 5000 pixels in all"):
        folders._check_pictures(tmp_path, [one, one])
    with pytest.raises(RubError, match="301 galleries"):
        folders._check_pictures(tmp_path, [one] * 301)
