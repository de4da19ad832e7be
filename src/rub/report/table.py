"""A table as a value: cells with numbers, columns with headers, and the split that makes it fit 80 columns."""

from dataclasses import dataclass, replace
from functools import cached_property

from rub.report.grouping import Place

WIDTH = 80
LABEL_WIDTH = 15
_ARROWS = {"up": "↑", "down": "↓", "reference": "≈"}


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        parts: what is printed: the value with its marks, then ``±`` half-width and the paper's number where known.
        value: the mean in the column's unit; None when there is none.
        low: lower end of the 95 % interval over unlearning seeds; None with fewer than two.
        high: upper end.
        paper: the paper's own number in the column's unit.
        note: what a mark means in words, or why there is no value.
    """

    parts: tuple[str, ...]
    value: float | None = None
    low: float | None = None
    high: float | None = None
    paper: float | None = None
    note: str = ""

    @property
    def text(self) -> str:
        """Return the parts on one line."""
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
        """Return the lower header line with the arrow of its direction."""
        return f"{self.name} {_ARROWS[self.direction]}" if self.direction else self.name


@dataclass(frozen=True)
class Row:
    """One row; `control` marks rows that are no unlearning method."""

    label: str
    control: bool
    cells: tuple[Cell, ...]

    @property
    def title(self) -> str:
        """Return the label as it is printed: controls stand in brackets."""
        return f"[{self.label}]" if self.control else self.label


@dataclass(frozen=True)
class Table:
    """A table; `name` is fit for a file name."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Return the characters each column needs when the parts of a cell stand below each other."""
        return tuple(
            max(
                len(text)
                for text in (column.group, column.title, *(p for row in self.rows for p in row.cells[k].parts))
            )
            for k, column in enumerate(self.columns)
        )

    @cached_property
    def label_width(self) -> int:
        """Return the characters of the label column; longer names are folded."""
        longest = max((len(row.title) for row in self.rows), default=0)
        return min(LABEL_WIDTH, max(longest, len("method")))


def fitting(table: Table) -> list[Table]:
    """Return the table, or its columns dealt out to several tables that each fit `WIDTH` characters."""
    chunks: list[list[int]] = [[]]
    used = table.label_width
    for index, width in enumerate(table.widths):
        if chunks[-1] and used + 1 + width > WIDTH:
            chunks.append([])
            used = table.label_width
        chunks[-1].append(index)
        used += 1 + width
    if len(chunks) == 1:
        return [table]
    return [
        replace(
            table,
            name=table.name + (f"-{part}" if part > 1 else ""),
            title=table.title + (f", continued ({part})" if part > 1 else ""),
            columns=tuple(table.columns[k] for k in chunk),
            rows=tuple(replace(row, cells=tuple(row.cells[k] for k in chunk)) for row in table.rows),
        )
        for part, chunk in enumerate(chunks, start=1)
    ]
