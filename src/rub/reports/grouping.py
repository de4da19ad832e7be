"""How records are gathered for tables and figures: comparable groups, row order, budgets, intervals and ties."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any, NamedTuple, Self

from rub.config.suite import main_among
from rub.metrics import statistics
from rub.metrics.dose import DOSES, dose_of
from rub.metrics.statistics import LEVEL, NORMAL, Interval, PerSample, Run, wilson
from rub.registry import CONTROLS, METHODS
from rub.store.records import Record, SampledRecord

_ROUNDING = 1e-6  # of intervals that were stored
_ENDLESS = ("unbounded", "free")  # budgets without a number, the smaller first


class Group(NamedTuple):
    """What records must share to stand in one table."""

    task: str
    suite: str
    experiment: str
    dataset: str
    model: str
    protocol: str
    scenario: str = ""

    @classmethod
    def of(cls, row: Record | Mapping[str, Any]) -> Self:
        """Group of a record, or of a row of another list, which older runs wrote without a scenario."""
        fields = row if isinstance(row, Mapping) else row.__dict__
        return cls(**{name: str(fields[name]) for name in cls._fields if name in fields or name != "scenario"})


class Place(NamedTuple):
    """Which cell of a group's row a record belongs to; numbers of different extractors never share one."""

    metric: str
    split: str
    attack: str
    budget: str
    extractor: str = ""


Mains = Mapping[tuple[str, str], str]
"""(task, protocol) -> its main attack, as the suites of results say it."""

Board = Mapping[tuple[str, Place], Sequence[Record]]
"""(method, place) -> the records behind that cell, one for each pair of seeds."""


def anchor(group: Group, method: str, place: Place) -> str:
    """Name, fit for a link, of the records behind a cell.

    Example:
        >>> group = Group("classification", "quick", "", "digits", "resnet10", "rub-quick-1")
        >>> anchor(group, "ft", Place("ua", "forget", "none", "none"))
        'c-00a9f461cf'
    """
    return "c-" + sha256(repr((tuple(group), method, tuple(place))).encode()).hexdigest()[:10]


def grouped(records: Iterable[Record], task: str) -> dict[Group, list[Record]]:
    """Records of each group of one task, groups in order of first appearance."""
    found: dict[Group, list[Record]] = defaultdict(list)
    for record in records:
        if record.task == task:
            found[Group.of(record)].append(record)
    return dict(found)


def main_attack(records: Iterable[Record], mains: Mains | None = None) -> str:
    """Main attack of the records of one protocol: what its suite says, else ``uma`` or the first that they name."""
    own = list(records)
    places = dict.fromkeys((record.task, record.protocol) for record in own)
    said = next((mains[place] for place in places if place in mains), None) if mains else None
    return main_among(dict.fromkeys(record.attack for record in own if record.attack != "none"), said)


def board_of(records: Iterable[Record]) -> Board:
    """Records of one group by row and cell."""
    board: dict[tuple[str, Place], list[Record]] = defaultdict(list)
    for record in records:
        board[record.method, place_of(record)].append(record)
    return dict(board)


def place_of(record: Record) -> Place:
    """Cell of its row that a record belongs to."""
    return Place(record.metric, record.split, record.attack, record.budget, record.extractor)


def controls_of(task: str) -> dict[str, str]:
    """Rows of a task that are no unlearning methods -> what each of them is; an audit calls its reference `retrained`.

    Example:
        >>> list(controls_of("classification"))[:5]
        ['original', 'retrain', 'retrained', 'sham', 'zero-row']
    """
    entries = sorted(CONTROLS.entries(task), key=lambda entry: not entry.always)
    return {entry.name: entry.summary for entry in entries}


def is_control(method: str, task: str) -> bool:
    """Whether a row of a task is no unlearning method.

    Example:
        >>> [is_control(row, "classification") for row in ("sham", "dose-10", "ft")]
        [True, True, False]
    """
    return method in controls_of(task) or method == DOSES or dose_of(method) is not None


def row_order(methods: Iterable[str], task: str) -> list[str]:
    """Controls first, doses from low to high after the original, then methods in RUB's order, then others as they come.

    Example:
        >>> row_order(["mine", "salun", "ft", "sham", "original"], "classification")
        ['original', 'sham', 'ft', 'salun', 'mine']
    """
    unique = list(dict.fromkeys(methods))
    doses = sorted((name for name in unique if dose_of(name) is not None), key=lambda name: dose_of(name) or 0.0)
    first = ["original", *(name for name in doses if name != "original")]
    known = list(dict.fromkeys((*first, *controls_of(task), *(entry.name for entry in METHODS.entries(task)))))
    return sorted(unique, key=lambda name: known.index(name) if name in known else len(known))


