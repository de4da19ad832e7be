"""Which files of a text-to-image model are read, on disk and on the hub. Free of torch."""

import json
import re
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path, PurePosixPath

import safetensors

from rub.config.suite import located
from rub.errors import RubError
from rub.models.files import FILES, weights_files
from rub.models.files import INDEX as SHARDS
from rub.models.hub import HubName, snapshot

KIND = "rub_kind"
"""Metadata key of files of ours: ``model``, ``unet``, ``partial-unet``, ``text-encoder`` or ``adapter``."""
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
    weights = [file for part in PARTS if (path / part).is_dir() for file in weights_files(path / part)]
    return [*frame_files(path), *weights]


def header(path: Path) -> dict[str, str]:
    """Metadata of a safetensors file; none of any other."""
    try:
        with safetensors.safe_open(path, "np") as opened:
            return dict(opened.metadata() or {})
    except Exception:  # bytes that are no safetensors fail in any way
        return {}


def frame_files(folder: Path) -> list[Path]:
    """Files of a diffusers folder that are read beside weights: configs, noise schedule, tokenizer."""
    found = [folder / PIPELINE, folder / SCHEDULER, *(folder / part / "config.json" for part in PARTS)]
    found += sorted(item for item in (folder / "tokenizer").glob("*") if item.suffix in (".json", ".txt"))
    return [file for file in found if file.is_file()]


def missing(names: Collection[str], parts: Collection[str] = PARTS, *, weights: bool = True) -> str:
    """The first file that a diffusers folder with these files lacks; "" where it is whole, with weights or without.

    Example:
        >>> missing({"tokenizer/vocab.json", "tokenizer/merges.txt"})
        'model_index.json'
    """
    for name in (PIPELINE, SCHEDULER, *(f"{part}/config.json" for part in parts)):
        if name not in names:
            return name
    for part in parts if weights else ():
        if not any(f"{part}/{file}" in names for file in FILES):
            return f"{part}/{FILES[0]}"
    return "" if any(set(files) <= set(names) for files in TOKENIZERS) else TOKENIZERS[0][0]


def wanted(names: Collection[str], prefix: str = "", *, weights: bool = True) -> list[str]:
    """Of the files of a repository those that are read: of each part's weights, if any, one form, not all it has."""
    own = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    if PIPELINE not in own:
        beside = [name for name in ("config.json", "adapter_config.json") if name in own]
        return [prefix + name for name in (*_weights(own, ""), *beside)] if weights else []
    found = [PIPELINE, SCHEDULER, *(f"{part}/config.json" for part in PARTS)]
    found += [name for part in PARTS if weights for name in _weights(own, f"{part}/")]
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


def find_model(place: str, where: str = "model.weights", data_root: Path | None = None) -> Path:
    """Whole model that an option or a field names: a folder or file on disk, also below the data root, or on the hub.

    Raises:
        RubError: as `find_checkpoint`.
    """
    path = located(place, data_root)
    if path.exists():
        return path
    named = HubName.parse(place, where)
    return snapshot(named, wanted=wanted, lacks=_lacks_weights if named.place.endswith(_ENDINGS) else _lacks)


def find_frame(place: str, where: str = "model.config", data_root: Path | None = None) -> Path:
    """Diffusers folder that has configs and tokenizer, on disk or on the hub, of which no weights are fetched.

    Raises:
        RubError: as `find_checkpoint`, or a folder that lacks one of them.
    """
    path = located(place, data_root)
    if path.is_file():
        raise RubError(f"{where} {place}: is a file; should be a diffusers folder, with weights or without")
    if not path.exists():
        return snapshot(HubName.parse(place, where), wanted=partial(wanted, weights=False), lacks=_lacks_frame)
    if absent := _lacks_frame(path):
        raise RubError(f"{where} {place}: has no {absent}; should be a diffusers folder, with weights or without")
    return path


def _lacks_frame(folder: Path) -> str:
    return _lacks(folder, weights=False)


def _lacks(folder: Path, weights: bool = True) -> str:
    names = {PurePosixPath(item.relative_to(folder)).as_posix() for item in folder.rglob("*") if item.is_file()}
    parts: Collection[str] = PARTS
    if PIPELINE in names:
        index = json.loads((folder / PIPELINE).read_text(encoding="utf-8"))
        listed = index.get("vae") if isinstance(index, dict) else None
        parts = PARTS if not isinstance(listed, list) or listed[-1:] != [None] else PARTS[:2]
    return missing(names, parts, weights=weights)


def _lacks_weights(place: Path) -> str:
    if place.is_dir() and (place / PIPELINE).is_file():
        return _lacks(place)
    return "" if place.is_file() or any((place / name).is_file() for name in FILES) else FILES[0]
