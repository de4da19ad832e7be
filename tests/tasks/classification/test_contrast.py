"""The paired contrast: models whose radii are known, the other class, and the stage that measures both."""

import json

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from rub import api, load_suite
from rub.attacks.base import AttackContext
from rub.data.samples import Samples
from rub.errors import NothingToMeasure
from rub.models.weights import freeze
from rub.pipeline.graph import in_order
from rub.pipeline.inline import run_inline
from rub.pipeline.progress import Display
from rub.registry import task_of
from rub.store.artifacts import Store
from rub.tasks.classification.attacks.base import other_classes
from rub.tasks.classification.attacks.radius import log2_radius, radii
from rub.tasks.classification.spec import RadiusSpec


class Brightness(nn.Module):
    """Class 1 where the mean of an image is above a threshold: the radius is the distance to it."""

    def __init__(self, threshold):
        super().__init__()
        self.threshold, self.fc = threshold, nn.Linear(1, 2)

    def forward(self, x):
        level = x.flatten(1).mean(1) - self.threshold
        return torch.stack([-level, level], 1)


@pytest.fixture
def grey():
    levels = torch.tensor([100, 101, 104, 110, 127, 200, 120], dtype=torch.uint8)
    return levels[:, None, None, None].expand(-1, 1, 6, 6).contiguous()


def test_radii_of_a_model_whose_radii_are_known(grey):
    spec = RadiusSpec(smallest=0.25, largest=32)
    context = AttackContext(ids=torch.arange(len(grey)), batch_size=3)
    found = radii(freeze(Brightness(128.5 / 255)), grey, torch.ones(len(grey), dtype=torch.int64), spec, context)
    wanted = torch.tensor([28.5, 27.5, 24.5, 18.5, 1.5, 0.0, 8.5])
    assert (found >= wanted - 1e-3).all() and (found <= wanted * 1.02 + 1e-3).all()


def test_what_no_budget_reaches_is_infinite_and_counts_as_twice_the_largest(grey):
    spec = RadiusSpec(smallest=1, largest=16)
    context = AttackContext(ids=torch.arange(len(grey)))
    found = radii(freeze(Brightness(128.5 / 255)), grey, torch.ones(len(grey), dtype=torch.int64), spec, context)
    assert torch.isinf(found).tolist() == [True, True, True, True, False, False, False]
    assert log2_radius(found, spec)[[0, 5]].tolist() == [5.0, -1.0]


def test_radii_do_not_depend_on_the_batch(grey):
    spec, ids, labels = RadiusSpec(steps=4), torch.arange(len(grey)), torch.ones(len(grey), dtype=torch.int64)
    model = freeze(Brightness(128.5 / 255))
    one, many = (radii(model, grey, labels, spec, AttackContext(ids=ids, batch_size=size)) for size in (1, 100))
    assert torch.equal(one, many)


def test_the_other_class_depends_on_the_image_and_is_not_what_the_model_says():
    ids = torch.arange(500)
    samples = Samples(torch.zeros(500, 1, 4, 4, dtype=torch.uint8), torch.zeros(500, dtype=torch.int64), ids)
    kept, said = list(range(1, 10)), torch.full((500,), 3)
    others = other_classes(samples, said, kept)
    assert set(others.tolist()) == set(kept) - {3}
    assert torch.equal(other_classes(samples.select(ids[40:60]), said[40:60], kept), others[40:60])
    changed = other_classes(samples, torch.full((500,), 4), kept)
    assert ((changed == others) | (others == 4) | (changed == 3)).all()


def test_two_classes_leave_no_other():
    samples = Samples(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(NothingToMeasure, match="1 kept classes leave no other class"):
        other_classes(samples, torch.tensor([1]), [1])


PROTOCOL = """protocol={name: own, eligible: true, radius: {smallest: 1, largest: 64, steps: 4}, attacks: {uma:
 {runs: [{name: uma, steps: 2}], budgets: [32]}}}"""


def test_the_stage_measures_eligible_images_of_every_row(tmp_path):
    quiet = Display(Console(), quiet=True)
    small = ["training.epochs=2", "evaluation.attack_samples=12", "evaluation.control_samples=6", "seeds.mia=1"]
    suite = load_suite("quick", task="classification", methods=["ft"], overrides=[*small, PROTOCOL.replace("\n", "")])
    [(_, graph)] = api.plan(suite, runtime := api.make_runtime(device="cpu"))
    wanted = [stage for stage in in_order(graph.stages) if stage.kind == "radius"]
    assert {stage.spec["method"] for stage in wanted} >= {"original", "retrain", "ft", "sham"}
    outcomes = run_inline(wanted[:2], {"classification": task_of("classification")}, Store(tmp_path), runtime, quiet)
    for stage in wanted[:2]:
        made = outcomes[stage.key].artifact
        rows, values = made.json("rows.json"), made.json("values.json")
        assert [(row["metric"], row["split"]) for row in rows] == [(c["metric"], c["split"]) for c in stage.cells]
        for row in rows:
            if row["metric"].endswith("_reached"):
                assert 0 <= row["ci_low"] <= row["value"] <= row["ci_high"] <= 1
                continue
            own = [v["value"] for v in values if (v["metric"], v["split"]) == (row["metric"], row["split"])]
            assert len(own) == row["n"] == (12 if row["split"] == "forget" else 6)
            assert np.isclose(np.mean(own), row["value"], atol=1e-4) and row["ci_low"] <= row["value"] <= row["ci_high"]
        by_id = {}
        for value in values:
            by_id.setdefault((value["split"], value["sample_id"]), {})[value["metric"]] = value["value"]
        for found in by_id.values():
            assert np.isclose(found["selectivity"], found["other_radius"] - found["own_radius"], atol=2e-4)
    original = json.loads((outcomes[wanted[0].key].artifact.path / "rows.json").read_text())
    assert original[0]["method"] == "original" and original[0]["value"] == -1.0  # right on all that is eligible
