"""Rules for models that others published, measured as they are: nothing in the folder of their audit was trained."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rub.audits.verdict_file import JSON, STATED, disagreements
from rub.errors import RubError
from rub.leaderboard.rules import Candidate
from rub.reports.folders import mains_of
from rub.reports.lineage import keys_of, read_stages
from rub.reports.text import printable

ROWS = ("original", "unlearned", "retrained")


def published(candidate: Candidate) -> Iterator[str]:
    """What is not as an audit of published files leaves it: rows, what made their models, or the verdict."""
    folder, records = candidate.folder, candidate.found.records
    try:
        models = models_of(candidate)
    except RubError as error:
        yield str(error)
        return
    for method in dict.fromkeys(record.method for record in records):
        if method not in ROWS:
            yield f"the row {printable(method)[:40]}: an audit has {', '.join(ROWS)}"
        elif not models.get(method, {}).get("checkpoint_sha256"):
            yield f"{method}: no stage in stages.json read its weights from a file"
    if "unlearned" not in models:
        yield "no row of an unlearned model"
    if not (folder / JSON).is_file():
        yield f"{JSON} is missing; give a folder written by rub audit --out"
        return
    yield from disagreements(folder, records, mains_of(candidate.found.suite), STATED)
    said = _checkpoints(candidate)
    for role, facts in models.items():
        if not set(facts["checkpoint_sha256"]) & set(said.get(role, ())):
            yield f"{JSON} names another file of the {role} model than stages.json (another SHA-256)"


def models_of(candidate: Candidate) -> dict[str, dict[str, Any]]:
    """Row -> SHA-256 of the files that its model was read from, as its stages are keyed by them, and of its weights.

    Raises:
        RubError: ``stages.json`` is no list of stages.
    """
    stages = read_stages(candidate.folder)
    numbers = {key: number for number, key in enumerate(keys_of(stages))}
    found: dict[str, dict[str, Any]] = {}
    for record in candidate.found.records:
        number = numbers.get(record.key)
        made = None if number is None else stages[number].inputs.get("unlearned")
        if made is None or record.method in found:
            continue
        given = stages[made].spec.get("sha256", {}) if stages[made].kind == "import" else {}
        files = sorted(map(str, given.values())) if isinstance(given, Mapping) else [str(given)]
        found[record.method] = {"checkpoint_sha256": files, "weights_sha256": record.weights_sha256}
    return found


def _checkpoints(candidate: Candidate) -> dict[str, list[str]]:
    """What ``verdict.json``, which `disagreements` read before, says of the files of each model."""
    try:
        models = json.loads((candidate.folder / JSON).read_text(encoding="utf-8"))["models"]
        return {role: list(map(str, facts["checkpoint_sha256"])) for role, facts in models.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
