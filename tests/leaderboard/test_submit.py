"""What a leaderboard accepts: whole folders of a known protocol with sane controls and witnesses that hold."""

import json
import shutil
from pathlib import Path

import pytest

from rub.leaderboard.submit import check
from rub.registry import scoped
from rub.reports.folders import read_folder
from rub.store.manifest import changed_files, seal_folder
from rub.store.records import write_records
from rub.witness.claims import Sources

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A small run under a protocol of RUB's: digits, one method, with a model that fits them."""
    from rub import load_suite, run
    from rub.api import make_runtime

    folder = tmp_path_factory.mktemp("quick")
    changes = [
        "evaluation.attack_samples=10", "evaluation.control_samples=4", "protocol=rub-paper-1", "seeds.unlearn=1",
    ]  # fmt: skip
    suite = load_suite("quick", task="classification", methods=["ft"], overrides=changes)
    run(suite, store=folder / "store", out=folder / "out", runtime=make_runtime(device="cpu"), command="rub run quick")
    return folder


@pytest.fixture
def changed(quick, tmp_path):
    """Change the records of the run, seal it again, and return which rules it breaks."""

    def change(edit):
        out = Path(shutil.copytree(quick / "out", tmp_path / "changed"))
        rows = [row for record in read_folder(out).records if (row := edit(record)) is not None]
        (out / "samples.parquet").unlink()
        write_records(rows, {}, out)
        seal_folder(out, {"command": "", "code_version": ""})
        return {rule.name: rule.problems for rule in check(out, Sources()) if rule.problems}

    return change


def test_a_whole_run_is_accepted_and_its_copy_is_sealed_and_small(quick, rub, tmp_path):
    out = tmp_path / "results" / "mine"
    said = rub("submit", quick / "out", "--store", quick / "store", "--out", out)
    assert said.code == 0, said.out
    assert said.out.count("kept") == 8
    assert changed_files(out) == []
    assert len(read_folder(out).records) == len(read_folder(quick / "out").records)
    assert not list(out.rglob("*.png")) + list(out.rglob("*.svg")) + list(out.rglob("*.html"))
    facts = json.loads((out / "submission.json").read_text())
    [again] = facts["reattacked"]
    assert (again["method"], again["images"], again["reason"]) == ("ft", 10, "")
    assert again["more"] == 0
    assert read_folder(out).reattacked == {
        ("classification", "", "ft"): f"{facts['date']} by the submitter, 10 samples"
    }
    assert facts["seal_of_the_run"] == json.loads((quick / "out" / "manifest.json").read_text())["seal"]
    assert rub("verify", out, "--store", quick / "store").code == 0
    assert rub("report", out, "--out", tmp_path / "site").code == 0


def test_a_place_that_is_taken_is_refused(quick, refused):
    refused("submit", quick / "out", "--out", quick / "store", says="is there already")


def test_witnesses_that_cannot_be_checked_are_rejected(quick, rub, tmp_path):
    said = rub("submit", quick / "out", "--store", tmp_path / "none", "--out", tmp_path / "sub")
    assert said.code == 1
    assert "cannot be checked: the unlearned model is not in the store" in said.out
    assert not (tmp_path / "sub").exists()


def test_recoveries_without_witnesses_are_rejected(quick, tmp_path):
    out = Path(shutil.copytree(quick / "out", tmp_path / "bare"))
    shutil.rmtree(out / "witnesses")
    seal_folder(out, {})
    [rule] = [rule for rule in check(out, Sources()) if rule.problems]
    assert (rule.name, "left no witnesses" in rule.problems[0]) == ("witnesses", True)


