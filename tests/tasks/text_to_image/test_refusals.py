"""Requests that cannot be met, which a plan refuses in one line, before anything is read or trained."""

import json

import pytest
import yaml

from rub import api, load_suite
from rub.errors import RubError

DIGITS = {
    "task": "text-to-image", "dataset": {"name": "digits", "validation": 0}, "model": {"arch": "sd-nano"},
    "judge": {"name": "classifier"}, "concept": {"name": "seven"}, "protocol": "rub-quick-1",
}  # fmt: skip
FOREIGN = {
    "task": "text-to-image", "model": {"arch": "stable-diffusion", "weights": "sd"}, "retain": ["tench"],
    "judge": {"name": "imagenet", "weights": "judge"}, "concept": {"name": "church"}, "retrains": 0,
    "protocol": "rub-quick-1",
}  # fmt: skip
LABELS = {0: "tench, Tinca tinca", 1: "church, church building", 2: "cardigan", 3: "cardigan"}


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """The stages of an experiment, with a data root that has a judge's config and images of two classes."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge" / "config.json").write_text(json.dumps({"id2label": LABELS}))
    (tmp_path / "judge" / "model.safetensors").write_text("weights")
    (tmp_path / "sd").mkdir()
    (tmp_path / "sd" / "model.safetensors").write_text("weights")
    for name in ("n03028079", "n01440764"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for place in range(5):
            (tmp_path / "photos" / name / f"{place}.png").write_bytes(bytes([place]))

    def plan(experiment):
        path = tmp_path / "suite.yaml"
        path.write_text(yaml.safe_dump({"name": "wrong", "experiments": [experiment]}))
        [(_, graph)] = api.plan(load_suite(str(path)), api.make_runtime(data_root=tmp_path, device="cpu"))
        return graph.stages

    return plan


PHOTOS = {"dataset": {"name": "folder", "path": "photos", "size": 8, "validation": 0}}


@pytest.mark.parametrize(
    ("base", "change", "said"),
    [
        (DIGITS, {"concept": {"name": "eleven"}}, "unknown concept 'eleven'"),
        (DIGITS, {"concept": {"name": "eleven", "label": 10}}, "concept.label: class 10 does not exist; .* 0 to 9"),
        (DIGITS, {"floor": "elf"}, "unknown concept 'elf'"),
        (DIGITS, {"retrain_without": [7, 12]}, "retrain_without: class 12 does not exist"),
        (DIGITS, PHOTOS | {"concept": {"name": "parachute"}}, "unknown concept 'parachute'"),
        (
            DIGITS, PHOTOS | {"concept": {"name": "church", "judged_as": "boat"}, "judge": FOREIGN["judge"]},
            "unknown label of the judge 'boat'",
        ),
        (FOREIGN, {"concept": {"name": "churhc"}}, "unknown label of the judge 'churhc': did you mean 'church'"),
        (FOREIGN, {"concept": {"name": "church", "judged_as": 4}}, "label 4 does not exist; it has labels 0 to 3"),
        (FOREIGN, {"concept": {"name": "cardigan"}}, "several classes are called 'cardigan'"),
        (FOREIGN, {"judge": {"name": "imagenet", "weights": "microsoft/resnet-50"}}, "judge.weights microsoft.*not in"),
        (FOREIGN, {"judge": {"name": "imagenet", "weights": "no/where/at"}}, "judge.weights no/where/at: no such"),
        (
            FOREIGN, {"model": {"arch": "stable-diffusion", "weights": "CompVis/stable-diffusion-v1-4"}},
            "model.weights CompVis.*not in the hub's cache, and the hub cannot be reached",
        ),
    ],
)  # fmt: skip
def test_a_plan_refuses_what_cannot_be(planned, monkeypatch, base, change, said):
    monkeypatch.setattr("rub.data.hub.reachable", lambda seconds: False)
    with pytest.raises(RubError, match=said) as error:
        planned({**base, **change})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("base", "change"),
    [
        (DIGITS, {}),
        (DIGITS, {"concept": {"name": "digit seven"}}),
        (DIGITS, PHOTOS | {"concept": {"name": "chapel"}}),
        (FOREIGN, {}),
        (FOREIGN, {"concept": {"name": "a house of god", "judged_as": "church building"}}),
        (FOREIGN, {"concept": {"name": "a coat", "judged_as": 3}}),
    ],
)
def test_what_is_known_is_planned(planned, base, change):
    assert planned({**base, **change})


def test_a_judge_whose_labels_cannot_be_listed_is_asked_later(planned, tmp_path):
    (tmp_path / "judge" / "config.json").write_text("[]")
    assert planned({**FOREIGN, "concept": {"name": "unheard of"}})
