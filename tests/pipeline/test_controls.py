"""Controls of plug-ins: rows of their own in plans, tables, figures and rules, and what is refused."""

import pytest
import yaml

import rub
from rub.api import make_runtime
from rub.config.suite import load_suite
from rub.errors import RubError
from rub.pipeline.graph import in_order
from rub.registry import CONTROLS
from rub.reports.figures import style
from rub.reports.grouping import controls_of, is_control, row_order

CLASSIFICATION = {
    "task": "classification",
    "dataset": "digits",
    "model": "resnet10",
    "forget": {"classes": [0]},
    "protocol": "rub-quick-1",
    "seeds": {"unlearn": 2},
}


@pytest.fixture
def untrained():
    @rub.control("untrained", task="classification", reference=True)
    def made(model, forget, retain, context, *, gain: float = 1.0):
        """A network that was never trained."""
        return model

    return CONTROLS.get("untrained", "classification")


@pytest.fixture
def suite(tmp_path):
    def make(added=(), **fields):
        path = tmp_path / "suite.yaml"
        path.write_text(yaml.safe_dump({"name": "s", "experiments": [{**CLASSIFICATION, **fields}]}))
        return load_suite(str(path), added=added)

    return make


def test_a_control_of_a_plug_in_is_a_row_of_its_own_after_those_of_rub(suite, untrained):
    [(_, graph)] = rub.plan(suite(methods=["ft"], controls=["untrained"]), make_runtime(device="cpu"))
    made = [stage for stage in in_order(graph.stages) if stage.kind == "unlearn"]
    assert [stage.label for stage in made] == [
        "unlearn sham, seed 0", "unlearn zero-row, seed 0", "unlearn untrained, seed 0", "unlearn ft, seed 0",
        "unlearn ft, seed 1",
    ]  # fmt: skip
    assert made[2].spec["method"]["parameters"] == {"gain": 1.0}
    assert made[2].spec["method"]["source"], "an edit of the plug-in recomputes its row"
    assert {stage.kind for stage in graph.stages if stage.label.startswith("measure untrained")} == {
        "measure", "measure-attack",
    }  # fmt: skip


def rows(suite):
    [(_, graph)] = rub.plan(suite, make_runtime(device="cpu"))
    return list(dict.fromkeys(cell["method"] for stage in in_order(graph.stages) for cell in stage.cells))


@pytest.mark.parametrize(
    ("fields", "controls"),
    [
        ({"methods": ["ft"]}, ["sham", "zero-row"]),
        ({"methods": ["ft", "ga"]}, ["sham", "zero-row", "drift"]),
        ({"methods": {"ga": {"batch_norm": "eval"}}}, ["sham", "zero-row"]),
        ({"methods": ["delete"], "model": "vit-mini"}, ["sham", "zero-row"]),
        ({"methods": ["delete"], "model": "swin-mini"}, ["sham", "zero-row"]),
        ({"methods": ["boundary-shrink"], "model": "vgg16-bn"}, ["sham", "zero-row", "drift"]),
        ({"methods": ["ga"], "forget": {"fraction": 0.1}}, ["drift"]),
        ({"methods": ["ft"], "controls": {"drift": {"passes": 5}}}, ["sham", "zero-row", "drift"]),
        (
            {"methods": ["ga"], "controls": ["gauge", "drift", "other-seed", "random_init"]},
            ["sham", "zero-row", "drift", "random_init", "other-seed", "gauge"],
        ),
    ],
)
def test_controls_are_made_where_they_say_something_or_are_asked_for(suite, fields, controls):
    found = rows(suite(**fields))
    assert sorted(found) == sorted(["original", "retrain", *controls, *fields["methods"]])


def test_the_hyperparameters_of_a_control_that_is_made_anyway_are_those_asked_for(suite):
    [(_, graph)] = rub.plan(suite(methods=["ga"], controls={"drift": {"passes": 5}}), make_runtime(device="cpu"))
    [stage] = [stage for stage in in_order(graph.stages) if stage.label.startswith("unlearn drift")]
    assert stage.spec["method"]["parameters"] == {"passes": 5}


def test_the_other_seed_is_a_training_of_its_own_for_each_original(suite):
    asked = suite(methods=["ft"], controls=["other-seed"], seeds={"unlearn": 1, "originals": 2})
    [(_, graph)] = rub.plan(asked, make_runtime(device="cpu"))
    trained = [stage for stage in in_order(graph.stages) if stage.kind == "train"]
    seeds = [stage.spec["seed"] for stage in trained if stage.spec["subset"]["kind"] == "all"]
    assert len(seeds) == len(set(seeds)) == 4


def test_a_network_that_cannot_be_looked_at_is_said(suite, tmp_path):
    (tmp_path / "odd.py").write_text(
        "from torch import nn\n\n\ndef build(num_classes, channels, size):\n"
        "    assert size == 8\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
    )
    for controls, said in (([], 1), (["drift"], 0)):
        asked = suite(methods=["ga"], model=f"{tmp_path / 'odd.py'}:build", controls=controls)
        [(_, graph)] = rub.plan(asked, make_runtime(device="cpu"))
        assert len([note for note in graph.notes if "drift is left out" in note]) == said


def test_a_network_that_cannot_drift_is_refused_before_anything_runs(suite):
    with pytest.raises(RubError, match=r"controls.drift: vit-mini has no batch normalisation that could drift"):
        rub.plan(suite(methods=["ft"], model="vit-mini", controls=["drift"]), make_runtime(device="cpu"))


def test_it_joins_every_experiment_of_its_task_when_its_plug_in_is_read(suite, untrained):
    assert dict(suite(added=[untrained]).experiments[0].controls) == {"untrained": {}}
    asked = {"untrained": {"gain": 2.0}}
    assert suite(added=[untrained], controls=asked).experiments[0].controls == asked
    assert "controls" not in suite().experiments[0].model_dump(), "suites without it are written as before"


@pytest.mark.usefixtures("untrained")
def test_reports_know_it_as_a_control():
    assert controls_of("classification")["untrained"] == "A network that was never trained."
    assert not is_control("untrained", "inpainting")
    assert row_order(["ft", "untrained", "original"], "classification") == ["original", "untrained", "ft"]
    assert style("untrained", "classification")["color"] == style("sham", "classification")["color"]


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"methods": ["untrained"]}, "method 'untrained' is a control; name it in 'controls'"),
        ({"methods": ["sham"]}, "method 'sham' is a control that always runs; leave it out of 'methods'"),
        ({"controls": ["sham"]}, "control 'sham' always runs; leave it out of 'controls'"),
        ({"controls": ["zero-row"]}, "control 'zero-row' always runs; leave it out of 'controls'"),
        ({"methods": ["drift"]}, "method 'drift' is a control; name it in 'controls'"),
        ({"controls": {"other-seed": {"seed": 1}}}, "controls.other-seed"),
        ({"controls": {"drift": {"passes": 0}}}, "controls.drift .*passes = 0"),
        ({"controls": ["untraned"]}, "did you mean 'untrained'"),
        ({"controls": {"untrained": {"gian": 1}}}, "controls.untrained .* did you mean 'gain'"),
    ],
)
def test_what_cannot_be_is_refused(suite, fields, says):
    with pytest.raises(RubError, match=says):
        rub.plan(suite(**fields), make_runtime(device="cpu"))