def level(budget: str) -> float:
    """A budget's number to sort by, of 1/255 or of attack steps; 0 for ``none``, infinity without a number.

    Example:
        >>> level("8/255"), level("100"), level("none"), level("l2:0.5")
        (8.0, 100.0, 0.0, 0.5)
    """
    head = re.match(r"[0-9]+(\.[0-9]+)?", budget.partition(":")[2] or budget.partition("/")[0], re.ASCII)
    return 0.0 if budget == "none" else float(head[0]) if head else math.inf


def kind_of(budget: str) -> str:
    """What a budget counts, where it says so: ``l2`` of ``l2:0.5``; budgets of two kinds do not compare.

    Example:
        >>> kind_of("8/255"), kind_of("l2:0.5")
        ('', 'l2')
    """
    return budget.partition(":")[0] if ":" in budget else ""


def budgets_of(records: Iterable[Record], attack: str | None = None) -> list[str]:
    """Budgets of one attack, or of all, kind by kind, the smallest first, ``unbounded`` and ``free`` last."""
    found = {record.budget for record in records if record.attack == (attack or record.attack)}

    def size(budget: str) -> tuple[str, float, int, str]:
        return kind_of(budget), level(budget), _ENDLESS.index(budget) if budget in _ENDLESS else -1, budget

    return sorted(found - {"none"}, key=size)


def run_of(record: Record) -> Run:
    """What statistics need to know of a measured record."""
    value = record.value or 0.0
    error = None
    if record.ci_low is not None and record.ci_high is not None:
        width = (record.ci_high - record.ci_low) / (2 * NORMAL)
        error = math.sqrt(value * (1 - value) / record.n) if is_share([record]) else width
    samples = PerSample(record.ids, record.values) if isinstance(record, SampledRecord) else None
    return Run(value, record.original, record.unlearn_seed or 0, record.mia_seed, record.n, error, samples)


def is_share(records: Iterable[Record]) -> bool:
    """Whether every measured record is a share of samples: its own interval is then Wilson's."""
    found = [record for record in records if record.value is not None]
    return bool(found) and all(_wilsons(record) for record in found)


def _wilsons(record: Record) -> bool:
    if record.ci_low is None or record.ci_high is None or record.n < 1 or not 0 <= (record.value or 0.0) <= 1:
        return False
    ends = wilson((record.value or 0.0) * record.n, record.n)
    return all(abs(end - own) < _ROUNDING for end, own in zip(ends, (record.ci_low, record.ci_high), strict=True))


def estimate(records: Iterable[Record], scale: float = 1.0) -> Interval | None:
    """Mean over the measured records with its interval (`rub.metrics.statistics.estimate`); None without any."""
    found = [record for record in records if record.value is not None]
    if not found:
        return None
    interval = statistics.estimate(list(map(run_of, found)), share=is_share(found))
    return replace(interval, mean=interval.mean * scale, low=interval.low * scale, high=interval.high * scale)


def told_apart(one: Iterable[Record], other: Iterable[Record]) -> bool:
    """Whether a paired test tells two cells apart; not where one has no value, or they share no run."""
    sides = [[record for record in side if record.value is not None] for side in (one, other)]
    left, right = (list(map(run_of, side)) for side in sides)
    try:
        return statistics.difference(left, right, share=is_share([*sides[0], *sides[1]])).p <= LEVEL
    except ValueError:
        return False


def tie_letters(rows: Mapping[str, Iterable[Record]]) -> dict[str, str]:
    """Letters of the rows of one cell that paired tests do not tell apart, the lowest mean a.

    Rows without a value have none, and nobody has where no pair can be tested: `rub.metrics.statistics.tie_letters`.
    """
    measured = {name: [record for record in found if record.value is not None] for name, found in rows.items()}
    runs = {name: list(map(run_of, found)) for name, found in measured.items() if found}
    share = is_share(record for found in measured.values() for record in found)
    return statistics.tie_letters(runs, "down", share=share)


def records_at(board: Board, method: str, place: Place) -> Sequence[Record]:
    """Records of a cell; where the place names no extractor, those of the first one that gave values."""
    exact = board.get((method, place), ())
    if place.extractor or any(record.value is not None for record in exact):
        return exact
    others = (found for (name, other), found in board.items() if name == method and other[:4] == place[:4])
    return next((found for found in others if any(record.value is not None for record in found)), exact)


def extracted(records: Sequence[Record]) -> list[Record]:
    """Records with failed cells given to every extractor of their metric: a failed stage names none."""
    known: dict[str, dict[str, None]] = defaultdict(dict)
    for record in records:
        if record.extractor:
            known[record.metric][record.extractor] = None
    return [
        record.model_copy(update={"extractor": name}) if name else record
        for record in records
        for name in (record.status == "failed" and not record.extractor and known[record.metric]) or ("",)
    ]
