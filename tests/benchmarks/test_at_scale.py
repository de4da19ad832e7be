"""The script of the large tables, at a size for a CPU: it chooses, runs, seals, and stops when its time is up."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rub import read_records
from rub.store.manifest import changed_files

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "at_scale.py"
NAME = "table1-cifar10-resnet18"
SMALL = ["dataset=digits", "model.arch=resnet10", "model.width=4", "training.epochs=6", "evaluation.attack_samples=8",
         "training.batch_size=64", "training.schedule=onecycle", "doses=[]",
         "evaluation.control_samples=4", "evaluation.retain_samples=200", "seeds.mia=1"]  # fmt: skip


def at_scale(folder, *more):
    words = [sys.executable, SCRIPT, "--only", NAME, "--methods", "ft", "--device", "cpu", "--quiet", *more]
    words += ["--out", folder / "out", "--store", folder / "store", *(word for one in SMALL for word in ("--set", one))]
    done = subprocess.run([str(word) for word in words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_job_chooses_by_the_rule_and_leaves_a_sealed_folder(tmp_path):
    said = at_scale(tmp_path, "--seeds", "1", "--minutes", "5")
    assert f"{NAME}: 1 unlearning seeds" in said
    out = tmp_path / "out" / NAME
    choice = json.loads((out / "hyperparameters.json").read_text())
    tried = choice["methods"]["ft"]["tried"]
    assert [row["parameters"]["lr"] for row in tried] == [0.01, 0.02, 0.05, 0.1]
    best = min(tried, key=lambda row: row["gap"])["parameters"]
    assert choice["methods"]["ft"]["chosen"] == best and choice["seed"] == 999
    assert changed_files(out) == []
    assert f"lr: {best['lr']}" in (out / "suite.yaml").read_text()
    records = read_records(out)
    assert {row.suite for row in records} == {NAME}
    assert {row.unlearn_seed for row in records if row.method == "ft"} == {0}
    under_attack(tmp_path, out, tried, best)
    again = at_scale(tmp_path, "--seeds", "1", "--minutes", "0.02")
    assert "time is up" in again
    assert changed_files(out) == []


def under_attack(folder, out, tried, best):
    words = [sys.executable, SCRIPT.with_name("settings_under_attack.py"), out, "--device", "cpu"]
    words += ["--store", folder / "store", "--out", folder / "settings.json"]
    done = subprocess.run([str(word) for word in words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| ft |") == 4 and done.stdout.count(f"**epochs 2, lr {best['lr']:g}**") == 1
    found = json.loads((folder / "settings.json").read_text())["settings"]
    assert [row["parameters"] for row in found] == [row["parameters"] for row in tried]
    for row in found:
        assert set(row["contrast"]) == {"own_radius", "other_radius", "selectivity", "own_reached"}
        for cell in row["contrast"].values():
            assert cell["n"] == 8 and cell["low"] <= cell["value"] <= cell["high"]
