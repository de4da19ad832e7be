"""No path of the machine in what is published, whatever option gave it."""

import json

import pytest

from rub.api import reproducible
from rub.reports.result_folder import Result, write_result
from rub.reports.text import without_places
from rub.store.records import Record

HOME = "/home/someone/secret"
OPTIONS = (
    "--store", "--out", "--data-root", "--prompts", "--original", "--unlearned", "--retrained", "--data",
    "--forget-ids",
    "--judge-weights", "--judge", "--plugin", "--arch", "--network", "--protocol", "--image", "--of-a-plug-in",
)  # fmt: skip


@pytest.mark.parametrize("place", [f"{HOME}/x.pth", "~/secret/x.pth", "../secret/x.pth", "C:\\secret\\x.pth"])
@pytest.mark.parametrize("option", OPTIONS)
def test_no_option_leaves_a_path_in_the_command(option, place):
    for words in (
        [option, place],
        [f"{option}={place}"],
        ["--set", f"a.b={place}"],
        [place],
        ["--set", f"a=[{place}, 1]"],
    ):
        assert "secret" not in reproducible(["run", *words])


@pytest.mark.parametrize(
    "text", ["8/255", "owner/name@main:sub/dir", "data/pets", "https://example.org/a/b", "km/h", "a / b"]
)
def test_what_is_no_path_of_the_machine_stays(text):
    assert without_places(text) == text


def test_a_result_folder_holds_no_path_of_the_machine(tmp_path):
    row = {
        "task": "classification", "suite": f"{HOME}/s.yaml", "experiment": "", "protocol": "rub-quick-1",
        "dataset": f"{HOME}/pets", "model": f"hf:{HOME}/vit", "method": f"{HOME}/mine.py:mine", "attack": "none",
        "budget": "none", "metric": "ua", "split": "forget", "n": 4, "unlearn_seed": 0, "mia_seed": None,
        "direction": "down", "key": "0" * 64,
    }  # fmt: skip
    records = (
        Record(**row, value=0.5),
        Record(
            **{**row, "metric": "ta", "split": "test"}, value=None, status="failed", reason=f"no {HOME}/w.pth there"
        ),
    )
    suite = {
        "name": "s",
        "experiments": [
            {"task": "classification", "dataset": {"path": f"{HOME}/pets"}, "model": {"arch": f"hf:{HOME}/vit"}}
        ],
    }
    write_result(
        Result(records, suite=suite), tmp_path, reproducible(["run", f"{HOME}/s.yaml", "--plugin", f"{HOME}/p.py"])
    )
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".json", ".html", ".yaml", ".tex", ".parquet", ".csv"}
    for path in files:
        assert b"secret" not in path.read_bytes(), path
    assert json.loads((tmp_path / "manifest.json").read_text())["command"] == "rub run s.yaml --plugin p.py"
