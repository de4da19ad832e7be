"""What the keys of a result folder are the hashes of: ``stages.json``, and whether records and suite agree with it.

A stage's key hashes its spec and the keys of its inputs, so a key that stands in a record binds every setting behind
its number. The file holds the stages of a run, inputs first and without their keys, which anyone computes again.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, TypeAdapter

from rub.config.suite import Frozen
from rub.errors import RubError
from rub.pipeline.graph import Stage, key_of
from rub.store.artifacts import canonical
from rub.store.records import Record

NAME = "stages.json"
_LARGEST = 1 << 28  # bytes
_FACTS = {"method": "method", "seed": "unlearn_seed", "attack": "attack", "budget": "budget"}  # in a spec; of a record
_TRAINED = ("training", "model")  # what a network is trained with, in a spec as in an experiment


class StageFacts(Frozen):
    """A row of ``stages.json``: all that decides a stage's result. Inputs are numbers of rows before it, by role."""

    task: str
    kind: str
    version: int = Field(ge=0)
    spec: dict[str, Any]
    inputs: dict[str, int] = Field(default_factory=dict)


def facts_of(stages: Iterable[Stage]) -> list[StageFacts]:
    """Rows of stages, each with all its inputs before it."""
    numbers: dict[str, int] = {}
    rows: list[StageFacts] = []
    for stage in stages:
        inputs = {role: numbers[need.key] for role, need in stage.inputs.items()}
        numbers[stage.key] = len(rows)
        spec = json.loads(canonical(stage.spec))  # what is hashed
        rows.append(StageFacts(task=stage.task, kind=stage.kind, version=stage.version, spec=spec, inputs=inputs))
    return rows


def written(rows: Iterable[StageFacts]) -> str:
    """Text of ``stages.json``: a list, a row in a line."""
    return "[\n" + ",\n".join(json.dumps(row.model_dump(), sort_keys=True) for row in rows) + "\n]\n"


def read_stages(folder: Path) -> tuple[StageFacts, ...]:
    """``stages.json`` of a result folder; none where it has none.

    Raises:
        RubError: it is no list of stages.
    """
    place = folder / NAME
    if not place.is_file() or place.is_symlink():
        return ()
    try:
        if place.stat().st_size > _LARGEST:
            raise ValueError
        return TypeAdapter(tuple[StageFacts, ...]).validate_python(json.loads(place.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        raise RubError(f"{place}: should be a list of stages, of at most {_LARGEST >> 20} MiB") from None


def keys_of(rows: Sequence[StageFacts]) -> list[str]:
    """Key of each row.

    Raises:
        RubError: an input that is not before its stage.
    """
    keys: list[str] = []
    for row in rows:
        if any(not 0 <= number < len(keys) for number in row.inputs.values()):
            raise RubError(f"{NAME}: the stage in row {len(keys)} has an input that is not before it")
        inputs = {role: keys[number] for role, number in row.inputs.items()}
        try:
            keys.append(key_of(row.task, row.kind, row.version, row.spec, inputs))
        except RecursionError:
            raise RubError(f"{NAME}: the stage in row {len(keys)} is nested too deeply") from None
    return keys


def disagreements(
    rows: Sequence[StageFacts], records: Sequence[Record], suite: Mapping[str, Any]
) -> Iterator[tuple[Record, str]]:
    """Yield a record and what its stage, or one behind that, says otherwise than it or the suite does.

    Compared are the key and those of the inputs; method, seed, attack and budget; hyperparameters of the method;
    network and training of the original.
    """
    keys = keys_of(rows)
    by_key = {key: number for number, key in enumerate(keys)}
    asked = {(item.get("task"), item.get("name", "")): item for item in suite.get("experiments") or ()}
    told: dict[tuple[str, str], str] = {}  # what is wrong with the settings behind a stage, for an experiment
    for record in records:
        number = by_key.get(record.key)
        if number is None:
            yield record, f"its stage is not in {NAME}"
            continue
        row = rows[number]
        if tuple(keys[need] for _, need in sorted(row.inputs.items())) != record.inputs and record.status == "ok":
            yield record, "its stage has other inputs"
        for name, own in _FACTS.items():
            said = row.spec.get(name)
            if isinstance(said, str | int) and said != getattr(record, own):
                yield record, f"its stage is of {name} {said}"
        place = (record.key, record.experiment)
        if place not in told:
            told[place] = _settings(rows, number, record, asked.get((record.task, record.experiment), {}))
        if told[place]:
            yield record, told[place]


def _settings(rows: Sequence[StageFacts], number: int, record: Record, experiment: Mapping[str, Any]) -> str:
    unlearned = rows[number].inputs.get("unlearned")
    model = rows[number if unlearned is None else unlearned]
    made, methods = model.spec.get("method"), experiment.get("methods")
    if isinstance(made, dict) and isinstance(methods, dict) and record.method in methods:
        if made.get("name") != record.method:
            return f"its network was unlearned with {made.get('name')}"
        if other := _differs(methods[record.method], made.get("parameters")):
            return f"its network was unlearned with {other}"
    original = model.inputs.get("original")
    for name in _TRAINED:
        if original is not None and (other := _differs(experiment.get(name), rows[original].spec.get(name))):
            return f"its original was trained with {other}"
    return ""


def _differs(given: Any, used: Any) -> str:
    """The first setting of both that is not the same, such as ``lr = 0.1, not 0.2``; "" where all are."""
    if not isinstance(given, dict) or not isinstance(used, dict):
        return ""
    other = (
        f"{name} = {used[name]}, not {given[name]}" for name in given if name in used and used[name] != given[name]
    )
    return next(other, "")
