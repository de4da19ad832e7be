"""Whether the numbers of a result folder agree: what can be computed again from its parts is.

A seal shows that nothing changed since the folder was sealed, and anyone can seal. What is checked here holds of every
folder that a run writes, and breaks where one number is changed and another that depends on it is not.
"""

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rub.metrics.base import Metric, metrics_of
from rub.metrics.statistics import wilson
from rub.registry import TASKS
from rub.reports.grouping import level
from rub.reports.lineage import StageFacts, disagreements
from rub.reports.samples import CELL, cells_of
from rub.reports.task_report import report_of
from rub.reports.text import printable
from rub.store.records import Record
from rub.witness.claims import Witness

if TYPE_CHECKING:
    import pyarrow

HASH = re.compile(r"[0-9a-f]{64}")  # a stage's key, or a file's SHA-256
_CLOSE = 1e-6
_ROUNDED = 1e-4  # values per sample are kept with four digits
_MODEL = ("task", "suite", "experiment", "dataset", "model", "protocol", "method", "unlearn_seed")
_STEPS: Mapping[str, tuple[str, Callable[[NDArray[Any]], float]]] = {
    "steps_mean": ("step", lambda steps: float(steps.mean())),
    "steps_median": ("step", lambda steps: float(np.median(steps))),
    "gradient_steps_mean": ("gradient_steps", lambda steps: float(steps.mean())),
}
"""Metric -> the column of ``samples.parquet`` that it is computed from, and how."""

Cell = tuple[Any, ...]
Columns = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Told:
    """What a result folder says, file by file; what it does not have is empty.

    Attributes:
        records: of ``records.parquet``, or of ``records.json`` where that is all.
        twins: of ``records.json`` where there are both.
        samples: ``samples.parquet``.
        values: ``values.parquet``.
        curves: rows of ``curves.json``.
        suite: ``suite.yaml``.
        claims: files of witnesses by name.
        lineage: ``stages.json``.
    """

    records: Sequence[Record]
    twins: Sequence[Record] | None = None
    samples: "pyarrow.Table | None" = None
    values: "pyarrow.Table | None" = None
    curves: Sequence[Mapping[str, Any]] = ()
    suite: Mapping[str, Any] = field(default_factory=dict)
    claims: Mapping[str, Witness] = field(default_factory=dict)
    lineage: Sequence[StageFacts] = ()

    @cached_property
    def at(self) -> dict[Cell, dict[str, Record]]:
        """Model, attack, budget and split -> metric -> record, of those without a membership seed."""
        found: dict[Cell, dict[str, Record]] = {}
        for record in self.records:
            if record.mia_seed is None:
                found.setdefault(_cell(record), {})[record.metric] = record
        return found

    @cached_property
    def searched(self) -> dict[Cell, Columns]:
        """Model, attack, budget and split -> columns of the samples."""
        if self.samples is None:
            return {}
        columns = {name: self.samples[name].to_numpy() for name in self.samples.column_names if name not in CELL}
        return {cell: {name: column[rows] for name, column in columns.items()} for cell, rows in cells_of(self.samples)}

    @cached_property
    def retrained(self) -> dict[Cell, int]:
        """Group -> number of retrained models."""
        found: dict[Cell, int] = {}
        for record in self.records:
            if record.method in ("retrain", "retrained") and record.unlearn_seed is not None:
                place = _group(record)
                found[place] = max(found.get(place, 0), record.unlearn_seed + 1)
        return found

    def reference(self, record: Record, apart: bool = False) -> Cell | None:
        """Cell of the retrained model that a record is compared with, another one than its own if `apart`."""
        count, group = self.retrained.get(_group(record), 0), _group(record)
        seed = record.unlearn_seed
        if not count or seed is None:
            return None
        own = record.method in ("retrain", "retrained")
        if own and apart and count == 1:
            return None
        name = "retrained" if record.method == "retrained" or (*group, "retrained") in self._named else "retrain"
        at = (seed + 1 if own and apart else seed) % count
        return (*group, name, at, record.attack, record.budget, record.split)

    @cached_property
    def _named(self) -> set[Cell]:
        return {(*_group(record), record.method) for record in self.records}


