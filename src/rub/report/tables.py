"""The tables of the classification task: pure functions from records to `Table`.

Every table fits a terminal of 80 columns; one that would not is continued in a second table.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Any

from rub.classification.metrics import METRICS_DECLARED
from rub.errors import unknown
from rub.report.grouping import (
    CONTROL_ROWS,
    Board,
    Group,
    Place,
    board_of,
    budgets_of,
    estimate,
    grouped,
    headline,
    printable,
    row_order,
    seed_means,
    slug,
)
from rub.report.table import Cell, Column, Row, Table, fitting
from rub.statistics import tie_groups
from rub.store.records import Record

_METRICS = {metric.name: metric for metric in METRICS_DECLARED}
_MIA_DECIMALS = 3


def paper_numbers(key: str) -> Mapping[str, Any] | None:
    """Return the paper's own numbers for a key such as ``table1/cifar10``; None for the empty key.

    Raises:
        RubError: a key that the paper has no table for.

    Example:
        >>> paper_numbers("table1/cifar10")["ft"]["8/255"]["ua"]
        99.96
    """
    if not key:
        return None
    tables = json.loads(files("rub.report").joinpath("paper_tables.json").read_text(encoding="utf-8"))
    known = {f"{table}/{part}": rows for table, parts in tables.items() for part, rows in parts.items()}
    if key not in known:
        raise unknown("table of the paper", key, known)
    numbers: Mapping[str, Any] = known[key]
    return numbers


def classification_tables(records: Iterable[Record], paper: Mapping[str, Any] | None = None) -> list[Table]:
    """Return the tables of every (suite, experiment, dataset, model, protocol) among the records.

    Table 1 in the paper's shape; what remains by bias-free metrics; attacks and controls, one table per budget; and,
    when UMA ran at more budgets than Table 1 shows, its robustness curve. Means are over seeds, intervals are
    clustered by unlearning seed (`rub.statistics.clustered_mean`).

    Args:
        records: rows of any task; those of other tasks are left out.
        paper: method -> the paper's numbers for this data set, from `paper_numbers`.

    Returns:
        Tables that fit 80 columns each; empty without classification records.

    Example:
        >>> classification_tables([])
        []
    """
    tables: list[Table] = []
    for group, own in grouped(records).items():
        uma = budgets_of(own, "uma")
        shown = headline(uma)
        tables += [_table1(group, own, shown, paper or {}), _remains(group, own)]
        others = {record.budget for record in own if record.attack not in ("none", "uma")}
        tables += [
            _attacks(group, own, budget)
            for budget in budgets_of(own)
            if budget in others or budget in headline(budgets_of(own))
        ]
        if len(uma) > len(shown):
            tables.append(_curve(group, own, uma))
    return [part for table in tables if table.columns for part in fitting(table)]


def _table1(group: Group, records: Sequence[Record], shown: Sequence[str], paper: Mapping[str, Any]) -> Table:
    columns = [_percent("", "TA", Place("ta", "test", "none", "none"))]
    for budget in ("none", *shown):
        attack = "none" if budget == "none" else "uma"
        columns.append(_percent(budget, "UA", Place("ua", "forget", attack, budget)))
        columns.append(_fraction(budget, "MIA", Place("mia_shadow", "forget", attack, budget)))
    table = _filled("table1", f"Table 1 ({_label(group)})", group, records, columns, paper)
    notes = [_seeds_note(records), *table.notes]
    if any(cell.paper is not None for row in table.rows for cell in row.cells):
        notes.append(f"in parentheses: the paper's own number (its network: ResNet-50; here: {printable(group.model)})")
        if group.dataset == "tiny-imagenet":
            notes.append("the paper's TA here seems to count the forgotten classes: compare it with TA all")
    tied = _ties(records, shown[-1]) if shown else {}
    if tied:
        cells = [Cell(("".join(tied[row.label]),)) if row.label in tied else Cell(("",)) for row in table.rows]
        rows = [replace(row, cells=(*row.cells, cell)) for row, cell in zip(table.rows, cells, strict=True)]
        notes.append(f"tie: methods that share a letter have overlapping intervals of UA at {shown[-1]}; a is best")
        table = replace(table, columns=(*table.columns, Column("", "tie")), rows=tuple(rows))
    return replace(table, notes=(*notes, *failures(records)))


def _remains(group: Group, records: Sequence[Record]) -> Table:
    columns = [
        _percent("TA", "kept", Place("ta", "test", "none", "none"), 1),
        _percent("TA", "all", Place("ta_all", "test", "none", "none"), 1),
        _percent("", "RA", Place("ra", "retain", "none", "none"), 1),
        _percent("UA", "test", Place("ua_test", "forget_test", "none", "none"), 1),
        _fraction("logit", "AUC", Place("logit_auc", "test", "none", "none")),
        _fraction("linear", "probe", Place("probe_accuracy", "forget_test", "none", "none")),
        _fraction("MIA", "SVC", Place("mia_svc", "forget", "none", "none")),
        _fraction("MIA", "RMIA", Place("mia_rmia", "forget", "none", "none")),
        _fraction("MIA", "LiRA", Place("mia_lira", "forget", "none", "none")),
    ]
    return _filled("remains", f"What remains, without an attack ({_label(group)})", group, records, columns)


def _attacks(group: Group, records: Sequence[Record], budget: str) -> Table:
    columns = [
        _percent("uma", "UA", Place("ua", "forget", "uma", budget), 1),
        _percent("uma", "excess", Place("residual_knowledge", "forget", "uma", budget), 1),
        Column("uma", "ratio", Place("residual_ratio", "forget", "uma", budget), "down", decimals=1),
        _percent("uma", "test", Place("ua_test", "forget_test", "uma", budget), 1),
        replace(_percent("uma", "steer", Place("ua", "retain", "uma", budget), 1), direction=""),
    ]
    others = dict.fromkeys(record.attack for record in records if record.attack not in ("none", "uma"))
    columns += [_percent(printable(name), "UA", Place("ua", "forget", name, budget), 1) for name in others]
    name = f"attacks-{budget.partition('/')[0]}"
    return _filled(name, f"Attacks and controls at {budget} ({_label(group)})", group, records, columns)


def _curve(group: Group, records: Sequence[Record], budgets: Sequence[str]) -> Table:
    columns = [
        _percent("UA at", budget, Place("ua", "forget", "none" if budget == "none" else "uma", budget))
        for budget in ("none", *budgets)
    ]
    return _filled("curve", f"Robustness curve of uma ({_label(group)})", group, records, columns)


def _percent(group: str, name: str, place: Place, decimals: int = 2) -> Column:
    return Column(group, name, place, _METRICS[place.metric].direction, True, decimals)


def _fraction(group: str, name: str, place: Place) -> Column:
    return Column(group, name, place, _METRICS[place.metric].direction, False, _MIA_DECIMALS)


def _filled(
    kind: str,
    title: str,
    group: Group,
    records: Sequence[Record],
    columns: Sequence[Column],
    paper: Mapping[str, Any] | None = None,
) -> Table:
    """Return the table with every column that has records, and the notes that its marks need."""
    board = board_of(records)
    places = {place for _, place in board}
    kept = tuple(column for column in columns if column.place in places)
    rows = tuple(
        Row(printable(method), method in CONTROL_ROWS, tuple(_cell(board, method, column, paper) for column in kept))
        for method in row_order(record.method for record in records)
    )
    name = slug(f"{kind}-{group.experiment or group.dataset}")
    used = {column.place for column in kept}
    behind = [record for (_, place), found in board.items() if place in used for record in found]
    return Table(name, title, kept, rows, tuple(_notes(kept, behind)))


def _cell(board: Board, method: str, column: Column, paper: Mapping[str, Any] | None) -> Cell:
    """Return the clustered mean of a cell's records, with marks for missing seeds and unfinished searches."""
    records = board.get((method, column.place), ()) if column.place is not None else ()
    published = _published(paper, method, column.place)
    tail = () if published is None else (f"({published:.{column.decimals}f})",)
    reasons = sorted({printable(record.reason) for record in records if record.status == "failed"})
    interval = estimate(records, 100 if column.percent else 1)
    if interval is None:
        text = "failed" if reasons else "n/a" if records else "-"
        return Cell((text, *tail), paper=published, note="; ".join(reasons))
    moving = any(record.converged is False for record in records)
    marks = "!" * moving + "*" * bool(reasons)
    words = [*(["the attack was still improving"] if moving else []), *(f"a seed failed: {why}" for why in reasons)]
    value = f"{interval.mean:z.{column.decimals}f}{marks}"
    if interval.clusters < 2:
        return Cell((value, *tail), interval.mean, paper=published, note="; ".join(words))
    half = f"±{interval.high - interval.mean:.{column.decimals}f}"
    return Cell((value, half, *tail), interval.mean, interval.low, interval.high, published, "; ".join(words))


