"""What audits of every task share: the request, running two or three models through a graph, rates, the outcomes."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape as escape_html
from pathlib import Path
from textwrap import wrap
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

from pydantic import ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from rich.markup import escape

from rub.audits import verdict_file
from rub.config.hyperparameters import first_error
from rub.config.suite import Experiment, Frozen, Suite
from rub.errors import RubError
from rub.pipeline.graph_builder import FromFiles
from rub.pipeline.inline import run_inline
from rub.pipeline.progress import Display
from rub.pipeline.runtime import Runtime
from rub.pipeline.task import Task
from rub.registry import DATASETS, load_target, task_of
from rub.reports.grouping import budgets_of
from rub.reports.result_folder import Result, collect, prepare, write_result
from rub.reports.text import printable
from rub.store.artifacts import Store, file_sha256
from rub.store.records import Record
from rub.zoo.audits import with_facts

F = TypeVar("F")
E = TypeVar("E", bound=Experiment)
VerdictName = Literal[
    "destroyed",
    "recovered",
    "ordinary",
    "hidden",
    "remembered",
    "over-forgotten",
    "no residual found",
    "no residual found at this budget",
    "cannot tell",
]
MARGIN = 0.05  # a difference below five points is not called a recovery, however many samples stand behind it


@dataclass(frozen=True)
class Rate:
    """A proportion with its 95 % Wilson interval over samples."""

    value: float
    low: float
    high: float

    def exceeds(self, other: "Rate") -> bool:
        """Whether it is above another one by `MARGIN`, without overlapping intervals."""
        return self.low > other.high and self.value - other.value >= MARGIN


@dataclass(frozen=True)
class Verdict:
    """An outcome, with the sentences that say why."""

    name: VerdictName
    why: tuple[str, ...]


AUDIT_SUITE = "audit"  # name of the suite that an audit's folder holds
Rule = tuple[bool, VerdictName, tuple[str, ...]]
MOVING = "the search was still improving when it stopped: run a protocol with more steps (rub list protocols)"
ALONE = "no retrained model was given, so residuals are judged without a reference"


def first_of(rules: Sequence[Rule]) -> Verdict:
    """Verdict of the first rule that applies: whether it does, the outcome, and the sentences that say why."""
    return next(Verdict(name, why) for applies, name, why in rules if applies)


@dataclass(frozen=True, repr=False)
class Report:
    """What an audit gives.

    Attributes:
        verdict: the outcome.
        figures: the numbers behind it, as the task names them; None where stages failed.
        told: what is told of the data, and the figures, one line each.
        budget: which they belong to.
        records: every measured row.
        failures: one line for each stage that failed.
    """

    verdict: Verdict
    figures: Any
    told: tuple[str, ...]
    budget: str
    records: tuple[Record, ...]
    failures: tuple[str, ...]

    def __repr__(self) -> str:
        said = [*self.told, f"Verdict: {self.verdict.name}", *(f"  - {why}" for why in self.verdict.why)]
        return "\n".join(part for line in said for part in wrap(line, 80, subsequent_indent="    "))

    def _repr_html_(self) -> str:
        figures = escape_html("\n".join(self.told))
        why = "".join(f"<li>{escape_html(sentence)}</li>" for sentence in self.verdict.why)
        return f"<p>Verdict: <b>{escape_html(self.verdict.name)}</b></p><ul>{why}</ul><pre>{figures}</pre>"


class AuditRequest(Frozen):
    """What an audit is asked; a task's own fields are the options of its ``rub audit`` too, with their docstrings.

    Fields are numbers, text, paths, or tuples of numbers or text, which the command line takes with commas.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)
    task: ClassVar[str]
    metrics: tuple[str, ...] = ()
    """Metrics of plug-ins to measure besides; those of a file given as --plugin always are."""

    @model_validator(mode="wrap")
    @classmethod
    def _in_one_line(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(value)
        except ValidationError as error:
            raise RubError(first_error(error, "audit", cls.model_fields)) from None

    @model_validator(mode="before")
    @classmethod
    def _from_zoo(cls, given: Any) -> Any:
        return with_facts(given, cls.task) if isinstance(given, dict) else given

    @abstractmethod
    def experiment(self) -> Experiment:
        """The experiment that measures the models."""

    @abstractmethod
    def models(self) -> FromFiles:
        """Where the models are."""


@dataclass(frozen=True)
class Audit(Generic[F]):
    """How models of a task that RUB did not make are judged.

    Attributes:
        request: what is asked; its first docstring line is what ``rub audit`` says of the command.
        example: options of an example.
        figures: the numbers behind a verdict, from the measured rows at one budget.
        conclude: the verdict for them at this budget.
        told: the same numbers as lines of text.
        limits: what a verdict of this task does not say, one sentence each.
        modules: target of the function that audits models in memory, with the arguments of `rub.audit` without a
            request; "" where models are audited from files only.
    """

    request: type[AuditRequest]
    example: str
    figures: Callable[["Rows"], F]
    conclude: Callable[[F, str], Verdict]
    told: Callable[[F, str], Iterable[str]]
    limits: tuple[str, ...] = ()
    modules: str = ""


def audit_of(task: str) -> Audit[Any]:
    """How a task is audited.

    Example:
        >>> audit_of("classification").request.task
        'classification'
    """
    target = task_of(task).audit
    if not target:
        raise RubError(f"task {task}: its models cannot be audited")
    audit: Audit[Any] = load_target(target)
    return audit


def run_audit(
    experiment: Experiment,
    models: FromFiles,
    *,
    store: Path,
    runtime: Runtime,
    display: Display,
    out: Path | None = None,
    overwrite: bool = False,
    command: str = "",
) -> Report:
    """Measure models under an experiment's protocol and conclude, see `conclude`.

    A large budget recovers everything and steers everything alike, so a residual may show at a smaller one only.
    """
    if out is not None:
        prepare(out, AUDIT_SUITE, overwrite=overwrite)
    task: Task = task_of(experiment.task)
    graph = task.graph(experiment, runtime.data_root, models).graph()
    with display:
        for note in graph.notes:
            display.note(f"note: {note}")
        outcomes = run_inline(list(graph.stages), {task.name: task}, Store(store), runtime, display)
    suite = Suite(name=AUDIT_SUITE, summary="an audit", experiments=(experiment,))
    result = collect(suite, [(experiment, graph)], outcomes)
    report = _reported(result, experiment, task)
    if out is not None:
        checkpoints = {role: [file_sha256(file) for file in _read(path)] for role, path in models.weights.items()}
        beside = verdict_file.files(report, experiment, checkpoints, audit_of(task.name).limits)
        write_result(result, out, command, beside)
    return report


def _read(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _reported(result: Result, experiment: Experiment, task: Task) -> Report:
    budgets = budgets_of(result.records, main := experiment.protocol.main_attack)
    data = tuple(printable(line) for facts in result.data for line in facts.lines())
    if result.failures:
        last = budgets[-1] if budgets else ""
        return Report(Verdict("cannot tell", result.failures), None, data, last, result.records, result.failures)
    if not budgets:
        raise RubError(f"audit: protocol {experiment.protocol.name} attacks nothing")
    report = conclude(result.records, main, budgets, audit_of(task.name))
    own = (line for name in experiment.metrics for line in _besides(name, Rows(report.records, report.budget, main)))
    return replace(report, told=(*data, *report.told, *own))


def _besides(metric: str, rows: "Rows") -> Iterator[str]:
    own = [row for row in rows.records if row.metric == metric]
    for attack, budget in (("none", "none"), (rows.attack, rows.budget)):
        found = [row for row in own if (row.attack, row.budget) == (attack, budget) and row.value is not None]
        name = metric if attack == "none" else f"{metric}, {attack} at {budget}"
        if found:
            yield f"{name:<15} {', '.join(f'{row.method} {row.value:.3f}' for row in found)}"


def conclude(records: Sequence[Record], attack: str, budgets: Sequence[str], audit: Audit[Any]) -> Report:
    """Report at the smallest budget where the verdict is *recovered*, else at the largest where one can tell.

    The largest of all where one can tell at none.
    """
    figures = {budget: audit.figures(Rows(records, budget, attack)) for budget in budgets}
    verdicts = {budget: audit.conclude(found, budget) for budget, found in figures.items()}
    recovered = [budget for budget in budgets if verdicts[budget].name == "recovered"]
    told = [budget for budget in budgets if verdicts[budget].name != "cannot tell"]
    at = recovered[0] if recovered else (told or budgets)[-1]
    return Report(verdicts[at], figures[at], tuple(audit.told(figures[at], at)), at, tuple(records), ())


def validated(kind: type[E], fields: Mapping[str, Any]) -> E:
    """The experiment of an audit."""
    try:
        return kind.model_validate(dict(fields))
    except ValidationError as error:
        raise RubError(first_error(error, "audit", kind.model_fields)) from None


def existing(weights: Mapping[str, Path | None], kinds: str, *, folders: bool = False) -> dict[str, Path]:
    """Checkpoints that are given, by role; `kinds` says what would be right where one is not there."""
    found = {name: path for name, path in weights.items() if path is not None}
    for name, path in found.items():
        if not (path.is_file() or (folders and path.is_dir())):
            raise RubError(f"--{name} {path}: no such file; give {kinds}")
    return found


def dataset_of(data: str, size: int | None) -> dict[str, Any]:
    """Data set spec of ``--data``: a name, an image folder or an ``.npz``; nothing is held out."""
    if not data:
        raise RubError("--data: give the images: a name from rub list datasets, an image folder or an .npz file")
    dataset: dict[str, Any] = {"name": data, "size": size, "validation": 0.0}
    path = Path(data)
    if any(data == entry.name for entry in DATASETS.entries()):
        return dataset
    if not path.exists() and ("/" in data or path.suffix == ".npz"):
        raise RubError(
            f"--data {data}: no such folder or file; give an image folder, an .npz file or a data set's name"
        )
    if path.is_dir() or path.suffix == ".npz":
        dataset |= {"name": "npz" if path.suffix == ".npz" else "folder", "path": data}
    return dataset


class Rows:
    """Looks values up among an audit's records: without an attack, or at one budget of one.

    Attributes:
        records: every measured row.
        budget: at which rows of attacks are taken.
        attack: the protocol's main one.
    """

    def __init__(self, records: Sequence[Record], budget: str, attack: str = "uma") -> None:
        self.records, self.budget, self.attack = records, budget, attack

    def find(self, method: str, metric: str, split: str, attack: str = "none") -> Record | None:
        """Row of a cell, or None."""
        wanted = (method, metric, split, attack, self.budget if attack != "none" else "none")
        rows = (row for row in self.records if (row.method, row.metric, row.split, row.attack, row.budget) == wanted)
        return next(rows, None)

    def rate_or_none(self, method: str, metric: str, split: str, attack: str = "none") -> Rate | None:
        """Proportion in a cell; None where it was not asked for."""
        return self.rate(method, metric, split, attack) if self.find(method, metric, split, attack) else None

    def rate(self, method: str, metric: str, split: str, attack: str = "none") -> Rate:
        """Proportion in a cell."""
        return rate_of(self.record(method, metric, split, attack))

    def record(self, method: str, metric: str, split: str, attack: str = "none") -> Record:
        """Row of a cell that has to be there."""
        row = self.find(method, metric, split, attack)
        if row is None or row.value is None:
            raise RubError(f"audit: no value of {metric} for {method}; the protocol has to attack {split} images too")
        return row

    def of(self, metric: str) -> list[Record]:
        """Rows of a metric, of all models."""
        return [row for row in self.records if row.metric == metric]


def ends_of(record: Record) -> tuple[float, float, float]:
    """Value and interval of a row; both ends are the value where it has none."""
    assert record.value is not None
    low, high = (record.value if end is None else end for end in (record.ci_low, record.ci_high))
    return record.value, low, high


def rate_of(record: Record) -> Rate:
    """Proportion of a row."""
    return Rate(*ends_of(record))


def percent(rate: Rate) -> str:
    """A rate with its interval, in percent.

    Example:
        >>> percent(Rate(0.984, 0.96, 0.994))
        '98.4 % (96.0 to 99.4)'
    """
    return f"{100 * rate.value:.1f} % ({100 * rate.low:.1f} to {100 * rate.high:.1f})"


def lines(report: Report) -> Iterator[str]:
    """An audit's figures and verdict as text (rich markup)."""
    yield from (escape(line) for line in report.told)
    yield f"[b]Verdict: {report.verdict.name}[/b]"
    yield from (f"  - {escape(sentence)}" for sentence in report.verdict.why)
