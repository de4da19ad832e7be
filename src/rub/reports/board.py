"""The leaderboard: a board for each task, data set, protocol and scenario, a row per method of each group."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from rub.metrics.dose import DOSE, DOSES
from rub.registry import TASKS
from rub.reports.doses import dose_cell, is_flat
from rub.reports.grouping import Group, Place, board_of, extracted, is_control, level
from rub.reports.table import Cell, Column
from rub.reports.tables import Source
from rub.reports.task_report import report_of
from rub.reports.text import printable
from rub.reports.wrecks import wrecks
from rub.store.records import Record


@dataclass(frozen=True)
class BoardRow:
    """One row of a board: the file name of its page, and `n` samples behind its numbers after the attack.

    `destroyed` says what is left of a wreck, which has no rank; "" of any other row. `reattacked` says when the search
    ran again, by whom and on how many samples, or why it did not; "" where ``rub submit`` was not asked. `apart` tells
    its run from others of the same names.
    """

    page: str
    group: Group
    method: str
    control: bool
    cells: tuple[Cell, ...]
    seeds: int
    n: int
    destroyed: str = ""
    reattacked: str = ""
    apart: str = ""


@dataclass(frozen=True)
class Board:
    """Rows that may be compared, of each experiment its controls, then its methods, then wrecks.

    The method of which the least is left is first: by the dose-equivalent of what the input search finds, where dose
    models were trained; else, and among equals, by what comes back after the largest search. Where single samples are
    forgotten, the one that is closest to retraining.
    """

    task: str
    dataset: str
    protocol: str
    scenario: str
    columns: tuple[Column, ...]
    rows: tuple[BoardRow, ...]


Part = tuple[str, Group, Sequence[Record], str]
"""A page's file name, one of its groups, the records of that group, and their main attack."""


def boards(parts: Iterable[Part]) -> list[Board]:
    """Boards of all parts, in the order of tasks, data sets and protocols."""
    gathered: dict[tuple[str, str, str, str], list[Part]] = {}
    for page, group, records, main in parts:
        key = (group.task, group.dataset, group.protocol, group.scenario)
        gathered.setdefault(key, []).append((page, group, extracted(records), main))
    order = [entry.name for entry in TASKS.entries()]
    return [_board(*key, gathered[key]) for key in sorted(gathered, key=lambda key: (order.index(key[0]), *key))]


def _board(task: str, dataset: str, protocol: str, scenario: str, parts: Sequence[Part]) -> Board:
    reporting = report_of(task)
    columns = reporting.leaders([record for _, _, records, _ in parts for record in records], parts[0][3])
    wanted = (reporting.robustness.metric, reporting.robustness.split)
    left = Place(reporting.left + DOSE, reporting.robustness.split, "none", "none")
    told = [board_of(records) for _, _, records, _ in parts]
    if not scenario and not any(is_flat(one, left._replace(metric=reporting.left)) for one in told):
        columns = [Column("dose left", "by input", left, "down", unit="%"), *columns]
    rows = [row for part in parts for row in _rows(part, columns, wanted)]
    used = [k for k in range(len(columns)) if any(row.cells[k].anchor for row in rows)]
    columns = [columns[k] for k in used]
    rows = [replace(row, cells=tuple(row.cells[k] for k in used)) for row in rows]
    places = [(k, column.place) for k, column in enumerate(columns) if column.place is not None]
    if scenario:
        ranked = [k for k, place in places if place.metric == reporting.closest]
    else:
        ranked = [k for k, place in places if place[:2] == wanted and math.isfinite(level(place.budget))]

    dosed = [k for k, place in places if place == left]

    def rank(row: BoardRow) -> tuple[str, str, str, bool, bool, tuple[float, ...]]:
        place = (row.group.model, row.page, row.group.experiment, not row.control)
        values = [row.cells[k].value for k in (*dosed, *ranked[-1:])]
        order = () if row.control else tuple(math.inf if value is None else value for value in values)
        return *place, bool(row.destroyed) and not row.control, order

    return Board(task, dataset, protocol, scenario, tuple(columns), tuple(sorted(rows, key=rank)))


def _rows(part: Part, columns: Sequence[Column], wanted: tuple[str, str]) -> Iterator[BoardRow]:
    """Rows of one group, with an empty cell for each column that it has no records for.

    N is that of the attacked metric and split which are `wanted`: controls may have more images.
    """
    page, group, given, main = part
    records = [record for record in given if record.method != DOSES]
    table = Source(group, records, lambda shown, behind: (), "", "").table("board", "", columns)
    place = {column.place: k for k, column in enumerate(table.columns)}
    board = board_of(records)
    seeds: dict[str, set[int]] = {}
    counts: dict[str, int] = {}
    for record in records:
        if record.status == "ok":
            name = printable(record.method)
            seeds.setdefault(name, set()).add(record.unlearn_seed or 0)
            if record.attack == main and (record.metric, record.split) == wanted:
                counts[name] = max(counts.get(name, 0), record.n)
    methods = {printable(record.method): record.method for record in records}
    wrecked = {printable(name): said for name, said in wrecks(records, report_of(group.task).utility).items()}
    for row in table.rows:
        cells = tuple(
            dose_cell(group, board, methods[row.label], column.place)
            if column.place is not None and column.place.metric.endswith(DOSE)
            else row.cells[place[column.place]]
            if column.place in place
            else Cell(("-",))
            for column in columns
        )
        own = (len(seeds.get(row.label, ())), counts.get(row.label, 0), wrecked.get(row.label, ""))
        yield BoardRow(page, group, row.label, is_control(row.label, group.task), cells, *own)
