"""A file like RobustBench's: its own fields, and RUB's numbers beside them in percent."""

import json
from pathlib import Path

import pytest

from rub import read_records
from rub.errors import RubError
from rub.leaderboard.exports.robustbench import robustbench
from rub.metrics.statistics import wilson

RESULTS = Path(__file__).parents[2] / "results"
THEIRS = {
    "link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue", "architecture", "eps",
    "clean_acc", "reported", "autoattack_acc", "footnote", "unreliable",
}  # fmt: skip


def read(records, **options):
    text = robustbench(records, **options)
    assert text.replace("\n", "").isprintable()
    return json.loads(text)


def test_fields_are_robustbench_s_and_one_more_for_the_folder_that_it_puts_a_file_in(records):
    found = read(records, method="salun")
    assert set(found) == THEIRS | {"threat_model", "rub"}
    assert found["link"] == "https://arxiv.org/abs/2310.12508"
    assert found["name"] == "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency"
    assert (found["authors"], found["venue"]) == ("Fan et al.", "ICLR 2024")
    assert (found["dataset"], found["architecture"]) == ("cifar10", "resnet10-w8")
    assert (found["threat_model"], found["eps"], found["clean_acc"]) == ("Linf", "16/255", "50.00")  # ta_all is .5
    assert found["reported"] is found["autoattack_acc"] is None


def test_numbers_are_in_percent_with_the_controls_beside_them(records):
    own = read(records, method="salun")["rub"]
    assert (own["attack"], own["protocol"], own["suite"]) == ("uma", "rub-paper-1", "demo")
    assert own["ta"] == {"value": 90.0, "low": 90.0, "high": 90.0, "n": 900}  # three equal models
    assert own["ra"]["value"] == 50
    assert own["ua"]["16/255"] == {"value": 27.0, "low": 22.03, "high": 31.97, "n": 100}
    assert {budget: one["value"] for budget, one in own["ua"].items()} == {"none": 50, "8/255": 13.5, "16/255": 27}
    assert list(own["controls"]) == ["original", "retrain", "sham"]
    assert own["controls"]["original"]["ua"]["16/255"]["value"] == 100
    assert own["controls"]["retrain"]["ta"]["value"] == 95
    assert set(own["controls"]["sham"]) == {"ta", "ra", "ua", "dose_equivalent"}


def test_a_search_that_was_still_improving_is_unreliable(records):
    stopped, done = (read(records, method=method) for method in ("salun", "ft"))
    assert (stopped["unreliable"], done["unreliable"]) == (True, False)
    assert "lower bound" in stopped["footnote"]
    assert "lower bound" not in done["footnote"]


def test_without_an_attack_there_is_no_threat_model(make_row):
    found = read([make_row("ft", "ua", 0.5, ci_low=wilson(50, 100)[0], ci_high=wilson(50, 100)[1])], method="ft")
    assert found["threat_model"] is found["eps"] is found["unreliable"] is found["clean_acc"] is None
    low, high = wilson(50, 100)
    assert found["rub"]["ua"] == {
        "none": {"value": 50.0, "low": round(100 * low, 2), "high": round(100 * high, 2), "n": 100}
    }
    assert found["rub"]["ta"] is None
    assert found["rub"]["controls"] == {}


def test_other_norms_have_robustbench_s_names(make_row):
    for budget, threat, eps in (
        ("l2:0.5", "L2", "0.5"),
        ("patch:8", "patch", "8"),
        ("corruption:3", "corruptions", "3"),
    ):
        found = read([make_row("ft", "ua", 0.5, attack="uma", budget=budget)], method="ft")
        assert (found["threat_model"], found["eps"]) == (threat, eps)
        assert found["rub"]["ua"][budget]["value"] == 50


def dosed(row, metric, value, low, high, bound="", **more):
    more |= {"metric": metric, "direction": "reference", "unlearn_seed": None, "n": 6, "setting": bound}
    return row.model_copy(update={**more, "value": value, "ci_low": low, "ci_high": high})


def test_dose_equivalents_keep_their_own_intervals(make_row):
    row, at = make_row("ft", "ua", 0.5), {"attack": "uma", "budget": "8/255"}
    rows = [
        make_row("ft", "ua", 0.5, **at),
        dosed(row, "own_radius_dose", 3.0625, 2.5, 9.0),
        dosed(row, "ua_dose", 0.5, 0.0, 2.05, "<="),
        dosed(row, "ua_dose", 10.0, 5.0, 100.0, ">=", **at),
    ]
    doses = read(rows, method="ft")["rub"]["dose_equivalent"]
    assert doses["own_radius"] == {"none": {"value": 3.06, "low": 2.5, "high": 9.0, "models": 6, "bound": None}}
    assert doses["ua"]["none"] == {"value": 0.5, "low": 0.0, "high": 2.05, "models": 6, "bound": "<="}
    assert doses["ua"]["8/255"]["bound"] == ">="
    flat = row.model_copy(
        update={"method": "doses", "metric": "ua_spearman", "setting": "p = 0.4, does not rise", "unlearn_seed": None}
    )
    assert read([*rows, flat], method="ft")["rub"]["dose_equivalent"]["ua"]["none"] is None


def test_a_method_of_a_plug_in_has_its_name_for_a_title(make_row):
    found = read([make_row("mine\x1b", "ua", 0.5)], method="mine\x1b", source="https://example.org/mine")
    assert (found["name"], found["link"], found["venue"]) == ("mine?", "https://example.org/mine", "")
    assert found["rub"]["records"] == "https://example.org/mine"


def test_classifiers_alone(make_row):
    row = make_row("i2i", "ua", 0.5).model_copy(update={"task": "inpainting"})
    with pytest.raises(RubError, match="of classifiers: method 'i2i' is of the task inpainting") as caught:
        robustbench([row], method="i2i")
    assert str(caught.value).isprintable()
    both = [row.model_copy(update={"method": "salun"}), make_row("salun", "ua", 0.25)]
    assert read(both, method="salun")["rub"]["ua"]["none"]["value"] == 25
    lost = make_row("salun", "ua", None, status="failed", reason="x")
    with pytest.raises(RubError, match="every cell of method 'salun' failed"):
        robustbench([both[0], lost], method="salun")
    with pytest.raises(RubError, match="unknown method 'saluun': did you mean 'salun'"):
        robustbench(both, method="saluun")
    with pytest.raises(RubError, match="is 2 models"):
        robustbench([both[1], make_row("salun", "ua", 0.5, dataset="digits")], method="salun")


@pytest.mark.slow
def test_real_results():
    records = read_records(RESULTS / "table1-cifar10-resnet10")
    found = read(records, method="salun")["rub"]
    place = ("salun", "ua", "forget", "uma", "16/255")
    values = [r.value for r in records if (r.method, r.metric, r.split, r.attack, r.budget) == place]
    assert found["ua"]["16/255"]["value"] == pytest.approx(100 * sum(values) / len(values), abs=0.005)
    assert set(found["ua"]) == {"none", "1/255", "2/255", "4/255", "8/255", "16/255"}
    [dose] = [r for r in records if (r.method, r.metric, r.split) == ("salun", "own_radius_dose", "forget")]
    told = found["dose_equivalent"]["own_radius"]["none"]
    assert (told["value"], told["low"], told["high"]) == pytest.approx(
        (dose.value, dose.ci_low, dose.ci_high), abs=5e-3
    )
