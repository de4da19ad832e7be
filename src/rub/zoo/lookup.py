"""From the name of a model to its folder and to its module: what ships with RUB, folders, the Hugging Face Hub."""

import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from rub.errors import RubError, first_line, unknown
from rub.models.hub import HubName, snapshot
from rub.reports.text import printable
from rub.zoo.entry import CONFIG, ZooModel, checked, is_zoo_model, read_model, shelf_of

if TYPE_CHECKING:
    from torch import nn

PREFIX = "zoo/"


def roots() -> list[Path]:
    """Folders in which ``zoo/...`` is looked for, the first that has it: ``$RUB_ZOO``, then what ships with RUB."""
    own = os.environ.get("RUB_ZOO")
    return [*([Path(own)] if own else []), Path(str(files("rub") / "zoo" / "models"))]


def folders_in(root: Path) -> Iterator[Path]:
    """Yield the folders of a zoo in which models should lie, or the folder itself; links are not followed.

    Raises:
        RubError: no such folder.
    """
    if not root.is_dir():
        raise RubError(f"--zoo {root}: no such folder; give one written by rub publish")
    if (root / CONFIG).is_file() and is_zoo_model(root):
        yield root
        return
    for config in sorted(root.glob(f"*/*/*/*/{CONFIG}")):
        parts = (config.parent, *config.parent.parents)
        if not any(part.is_symlink() for part in parts if part.is_relative_to(root) and part != root):
            yield config.parent


def models_in(root: Path) -> Iterator[tuple[Path, ZooModel]]:
    """Yield folder and facts of each model in a zoo.

    Raises:
        RubError: no such folder, facts that are none, or a model that lies elsewhere than its facts say.
    """
    for folder in folders_in(root):
        model = read_model(folder)
        if folder != root and folder.relative_to(root).as_posix() != model.place:
            raise RubError(f"{folder}: its facts are those of {model.name}; a model lies where its name says")
        yield folder, model


def by_weights(root: Path, sha256: str) -> tuple[Path, ZooModel] | None:
    """File of weights with this SHA-256 in a zoo, and the facts of its model, all of whose files were compared.

    Models that cannot be read are passed over.
    """
    for folder in folders_in(root):
        with suppress(RubError):
            model = read_model(folder)
            name = shelf_of(model.task).weights
            if name and model.files.get(name) == sha256:
                checked(folder)
                return folder / name, model
    return None


def root_of(folder: Path, model: ZooModel) -> Path:
    """Folder of the zoo that a model lies in; its own where it lies in none."""
    return folder.parents[3] if folder.as_posix().endswith(model.place) else folder


def original_of(root: Path, model: ZooModel) -> Path:
    """Folder of the original that a model of a zoo was made from.

    Raises:
        RubError: it is not there.
    """
    wanted = model.model_copy(update={"method": "original", "seed": model.original})
    for place in (wanted.place, wanted.model_copy(update={"original": 0}).place):
        if (root / place).is_dir():
            return root / place
    raise RubError(f"{model.name}: its original is not beside it ({wanted.place}); give it with --original")


def folder_of(name: str, where: str = "") -> Path:
    """Folder of a model: a name ``zoo/...``, a folder, or ``owner/name[@revision][:place]`` on the Hub.

    `where` begins its error, such as ``--original``.

    Raises:
        RubError: there is none of this name.
    """
    said = f"{where} {name}".strip()
    if Path(name).exists():
        return Path(name)
    if name.startswith(PREFIX):
        inside = name.removeprefix(PREFIX).strip("/")
        if ".." in inside.split("/"):
            raise RubError(f"{said}: should be zoo/DATASET/NETWORK/METHOD/SEED; see rub zoo list")
        for root in roots():
            if (root / inside / CONFIG).is_file():
                return root / inside
        known = [model.name for root in roots() if root.is_dir() for _, model in models_in(root)]
        raise unknown("model of the zoo", name, known)
    return snapshot(HubName.parse(name, where or "zoo"), wanted=_wanted, lacks=_lacks)


def load_model(name: str) -> "nn.Module":
    """A model of the zoo, in eval mode, in float32, on the CPU; every file is compared with its SHA-256 first.

    Args:
        name: ``zoo/DATASET/NETWORK/METHOD/SEED`` (``rub zoo list``), a folder that ``rub publish`` wrote, or
            ``owner/name[@revision][:place]`` on the Hugging Face Hub.

    Returns:
        A module of [0, 1] images to logits, a `rub.models.mae.model.MaskedAutoencoder`, or a
        `rub.models.diffusion.model.Diffusion`.

    Raises:
        RubError: no such model, a file that is not the one it should be, or weights that do not fit.
    """
    return load_folder(folder_of(name))


def load_folder(folder: Path) -> "nn.Module":
    """The model in a folder, as `load_model`.

    Raises:
        RubError: as `load_model`.
    """
    model = checked(folder)
    try:
        return shelf_of(model.task).read(folder, model)
    except RubError:
        raise
    except (RuntimeError, MemoryError, ValueError, TypeError, KeyError, AttributeError) as error:
        said = printable(first_line(error)[:200])
        raise RubError(f"{folder}: its facts and its weights make no model ({said})") from None


def _wanted(names: Collection[str], prefix: str) -> list[str]:
    return [f"{prefix}{place}*.{kind}" for kind in ("json", "safetensors", "txt") for place in ("", "**/")]


def _lacks(place: Path) -> str:
    try:
        names = read_model(place).files
    except RubError:
        return CONFIG
    return next((name for name in names if not (place / name).is_file()), "")