def contradictions(told: Told) -> Iterator[str]:
    """One line for each thing in a folder that something else in it contradicts; none of a folder that a run wrote."""
    for check in CHECKS:
        yield from check(told)


def cells_once(told: Told) -> Iterator[str]:
    """A cell that two records fill."""
    seen: set[Cell] = set()
    for record in told.records:
        cell = (*_cell(record), record.metric, record.mia_seed, record.original, record.extractor, record.scenario)
        if cell in seen:
            yield f"{_said(record)} is there twice"
        seen.add(cell)


def values_and_counts(told: Told) -> Iterator[str]:
    """A failed row with a value, a value of no samples, a budget without an attack or an attack without a budget."""
    for record in told.records:
        if record.status == "failed" and (record.value is not None or not record.reason):
            yield f"{_said(record)} failed, and should have a reason and no value"
        if record.value is not None and record.n < 1:
            yield f"{_said(record)} is of no samples"
        if (record.attack == "none") != (record.budget == "none"):
            yield f"{_said(record)}: attack {printable(record.attack)}, budget {printable(record.budget)}"


def directions(told: Told) -> Iterator[str]:
    """A direction that is the opposite of the metric's; older runs called some ``reference`` that have one now."""
    known = _known(told.records)
    for record in told.records:
        metric = known.get((record.task, record.metric))
        if metric is not None and {record.direction, metric.direction} == {"up", "down"}:
            yield f"{_said(record)} has the direction {record.direction}, the metric {metric.direction}"


def shares(told: Told) -> Iterator[str]:
    """A share that is not a whole number of its samples."""
    known = _known(told.records)
    for record in told.records:
        metric, value = known.get((record.task, record.metric)), record.value
        if metric is not None and metric.share and value is not None and record.n and record.ci_low is not None:
            count = value * record.n
            if abs(count - round(count)) > _CLOSE * max(record.n, 1):
                yield f"{_said(record)} is {value:.6g}, which is no whole number of {record.n} samples"


def intervals(told: Told) -> Iterator[str]:
    """An interval that is not Wilson's of a share, or does not hold its value."""
    known = _known(told.records)
    for record in told.records:
        value, low, high = record.value, record.ci_low, record.ci_high
        if low is None and high is None:
            continue
        metric = known.get((record.task, record.metric))
        if metric is None:  # such as a dose, whose interval is of the scale
            continue
        if value is None or low is None or high is None or not low - _CLOSE <= value <= high + _CLOSE:
            yield f"{_said(record)}: the interval {low} to {high} does not hold {value}"
        elif metric.share and 0 <= value <= 1 and record.n:
            right = wilson(min(value * record.n, record.n), record.n)
            if not np.allclose(right, (low, high), rtol=0, atol=_CLOSE):
                said = f"{right[0]:.4f} to {right[1]:.4f}, not {low:.4f} to {high:.4f}"
                yield f"{_said(record)}: the interval of {value:.4f} of {record.n} is {said}"


def twins(told: Told) -> Iterator[str]:
    """A record that is not the same in ``records.json`` and ``records.parquet``."""
    if told.twins is None:
        return
    if len(told.twins) != len(told.records):
        yield f"records.json has {len(told.twins)} records, records.parquet {len(told.records)}"
        return
    for one, other in zip(told.records, told.twins, strict=True):
        if one != other:
            name = next(name for name in Record.model_fields if getattr(one, name) != getattr(other, name))
            yield f"{_said(one)}: another {name} in records.json than in records.parquet"


def stages(told: Told) -> Iterator[str]:
    """A stage's key, which names what it measured, that stands for two rows; or two networks of one row."""
    measured: dict[str, Cell] = {}
    weights: dict[Cell, str] = {}
    known = _known(told.records)
    for record in told.records:
        if (record.task, record.metric) not in known or not HASH.fullmatch(record.key):  # doses: one stage for all rows
            continue
        what = (record.task, record.dataset, record.model, record.method, record.unlearn_seed, record.attack)
        if measured.setdefault(record.key, (*what, record.budget)) != (*what, record.budget):
            yield f"{_said(record)}: its stage {printable(record.key)[:12]} measured another row"
        model = (*_group(record), record.method, record.unlearn_seed)
        if record.weights_sha256 and weights.setdefault(model, record.weights_sha256) != record.weights_sha256:
            yield f"{_said(record)} is of other weights than the rest of its row"


