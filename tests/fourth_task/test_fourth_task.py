"""A task that RUB knows nothing of, forgetting rows of a table, as a plug-in package: it does what the others do."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from safetensors.torch import load_file, save_file

from rub.registry import load_plugin
from rub.store.records import read_records

pytestmark = pytest.mark.slow

PACKAGE = Path(__file__).parent / "rub_tabular"
MOST = 300  # lines
SUITE = {
    "name": "tables",
    "experiments": [
        {"task": "tabular", "table": "moons", "protocol": "tabular-1", "methods": ["ft"], "seeds": {"unlearn": 2}}
    ],
}


@pytest.fixture(scope="module")
def plugged():
    """The package read as ``--plugin`` does, for the tests of this file."""
    from rub.registry import scoped

    with scoped():
        load_plugin(PACKAGE)
        yield


@pytest.fixture(scope="module")
def ran(plugged, tmp_path_factory):
    from rub import load_suite, run
    from rub.api import make_runtime

    folder = tmp_path_factory.mktemp("tabular")
    (folder / "suite.yaml").write_text(yaml.safe_dump(SUITE), encoding="utf-8")
    added = load_plugin(PACKAGE)
    suite = load_suite(str(folder / "suite.yaml"), added=added)
    out, store = folder / "out", folder / "store"
    result = run(suite, store=store, out=out, runtime=make_runtime(device="cpu"), workers=2, plugins=[PACKAGE])
    return SimpleNamespace(result=result, out=out, store=store, suite=folder / "suite.yaml")


def test_it_is_small():
    assert sum(len(file.read_text().splitlines()) for file in PACKAGE.glob("*.py")) <= MOST


def test_it_runs_on_two_workers_and_measures_every_row(ran):
    assert ran.result.failures == ()
    values = {(row.method, row.metric, row.budget): row.value for row in ran.result.records if row.unlearn_seed == 0}
    assert {method for method, _, _ in values} == {"original", "retrain", "inverted", "ft"}
    assert values["original", "recovered", "none"] == values["original", "recovered", "50/100"] == 1
    assert values["retrain", "recovered", "none"] == values["retrain", "recovered", "50/100"] == 0
    assert values["ft", "recovered", "none"] < values["ft", "recovered", "50/100"] < 1
    assert values["ft", "residual_knowledge", "50/100"] == values["ft", "recovered", "50/100"]
    assert {row.unlearn_seed for row in ran.result.records if row.method == "ft"} == {0, 1}
    assert read_records(ran.out) == list(ran.result.records)


def test_a_report_has_its_table_figures_and_controls(ran):
    table = (ran.out / "tables" / "tabular-moons.md").read_text()
    labels = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")]
    rows = [label.replace("\\", "") for label in labels if label and "-" not in label]
    assert rows[-4:] == ["[original]", "[retrain]", "[inverted]", "ft"]
    assert {path.stem for path in (ran.out / "figures").glob("*.svg")} == {"robustness-moons", "utility-moons"}
    page = (ran.out / "report" / "words.html").read_text()
    assert "It knows all, and says something else." in page
    assert "what &#39;forgotten&#39; looks like" in page
    from rub import report

    site, refused = report([ran.out], ran.out.parent / "site")
    assert site.is_file() and not refused


def test_witnesses_are_verified_and_false_ones_are_not(ran, rub, tmp_path):
    said = rub("verify", ran.out, "--store", ran.store)
    assert (said.code, said.err) == (0, "")
    assert " 0 not held, 0 files could not be checked" in said.out
    claim = next((ran.out / "witnesses").glob("*-original-*-10-*.json"))
    tensors = load_file(claim.with_suffix(".safetensors"))
    tensors["probes"][0] += 1  # far outside the budget
    save_file(tensors, tmp_path / f"{claim.stem}.safetensors")
    from rub.store.artifacts import file_sha256

    facts = json.loads(claim.read_text()) | {"tensors_sha256": file_sha256(tmp_path / f"{claim.stem}.safetensors")}
    (tmp_path / claim.name).write_text(json.dumps(facts))
    said = rub("verify", tmp_path, "--store", ran.store)
    assert said.code != 0
    assert "19 held, 1 not held" in said.out


@pytest.mark.parametrize(
    ("unlearned", "verdict"), [("unlearn ft, seed 0", "no residual found"), ("retrain, seed 0", "no residual found")]
)
def test_an_audit_has_a_command_of_its_own(ran, rub, tmp_path, unlearned, verdict):
    weights = {
        json.loads(path.read_text())["label"]: path.parent / "weights.safetensors"
        for kind in ("train", "unlearn")
        for path in (ran.store / kind).glob("*/manifest.json")
    }
    said = rub(
        "audit", "tabular", "--original", weights["train original"], "--unlearned", weights[unlearned], "--table",
        "moons", "--store", tmp_path / "store", "--device", "cpu", "--out", tmp_path / "out",
    )  # fmt: skip
    assert (said.code, said.err) == (0, "")
    assert f"Verdict: {verdict}" in said.out
    assert {row.method for row in read_records(tmp_path / "out")} == {"original", "unlearned"}


@pytest.mark.usefixtures("plugged")
@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"table": "moon"}, "table.name = 'moon'"),
        ({"tabel": "moons"}, "unknown field 'tabel': did you mean 'table'"),
        ({"methods": ["retrain"]}, "method 'retrain' is a control that always runs"),
        ({"protocol": "tabular-2"}, "did you mean 'tabular-1"),
        ({"methods": {"ft": {"step": 1}}}, "did you mean 'steps'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(refused, tmp_path, fields, says):
    experiment = {**SUITE["experiments"][0], **fields}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump({"name": "x", "experiments": [experiment]}))
    refused("plan", tmp_path / "suite.yaml", says=says)


@pytest.mark.usefixtures("plugged")
def test_settings_reach_inside_a_bare_name(ran, rub):
    said = rub("plan", ran.suite, "--set", "table.forget=30", "--set", "protocol.attacks.uma.budgets=[20]")
    assert "attack   5  " in said.out, "one budget of five models"
    assert rub("plan", ran.suite, "--set", "table.forget.x=30").code == 2


def test_an_installed_package_needs_no_option(tmp_path):
    """What `rub` finds by an entry point, in a process of its own."""
    made = tmp_path / "rub_tabular-1.dist-info"
    made.mkdir()
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: rub-tabular\nVersion: 1\n")
    (made / "entry_points.txt").write_text("[rub.tasks]\ntabular = rub_tabular\n")
    code = (
        f"import sys; sys.path[:0] = [{str(PACKAGE.parent)!r}, {str(tmp_path)!r}]\n"
        "from rub.cli.main import main; sys.argv[1:] = ['audit', '--help']; main()"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert "tabular" in said.stdout
