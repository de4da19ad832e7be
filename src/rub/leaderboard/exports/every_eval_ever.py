"""One model's results as JSON of the Every Eval Ever schema, version 0.2.2.

https://github.com/evaleval/every_eval_ever, ``every_eval_ever/schemas/eval.schema.json``. A bound that a metric lacks
is the text ``Infinity`` or ``-Infinity``, as that project writes and reads it since August 2026. Its datastore takes
the file as ``data/COLLECTION/DEVELOPER/MODEL/UUID4.json``, with DEVELOPER/MODEL as in ``model_info.id``.

What the schema has a field for is there: score, interval, N, direction, range, unit, data set, library, engine and
command. What it has none for is in details, whose values are all text: controls, failures, protocol, conditions. The
schema knows lower or higher alone; of a metric that is best where the retrained model has it, the details say so.
"""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

from rub.leaderboard.exports.scores import (
    BETTER,
    Score,
    check_measured,
    check_source,
    date_of,
    one_group,
    scores_of,
    to_json,
)
from rub.metrics.statistics import LEVEL
from rub.registry import DATASETS
from rub.reports.folders import experiment_in
from rub.reports.grouping import Group
from rub.reports.text import placeless, slug, told
from rub.store.records import Record

SCHEMA = "0.2.2"
_UNKNOWN = "unknown"
_UNITS = {"fraction": "proportion", "%": "percent"}
_NEITHER = {
    "rises": "lower_is_better is true as less is left where it is lower",
    "falls": "lower_is_better is false as less is left where it is higher",
    "": "lower_is_better is false for want of a third value, and says nothing",
}


def every_eval_ever(
    records: Sequence[Record],
    *,
    method: str,
    source: str = "",
    suite: Mapping[str, Any] | None = None,
    command: str = "",
    at: float | None = None,
) -> str:
    """One method's results as a JSON object with a result for each measured cell.

    Scores are means over seeds, in the unit and range that ``metric_config`` says; failed cells are left out. No record
    says who evaluated, or whether they made the method: ``source_organization_name`` is ``unknown`` and
    ``evaluator_relationship`` is ``other`` until they are filled in.

    Args:
        records: of one run; other methods' are left out, except for the controls beside each score.
        method: as records name it.
        source: address of a page or folder with the records, or "".
        suite: as plain data; it says hyperparameters, what was forgotten, and which data set a name stands for.
        command: that made the records, or "".
        at: when the file is made, in seconds since 1970; now when None.

    Raises:
        RubError: no measured record of the method, records of several models, or a source that is no web address.

    Example:
        >>> import json
        >>> fields = {"task": "classification", "suite": "s", "experiment": "", "protocol": "rub-paper-1", "key": "k"}
        >>> fields |= {"dataset": "digits", "model": "resnet10", "attack": "none", "budget": "none", "split": "test"}
        >>> row = {"method": "ft", "metric": "ta", "value": 0.9, "n": 100, "unlearn_seed": 0, "mia_seed": None}
        >>> text = every_eval_ever([Record(**fields, **row, direction="up")], method="ft")
        >>> [found] = json.loads(text)["evaluation_results"]
        >>> found["evaluation_name"], found["metric_config"]["metric_id"], found["score_details"]["score"]
        ('rub.classification.test.none.none', 'rub.classification.ta', 0.9)
    """
    check_measured(records, method)
    check_source(source)
    group = one_group(records, method)
    asked = experiment_in(suite or {}, group.task, group.experiment)
    scores = list(scores_of([record for record in records if Group.of(record) == group], method))
    measured = [record for score in scores for record in score.measured]
    made = date_of(measured)
    parts = (group.dataset, group.model, *filter(None, (group.experiment,)), method)
    name = "-".join(map(slug, parts))
    keys = sha256("".join(sorted({record.key for record in measured})).encode()).hexdigest()[:16]
    document = {
        "schema_version": SCHEMA,
        "evaluation_id": f"rub/{name}/{keys}",
        **({"evaluation_timestamp": made.isoformat()} if made else {}),
        "retrieved_timestamp": str(time.time() if at is None else at),
        "source_metadata": {
            "source_name": "RUB, the Robust Unlearning Benchmark",
            "source_type": "evaluation_run",
            "source_organization_name": _UNKNOWN,
            "evaluator_relationship": "other",
            "additional_details": _details(
                suite=group.suite, records=source, relationship="not known: no record says who made the method"
            ),
        },
        "eval_library": {"name": "rub-bench", "version": _joined(record.code_version for record in measured)},
        "model_info": _model(group, method, name, measured, asked),
        "evaluation_results": [_result(score, asked, command) for score in scores],
    }
    return to_json(document)


