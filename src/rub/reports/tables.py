"""What the tables of every task share: cells from records, notes on counts, seeds and failures, the paper's numbers.

Every table fits a terminal of 80 columns; one that would not is continued in a second table (`rub.reports.table`).
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

from rub.errors import unknown
from rub.metrics.base import Metric, metrics_of
from rub.metrics.statistics import MIA_SEEDS, ORIGINALS, OWN, SAMPLES, SEEDS, Interval
from rub.reports.grouping import (
    Board,
    Group,
    Place,
    anchor,
    board_of,
    budgets_of,
    estimate,
    is_control,
    is_share,
    place_of,
    row_order,
)
from rub.reports.table import Cell, Column, Row, Table, fitting
from rub.reports.text import printable, slug
from rub.store.records import Record

_NARROW = 2.0  # points
_UNDIVIDED = ("table2", "table3")  # of the paper: one data set each, so that the name alone is the key


def paper_numbers(key: str) -> Mapping[str, Any] | None:
    """The paper's own numbers for a key such as ``table1/cifar10`` or ``table2``; None for the empty key.

    Raises:
        RubError: a key that the paper has no table for.

    Example:
        >>> paper_numbers("table1/cifar10")["ft"]["8/255"]["ua"]
        99.96
        >>> paper_numbers("table2")["i2i"]["fid"]["unbounded"]["forget"]
        110.29
    """
    if not key:
        return None
    tables = json.loads(files("rub.reports").joinpath("paper_tables.json").read_text(encoding="utf-8"))
    known = {name: tables[name] for name in _UNDIVIDED}
    known |= {
        f"{table}/{part}": rows for table, parts in tables.items() if table not in known for part, rows in parts.items()
    }
    if key not in known:
        raise unknown("table of the paper", key, known)
    numbers: Mapping[str, Any] = known[key]
    return numbers


@dataclass(frozen=True)
class Columns:
    """Makes the columns of a task's tables: titles, units, decimals and directions are those of its metrics.

    Attributes:
        metrics: of the task.
        main: the main attack.
        direction: metric and split -> the direction; the metric's own when left out.
    """

    metrics: Sequence[Metric]
    main: str
    direction: Callable[[Metric, str], str] = lambda metric, split: metric.direction

    def __call__(
        self,
        group: str,
        metric: str,
        budget: str = "none",
        split: str = "",
        *,
        name: str = "",
        attack: str = "",
        extractor: str = "",
        decimals: int | None = None,
        controls: bool = False,
    ) -> Column:
        """Column of a metric under an upper header: what is left out is the metric's own, and the main attack.

        `extractor` looked at the images, where that tells numbers apart; no direction is better for `controls`.
        """
        said = next(item for item in self.metrics if item.name == metric)
        searched = "none" if budget == "none" else attack or self.main
        place = Place(metric, split or said.split, searched, budget, extractor)
        digits = said.decimals if decimals is None else decimals
        direction = "" if controls else self.direction(said, place.split)
        return Column(printable(group), name or said.title, place, direction, said.percent, digits, said.stored_unit)


@dataclass(frozen=True)
class Source:
    """What the tables of one group are made from, and what its task says below them.

    Attributes:
        group: what the records share.
        records: all records of the group.
        explain: columns and the records behind them -> notes on their headers.
        bound: what it means for a value that its search was still improving.
        first: the table that lists the reasons of failures.
        main: the main attack of the group's protocol.
    """

    group: Group
    records: Sequence[Record]
    explain: Callable[[Sequence[Column], Sequence[Record]], Iterable[str]]
    bound: str
    first: str
    main: str = ""

    @property
    def budgets(self) -> list[str]:
        """Budgets of the main attack, the smallest first."""
        return budgets_of(self.records, self.main)

    @property
    def others(self) -> list[str]:
        """Attacks beside the main one."""
        return list(dict.fromkeys(r.attack for r in self.records if r.attack not in ("none", self.main)))

    def table(
        self,
        kind: str,
        title: str,
        columns: Sequence[Column],
        published: Callable[[str, Place], float | None] = lambda method, place: None,
    ) -> Table:
        """Table with every column that has records, and the notes that its marks need.

        Args:
            kind: first part of the name.
            title: is followed by what the group is.
            columns: those without records are left out.
            published: method and place -> the paper's own number, where it has one.
        """
        board = board_of(self.records)
        places = {place for _, place in board}
        kept = tuple(column for column in columns if column.place in places)
        rows = tuple(
            Row(
                printable(method),
                is_control(method, self.group.task),
                tuple(self._cell(board, method, column, published) for column in kept),
            )
            for method in row_order((record.method for record in self.records), self.group.task)
        )
        name = slug(f"{kind}-{self.group.experiment or self.group.dataset}")
        used = {column.place for column in kept}
        behind = [record for (_, place), found in board.items() if place in used for record in found]
        notes = (
            directions(kept), _counts(kept, behind), *self.explain(kept, behind),
            *marks(behind, self.bound, self.first),
        )  # fmt: skip
        return Table(name, f"{title} ({label(self.group)})", kept, rows, notes)

    def _cell(self, board: Board, method: str, column: Column, published: Callable[[str, Place], float | None]) -> Cell:
        if column.place is None:
            return Cell(("-",))
        cell = _cell(board.get((method, column.place), ()), column, published(method, column.place))
        return cell if cell.parts[0] == "-" else replace(cell, anchor=anchor(self.group, method, column.place))


def _cell(records: Sequence[Record], column: Column, paper: float | None) -> Cell:
    tail = () if paper is None else (f"({paper:.{column.decimals}f})",)
    reasons = sorted({printable(record.reason) for record in records if record.status == "failed"})
    interval = estimate(records, 100 if column.percent else 1)
    if interval is None:
        text = "failed" if reasons else "n/a" if records else "-"
        return Cell((text, *tail), paper=paper, note="; ".join(reasons))
    moving = any(record.converged is False for record in records)
    marks = "!" * moving + "*" * bool(reasons)
    words = [*(["the attack was still improving"] if moving else []), *(f"a seed failed: {why}" for why in reasons)]
    value = f"{interval.mean:z.{column.decimals}f}{marks}"
    if math.isnan(interval.low):
        return Cell((value, *tail), interval.mean, paper=paper, note="; ".join(words))
    width = _ends(interval, column) if is_share(records) else f"±{interval.high - interval.mean:.{column.decimals}f}"
    ends = interval.low, interval.high, interval.over
    return Cell((value, width, *tail), interval.mean, *ends, paper, "; ".join(words))


def _ends(interval: Interval, column: Column) -> str:
    """Both ends of a share's interval, whose halves differ: whole percent unless it is narrow, fractions as .25."""
    digits = int(interval.high - interval.low < _NARROW) if column.percent else max(column.decimals - 1, 0)
    ends = (f"{end:z.{digits}f}" for end in (interval.low, interval.high))
    return "-".join(ends if column.percent else (end.removeprefix("0") or "0" for end in ends))


