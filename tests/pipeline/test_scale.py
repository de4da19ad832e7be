"""The dose scale in a graph: which stages there are, and what they make of the rows of measuring stages."""

import json
from types import SimpleNamespace

import pytest

from rub import api, load_suite
from rub.metrics.dose import Measurement, dose_equivalent, validity
from rub.pipeline.scale import Place, measurements, place_on_scale

DOSES = {"retrain": [0.1, 0.2], "dose-2": [0.3, 0.35], "dose-10": [0.6, 0.7], "original": [0.95]}
WHERE = {"split": "forget", "attack": "none", "budget": "none"}


def artifact(method, seed, metrics, values=()):
    files = {"rows.json": [{**WHERE, "method": method, "unlearn_seed": seed, **row} for row in metrics]}
    if values:
        rows = [
            {**WHERE, "method": method, "unlearn_seed": seed, "metric": m, "sample_id": k, "value": v}
            for m, k, v in values
        ]
        files["values.json"] = rows
    return SimpleNamespace(json=files.__getitem__, manifest={"files": dict.fromkeys(files)})


def scalar(method, seed, value):
    return artifact(method, seed, [{"metric": "auc", "value": value, "ci_low": value - 0.01, "ci_high": value + 0.01}])


@pytest.fixture
def inputs():
    found = {f"{m} {s}": scalar(m, s, value) for m, values in DOSES.items() for s, value in enumerate(values)}
    return found | {"ft 0": scalar("ft", 0, 0.5), "ft 1": scalar("ft", 1, 0.52)}


def run(inputs, method, metrics, tmp_path):
    cells = tuple({**WHERE, "method": method, "metric": m, "unlearn_seed": None} for m in metrics)
    stage = SimpleNamespace(spec={"method": method, "originals": {}, "rising": {"auc": True}}, cells=cells)
    place_on_scale(stage, inputs, tmp_path, None)
    return json.loads((tmp_path / "rows.json").read_text())


def test_a_method_stands_where_the_scale_has_its_value(inputs, tmp_path):
    [row] = run(inputs, "ft", ["auc_dose"], tmp_path)
    percent = {"retrain": 0, "dose-2": 2, "dose-10": 10, "original": 100}
    scale = {percent[m]: [Measurement(v, v - 0.01, v + 0.01) for v in values] for m, values in DOSES.items()}
    found = dose_equivalent(scale, [Measurement(v, v - 0.01, v + 0.01) for v in (0.5, 0.52)], seed=0, rising=True)
    assert (row["value"], row["ci_low"], row["ci_high"]) == (found.percent, found.low, found.high)
    assert 2 < row["value"] < 10 and row["unlearn_seed"] is None and row["n"] == 2
    spearman, smallest = run(inputs, "doses", ["auc_spearman", "auc_smallest"], tmp_path)
    said = validity(scale, seed=0, rising=True)
    assert (spearman["value"], smallest["value"], spearman["n"]) == (said.spearman, said.smallest, 7)


def test_a_metric_without_a_value_has_no_dose(inputs, tmp_path):
    """A model of which nothing had gone, say, has no share that is back."""
    empty = inputs | {"ft 0": scalar("ft", 0, 0.5), "ft 1": scalar("ft", 1, 0.52)}
    for seed in (0, 1):
        empty[f"ft {seed}"] = artifact("ft", seed, [{"metric": "auc", "value": None}])
    [row] = run(empty, "ft", ["auc_dose"], tmp_path)
    assert (row["value"], row["n"]) == (None, 0)
    [row] = run({"ft 0": scalar("ft", 0, 0.5)}, "doses", ["auc_spearman"], tmp_path)
    assert (row["value"], row["n"]) == (None, 0)


def test_images_decide_where_they_are_known_and_mia_seeds_are_one_model():
    values = [("radius", 7, 1.0), ("radius", 9, 2.0)]
    rows = [{"metric": "radius", "value": 1.50004}, {"metric": "mia", "value": 0.2}, {"metric": "mia", "value": 0.4}]
    found = measurements([artifact("ft", 3, rows, values)], {"ft 3": 1})
    [radius], [mia] = (found[Place(name, "forget", "none", "none")]["ft"] for name in ("radius", "mia"))
    assert (radius.value, radius.images, radius.original) == (1.5, {7: 1.0, 9: 2.0}, 1)
    assert mia.value == pytest.approx(0.3) and mia.low is None


def test_the_graph_places_every_row_that_is_no_dose():
    suite = load_suite("quick", task="classification", methods=["ft"], overrides=["doses=[2,10]", "seeds.unlearn=2"])
    [(_, graph)] = api.plan(suite, api.make_runtime(device="cpu"))
    stages = [stage for stage in graph.stages if stage.kind == "scale"]
    assert [stage.spec["method"] for stage in stages] == ["doses", "sham", "zero-row", "ft"]
    metrics = {cell["metric"] for cell in stages[3].cells}
    assert {"ua_dose", "mia_shadow_dose"} <= metrics and "ta_dose" not in metrics
    assert {cell["unlearn_seed"] for stage in stages for cell in stage.cells} == {None}
    assert {role.split(",")[0] for role in stages[3].inputs} >= {"measure ft", "measure retrain", "measure dose-2"}
    assert {cell["metric"].rpartition("_")[2] for cell in stages[0].cells} == {"spearman", "smallest"}
