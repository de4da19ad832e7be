"""One try at a stage: its time limit, what to do when memory runs out, and how its failure is told in one line."""

import gc
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Literal

from rub.errors import Diverged, NothingToMeasure, OutOfMemory, RubError
from rub.pipeline.graph import Stage
from rub.pipeline.memory import return_freed_memory
from rub.pipeline.runtime import Runtime, compute
from rub.pipeline.task import Task
from rub.store.artifacts import Artifact, Store

SMALLEST_BATCH = 8  # below it, a smaller batch frees little


@dataclass(frozen=True)
class Outcome:
    """How a stage ended.

    Attributes:
        status: ``cached`` (found in the store), ``done`` (computed now), ``failed`` or ``blocked`` (an input failed).
        reason: why it failed, one line.
    """

    status: Literal["cached", "done", "failed", "blocked"]
    artifact: Artifact | None = None
    reason: str = ""


def cached_outcome(stage: Stage, outcomes: Mapping[str, Outcome], store: Store) -> Outcome | None:
    """Outcome of a stage that need not run (cached, or blocked by a failed input), else None; its inputs have ended."""
    needs = (outcomes[need.key] for need in stage.inputs.values())
    if (lost := next((need for need in needs if need.artifact is None), None)) is not None:
        return Outcome("blocked", reason=lost.reason)
    found = store.find(stage.kind, stage.key)
    return None if found is None else Outcome("cached", found)


def inputs_of(stage: Stage, outcomes: Mapping[str, Outcome]) -> dict[str, Artifact]:
    """Role -> artifact of a stage whose inputs have all ended well."""
    found = {role: outcomes[need.key].artifact for role, need in stage.inputs.items()}
    return {role: artifact for role, artifact in found.items() if artifact is not None}


class TimedOut(BaseException):
    """The stage's time is up; no `Exception`, so that no method can catch it by accident."""


def attempt(
    stage: Stage,
    task: Task,
    inputs: Mapping[str, Artifact],
    store: Store,
    runtime: Runtime,
    minutes: float | None = None,
) -> Outcome:
    """Run a stage into the store and return how it ended; where memory runs out, again with half the batch.

    Models of earlier stages go first, if there are any. The time limit is of all tries together.

    Raises:
        RubError: the request itself is wrong; what the stage would go on from is kept, as where memory or time ran out.
    """
    others = len(runtime.cache) > 0
    try:
        with time_limit(minutes):
            while True:
                try:
                    return Outcome("done", compute(stage, task, inputs, store, runtime))
                except Exception as error:
                    lost = memory_lost(error, runtime)
                    if lost is None or (lost.batch < 2 * SMALLEST_BATCH and not others):
                        raise
                    if not others:
                        runtime = replace(runtime, batch_size=lost.batch // 2)
                _free(runtime)
                others = False
    except RubError:
        raise
    except TimedOut:
        return Outcome("failed", reason=f"{stage.label}: took longer than its limit of {minutes:g} minutes")
    except Diverged as error:
        store.forget_partial(stage.key)
        return Outcome("failed", reason=f"{stage.label}: diverged: {error}")
    except NothingToMeasure as error:
        return Outcome("failed", reason=f"{stage.label}: {error}")
    except Exception as error:
        if (lost := memory_lost(error, runtime)) is not None:
            traceback.clear_frames(error.__traceback__)  # what the stage held would be held until the error is gone
            _free(runtime)
            return Outcome("failed", reason=f"{stage.label}: out of memory, with {lost} too")
        store.forget_partial(stage.key)
        return Outcome("failed", reason=f"{stage.label}: {one_line(error)}")


def one_line(error: Exception) -> str:
    """Unforeseen error as one line: kind, first line of its message, and where its author looks first."""
    line = str(error).strip().split("\n")[0]
    frames = traceback.extract_tb(error.__traceback__)
    # The last line that is not inside a library.
    frame = next((item for item in reversed(frames) if "site-packages" not in item.filename), frames[-1])
    return f"{type(error).__name__}: {line} ({Path(frame.filename).name}:{frame.lineno})"


def memory_lost(error: Exception, runtime: Runtime) -> OutOfMemory | None:
    """What was held when memory ran out; None where it did not."""
    if isinstance(error, OutOfMemory):
        return error
    size = runtime.batch_size
    return OutOfMemory(f"batches of {size}", size) if out_of_memory(error) else None


@contextmanager
def told_in(unit: str, held: Callable[[], int], share: int) -> Iterator[None]:
    """Where memory runs out in the body, say how many of a unit it held: `share` of the runtime's batch for each.

    Raises:
        OutOfMemory: memory ran out.
    """
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)
        count = max(held(), 1)
        raise OutOfMemory(f"{count} {unit}{'s' * (count > 1)} at a time", share * count) from None


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: Python's, numpy's, or torch's on the CPU or a GPU.

    Example:
        >>> out_of_memory(MemoryError()), out_of_memory(ValueError("no"))
        (True, False)
    """
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


@contextmanager
def time_limit(minutes: float | None) -> Iterator[None]:
    """Raise `TimedOut` in the body when the time is up; only the main thread of a process that has alarms can."""
    if minutes is None or not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimedOut

    before, start = signal.signal(signal.SIGALRM, ring), time.monotonic()
    outer, _ = signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)
        # A caller's own alarm, if it had one, rings when it would have.
        left = max(outer - (time.monotonic() - start), 0.001) if outer else 0
        signal.setitimer(signal.ITIMER_REAL, left)


def limit_memory(gigabytes: float) -> None:
    """Let this process's own memory grow to so many GB at most: more gives an error, and the machine goes on."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (int(gigabytes * 1e9), resource.RLIM_INFINITY))
    except (ImportError, ValueError, OSError) as error:
        raise RubError(f"--max-memory {gigabytes:g}: this system cannot limit it ({error})") from None


def _free(runtime: Runtime) -> None:
    import torch

    runtime.cache.clear()
    gc.collect()
    return_freed_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