def further(source: Source, shipped: Iterable[str]) -> list[Table]:
    """Table of the metrics that are not `shipped`, without an attack and after each; none where there are none."""
    known = {metric.name: metric for metric in metrics_of(source.group.task)}
    own = set(shipped)
    places = {place_of(record): record for record in source.records if record.metric not in own}
    columns = []
    for place, record in places.items():
        said = known.get(place.metric)
        group = printable("no attack" if place.attack == "none" else f"{place.attack} {place.budget}")
        if said is None:  # of a plug-in that is not at hand, or of an older RUB
            columns.append(Column(group, printable(place.metric), place, record.direction, False, 4, ""))
        else:
            shown = said.percent, said.decimals, said.stored_unit
            columns.append(Column(group, printable(said.title), place, record.direction, *shown))
    columns.sort(key=lambda column: column.group != "no attack")
    return fitting(source.table("metrics", "Further metrics", columns)) if columns else []


def directions(columns: Sequence[Column]) -> str:
    """What the arrows of a table's columns mean."""
    arrows = {"up": "↑ higher is better", "down": "↓ lower is better", "reference": "≈ closest to retrain is best"}
    used = {column.direction for column in columns}
    return "; ".join(text for direction, text in arrows.items() if direction in used) + "; [ ] controls"


