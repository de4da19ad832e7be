"""An audit's verdict on paper: ``verdict.json`` for programs, ``verdict.html`` for people, one page that prints."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rub.errors import RubError
from rub.pipeline.runtime import code_version
from rub.reports.grouping import budgets_of, main_attack
from rub.reports.text import placeless, printable, without_places

if TYPE_CHECKING:
    from rub.audits.base import Report
    from rub.config.suite import Experiment
    from rub.reports.grouping import Mains
    from rub.store.records import Record

SCHEMA_VERSION = 1
LARGEST = 1 << 22  # bytes of a verdict
JSON, PAGE = "verdict.json", "verdict.html"
STATED = ("verdict", "why", "budget", "samples", "figures", "data", "network")
"""What of it the records give."""


def files(
    report: "Report", experiment: "Experiment", checkpoints: Mapping[str, Sequence[str]], limits: Sequence[str]
) -> dict[str, str]:
    """Texts of the two files.

    Args:
        report: of an audit.
        experiment: what was measured.
        checkpoints: role -> SHA-256 of the file that was read.
        limits: what the verdict does not say.
    """
    facts = told(report, experiment, checkpoints, limits)
    text = json.dumps(_finite(facts), indent=1, sort_keys=True, default=str)
    return {JSON: f"{text}\n", PAGE: _page(facts)}


def read_verdict(folder: Path) -> dict[str, Any] | None:
    """``verdict.json`` of a folder of anyone; None where it is no JSON object with a verdict, or too large."""
    place = folder / JSON
    try:
        if place.stat().st_size > LARGEST:
            return None
        said = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) and "verdict" in said else None


def disagreements(
    folder: Path, records: Sequence["Record"], mains: "Mains", names: Sequence[str] = ("verdict",)
) -> Iterator[str]:
    """What ``verdict.json`` of a folder says otherwise than its records give; nothing where there is none.

    Compared are these of `STATED`; its words may be others of another version of RUB, the verdict may not.
    """
    if not (folder / JSON).is_file() or not records:
        return
    if (said := read_verdict(folder)) is None:
        yield f"{JSON}: should be a JSON object with a verdict, of at most {LARGEST >> 20} MiB"
        return
    try:
        right = _stated(records, mains)
    except (RubError, ValueError, KeyError, ArithmeticError) as error:
        yield f"{JSON}: its records give no verdict ({printable(str(error))[:100]})"
        return
    for name in names:
        if name in right and said.get(name) != right[name]:
            what = "" if name == "verdict" else f"another {name}: "
            yield f"{JSON} says {what}{printable(str(said.get(name)))[:60]}; its records give {str(right[name])[:60]}"


def _stated(records: Sequence["Record"], mains: "Mains") -> dict[str, Any]:
    """What records give of a verdict, as JSON has it; of stages that failed the verdict alone."""
    from rub.audits.base import audit_of, conclude

    budgets = budgets_of(records, main := main_attack(records, mains))
    if any(record.status == "failed" for record in records) or not budgets:
        return {"verdict": "cannot tell"}
    facts = _concluded(conclude(records, main, budgets, audit_of(records[0].task)))
    made: dict[str, Any] = json.loads(json.dumps(_finite(facts), default=str))
    return made


def _concluded(report: "Report") -> dict[str, Any]:
    """The facts of `STATED`."""
    own = [row for row in report.records if row.method == "unlearned" and row.value is not None]
    figures = asdict(report.figures) if is_dataclass(report.figures) and not isinstance(report.figures, type) else None
    return {
        "verdict": report.verdict.name,
        "why": [without_places(sentence) for sentence in report.verdict.why],
        "budget": report.budget,
        "samples": max((row.n for row in own if row.attack != "none"), default=0),
        "figures": figures,
        "data": without_places(own[0].dataset) if own else "",
        "network": without_places(own[0].model) if own else "",
    }


def told(
    report: "Report", experiment: "Experiment", checkpoints: Mapping[str, Sequence[str]], limits: Sequence[str]
) -> dict[str, Any]:
    """What ``verdict.json`` says: verdict, why, the figures behind it, N, both models, data, date, how to verify."""
    weights = {row.method: row.weights_sha256 for row in report.records if row.weights_sha256}
    models = {
        role: {"checkpoint_sha256": list(checkpoints.get(role, ())), "weights_sha256": weights.get(role, "")}
        for role in dict.fromkeys((*checkpoints, *weights))
    }
    given = " ".join(f"--{role} FILE" for role in checkpoints)
    return {
        "schema_version": SCHEMA_VERSION,
        **_concluded(report),
        "task": experiment.task,
        "protocol": experiment.protocol.name,
        "forgotten": placeless(experiment.model_dump(mode="json").get("forget") or {}),
        "told": [without_places(line) for line in report.told],
        "models": models,
        "date": datetime.now(UTC).date().isoformat(),
        "code_version": code_version(),
        "verify": f"rub verify FOLDER {given}",
        "does_not_say": list(limits),
        "failures": [without_places(line) for line in report.failures],
    }


def _finite(value: Any) -> Any:
    """Plain data without NaN or infinity, which JSON has not."""
    if isinstance(value, Mapping):
        return {str(name): _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _page(facts: Mapping[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(loader=PackageLoader("rub.reports"), autoescape=True, undefined=StrictUndefined,
                       trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    return made.get_template("verdict.html.j2").render(**facts)
