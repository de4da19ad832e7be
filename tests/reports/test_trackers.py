"""A run's numbers in a tracker: stand-ins that write down what they are told."""

import sys
from types import SimpleNamespace

import pytest

from rub.errors import RubError
from rub.reports.trackers import PACKAGES, check_tracker, log_result


class Told(SimpleNamespace):
    """Every tracker's calls, in one list."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def __getattr__(self, name):
        def call(*given, **named):
            self.calls.append((name, given, named))
            return self

        return call


@pytest.mark.parametrize("name", PACKAGES)
def test_each_row_and_seed_is_a_run_with_its_settings_and_numbers(tiny, monkeypatch, name):
    told = Told(calls=[])
    monkeypatch.setitem(sys.modules, PACKAGES[name], told)
    assert log_result(tiny.result, name) == 5  # original, retrain, sham, zero-row, ft
    starts = {"mlflow": "start_run", "tensorboard": "SummaryWriter"}.get(name, "init")
    assert sum(call == starts for call, _, _ in told.calls) == 5
    said = str(told.calls)
    value = next(
        row.value for row in tiny.result.records if (row.method, row.metric, row.attack) == ("ft", "ua", "uma")
    )
    assert f"'ua/forget/uma/32_255': {value}" in said
    assert "'method': 'ft'" in said
    assert "'epochs': '1'" in said


def test_an_unknown_or_absent_tracker_is_one_line_before_anything_runs(rub, tiny, monkeypatch):
    with pytest.raises(RubError, match=r"unknown tracker 'wandn': did you mean 'wandb'\?"):
        check_tracker("wandn")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    said = rub("run", tiny.path, "--log", "mlflow")
    assert (said.code, said.err) == (2, "rub: --log mlflow: it is not installed; pip install mlflow\n")
