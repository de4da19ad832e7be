"""Which files of a text-to-image model are read, on disk and on the hub. Free of torch."""

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from rub.config.suite import located
from rub.errors import RubError
from rub.models.files import FILES, weights_files
from rub.models.files import INDEX as SHARDS
from rub.models.hub import HubName, snapshot

PIPELINE = "model_index.json"  # of a diffusers folder
PARTS = ("unet", "text_encoder", "vae")
SCHEDULER = "scheduler/scheduler_config.json"
TOKENIZERS = (("tokenizer/tokenizer.json",), ("tokenizer/vocab.json", "tokenizer/merges.txt"))
_ENDINGS = (".pt", ".pth", ".bin", ".safetensors", ".ckpt")
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}(\.\w+)")


def read_files(path: Path) -> list[Path]:
    """Files of a model or checkpoint that are read, which its key is made of: nothing else in a folder changes it.

    Raises:
        RubError: a folder without weights.
    """
    if not path.is_dir():
        return weights_files(path)
    if not (path / PIPELINE).is_file():
        beside = path / "adapter_config.json"
        return [*weights_files(path), *([beside] if beside.is_file() else [])]
    found = [path / PIPELINE, path / SCHEDULER]
    for part in PARTS:
        if (path / part).is_dir():
            found += [path / part / "config.json", *weights_files(path / part)]
    found += sorted(item for item in (path / "tokenizer").glob("*") if item.suffix in (".json", ".txt"))
    return [file for file in found if file.is_file()]


def missing(names: Collection[str], parts: Collection[str] = PARTS) -> str:
    """The first file that a diffusers folder with these files lacks; "" where it is whole.

    Example:
        >>> missing({"tokenizer/vocab.json", "tokenizer/merges.txt"})
        'model_index.json'
    """
    for name in (PIPELINE, SCHEDULER, *(f"{part}/config.json" for part in parts)):
        if name not in names:
            return name
    for part in parts:
        if not any(f"{part}/{file}" in names for file in FILES):
            return f"{part}/{FILES[0]}"
    return "" if any(set(files) <= set(names) for files in TOKENIZERS) else TOKENIZERS[0][0]


def wanted(names: Collection[str], prefix: str = "") -> list[str]:
    """Of the files of a repository those that are read: of each part's weights one form, not all that it has."""
    own = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    if PIPELINE not in own:
        beside = [name for name in ("config.json", "adapter_config.json") if name in own]
        return [prefix + name for name in (*_weights(own, ""), *beside)]
    found = [PIPELINE, SCHEDULER, *(f"{part}/config.json" for part in PARTS)]
    found += [name for part in PARTS for name in _weights(own, f"{part}/")]
    found += [name for name in own if name.startswith("tokenizer/") and name.endswith((".json", ".txt"))]
    return [prefix + name for name in found if name in own]


def _weights(names: Collection[str], folder: str) -> Iterator[str]:
    first = next((f"{folder}{file}" for file in FILES if f"{folder}{file}" in names), None)
    if first is None:
        return
    yield first
    if first.endswith(SHARDS):
        stem, ending = first.removesuffix(SHARDS).rsplit(".", 1)
        yield from (name for name in names if (m := _SHARD.fullmatch(name)) and m.groups() == (stem, f".{ending}"))


def find_checkpoint(place: str | Path, where: str, data_root: Path | None = None) -> Path:
    """Checkpoint that an option or a field names: on disk, also below the data root, or on the hub.

    Raises:
        RubError: nothing there, and no hub id; or a hub that does not have it, or cannot be reached.
    """
    path = located(place, data_root)
    if path.exists():
        return path
    file = path.suffix in _ENDINGS and ":" not in str(place)
    if "/" not in str(place) or path.is_absolute() or file:
        raise RubError(
            f"{where} {place}: no such file or folder; give a .pt or .safetensors file, a folder or a hub id"
        )
    return snapshot(HubName.parse(str(place), where), wanted=wanted, lacks=_lacks_weights)


def hub_pipeline(name: str, where: str = "model.weights") -> Path:
    """Folder of a hub model, whole: what a cache lacks is fetched, and nothing that is not read."""
    return snapshot(HubName.parse(name, where), wanted=wanted, lacks=_lacks)


def _lacks(folder: Path) -> str:
    names = {PurePosixPath(item.relative_to(folder)).as_posix() for item in folder.rglob("*") if item.is_file()}
    parts: Collection[str] = PARTS
    if PIPELINE in names:
        index = json.loads((folder / PIPELINE).read_text(encoding="utf-8"))
        listed = index.get("vae") if isinstance(index, dict) else None
        parts = PARTS if not isinstance(listed, list) or listed[-1:] != [None] else PARTS[:2]
    return missing(names, parts)


def _lacks_weights(place: Path) -> str:
    if place.is_dir() and (place / PIPELINE).is_file():
        return _lacks(place)
    return "" if place.is_file() or any((place / name).is_file() for name in FILES) else FILES[0]
