"""The Ray engine: stages as Ray tasks on one machine or many. Ray schedules, retries and moves; nothing here does.

The driver looks at the store, hands every stage whose inputs are there to Ray, and waits. A worker computes a stage
with the same function as the inline engine and, with as many threads, to the same bytes. Where all nodes see the
store's folder, workers write there under its locks; where one does not, artifacts travel through Ray's object store and
the driver alone writes.
"""

import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from rub.config.documents import is_number
from rub.config.suite import Resources
from rub.errors import RubError
from rub.pipeline.cache import Cache
from rub.pipeline.execution import Outcome, attempt, cached_outcome, inputs_of
from rub.pipeline.graph import Stage, in_order
from rub.pipeline.progress import Display
from rub.pipeline.runtime import Runtime
from rub.pipeline.task import Task
from rub.registry import load_plugin
from rub.store.artifacts import Artifact, Store

POLL_SECONDS = 0.5
RETRIES = 3  # of a stage whose worker or node died
_MEMO = Cache()  # of a worker process, which Ray keeps for the next stage: models are loaded once
_PLUGGED: set[str] = set()  # plug-ins that this worker process has loaded


@dataclass(frozen=True)
class _Work:
    stage: Stage
    task: Task
    root: Path | None  # of the store, where the worker sees it
    runtime: Runtime
    threads: int
    minutes: float | None
    plugins: tuple[tuple[str, str], ...]  # file name and text of each


@dataclass(frozen=True)
class _Parcel:
    manifest: Mapping[str, Any]
    files: Mapping[str, bytes]


@contextmanager
def cluster(address: str | None, workers: int) -> Iterator[None]:
    """Join a Ray cluster, or start Ray here with so many cores and end it afterwards."""
    try:
        import ray
    except ImportError:
        raise RubError("--engine ray: Ray is not installed; pip install 'rub-bench[ray]'") from None
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "ignore_reinit_error": True}
    joined = ray.is_initialized()
    if not joined:
        _answers(address)
        try:
            if address is not None:
                ray.init(address=address, **quiet)
            else:
                ray.init(num_cpus=max(workers, 1), include_dashboard=False, **quiet)
        except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            first = str(error).strip().split("\n")[0]
            hint = "" if os.environ.get("RAY_AUTH_MODE") else "; if it asks for a token, set RAY_AUTH_MODE=token"
            raise RubError(f"--ray-address {address}: no Ray cluster answers ({first}){hint}") from None
    try:
        yield
    finally:
        if not joined:
            ray.shutdown()


def _answers(address: str | None) -> None:  # Ray itself would try for minutes
    host, _, port = (address or "").rpartition(":")
    if not host or not is_number(port):
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise RubError(f"--ray-address {address}: no Ray cluster answers ({error})") from None


def run_ray(
    stages: Sequence[Stage],
    tasks: Mapping[str, Task],
    store: Store,
    runtime: Runtime,
    display: Display,
    resources: Mapping[str, Resources],
    plugins: Sequence[Path] = (),
    shared: bool | None = None,
) -> dict[str, Outcome]:
    """Run every missing stage as a Ray task; as `rub.pipeline.inline.run_inline`.

    Plug-ins travel with the work. `shared` is whether all nodes see the store's folder; they are asked when None.
    """
    import ray

    shared = _all_see(store.root) if shared is None else shared
    texts = tuple((path.name, path.read_text(encoding="utf-8")) for path in plugins)
    here = ray.get_runtime_context().get_node_id()
    plain = replace(runtime, cache=Cache())
    driver = _Driver(tasks, store, plain, resources, texts, shared, ray.remote(_work), here)
    pending = in_order(stages)
    display.start(pending, store)
    outcomes: dict[str, Outcome] = {}
    running: dict[Any, Stage] = {}
    try:
        while pending or running:
            waiting = []
            for stage in pending:
                if any(need.key not in outcomes for need in stage.inputs.values()):
                    waiting.append(stage)
                elif (ended := cached_outcome(stage, outcomes, store)) is not None:
                    outcomes[stage.key] = ended
                    display.ended(stage, ended.status, ended.reason)
                else:
                    running[driver.submit(stage, outcomes)] = stage
                    display.began(stage)
            pending = waiting
            ready, _ = ray.wait(list(running), timeout=POLL_SECONDS) if running else ([], [])
            for reference in ready:
                stage = running.pop(reference)
                outcome = driver.received(stage, reference)
                if outcome is None:  # another process has it in hand
                    display.waiting(stage, store.holder(stage.key))
                    with store.try_lock(stage.key):  # the driver alone looks long enough to see that a node has died
                        pass
                    pending.append(stage)
                    time.sleep(POLL_SECONDS)
                    continue
                outcomes[stage.key] = outcome
                display.ended(stage, outcome.status, outcome.reason)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
    return outcomes


