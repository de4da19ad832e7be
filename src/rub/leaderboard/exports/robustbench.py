"""One model's results as a JSON file like those in ``model_info/`` of RobustBench, for classifiers.

https://github.com/RobustBench/robustbench: a file per model in ``model_info/DATASET/THREAT/NAME.json``; its fields are
those of ``ModelInfo`` in ``robustbench/utils.py`` with ``unreliable``, its accuracies texts in percent. RobustBench
asks whether a model keeps its answer on attacked test images, RUB whether an attack brings a forgotten answer back:
``autoattack_acc`` and ``reported`` are null here, and what RUB measured stands under ``rub``, in percent too.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rub.errors import RubError
from rub.leaderboard.exports.scores import check_measured, check_source, interval_of, one_group, to_json
from rub.metrics.dose import DOSE
from rub.registry import METHODS, card_of
from rub.reports.doses import is_flat
from rub.reports.folders import mains_of
from rub.reports.grouping import (
    Board,
    Group,
    Place,
    board_of,
    budgets_of,
    controls_of,
    extracted,
    kind_of,
    main_attack,
)
from rub.reports.task_report import report_of
from rub.reports.text import printable
from rub.store.records import Record

TASK = "classification"
_THREATS = {"": "Linf", "l2": "L2", "corruption": "corruptions"}  # RobustBench's names
_PAPER = re.compile(r"(?P<authors>[^,;]+), (?P<name>[^;]+), (?P<venue>[A-Z][^,;]* (19|20)\d{2})(, arXiv [\d.]+)?\W.*")
_ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")
_CLEAN = {"ta": "test", "ra": "retain"}  # metric -> split


def robustbench(
    records: Sequence[Record], *, method: str, source: str = "", suite: Mapping[str, Any] | None = None
) -> str:
    """One method's results on one network and data set as a JSON object.

    ``clean_acc`` is the accuracy on all test images, those of forgotten classes among them; ``eps`` the largest budget
    that Table 1 shows, and ``unreliable`` whether a search was still improving there. ``rub`` has TA, RA and UA, UA
    after the main attack at each budget, and dose-equivalents; its ``controls`` the same of each control.

    Args:
        records: of one run; other methods' are left out, except for the controls.
        method: as records name it.
        source: address of a page or folder with the records, or "".
        suite: as plain data; it says the main attack of a protocol of one's own.

    Raises:
        RubError: no measured record of the method, none of a classifier, records of several models, or a source that is
            no web address.

    Example:
        >>> import json
        >>> fields = {"task": "classification", "suite": "s", "experiment": "", "protocol": "rub-paper-1", "key": "k"}
        >>> fields |= {"dataset": "digits", "model": "resnet10", "split": "forget", "metric": "ua", "direction": "down"}
        >>> row = {"method": "ft", "n": 100, "unlearn_seed": 0, "mia_seed": None}
        >>> clean = Record(**fields, **row, attack="none", budget="none", value=0.02)
        >>> attacked = Record(**fields, **row, attack="uma", budget="8/255", value=0.5)
        >>> found = json.loads(robustbench([clean, attacked], method="ft"))
        >>> found["venue"], found["eps"], found["rub"]["ua"]["8/255"]["value"]
        ('NDSS 2023', '8/255', 50.0)
    """
    check_measured(records, method)
    check_source(source)
    classifiers = [record for record in records if record.task == TASK]
    if not any(record.method == method for record in classifiers):
        other = next(record.task for record in records if record.method == method)
        raise RubError(f"RobustBench is of classifiers: method '{printable(method)}' is of the task {printable(other)}")
    check_measured(classifiers, method)
    group = one_group(classifiers, method)
    own = extracted([record for record in classifiers if Group.of(record) == group])
    main, board = main_attack(own, mains_of(suite or {})), board_of(own)
    budgets = budgets_of(own, main) if main else []
    eps = report_of(TASK).headline(budgets)[-1] if budgets else ""
    searched = board.get((method, Place("ua", "forget", main, eps)), ())
    stopped = any(record.converged is False for record in searched)
    clean = _percent(board, method, Place("ta_all", "test", "none", "none"))
    present = {name for name, _ in board if name != method}
    return to_json(
        {
            **_paper(method, source),
            "additional_data": None,
            "number_forward_passes": 1,
            "dataset": group.dataset,
            "architecture": group.model,
            "threat_model": _THREATS.get(kind_of(eps), kind_of(eps)) if eps else None,
            "eps": eps.partition(":")[2] or eps or None,
            "clean_acc": None if clean is None else f"{clean['value']:.2f}",
            "reported": None,
            "autoattack_acc": None,
            "unreliable": stopped if main else None,
            "footnote": _footnote(group, main, stopped),
            "rub": {
                "method": method,
                "records": source or None,
                "suite": group.suite,
                "experiment": group.experiment,
                "protocol": group.protocol,
                "scenario": group.scenario or "classes",
                "attack": main or None,
                **_row(board, method, main, budgets),
                "controls": {
                    name: _row(board, name, main, budgets) for name in controls_of(TASK) if name in present
                },
            },
        }
    )  # fmt: skip


def _row(board: Board, method: str, main: str, budgets: Sequence[str]) -> dict[str, Any]:
    """TA, RA, UA without an attack and at each budget of the main one, and the dose-equivalents of what is left."""
    left = report_of(TASK).left
    attacked = {budget: Place("ua", "forget", main, budget) for budget in budgets}
    places = {"none": Place("ua", "forget", "none", "none"), **attacked}
    doses = {left: {"none": Place(left, "forget", "none", "none")}, "ua": places}
    return {
        **{metric: _percent(board, method, Place(metric, split, "none", "none")) for metric, split in _CLEAN.items()},
        "ua": {budget: _percent(board, method, place) for budget, place in places.items()},
        "dose_equivalent": {
            metric: {budget: _dose(board, method, place) for budget, place in known.items()}
            for metric, known in doses.items()
        },
    }


def _percent(board: Board, method: str, place: Place) -> dict[str, Any] | None:
    """A share in percent with its 95 % interval and N; None where it is not measured."""
    return _number(board.get((method, place), ()), 100.0, "n")


def _dose(board: Board, method: str, place: Place) -> dict[str, Any] | None:
    """A dose-equivalent in percent; None where there is none, or where the metric does not go with the dose."""
    found = board.get((method, place._replace(metric=place.metric + DOSE)), ())
    number = None if is_flat(board, place) else _number(found, 1.0, "models")
    return number and {**number, "bound": found[0].setting or None}


def _number(records: Sequence[Record], scale: float, counted: str) -> dict[str, Any] | None:
    interval = interval_of(records)
    if interval is None:
        return None
    mean, *ends = (
        round(scale * value, 2) if math.isfinite(value) else None
        for value in (interval.mean, interval.low, interval.high)
    )
    low, high = ends if interval.over else (None, None)
    counts = {record.n for record in records if record.value is not None}
    return {"value": mean, "low": low, "high": high, counted: max(counts)}


def _paper(method: str, source: str) -> dict[str, str]:
    """Link, title, authors and venue of the method's paper, as far as its card says them."""
    entry = next((one for one in METHODS.entries(TASK) if one.name == method), None)
    said = card_of(entry).paper if entry is not None else ""
    parts, arxiv = _PAPER.fullmatch(f"{said} "), _ARXIV.search(said)
    return {
        "link": f"https://arxiv.org/abs/{arxiv[1]}" if arxiv else source,
        "name": parts["name"] if parts else said or method,
        "authors": parts["authors"] if parts else "",
        "venue": parts["venue"] if parts else "",
    }


def _footnote(group: Group, main: str, stopped: bool) -> str:
    parts = [
        "Measured by RUB, which searches for inputs that bring forgotten images back, and not for ones that mislead:"
        " autoattack_acc and reported are not measured",
        f"main attack {main}" if main else "no attack was run",
        f"protocol {group.protocol}, suite {group.suite}",
        *(["the search was still improving at its last step: UA is a lower bound"] if stopped else []),
    ]
    return "; ".join(parts) + "."
