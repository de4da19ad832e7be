"""The library's front door: run or plan a suite, audit two checkpoints. The command line only parses and prints."""

import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from rich.console import Console

from rub.config.suite import Experiment, Suite
from rub.errors import RubError
from rub.pipeline.graph import Graph, Stage, in_order
from rub.pipeline.inline import run_inline
from rub.pipeline.progress import Display
from rub.pipeline.runtime import Runtime
from rub.registry import load_target, task_of
from rub.reports.result_folder import Result, collect, prepare, write_result
from rub.reports.text import without_places
from rub.store.artifacts import Store
from rub.store.maintenance import size_of
from rub.witness.claims import Check, Sources, checks

if TYPE_CHECKING:
    import torch
    from torch import nn

    from rub.audits.base import AuditRequest, Report
    from rub.data.memory import Images
    from rub.leaderboard.rules import RuleCheck

ENGINES = ("inline", "ray")


def default_store() -> Path:
    """``$RUB_STORE``, or the user's cache folder.

    Raises:
        RubError: this user has no home folder.
    """
    from platformdirs import user_cache_path

    if own := os.environ.get("RUB_STORE"):
        return Path(own)
    try:
        return user_cache_path("rub") / "store"
    except RuntimeError:  # neither HOME nor an entry in passwd, as in a container
        raise RubError("store: this user has no home folder for it; give one with --store or RUB_STORE") from None


def default_data_root() -> Path | None:
    """``$RUB_DATA``, or None where it is not set."""
    return Path(os.environ["RUB_DATA"]) if os.environ.get("RUB_DATA") else None


def make_runtime(
    *,
    data_root: Path | None = None,
    device: str = "auto",
    batch_size: int = 256,
    checkpoint_seconds: float = Runtime.checkpoint_seconds,
    compile: bool = False,
) -> Runtime:
    """Where and how stages run.

    Args:
        data_root: folder with the standard data layouts; `default_data_root` when None.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        batch_size: images per forward pass; does not change results.
        checkpoint_seconds: how often a long stage keeps the state that it would go on from.
        compile: whether networks are compiled, which takes minutes once; results agree to rounding.

    Raises:
        RubError: the data root is no folder, or the device is not there.
    """
    root = data_root if data_root is not None else default_data_root()
    if root is not None and not root.is_dir():
        raise RubError(
            f"data root {root}: no such folder; give the folder that holds cifar-10-batches-py/ and the like"
        )
    if device not in ("auto", "cpu", "cuda"):
        raise RubError(f"--device {device}: should be auto, cpu or cuda")
    if device != "cpu":
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise RubError("--device cuda: torch sees no CUDA device; use --device cpu, or rub doctor to see why")
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return Runtime(
        device=device, batch_size=batch_size, data_root=root, checkpoint_seconds=checkpoint_seconds, compile=compile
    )


def plan(suite: Suite, runtime: Runtime) -> list[tuple[Experiment, Graph]]:
    """Every experiment with its graph, without running anything.

    Example:
        >>> from rub import load_suite, plan
        >>> from rub.api import make_runtime
        >>> [(experiment, graph)] = plan(load_suite("quick", task="classification"), make_runtime(device="cpu"))
        >>> graph.stages[0].label
        'measure original, seed 0'
    """
    return [(item, task_of(item.task).plan(item, runtime.data_root)) for item in suite.experiments]


def run(
    suite: Suite,
    *,
    store: Path | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    runtime: Runtime | None = None,
    engine: str = "inline",
    ray_address: str | None = None,
    workers: int = 1,
    plugins: Sequence[Path] = (),
    display: Display | None = None,
    command: str = "",
) -> Result:
    """Run what the store does not hold yet, and return the records; with `out`, write all result files there.

    Running the same suite again resumes: finished stages are read from the store.

    Args:
        suite: from `load_suite`.
        store: folder of stages; `default_store` when None.
        out: result folder: ``records.parquet``, ``records.json``, ``samples.parquet``, ``tables/``, ``figures/``,
            ``report/index.html``, ``suite.yaml``.
        overwrite: whether the run of another suite in that folder may be replaced.
        runtime: from `make_runtime`.
        engine: ``"inline"``: stages one after the other; ``"ray"``: as tasks of Ray, on one machine or many.
        ray_address: a Ray cluster to join; with None, Ray is started here with `workers` cores.
        workers: processes that share the work through the store; as many as cores is fastest for small networks. A
            script that asks for more than one needs Python's ``if __name__ == "__main__":`` around it.
        plugins: files that `load_plugin` has read, for the other workers to read.
        display: shows progress; silent when None.
        command: what the user typed, for "how to reproduce".

    Raises:
        RubError: the request is wrong; what was finished before is kept.

    Example:
        >>> from rub import load_suite, run
        >>> result = run(load_suite("quick", methods=["ft"]))  # doctest: +SKIP
        >>> {record.metric for record in result.records if record.method == "sham"}  # doctest: +SKIP
    """
    if engine not in ENGINES:
        raise RubError(f"--engine {engine}: should be one of: {', '.join(ENGINES)}")
    runtime = runtime or make_runtime()
    display = display or Display(Console(), quiet=True)
    if out is not None:
        prepare(out, suite.name, overwrite=overwrite)
    plans = plan(suite, runtime)
    stages = [stage for _, graph in plans for stage in graph.stages]
    opened = Store(store or default_store())
    tasks = {item.task: task_of(item.task) for item in suite.experiments}
    asked = {stage.key: item.resources for item, graph in reversed(plans) for stage in in_order(graph.stages)}
    if engine == "ray":
        from rub.pipeline.ray import cluster, run_ray

        with cluster(ray_address, workers), display:
            outcomes = run_ray(stages, tasks, opened, runtime, display, asked, plugins)
    else:
        with display:
            outcomes = run_inline(stages, tasks, opened, runtime, display, asked, workers=workers, plugins=plugins)
    result = collect(suite, plans, outcomes)
    if out is not None:
        write_result(result, out, command)
    return result


