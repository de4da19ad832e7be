"""`rub store ls | check | gc`: look after the folder in which stages are kept."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rub.cli.options import DATA, STORE, console, say
from rub.errors import RubError

if TYPE_CHECKING:
    from rub.store.artifacts import Store

store_app = typer.Typer(help="Look after the store: what is in it, whether it is whole, what no suite needs.")


@store_app.command("ls", epilog="Example: rub store ls --store DIR")
def list_(store: STORE = None) -> None:
    """List what the store holds, by kind of stage."""
    from rich.table import Table

    from rub.store.maintenance import usage

    table = Table("stage", "number", "MiB", box=None)
    kept = usage(_opened(store))
    for one in kept:
        table.add_row(one.kind, str(one.count), f"{one.size / 2**20:.1f}")
    table.add_row("all", str(sum(one.count for one in kept)), f"{sum(one.size for one in kept) / 2**20:.1f}")
    console().print(table)


@store_app.command(epilog="Example: rub store check --store DIR")
def check(store: STORE = None) -> None:
    """Compare every file with its checksum; exit 1 if one differs. `rub run` computes what is damaged again."""
    from rub.store.maintenance import damaged, usage

    opened = _opened(store)
    bad = 0
    for kind, key, why in damaged(opened):
        bad += 1
        say(f"{kind}/{key[:12]}: {why}")
    say(f"{sum(one.count for one in usage(opened))} artifacts and partial stages, {bad} damaged")
    if bad:
        raise typer.Exit(1)


@store_app.command(epilog="Example: rub store gc quick table1-cifar10-small --data-root data --yes")
def gc(
    suites: Annotated[list[str], typer.Argument(help="Suites whose stages stay: names, or YAML files.")],
    store: STORE = None,
    data_root: DATA = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; else only say what would be.")] = False,
) -> None:
    """Free what none of these suites needs."""
    from rub import api, load_suite
    from rub.pipeline.graph import in_order
    from rub.store.artifacts import PARTIAL
    from rub.store.maintenance import left_behind, unneeded

    opened = _opened(store)
    runtime = api.make_runtime(data_root=data_root, device="cpu")
    plans = [graph for name in suites for _, graph in api.plan(load_suite(name), runtime)]
    needed = {stage.key for graph in plans for stage in in_order(graph.stages)}
    found = list(unneeded(opened, needed))
    for kind, key, _ in found if yes else ():
        if kind != PARTIAL:
            opened.remove(kind, key)
            continue
        with opened.try_lock(key) as ours:  # else a run is at it
            if ours:
                opened.forget_partial(key)
    halves = list(left_behind(opened))
    for place, _ in halves if yes else ():
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)
    size = (sum(size for _, _, size in found) + sum(size for _, size in halves)) / 2**20
    said = "deleted" if yes else "would be deleted; --yes does it"
    more = f" and {len(halves)} that were never finished" if halves else ""
    say(f"{len(found)} artifacts{more}, {size:.1f} MiB: {said}")


def _opened(store: Path | None) -> "Store":
    from rub import api
    from rub.store.artifacts import Store

    place = store or api.default_store()
    if not place.is_dir():
        raise RubError(f"store {place}: no such folder; give one with --store")
    return Store(place)
