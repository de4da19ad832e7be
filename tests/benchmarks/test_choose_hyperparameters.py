"""Settings are chosen on images that are held out, by the declared rule, and no test image takes part."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rub import load_suite

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "choose_hyperparameters.py"
GRID = {"rl": {"lr": [0.001, 0.3]}, "ssd": {"alpha": [2, 20]}}


def choose(folder, suite, *more):
    (folder / "grid.yaml").write_text(yaml.safe_dump(GRID))
    words = [sys.executable, SCRIPT, suite, "--grid", folder / "grid.yaml", "--out", folder / "choice.json"]
    words = [str(word) for word in (*words, "--store", folder / "store", *more)]
    return subprocess.run(words, check=False, capture_output=True, text=True)


def test_the_nearest_to_retrain_on_held_out_images_is_chosen_and_written_as_a_suite(tmp_path, write_suite):
    methods = {"ft": {"epochs": 1}, "rl": {"epochs": 1, "mixing": "mixed"}, "ssd": {}}
    suite = write_suite(tmp_path, methods=methods, seeds={"originals": 2}, training={"epochs": 3})
    said = choose(tmp_path, suite, "--tuned", tmp_path / "tuned.yaml")
    assert said.returncode == 0, said.stderr
    choice = json.loads((tmp_path / "choice.json").read_text())
    [reference] = choice["retrain"]
    cells = {name.removesuffix(" low") for name in reference}
    assert cells == {"ua/forget", "ra/retain", "va/validation"}, "no test image takes part"
    for method, grid in GRID.items():
        [name] = grid
        tried = choice["methods"][method]["tried"]
        assert [row["parameters"] for row in tried] == [{**methods[method], name: value} for value in grid[name]]
        for row in tried:
            [found] = row["values"]
            gaps = [abs(found[cell] - reference[cell]) for cell in cells]
            assert row["gap"] == pytest.approx(sum(gaps) / 3)
        assert choice["methods"][method]["chosen"] == min(tried, key=lambda row: row["gap"])["parameters"]
    [tuned] = load_suite(str(tmp_path / "tuned.yaml")).experiments
    [asked] = load_suite(str(suite)).experiments
    chosen = {method: choice["methods"][method]["chosen"] for method in GRID}
    assert tuned == asked.model_copy(update={"methods": {**asked.methods, **chosen}})


def test_of_inpainting_the_largest_contrast_wins_among_those_that_keep_what_they_should(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    gap = importlib.import_module("choose_hyperparameters").gap
    original = {"skill/forget": 0.6, "skill/retain": 0.6}

    def tried(kept, contrast, low):
        more = {"skill_contrast/forget": contrast, "skill_contrast/forget low": low}
        return gap("inpainting", {"skill/forget": 0.3, "skill/retain": kept, **more}, original)

    assert tried(0.58, 0.3, 0.2) < tried(0.60, 0.1, 0.05) < 0
    assert tried(0.56, 0.5, 0.4) is None  # less than 95 % of what was to be kept
    assert tried(0.60, 0.1, -0.01) is None  # as much on both


def test_without_held_out_images_nothing_is_chosen(tmp_path, write_suite):
    said = choose(tmp_path, write_suite(tmp_path, dataset={"name": "digits", "validation": 0}))
    assert said.returncode != 0
    assert "dataset.validation = 0: settings are chosen on images that are held out" in said.stderr