@dataclass(frozen=True)
class StageStatus:
    """What a store holds of one stage.

    Attributes:
        stage: which one.
        kept: bytes of its artifact; None where it is missing.
        partial: bytes of the state that a run goes on from where the artifact is missing; 0 without one.
    """

    stage: Stage
    kept: int | None
    partial: int


def stage_status(stages: Sequence[Stage], store: Store) -> list[StageStatus]:
    """Every stage needed, in order, with what the store holds of it."""
    rows = []
    for stage in in_order(stages):
        kept = size_of(store.place(stage.kind, stage.key)) if store.has(stage.kind, stage.key) else None
        rows.append(StageStatus(stage, kept, size_of(store.partial(stage.key)) if kept is None else 0))
    return rows


def hours_of(plans: Sequence[tuple[Experiment, Graph]], device: str, data_root: Path | None) -> dict[str, float]:
    """Stage key -> hours on a device that need not be here, by arithmetic; see `rub.pipeline.hours`.

    Args:
        plans: from `plan`.
        device: a name of `rub.pipeline.hours.DEVICES`, such as ``"a100"``.
        data_root: folder with the standard data layouts.

    Raises:
        RubError: an unknown device, or work that is not known: of other tasks, and of miniatures.
    """
    from rub.pipeline.hours import hours

    found = {}
    for experiment, graph in plans:
        if not (target := task_of(experiment.task).work):
            raise RubError(f"task {experiment.task}: the FLOPs of its stages are not known; leave out --hours-on")
        work = load_target(target)(experiment, data_root)
        found.update({stage.key: hours(device, work(stage)) for stage in in_order(graph.stages)})
    return found


@overload
def audit(
    request: "AuditRequest | str",
    /,
    *,
    store: Path | None = None,
    runtime: Runtime | None = None,
    display: Display | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    command: str = "",
    **fields: Any,
) -> "Report": ...


@overload
def audit(
    *,
    original: "nn.Module",
    unlearned: "nn.Module",
    retrained: "nn.Module | None" = None,
    forget: "Images",
    retain: "Images",
    test: "Images",
    protocol: str | Mapping[str, Any] = "rub-audit-2",
    samples: int = 256,
    batch_size: int = 256,
    device: "str | torch.device | None" = None,
    display: Display | None = None,
) -> "Report": ...


def audit(request: "AuditRequest | str | None" = None, /, **given: Any) -> "Report":
    """Measure an unlearned model that RUB did not make against its original, and end in a verdict.

    Of classifiers in memory, ``audit(original=module, unlearned=module, forget=..., retain=..., test=...)``: arguments
    are those of `rub.tasks.classification.live.audit`. Of masked autoencoders, ``audit("inpainting", original=module,
    ...)``: those of `rub.tasks.inpainting.live.audit`. Of checkpoints, ``audit("classification", original=path, ...)``
    or ``audit(ClassificationAudit(original=path, ...))``.

    Args:
        request: a task, with the fields of its request (the options of ``rub audit``) as further arguments; or such a
            request, `rub.tasks.classification.audit.ClassificationAudit` or that of another task. None: models in
            memory.
        given: with a request also `store` (folder of stages; `default_store` when None), `runtime` (from
            `make_runtime`), `display` (shows progress), `out` and `overwrite` (result folder to write, as `run` does)
            and `command` (what the user typed, for "how to reproduce").

    Raises:
        RubError: a missing or wrong model, class or data set.

    Example:
        >>> import rub
        >>> request = {"original": "before.pth", "unlearned": "after.pth", "data": "cifar10", "forget_classes": [0]}
        >>> rub.audit("classification", **request, arch="resnet18").verdict.name  # doctest: +SKIP
        'recovered'
    """
    from rub.audits.base import audit_of, run_audit

    if request is None or (isinstance(request, str) and callable(given.get("original"))):
        return _audit_modules(request or "classification", given)
    how = {name: given.pop(name, None) for name in ("store", "runtime", "display", "out", "overwrite")}
    command = given.pop("command", "")
    asked = audit_of(request).request(**given) if isinstance(request, str) else request
    return run_audit(
        asked.experiment().model_copy(update={"metrics": asked.metrics}),
        asked.models(),
        store=how["store"] or default_store(),
        runtime=how["runtime"] or make_runtime(),
        display=how["display"] or Display(Console(), quiet=True),
        out=how["out"],
        overwrite=bool(how["overwrite"]),
        command=command,
    )


