"""The tables of the image-to-image task: pure functions from records to `Table`."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rub.reports.grouping import (
    Place,
    board_of,
    budgets_of,
    estimate,
    extracted,
    grouped,
    is_control,
    level,
    place_of,
    row_order,
    share,
)
from rub.reports.table import Column, Table, fitting
from rub.reports.tables import Source, failures, seeds_note
from rub.reports.text import printable
from rub.store.records import Record
from rub.tasks.inpainting.metrics import METRICS_DECLARED, cell

_UNITS = {metric.name: metric.unit for metric in METRICS_DECLARED}
_DECIMALS = {
    "is": 2, "fid": 2, "fid_original": 2, "kid": 4, "mse_original": 4, "mse_input": 4, "psnr": 1, "ssim": 3, "lpips": 3,
}  # fmt: skip
_TITLES = {
    "is": "Table 2: IS{}", "fid": "Table 2: FID{}", "kid": "KID{}", "fid_original": "FID{} to the original's outputs",
    "mse_input": "MSE to the true image", "lpips": "LPIPS to the original's outputs",
}  # fmt: skip
_SPLITS = {"retain": "R", "forget": "F"}
_GIVEN = "one original, one choice of images and masks"
_CLOSE = 0.05  # a steered share this near to the recovered one is as high
_FEW = re.compile(r"\b(biased|singular|too few)\b")
_AID = "lower FID on F after the attack means that the attack brought the class back"
_AIDS = {
    "fid": f"{_AID}; on R, lower is better",
    "is": "higher IS on F after the attack means the same as lower FID: the class came back",
    "kid": _AID.replace("FID", "KID"),
    "fid_original": "0 on F would be the original's very outputs",
    "mse_input": "the original does not reach the true pixels either: compare with its row",
}


def inpainting_tables(records: Sequence[Record], paper: Mapping[str, Any] | None = None) -> list[Table]:
    """Return the tables of every (suite, experiment, dataset, model, protocol) among the records.

    Table 2 in the paper's shape, IS and FID apart and one pair for each extractor; what comes back, one table for each
    budget; the curve, when UMA ran at more budgets than Table 2 shows; and further distances. Means are over seeds,
    intervals are clustered by unlearning seed (`rub.metrics.statistics.clustered_mean`).

    Args:
        records: rows of any task; those of other tasks are left out.
        paper: method -> metric -> budget -> split -> the paper's number, from `rub.reports.tables.paper_numbers`.

    Returns:
        Tables that fit 80 columns each; empty without records of this task.

    Example:
        >>> inpainting_tables([])
        []
    """
    tables: list[Table] = []
    for group, found in grouped(records, "inpainting").items():
        own = extracted(found)
        source = Source(group, own, _explained, "more might be recovered", "the first table")
        uma, shown = budgets_of(own, "uma"), headline(budgets_of(own, "uma"))
        others = {record.budget for record in own if record.attack not in ("none", "uma")}
        at = [b for b in budgets_of(own) if b in shown or b in others or math.isinf(level(b))]
        made = [table for metric in ("is", "fid") for table in _by_budget(source, metric, shown, paper or {})]
        made += [table for budget in ("none", *at) for table in _back(source, budget)]
        made += [_curve(source, uma)] if len(uma) > len(shown) else []
        for metric in ("kid", "fid_original", "mse_input", "lpips"):
            made += _by_budget(source, metric, shown, {})
        made = [table for table in made if table.columns]
        if made:
            made[0] = replace(made[0], notes=(seeds_note(own, _GIVEN), *made[0].notes, *failures(found)))
        tables += made
    return [part for table in tables for part in fitting(table)]


def headline(budgets: Sequence[str]) -> list[str]:
    """Return the budgets of Table 2: 8/255, or the largest one with a number, and ``unbounded``, where they are there.

    Example:
        >>> headline(["2/255", "8/255", "16/255", "unbounded", "free"]), headline(["16/255", "32/255"])
        (['8/255', 'unbounded'], ['32/255'])
    """
    bounded = [budget for budget in budgets if not math.isinf(level(budget))]
    kept = ["8/255"] if "8/255" in bounded else bounded[-1:]
    return [*kept, *(budget for budget in budgets if budget == "unbounded")] or list(budgets[-1:])


def leaders(records: Sequence[Record]) -> list[Column]:
    """Return the columns of a leaderboard over these records, of any group; those without records are left out there.

    Example:
        >>> [column.title for column in leaders([])]
        ['F back ≈', 'PSNR R ↑']
    """
    shown = headline(budgets_of(records, "uma"))
    columns = [
        _recovered(_head(b), "F back", Place("recovered", "forget", "none" if b == "none" else "uma", b))
        for b in ("none", *shown)
    ]
    columns += [_recovered(printable(b), "steered", Place("recovered", "steered", "uma", b)) for b in shown]
    extractors = list(dict.fromkeys(record.extractor for record in records if record.metric == "fid"))
    for extractor in extractors:
        name = f"FID F[{_short(extractor, extractors)}]"
        for b in ("none", *shown):
            place = Place("fid", "forget", "none" if b == "none" else "uma", b, extractor)
            columns.append(_column(_head(b), name, place))
    columns.append(_column(_head("none"), "PSNR R", Place("psnr", "retain", "none", "none")))
    return columns


def _by_budget(source: Source, metric: str, shown: Sequence[str], paper: Mapping[str, Any]) -> Iterator[Table]:
    """Yield a table of R and F under each budget of one metric, for each extractor."""
    extractors = list(dict.fromkeys(record.extractor for record in source.records if record.metric == metric))
    for number, extractor in enumerate(extractors, start=1):
        columns = [
            _column(budget, name, Place(metric, split, "none" if budget == "none" else "uma", budget, extractor))
            for budget in ("none", *shown)
            for split, name in _SPLITS.items()
        ]
        kind = (
            ("table2-" if metric in ("is", "fid") else "further-")
            + metric.replace("_", "-")
            + (f"-{number}" if number > 1 else "")
        )
        seen = f"[{_short(extractor, extractors)}]" if extractor else ""
        table = source.table(kind, _TITLES[metric].format(seen), columns, _published(paper))
        notes = [*table.notes, *([_AIDS[metric]] if metric in _AIDS else [])]
        if extractor:
            notes.append(f"judge: {printable(extractor)}")
        if any(cell.paper is not None for row in table.rows for cell in row.cells):
            notes.append("in parentheses: the paper's own number (MAE on ImageNet-1k; its judge and N are not stated)")
        yield replace(table, notes=tuple(notes))


def _back(source: Source, budget: str) -> list[Table]:
    """Return what comes back at one budget, or what is there without an attack; in two tables where one is too wide."""
    attack = "none" if budget == "none" else "uma"
    columns = [
        _recovered("% back", "F", Place("recovered", "forget", attack, budget)),
        _recovered("% back", "R", Place("recovered", "retain", attack, budget)),
        _recovered("% back", "steered", Place("recovered", "steered", attack, budget)),
        _recovered("% back", "excess", Place("residual_knowledge", "forget", attack, budget)),
    ]
    others = dict.fromkeys(record.attack for record in source.records if record.attack not in ("none", "uma"))
    if budget != "none":
        columns += [_recovered(printable(name), "F", Place("recovered", "forget", name, budget)) for name in others]
    near = [
        _column("MSE", "F", Place("mse_original", "forget", attack, budget)),
        _column("MSE", "R", Place("mse_original", "retain", attack, budget)),
        _column("PSNR", "F", Place("psnr", "forget", attack, budget)),
        _column("SSIM", "F", Place("ssim", "forget", attack, budget)),
    ]
    where = "without an attack" if budget == "none" else f"uma {printable(budget)}"
    title = f"What {'is there' if budget == 'none' else 'comes back'}: {where}"
    name = budget.partition("/")[0]
    made = [source.table(f"back-{name}", title, [*columns, *near])]
    if len(fitting(made[0])) > 1:
        made = [source.table(f"back-{name}", title, columns)]
        made.append(source.table(f"near-{name}", f"How near outputs are to the original's: {where}", near))
    notes = _unforgotten(source) if budget == "none" else _steerable(source, budget)
    made[0] = replace(made[0], notes=(*made[0].notes, *notes))
    return made


def _curve(source: Source, budgets: Sequence[str]) -> Table:
    columns = [
        _recovered("F at", printable(b), Place("recovered", "forget", "none" if b == "none" else "uma", b))
        for b in ("none", *budgets)
    ]
    return source.table("back-curve", "Recovered forget images (%) along the curve of uma", columns)


def _head(budget: str) -> str:
    return "no attack" if budget == "none" else printable(budget)


def _column(group: str, name: str, place: Place) -> Column:
    return Column(
        printable(group), name, place, _direction(place), decimals=_DECIMALS[place.metric], unit=_UNITS[place.metric]
    )


def _recovered(group: str, name: str, place: Place) -> Column:
    return Column(group, name, place, _direction(place), percent=True, decimals=1)


def _direction(place: Place) -> str:
    """Return a place's direction; the steering control has none."""
    return "" if place.split == "steered" else str(cell("", 0, place.metric, place.split)["direction"])


