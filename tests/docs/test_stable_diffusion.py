"""The suite that docs/stable-diffusion.md gives is one, and its table of hours is the plan's arithmetic."""

import re
from pathlib import Path

import pytest

from rub.config.hyperparameters import resolve
from rub.config.suite import load_suite
from rub.pipeline.hours import hours
from rub.registry import METHODS, card_of

PAGE = (Path(__file__).parents[2] / "docs" / "stable-diffusion.md").read_text(encoding="utf-8")
PASS = 0.803e12  # FLOPs
COLUMNS = (("rtx4090", "float32"), ("rtx4090", "bfloat16"), ("a100", "float32"), ("a100", "tf32"), ("h100", "bfloat16"))


def test_the_suite_of_the_page_can_be_read(tmp_path):
    [block] = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "church.yaml").write_text(block)
    [experiment] = load_suite(str(tmp_path / "church.yaml")).experiments
    assert experiment.protocol.precision == "bfloat16"
    assert experiment.protocol.name.startswith("rub-paper-1*")


@pytest.mark.parametrize("name", ["spm", "salun", "concept-ablation", "erasediff", "scissorhands", "advunlearn"])
def test_the_hours_of_a_method_are_those_of_its_passes(name):
    experiment = load_suite("table3-stable-diffusion-full").experiments[0]
    parameters = resolve(METHODS.get(name, "text-to-image"), experiment.methods[name], "test")
    batch = experiment.batch_sizes.get(name, experiment.batch_size)
    settings = {"batch": batch, "sampler_steps": 50, "shown": experiment.evaluation.pictures}
    passes = card_of(METHODS.get(name, "text-to-image")).passes(**parameters, **settings)
    [row] = re.findall(rf"^\| `{name}` \| ([\d,]+) \|((?:[^|]+\|){{4}}[^|]+)\|$", PAGE, re.MULTILINE)
    assert float(row[0].replace(",", "")) == pytest.approx(passes / 1000, rel=0.1, abs=0.5)
    for told, (device, precision) in zip(row[1].split("|"), COLUMNS, strict=True):
        assert float(told) == pytest.approx(hours(device, {precision: passes * PASS}), abs=0.06)