def settings(told: Told) -> Iterator[str]:
    """A record, or the suite, that its stage contradicts: see `rub.reports.lineage`."""
    if told.lineage:
        for record, wrong in disagreements(told.lineage, told.records, told.suite):
            yield f"{_said(record)}: {printable(wrong)[:300]}"


def asked(told: Told) -> Iterator[str]:
    """A record of an experiment, method or protocol that the suite does not have."""
    experiments = [item for item in told.suite.get("experiments") or () if isinstance(item, dict)]
    if not experiments:
        return
    name, seen = told.suite.get("name"), set()
    for record in told.records:
        what = (record.task, record.experiment, record.suite)
        if what in seen:
            continue
        seen.add(what)
        if isinstance(name, str) and record.suite != name:
            yield f"{_said(record)} is of suite '{printable(record.suite)}', suite.yaml of '{printable(name)}'"
        if not any(
            item.get("task") == record.task and item.get("name", "") == record.experiment for item in experiments
        ):
            yield f"{_said(record)} is of an experiment that suite.yaml does not have"


def differences(told: Told) -> Iterator[str]:
    """Excess, ratio, average gap or selectivity that its parts do not give."""
    for found in told.at.values():
        for record in (found.get(name) for name in ("residual_knowledge", "residual_ratio", "avg_gap", "selectivity")):
            if record is None or record.value is None:
                continue
            right = _derived(told, record, found)
            if right is not None and abs(right - record.value) > 10 * _CLOSE * max(1, abs(right)):
                yield f"{_said(record)} is {record.value:.6g}; its parts give {right:.6g}"


def sampled(told: Told) -> Iterator[str]:
    """A rate or mean of steps that ``samples.parquet`` does not give; samples without a record, or the reverse."""
    if told.samples is None:
        return
    for cell, columns in told.searched.items():
        found = told.at.get(cell, {})
        rate = found.get(_rate(cell[0], cell[-1], found) or "")
        if rate is None or rate.value is None:
            if any(record.task == cell[0] for record in told.records):
                yield f"{_where(cell)}: samples without a record"
            continue
        yield from _against(rate, "recovered", columns["recovered"].astype(float))
        if (before := found.get("ua_before")) is not None and "clean" in columns:
            yield from _against(before, "clean", columns["clean"].astype(float))
        for name, (column, mean) in _STEPS.items():
            if (record := found.get(name)) is not None and record.value is not None and column in columns:
                steps = np.where(columns["step"] < 0, level(cell[-2]), columns["step"]) if column == "step" else None
                right = mean(columns[column] if steps is None else steps)
                if abs(right - record.value) > _CLOSE * max(1, right) or record.n != len(columns[column]):
                    yield f"{_said(record)} is {record.value:.6g} of {record.n}; samples.parquet gives {right:.6g}"
    yield from (f"{_said(rate)} has no samples in samples.parquet" for rate in _without(told, told.searched))


def samples_alike(told: Told) -> Iterator[str]:
    """A sample that counts twice, that its step contradicts, or that rows do not share with each other."""
    shown: dict[Cell, NDArray[Any]] = {}
    labels: dict[Cell, dict[int, int]] = {}
    for cell, columns in told.searched.items():
        ids, hit, clean = columns["sample_id"], columns["recovered"], columns.get("clean")
        step, linf, probe = columns.get("step"), columns.get("linf"), columns.get("probe")
        if len(np.unique(ids)) != len(ids):
            yield f"{_where(cell)}: a sample counts twice"
        if step is not None and ((step >= 0) != hit).any():
            yield f"{_where(cell)}: a sample is recovered at no step, or at a step and not recovered"
        if clean is not None and (clean & ~hit).any():
            yield f"{_where(cell)}: a sample is recognised without the attack, and lost with it"
        if step is not None and clean is not None and (clean & (step > 0)).any():
            yield f"{_where(cell)}: a sample that is recognised without the attack has a step"
        if linf is not None and str(cell[-2]).endswith("/255") and (linf > level(cell[-2])).any():
            yield f"{_where(cell)}: a probe is outside the budget"
        if probe is not None and (
            len({str(one).partition(":")[0] for one in probe}) > 1 or len(set(probe)) < len(probe)
        ):
            yield f"{_where(cell)}: probes of several searches, or one that counts twice"
        group = (*cell[:6], *cell[-3:])
        if not np.array_equal(np.sort(ids), shown.setdefault(group, np.sort(ids))):
            yield f"{_where(cell)}: other samples than of the rows beside it"
        if "label" in columns and cell[-1] != "other" and cell[0] == "classification" and cell[-1] != "retain":
            own = dict(zip(ids.tolist(), columns["label"].tolist(), strict=True))
            known = labels.setdefault((*cell[:6], cell[-1]), own)
            if any(known.get(identity, label) != label for identity, label in own.items()):
                yield f"{_where(cell)}: a sample has another label than beside it"