def _short(extractor: str, among: Sequence[str]) -> str:
    """Return an extractor's name, with the start of its hash where another has the same name."""
    name, _, digest = printable(extractor).partition("@")
    same = [other for other in among if other.partition("@")[0] == extractor.partition("@")[0]]
    return f"{name}@{digest[:6]}" if len(same) > 1 else name


def _published(paper: Mapping[str, Any]) -> Callable[[str, Place], float | None]:
    """Return what gives the paper's number for a cell."""

    def number(method: str, place: Place) -> float | None:
        value = paper.get(method, {}).get(place.metric, {}).get(place.budget, {}).get(place.split)
        return None if value is None else float(value)

    return number


def _explained(columns: Sequence[Column], records: Sequence[Record]) -> Iterator[str]:
    """Yield what the headers mean, what else decided the values, and a warning where there are too few images."""
    names = {column.name for column in columns}
    groups = {column.group for column in columns}
    if "% back" in groups:
        yield "% back: images within the protocol's distance of the original's output (recovered)"
    if "MSE" in groups:
        yield "MSE (masked patches), PSNR (the same in dB) and SSIM: to the original's output on the same image"
    if "steered" in names:
        yield "steered: the same search towards the original's output for an unrelated image (control)"
    if "excess" in names:
        yield "excess: recovered on F minus the retrained model's under the same attack, in points"
    places = {column.place: column for column in columns}
    settings: dict[str, dict[str, None]] = {}
    for record in records:
        if record.setting and place_of(record) in places:
            settings.setdefault(record.setting, {})[record.metric] = None
    for setting, metrics in settings.items():
        yield f"{', '.join(metrics)}: {printable(setting)}"
    few = {metric for setting, metrics in settings.items() if _FEW.search(setting) for metric in metrics}
    if few:
        named = ", ".join(dict.fromkeys(metric.partition("_")[0].upper() for metric in sorted(few)))
        yield f"warning: too few images for {named} (the covariance is singular): biased; compare only at equal N"


