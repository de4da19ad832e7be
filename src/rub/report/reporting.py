"""What a report needs to know of a task, and how it finds that out: through the task's ``reporting``."""

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rub.errors import unknown
from rub.registry import TASKS
from rub.report.table import Table
from rub.store.records import Record


@dataclass(frozen=True)
class Axis:
    """What an axis of a figure shows.

    Attributes:
        metric: the metric's id.
        split: the images it is measured on.
        name: the short name that tables have for it.
        unit: ``%``, ``dB`` and the like; a share is drawn in percent, from 0 to 100.
    """

    metric: str
    split: str
    name: str
    unit: str = "%"

    @property
    def percent(self) -> bool:
        """Return whether it shows a share."""
        return self.unit == "%"

    @property
    def scale(self) -> float:
        """Return what a record's value is multiplied by."""
        return 100.0 if self.percent else 1.0

    @property
    def label(self) -> str:
        """Return the name with its unit.

        Example:
            >>> Axis("ua", "forget", "UA").label
            'UA (%)'
        """
        return f"{self.name} ({self.unit})"


@dataclass(frozen=True)
class Reporting:
    """What differs between the reports of two tasks.

    Attributes:
        title: the task in two or three words, for headings.
        first: the paper's table whose shape the first tables have, such as ``Table 1``.
        prefix: how the names of these first tables begin, such as ``table1``.
        tables: records of any tasks and the paper's numbers -> the tables of this task's records.
        headline: budgets, the smallest first -> those that the first table shows.
        robustness: a share that is small where a model is robust; figures show 100 minus it as robustness.
        utility: what unlearning should have left alone.
        unlike: rows that the utility of others is measured against, so that their own says nothing.
        controls: row -> what this control is, in plain words.
        words: what else tables and figures say -> in plain words.
        captions: first part of a figure's name -> what it shows.
    """

    title: str
    first: str
    prefix: str
    tables: Callable[[Sequence[Record], Mapping[str, Any] | None], list[Table]]
    headline: Callable[[Sequence[str]], list[str]]
    robustness: Axis
    utility: Axis
    controls: Mapping[str, str]
    words: Mapping[str, str]
    captions: Mapping[str, str]
    unlike: frozenset[str] = frozenset()


def reporting_of(task: str) -> Reporting:
    """Return how a task is reported.

    Raises:
        RubError: an unknown task.

    Example:
        >>> reporting_of("classification").first
        'Table 1'
    """
    if task not in (names := [entry.name for entry in TASKS.entries()]):
        raise unknown("task", task, names)
    module, _, attribute = TASKS.get(task, task).load().reporting.partition(":")
    found: Reporting = getattr(importlib.import_module(module), attribute)
    return found


def reportings(tasks: Iterable[str]) -> dict[str, Reporting]:
    """Return how these tasks are reported, in the order of the registry; names that it does not have are left out.

    Example:
        >>> list(reportings(["classification", "of-another-installation"]))
        ['classification']
    """
    asked = set(tasks)
    return {entry.name: reporting_of(entry.name) for entry in TASKS.entries() if entry.name in asked}
