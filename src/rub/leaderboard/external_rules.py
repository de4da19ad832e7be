"""Rules for models that others published, measured as they are: nothing in the folder of their audit was trained."""

from collections.abc import Iterator, Mapping
from typing import Any

from rub.audits.verdict_file import JSON, STATED, disagreements, read_verdict
from rub.leaderboard.rules import Candidate
from rub.reports.folders import mains_of
from rub.reports.lineage import StageFacts, keys_of, read_stages
from rub.reports.text import printable

ROWS = ("original", "unlearned", "retrained")


def published(candidate: Candidate) -> Iterator[str]:
    """What is not as an audit of published files leaves it: rows, what made their models, or the verdict."""
    folder, records, models = candidate.folder, candidate.found.records, models_of(candidate)
    for method in dict.fromkeys(record.method for record in records):
        if method not in ROWS:
            yield f"the row {printable(method)[:40]}: an audit has {', '.join(ROWS)}"
        elif not models.get(method, {}).get("checkpoint_sha256"):
            yield f"{method}: no stage in stages.json read its weights from a file, the same for all its numbers"
    if "unlearned" not in models:
        yield "no row of an unlearned model"
    if not (folder / JSON).is_file():
        yield f"{JSON} is missing; give a folder written by rub audit --out"
        return
    yield from disagreements(folder, records, mains_of(candidate.found.suite), STATED)
    said = (read_verdict(folder) or {}).get("models")
    for role, facts in models.items():
        own = said.get(role) if isinstance(said, dict) else None
        named = own.get("checkpoint_sha256") if isinstance(own, dict) else None
        if not isinstance(named, list) or not any(one in named for one in facts["checkpoint_sha256"]):
            yield f"{JSON} names another file of the {role} model than stages.json (another SHA-256)"


def models_of(candidate: Candidate) -> dict[str, dict[str, Any]]:
    """Row -> SHA-256 of its weights, and of the files that they were read from, which the keys of its stages stand for.

    There are no files of a row whose numbers are of several models, or of one that was made otherwise.

    Raises:
        RubError: ``stages.json`` is no list of stages.
    """
    stages = read_stages(candidate.folder)
    numbers = {key: number for number, key in enumerate(keys_of(stages))}
    made: dict[str, set[int]] = {}
    weights: dict[str, str] = {}
    for record in candidate.found.records:
        if (number := numbers.get(record.key)) is not None and "unlearned" in stages[number].inputs:
            while "unlearned" in stages[number].inputs:  # of the model, or of what was measured of it
                number = stages[number].inputs["unlearned"]
            made.setdefault(record.method, set()).add(number)
            weights.setdefault(record.method, record.weights_sha256)
    return {
        method: {
            "checkpoint_sha256": _files(stages[min(own)]) if len(own) == 1 else [],
            "weights_sha256": weights[method],
        }
        for method, own in made.items()
    }


def _files(stage: StageFacts) -> list[str]:
    given = stage.spec.get("sha256", {}) if stage.kind == "import" else {}
    return sorted(map(str, given.values())) if isinstance(given, Mapping) else [str(given)]
