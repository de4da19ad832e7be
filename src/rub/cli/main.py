"""The command line: parses, calls the API, prints with rich. Nothing heavy is imported before it is needed."""

import io
import json
import logging
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from textwrap import fill
from typing import Annotated, Any

import typer
from rich.markup import escape

from rub.cli.audit import audit_app
from rub.cli.options import (
    BATCH,
    DATA,
    DEVICE,
    JSON,
    METHODS,
    ORIGINAL,
    OVERWRITE,
    PLUGIN,
    PROMPTS,
    RETRAINED,
    SEEDS,
    SET,
    STORE,
    SUITE,
    TASK,
    UNLEARNED,
    ZOO,
    console,
    given_weights,
    load_plugins,
    parts,
    say,
)
from rub.cli.share import add_to
from rub.cli.store import store_app
from rub.cli.zoo import add_to as add_zoo
from rub.errors import RubError

app = typer.Typer(
    name="rub",
    help="The Robust Unlearning Benchmark: after unlearning, can the forgotten knowledge still be brought back by "
    "changing only the input?",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.add_typer(audit_app, name="audit")
app.add_typer(store_app, name="store")


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
    prompts: PROMPTS = None,
    device: DEVICE = "auto",
    engine: Annotated[str, typer.Option(help="inline: this process and helpers; ray: tasks of Ray.")] = "inline",
    ray_address: Annotated[str | None, typer.Option(help="Ray cluster to join; Ray is started here otherwise.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes, or Ray's cores, that share stages.")] = 1,
    checkpoint: Annotated[float, typer.Option(min=0, help="Minutes between the checkpoints of a long stage.")] = 5.0,
    max_memory: Annotated[float | None, typer.Option(min=0.5, help="GB for a process; batches shrink to fit.")] = None,
    batch_size: BATCH = 256,
    compile_: Annotated[bool, typer.Option("--compile", help="Compile networks: minutes once, then faster.")] = False,
    plugin: PLUGIN = None,
    overwrite: OVERWRITE = False,
    tables: Annotated[str, typer.Option(help="Tables to print: main (the first of each page), all or none.")] = "main",
    log: Annotated[str | None, typer.Option(help="Copy the numbers to wandb, trackio, mlflow or tensorboard.")] = None,
) -> None:
    """Run a suite: everything that the store does not hold yet. The same command again resumes."""
    from rub import api
    from rub.pipeline.execution import limit_memory
    from rub.pipeline.progress import Display, clock
    from rub.reports.digest import digest
    from rub.reports.render import to_rich
    from rub.reports.text import printable
    from rub.reports.trackers import check_tracker, log_result

    screen = console()
    loaded = _suite(suite, overrides, task, methods, seeds, prompts, plugin)
    runtime = api.make_runtime(
        data_root=data_root, device=device, batch_size=batch_size, checkpoint_seconds=60 * checkpoint, compile=compile_
    )
    if tables not in ("main", "all", "none"):
        raise RubError(f"--tables {tables}: should be main, all or none")
    if log is not None:
        check_tracker(log)
    if max_memory is not None:
        limit_memory(max_memory)
    display = Display(screen)
    result = api.run(
        loaded,
        store=store,
        runtime=runtime,
        engine=engine,
        ray_address=ray_address,
        workers=workers,
        plugins=plugin or (),
        out=out,
        overwrite=overwrite,
        display=display,
        command=api.reproducible(sys.argv[1:]),
    )
    for _, _, made in result.pages:
        for table in made[: {"main": 1, "none": 0}.get(tables, len(made))]:
            screen.print(to_rich(table))
    for line in dict.fromkeys(line for facts in result.data for line in facts.lines()):
        say(printable(line))
    for line in digest(result):
        say(fill(line, screen.width, subsequent_indent="    ", break_on_hyphens=False))
    counts, source = result.counts, "from the store" if workers == 1 else "from the store or the other workers"
    screen.print(
        f"{counts['done']} stages run, {counts['cached']} {source}, {counts['failed']} failed,"
        f" {counts['blocked']} blocked, {clock(display.elapsed())}",
        highlight=False,
    )
    if out is not None:
        say(f"Results: {out}   Page: {out / 'report' / 'index.html'}", markup=True)
    for reason in result.failures:
        say(f"failed: {reason}")
    if log is not None:
        say(f"{log}: {log_result(result, log)} runs")
    if result.failures:
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
    prompts: PROMPTS = None,
    hours_on: Annotated[
        str | None, typer.Option(help="a100, h100, rtx3090 or rtx4090: hours that what is missing takes there.")
    ] = None,
    plugin: PLUGIN = None,
) -> None:
    """Show the graph: which stages are in the store, under way or missing, and their cost. Runs nothing."""
    from rich.table import Table

    from rub import api
    from rub.store.artifacts import Store

    loaded = _suite(suite, overrides, task, methods, seeds, prompts, plugin)
    runtime = api.make_runtime(data_root=data_root, device="cpu")
    plans = api.plan(loaded, runtime)
    hours = None if hours_on is None else api.hours_of(plans, hours_on, runtime.data_root)
    listed = api.stage_status(
        [stage for _, graph in plans for stage in graph.stages], Store(store or api.default_store())
    )
    columns = ["stage", "number", "in store", "partial", "missing", "MiB kept", "million passes missing"]
    table = Table(*columns, *([f"hours on {hours_on}"] if hours else []), box=None)
    for kind in dict.fromkeys(row.stage.kind for row in listed):
        rows = [row for row in listed if row.stage.kind == kind]
        kept = [row.kept for row in rows if row.kept is not None]
        partial = [row.partial for row in rows if row.partial]
        left = [row.stage for row in rows if row.kept is None]
        counts = (len(rows), len(kept), len(partial), len(rows) - len(kept) - len(partial))
        told = [f"{sum([*kept, *partial]) / 2**20:.1f}", f"{sum(stage.cost for stage in left) / 1e6:.2f}"]
        told += [f"{sum(hours[stage.key] for stage in left):.1f}"] if hours else []
        table.add_row(kind, *map(str, counts), *told)
    console().print(table)
    if hours:
        missing = sum(hours[row.stage.key] for row in listed if row.kept is None)
        say(f"about {missing:.0f} hours on one {hours_on}, by arithmetic, to a factor of 2; every search to its cap")
    for note in (note for _, graph in plans for note in graph.notes):
        console().print(f"note: {note}", highlight=False)