def _model(
    group: Group, method: str, name: str, measured: Sequence[Record], asked: Mapping[str, Any]
) -> dict[str, Any]:
    engine = _joined(record.library_versions.get("torch", "") for record in measured)
    seeds = sorted({record.unlearn_seed for record in measured if record.unlearn_seed is not None})
    methods, forgotten = asked.get("methods"), asked.get("forget") or asked.get("concept")
    own = methods.get(method) if isinstance(methods, Mapping) else None
    return {
        "name": f"{method} on {group.model}, {group.dataset}",
        "id": f"rub-bench/{name}",
        "inference_engine": {"name": "torch", "version": engine},
        "additional_details": {
            "deployment_type": "self_deployed",
            "model_availability": _UNKNOWN,
            **_details(
                id="made of the records' names; no repository of this name is claimed to be there",
                method=method,
                network=group.model,
                dataset=group.dataset,
                task=group.task,
                scenario=group.scenario,
                experiment=group.experiment,
                hyperparameters=_settings(own),
                forgotten=_settings(forgotten),
                originals=str(len({record.original for record in measured})),
                unlearning_seeds=", ".join(map(str, seeds)),
                weights_sha256=_joined((record.weights_sha256 for record in measured), ""),
            ),
        },
    }


def _result(score: Score, asked: Mapping[str, Any], command: str) -> dict[str, Any]:
    group, (_, split, attack, budget, _) = score.group, score.place
    where = (slug(part) for part in (group.task, *filter(None, (group.experiment,)), split, attack, budget))
    return {
        "evaluation_result_id": score.task_id,
        "evaluation_name": ".".join(("rub", *where)),
        "source_data": _data(group, split, asked),
        **({"evaluation_timestamp": score.date} if score.date else {}),
        "metric_config": _metric(score),
        "score_details": _score(score),
        "generation_config": {
            **({"generation_args": {"execution_command": command}} if command else {}),
            "additional_details": _details(
                protocol=group.protocol,
                conditions="; ".join(score.conditions()),
                forward_passes=_joined((str(record.evaluations or "") for record in score.measured), ""),
            ),
        },
    }


def _data(group: Group, split: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The data set, as one of the Hub where the suite names one that RUB reads from there."""
    said = asked.get("dataset")
    named = said.get("name") if isinstance(said, Mapping) else said
    known = {entry.name: entry for entry in DATASETS.entries()}
    hub = known[named].load().hub if isinstance(named, str) and named in known else None
    details = _details(split=split, read="as RUB reads this data set; it may have been from a copy" if hub else "")
    kind = {"source_type": "hf_dataset", "hf_repo": hub.id} if hub is not None else {"source_type": "other"}
    return {"dataset_name": group.dataset, **kind, "additional_details": details}


def _metric(score: Score) -> dict[str, Any]:
    metric, direction = score.metric, score.measured[0].direction
    low, high = (metric.low, metric.high) if metric else (-math.inf, math.inf)
    knowledge = metric.knowledge if metric else ""
    said = BETTER[direction] + (f"; {_NEITHER[knowledge]}" if direction == "reference" else "")
    unit = metric.stored_unit if metric else ""
    return {
        "evaluation_description": f"{metric.meaning if metric else score.place.metric}, {score.where}",
        "metric_id": f"rub.{slug(score.group.task)}.{score.place.metric}",
        "metric_name": metric.title if metric else score.place.metric,
        **({"metric_unit": _UNITS.get(unit, unit)} if unit else {}),
        "metric_parameters": dict(zip(("split", "attack", "budget"), score.place[1:4], strict=True)),
        "lower_is_better": direction == "down" or (direction == "reference" and knowledge == "rises"),
        "score_type": "continuous",
        "min_score": _bound(low),
        "max_score": _bound(high),
        "additional_details": _details(
            direction=said, range="" if metric else "not known here: the metric is of a plug-in"
        ),
    }


def _score(score: Score) -> dict[str, Any]:
    interval, metric = score.interval, score.metric
    value = interval.mean if metric is None else min(max(interval.mean, metric.low), metric.high)  # to rounding
    uncertainty: dict[str, Any] = {}
    if score.over:
        uncertainty["confidence_interval"] = {
            "lower": interval.low,
            "upper": interval.high,
            "confidence_level": 1 - LEVEL,
            "method": f"over {score.over}",
        }
    if score.count.isdecimal():
        uncertainty["num_samples"] = int(score.count)
    controls = {f"control {name}": str(control.mean) for name, control in score.controls.items()}
    details = _details(models=score.models, N=score.count, remarks="; ".join(score.remarks()), **controls)
    return {"score": value, **({"uncertainty": uncertainty} if uncertainty else {}), "details": details}


def _bound(value: float) -> float | str:
    return value if math.isfinite(value) else "Infinity" if value > 0 else "-Infinity"


def _details(**said: str) -> dict[str, str]:
    """What there is to say."""
    return {name: text for name, text in said.items() if text}


def _settings(said: Any) -> str:
    return told(placeless(said)) if isinstance(said, Mapping) else ""


def _joined(texts: Iterable[str], otherwise: str = _UNKNOWN) -> str:
    return ", ".join(dict.fromkeys(filter(None, texts))) or otherwise
