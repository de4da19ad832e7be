"""Stages, their identity, and the graph they form."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from rub.store.artifacts import canonical


@dataclass(frozen=True, eq=False)
class Stage:
    """One cached step: a pure function of its spec and of the artifacts that it names.

    Attributes:
        task: whose stage function runs it.
        kind: name of the stage function, such as ``"unlearn"``.
        version: version of that function; raised when its results change.
        label: what people see, such as ``"unlearn salun, seed 0"``.
        spec: the fields that decide the result; JSON values only.
        inputs: role -> the stage whose artifact it reads.
        files: role -> a path it reads; the hash of its content is in the spec, the path is not in the key.
        cost: estimated work in image passes (one forward of one image); for plans and time left.
        cells: the rows that the stage gives (method, attack, budget, split, metric, seeds, direction); when it fails,
            they are recorded as failed.
    """

    task: str
    kind: str
    version: int
    label: str
    spec: Mapping[str, Any]
    inputs: Mapping[str, "Stage"] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    cost: float = 0.0
    cells: tuple[Mapping[str, Any], ...] = ()

    @cached_property
    def key(self) -> str:
        """SHA-256 of what decides the result: no device, evaluation batch size, engine or path is in it."""
        inputs = {role: stage.key for role, stage in self.inputs.items()}
        return key_of(self.task, self.kind, self.version, self.spec, inputs)


def key_of(task: str, kind: str, version: int, spec: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """A stage's key from its facts and the keys of its inputs, 64 hex digits."""
    identity = {"task": task, "kind": kind, "version": version, "spec": spec, "inputs": dict(inputs)}
    return sha256(canonical(identity)).hexdigest()


@dataclass(frozen=True)
class Graph:
    """The stages of one experiment, and what all of its records have in common.

    Attributes:
        stages: the stages wanted; what they need is found through their inputs.
        common: record fields shared by all rows: task, experiment, protocol, dataset, model.
        notes: choices made for this experiment that a reader should know, one line each.
        originals: (method, unlearning seed) of a row -> number of the original that it belongs to; 0 where left out.
    """

    stages: tuple[Stage, ...]
    common: Mapping[str, str]
    notes: tuple[str, ...] = ()
    originals: Mapping[tuple[str, int], int] = field(default_factory=dict)


def in_order(stages: Iterable[Stage]) -> list[Stage]:
    """The stages and all they depend on, each once (by key), inputs before what needs them."""
    done: dict[str, Stage] = {}
    stack: list[tuple[Stage, bool]] = [(stage, False) for stage in reversed(list(stages))]
    while stack:
        stage, ready = stack.pop()
        if stage.key in done:
            continue
        if ready:
            done[stage.key] = stage
        else:
            stack.append((stage, True))
            stack.extend((need, False) for need in reversed(list(stage.inputs.values())))
    return list(done.values())
