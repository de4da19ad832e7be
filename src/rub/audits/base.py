"""What audits of every task share: running two or three checkpoints through a graph, looking rates up, the outcomes."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from rich.markup import escape

from rub.api import default_store
from rub.config.suite import Experiment, Suite
from rub.errors import RubError
from rub.pipeline.graph import Graph
from rub.pipeline.inline import run_inline
from rub.pipeline.progress import Display
from rub.pipeline.runtime import Runtime
from rub.pipeline.task import Task
from rub.registry import DATASETS
from rub.reports.result_folder import Result, collect, prepare, write_result
from rub.store.artifacts import Store
from rub.store.records import Record

F = TypeVar("F")
VerdictName = Literal["recovered", "hidden", "no residual found at this budget", "cannot tell"]
MARGIN = 0.05  # a difference below five points is not called a recovery, however many samples stand behind it


@dataclass(frozen=True)
class Rate:
    """A proportion with its 95 % Wilson interval over samples."""

    value: float
    low: float
    high: float

    def exceeds(self, other: "Rate") -> bool:
        """Return whether it is above another one by `MARGIN`, without overlapping intervals."""
        return self.low > other.high and self.value - other.value >= MARGIN


@dataclass(frozen=True)
class Verdict:
    """One of four outcomes, with the sentences that say why."""

    name: VerdictName
    why: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What an audit gives.

    Attributes:
        verdict: the outcome.
        figures: the numbers behind it, as the task names them; None where stages failed.
        told: the same, one line each.
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


def measure(
    experiment: Experiment,
    graph: Graph,
    task: Task,
    *,
    store: Path | None,
    runtime: Runtime,
    display: Display,
    out: Path | None,
    command: str,
) -> Result:
    """Run the stages of an audit and, with `out`, write a result folder.

    Raises:
        RubError: a missing or wrong checkpoint, class or data set.
    """
    if out is not None:
        prepare(out)
    opened = Store(store or default_store())
    with display:
        outcomes = run_inline(list(graph.stages), {task.name: task}, opened, runtime, display)
    result = collect("audit", [(experiment, graph)], outcomes)
    if out is not None:
        write_result(result, Suite(name="audit", summary="an audit", experiments=(experiment,)), out, command)
    return result


def conclude(
    records: Sequence[Record],
    budgets: Sequence[str],
    figures_of: Callable[[Sequence[Record], str], F],
    judge: Callable[[F, str], Verdict],
    told: Callable[[F, str], Iterable[str]],
) -> Report:
    """Return *recovered* at the smallest budget where it holds, else what the largest one says.

    A large budget recovers everything and steers everything alike, so a residual may show at a smaller one only.

    Args:
        records: every measured row.
        budgets: of the search, the smallest first.
        figures_of: picks a task's figures at a budget from the rows.
        judge: gives the verdict for them.
        told: gives them as lines of text.
    """
    for budget in budgets:
        figures = figures_of(records, budget)
        verdict = judge(figures, budget)
        if verdict.name == "recovered":
            break
    return Report(verdict, figures, tuple(told(figures, budget)), budget, tuple(records), ())


def broken(result: Result, budget: str) -> Report:
    """Return the report of an audit some of whose stages failed."""
    return Report(Verdict("cannot tell", result.failures), None, (), budget, result.records, result.failures)


def existing(weights: Mapping[str, Path | None], kinds: str, *, folders: bool = False) -> dict[str, Path]:
    """Return the checkpoints that are given, by role.

    Raises:
        RubError: one of them is not there, or is a folder without `folders`; `kinds` says what would be right.
    """
    found = {name: path for name, path in weights.items() if path is not None}
    for name, path in found.items():
        if not (path.is_file() or (folders and path.is_dir())):
            raise RubError(f"--{name} {path}: no such file; give {kinds}")
    return found


def dataset_of(data: str, size: int | None) -> dict[str, Any]:
    """Return the data set spec of ``--data``: a name, an image folder or an ``.npz``; nothing is held out.

    Raises:
        RubError: a path that does not exist.
    """
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
    """Looks values up among an audit's records, at one budget."""

    def __init__(self, records: Sequence[Record], budget: str) -> None:
        """Rows of attacks are taken at this budget, clean ones have none."""
        self.records, self.budget = records, budget

    def find(self, method: str, metric: str, split: str, attack: str = "none") -> Record | None:
        """Return the row of a cell, or None."""
        wanted = (method, metric, split, attack, self.budget if attack != "none" else "none")
        rows = (row for row in self.records if (row.method, row.metric, row.split, row.attack, row.budget) == wanted)
        return next(rows, None)

    def rate(self, method: str, metric: str, split: str, attack: str = "none") -> Rate:
        """Return a proportion.

        Raises:
            RubError: it was not measured.
        """
        row = self.find(method, metric, split, attack)
        if row is None or row.value is None or row.ci_low is None or row.ci_high is None:
            raise RubError(f"audit: no value of {metric} for {method}; the protocol has to attack {split} images too")
        return Rate(row.value, row.ci_low, row.ci_high)


def percent(rate: Rate) -> str:
    """Return a rate with its interval.

    Example:
        >>> percent(Rate(0.984, 0.96, 0.994))
        '98.4 % (96.0 to 99.4)'
    """
    return f"{100 * rate.value:.1f} % ({100 * rate.low:.1f} to {100 * rate.high:.1f})"


def lines(report: Report) -> Iterator[str]:
    """Yield an audit's figures and verdict as text (rich markup)."""
    yield from (escape(line) for line in report.told)
    yield f"[b]Verdict: {report.verdict.name}[/b]"
    yield from (f"  - {escape(sentence)}" for sentence in report.verdict.why)
