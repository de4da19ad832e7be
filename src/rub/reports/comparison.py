"""Two result folders cell by cell: paired differences, and what their suites asked differently."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from rub.errors import RubError
from rub.metrics import statistics
from rub.metrics.base import metrics_of
from rub.metrics.dose import DOSES
from rub.metrics.statistics import Difference
from rub.registry import TASKS
from rub.reports.folders import ResultFolder
from rub.reports.grouping import Group, Place, estimate, is_share, place_of, run_of
from rub.reports.text import printable
from rub.store.records import Record

if TYPE_CHECKING:
    from rich.table import Table

Cell = tuple[Group, str, Place]
SIGNIFICANT = 0.05
SHOWN = 3  # settings that are named of a run which looks like another
_WORDS = ("name", "summary")  # of a suite, which decide nothing


@dataclass(frozen=True)
class CellDifference:
    """One cell of both folders.

    Attributes:
        group: what its records share; the suite is that of the first folder.
        method: row.
        place: metric, split, attack, budget.
        one: mean in the first folder.
        other: mean in the second.
        difference: other minus one, of a paired test; None where the two share no run.
        p: of that test, corrected for all cells of the two folders (Holm).
    """

    group: Group
    method: str
    place: Place
    one: float
    other: float
    difference: Difference | None = None
    p: float = 1.0

    @property
    def told(self) -> bool:
        """Whether the two are told apart at 5 % over all cells together."""
        return self.difference is not None and self.p < SIGNIFICANT


@dataclass(frozen=True)
class Comparison:
    """What two folders say of the same cells.

    Attributes:
        cells: of both, in the order of the first.
        settings: settings of the suites that differ: path, value of the first, value of the second; None: absent.
        only: number of cells that only the first has, and only the second.
    """

    cells: tuple[CellDifference, ...]
    settings: tuple[tuple[str, Any, Any], ...]
    only: tuple[int, int]


def compare(one: ResultFolder, other: ResultFolder) -> Comparison:
    """Pair the cells of two folders: of the same experiment, data, network, protocol, row, metric, split and attack.

    Runs are paired by original and seeds, within them values by sample, as in tables.

    Raises:
        RubError: the two have no cell in common; the line says in what they differ.
    """
    first, second = _cells(one.records), _cells(other.records)
    shared = [cell for cell in first if cell in second]
    if not shared:
        raise RubError(f"no cell in common: {_apart(first, second)}")
    found = [_difference(cell, first[cell], second[cell]) for cell in shared]
    tested = [place for place, cell in enumerate(found) if cell.difference is not None]
    ps = statistics.holm([cell.difference.p for cell in found if cell.difference is not None])
    corrected = dict(zip(tested, ps, strict=True))
    cells = (replace(cell, p=corrected.get(place, 1.0)) for place, cell in enumerate(found))
    only = (len(first) - len(shared), len(second) - len(shared))
    return Comparison(tuple(cells), tuple(_settings(one.suite, other.suite)), only)


def apart(suites: Sequence[Mapping[str, Any]]) -> list[str]:
    """What tells each of several runs from the others that look the same: its settings that are not those of all.

    Example:
        >>> asked = [{"experiments": [{"task": "t", "training": {"epochs": 2, "batch_size": n}}]} for n in (64, 512)]
        >>> apart(asked), apart(asked[:1]), apart([asked[0], asked[0]])
        (['training.batch_size 64', 'training.batch_size 512'], [''], ['run 1', 'run 2'])
    """
    if len(suites) < 2:
        return ["" for _ in suites]
    told = [{path: str(value) for path, value in _flat(suite) if path not in _WORDS} for suite in suites]
    paths = [path for path in dict.fromkeys(chain(*told)) if len({one.get(path) for one in told}) > 1]
    named = [[(path.partition(".")[2] or path, one.get(path, "left out")) for path in paths] for one in told]
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    said = [
        ", ".join(f"{printable(name)[:60]} {printable(value)[:40]}" for name, value in own[:SHOWN]) for own in named
    ]
    return [f"{words}{more}" if paths else f"run {place}" for place, words in enumerate(said, 1)]


def table(cells: Sequence[CellDifference]) -> "Table":
    """Cells as a table for the terminal."""
    from rich.table import Table

    made = Table("row", "cell", "first", "second", "difference", "95 %", "p (Holm)", box=None)
    for cell in cells:
        metric, split, attack, budget, _ = cell.place
        where = f"{metric}, {split}" + ("" if attack == "none" else f", {attack} {budget}")
        tested = ["-", "-", "-"]
        if (found := cell.difference) is not None:
            tested = [f"{found.mean:+.4g}", f"{found.low:+.3g} to {found.high:+.3g}", f"{cell.p:.2g}"]
        values = [f"{value:.4g}" for value in (cell.one, cell.other)]
        made.add_row(escape(printable(cell.method)), escape(printable(where)), *values, *tested)
    return made


def _cells(records: Sequence[Record]) -> dict[Cell, list[Record]]:
    known = {(task.name, metric.name) for task in TASKS.entries() for metric in metrics_of(task.name)}
    found: dict[Cell, list[Record]] = defaultdict(list)
    for record in records:
        if record.value is not None and record.method != DOSES and (record.task, record.metric) in known:
            group = Group.of(record)._replace(suite="")
            found[group, record.method, place_of(record)].append(record)
    return dict(found)


def _difference(cell: Cell, one: Sequence[Record], other: Sequence[Record]) -> CellDifference:
    means = [interval.mean for side in (one, other) if (interval := estimate(side)) is not None]
    try:
        found = statistics.difference(
            [run_of(record) for record in other], [run_of(record) for record in one], share=is_share([*one, *other])
        )
    except ValueError:  # they share no run
        found = None
    return CellDifference(*cell, means[0], means[1], found)


def _settings(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    first, second = dict(_flat(one)), dict(_flat(other))
    for path in dict.fromkeys((*first, *second)):
        if first.get(path) != second.get(path) and path not in _WORDS:
            yield path, first.get(path), second.get(path)


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{path}.{name}" if path else str(name))
    elif path == "experiments" and isinstance(value, list):
        for item in value:
            where = "/".join(filter(None, (str(item.get("task", "")), str(item.get("name", "")))))
            yield from _flat({name: inner for name, inner in item.items() if name not in ("task", "name")}, where)
    else:
        yield path, value


def _apart(first: Mapping[Cell, Any], second: Mapping[Cell, Any]) -> str:
    for name in Group._fields:
        ones, others = ({getattr(group, name) for group, *_ in side} for side in (first, second))
        if not ones & others:
            said = [", ".join(sorted(map(printable, side)))[:120] or "nothing" for side in (ones, others)]
            return f"{name} {said[0]} in the first, {said[1]} in the second"
    return "no row and metric is in both"
