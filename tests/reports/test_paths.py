"""No path of the machine in what is published, whatever option gave it."""

import json

import pytest

from rub.api import reproducible
from rub.errors import RubError
from rub.reports.folders import read_folder
from rub.reports.result_folder import Result, prepare, write_result
from rub.reports.text import without_places
from rub.store.manifest import changed_files
from rub.store.records import Record

HOME = "/home/someone/secret"
ROW = {
    "task": "classification", "suite": "s", "experiment": "", "protocol": "rub-quick-1", "dataset": "digits",
    "model": "m", "method": "ft", "attack": "none", "budget": "none", "metric": "ua", "split": "forget", "n": 4,
    "unlearn_seed": 0, "mia_seed": None, "direction": "down", "key": "0" * 64,
}  # fmt: skip
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


@pytest.mark.parametrize("name", ["figures", "tables", "report", "witnesses", "records.json", "manifest.json"])
@pytest.mark.parametrize("there", [True, False])
def test_a_link_below_a_result_folder_is_replaced_and_never_followed(tmp_path, name, there):
    """After hours of work, who keeps ``figures -> /scratch`` gets a whole folder, and what lies there stays."""
    far, out = tmp_path / "far", tmp_path / "out"
    out.mkdir()
    if there and "." in name:
        far.write_text("precious")
    elif there:
        far.mkdir()
        (far / "precious.txt").write_text("precious")
    (out / name).symlink_to(far)
    prepare(out, "s")
    write_result(Result((Record(**ROW, value=0.5),), suite={"name": "s", "experiments": []}), out, "rub run s")
    assert changed_files(out) == [] and not any(path.is_symlink() for path in out.rglob("*"))
    assert far.exists() == there
    if there:
        kept = far if "." in name else far / "precious.txt"
        assert kept.read_text() == "precious" and ("." in name or list(far.iterdir()) == [kept])


@pytest.mark.parametrize("name", ["figures", "tables", "report", "suite.yaml", "curves.json"])
def test_a_link_in_a_folder_of_others_is_refused(tmp_path, name):
    out = tmp_path / "out"
    write_result(Result((Record(**ROW, value=0.5),), suite={"name": "s", "experiments": []}), out, "rub run s")
    (out / name).rename(tmp_path / name)
    (out / name).symlink_to(tmp_path / name)
    with pytest.raises(RubError, match=r"missing|a link|not in the manifest"):
        read_folder(out)
