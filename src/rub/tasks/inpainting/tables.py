"""The tables of the image-to-image task: pure functions from records to `Table`."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rub.metrics.base import Metric
from rub.reports.grouping import (
    Mains,
    Place,
    board_of,
    budgets_of,
    estimate,
    extracted,
    grouped,
    is_control,
    level,
    main_attack,
    place_of,
    row_order,
    told_apart,
)
from rub.reports.table import Column, Table, fitting
from rub.reports.tables import Columns, Source, failures, seeds_note
from rub.reports.text import printable
from rub.store.records import Record
from rub.tasks.inpainting.metrics import METRICS, cell

_TITLES = {
    "is": "Table 2: IS{}", "fid": "Table 2: FID{}", "kid": "KID{}", "fid_original": "FID{} to the original's outputs",
    "mse_input": "MSE to the true image", "lpips": "LPIPS to the original's outputs",
}  # fmt: skip
_SPLITS = {"retain": "R", "forget": "F"}
_GIVEN = "one choice of images and masks"
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


def inpainting_tables(
    records: Sequence[Record], paper: Mapping[str, Any] | None = None, mains: Mains | None = None
) -> list[Table]:
    """Tables of every (suite, experiment, dataset, model, protocol) among the records.

    Table 2 in the paper's shape, IS and FID apart and one pair for each extractor; what comes back, one table for each
    budget; the curve, when the main attack ran at more budgets than Table 2 shows; and further distances. Means are
    over seeds, intervals are over images and models (`rub.metrics.statistics.estimate`). `paper`, from
    `rub.reports.tables.paper_numbers`, has method -> metric -> budget -> split -> number.

    Example:
        >>> inpainting_tables([])
        []
    """
    tables: list[Table] = []
    for group, found in grouped(records, "inpainting").items():
        own = extracted(found)
        source = Source(group, own, _explained, "more might be recovered", "the first table", main_attack(own, mains))
        shown = headline(source.budgets)
        others = {record.budget for record in own if record.attack in source.others}
        at = [b for b in budgets_of(own) if b in shown or b in others or math.isinf(level(b))]
        made = [table for metric in ("is", "fid") for table in _by_budget(source, metric, shown, paper or {})]
        made += [table for budget in ("none", *at) for table in _back(source, budget)]
        made += [_curve(source)] if len(source.budgets) > len(shown) else []
        for metric in ("kid", "fid_original", "mse_input", "lpips"):
            made += _by_budget(source, metric, shown, {})
        made = [table for table in made if table.columns]
        if made:
            made[0] = replace(made[0], notes=(seeds_note(own, made[0], _GIVEN), *made[0].notes, *failures(found)))
        tables += made
    return [part for table in tables for part in fitting(table)]


def headline(budgets: Sequence[str]) -> list[str]:
    """Budgets of Table 2: 8/255, or the largest one with a number, and ``unbounded``, where they are there.

    Example:
        >>> headline(["2/255", "8/255", "16/255", "unbounded", "free"]), headline(["16/255", "32/255"])
        (['8/255', 'unbounded'], ['32/255'])
    """
    bounded = [budget for budget in budgets if not math.isinf(level(budget))]
    kept = ["8/255"] if "8/255" in bounded else bounded[-1:]
    return [*kept, *(budget for budget in budgets if budget == "unbounded")] or list(budgets[-1:])


def leaders(records: Sequence[Record], main: str = "") -> list[Column]:
    """Columns of a leaderboard over these records, of any group; those without records are left out there.

    Example:
        >>> [column.title for column in leaders([])]
        ['F back ≈', 'PSNR R ↑']
    """
    main = main or main_attack(records)
    made, shown = _columns(main), headline(budgets_of(records, main))
    columns = [made(_head(b), "recovered", b, name="F back") for b in ("none", *shown)]
    columns += [made(b, "recovered", b, "steered", name="steered") for b in shown]
    extractors = list(dict.fromkeys(record.extractor for record in records if record.metric == "fid"))
    for extractor in extractors:
        name = f"FID F[{_short(extractor, extractors)}]"
        columns += [made(_head(b), "fid", b, name=name, extractor=extractor) for b in ("none", *shown)]
    return [*columns, made(_head("none"), "psnr", split="retain", name="PSNR R")]


def _columns(main: str) -> Columns:
    return Columns(METRICS, main, direction=_direction)


def _by_budget(source: Source, metric: str, shown: Sequence[str], paper: Mapping[str, Any]) -> Iterator[Table]:
    extractors = list(dict.fromkeys(record.extractor for record in source.records if record.metric == metric))
    made = _columns(source.main)
    for number, extractor in enumerate(extractors, start=1):
        columns = [
            made(budget, metric, budget, split, name=name, extractor=extractor)
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
    made = _columns(source.main)
    columns = [
        made("% back", "recovered", budget, name="F"),
        made("% back", "recovered", budget, "retain", name="R"),
        made("% back", "recovered", budget, "steered", name="steered"),
        made("% back", "residual_knowledge", budget),
    ]
    if budget != "none":
        columns += [made(name, "recovered", budget, name="F", attack=name) for name in source.others]
    near = [
        made("MSE", "mse_original", budget, name="F"),
        made("MSE", "mse_original", budget, "retain", name="R"),
        made("PSNR", "psnr", budget, name="F"),
        made("SSIM", "ssim", budget, name="F"),
    ]
    where = "without an attack" if budget == "none" else f"{printable(source.main)} {printable(budget)}"
    title = f"What {'is there' if budget == 'none' else 'comes back'}: {where}"
    name = budget.partition("/")[0]
    tables = [source.table(f"back-{name}", title, [*columns, *near])]
    if len(fitting(tables[0])) > 1:
        tables = [source.table(f"back-{name}", title, columns)]
        tables.append(source.table(f"near-{name}", f"How near outputs are to the original's: {where}", near))
    notes = _unforgotten(source) if budget == "none" else _steerable(source, budget)
    tables[0] = replace(tables[0], notes=(*tables[0].notes, *notes))
    return tables


def _curve(source: Source) -> Table:
    made = _columns(source.main)
    columns = [made("F at", "recovered", b, name=printable(b)) for b in ("none", *source.budgets)]
    title = f"Recovered forget images (%) along the curve of {printable(source.main)}"
    return source.table("back-curve", title, columns)


def _head(budget: str) -> str:
    return "no attack" if budget == "none" else budget


def _direction(metric: Metric, split: str) -> str:
    return "" if split == "steered" else str(cell("", 0, metric.name, split)["direction"])


def _short(extractor: str, among: Sequence[str]) -> str:
    name, _, digest = printable(extractor).partition("@")
    same = [other for other in among if other.partition("@")[0] == extractor.partition("@")[0]]
    return f"{name}@{digest[:6]}" if len(same) > 1 else name


def _published(paper: Mapping[str, Any]) -> Callable[[str, Place], float | None]:
    def number(method: str, place: Place) -> float | None:
        value = paper.get(method, {}).get(place.metric, {}).get(place.budget, {}).get(place.split)
        return None if value is None else float(value)

    return number


def _explained(columns: Sequence[Column], records: Sequence[Record]) -> Iterator[str]:
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
    board = board_of(source.records)
    found = []
    for method in row_order((record.method for record in source.records), source.group.task):
        own, other = (
            board.get((method, Place("recovered", split, source.main, budget)), ()) for split in ("forget", "steered")
        )
        recovered, steered = estimate(own), estimate(other)
        if is_control(method, source.group.task) or recovered is None or steered is None or recovered.mean == 0:
            continue
        if steered.mean >= recovered.mean - _CLOSE or not told_apart(other, own):
            found.append(printable(method))
    if found:
        yield (
            f"steered is about as high as recovered on F for {', '.join(found)}: recovery there is no evidence of"
            " residual knowledge"
        )
