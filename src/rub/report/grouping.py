"""How records are gathered for tables and figures: comparable groups, row order, budgets, and clustered estimates."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rub.catalog import CATALOG
from rub.statistics import Interval, clustered_mean
from rub.store.records import Record

CONTROL_ROWS = ("original", "retrain", "retrained", "sham", "random_init")
"""Rows of any task that are no unlearning method; an audit calls its reference checkpoint ``retrained``."""
_ENDLESS = ("unbounded", "free")  # budgets without a number, the smaller first


class Group(NamedTuple):
    """What records must share to stand in one table."""

    task: str
    suite: str
    experiment: str
    dataset: str
    model: str
    protocol: str


class Place(NamedTuple):
    """Which cell of a group's row a record belongs to; numbers of different extractors never share one."""

    metric: str
    split: str
    attack: str
    budget: str
    extractor: str = ""


Board = Mapping[tuple[str, Place], Sequence[Record]]
"""(method, place) -> the records behind that cell, one for each pair of seeds."""


def grouped(records: Iterable[Record], task: str) -> dict[Group, list[Record]]:
    """Return the records of each group of one task, groups in order of first appearance.

    Example:
        >>> grouped([], "classification")
        {}
    """
    found: dict[Group, list[Record]] = defaultdict(list)
    for record in records:
        if record.task == task:
            found[Group(*(getattr(record, field) for field in Group._fields))].append(record)
    return dict(found)


def board_of(records: Iterable[Record]) -> Board:
    """Return the records of one group by row and cell."""
    board: dict[tuple[str, Place], list[Record]] = defaultdict(list)
    for record in records:
        board[record.method, place_of(record)].append(record)
    return dict(board)


def place_of(record: Record) -> Place:
    """Return the cell of its row that a record belongs to."""
    return Place(record.metric, record.split, record.attack, record.budget, record.extractor)


def row_order(methods: Iterable[str], task: str) -> list[str]:
    """Return controls first, then the methods that ship with RUB in its order, then others as they come.

    Example:
        >>> row_order(["mine", "salun", "ft", "sham", "original"], "classification")
        ['original', 'sham', 'ft', 'salun', 'mine']
    """
    known = (*CONTROL_ROWS, *CATALOG["method"].get(task, {}))
    unique = list(dict.fromkeys(methods))
    return sorted(unique, key=lambda name: known.index(name) if name in known else len(known))


def level(budget: str) -> float:
    """Return a budget in 1/255 steps, to sort by; 0 for ``none``, infinity for one without a number.

    Example:
        >>> level("8/255"), level("none")
        (8.0, 0.0)
    """
    head = budget.partition("/")[0]
    return 0.0 if budget == "none" else float(head) if head.isdecimal() else math.inf


def budgets_of(records: Iterable[Record], attack: str | None = None) -> list[str]:
    """Return the budgets of one attack, or of all, the smallest first; ``unbounded`` and ``free`` are the largest."""
    found = {record.budget for record in records if record.attack == (attack or record.attack)}

    def size(budget: str) -> tuple[float, int, str]:
        return level(budget), _ENDLESS.index(budget) if budget in _ENDLESS else -1, budget

    return sorted(found - {"none"}, key=size)


def estimate(records: Iterable[Record], scale: float = 1.0) -> Interval | None:
    """Return the mean over the measured records with its interval clustered by unlearning seed; None without any."""
    found = [(record.value * scale, record.unlearn_seed or 0) for record in records if record.value is not None]
    return clustered_mean([value for value, _ in found], [seed for _, seed in found]) if found else None


def seed_means(records: Iterable[Record]) -> dict[int, float]:
    """Return the mean value of each unlearning seed."""
    values: dict[int, list[float]] = defaultdict(list)
    for record in records:
        if record.value is not None:
            values[record.unlearn_seed or 0].append(record.value)
    return {seed: sum(found) / len(found) for seed, found in values.items()}


def printable(text: str) -> str:
    """Return text without control characters, which could drive a terminal; records may come from others.

    Example:
        >>> printable("a" + chr(27) + "[2Jb")
        'a?[2Jb'
    """
    return "".join(char if char.isprintable() else " " if char.isspace() else "?" for char in text)


def slug(text: str) -> str:
    """Return text fit for a file name on every system: lower case, letters, digits and dashes.

    Example:
        >>> slug("CIFAR 10/<b>")
        'cifar-10--b'
    """
    return "".join(char if char.isascii() and char.isalnum() else "-" for char in text.lower()).strip("-") or "unnamed"
