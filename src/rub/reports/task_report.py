"""What a report needs to know of a task: its tables and the prose about them, from ``report.yaml`` of the task."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rub.errors import unknown
from rub.metrics.base import Metric
from rub.pipeline.task import Task
from rub.registry import TASKS, load_target, task_of
from rub.reports.doses import dose_tables, on_scale
from rub.reports.grouping import Mains, budgets_of, extracted, grouped, is_control, main_attack
from rub.reports.table import Column, Table, fitting
from rub.reports.tables import Columns, Source, further, paper_numbers
from rub.reports.text import printable
from rub.reports.wrecks import wrecks
from rub.store.records import Record

_STOPPED = "the value is where it stopped"


@dataclass(frozen=True)
class Axis:
    """What an axis of a figure shows.

    Attributes:
        metric: the metric's id.
        split: the samples it is measured on.
        name: the name that the axis has for it.
        unit: ``%``, ``dB`` and the like; a share is drawn in percent, from 0 to 100.
        clean: the metric's id without an attack, where it differs.
    """

    metric: str
    split: str
    name: str
    unit: str = "%"
    clean: str = ""

    @property
    def percent(self) -> bool:
        """Whether it shows a share."""
        return self.unit == "%"

    @property
    def scale(self) -> float:
        """What a record's value is multiplied by."""
        return 100.0 if self.percent else 1.0

    @property
    def label(self) -> str:
        """Name with unit.

        Example:
            >>> Axis("ua", "forget", "UA").label
            'UA (%)'
        """
        return f"{self.name} ({self.unit})"


@dataclass(frozen=True)
class TaskReport:
    """What differs between the reports of two tasks; all but the three functions stands in ``report.yaml``.

    Attributes:
        tables: records of any tasks, the paper's numbers and the main attacks -> the tables of this task's records.
        headline: budgets, the smallest first -> those that the first table shows.
        leaders: records of one data set and protocol, and its main attack -> the columns of its leaderboard.
        title: the task in two or three words, for headings.
        first: the paper's table whose shape the first tables have, such as ``Table 1``.
        prefix: how the names of these first tables begin, such as ``table1``.
        robustness: a share that is small where a model is robust; figures show 100 minus it as robustness.
        utility: what unlearning should have left alone.
        metrics: that the task's own stages measure.
        words: what else tables and figures say -> in plain words.
        captions: first part of a figure's name -> what it shows; ``{main}`` stands for the main attack.
        beside: words for the legend -> a share of other images that the same search changes, three at most; the caption
            ``controls`` belongs to them.
        unlike: rows that the utility of others is measured against, so that their own says nothing.
        search: what a budget is, for the axis of the robustness figure.
        success: what the success figure shows the share of.
        forgotten: what is attacked, for the legend beside `beside`.
        together: whether one table shows all experiments of a suite.
        left: metric of the same split as `robustness` that says what the input search finds left: where dose models
            were trained, leaderboards rank by its dose-equivalent; "": by `robustness` after the largest search.
        closest: metric that is small where a model is close to the retrained one; where single samples are forgotten,
            leaderboards rank by it.
    """

    tables: Callable[[Sequence[Record], Mapping[str, Any] | None, Mains], list[Table]]
    headline: Callable[[Sequence[str]], list[str]]
    leaders: Callable[[Sequence[Record], str], list[Column]]
    title: str
    first: str
    prefix: str
    robustness: Axis
    utility: Axis
    metrics: Sequence[Metric]
    words: Mapping[str, str]
    captions: Mapping[str, str]
    beside: Mapping[str, Axis] = field(default_factory=dict)
    unlike: Sequence[str] = ()
    search: str = r"size of the search, $\|\delta\|_\infty$"
    success: str = "share of forget images recovered"
    forgotten: str = "forget images"
    together: bool = False
    left: str = ""
    closest: str = ""

    def tables_of(self, records: Sequence[Record], keys: Mapping[str, str], mains: Mains | None = None) -> list[Table]:
        """Tables of this task's records: of every experiment, or of all experiments together.

        Args:
            records: of this task.
            keys: experiment -> its key into the paper's tables; "" and none for one that the paper does not have.
            mains: main attacks, as suites say them.

        Raises:
            RubError: a key that the paper has no table for.
        """
        if not records:
            return []
        names = list(dict.fromkeys(record.experiment for record in records))
        shipped = {metric.name for metric in self.metrics}
        found = []
        for part in [names] if self.together else [[name] for name in names]:
            own = [record for record in records if record.metric in shipped and record.experiment in part]
            key = next((keys[name] for name in part if keys.get(name)), "")
            made = self.tables(own, paper_numbers(key), mains or {})
            found += [self._with_wrecks(made[0], own), *made[1:]] if made else []
        for group, all_ in grouped(records, records[0].task).items():
            own = extracted(all_)
            source = Source(group, own, lambda columns, behind: (), _STOPPED, self.first, main_attack(all_, mains))
            doses = dose_tables(source, self.headline(source.budgets), self.robustness.metric)
            found += [part for table in doses for part in fitting(table)]
            found += further(replace(source, records=[record for record in own if not on_scale(record)]), shipped)
        return found

    def _with_wrecks(self, table: Table, records: Sequence[Record]) -> Table:
        """The first table of some records, with a note for each wreck among them."""
        groups = grouped(records, records[0].task).values() if records else ()
        notes = [
            f"DESTROYED: {printable(method)}: {said}: no other number of it says anything"
            for own in groups
            for method, said in wrecks(own, self.utility).items()
            if not is_control(method, own[0].task)
        ]
        return replace(table, notes=(*table.notes, *dict.fromkeys(notes)))


