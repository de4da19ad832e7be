"""Tables of the dose scale: at which dose of the forget set each method stands, and which metrics can say so."""

import re
from collections.abc import Iterator, Sequence

from rub.metrics.base import metrics_of
from rub.metrics.dose import DOSE, DOSES, FLAT, SMALLEST, SPEARMAN, DoseEquivalent, Side, dose_of
from rub.reports.grouping import Board, Group, Place, anchor, board_of, is_control, level, row_order
from rub.reports.table import Cell, Column, Row, Table
from rub.reports.tables import Source, label
from rub.reports.text import printable, slug
from rub.store.records import Record

_P = re.compile(r"p = ([0-9.e+-]{1,20})")
_SIDES: dict[str, Side] = {"<=": "<=", ">=": ">="}


def on_scale(record: Record) -> bool:
    """Whether a record is a dose-equivalent, or says of a metric how it goes with the dose."""
    return record.unlearn_seed is None and record.metric.endswith((DOSE, SPEARMAN, SMALLEST))


def dose_tables(source: Source, shown: Sequence[str], counted: str) -> list[Table]:
    """The dose-equivalents of every row, and the validity of every metric; none where no record is on the scale.

    Args:
        source: a group with its records, those on the scale among them.
        shown: budgets of the main attack that have columns; the others are in the records.
        counted: metric that is measured on the whole forget set without an attack, if any: its N is the set's size.
    """
    records = [record for record in source.records if on_scale(record)]
    board = board_of(records)
    wanted = [
        place
        for place in dict.fromkeys(place._replace(metric=_measured(place)) for _, place in board)
        if place.attack == "none" or (place.attack == source.main and place.budget in shown)
    ]
    order = [metric.name for metric in metrics_of(source.group.task)]
    wanted.sort(key=lambda place: order.index(place.metric) if place.metric in order else len(order))
    if not wanted:
        return []
    return [_equivalents(source, board, wanted, counted), _validity(source, board, wanted)]


def _equivalents(source: Source, board: Board, places: Sequence[Place], counted: str) -> Table:
    task = source.group.task
    flat = {place for place in places if is_flat(board, place)}
    columns = [
        Column(_head(place), _name(task, place), place._replace(metric=place.metric + DOSE), unit="%")
        for place in sorted(set(places) - flat, key=lambda place: (level(place.budget), places.index(place)))
    ]
    columns += [
        Column(FLAT, _named(task, place), place._replace(metric=place.metric + DOSE), unit="%")
        for place in places
        if place in flat
    ]
    methods = row_order((method for method, place in board if place.metric.endswith(DOSE)), task)
    rows = tuple(
        Row(
            printable(method),
            is_control(method, task),
            tuple(dose_cell(source.group, board, method, c.place) for c in columns),
        )
        for method in methods
    )
    notes = (
        "dose: share of the forget set (%) in the training of a model, from scratch, on which the metric has the same"
        " value; below it the 95 % interval over images, dose models and the row's own models",
        *_counts(source.records, counted),
        "<=, >=: at or beyond the lowest, highest dose that the metric tells apart; [ ] controls",
        *([f"{FLAT}: the metric does not go with the dose, and its doses say nothing"] if flat else []),
    )
    return Table(_title(source, "dose"), f"Dose-equivalents ({label(source.group)})", tuple(columns), rows, notes)


def _counts(records: Sequence[Record], counted: str) -> Iterator[str]:
    """How many images the doses are."""
    whole = {row.n for row in records if (row.metric, row.split, row.attack) == (counted, "forget", "none") and row.n}
    doses = sorted({dose for row in records if (dose := dose_of(row.method))})
    if len(whole) == 1 and doses:
        (size,) = whole
        said = ", ".join(f"{dose:g} % {round(size * dose / 100):,}" for dose in doses)
        yield f"images of the forget set that each dose is: {said}"


def _validity(source: Source, board: Board, places: Sequence[Place]) -> Table:
    columns = (
        Column("", "Spearman", unit="correlation"), Column("", "p", unit="p"), Column("", "told from", unit="%"),
        Column("", "models", unit="models"),
    )  # fmt: skip
    rows = []
    for place in places:
        (spearman, p), (smallest, _) = (_said(source, board, place, what) for what in (SPEARMAN, SMALLEST))
        models = [str(record.n) for record in board.get((DOSES, place._replace(metric=place.metric + SPEARMAN)), ())]
        cells = (spearman, Cell((p,)), smallest, Cell((models[0] if models else "-",)))
        rows.append(Row(_named(source.group.task, place) + f" ({FLAT})" * is_flat(board, place), False, cells))
    notes = (
        "Spearman's correlation of a metric with the dose over all models of known dose, retrain and original among"
        " them; p: of permuting them",
        "told from: the smallest dose (%) that the metric tells from dose 0, and every larger one too (95 %); - none",
    )
    title = f"What the metrics say of models of known dose ({label(source.group)})"
    return Table(_title(source, "validity"), title, columns, tuple(rows), notes, "metric")


def dose_cell(group: Group, board: Board, method: str, place: Place | None) -> Cell:
    """Cell of a row's dose-equivalent on one metric, with its interval; "-" where it has none."""
    found = board.get((method, place), ()) if place is not None else ()
    if place is None or not found:
        return Cell(("-",))
    record, link = found[0], anchor(group, method, place)
    if record.value is None:
        return Cell(("failed" if record.status == "failed" else "n/a",), note=printable(record.reason), anchor=link)
    low, high = (record.value if end is None else end for end in (record.ci_low, record.ci_high))
    at = DoseEquivalent(record.value, low, high, _SIDES.get(record.setting, ""))
    return Cell(at.parts, record.value, low, high, anchor=link)


def _said(source: Source, board: Board, place: Place, what: str) -> tuple[Cell, str]:
    """Cell of what is said of a metric, and its p."""
    full = place._replace(metric=place.metric + what)
    found = board.get((DOSES, full), ())
    if not found or found[0].value is None:
        failed = bool(found) and found[0].status == "failed"
        return Cell(("failed" if failed else "-",), note=printable(found[0].reason) if failed else ""), "-"
    p = _P.search(found[0].setting)
    text = f"{found[0].value:.2f}" if what == SPEARMAN else f"{found[0].value:g}"
    return Cell((text,), found[0].value, anchor=anchor(source.group, DOSES, full)), p[1] if p else "-"


def is_flat(board: Board, place: Place) -> bool:
    """Whether a metric is said not to go with the dose."""
    found = board.get((DOSES, place._replace(metric=place.metric + SPEARMAN)), ())
    return any(record.value is None or FLAT in record.setting for record in found)


def _measured(place: Place) -> str:
    ends = (DOSE, SPEARMAN, SMALLEST)
    return next(place.metric.removesuffix(end) for end in ends if place.metric.endswith(end))


def _head(place: Place) -> str:
    return "no attack" if place.budget == "none" else printable(place.budget)


def _name(task: str, place: Place) -> str:
    """A metric's title, and the split where it is not its own."""
    said = next((metric for metric in metrics_of(task) if metric.name == place.metric), None)
    split = "" if said is None or said.split == place.split else place.split.removeprefix("forget_")
    return printable(" ".join(filter(None, (said.title if said else place.metric, split))))


def _named(task: str, place: Place) -> str:
    """The same with the budget."""
    return _name(task, place) + ("" if place.budget == "none" else f" {_head(place)}")


def _title(source: Source, kind: str) -> str:
    return slug(f"{kind}-{source.group.experiment or source.group.dataset}")
