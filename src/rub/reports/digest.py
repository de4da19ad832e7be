"""A run in a dozen lines: what was measured, of which method the least is left, and what the controls say."""

from collections.abc import Iterator, Sequence

from rub.metrics.dose import DOSE
from rub.reports.board import Board, BoardRow, boards
from rub.reports.folders import mains_of
from rub.reports.grouping import grouped, main_attack
from rub.reports.result_folder import Result
from rub.reports.table import Table
from rub.reports.task_report import report_of

MOST = 9  # lines about groups; the rest is on the page
_ALARMS = ("CONTROL FAILED", "DESTROYED", "OVER-FORGOTTEN")  # how notes of a table begin that nobody may miss


def digest(result: Result) -> list[str]:
    """Lines of a run, at most `MOST` and one that says how many groups have no line."""
    parts = [
        (group, own, tables)
        for page, records, tables in result.pages
        for group, own in grouped(records, page.task).items()
    ]
    lines: list[str] = []
    for number, (group, records, tables) in enumerate(parts):
        main = main_attack(records, mains_of(result.suite))
        [board] = boards([("page", group, records, main)])
        own = list(_lines(board, main, tables)) if board.rows else []
        if len(lines) + len(own) > MOST:
            return [*lines, f"and {len(parts) - number} more on the page"]
        lines += own
    return lines


def _lines(board: Board, main: str, tables: Sequence[Table]) -> Iterator[str]:
    reporting, group = report_of(board.task), board.rows[0].group
    ranked = [row for row in board.rows if not row.control and not row.destroyed]
    models = max((row.seeds for row in ranked), default=0)
    where = ", ".join(filter(None, (board.dataset, group.experiment, group.model, board.protocol)))
    samples = max((row.n for row in board.rows), default=0)
    made = ", ".join(
        f"{count} {what}{'s' * (count != 1)}" for count, what in ((len(ranked), "method"), (models, "model"))
    )
    yield f"{reporting.title}, {where}: {made} each, N = {samples}"
    wanted = (reporting.robustness.metric, reporting.robustness.split, main)
    attacked = [k for k, one in enumerate(board.columns) if one.place is not None and one.place[:3] == wanted]
    dosed = [k for k, one in enumerate(board.columns) if one.place is not None and one.place.metric.endswith(DOSE)]
    if board.scenario and ranked:
        yield f"  closest to retraining: {ranked[0].method}"
    elif told := [_value(row, k) for k in (dosed or attacked)[-1:] for row in ranked if row.cells[k].value is not None]:
        what = "dose left, by the input search" if dosed else _after(board, attacked[-1])
        yield f"  {what}: {', '.join(told[:3])}{f'; most: {told[-1]}' if len(told) > 3 else ''}"
    controls = [row for row in board.rows if row.control and not row.method.startswith("dose-")]
    if said := [_value(row, k) for k in attacked[-1:] for row in controls if row.cells[k].value is not None]:
        yield f"  {_after(board, attacked[-1])}: {', '.join(f'[{one}]' for one in said)}"
    alarms = (note for table in tables for note in table.notes if note.startswith(_ALARMS))
    yield from (f"  {note}" for note in list(dict.fromkeys(alarms))[:2])


def _value(row: BoardRow, number: int) -> str:
    return f"{row.method} {row.cells[number].parts[0]}"


def _after(board: Board, number: int) -> str:
    column = board.columns[number]
    return f"{column.name} after {column.place.attack} at {column.place.budget}" if column.place else column.name