def _unforgotten(source: Source) -> Iterator[str]:
    """Yield the rows that make most of F as the original does without an attack, and whether retrain is among them."""
    board, place = board_of(source.records), Place("recovered", "forget", "none", "none")
    shares = {method: estimate(board.get((method, place), ()), 100) for method in dict.fromkeys(m for m, _ in board)}
    high = {method: share for method, share in shares.items() if share is not None and share.mean > 50}
    for method in ("retrain", "retrained"):
        if method in high:
            share = f"{high[method].mean:.0f} %"
            yield f"even the [{method}] model makes {share} of F as the original does: here recovered says little"
    methods = [method for method in row_order(high, source.group.task) if not is_control(method, source.group.task)]
    if methods:
        yield f"most of F needs no attack for {', '.join(map(printable, methods))}: there it was hardly unlearned"


def _steerable(source: Source, budget: str) -> Iterator[str]:
    """Yield the rows whose recovery the steering control explains."""
    board = board_of(source.records)
    found = []
    for method in row_order((record.method for record in source.records), source.group.task):
        recovered, steered = (
            share(board.get((method, Place("recovered", split, "uma", budget)), ())) for split in ("forget", "steered")
        )
        if is_control(method, source.group.task) or recovered is None or steered is None or recovered.mean == 0:
            continue
        if steered.mean >= recovered.mean - _CLOSE or steered.overlaps(recovered):
            found.append(printable(method))
    if found:
        yield (
            f"steered is about as high as recovered on F for {', '.join(found)}: recovery there is no evidence of"
            " residual knowledge"
        )
