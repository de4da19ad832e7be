"""What exports are made of: the measured cells of one method, each with its interval and the controls beside it."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from rub.errors import RubError, unknown
from rub.metrics.base import Direction, Metric, metrics_of
from rub.metrics.dose import DOSE, SMALLEST, SPEARMAN
from rub.metrics.statistics import OWN, SAMPLES, Interval
from rub.registry import TASKS
from rub.reports.doses import on_scale
from rub.reports.grouping import Board, Group, Place, board_of, controls_of, estimate, extracted, grouped, place_of
from rub.reports.tables import label
from rub.reports.text import printable, slug
from rub.store.records import Record

BENCHMARK = "rub-bench/{task}"
"""Id of the data set on the Hub that holds a task's leaderboards; it does not exist yet."""
BETTER: Mapping[Direction, str] = {
    "up": "higher is better",
    "down": "lower is better",
    "reference": "closest to the retrained model is best",
}
_WEB = re.compile(r"https?://[^\s/]+(/\S*)?")
_OF_DOSES = ("images", "dose models", "the row's own models")  # what the interval of a dose-equivalent is over
_BOUNDS = ("<=", ">=")  # what the setting of a dose-equivalent may be
_ON_SCALE: Mapping[str, Mapping[str, Any]] = {
    DOSE: {"title": "{} dose", "meaning": "share of the forget set in a training from scratch that gives the same {}",
           "unit": "percent", "high": 100.0, "knowledge": "rises"},
    SPEARMAN: {"title": "{} Spearman", "meaning": "rank correlation with the dose of: {}", "unit": "correlation",
               "low": -1.0, "high": 1.0},
    SMALLEST: {"title": "{} told from", "meaning": "smallest dose that is told from none by: {}", "unit": "percent",
               "high": 100.0},
}  # fmt: skip


@dataclass(frozen=True)
class Score:
    """One measured cell of a row.

    Attributes:
        group: what its records share.
        records: those behind it, one for each pair of seeds, failed ones among them.
        interval: mean over the measured ones with its 95 % interval.
        controls: the same cell's interval of every control that has it, but for the row itself.
    """

    group: Group
    records: Sequence[Record]
    interval: Interval
    controls: Mapping[str, Interval]

    @property
    def measured(self) -> list[Record]:
        """The records that have a value."""
        return [record for record in self.records if record.value is not None]

    @property
    def place(self) -> Place:
        """Metric, split, attack, budget and extractor."""
        return place_of(self.records[0])

    @property
    def task_id(self) -> str:
        """Id of its leaderboard."""
        return task_id(self.records[0])

    @property
    def date(self) -> str | None:
        """When the last of its records was made, as ISO 8601; None where one does not say so."""
        found = date_of(self.measured)
        return None if found is None else found.isoformat()

    @property
    def metric(self) -> Metric | None:
        """What is declared of its metric; None of one that is not known here."""
        return metric_of(self.group.task, self.place.metric)

    @property
    def where(self) -> str:
        """Samples, attack and budget in words."""
        _, split, attack, budget, _ = self.place
        return f"on {split} " + ("without an attack" if attack == "none" else f"after {attack} at {budget}")

    @property
    def count(self) -> str:
        """Number of samples behind the value; several where runs differ, and "" where it is over models."""
        if on_scale(self.measured[0]):
            return ""
        return "/".join(str(n) for n in sorted({record.n for record in self.measured}))

    @property
    def models(self) -> str:
        """How many models the value is over, in words."""
        if on_scale(self.measured[0]):
            return f"{self.measured[0].n} models together"
        count = len({(record.original, record.unlearn_seed) for record in self.measured})
        return f"mean over {count} models" if count > 1 else "one model"

    @property
    def over(self) -> str:
        """What the interval is over; "" where there is none."""
        return " x ".join(SAMPLES if name == OWN else name for name in self.interval.over)

    def remarks(self) -> Iterator[str]:
        """What the value needs said: failures, a search that was stopped, a bound."""
        if lost := len(self.records) - len(self.measured):
            yield f"{lost} of {len(self.records)} results failed and are left out"
        if any(record.converged is False for record in self.measured):
            yield "the attack was still improving at its last step"
        yield from (f"a bound: the dose is {setting} this" for setting in self._settings if setting in _BOUNDS)

    def conditions(self) -> Iterator[str]:
        """What else decides the value: the judge, reference set, splits, threshold."""
        if self.place.extractor:
            yield f"judge {self.place.extractor}"
        yield from (setting for setting in self._settings if setting not in _BOUNDS)

    @property
    def _settings(self) -> dict[str, None]:
        return dict.fromkeys(record.setting for record in self.measured if record.setting)