def _published(paper: Mapping[str, Any] | None, method: str, place: Place | None) -> float | None:
    """Return the paper's number for a cell: TA and UA in percent, MIA as a fraction."""
    key = {"ta": "ta", "ua": "ua", "mia_shadow": "mia"}.get(place.metric) if place is not None else None
    if key is None or place is None or paper is None or method not in paper:
        return None
    value = paper[method].get("ta") if key == "ta" else paper[method].get(place.budget, {}).get(key)
    return None if value is None else float(value)


def _ties(records: Sequence[Record], budget: str) -> dict[str, tuple[str, ...]]:
    """Return the tie groups of the unlearning methods by UA at a budget; empty where one seed allows no interval."""
    board, place = board_of(records), Place("ua", "forget", "uma", budget)
    rows = (method for method in row_order(r.method for r in records) if method not in CONTROL_ROWS)
    means: dict[str, Mapping[Any, float]] = {m: seed_means(board.get((m, place), ())) for m in rows}
    means = {method: found for method, found in means.items() if found}
    if all(len(found) < 2 for found in means.values()):
        return {}
    return {printable(tied.name): tied.groups for tied in tie_groups(means, "down")}


def _notes(columns: Sequence[Column], records: Sequence[Record]) -> Iterable[str]:
    """Yield what a reader needs to know: directions, sample counts, marks."""
    arrows = {"up": "↑ higher is better", "down": "↓ lower is better", "reference": "≈ closest to retrain is best"}
    directions = {column.direction for column in columns}
    yield "; ".join(text for direction, text in arrows.items() if direction in directions) + "; [ ] controls"
    yield _counts(columns, records)
    if any(column.name == "excess" for column in columns):
        yield "excess: UA minus the retrained model's under the same attack, in points (residual knowledge)"
        yield "ratio: recovered images per recovered image of the retrained model, (1 + sum u) / (1 + sum r)"
    if any(column.name == "steer" for column in columns):
        yield "test: unseen images of forgotten classes; steer: kept images pushed into a forgotten class (control)"
    if any(record.converged is False for record in records):
        yield "! the attack was still improving at its last step: UA is a lower bound"
    if any(record.status == "failed" for record in records):
        yield "* mean of the seeds that did not fail; reasons of failures are listed below Table 1"


