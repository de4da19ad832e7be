"""`rub publish`, `rub zoo list | get | verify` and `rub attack`: the models behind the numbers."""

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from rub.cli.options import DATA, DEVICE, JSON, OUT, OVERWRITE, PLUGIN, STORE, console, load_plugins, parts, say
from rub.errors import RubError
from rub.registry import ATTACKS

zoo_app = typer.Typer(help="Models behind the numbers: list, copy and check them.", no_args_is_help=True)
ZOO = Annotated[Path | None, typer.Option("--zoo", help="Folder of a zoo; what ships with RUB otherwise.")]


@zoo_app.command("list", epilog="Example: rub zoo list --zoo my-zoo")
def list_(zoo: ZOO = None, as_json: JSON = False) -> None:
    """List the models of a zoo."""
    import json

    from rich.table import Table

    from rub.zoo.lookup import models_in, roots

    found = [(folder, model) for root in ([zoo] if zoo else roots()) for folder, model in models_in(root)]
    if as_json:
        say(json.dumps([{"name": model.name, **model.model_dump(mode="json")} for _, model in found]))
        return
    table = Table("model", "task", "forgotten", "KiB", box=None)
    for folder, model in found:
        size = sum((folder / name).stat().st_size for name in model.files if (folder / name).is_file())
        forgotten = ", ".join(f"{name} {value}" for name, value in model.forget.items() if value is not None and value)
        table.add_row(model.name, model.task, forgotten, f"{size / 1024:.0f}")
    console().print(table)
    say(f"{len(found)} models")


@zoo_app.command(epilog="Example: rub zoo get zoo/digits/resnet10-w4/salun/0 --out salun")
def get(
    name: Annotated[str, typer.Argument(help="zoo/DATASET/NETWORK/METHOD/SEED, a folder, or a Hub id.")],
    out: Annotated[Path, typer.Option(help="Folder to copy it to.")],
) -> None:
    """Copy a model, after checking it."""
    from rub.zoo.entry import checked
    from rub.zoo.lookup import folder_of

    if out.exists():
        raise RubError(f"--out {out}: is there already; give a folder that is not")
    folder = folder_of(name)
    model = checked(folder)
    try:
        out.mkdir(parents=True)
        for file in ("config.json", "README.md", *model.files):
            if (folder / file).is_file() and (file in model.files or not (folder / file).is_symlink()):
                (out / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / file, out / file)
    except OSError as error:
        raise RubError(f"--out {out}: cannot be written ({error.strerror}); give another folder") from None
    say(f"{model.name}: {out}")


@zoo_app.command(epilog="Example: rub zoo verify --zoo my-zoo")
def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Models; all of the zoo when left out.")] = None,
    zoo: ZOO = None,
) -> None:
    """Check models: files by their SHA-256, weights that fit, outputs that are finite; exit 1 if one fails."""
    from rub.zoo.check import problem
    from rub.zoo.lookup import folder_of, folders_in, roots

    folders = [folder_of(name) for name in names or ()]
    if not names:
        folders = [folder for root in ([zoo] if zoo else roots()) for folder in folders_in(root)]
    bad = 0
    for folder in folders:
        if found := problem(folder):
            bad += 1
            say(found)
    say(f"{len(folders)} models, {bad} not as they should be")
    if bad:
        raise typer.Exit(1)


def publish(
    result: Annotated[Path, typer.Argument(help="Result folder of rub run --out.")],
    out: Annotated[Path, typer.Option(help="Folder of the zoo to write to.")],
    store: STORE = None,
    methods: Annotated[str | None, typer.Option(help="Only these rows, comma-separated.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Only these unlearning seeds, comma-separated.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the weights: float32, float16 or bfloat16.")] = "float32",
    licence: Annotated[str, typer.Option("--license", help="SPDX name for the cards, such as mit.")] = "",
    push: Annotated[str | None, typer.Option(help="ORG/NAME on the Hugging Face Hub to upload the zoo to.")] = None,
) -> None:
    """Write the models of a result as folders that anyone can read: weights, config, card, numbers and witnesses."""
    from rub import api
    from rub.store.artifacts import Store
    from rub.zoo.publish import publish as write
    from rub.zoo.publish import upload

    try:
        numbers = None if seeds is None else [int(seed) for seed in parts(seeds)]
    except ValueError:
        raise RubError(f"--seeds {seeds}: should be numbers with commas between them, such as 0,1") from None
    rows = None if methods is None else parts(methods)
    made = write(
        result, Store(store or api.default_store()), out, methods=rows, seeds=numbers, dtype=dtype, licence=licence
    )
    for model in made:
        say(model.name)
    say(f"{len(made)} models: {out}")
    if push is not None:
        say(upload(out, made, push))


def attack(
    models: Annotated[list[str], typer.Argument(help="Models of a zoo: zoo/..., folders, or the folder of a zoo.")],
    plugin: PLUGIN = None,
    attacks: Annotated[str, typer.Option(help="Attacks beside those of --plugin, comma-separated.")] = "uma-momentum",
    budgets: Annotated[str, typer.Option(help="Budgets in 1/255, comma-separated.")] = "4,8,16",
    images: Annotated[int, typer.Option(min=1, help="Forgotten images to attack.")] = 64,
    original: Annotated[str | None, typer.Option(help="Original model, if not the zoo's.")] = None,
    out: OUT = None,
    data_root: DATA = None,
    device: DEVICE = "auto",
    overwrite: OVERWRITE = False,
) -> None:
    """Run attacks against models of a zoo, all on the same images at the same budgets, and print their rows.

    With --out, the rows and a witness of every recovered image are written, for rub verify and rub submit.
    """
    from rub import api
    from rub.reports.result_folder import prepare
    from rub.tasks.classification.attack_result import save_attacks
    from rub.tasks.classification.attack_zoo import attack_models, row_of, tables
    from rub.tasks.classification.spec import ATTACK_SUITE

    added = [entry.name for entry in load_plugins(plugin) if ATTACKS.owns(entry, "classification")]
    runtime = api.make_runtime(data_root=data_root, device=device)
    try:
        levels = [int(level) for level in parts(budgets)]
    except ValueError:
        raise RubError(f"--budgets {budgets}: should be whole numbers with commas between them, such as 4,8") from None
    if out is not None:
        prepare(out, ATTACK_SUITE, overwrite=overwrite)
    attacked = attack_models(models, [*parts(attacks), *added], levels, images, runtime, original=original)
    rows = (
        map(row_of, attacked) if out is None else save_attacks(attacked, out, api.reproducible(sys.argv[1:]), runtime)
    )
    for table in tables(rows):
        console().print(table)


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(epilog="Example: rub publish rub-out --out zoo")(publish)
    app.command(epilog="Example: rub attack zoo/digits/resnet10-w4/ft/0 --plugin my_attack.py")(attack)
    app.add_typer(zoo_app, name="zoo")
