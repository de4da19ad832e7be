"""What the keys of a result folder bind: the stages of a run give them again, and contradict what was changed."""

import json

import pytest

from rub import api
from rub.api import make_runtime
from rub.errors import RubError
from rub.pipeline.graph import in_order
from rub.reports.lineage import NAME, StageFacts, disagreements, facts_of, keys_of
from rub.store.records import read_records


@pytest.fixture(scope="module")
def told(tiny_out):
    import yaml

    rows = [StageFacts(**row) for row in json.loads((tiny_out / NAME).read_text(encoding="utf-8"))]
    return rows, read_records(tiny_out), yaml.safe_load((tiny_out / "suite.yaml").read_text(encoding="utf-8"))


def changed(rows, number, **changes):
    return [row.model_copy(update=changes) if place == number else row for place, row in enumerate(rows)]


def test_the_file_gives_every_key_again(tiny, told):
    rows, records, suite = told
    [(_, graph)] = api.plan(tiny.suite, make_runtime(device="cpu"))
    stages = in_order(graph.stages)
    assert keys_of(rows) == [stage.key for stage in stages]
    assert facts_of(stages) == rows
    assert {record.key for record in records} <= set(keys_of(rows))
    assert list(disagreements(rows, records, suite)) == []


def test_a_changed_stage_changes_the_keys_of_all_that_follow(told):
    rows, records, suite = told
    number = next(place for place, row in enumerate(rows) if row.kind == "unlearn")
    forged = changed(rows, number, version=rows[number].version + 1)
    after = [one == other for one, other in zip(keys_of(rows), keys_of(forged), strict=True)]
    assert all(after[:number])
    assert not after[number]
    lost = {record.method for record, why in disagreements(forged, records, suite) if "is not in" in why}
    assert lost == {rows[number].spec["method"]["name"]}


@pytest.mark.parametrize(
    ("part", "change", "says"),
    [
        (("methods", "ft"), {"epochs": 3}, "its network was unlearned with epochs = 1, not 3"),
        (("training",), {"lr": 0.3}, "its original was trained with lr = 0.1, not 0.3"),
        (("model",), {"width": 64}, "its original was trained with width = 2, not 64"),
    ],
)
def test_settings_of_the_suite_are_those_of_the_keys(told, part, change, says):
    rows, records, suite = told
    forged = json.loads(json.dumps(suite))
    place = forged["experiments"][0]
    for name in part:
        place = place[name]
    place.update(change)
    assert {why for _, why in disagreements(rows, records, forged)} == {says}


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [("method", "mine", "its stage is of method ft"), ("unlearn_seed", 4, "its stage is of seed 0"),
     ("budget", "1/255", "its stage is of budget 32/255"), ("attack", "mine", "its stage is of attack uma"),
     ("inputs", ("0" * 64,), "its stage has other inputs"), ("key", "0" * 64, f"its stage is not in {NAME}")],
)  # fmt: skip
def test_a_record_is_of_its_stage(told, field, value, says):
    rows, records, suite = told
    record = next(row for row in records if (row.method, row.attack, row.metric) == ("ft", "uma", "ua"))
    forged = record.model_copy(update={field: value})
    assert says in [why for _, why in disagreements(rows, [forged], suite)]


@pytest.mark.parametrize("number", [-1, 0, 10_000])
def test_an_input_lies_before_its_stage(told, number):
    rows, _, _ = told
    with pytest.raises(RubError, match="has an input that is not before it"):
        keys_of(changed(rows, 0, inputs={"data": number}))