def read_report(target: str, metrics: Iterable[Metric], **functions: Any) -> TaskReport:
    """Report of a task from its prose, ``package:report.yaml``, its metrics, and the functions of `TaskReport`."""
    said = {**load_target(target), "metrics": tuple(metrics)}
    units = {metric.name: metric.unit for metric in said["metrics"]}

    def axis(fields: Mapping[str, Any]) -> Axis:
        return replace(Axis(**fields), unit=units[fields["metric"]])

    said |= {name: axis(said[name]) for name in ("robustness", "utility")}
    said["beside"] = {name: axis(fields) for name, fields in said.get("beside", {}).items()}
    return TaskReport(**functions, **said)


def report_of(task: str) -> TaskReport:
    """How a task is reported.

    Raises:
        RubError: an unknown task.

    Example:
        >>> report_of("classification").first
        'Table 1'
    """
    if task not in (names := [entry.name for entry in TASKS.entries()]):
        raise unknown("task", task, names)
    declared = task_of(task)
    found: TaskReport = load_target(declared.report) if declared.report else plain_report(declared)
    return found


def plain_report(task: Task) -> TaskReport:
    """Report of a task that declares none: one table of its metrics, without and with the main attack."""
    metrics = task.metrics

    def columns(records: Sequence[Record], main: str) -> list[Column]:
        made = Columns(metrics, main)
        budgets = ("none", *budgets_of(records, main))
        return [made("" if at == "none" else at, metric.name, at) for at in budgets for metric in metrics]

    def tables(records: Sequence[Record], paper: Mapping[str, Any] | None, mains: Mains) -> list[Table]:
        found = []
        for group, own in grouped(records, task.name).items():
            source = Source(group, own, lambda *_: (), "more may be found", "Table", main_attack(own, mains))
            found += fitting(source.table(task.name, "Table", columns(own, source.main)))
        return found

    first, last = (Axis(item.name, item.split, item.title, item.unit) for item in (metrics[0], metrics[-1]))
    captions = dict.fromkeys(("robustness", "utility", "success"), f"{first.name}: {metrics[0].meaning}.")
    return TaskReport(
        tables=tables,
        headline=lambda budgets: list(budgets[-2:]),
        leaders=columns,
        title=task.name,
        first="Table",
        prefix=task.name,
        robustness=first,
        utility=last,
        metrics=metrics,
        words={},
        captions=captions,
    )


def reports_of(tasks: Iterable[str]) -> dict[str, TaskReport]:
    """How these tasks are reported, in the order of the registry; names that it does not have are left out.

    Example:
        >>> list(reports_of(["classification", "of-another-installation"]))
        ['classification']
    """
    asked = set(tasks)
    return {entry.name: report_of(entry.name) for entry in TASKS.entries() if entry.name in asked}
