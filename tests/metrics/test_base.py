"""What a metric's function may give, and what is recorded of it."""

import json

import numpy as np
import pytest

from rub.metrics.base import Cells, Counted, Measured, Metric, Outputs, joined
from rub.metrics.statistics import wilson

OUTPUTS = Outputs(np.arange(4) + 10, np.array([0, 1, 1, 0]), scores={"hit": np.array([True, False, True, True])})


def measured(function, **fields):
    metric = Metric("m", "M", "anything", function, "up", **fields)
    made = Measured(Cells([metric]), "ft", 1, {"device": "cpu"})
    made.compute(metric, OUTPUTS)
    return made


def test_a_number_stands_for_all_samples_or_for_as_many_as_it_says():
    [row] = measured(lambda outputs: 0.25).rows
    assert (row["value"], row["n"], row["method"], row["unlearn_seed"], row["device"]) == (0.25, 4, "ft", 1, "cpu")
    assert measured(lambda outputs: Counted(0.25, 9)).rows[0]["n"] == 9


def test_a_share_has_its_interval():
    [row] = measured(lambda outputs: outputs.scores["hit"]).rows
    assert (row["value"], (row["ci_low"], row["ci_high"])) == (0.75, wilson(3, 4))


def test_values_of_samples_are_kept_beside_their_mean(tmp_path):
    made = measured(lambda outputs: np.array([1.0, 2.0, 3.0, 6.0]))
    [row] = made.rows
    assert row["value"] == 3.0 and row["ci_low"] < 3.0 < row["ci_high"]
    made.save(tmp_path)
    kept = json.loads((tmp_path / "values.json").read_text())
    assert {item["sample_id"]: item["value"] for item in kept} == {10: 1.0, 11: 2.0, 12: 3.0, 13: 6.0}


def test_none_leaves_no_row_and_facts_stand_in_it(tmp_path):
    assert measured(lambda outputs: None).rows == []
    [row] = measured(lambda outputs: 1.0, facts=lambda outputs: {"setting": f"N = {len(outputs)}"}).rows
    assert row["setting"] == "N = 4"
    measured(lambda outputs: 1.0).save(tmp_path)
    assert not (tmp_path / "values.json").exists()


@pytest.mark.parametrize("value", [[1, 2, 3, 4], [0.5, 0.5], "text", np.zeros((4, 2))])
def test_anything_else_is_refused(value):
    with pytest.raises(ValueError, match=r"metric 'm' gave .*: should be a number, bool \(N,\) or float \(N,\)"):
        measured(lambda outputs: value)


def test_outputs_are_selected_and_joined():
    part = OUTPUTS.select(OUTPUTS.labels == 1)
    assert part.ids.tolist() == [11, 12] and part.scores["hit"].tolist() == [False, True]
    assert joined([part, part]).ids.tolist() == [11, 12, 11, 12]


def test_a_metric_is_given_what_it_needs():
    sets = {"test": OUTPUTS, "few": OUTPUTS.select(OUTPUTS.labels == 0)}
    metric = Metric("m", "M", "anything", len, "up", split="test", needs=("few",))
    asked = metric.asked(sets.__getitem__)
    assert len(asked) == 4 and asked["few"].ids.tolist() == [10, 13] and set(asked.others) == {"few"}
