"""Which files of a checkpoint or a model's folder are read. Free of torch."""

import json
from pathlib import Path

from rub.errors import RubError

INDEX = ".index.json"  # of weights in several files (shards)
LARGEST = 1 << 26  # bytes of such an index
FILES = tuple(
    f"{stem}{ending}"
    for ending in (
        *(".safetensors", f".safetensors{INDEX}", ".fp16.safetensors", ".non_ema.safetensors"),
        *(".bin", f".bin{INDEX}", ".fp16.bin", ".non_ema.bin"),
    )
    for stem in ("diffusion_pytorch_model", "model", "pytorch_model", "adapter_model", "pytorch_lora_weights")
)
"""Names of weights in a folder, the first that is there is read: safetensors first, full precision and EMA first."""


def weights_file(path: Path) -> Path:
    """File itself or, in a folder, the one that holds the weights, or lists the files that do; see `FILES`."""
    if not path.is_dir():
        return path
    found = next((path / name for name in FILES if (path / name).is_file()), None)
    if found is None:
        raise RubError(f"checkpoint {path}: no weights; should hold one of {FILES[0]}, {FILES[1]}, or their .bin forms")
    return found


def shards(index: Path) -> list[Path]:
    """Files that an index of weights names, which lie beside it.

    Raises:
        RubError: no index, a name that is no plain file name, or a file that is not there.
    """
    try:
        if index.stat().st_size > LARGEST:
            raise ValueError
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise RubError(f"checkpoint {index}: should be JSON with a weight_map from tensors to files") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith((".safetensors", ".bin")):
            raise RubError(f"checkpoint {index}: names the file {name!r}; should be one beside it")
        if not (index.parent / name).is_file():
            raise RubError(f"checkpoint {index}: names {name}, which is not there; copy all of its files")
    return [index.parent / name for name in names]


def weights_files(path: Path) -> list[Path]:
    """All files behind `weights_file`: one, or an index and what it names."""
    file = weights_file(path)
    return [file, *shards(file)] if file.name.endswith(INDEX) else [file]