def scores_of(records: Sequence[Record], method: str) -> Iterator[Score]:
    """Measured cells of a row, group by group, in the order of the records."""
    for group, board in boards_of(records):
        others = [name for name in controls_of(group.task) if name != method]
        for (name, place), found in board.items():
            interval = interval_of(found) if name == method else None
            if interval is not None:
                beside = {other: interval_of(board.get((other, place), ())) for other in others}
                yield Score(group, found, interval, {other: own for other, own in beside.items() if own is not None})


def boards_of(records: Sequence[Record]) -> Iterator[tuple[Group, Board]]:
    """Records of each group by row and cell, tasks in the order of the records."""
    for task in dict.fromkeys(record.task for record in records):
        for group, own in grouped(records, task).items():
            yield group, board_of(extracted(own))


def interval_of(records: Sequence[Record]) -> Interval | None:
    """Mean with its interval; a dose-equivalent keeps its own ends, which no spread of values gives."""
    one = next((record for record in records if record.value is not None), None)
    if one is None or one.value is None or not on_scale(one):
        return estimate(records)
    if one.ci_low is None or one.ci_high is None:
        return Interval(one.value, math.nan, math.nan)
    return Interval(one.value, one.ci_low, one.ci_high, _OF_DOSES)


def metric_of(task: str, name: str) -> Metric | None:
    """What is declared of a metric, or of what the dose scale says of one; None of one that is not known here.

    Example:
        >>> found = metric_of("classification", "ua_dose")
        >>> found.title, found.unit, found.high
        ('UA dose', 'percent', 100.0)
    """
    known = {one.name: one for one in metrics_of(task)} if task in (entry.name for entry in TASKS.entries()) else {}
    if name in known:
        return known[name]
    for end, said in _ON_SCALE.items():
        base = known.get(name.removesuffix(end)) if name.endswith(end) else None
        if base is not None:
            words = {"title": said["title"].format(base.title), "meaning": said["meaning"].format(base.meaning)}
            return replace(base, name=name, **{"direction": "reference", "low": 0.0, "knowledge": "", **said, **words})
    return None


def task_id(record: Record) -> str:
    """What two values must share to compare; rows of one leaderboard differ in network and suite alone."""
    parts = (record.metric, record.split, record.attack, record.budget, record.protocol, record.dataset)
    return "/".join(slug(part) for part in (*parts, *filter(None, (record.experiment, record.extractor))))


def date_of(records: Sequence[Record]) -> datetime | None:
    """When the last of some records was made; None where one does not say so as ISO 8601 does."""
    try:
        dates = [datetime.fromisoformat(record.created) for record in records]
    except ValueError:
        return None
    return max((date if date.tzinfo else date.replace(tzinfo=UTC) for date in dates), default=None)


def check_measured(records: Sequence[Record], method: str) -> None:
    """Make sure that a row has a measured cell."""
    measured = sorted({printable(record.method) for record in records if record.value is not None})
    of_method = [record.value for record in records if record.method == method]
    if not of_method:
        raise unknown("method", printable(method), measured)
    if all(value is None for value in of_method):
        raise RubError(f"every cell of method '{printable(method)}' failed; measured: {', '.join(measured) or 'none'}")


def check_source(source: str) -> None:
    """Make sure that an address is one of the web, or ""."""
    if source and not (_WEB.fullmatch(source) and source.isprintable()):
        raise RubError(f"source '{printable(source)}': should be a web address such as https://example.org/results")


def one_group(records: Sequence[Record], method: str) -> Group:
    """The group of a row that a file of one model is about.

    Raises:
        RubError: the row is in several groups.
    """
    found = list(dict.fromkeys(Group.of(record) for record in records if record.method == method))
    if len(found) > 1:
        names = "; ".join(label(group) for group in found[:4]) + ("; ..." if len(found) > 4 else "")
        raise RubError(f"method '{printable(method)}' is {len(found)} models ({names}): one file is of one; give --task"
                       " or --experiment")  # fmt: skip
    return found[0]


def to_json(value: Any) -> str:
    """Plain data as JSON whose texts are all as of `printable`.

    Example:
        >>> print(to_json({"name": "a" + chr(27) + "[2J", "value": 0.5}), end="")
        {
         "name": "a?[2J",
         "value": 0.5
        }
    """
    return json.dumps(_shown(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable(str(key)): _shown(item) for key, item in value.items()}
    return [_shown(item) for item in value] if isinstance(value, list | tuple) else value