def valued(told: Told) -> Iterator[str]:
    """A mean over samples that ``values.parquet`` does not give."""
    if told.values is None:
        return
    numbers, ids = told.values["value"].to_numpy(), told.values["sample_id"].to_numpy()
    for (*cell, metric), rows in cells_of(told.values, (*CELL, "metric")):
        record = told.at.get(tuple(cell), {}).get(metric)
        if len(np.unique(ids[rows])) != len(rows):
            yield f"{_where(cell)}: a value of {printable(metric)} counts twice"
        if record is None:
            yield f"{_where(cell)}: values of {printable(metric)} without a record"
        elif not np.isfinite(numbers[rows]).all():
            yield f"{_said(record)}: a value in values.parquet is not finite"
        else:
            yield from _against(record, "value", numbers[rows], _ROUNDED)


def searches(told: Told) -> Iterator[str]:
    """A curve of no record, or one that ends elsewhere than the rate, falls, or is of another search."""
    seen: set[Cell] = set()
    for curve in told.curves:
        cell = tuple(curve[name] for name in CELL)
        found = told.at.get(cell, {})
        record = found.get(_rate(cell[0], cell[-1], found) or "")
        if cell in seen:
            yield f"{_where(cell)}: two curves"
        seen.add(cell)
        if record is None or record.value is None:
            yield f"{_where(cell)}: a curve without a record"
            continue
        success = np.asarray(curve["success_curve"])
        if abs(success[-1] - record.value) > 2 * _CLOSE:
            yield f"{_said(record)} is {record.value:.6g}; its curve ends at {success[-1]:.6g}"
        if (np.diff(success) < -2 * _CLOSE).any():
            yield f"{_where(cell)}: its curve of successes falls"
        if record.evaluations is not None and record.evaluations != curve["evaluations"]:
            yield f"{_said(record)} took {record.evaluations} passes, its curve {curve['evaluations']}"
        if record.converged is not None and record.converged != curve["converged"]:
            yield f"{_said(record)}: converged or not, record and curve differ"
    if told.curves:
        yield from (f"{_said(rate)} has no curve" for rate in _without(told, seen))


def witnessed(told: Told) -> Iterator[str]:
    """Witnesses of another row, of other weights, or of samples that were not recovered."""
    rows: dict[Cell, Record] = {
        (r.task, r.method, r.unlearn_seed, r.attack, r.budget, r.split, r.weights_sha256): r for r in told.records
    }
    hits: dict[Cell, set[int]] = {}
    for cell, columns in told.searched.items():
        hits.setdefault((cell[0], *cell[6:]), set()).update(columns["sample_id"][columns["recovered"]].tolist())
    for name, claim in told.claims.items():
        where = (claim.task, claim.method, claim.unlearn_seed, claim.attack, claim.budget, claim.split)
        model = claim.models.get("unlearned")
        ids = [sample.id for sample in claim.samples]
        if model is None or not any((*where, sha256) in rows for sha256 in (model.sha256, *model.sources)):
            yield f"{printable(name)}: no record is about its method, seed, attack, budget and weights"
        if len(set(ids)) != len(ids):
            yield f"{printable(name)}: a sample counts twice"
        if where in hits and not hits[where].issuperset(ids):
            yield f"{printable(name)}: a witness of a sample that samples.parquet does not call recovered"