@app.command("list", epilog="Example: rub list methods --task classification")
def list_(
    what: Annotated[
        str,
        typer.Argument(help="tasks, methods, attacks, controls, metrics, datasets, models, judges, protocols, suites."),
    ],
    task: TASK = None,
    as_json: JSON = False,
    plugin: PLUGIN = None,
) -> None:
    """List what there is, one line each."""
    from rich.table import Table

    from rub.cli.inspect import listing

    load_plugins(plugin)
    rows = listing(what, task)
    if as_json:
        console().print_json(json.dumps(rows))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    filled = [column for column in (rows[0] if rows else {}) if any(row[column] != "" for row in rows)]
    for row in rows:
        table.add_row(*(escape(str(row[column])) for column in filled))
    console().print(table)


@app.command(epilog="Example: rub show salun")
def show(
    name: Annotated[str, typer.Argument(help="A method, attack, metric, protocol or suite.")],
    task: TASK = None,
    plugin: PLUGIN = None,
) -> None:
    """Show one component: paper, equation, defaults and their source, differences from upstream."""
    from rub.cli.inspect import describe

    load_plugins(plugin)
    for line in describe(name, task):
        say(line, markup=True)


@app.command(epilog="Example: rub doctor --data-root data")
def doctor(data_root: DATA = None, store: STORE = None) -> None:
    """Show what this machine can run: devices, optional parts, data found, disk."""
    from rub.cli.inspect import diagnose

    for line in diagnose(data_root, store):
        say(line, markup=True)