@dataclass
class _Driver:
    tasks: Mapping[str, Task]
    store: Store
    runtime: Runtime
    resources: Mapping[str, Resources]
    plugins: tuple[tuple[str, str], ...]
    shared: bool
    remote: Any  # `_work`, for Ray
    here: str  # the driver's node
    parcels: dict[str, Any] = field(default_factory=dict)  # key -> artifact in Ray's object store
    homes: dict[str, str] = field(default_factory=dict)  # key -> node that has it in memory

    def submit(self, stage: Stage, outcomes: Mapping[str, Outcome]) -> Any:
        """Hand a stage to Ray with its requests, near the node that has its largest input in memory."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        asked = self.resources.get(stage.key, Resources())
        # Files lie on the driver's machine; every node has them only where it has the store's folder too.
        pinned = bool(stage.files) and not self.shared
        home = self.here if pinned else self.homes.get(_heaviest(stage))
        options: dict[str, Any] = {
            "num_cpus": asked.cpus,
            "num_gpus": asked.gpus if self.runtime.device.startswith("cuda") else 0,
            "max_retries": RETRIES,
            "name": stage.label,
        }
        if asked.memory_gb:
            options["memory"] = int(asked.memory_gb * 1e9)
        if home is not None:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(home, soft=not pinned)
        work = _Work(
            stage, self.tasks[stage.task], self.store.root if self.shared else None, self.runtime,
            max(int(asked.cpus), 1), asked.minutes, self.plugins,
        )  # fmt: skip
        sent = {role: self._sent(artifact) for role, artifact in inputs_of(stage, outcomes).items()}
        return self.remote.options(**options).remote(work, list(sent), *sent.values())

    def received(self, stage: Stage, reference: Any) -> Outcome | None:
        """Outcome of a stage, with its artifact in the driver's store; None where another process has it."""
        import ray

        try:
            status, content, node = ray.get(reference)
        except ray.exceptions.RayError as error:
            first = str(error).strip().split("\n")[0]
            return Outcome("failed", reason=f"{stage.label}: its worker died {RETRIES + 1} times ({first})")
        if status == "wrong":
            raise RubError(content)
        if status == "failed":
            return Outcome("failed", reason=content)
        if status == "busy":
            return None
        self.homes.setdefault(_heaviest(stage), node)
        if content is None:
            found = self.store.find(stage.kind, stage.key)
            lost = f"{stage.label}: its artifact is not in {self.store.root}; do all nodes see this folder?"
            return Outcome("failed", reason=lost) if found is None else Outcome("done", found)
        return Outcome("done", unpack(content, self.store))

    def _sent(self, artifact: Artifact) -> Any:
        import ray

        if self.shared:
            return (artifact.manifest["kind"], artifact.key)
        if artifact.key not in self.parcels:
            self.parcels[artifact.key] = ray.put(pack(artifact))
        return self.parcels[artifact.key]


def pack(artifact: Artifact) -> _Parcel:
    """Artifact as one value that can travel."""
    names = artifact.manifest["files"]
    return _Parcel(dict(artifact.manifest), {name: artifact.file(name).read_bytes() for name in names})


def unpack(parcel: _Parcel, store: Store) -> Artifact:
    """Write a travelled artifact into a store, under its own manifest, and return it."""
    kind, key = parcel.manifest["kind"], parcel.manifest["key"]
    found = store.find(kind, key)
    if found is not None:
        return found

    def fill(out: Path) -> None:
        for name, content in parcel.files.items():
            (out / name).write_bytes(content)

    facts = {name: value for name, value in parcel.manifest.items() if name not in ("kind", "key", "files", "seal")}
    return store.write(kind, key, facts, fill)


def _work(work: _Work, roles: Sequence[str], *sent: Any) -> tuple[str, Any, str]:
    # How it ended ("done", "failed", "busy": another process has it, "wrong": the request is), with the parcel where
    # artifacts travel or the reason; and the node.
    import ray
    import torch

    torch.set_num_threads(work.threads)
    node = ray.get_runtime_context().get_node_id()
    runtime = replace(work.runtime, cache=_MEMO)
    try:
        for name, text in work.plugins:
            _plug(name, text)
        if work.root is not None:
            return (*_on_shared(work, Store(work.root), dict(zip(roles, sent, strict=True)), runtime), node)
        with tempfile.TemporaryDirectory(prefix="rub-ray-") as place:
            store = Store(Path(place))
            inputs = {role: unpack(parcel, store) for role, parcel in zip(roles, sent, strict=True)}
            outcome = attempt(work.stage, work.task, inputs, store, runtime, work.minutes)
            runtime.cache.clear()  # it may hold files that are about to go
            if outcome.artifact is None:
                return "failed", outcome.reason, node
            return "done", pack(outcome.artifact), node
    except RubError as error:
        return "wrong", str(error), node


def _on_shared(work: _Work, store: Store, sent: Mapping[str, tuple[str, str]], runtime: Runtime) -> tuple[str, Any]:
    found = {role: store.find(kind, key) for role, (kind, key) in sent.items()}
    inputs = {role: artifact for role, artifact in found.items() if artifact is not None}
    if len(inputs) < len(found):
        return "busy", ""  # damaged meanwhile: the driver sees to it
    with store.try_lock(work.stage.key) as ours:
        if not ours:
            return "busy", ""
        if store.find(work.stage.kind, work.stage.key) is not None:
            return "done", None
        outcome = attempt(work.stage, work.task, inputs, store, runtime, work.minutes)
    return ("done", None) if outcome.artifact is not None else ("failed", outcome.reason)


def _plug(name: str, text: str) -> None:
    if text not in _PLUGGED:
        _PLUGGED.add(text)
        place = Path(tempfile.mkdtemp(prefix="rub-plugin-")) / Path(name).name
        place.write_text(text, encoding="utf-8")
        load_plugin(place)


def _heaviest(stage: Stage) -> str:
    return max(stage.inputs.values(), key=lambda need: need.cost).key if stage.inputs else stage.key


def _all_see(root: Path) -> bool:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    mark = root / f".seen-{uuid4().hex}"
    mark.touch()
    try:
        looks = [
            ray.remote(_exists).options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(str(mark))
            for node in ray.nodes()  # type: ignore[no-untyped-call]
            if node["Alive"]
        ]  # fmt: skip
        return all(ray.get(looks))
    finally:
        mark.unlink()


def _exists(path: str) -> bool:
    return Path(path).exists()
