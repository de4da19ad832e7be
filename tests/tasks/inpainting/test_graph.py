"""Rows of the graph and what they are made from: dose models, and images that are held out of all training."""

import numpy as np
import pytest
import torch

from rub import api, load_suite
from rub.data.sources import load_images
from rub.data.splits import split
from rub.errors import RubError
from rub.pipeline.graph import in_order
from rub.pipeline.inline import run_inline
from rub.registry import TASKS
from rub.store.artifacts import Store

SMALL = ["dataset.size=16", "model.patch_size=4", "methods=[]"]


def graph_of(*overrides):
    suite = load_suite("quick", task="inpainting", overrides=[*SMALL, *overrides])
    [(_, graph)] = api.plan(suite, api.make_runtime(device="cpu"))
    return graph


def test_doses_are_rows_trained_on_a_share_of_the_forgotten_classes():
    graph = graph_of("doses=[30,2]", "seeds.doses=2")
    rows = {(cell["method"], cell["unlearn_seed"]) for stage in graph.stages for cell in stage.cells}
    assert {row for row in rows if row[0].startswith("dose-")} == {
        (f"dose-{percent}", seed) for percent in (2, 30) for seed in range(2)
    }
    made = {stage.label: stage for stage in in_order(graph.stages)}
    spec = made["train dose 30 %, seed 1"].spec
    assert (spec["subset"], spec["dose"]) == ("dose", {"percent": 30.0, "seed": 1})
    assert (
        spec["forget"] == made["retrain, seed 0"].spec["forget"] and spec["seed"] != made["train original"].spec["seed"]
    )
    assert "dose" not in made["retrain, seed 0"].spec and made["train original"].spec["forget"] is None


def chosen(tmp_path, *overrides):
    [choose] = {stage for stage in in_order(graph_of(*overrides).stages) if stage.kind == "choose"}
    tasks = {"inpainting": TASKS.get("inpainting", "inpainting").load()}
    store = Store(tmp_path)
    outcome = run_inline([choose], tasks, store, api.make_runtime(device="cpu"), quiet())[choose.key]
    if outcome.artifact is None:
        raise RubError(outcome.reason)
    return {name: np.load(outcome.artifact.file(f"{name}_ids.npy")) for name in ("forget", "retain")}


def quiet():
    from rich.console import Console

    from rub.pipeline.progress import Display

    return Display(Console(), quiet=True)


def test_validation_images_are_in_no_training(tmp_path):
    found = chosen(tmp_path, "dataset.validation=0.2", "protocol.images=validation")
    images = load_images("digits", None, size=16)
    forget = {"classes": (0, 1, 2, 3, 4), "fraction": None, "ids": None, "seed": 0}
    parts = split(images, forget, 0.2)
    outside = set(parts.validation.ids.tolist())
    labels = dict(zip(images.train.ids.tolist(), images.train.labels.tolist(), strict=True))
    for side, ids in found.items():
        assert len(ids) > 50 and set(ids.tolist()) <= outside
        assert {labels[item] in range(5) for item in ids.tolist()} == {side == "forget"}
    assert not torch.isin(parts.validation.ids, torch.cat([parts.forget.ids, parts.retain.ids])).any()


def test_without_validation_images_there_is_nothing_to_choose_on(tmp_path):
    with pytest.raises(RubError, match=r"0 validation images of forget.*set dataset\.validation"):
        chosen(tmp_path, "protocol.images=validation")