@app.command(epilog="Example: rub verify rub-out --store DIR")
def verify(
    folder: Annotated[Path, typer.Argument(help="Result folder of rub run --out, or its witnesses/.")],
    original: ORIGINAL = None,
    unlearned: UNLEARNED = None,
    retrained: RETRAINED = None,
    store: STORE = None,
    zoo: ZOO = None,
    data_root: DATA = None,
    device: DEVICE = "auto",
    batch_size: BATCH = 256,
    plugin: PLUGIN = None,
) -> None:
    """Score every stored witness again, with forward passes only; exit 1 if one does not hold, 3 if one cannot be."""
    from rub import api

    load_plugins(plugin)
    runtime = api.make_runtime(data_root=data_root, device=device, batch_size=batch_size)
    held = broken = changed = unchecked = 0
    files = given_weights(original=original, unlearned=unlearned, retrained=retrained)
    for check in api.verify(folder, files=files, store=store, runtime=runtime, zoo=zoo):
        held, broken, unchecked = held + check.held, broken + len(check.broken), unchecked + bool(check.reason)
        changed += len(check.changed)
        for line in check.changed:
            say(f"not as it was sealed: {line}")
        if check.changed:
            continue
        counts = f"{check.held} held, {len(check.broken)} not held"
        say(f"{check.name}: " + (f"cannot check: {check.reason}" if check.reason else counts))
        for line in check.broken[:5]:
            say(f"  {line}")
    more = f", {changed} files not as they were sealed" if changed else ""
    say(f"{held} witnesses held, {broken} not held, {unchecked} files could not be checked{more}")
    if broken or changed or unchecked:
        raise typer.Exit(1 if broken or changed else 3)


add_to(app)
add_zoo(app)


def main() -> None:
    """Run the command line with RUB's exit codes: 2 for a wrong request (one line), 130 when interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # characters that a terminal lacks must not end hours of work
            stream.reconfigure(errors="replace")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    log = logging.getLogger("rub")
    log.setLevel(logging.INFO)
    if not log.handlers:
        log.addHandler(_Messages())
    try:
        code = app(standalone_mode=False)
    except RubError as error:
        code = _complain(str(error))
    except typer.Exit as error:
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except OSError as error:
        if error.strerror is None:
            raise
        code = _complain(f"{error.strerror}: {error.filename or 'the output of this command'}")
    except Exception as error:
        if not hasattr(error, "format_message"):  # a usage error of the command line library has one
            raise
        message = error.format_message()
        code = _complain(message) if message else 2  # without a message, the help has just been shown
    if code == 130:  # the command line library may have caught the interrupt itself
        console(stderr=True).print(
            "interrupted: finished stages are kept, and the last checkpoint of a long one; the same command goes on"
        )
    sys.exit(code if isinstance(code, int) else 0)


class _Messages(logging.Handler):
    """Prints what the library logs, on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        from rub.reports.text import printable

        console(stderr=True).print(printable(record.getMessage()), markup=False, highlight=False, soft_wrap=True)


def _complain(message: str) -> int:
    from rub.reports.text import printable  # a message may quote what a file of others holds

    console(stderr=True).print(
        f"rub: {' '.join(printable(message).split())}", markup=False, highlight=False, soft_wrap=True
    )
    return 2


def _suite(
    name: str,
    overrides: list[str] | None,
    task: str | None,
    methods: str | None,
    seeds: int | None,
    prompts: Path | None,
    plugins: Iterable[Path] | None,
) -> Any:
    from rub.config.suite import load_suite, tasks_in

    added = load_plugins(plugins)
    chosen = parts(methods) if methods is not None else None
    given = list(overrides or ())
    if prompts is not None:
        if not tasks_in(name) & {task or "text-to-image"} & {"text-to-image"}:
            raise RubError(f"--prompts {prompts}: suite {name} has no text-to-image experiment to read them for")
        given.append(f"text-to-image.concept.prompts={json.dumps(str(prompts))}")
    return load_suite(name, overrides=given, task=task, methods=chosen, seeds=seeds, added=added)


if __name__ == "__main__":
    main()
