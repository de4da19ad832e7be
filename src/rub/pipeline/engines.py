"""The inline engine: runs what is missing, in order, in this process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rub.errors import Diverged, RubError
from rub.pipeline.plan import Stage, in_order
from rub.pipeline.progress import Display
from rub.pipeline.stages import Runtime, Task, compute
from rub.store.artifacts import Artifact, Store


@dataclass(frozen=True)
class Outcome:
    """How a stage ended.

    Attributes:
        status: ``cached`` (found in the store), ``done`` (computed now), ``failed`` or ``blocked`` (an input failed).
        artifact: its output when it has one.
        reason: why it failed, one line.
    """

    status: Literal["cached", "done", "failed", "blocked"]
    artifact: Artifact | None = None
    reason: str = ""


def run_inline(
    stages: Sequence[Stage], tasks: Mapping[str, Task], store: Store, runtime: Runtime, display: Display
) -> dict[str, Outcome]:
    """Run every missing stage, one after the other; a stage that fails blocks only what needs it.

    Returns:
        stage key -> outcome, for the stages given and all that they need.

    Raises:
        RubError: the request itself is wrong (a bad checkpoint, missing data, a full disk); finished stages are kept.
    """
    ordered = in_order(stages)
    outcomes: dict[str, Outcome] = {}
    display.start(ordered, [stage.key for stage in ordered if store.has(stage.kind, stage.key)])
    for stage in ordered:
        outcomes[stage.key] = _one(stage, tasks[stage.task], outcomes, store, runtime, display)
        display.ended(stage, outcomes[stage.key].status, outcomes[stage.key].reason)
    return outcomes


def _one(
    stage: Stage,
    task: Task,
    outcomes: Mapping[str, Outcome],
    store: Store,
    runtime: Runtime,
    display: Display,
) -> Outcome:
    needs = {role: outcomes[need.key] for role, need in stage.inputs.items()}
    broken = next((outcome for outcome in needs.values() if outcome.artifact is None), None)
    if broken is not None:
        return Outcome("blocked", reason=broken.reason)
    if (found := store.find(stage.kind, stage.key)) is not None:
        return Outcome("cached", found)
    inputs = {role: outcome.artifact for role, outcome in needs.items() if outcome.artifact is not None}
    with store.lock(stage.key, lambda: display.waiting(stage)):
        if (found := store.find(stage.kind, stage.key)) is not None:  # another process has just made it
            return Outcome("cached", found)
        display.began(stage)
        try:
            return Outcome("done", compute(stage, task, inputs, store, replace(runtime, progress=display.step)))
        except RubError:
            raise
        except Diverged as error:
            return Outcome("failed", reason=f"{stage.label}: diverged: {error}")
        except Exception as error:
            line = str(error).strip().split("\n")[0]
            return Outcome("failed", reason=f"{stage.label}: {type(error).__name__}: {line}")
