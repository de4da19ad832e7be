"""What a stage function receives, and how one stage is run into the store."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from rub.pipeline.cache import Cache
from rub.pipeline.callback import Progress, silent
from rub.pipeline.checkpointing import Checkpointer
from rub.pipeline.graph import Stage
from rub.pipeline.memory import retain_freed_memory
from rub.pipeline.task import Task
from rub.registry import load_target
from rub.store.artifacts import Artifact, Store, canonical


@dataclass(frozen=True)
class Runtime:
    """What does not change results: where and how fast a stage runs.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``.
        batch_size: images per forward pass in evaluation and attacks.
        data_root: folder with the standard data layouts, or None for the hub.
        progress: told of the running stage's steps.
        cache: this process's cache of loaded data and models.
        checkpoint_seconds: how often a long stage keeps the state that it would go on from.
        checkpointer: keeps the states of the running stage.
        compile: whether networks are compiled; see `rub.training.device`.
    """

    device: str = "cpu"
    batch_size: int = 256
    data_root: Path | None = None
    progress: Progress = silent
    cache: Cache = field(default_factory=Cache)
    checkpoint_seconds: float = 300.0
    checkpointer: Checkpointer = field(default_factory=Checkpointer)
    compile: bool = False

    def shared(self) -> dict[str, Any]:
        """What the contexts of training and attacks take over, as keyword arguments."""
        import torch

        names = ("progress", "checkpointer", "compile")
        return {"device": torch.device(self.device)} | {name: getattr(self, name) for name in names}


class StageFunction(Protocol):
    """A pure stage: reads its spec and artifacts, writes files into `out`."""

    def __call__(self, stage: Stage, inputs: Mapping[str, Artifact], out: Path, runtime: Runtime) -> None:
        """Write the stage's files into the empty directory `out`."""


def compute(stage: Stage, task: Task, inputs: Mapping[str, Artifact], store: Store, runtime: Runtime) -> Artifact:
    """Run one stage and write its artifact; where a run of it was killed, go on from the state that it kept."""
    function: StageFunction = load_target(task.functions[stage.kind])
    facts: dict[str, Any] = {
        "task": stage.task,
        "version": stage.version,
        "label": stage.label,
        "spec": stage.spec,
        "inputs": {role: artifact.key for role, artifact in inputs.items()},
        "device": device_name(runtime.device) + (", compiled" if runtime.compile else ""),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "code_version": code_version(),
        "library_versions": library_versions(),
    }
    if runtime.device.startswith("cuda"):
        import torch

        # A claim is made in full float32; torch's default rounds convolutions.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    # A state is read by the code and libraries that wrote it, on any device: results agree to rounding.
    mark = canonical([facts["code_version"], facts["library_versions"]]).decode()
    checkpointer = Checkpointer(store.partial(stage.key), runtime.checkpoint_seconds, mark, facts["device"])

    def fill(out: Path) -> None:
        with retain_freed_memory():
            function(stage, inputs, out, replace(runtime, checkpointer=checkpointer))
        facts["seconds"] = round(checkpointer.seconds, 3)
        facts["device"] = ", then ".join(checkpointer.devices)

    made = store.write(stage.kind, stage.key, facts, fill)
    store.forget_partial(stage.key)
    return made


@cache
def code_version() -> str:
    """Package version with a hash of its source, so that a record names the code that made it."""
    root = Path(__file__).resolve().parent.parent
    digest = sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{_version('rub-bench')}+{digest.hexdigest()[:10]}"


@cache
def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide numbers."""
    return {name: _version(name) for name in ("diffusers", "numpy", "scikit-learn", "scipy", "torch", "transformers")}


@cache
def device_name(device: str) -> str:
    """The device's own name with its number of threads, such as ``cpu AMD EPYC x2``."""
    import torch

    if device.startswith("cuda"):
        return f"cuda {torch.cuda.get_device_name(device)}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"cpu {next(names, 'unknown processor')} x{torch.get_num_threads()}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
