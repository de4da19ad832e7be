"""Rows of the graph: several originals, dose models, and what each is trained on."""

import pytest
import torch

from rub import api, load_suite
from rub.data.sources import load_images
from rub.data.splits import split, training_set
from rub.errors import RubError
from rub.pipeline.graph import in_order

FORGET = {"classes": (0,), "fraction": None, "ids": None, "seed": 0}


def graph_of(*overrides, methods=("ft",)):
    suite = load_suite("quick", task="classification", methods=list(methods), overrides=list(overrides))
    [(_, graph)] = api.plan(suite, api.make_runtime(device="cpu"))
    return graph


def rows(graph):
    return {(cell["method"], cell["unlearn_seed"]) for stage in graph.stages for cell in stage.cells}


def test_seeds_go_round_the_originals():
    graph = graph_of("seeds.originals=2", "seeds.unlearn=2", "doses=[]")
    assert {seed for method, seed in rows(graph) if method == "ft"} == {0, 1, 2, 3}
    assert {seed for method, seed in rows(graph) if method == "original"} == {0, 1}
    assert graph.originals == {
        ("original", 1): 1, ("retrain", 1): 1, ("sham", 1): 1, ("zero-row", 1): 1, ("ft", 1): 1, ("ft", 3): 1,
    }  # fmt: skip
    made = {stage.label: stage for stage in in_order(graph.stages)}
    for seed in range(4):
        assert (
            made[f"unlearn ft, seed {seed}"].inputs["original"]
            is made[("train original", "train original 1")[seed % 2]]
        )
    assert made["train original"].spec["seed"] == 0 and made["train original 1"].spec["seed"] == 1


def test_more_seeds_only_add_models():
    """A second unlearning seed of each original leaves the first ones' models as they are."""
    one, two = (
        {stage.label: stage.key for stage in in_order(graph_of("seeds.originals=3", f"seeds.unlearn={n}").stages)}
        for n in (1, 2)
    )
    first = {label for label in one if label.startswith(("train", "unlearn", "search radii of ft"))}
    assert len(first) > 6
    assert {label: one[label] for label in first} == {label: two[label] for label in first}


def test_doses_are_rows_between_retrain_and_original():
    graph = graph_of("doses=[10,2]", "seeds.doses=3")
    doses = {row for row in rows(graph) if row[0].startswith("dose-")}
    assert doses == {(f"dose-{percent}", seed) for percent in (2, 10) for seed in range(3)}
    subsets = [stage.spec["subset"] for stage in in_order(graph.stages) if stage.label == "train dose 2 %, seed 1"]
    assert [(part["kind"], part["percent"], part["seed"]) for part in subsets] == [("dose", 2.0, 1)]


def test_a_dose_is_the_retain_set_and_that_share_of_the_forget_set():
    images = load_images("digits", None)
    parts = split(images, FORGET, 0.1)

    def forgotten(percent, seed=0):
        which = {"kind": "dose", "forget": FORGET, "percent": percent, "seed": seed}
        given = training_set(images, which, 0.1).ids
        kept = torch.isin(given, parts.retain.ids)
        assert set(given[kept].tolist()) == set(parts.retain.ids.tolist())
        return set(given[~kept].tolist())

    own = set(parts.forget.ids.tolist())
    assert len(forgotten(10)) == round(0.1 * len(own)) and forgotten(10) <= forgotten(30) <= own
    assert len(forgotten(0.01)) == 1 and forgotten(30, seed=1) != forgotten(30)
    everything = training_set(images, {"kind": "all"}, 0.1).ids
    assert set(everything.tolist()) == own | set(parts.retain.ids.tolist())


@pytest.mark.parametrize("wrong", ["doses=[0]", "doses=[100]", "seeds.originals=0", "seeds.doses=0"])
def test_what_is_no_dose_is_refused(wrong):
    with pytest.raises(RubError, match=wrong.partition("=")[0].partition("[")[0]):
        graph_of(wrong)


def test_methods_of_whole_classes_are_refused_for_other_samples_before_anything_runs():
    assert ("unsir", 0) in rows(graph_of(methods=["unsir"]))
    with pytest.raises(RubError, match=r"methods\.unsir: forgets whole classes only; give forget\.classes"):
        graph_of("forget={fraction: 0.1}", "doses=[]", methods=["ft", "unsir"])


def test_a_task_with_one_original_says_so():
    suite = load_suite("quick", task="text-to-image", overrides=["seeds.originals=2"])
    with pytest.raises(RubError, match=r"seeds\.originals = 2: task text-to-image measures one original"):
        api.plan(suite, api.make_runtime(device="cpu"))


def test_an_attack_that_cannot_aim_at_another_class_has_no_paired_control():
    plans = (f"{name}: {{runs: [{name}], budgets: [32], splits: [forget, other]}}" for name in ("uma", "universal"))
    graph = graph_of(f"protocol={{name: own, attacks: {{{', '.join(plans)}}}}}")
    splits = {(cell["attack"], cell["split"]) for stage in graph.stages for cell in stage.cells}
    assert ("uma", "other") in splits and ("universal", "forget") in splits and ("universal", "other") not in splits
    assert "universal cannot aim at another class: its rows have no paired control" in graph.notes


@pytest.mark.slow
def test_several_originals_share_the_images_that_all_of_them_know(tmp_path):
    overrides = [
        "seeds={originals: 2, unlearn: 1, mia: 1, doses: 1}", "doses=[30]", "training.epochs=2",
        "forget.classes=[8]", "evaluation={attack_samples: 40, control_samples: 10, witnesses: 0}",
        "protocol.attacks={only: {uma: {runs: [{name: uma, steps: 2}], budgets: [32], splits: [forget, other]}}}",
    ]  # fmt: skip
    suite = load_suite("quick", task="classification", methods=["ft"], overrides=overrides)
    result = api.run(suite, store=tmp_path / "store", out=tmp_path / "out", runtime=api.make_runtime(device="cpu"))
    assert not result.failures
    images = {}
    for row in result.samples:
        place = row["method"], row["unlearn_seed"], row["split"]
        images.setdefault(place, set()).add(row["sample_id"])
    assert len({frozenset(found) for found in images.values()}) == 1
    residuals = [row for row in result.records if row.metric == "residual_knowledge" and row.method == "ft"]
    assert [row.original for row in residuals] == [0, 1] and all(row.value is not None for row in residuals)