@pytest.mark.parametrize(
    ("edit", "rule", "says"),
    [
        (lambda r: r.model_copy(update={"protocol": "rub-paper-1*abc"}), "protocol", "has changed choices"),
        (lambda r: r.model_copy(update={"protocol": "mine"}), "protocol", "is not one of RUB's"),
        (lambda r: r.model_copy(update={"task": "cooking"}), "whole", "unknown task 'cooking'"),
        (lambda r: None if r.method == "ft" else r, "measured", "no unlearning method"),
        (lambda r: r.model_copy(update={"value": None, "status": "failed"} if r.method == "ft" else {}), "measured",
         "ft has no number after uma"),
        (lambda r: r.model_copy(update={"n": 9} if (r.method, r.attack) == ("ft", "uma") else {}), "measured",
         "attacked on 9 samples"),
        (lambda r: r.model_copy(update={"protocol": "rub-quick-1"}), "protocol", "is a tour"),
        (lambda r: None if r.method == "sham" else r, "sane", "of original, sham and retrain are not all there"),
        (lambda r: None if r.method == "zero-row" else r, "sane", "zero-row and retrain are not all there"),
        (lambda r: None if r.method == "original" else r, "controls", "no original"),
        (lambda r: None if r.method == "retrain" else r, "controls", "none of retrain"),
        (lambda r: r.model_copy(update={"value": 0.3} if (r.method, r.attack) == ("original", "uma") else {}), "sane",
         "brings back 30 % of the original"),
        (lambda r: None if r.attack == "uma" else r, "sane", "uma was not run"),
        (lambda r: r.model_copy(update={"value": 0.5} if (r.method, r.metric) == ("sham", "log_odds_auc") else {}),
         "sane", "sham, which forgot nothing, is nearer to retrain"),
        (lambda r: r.model_copy(update={"method": "random_init", "value": 0.6} if r.method == "retrain" else {}),
         "sane",
         "brings back 60 % of a model that was never trained"),
    ],
)  # fmt: skip
def test_every_rule_says_what_breaks_it(changed, edit, rule, says):
    broken = changed(edit)
    assert says in " ".join(broken[rule])
    assert all("\n" not in line for lines in broken.values() for line in lines)


def test_export(quick, rub, refused, tmp_path):
    said = rub("export", quick / "out", "--method", "ft")
    assert said.out.startswith("- dataset:")
    assert (
        rub("export", quick / "out", "--method", "ft", "--format", "model-card", "--out", tmp_path / "c.md").code == 0
    )
    assert "Robust Unlearning Benchmark" in (tmp_path / "c.md").read_text()
    refused("export", quick / "out", "--method", "fft", says="did you mean 'ft'")
    refused("export", quick / "out", "--method", "ft", "--format", "x", says="one of eval-results, model-card")
    refused("export", quick / "out", "--method", "ft", "--out", tmp_path, says="cannot be written")


MINE = """
import rub
from rub.tasks.classification.attacks.uma import uma


@rub.attack("mine", task="classification")
def mine(target, images, budget, context, *, steps: int = 100):
    '''Search with cross-entropy.'''
    return uma(target, images, budget, context, divergence="ce", steps=steps)


rub.protocol(
    "mine-1",
    task="classification",
    attacks={"mine": {"runs": ["mine"], "budgets": [8, 16], "splits": ["forget", "retain"]}},
)
"""


def test_an_attack_and_a_protocol_of_ones_own_give_tables_figures_a_board_and_pass_the_rules(quick, rub, tmp_path):
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    out, options = tmp_path / "out", ("--device", "cpu", "--store", quick / "store")
    said = rub(
        "run", "quick", "--task", "classification", "--methods", "ft", "--seeds", 1, "--plugin", tmp_path / "mine.py",
        "--set", "protocol=mine-1", "--set", "evaluation.attack_samples=10", "--set", "evaluation.control_samples=4",
        "--out", out, *options,
    )  # fmt: skip
    assert said.code == 0, said.out + said.err
    name = read_folder(out).records[0].protocol
    assert name.startswith("mine-1@")
    assert {path.name.partition("-")[0] for path in (out / "figures").glob("*.svg")} == {
        "robustness", "controls", "utility", "success", "loss",
    }  # fmt: skip
    table = (out / "tables" / "table1-digits.csv").read_text()
    assert ",8/255,UA,percent," in table
    assert ",16/255,MIA,fraction," in table
    assert f">{name}</a>" in (out / "report" / "index.html").read_text()
    with scoped():  # whoever checks and reports it does not have the plug-in
        said = rub("submit", out, *options, "--out", tmp_path / "submitted")
        assert said.out.count("kept") == 8, said.out
        assert rub("report", tmp_path / "submitted", "--out", tmp_path / "site").code == 0
    assert "16/255" in (tmp_path / "site" / "index.html").read_text()


def test_a_protocol_that_the_suite_does_not_hold_is_refused(changed):
    broken = changed(lambda row: row.model_copy(update={"protocol": "mine-1@123456"}))
    assert "is not one of RUB's" in broken["protocol"][0]
