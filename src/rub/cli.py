"""The command line: parses, calls the API, prints with rich. Nothing heavy is imported before it is needed."""

import json
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from rub.errors import RubError

N = TypeVar("N", int, float)

app = typer.Typer(
    name="rub",
    help="The Robust Unlearning Benchmark: after unlearning, can the forgotten knowledge still be brought back by "
    "changing only the input?",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
audit_app = typer.Typer(help="Measure checkpoints that RUB did not make, and end in a verdict.", no_args_is_help=True)
app.add_typer(audit_app, name="audit")

SUITE = Annotated[str, typer.Argument(help="A name from [b]rub list suites[/b], or the path of a YAML file.")]
SET = Annotated[list[str] | None, typer.Option("--set", help="path=value, such as training.epochs=3; repeatable.")]
TASK = Annotated[str | None, typer.Option(help="Only the experiments of this task.")]
METHODS = Annotated[str | None, typer.Option(help="Only these methods, comma-separated.")]
SEEDS = Annotated[int | None, typer.Option(min=1, help="Number of unlearning seeds.")]
STORE = Annotated[Path | None, typer.Option(help="Where stages are kept; $RUB_STORE, or the user cache, otherwise.")]
DATA = Annotated[Path | None, typer.Option(help="Folder with the data layouts; $RUB_DATA, or the hub, otherwise.")]
DEVICE = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
BATCH = Annotated[int, typer.Option(min=1, help="Images per forward pass; does not change results.")]
PLUGIN = Annotated[list[Path] | None, typer.Option(help="Python file with @rub.method or @rub.attack; repeatable.")]
JSON = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def console() -> Console:
    """Return a console for standard output; made per call, so that redirections are seen."""
    return Console()


@app.command(epilog="Example: rub run quick --out rub-out")
def run(
    suite: SUITE,
    overrides: SET = None,
    task: TASK = None,
    methods: METHODS = None,
    seeds: SEEDS = None,
    store: STORE = None,
    out: Annotated[Path | None, typer.Option(help="Result folder to write.")] = None,
    data_root: DATA = None,
    device: DEVICE = "auto",
    engine: Annotated[str, typer.Option(help="inline: stages run one after the other in this process.")] = "inline",
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes that share the stages.")] = 1,
    batch_size: BATCH = 256,
    plugin: PLUGIN = None,
) -> None:
    """Run a suite: everything that the store does not hold yet. The same command again resumes."""
    from rub import api
    from rub.pipeline.progress import Display, clock
    from rub.report.render import to_rich
    from rub.report.tables import classification_tables, paper_numbers

    screen = console()
    loaded = _suite(suite, overrides, task, methods, seeds, plugin)
    runtime = api.make_runtime(data_root=data_root, device=device, batch_size=batch_size)
    display = Display(screen)
    command = api.reproducible(sys.argv[1:])
    result = api.run(
        loaded,
        store=store,
        runtime=runtime,
        engine=engine,
        workers=workers,
        plugins=plugin or (),
        out=out,
        display=display,
        command=command,
    )
    for experiment in loaded.experiments:
        own = [row for row in result.records if row.task == experiment.task and row.experiment == experiment.name]
        for table in classification_tables(own, paper_numbers(experiment.paper)):
            screen.print(to_rich(table))
    counts, source = result.counts, "from the store" if workers == 1 else "from the store or the other workers"
    screen.print(
        f"{counts['done']} stages run, {counts['cached']} {source}, {counts['failed']} failed,"
        f" {counts['blocked']} blocked, {clock(display.elapsed())}",
        highlight=False,
    )
    if out is not None:
        screen.print(f"Results: {out}   Page: {out / 'report' / 'index.html'}", highlight=False, soft_wrap=True)
    if result.failures:
        for reason in result.failures:
            screen.print(f"failed: {escape(reason)}", highlight=False, soft_wrap=True)
        raise typer.Exit(3)


@app.command(epilog="Example: rub plan table1-cifar10 --data-root data")
def plan(
    suite: SUITE,
    overrides: SET = None,
    task: TASK = None,
    methods: METHODS = None,
    seeds: SEEDS = None,
    store: STORE = None,
    data_root: DATA = None,
    plugin: PLUGIN = None,
) -> None:
    """Show the graph: which stages are in the store, which are missing, and their cost. Runs nothing."""
    from rich.table import Table

    from rub import api
    from rub.store.artifacts import Store

    loaded = _suite(suite, overrides, task, methods, seeds, plugin)
    plans = api.plan(loaded, api.make_runtime(data_root=data_root, device="cpu"))
    listed = api.sizes([stage for _, graph in plans for stage in graph.stages], Store(store or api.default_store()))
    table = Table("stage", "number", "in store", "missing", "MiB kept", "million image passes missing", box=None)
    for kind in dict.fromkeys(stage.kind for stage, _ in listed):
        rows = [(stage, size) for stage, size in listed if stage.kind == kind]
        kept = [size for _, size in rows if size is not None]
        cost = sum(stage.cost for stage, size in rows if size is None) / 1e6
        table.add_row(
            kind, str(len(rows)), str(len(kept)), str(len(rows) - len(kept)), f"{sum(kept) / 2**20:.1f}", f"{cost:.2f}"
        )
    console().print(table)
    for _, graph in plans:
        for note in graph.notes:
            console().print(f"note: {note}", highlight=False)


@app.command("list", epilog="Example: rub list methods --task classification")
def list_(
    what: Annotated[str, typer.Argument(help="methods, attacks, metrics, datasets, models, suites or protocols.")],
    task: TASK = None,
    as_json: JSON = False,
) -> None:
    """List what there is, one line each."""
    from rich.table import Table

    from rub.showing import listing

    rows = listing(what, task)
    if as_json:
        console().print_json(json.dumps(rows))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for row in rows:
        table.add_row(*(escape(str(value)) for value in row.values() if value != ""))
    console().print(table)


@app.command(epilog="Example: rub show salun")
def show(
    name: Annotated[str, typer.Argument(help="A method, attack, metric, protocol or suite.")],
    task: TASK = None,
    plugin: PLUGIN = None,
) -> None:
    """Show one component: paper, equation, defaults and their source, differences from upstream."""
    from rub.registry import load_plugin
    from rub.showing import describe

    for path in plugin or ():
        load_plugin(path)
    for line in describe(name, task):
        console().print(line, highlight=False, soft_wrap=True)


@app.command(epilog="Example: rub doctor --data-root data")
def doctor(data_root: DATA = None, store: STORE = None) -> None:
    """Show what this machine can run: devices, optional parts, data found, disk."""
    from rub.showing import diagnose

    for line in diagnose(data_root, store):
        console().print(line, highlight=False, soft_wrap=True)


@audit_app.command(
    "classification",
    epilog="Example: rub audit classification --original before.pth --unlearned after.pth --arch resnet18 "
    "--data cifar10 --data-root data --forget-classes 0",
)
def audit_classification(
    original: Annotated[Path, typer.Option(help="Checkpoint before unlearning.")],
    unlearned: Annotated[Path, typer.Option(help="Checkpoint after unlearning.")],
    arch: Annotated[str, typer.Option(help="A name from rub list models.")],
    data: Annotated[str, typer.Option(help="A name from rub list datasets, or the path of an image folder or .npz.")],
    forget_classes: Annotated[str, typer.Option(help="Forgotten classes, such as 0,3.")],
    retrained: Annotated[Path | None, typer.Option(help="Checkpoint trained without the forget set.")] = None,
    stem: Annotated[str, typer.Option(help="cifar, imagenet or half.")] = "cifar",
    width: Annotated[int | None, typer.Option(help="Channels of the first stage.")] = None,
    size: Annotated[int | None, typer.Option(help="Side in pixels for images of a folder.")] = None,
    mean: Annotated[str | None, typer.Option(help="Mean that inputs were normalised with, if not the data's.")] = None,
    std: Annotated[str | None, typer.Option(help="Standard deviation, likewise, such as 0.247,0.243,0.262.")] = None,
    protocol: Annotated[str, typer.Option(help="A name from rub list protocols.")] = "rub-audit-1",
    samples: Annotated[int, typer.Option(min=10, help="Forget images to attack (half as many controls).")] = 256,
    store: STORE = None,
    out: Annotated[Path | None, typer.Option(help="Result folder to write.")] = None,
    data_root: DATA = None,
    device: DEVICE = "auto",
    batch_size: BATCH = 256,
) -> None:
    """Measure an unlearned classifier against its original: recovered, hidden, no residual found, or cannot tell."""
    from rub import api
    from rub.classification.audit import lines
    from rub.pipeline.progress import Display

    screen = console()
    report = api.audit(
        "classification",
        original=original,
        unlearned=unlearned,
        retrained=retrained,
        model={
            "arch": arch,
            "stem": stem,
            "width": width,
            "mean": None if mean is None else _numbers("--mean", mean, float),
            "std": None if std is None else _numbers("--std", std, float),
        },
        data=data,
        size=size,
        forget_classes=_numbers("--forget-classes", forget_classes, int),
        protocol=protocol,
        samples=samples,
        store=store,
        runtime=api.make_runtime(data_root=data_root, device=device, batch_size=batch_size),
        display=Display(screen),
        out=out,
        command=api.reproducible(sys.argv[1:]),
    )
    for line in lines(report):
        screen.print(line, highlight=False, soft_wrap=True)
    if report.failures:
        raise typer.Exit(3)


def main() -> None:
    """Run the command line with RUB's exit codes: 2 for a wrong request (one line), 130 when interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = app(standalone_mode=False)
    except RubError as error:
        code = _complain(str(error))
    except typer.Exit as error:
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        if not hasattr(error, "format_message"):  # a usage error of the command line library has one
            raise
        message = error.format_message()
        code = _complain(message) if message else 2  # without a message, the help has just been shown
    if code == 130:  # the command line library may have caught the interrupt itself
        Console(stderr=True).print("interrupted: finished stages are kept; the same command goes on from there")
    sys.exit(code if isinstance(code, int) else 0)


def _numbers(option: str, text: str, kind: type[N]) -> tuple[N, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise RubError(f"{option} {text}: should be {what} with commas between them, such as 0,3") from None


def _complain(message: str) -> int:
    Console(stderr=True).print(f"rub: {' '.join(message.split())}", markup=False, highlight=False, soft_wrap=True)
    return 2


def _suite(
    name: str,
    overrides: list[str] | None,
    task: str | None,
    methods: str | None,
    seeds: int | None,
    plugins: Iterable[Path] | None,
) -> Any:
    from rub.registry import load_plugin
    from rub.specs import load_suite

    added = [entry for path in plugins or () for entry in load_plugin(path)]
    chosen = [part.strip() for part in methods.split(",") if part.strip()] if methods is not None else None
    return load_suite(name, overrides=overrides or (), task=task, methods=chosen, seeds=seeds, added=added)


if __name__ == "__main__":
    main()
