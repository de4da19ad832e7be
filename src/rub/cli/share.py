"""The commands that share results: `rub report`, `rub submit`, `rub export`, `rub compare`."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from rub.cli.options import (
    BATCH,
    DATA,
    DEVICE,
    JSON,
    ORIGINAL,
    STORE,
    UNLEARNED,
    ZOO,
    console,
    given_weights,
    parts,
    say,
)
from rub.errors import RubError, unknown
from rub.leaderboard.exports.formats import FORMATS, exported
from rub.reports.text import printable

_FORMATS = "; ".join(f"[b]{name}[/b]: {one.summary}" for name, one in FORMATS.items())
_FOLDERS = typer.Argument(help="Result folders of rub run --out, or a folder of such.")


def report(
    folders: Annotated[list[Path], _FOLDERS],
    out: Annotated[Path, typer.Option(help="The site's folder.")],
    formats: Annotated[str, typer.Option("--format", help="Some of html, md, tex, csv.")] = "html,md,tex,csv",
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes that draw figures.")] = min(
        os.cpu_count() or 1, 8
    ),
) -> None:
    """Write one site of several result folders: leaderboard, experiments, methods; exit 1 if one had to be refused."""
    from rub import api

    page, refused = api.report(folders, out, parts(formats), workers)
    for reason in refused.values():
        say(f"refused: {reason}")
    say(f"Page: {page}")
    if refused:
        raise typer.Exit(1)


def submit(
    folder: Annotated[Path, typer.Argument(help="Result folder of rub run --out.")],
    out: Annotated[Path, typer.Option(help="Folder to write, to be added to results/ by a pull request.")],
    original: ORIGINAL = None,
    unlearned: UNLEARNED = None,
    store: STORE = None,
    zoo: ZOO = None,
    data_root: DATA = None,
    device: DEVICE = "auto",
    batch_size: BATCH = 256,
) -> None:
    """Check a result folder by the leaderboard's rules and write a small copy to add to it; exit 1 if one is broken."""
    from rub import api

    files = given_weights(original=original, unlearned=unlearned)
    runtime = api.make_runtime(data_root=data_root, device=device, batch_size=batch_size)
    rules = api.submit(folder, out, files=files, store=store, runtime=runtime, zoo=zoo)
    for rule in rules:
        say(f"{'broken' if rule.problems else 'kept':<7} {rule.name}: {rule.asks}")
        for line in rule.problems[:5]:
            say(f"          {line}")
    if any(rule.problems for rule in rules):
        raise typer.Exit(1)
    say(f"Add this folder by a pull request: {out}")


def export(
    folder: Annotated[Path, typer.Argument(help="Result folder of rub run --out.")],
    kind: Annotated[str, typer.Option("--format", help=_FORMATS)] = "eval-results",
    method: Annotated[str | None, typer.Option(help="The row to export: one unlearned model's results.")] = None,
    task: Annotated[str | None, typer.Option(help="Only the records of this task.")] = None,
    experiment: Annotated[str | None, typer.Option(help="Only the records of this experiment.")] = None,
    source: Annotated[str | None, typer.Option(help="Address of the records, to be named in the file.")] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; the terminal when left out.")] = None,
) -> None:
    """Write one method's results, or what its benchmark has to declare, in a format of others."""
    from rub.reports.folders import read_folder

    read = read_folder(folder)
    records = read.records
    for name, wanted in (("task", task), ("experiment", experiment)):
        if wanted is not None:
            known = {printable(getattr(record, name)) for record in records}
            records = [record for record in records if getattr(record, name) == wanted]
            if not records:
                raise unknown(name, printable(wanted), known)
    given = {name: value for name, value in (("method", method), ("source", source)) if value is not None}
    text = exported(kind, records, suite=read.suite, command=read.command, **given)
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RubError(f"--out {out}: cannot be written ({error.strerror}); give another file") from None


def compare(
    one: Annotated[Path, typer.Argument(help="A result folder.")],
    other: Annotated[Path, typer.Argument(help="Another one.")],
    everything: Annotated[bool, typer.Option("--all", help="All cells, not only those that are told apart.")] = False,
    as_json: JSON = False,
) -> None:
    """Compare two result folders cell by cell: paired differences, and the settings that changed."""
    from rub.reports.comparison import compare as pair
    from rub.reports.comparison import table
    from rub.reports.folders import read_folder

    found = pair(read_folder(one), read_folder(other))
    shown = [cell for cell in found.cells if everything or cell.told]
    if as_json:
        cells = [asdict(cell) for cell in shown]
        say(json.dumps({"settings": found.settings, "cells": cells, "only": found.only}, default=str))
        return
    for path, before, after in found.settings:
        say(printable(f"{path}: {before} -> {after}"))
    if shown:
        console().print(table(shown))
    apart = sum(cell.told for cell in found.cells)
    said = f"{len(found.cells)} cells in both, {apart} told apart (5 %, Holm over all of them)"
    say(f"{said}; {found.only[0]} only in the first, {found.only[1]} only in the second")


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(epilog="Example: rub report results/mine results/yours --out site")(report)
    app.command(epilog="Example: rub submit rub-out --store DIR --out results/my-method")(submit)
    app.command(epilog="Example: rub export rub-out --method salun --format model-card")(export)
    app.command(epilog="Example: rub compare results/before results/after")(compare)
