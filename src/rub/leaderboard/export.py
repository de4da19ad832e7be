"""One method's results for its model repository on the Hugging Face Hub: an ``.eval_results`` file and a model card.

The file follows https://huggingface.co/docs/hub/eval-results (huggingface_hub 1.4 or later writes it). An entry is one
number of one leaderboard, named by data set and task id; the format has no field for a direction, N, an interval or the
controls' values, so they stand in the notes.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rub.config.documents import write_yaml
from rub.errors import RubError, unknown
from rub.metrics.base import metrics_of
from rub.metrics.statistics import OWN, SAMPLES, Interval
from rub.registry import TASKS
from rub.reports.folders import mains_of
from rub.reports.grouping import Group, board_of, controls_of, estimate, extracted, grouped
from rub.reports.render import to_markdown
from rub.reports.table import Table, picked
from rub.reports.tables import label
from rub.reports.task_report import reports_of
from rub.reports.text import printable, slug
from rub.store.records import Record

if TYPE_CHECKING:
    from huggingface_hub import EvalResultEntry

BENCHMARK = "rub-bench/{task}"
"""Id of the data set on the Hub that holds a task's leaderboards; it does not exist yet."""
_WEB = re.compile(r"https?://[^\s/]+(/\S*)?")
_BETTER = {"up": "higher is better", "down": "lower is better", "reference": "closest to the retrained model is best"}


def is_web_address(text: str) -> bool:
    """Whether this is an address of the web, of which nothing is fetched.

    Example:
        >>> is_web_address("https://example.org/models"), is_web_address("javascript:alert(1)")
        (True, False)
    """
    return bool(_WEB.fullmatch(text)) and text.isprintable()


def eval_results(records: Sequence[Record], *, method: str, source: str = "") -> str:
    """One method's results as text for ``.eval_results/rub.yaml`` of its model repository.

    Values are means over seeds in the metric's own unit; failed cells are left out.

    Args:
        records: of one run; other methods' are left out, except that the notes name the controls' values.
        method: as records name it.
        source: address of a page or folder with the records, or "".

    Returns:
        A YAML list with one entry for each measured cell, in the order of the records.

    Raises:
        RubError: no measured record of the method, two values for one task id, or a source that is no web address.

    Example:
        >>> fields = {"task": "classification", "suite": "s", "experiment": "", "protocol": "rub-paper-1", "key": "k"}
        >>> fields |= {"dataset": "digits", "model": "resnet10", "attack": "none", "budget": "none", "split": "test"}
        >>> row = {"method": "ft", "metric": "ta", "value": 0.9, "n": 100, "unlearn_seed": 0, "mia_seed": None}
        >>> text = eval_results([Record(**fields, **row, direction="up")], method="ft")
        >>> print("".join(text.splitlines(keepends=True)[:4]), end="")
        - dataset:
            id: rub-bench/classification
            task_id: ta/test/none/none/rub-paper-1/digits
          value: 0.9
    """
    from huggingface_hub import eval_result_entries_to_yaml

    _check_measured(records, method)
    if source and not is_web_address(source):
        raise RubError(f"source '{printable(source)}': should be a web address such as https://example.org/results")
    found: dict[tuple[str, str], tuple[EvalResultEntry, Group]] = {}
    for task in dict.fromkeys(record.task for record in records):
        for group, own in grouped(records, task).items():
            for entry in _entries(group, own, method, source):
                known, first = found.setdefault((entry.dataset_id, entry.task_id), (entry, group))
                if known is not entry:
                    both = f"{label(first)} and {label(group)}"
                    raise RubError(f"two values of '{printable(method)}' for {entry.task_id}: {both}; give one of them")
    data = eval_result_entries_to_yaml([entry for entry, _ in found.values()])
    return write_yaml(data, allow_unicode=True, width=120)


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
    _check_measured(records, method)
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


def _check_measured(records: Sequence[Record], method: str) -> None:
    measured = sorted({printable(record.method) for record in records if record.value is not None})
    of_method = [record.value for record in records if record.method == method]
    if not of_method:
        raise unknown("method", printable(method), measured)
    if all(value is None for value in of_method):
        raise RubError(f"every cell of method '{printable(method)}' failed; measured: {', '.join(measured) or 'none'}")


def _entries(group: Group, records: Sequence[Record], method: str, source: str) -> "Iterator[EvalResultEntry]":
    from huggingface_hub import EvalResultEntry

    board = board_of(extracted(records))
    for (name, place), found in board.items():
        interval = estimate(found) if name == method else None
        if interval is not None:
            others = (other for other in controls_of(group.task) if other != method)
            beside = {other: estimate(board.get((other, place), ())) for other in others}
            yield EvalResultEntry(
                dataset_id=BENCHMARK.format(task=slug(group.task)),
                task_id=_task_id(found[0]),
                value=interval.mean,
                date=_date(found),
                source_url=source or None,
                source_name="RUB records" if source else None,
                notes=printable("; ".join(_notes(found, interval, beside))),
            )


def _task_id(record: Record) -> str:
    """What two values must share to compare; rows of one leaderboard differ in network and suite alone."""
    parts = (record.metric, record.split, record.attack, record.budget, record.protocol, record.dataset)
    return "/".join(slug(part) for part in (*parts, *filter(None, (record.experiment, record.extractor))))


def _notes(found: Sequence[Record], interval: Interval, controls: Mapping[str, Interval | None]) -> Iterator[str]:
    measured = [record for record in found if record.value is not None]
    one = measured[0]
    after = "without an attack" if one.attack == "none" else f"after {one.attack} at {one.budget}"
    yield f"{one.metric} of {one.method} on {one.split} {after}"
    known = metrics_of(one.task) if one.task in (entry.name for entry in TASKS.entries()) else ()
    yield ", ".join((*(item.stored_unit for item in known if item.name == one.metric), _BETTER[one.direction]))
    yield "N " + "/".join(str(n) for n in sorted({record.n for record in measured}))
    yield _spread(measured, interval)
    if len(measured) < len(found):
        yield f"{len(found) - len(measured)} of {len(found)} results failed and are left out"
    if any(record.converged is False for record in measured):
        yield "the attack was still improving at its last step"
    if beside := [f"{name} {control.mean:.4g}" for name, control in controls.items() if control is not None]:
        yield f"controls: {', '.join(beside)}"
    yield f"protocol {one.protocol}, data {one.dataset}, model {one.model}, suite {one.suite}"
    yield from [f"judge {one.extractor}"] if one.extractor else []
    yield from dict.fromkeys(record.setting for record in measured if record.setting)


def _spread(measured: Sequence[Record], interval: Interval) -> str:
    count = len({(record.original, record.unlearn_seed) for record in measured})
    models = f"mean over {count} models" if count > 1 else "one model"
    over = " x ".join(SAMPLES if name == OWN else name for name in interval.over)
    if not over:
        return f"{models}, no interval"
    return f"{models}, 95 % interval {interval.low:.4g} to {interval.high:.4g} over {over}"


def _date(records: Sequence[Record]) -> str | None:
    """When the last of the measured records was made; None where one does not say so as ISO 8601 does."""
    try:
        dates = [datetime.fromisoformat(record.created) for record in records if record.value is not None]
    except ValueError:
        return None
    return max(date if date.tzinfo else date.replace(tzinfo=UTC) for date in dates).isoformat()


def _numbers(table: Table) -> Table:
    """Table without its columns of text: one method is tied with none."""
    kept = [k for k, column in enumerate(table.columns) if column.place is not None]
    return replace(picked(table, kept), notes=tuple(note for note in table.notes if not note.startswith("tie: ")))
