"""The tables of the image-to-image task: pure functions from records to `Table`."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from rub.tasks.inpainting.metrics import KEEPS, METRICS, cell

_TITLES = {
    "is": "Table 2: IS{}", "fid": "Table 2: FID{}", "kid": "KID{}", "fid_original": "FID{} to the original's outputs",
    "mse_input": "MSE to the true image", "ssim": "SSIM to the original's outputs",
    "lpips": "LPIPS to the original's outputs",
}  # fmt: skip
_CONTRASTS = {"skill": "skill_contrast", "FID": "fid_contrast", "KID": "kid_contrast", "IS": "is_contrast"}
_SPLITS = {"retain": "R", "forget": "F"}  # the paper's order
_SIDES = {"forget": "F", "retain": "R"}
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

    Table 2 in the paper's shape, IS and FID apart and one pair for each extractor; what is lost on forgotten images
    beyond kept ones; what comes back, one table for each budget; the curve, when the main attack ran at more budgets
    than Table 2 shows; and further distances. Kept images stand beside forgotten ones throughout. Means are over seeds,
    intervals are over images and models (`rub.metrics.statistics.estimate`). `paper`, from
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
        made += [_contrasts(source, shown)]
        made += [table for budget in ("none", *at) for table in _back(source, budget)]
        made += [_curve(source)] if len(source.budgets) > len(shown) else []
        for metric in ("kid", "fid_original", "mse_input", "ssim", "lpips"):
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
        ['F never gone ≈', 'F-R skill ≈', 'skill F ≈', 'skill R ↑', 'PSNR R ↑']
    """
    main = main or main_attack(records)
    made, shown = _columns(main), headline(budgets_of(records, main))
    columns = [made(_head("none"), "recovered", name="F never gone")]
    columns += [made(b, "back", b, split, name=f"{name} back") for b in shown for split, name in _SIDES.items()]
    columns += [made(b, "recovered", b, "steered", name="steered") for b in shown]
    columns += [made(_head(b), "skill_contrast", b, name="F-R skill") for b in ("none", *shown)]
    extractors = list(dict.fromkeys(record.extractor for record in records if record.metric == "fid"))
    for extractor in extractors:
        columns += [
            made(_head(b), "fid", b, split, name=f"FID {side}[{_short(extractor, extractors)}]", extractor=extractor)
            for b in ("none", *shown)
            for split, side in _SIDES.items()
        ]
    columns += [made(_head("none"), "skill", split=split, name=f"skill {side}") for split, side in _SIDES.items()]
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


def _contrasts(source: Source, shown: Sequence[str]) -> Table:
    """What each method took from forgotten images beyond what it took from kept ones, before and after the attack."""
    extractors = list(dict.fromkeys(record.extractor for record in source.records if record.metric == "fid_contrast"))
    made = _columns(source.main)
    columns = [
        made(f"{name}, F - R", metric, budget, name=budget, extractor="" if metric == "skill_contrast" else extractor)
        for name, metric in _CONTRASTS.items()
        for extractor in ([""] if metric == "skill_contrast" else extractors)
        for budget in ("none", *shown)
    ]
    table = source.table("contrast", "What F lost beyond R, against the original", columns)
    return replace(table, notes=(*table.notes, *_forgetting(source)))