def marks(records: Sequence[Record], bound: str, first: str) -> Iterator[str]:
    """What the marks of a table mean that these records give it; `bound` and `first` are those of `Source`."""
    if any(record.converged is False for record in records):
        yield f"! the attack was still improving at its last step: {bound}"
    if any(record.status == "failed" for record in records):
        yield f"* mean of the seeds that did not fail; reasons of failures are listed below {first}"


def _counts(columns: Sequence[Column], records: Sequence[Record]) -> str:
    found: dict[str, str] = {}
    for column in columns:
        numbers = {record.n for record in records if record.n and column.place == place_of(record)}
        found[" ".join(filter(None, (column.group, column.name)))] = "/".join(map(str, sorted(numbers))) or "0"
    texts: dict[str, list[str]] = {}
    for header, text in found.items():
        texts.setdefault(text, []).append(header)
    return "N: " + "; ".join(f"{number} for {', '.join(headers)}" for number, headers in texts.items())


def failures(records: Iterable[Record]) -> Iterable[str]:
    """One line for each reason among failed records, with the rows it concerns; reasons name stage and seed."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        if record.status == "failed":
            found.setdefault(record.reason, {})[record.method] = None
    for reason, methods in found.items():
        yield f"failed cells of {', '.join(map(printable, methods))}: {printable(reason)}"


def seeds_note(records: Sequence[Record], table: Table, given: str, samples: str = "images") -> str:
    """How many models stand behind the means of a group, what the intervals of a table are over, and what is given.

    Args:
        records: of one group.
        table: a table of that group.
        given: what every model shares beside the original, such as ``one choice of images``.
        samples: what the samples are.
    """
    own = [record for record in records if not is_control(record.method, record.task)]
    seeds = {record.unlearn_seed for record in own} - {None}
    originals = len({record.original for record in own})
    mia = {record.mia_seed for record in records if record.mia_seed is not None}
    count = max(len(seeds) // max(originals, 1), 1)
    models = [f"{originals} originals"] * (originals > 1) + [f"{count} unlearning seed{'s' * (count > 1)}"]
    base = f"means over {' x '.join(models)}" + (f" (MIA: x {len(mia)})" if mia else "")
    overs: dict[tuple[str, ...], list[str]] = {}
    for k, column in enumerate(table.columns):
        widest = max((row.cells[k].over for row in table.rows), key=len)
        if widest:
            overs.setdefault(widest, []).append(" ".join(filter(None, (column.group, column.name))))
    if not overs:
        return f"{base}; one model gives no interval"
    told = [
        f"over {_over(over, samples)}" + f" for {', '.join(names)}" * (len(overs) > 1) for over, names in overs.items()
    ]
    shown = [{*cell.over} for row in table.rows for cell in row.cells if cell.over]
    several = [bool(over & {SEEDS, ORIGINALS}) for over in shown]
    single = "; of one model without seeds" if any(several) and not all(several) else ""
    stays = given if any(ORIGINALS in over for over in overs) else f"one original, {given}"
    return f"{base}; 95 % intervals (a-b, or ± half) {'; '.join(told)}{single}; given {stays}"


def _over(over: Sequence[str], samples: str) -> str:
    words = {SAMPLES: samples, OWN: f"{samples} (each model's own interval)", MIA_SEEDS: "MIA seeds"}
    found = " x ".join(words.get(name, name) for name in over)
    return f"{found} only" if len(over) == 1 else found


def label(group: Group) -> str:
    """What a group is, for the title of a table."""
    parts = (group.suite, group.experiment, group.dataset, group.model, group.protocol, group.scenario)
    return ", ".join(printable(part) for part in dict.fromkeys(parts) if part not in ("", "none"))
