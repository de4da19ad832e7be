"""The inline engine: runs what is missing, in order, in this process, and shares the work with others on one store."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread

from rich.console import Console

from rub.config.suite import Resources
from rub.errors import RubError
from rub.pipeline.cache import Cache
from rub.pipeline.execution import Outcome, attempt, cached_outcome, inputs_of
from rub.pipeline.graph import Stage, in_order
from rub.pipeline.progress import Display
from rub.pipeline.runtime import Runtime
from rub.pipeline.task import Task
from rub.registry import load_plugin
from rub.store.artifacts import Store

POLL_SECONDS = 0.2


def run_inline(
    stages: Sequence[Stage],
    tasks: Mapping[str, Task],
    store: Store,
    runtime: Runtime,
    display: Display,
    resources: Mapping[str, Resources] | None = None,
    *,
    workers: int = 1,
    plugins: Sequence[Path] = (),
) -> dict[str, Outcome]:
    """Run every missing stage, one after the other; a stage that fails blocks only what needs it.

    A stage that another process is computing is passed over and looked at again later, so any number of processes on
    one store share the work: `workers` of them here, this one included, which read the plug-ins' files first. Tasks are
    by name, resources and the outcomes, those of all that the stages need among them, by stage key.

    Raises:
        RubError: the request itself is wrong (a bad checkpoint, missing data, a full disk); finished stages are kept.
    """
    work = _Work(list(stages), dict(tasks), store, runtime, dict(resources or {}), list(plugins))
    with _helpers(workers - 1, work):
        return work.run(display)


@dataclass(frozen=True)
class _Work:
    stages: list[Stage]
    tasks: dict[str, Task]
    store: Store
    runtime: Runtime
    resources: dict[str, Resources]
    plugins: list[Path]

    def run(self, display: Display) -> dict[str, Outcome]:
        """Run stages until each has an outcome, here or in another process."""
        pending = in_order(self.stages)
        outcomes: dict[str, Outcome] = {}
        display.start(pending, self.store)
        while pending:
            postponed = []
            for stage in pending:
                outcome = self._one(stage, outcomes, display)
                if outcome is None:
                    postponed.append(stage)
                else:
                    outcomes[stage.key] = outcome
                    display.ended(stage, outcome.status, outcome.reason)
            if len(postponed) == len(pending):  # all that is left is in other hands
                display.waiting(postponed[0], self.store.holder(postponed[0].key))
                time.sleep(POLL_SECONDS)
            pending = postponed
        return outcomes

    def _one(self, stage: Stage, outcomes: Mapping[str, Outcome], display: Display) -> Outcome | None:
        if any(need.key not in outcomes for need in stage.inputs.values()):
            return None
        if (ended := cached_outcome(stage, outcomes, self.store)) is not None:
            return ended
        with self.store.try_lock(stage.key) as ours:
            if not ours:
                return None
            if (found := self.store.find(stage.kind, stage.key)) is not None:  # another process has just made it
                return Outcome("cached", found)
            display.began(stage)
            minutes = self.resources.get(stage.key, Resources()).minutes
            runtime = replace(self.runtime, progress=display.step)
            return attempt(stage, self.tasks[stage.task], inputs_of(stage, outcomes), self.store, runtime, minutes)


@contextmanager
def _helpers(count: int, work: _Work) -> Iterator[None]:
    # Small networks gain more from a second process than from a second thread: their operations are too short to split.
    if count == 0:
        yield
        return
    import torch

    before = torch.get_num_threads()
    threads = max(1, before // (count + 1))
    spawn = multiprocessing.get_context("spawn")
    theirs = replace(work, store=Store(work.store.root), runtime=replace(work.runtime, cache=Cache()))
    crew = [spawn.Process(target=_assist, args=(theirs, threads), daemon=True) for _ in range(count)]
    torch.set_num_threads(threads)
    for process in crew:
        process.start()
    try:
        yield
    finally:
        torch.set_num_threads(before)
        for process in crew:
            process.terminate()
            process.join()


def _assist(work: _Work, threads: int) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    Thread(target=_leave_with_the_first, daemon=True).start()
    torch.set_num_threads(threads)
    for path in work.plugins:
        load_plugin(path)
    # What goes wrong here, the first process meets and reports itself.
    with suppress(KeyboardInterrupt, RubError), Display(Console(), quiet=True) as display:
        work.run(display)


def _leave_with_the_first() -> None:  # as `_helpers` would have it, once the first process was killed and cannot
    if first := multiprocessing.parent_process():
        first.join()
        os.kill(os.getpid(), signal.SIGTERM)