def _back(source: Source, budget: str) -> list[Table]:
    made = _columns(source.main)
    sides = _SIDES.items()
    if budget == "none":
        columns = [made("never gone", "recovered", split=split, name=name) for split, name in sides]
        columns += [made("skill", "skill", split=split, name=name) for split, name in sides]
    else:
        columns = [made("back", "back", budget, split, name=name) for split, name in sides]
        columns += [made("never gone", "recovered", split=split, name=name) for split, name in sides]
        columns += [
            made("F and control", "recovered", budget, name="all F"),
            made("F and control", "recovered", budget, "steered", name="steered"),
            made("F and control", "selectivity", budget),
            made("F and control", "residual_knowledge", budget),
        ]
        columns += [
            made(name, "back", budget, split, name=side, attack=name) for name in source.others for split, side in sides
        ]
    near = [
        made(title, metric, budget, split, name=name)
        for title, metric in (("MSE", "mse_original"), ("PSNR", "psnr"))
        for split, name in sides
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
    columns = [
        made(f"{side} back at", "back", budget, split, name=printable(budget))
        for split, side in _SIDES.items()
        for budget in source.budgets
    ]
    title = f"Images that had gone and are back (%) along the curve of {printable(source.main)}"
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
    shown = {column.place.metric for column in columns if column.place is not None}
    names = {column.name for column in columns}
    if any(metric.endswith("_contrast") for metric in shown):
        yield "F - R: fall of skill or IS, rise of FID or KID, since the original: on F minus on R; 0: as much on both"
    if "skill" in {metric.partition("_")[0] for metric in shown}:
        yield "skill: 100 % is the true image, 0 % no better than the mean colour of what is visible"
    if "back" in shown:
        yield "back: of the images that had gone, those within the protocol's distance of the original's output"
    if "never gone" in {column.group for column in columns}:
        yield "never gone: images within the protocol's distance without an attack; they are not counted as back"
    if {"mse_original", "psnr"} & shown:
        yield "MSE (masked patches) and PSNR (the same in dB): to the original's output on the same image"
    if "steered" in names:
        yield "all F: gone or not; steered: the same image, mask and search, towards the output for an unrelated image"
    if "selectivity" in shown:
        yield "selectivity: log2 of the distance left to the unrelated output over that to the own one, per image"
    if "residual_knowledge" in shown:
        yield "excess: all F minus the retrained model's under the same attack, in points"
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
    shares = _means(source, Place("recovered", "forget", "none", "none"))
    high = {method: value for method, value in shares.items() if value > 0.5}
    for method in ("retrain", "retrained"):
        if method in high:
            share = f"{100 * high[method]:.0f} %"
            yield f"even the [{method}] model makes {share} of F as the original does: that says little here"
    if methods := _methods(source, high):
        yield f"most of F was never gone for {', '.join(methods)}: there it was hardly unlearned"


def _forgetting(source: Source) -> Iterator[str]:
    """Which methods lost more on forgotten images than on kept ones, and kept these; or that none did."""
    board, place = board_of(source.records), Place("skill_contrast", "forget", "none", "none")
    kept = _means(source, Place("skill", "retain", "none", "none"))
    found = {method: estimate(board.get((method, place), ())) for method in kept}
    known = {method: interval.low for method, interval in found.items() if interval is not None and interval.over}
    measured = _methods(source, known)
    if not measured or "original" not in kept:
        return
    alike = [method for method, low in known.items() if low <= 0]
    spared = [method for method, value in kept.items() if value >= KEEPS * kept["original"]]
    good = [method for method in spared if known.get(method, 0) > 0]
    if methods := _methods(source, alike):
        yield f"F lost no more than R (95 % interval) with {', '.join(methods)}: what changed there is the whole model"
    if methods := _methods(source, [method for method in kept if method not in spared]):
        yield f"less than {100 * KEEPS:.0f} % of the original's skill is left on R with {', '.join(methods)}"
    if methods := _methods(source, good):
        yield f"F was forgotten and R kept by {', '.join(methods)}"
    else:
        yield f"none of {len(measured)} methods forgot F and kept R"


def _means(source: Source, place: Place) -> dict[str, float]:
    board = board_of(source.records)
    found = {method: estimate(board.get((method, place), ())) for method in dict.fromkeys(m for m, _ in board)}
    return {method: interval.mean for method, interval in found.items() if interval is not None}


def _methods(source: Source, among: Iterable[str]) -> list[str]:
    task = source.group.task
    return [printable(method) for method in row_order(among, task) if not is_control(method, task)]


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