CHECKS: Sequence[Callable[[Told], Iterator[str]]] = (
    cells_once, values_and_counts, directions, shares, intervals, twins, stages, settings, asked, differences, sampled,
    samples_alike, valued, searches, witnessed,
)  # fmt: skip


def _group(record: Record) -> Cell:
    return tuple(getattr(record, name) for name in _MODEL[:-2])


def _cell(record: Record) -> Cell:
    return tuple(getattr(record, name) for name in CELL)


def _known(records: Iterable[Record]) -> dict[tuple[str, str], Metric]:
    tasks = {entry.name for entry in TASKS.entries()} & {record.task for record in records}
    return {(task, metric.name): metric for task in tasks for metric in metrics_of(task)}


def _rate(task: str, split: str, found: Mapping[str, Record]) -> str | None:
    """Metric that is the share of recovered samples of a split."""
    if task not in {entry.name for entry in TASKS.entries()}:
        return None
    report = report_of(task)
    axes = (report.robustness, *report.beside.values())
    named = [axis.metric for axis in axes if axis.split == split]
    shared = [name for name in ("ua", "ua_test", "asr_post", "recovered") if name in found]
    return next((name for name in (*shared, *named) if name in found), None)


def _without(told: Told, cells: Container[Cell]) -> Iterator[Record]:
    """Rates after an attack, on splits that the task reports, whose cell is not among these."""
    for cell, found in told.at.items():
        rate = found.get(_rate(cell[0], cell[-1], found) or "")
        reported = cell[-3] != "none" and cell[-1] in _splits(cell[0]) and cell not in cells
        if reported and rate is not None and rate.value is not None:
            yield rate


def _splits(task: str) -> set[str]:
    if task not in {entry.name for entry in TASKS.entries()}:
        return set()
    report = report_of(task)
    return {axis.split for axis in (report.robustness, *report.beside.values())}


def _derived(told: Told, record: Record, found: Mapping[str, Record]) -> float | None:
    """What the parts of a record give; None where they are not all there."""
    if record.metric == "selectivity":
        radii = [found[name].value for name in ("other_radius", "own_radius") if name in found]
        known = [value for value in radii if value is not None]
        return known[0] - known[1] if len(known) == 2 else None
    place = told.reference(record, apart=record.metric == "avg_gap")
    if place is None:
        return None
    if record.metric == "avg_gap":
        from rub.tasks.classification.metrics import GAPS

        one, two = (_clean(told, cell, GAPS) for cell in (_cell(record), place))
        return None if one is None or two is None else float(np.mean(np.abs(np.subtract(one, two))))
    name = _rate(record.task, record.split, found) or ""
    own, other = found.get(name), told.at.get(place, {}).get(name)
    if own is None or other is None or own.value is None or other.value is None:
        return None
    if record.metric == "residual_knowledge":
        return own.value - other.value
    return (1 + own.value * own.n) / (1 + other.value * other.n)


def _clean(told: Told, cell: Cell, names: Sequence[str]) -> list[float] | None:
    """Values of metrics of one model without an attack, each on its own set; None where one is not there."""
    own = {metric.name: metric.split for metric in metrics_of(cell[0])}
    found = [told.at.get((*cell[:8], "none", "none", own[name]), {}).get(name) for name in names]
    values = [None if record is None else record.value for record in found]
    return None if None in values else [value for value in values if value is not None]


def _against(record: Record, column: str, values: NDArray[Any], slack: float = _CLOSE) -> Iterator[str]:
    mean = float(values.mean())
    if record.value is None or len(values) != record.n or abs(mean - record.value) > slack:
        value = "no value" if record.value is None else f"{record.value:.6g}"
        yield f"{_said(record)} is {value} of {record.n} samples; its '{column}' give {mean:.6g} of {len(values)}"


def _said(record: Record) -> str:
    return f"{printable(record.metric)[:40]} of {_where(_cell(record))}"


def _where(cell: Sequence[Any]) -> str:
    method, seed, attack, budget, split = (printable(str(part))[:40] for part in cell[6:])
    searched = "" if attack == "none" else f", {attack} at {budget}"
    return f"{method}, seed {seed}, on {split}{searched}"
