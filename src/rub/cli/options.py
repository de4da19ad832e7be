"""Options that several commands share."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from rub.registry import Entry, load_plugin

SUITE = Annotated[str, typer.Argument(help="A name from [b]rub list suites[/b], or the path of a YAML file.")]
SET = Annotated[list[str] | None, typer.Option("--set", help="path=value, such as training.epochs=3; repeatable.")]
TASK = Annotated[str | None, typer.Option(help="Only the experiments of this task.")]
METHODS = Annotated[str | None, typer.Option(help="Only these methods, comma-separated.")]
SEEDS = Annotated[int | None, typer.Option(min=1, help="Number of unlearning seeds.")]
STORE = Annotated[Path | None, typer.Option(help="Where stages are kept; $RUB_STORE, or the user cache, otherwise.")]
ZOO = Annotated[
    Path | None,
    typer.Option("--zoo", help="Folder of published models that may hold the weights; what ships otherwise."),
]
DATA = Annotated[Path | None, typer.Option(help="Folder with the data layouts; $RUB_DATA, or the hub, otherwise.")]
PROMPTS = Annotated[
    Path | None, typer.Option(help="Text-to-image prompts: a CSV in UnlearnDiffAtk's columns, or a folder of one each.")
]
DEVICE = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
BATCH = Annotated[int, typer.Option(min=1, help="Images per forward pass; does not change results.")]
PLUGIN = Annotated[
    list[Path] | None, typer.Option(help="Python file or package with @rub.method and such; repeatable.")
]
ORIGINAL = Annotated[Path | None, typer.Option(help="Weights of the original model, if no store has them.")]
UNLEARNED = Annotated[Path | None, typer.Option(help="Weights of the unlearned model, likewise.")]
RETRAINED = Annotated[Path | None, typer.Option(help="Weights of the retrained model, likewise.")]
OUT = Annotated[Path | None, typer.Option(help="Result folder to write.")]
OVERWRITE = Annotated[bool, typer.Option("--overwrite", help="Replace the run of another suite in --out.")]
JSON = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
NARROWEST = 20  # columns that a terminal has, or its width is not known


def given_weights(**given: Path | None) -> dict[str, Path]:
    """Weights that were given, by role."""
    return {role: path for role, path in given.items() if path is not None}


def parts(text: str) -> list[str]:
    """Parts of an option with commas between them."""
    return [part.strip() for part in text.split(",") if part.strip()]


def load_plugins(paths: Iterable[Path] | None) -> list[Entry[Any]]:
    """Run the files of ``--plugin``; the entries that they register."""
    return [entry for path in paths or () for entry in load_plugin(path)]


class Terminal(Console):
    """A console that ends the command as a shell would where nobody reads on: 128 and the number of SIGPIPE."""

    def on_broken_pipe(self) -> None:
        """Send what is still to come nowhere, and leave with 141; 1 would say that something does not hold."""
        try:
            super().on_broken_pipe()
        except SystemExit:
            raise SystemExit(141) from None


def console(*, stderr: bool = False) -> Console:
    """Console for standard output or error; made per call, so that redirections are seen."""
    made = Terminal(stderr=stderr)
    if made.width < NARROWEST:  # COLUMNS=0, as some containers say, would print nothing
        made.width = 80
    return made


def say(line: str, *, markup: bool = False) -> None:
    """Print a line as it is, however long."""
    console().print(line, markup=markup, highlight=False, soft_wrap=True)
