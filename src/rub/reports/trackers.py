"""A run's numbers in an experiment tracker: one run per row and seed. A copy to look at; the records are the source."""

import importlib
from collections.abc import Iterator
from statistics import fmean
from typing import Any

from rub.errors import RubError, first_line, unknown
from rub.metrics.dose import DOSES
from rub.reports.folders import experiment_in
from rub.reports.result_folder import Result

PACKAGES = {"wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow", "tensorboard": "torch.utils.tensorboard"}


def check_tracker(name: str) -> Any:
    """Module of a tracker, before hours are spent.

    Raises:
        RubError: an unknown tracker, or one that is not installed.
    """
    if name not in PACKAGES:
        raise unknown("tracker", name, PACKAGES)
    try:
        return importlib.import_module(PACKAGES[name])
    except ImportError:
        raise RubError(f"--log {name}: it is not installed; pip install {name}") from None


def log_result(result: Result, name: str) -> int:
    """Send a result to a tracker, and return how many runs it has there now."""
    module, suite = check_tracker(name), str(result.suite.get("name", "rub"))
    try:
        for run in (runs := list(_runs(result))):
            _send(module, name, suite, *run)
    except Exception as error:  # whatever a tracker raises: no login, no server, a name it does not take
        raise RubError(f"--log {name}: {type(error).__name__}: {first_line(error)}; the results are kept") from None
    return len(runs)


def _send(module: Any, name: str, suite: str, title: str, settings: Any, metrics: Any) -> None:
    if name == "mlflow":
        module.set_experiment(suite)
        with module.start_run(run_name=title):
            module.log_params(settings)
            module.log_metrics(metrics)
    elif name == "tensorboard":
        with module.SummaryWriter(f"runs/{suite}/{title}") as writer:
            writer.add_hparams(settings, metrics, run_name=".")
    else:
        module.init(project=suite, name=title, config=settings)
        module.log(metrics)
        module.finish()


def _runs(result: Result) -> Iterator[tuple[str, dict[str, Any], dict[str, float]]]:
    found: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    for record in (one for one in result.records if one.value is not None and one.method != DOSES):
        row = (record.task, record.experiment, record.model, record.method, record.unlearn_seed)
        place = (record.metric, record.split, record.attack, record.budget.replace("/", "_"), record.extractor)
        cell = "/".join(part for part in place if part not in ("", "none"))
        found.setdefault(row, {}).setdefault(cell, []).append(record.value or 0.0)
    for (task, experiment, model, method, seed), values in found.items():
        settings = {"task": task, "model": model, "method": method, "seed": -1 if seed is None else seed}
        own = experiment_in(result.suite, task, experiment).get("methods", {}).get(method, {})
        title = "-".join(str(part) for part in (task, experiment, method, seed) if part not in ("", None))
        means = {name: fmean(each) for name, each in values.items()}  # over membership seeds
        yield title, {**settings, **{name: str(value) for name, value in own.items()}}, means
