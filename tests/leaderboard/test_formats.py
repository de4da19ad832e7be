"""Formats by name, from the command line: what each needs, and what is said where it does not get it."""

import json
from pathlib import Path

import pytest
import yaml

from rub.leaderboard.exports.formats import FORMATS

AUDIT = Path(__file__).parents[2] / "results" / "audit-resnet20"


def test_help_lists_every_format_with_what_it_is(rub):
    said = " ".join(rub("export", "--help").out.replace("│", " ").split())
    for name, one in FORMATS.items():
        assert f"{name}: {one.summary}" in said


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_written(rub, tmp_path, name):
    row = [] if name == "eval-yaml" else ["--method", "unlearned"]
    said = rub("export", AUDIT, "--format", name, *row, "--out", tmp_path / "out")
    assert said.code == 0, said.err
    assert said.out == ""
    text = (tmp_path / "out").read_text(encoding="utf-8")
    kinds = {"eval-results": yaml.safe_load, "eval-yaml": yaml.safe_load, "model-card": str.splitlines}
    assert kinds.get(name, json.loads)(text)


def test_what_a_format_needs_or_has_no_place_for(rub, refused):
    refused("export", AUDIT, "--format", "json", says=", ".join(FORMATS))
    refused("export", AUDIT, says="--format eval-results: is of one row; name it with --method")
    refused("export", AUDIT, "--format", "eval-yaml", "--method", "unlearned", says="has no place for --method")
    refused(
        "export", AUDIT, "--format", "model-card", "--method", "unlearned", "--source", "https://example.org/r",
        says="has no place for --source",
    )  # fmt: skip


def test_records_of_one_task_or_experiment(rub, refused):
    both = ("--task", "classification", "--experiment", "")
    assert rub("export", AUDIT, "--format", "eval-yaml", *both).out == rub("export", AUDIT, "--format", "eval-yaml").out
    refused("export", AUDIT, "--format", "eval-yaml", "--task", "inpainting", says="unknown task 'inpainting'")
    refused("export", AUDIT, "--format", "eval-yaml", "--experiment", "x", says="unknown experiment 'x'")


def test_suite_and_command_of_the_folder_are_told(rub):
    found = json.loads(rub("export", AUDIT, "--format", "every-eval-ever", "--method", "unlearned").out)
    first = found["evaluation_results"][0]
    assert first["source_data"]["hf_repo"] == "uoft-cs/cifar10"
    assert first["generation_config"]["generation_args"]["execution_command"].startswith("rub audit classification")