def _counts(columns: Sequence[Column], records: Sequence[Record]) -> str:
    """Return how many samples stand behind the values of each column."""
    found: dict[str, set[int]] = {}
    for column in columns:
        numbers = {r.n for r in records if r.n and column.place == Place(r.metric, r.split, r.attack, r.budget)}
        label = " ".join(part for part in (column.group, column.name) if part)
        found[label] = numbers
    texts: dict[str, list[str]] = {}
    for label, numbers in found.items():
        text = "/".join(str(number) for number in sorted(numbers)) or "0"
        texts.setdefault(text, []).append(label)
    return "N: " + "; ".join(f"{number} for {', '.join(labels)}" for number, labels in texts.items())


def failures(records: Iterable[Record]) -> Iterable[str]:
    """Yield one line for each reason among failed records, with the rows it concerns; reasons name stage and seed."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        if record.status == "failed":
            found.setdefault(record.reason, {})[record.method] = None
    for reason, methods in found.items():
        yield f"failed cells of {', '.join(map(printable, methods))}: {printable(reason)}"


def _seeds_note(records: Sequence[Record]) -> str:
    unlearn = {record.unlearn_seed for record in records if record.method not in CONTROL_ROWS}
    mia = {record.mia_seed for record in records if record.mia_seed is not None}
    count = max(len(unlearn), 1)
    base = f"means over {count} unlearning seed{'s' * (count > 1)}" + (f" (MIA: x {len(mia)})" if mia else "")
    if count < 2:
        return f"{base}; one seed gives no interval"
    return (
        f"{base}; ± half of the 95 % interval clustered by unlearning seed (df = {count - 1}), given one original, one"
        " choice of images and one set of shadow models; single models have none"
    )


def _label(group: Group) -> str:
    parts = (group.suite, group.experiment, group.dataset, group.model, group.protocol)
    return ", ".join(printable(part) for part in dict.fromkeys(parts) if part)
