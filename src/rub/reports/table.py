"""A table as a value: cells with numbers, columns with headers, and the split that makes it fit 80 columns."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

from rub.reports.grouping import Place

WIDTH = 80
LABEL_WIDTH = 15
_ARROWS = {"up": "↑", "down": "↓", "reference": "≈"}


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        parts: what is printed: the value with its marks, then its interval and the paper's number where known.
        value: the mean in the column's unit; None when there is none.
        low: lower end of the 95 % interval, None where there is none.
        high: upper end.
        over: what the interval is over, as `rub.metrics.statistics.Interval` says it.
        paper: the paper's own number in the column's unit.
        note: what a mark means in words, or why there is no value.
        anchor: names the records behind it on the page, see `rub.reports.grouping.anchor`; "" where there are none.
    """

    parts: tuple[str, ...]
    value: float | None = None
    low: float | None = None
    high: float | None = None
    over: tuple[str, ...] = ()
    paper: float | None = None
    note: str = ""
    anchor: str = ""

    @property
    def text(self) -> str:
        """Parts on one line."""
        return " ".join(self.parts)


@dataclass(frozen=True)
class Column:
    """One column: its header in two lines, and which records fill it.

    Attributes:
        group: upper header line, shared by neighbours: a budget, an attack or a family of metrics.
        name: lower header line.
        place: metric, split, attack, budget and extractor of its records; None for a column of text.
        direction: ``up``, ``down``, ``reference``, or "" where no direction is better (controls).
        percent: whether fractions are shown in percent.
        decimals: digits after the point.
        unit: what the raw numbers count where they are no percentages.
    """

    group: str
    name: str
    place: Place | None = None
    direction: str = ""
    percent: bool = False
    decimals: int = 2
    unit: str = "fraction"

    @property
    def title(self) -> str:
        """Lower header line with the arrow of its direction."""
        return f"{self.name} {_ARROWS[self.direction]}" if self.direction else self.name


@dataclass(frozen=True)
class Row:
    """One row; `control` marks rows that are no unlearning method."""

    label: str
    control: bool
    cells: tuple[Cell, ...]

    @property
    def title(self) -> str:
        """Label as it is printed: controls stand in brackets."""
        return f"[{self.label}]" if self.control else self.label


@dataclass(frozen=True)
class Table:
    """A table; `name` is fit for a file name, `head` says what its rows are."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    head: str = "method"

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Characters each column needs: parts of a cell below each other, upper headers over their run."""
        found = [
            max(len(text) for text in (column.title, *(p for row in self.rows for p in row.cells[k].parts)))
            for k, column in enumerate(self.columns)
        ]
        for name, first, length in column_groups(self.columns):
            found[first] += max(len(name) - sum(found[first : first + length]) - (length - 1), 0)
        return tuple(found)

    @property
    def width(self) -> int:
        """Characters of a line."""
        return self.label_width + sum(1 + width for width in self.widths)

    @cached_property
    def label_width(self) -> int:
        """Characters of the label column; longer names are folded."""
        longest = max((len(row.title) for row in self.rows), default=0)
        return min(LABEL_WIDTH, max(longest, len(self.head)))


def column_groups(columns: Sequence[Column]) -> Iterator[tuple[str, int, int]]:
    """(name, first position, length) of each run of columns under one upper header."""
    first = 0
    for name, members in groupby(columns, key=lambda column: column.group):
        length = len(list(members))
        yield name, first, length
        first += length


def fitting(table: Table) -> list[Table]:
    """Table, or several that each fit `WIDTH` characters; columns under one header stay together where they fit."""
    chunks: list[list[int]] = [[]]
    for unit in _units(table):
        if chunks[-1] and picked(table, [*chunks[-1], *unit]).width > WIDTH:
            chunks.append([])
        chunks[-1] += unit
    if len(chunks) == 1:
        return [table]
    return [
        replace(
            picked(table, chunk),
            name=table.name + (f"-{part}" if part > 1 else ""),
            title=table.title + (f", continued ({part})" if part > 1 else ""),
        )
        for part, chunk in enumerate(chunks, start=1)
    ]


def _units(table: Table) -> Iterator[list[int]]:
    for name, first, length in column_groups(table.columns):
        run = list(range(first, first + length))
        if name and picked(table, run).width <= WIDTH:
            yield run
        else:
            yield from ([position] for position in run)


def picked(table: Table, positions: Sequence[int]) -> Table:
    """Table with these of its columns."""
    return replace(
        table,
        columns=tuple(table.columns[k] for k in positions),
        rows=tuple(replace(row, cells=tuple(row.cells[k] for k in positions)) for row in table.rows),
    )


def beside(pieces: Sequence[Table], labels: Iterable[str], name: str, title: str, notes: Iterable[str]) -> Table:
    """Tables side by side as one: a row for each of the labels, where what a piece lacks shows as ``-``."""
    rows = []
    for label in labels:
        blanks = (Row(label, False, (Cell(("-",)),) * len(piece.columns)) for piece in pieces)
        found = [
            next((row for row in piece.rows if row.label == label), blank)
            for piece, blank in zip(pieces, blanks, strict=True)
        ]
        rows.append(Row(label, any(row.control for row in found), tuple(cell for row in found for cell in row.cells)))
    columns = tuple(column for piece in pieces for column in piece.columns)
    return Table(name, title, columns, tuple(rows), tuple(notes))
