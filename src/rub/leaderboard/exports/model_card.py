"""One method's results as a section of a model card: the paper's tables with the controls beside the method."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rub.errors import RubError
from rub.leaderboard.exports.scores import check_measured
from rub.reports.folders import mains_of
from rub.reports.grouping import controls_of, grouped
from rub.reports.render import to_markdown
from rub.reports.table import Table, picked
from rub.reports.task_report import reports_of
from rub.reports.text import printable
from rub.store.records import Record


def model_card(records: Sequence[Record], *, method: str, suite: Mapping[str, Any] | None = None) -> str:
    """A Markdown section for a model card: the method beside the controls in the shape of the paper's tables.

    Each task has a heading, what its controls are, and the first tables of each group that has the method; texts of
    the records are escaped.

    Args:
        records: of one or more runs; those of other methods and of unknown tasks are left out.
        method: as records name it.
        suite: as plain data; it says the main attack of a protocol of one's own.

    Raises:
        RubError: no measured record of the method, or none of a task that is known here.

    Example:
        >>> model_card([], method="ft")
        Traceback (most recent call last):
        rub.errors.RubError: unknown method 'ft': known: none
    """
    check_measured(records, method)
    parts = []
    mains = mains_of(suite or {})
    for task, reporting in reports_of(record.task for record in records if record.method == method).items():
        own = [record for record in records if record.task == task and record.method in (method, *controls_of(task))]
        present = {record.method for record in own}
        shown = (f"- `{name}` (control): {text}\n" for name, text in controls_of(task).items() if name in present)
        parts += [f"## Robust Unlearning Benchmark: {reporting.title}\n", "".join(shown)]
        for found in grouped(own, task).values():
            if any(record.method == method for record in found):
                tables = reporting.tables_of(found, {}, mains)
                parts += [to_markdown(_numbers(table)) for table in tables if table.name.startswith(reporting.prefix)]
    if not parts:
        raise RubError(f"no table for method '{printable(method)}': the task of its records is not known here")
    return "\n".join(part for part in parts if part)


def _numbers(table: Table) -> Table:
    """Table without its columns of text: one method is tied with none."""
    kept = [k for k, column in enumerate(table.columns) if column.place is not None]
    return replace(picked(table, kept), notes=tuple(note for note in table.notes if not note.startswith("tie: ")))
