"""Which rows are wrecks: models that lost most of what they should have kept, whatever else their numbers show."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rub.reports.grouping import Place, board_of, estimate
from rub.reports.text import printable
from rub.store.records import Record

if TYPE_CHECKING:
    from rub.reports.task_report import Axis

DESTROYED = 0.5  # of the original's utility above chance: less than this is a wreck
_CLASSES = re.compile(r"of ([1-9][0-9]{0,6}) classes")  # what records of accuracy say in `setting`


def wrecks(records: Sequence[Record], utility: "Axis") -> Mapping[str, str]:
    """Method -> how much is left of its utility, of those that keep less than half of the original's above chance.

    Args:
        records: of one group.
        utility: what unlearning should have left alone; higher is better.
    """
    board, place = board_of(records), Place(utility.metric, utility.split, "none", "none")
    before = estimate(board.get(("original", place), ()), utility.scale)
    if before is None:
        return {}
    chance = _chance(board["original", place]) * utility.scale
    found = {}
    for method in dict.fromkeys(record.method for record in records):
        left = estimate(board.get((method, place), ()), utility.scale)
        if left is not None and left.mean - chance < DESTROYED * (before.mean - chance):
            values = f"{left.mean:.1f} {utility.unit}, the original's {before.mean:.1f} {utility.unit}"
            found[method] = printable(f"{utility.name} {values}")
    return found


def _chance(records: Sequence[Record]) -> float:
    """Accuracy of guessing, where records say among how many classes; else 0."""
    found = next((match for record in records if (match := _CLASSES.search(record.setting))), None)
    return 1 / int(found[1]) if found else 0.0