def verify(
    folder: Path,
    *,
    files: Mapping[str, Path] | None = None,
    store: Path | None = None,
    runtime: Runtime | None = None,
    zoo: Path | None = None,
) -> Iterator[Check]:
    """Score every witness of a result folder again, with forward passes only.

    Args:
        folder: written by `run` with `out`, or by anyone: nothing in it is trusted.
        files: role (``original``, ``unlearned``) -> weights, where the store does not hold them.
        store: folder of stages; `default_store` when None.
        runtime: from `make_runtime`.
        zoo: folder of published models that may hold the weights; ``$RUB_ZOO``, or what ships with RUB, when None.

    Raises:
        RubError: no witnesses in the folder, or a file that is not there.
    """
    return checks(folder, _sources(files, store, runtime, zoo))


def submit(
    folder: Path,
    out: Path,
    *,
    files: Mapping[str, Path] | None = None,
    store: Path | None = None,
    runtime: Runtime | None = None,
    zoo: Path | None = None,
    link: str = "",
) -> "list[RuleCheck]":
    """Check a result folder by the leaderboard's rules and, where all are kept, write a small copy to add to it.

    Args:
        folder: written by `run` or `audit` with `out`, or by ``rub attack --out``.
        out: is made; must not be there.
        files: as for `verify`.
        store: as for `verify`.
        runtime: from `make_runtime`.
        zoo: as for `verify`; methods whose models it has are attacked again without the store.
        link: web address at which the models of an audit are published.

    Raises:
        RubError: `out` is there already or cannot be written, a file that is not there, or a link that is none.
    """
    from rub.leaderboard.submit import submit as checked

    return checked(folder, out, _sources(files, store, runtime, zoo), link)


def report(
    folders: Sequence[Path], out: Path, formats: Sequence[str] = ("html", "md", "tex", "csv"), workers: int = 1
) -> tuple[Path, dict[str, str]]:
    """Write one site, and tables, of several result folders; nothing in them is trusted.

    Args:
        folders: written by `run` with `out`, by anyone.
        out: the site's folder.
        formats: some of ``html``, ``md``, ``tex``, ``csv``.
        workers: processes that draw figures, as for `run`.

    Returns:
        The path of the leaderboard, and result folder -> why it is not shown.

    Raises:
        RubError: an unknown format, a place that cannot be written, or no folder that can be shown.
    """
    from rub.reports.writing import write_reports

    return write_reports(folders, out, formats, workers)


_PLACES = ("--store", "--out", "--data-root")
"""Options that say where this machine keeps things, which nobody else can use."""


def reproducible(arguments: Sequence[str]) -> str:
    """Command line that was typed, for "how to reproduce", without the paths of this machine.

    Of an absolute path, one from the home folder or one that climbs (``../``), in any option or value, its name is
    kept.

    Example:
        >>> reproducible(["run", "quick", "--out", "here"])
        'rub run quick --out DIR'
        >>> reproducible(["audit", "classification", "--original=/home/me/before.pth", "--data", "cifar10"])
        'rub audit classification --original=before.pth --data cifar10'
    """
    words, hidden = ["rub"], False
    for word in arguments:
        name, separator, _ = word.partition("=")
        private = name in _PLACES
        words.append("DIR" if hidden else f"{name}=DIR" if private and separator else without_places(word))
        hidden = private and not separator
    return shlex.join(words)


def free_bytes(path: Path) -> int:
    """Bytes free where a path is, or will be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _audit_modules(task: str, given: Mapping[str, Any]) -> "Report":
    from rub.audits.base import audit_of

    if not callable(original := given.get("original")):
        kind = type(original).__name__
        raise RubError(
            f"audit: original is a {kind}; of checkpoints, name the task: rub.audit('{task}', original=path)"
        )
    if not (target := audit_of(task).modules):
        raise RubError(f"audit: models of {task} are audited from files: save them (save_pretrained), and give paths")
    report: Report = load_target(target)(**given)
    return report


def _sources(
    files: Mapping[str, Path] | None, store: Path | None, runtime: Runtime | None, zoo: Path | None
) -> Sources:
    from rub.zoo.lookup import roots

    runtime = runtime or make_runtime()
    place = store or default_store()
    for role, path in (files or {}).items():
        if not path.is_file():
            raise RubError(f"--{role} {path}: no such file; give the weights that the witnesses are about")
    opened = Store(place) if place.is_dir() else None
    known = zoo or next((root for root in roots() if root.is_dir()), None)
    return Sources(opened, files or {}, runtime.data_root, runtime.device, runtime.batch_size, zoo=known)
