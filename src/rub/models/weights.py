"""Weights on disk: safetensors of our own, and state dicts of others, read strictly and without running code."""

import json
import pickle
import pickletools
import re
import shutil
import zipfile
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from rub.errors import RubError
from rub.models.files import INDEX, shards

M = TypeVar("M", bound=nn.Module)
_EMA = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")  # as timm, a running mean goes before the weights
_WRAPPERS = (*_EMA, "state_dict", "model_state_dict", "model", "net", "rmodel", "network", "weights", "unet")
_PREFIXES = frozenset({"module", "_orig_mod", "model", "net", "network", "rmodel", "1"})
_NORMALISER = re.compile(r"(?:(.*)\.)?(?:new_)?(mean|std)")
# Lightning's files, Stable Diffusion's first ones among them, have this class as a key beside the tensors.
_LIGHTNING = tuple(f"{package}.callbacks.model_checkpoint.ModelCheckpoint" for package in
                   ("pytorch_lightning", "lightning.pytorch"))  # fmt: skip
_SHOWN = 80  # characters of a name that an error shows
_HEADER = 100_000_000  # bytes of a safetensors header, as the library allows
_ENTRY = 46  # bytes of a zip archive's entry beside its name
_OTHERS = {
    b"\x1f\x8b": "a gzip file: unpack it (gunzip)",
    b"BZh": "a bzip2 file: unpack it (bunzip2)",
    b"\xfd7zXZ": "an xz file: unpack it (unxz)",
    b"7z\xbc\xaf": "a 7z archive: unpack it",
    b"Rar!": "a RAR archive: unpack it",
    b"\x89HDF": "an HDF5 file (Keras): only weights of PyTorch are read",
    b"\x93NUMPY": "a NumPy array: only weights of PyTorch are read",
    b"GGUF": "a GGUF file: only weights of PyTorch are read",
    b"\x28\xb5\x2f\xfd": "a Zstandard file: unpack it (unzstd)",
    b"<!DOCTYPE": "a web page: what should be downloaded is not behind that address",
    b"<html": "a web page: what should be downloaded is not behind that address",
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself (git lfs pull)",
}
_BESIDE = re.compile(r"(?:.*\.)?(?:n_averaged|n_classes|attacker\..*)")  # of AveragedModel, RobModel, AttackerModel


class _Named:
    """Stands for a class that a file names and does not need."""


class Plain(NamedTuple):
    """A network's own tensors, and the normalisation of inputs that a wrapper kept beside them, or None."""

    tensors: dict[str, Tensor]
    mean: Tensor | None = None
    std: Tensor | None = None


def freeze(model: M) -> M:
    """Put a model in eval mode, switch off the gradients of its parameters, and return it (changed in place)."""
    return model.eval().requires_grad_(False)


def frozen(model: M) -> M:
    """An independent copy in eval mode whose parameters take no gradient."""
    return freeze(deepcopy(model))


def save_weights(model: nn.Module, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write the state dict as safetensors, contiguous and on the CPU, with metadata in its header."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    taken: set[int] = set()
    for name, value in tensors.items():  # safetensors refuses memory that two names share
        where = value.untyped_storage().data_ptr()
        tensors[name] = value.clone() if where in taken else value
        taken.add(where)
    safetensors.torch.save_file(tensors, path, metadata)


def copy_weights(source: Path, target: Path, dtype: str) -> None:
    """Write a float32 safetensors file in another floating type, its header kept; as ``float32``, the very bytes."""
    if dtype == "float32":
        shutil.copyfile(source, target)
        return
    kind: torch.dtype = getattr(torch, dtype)
    with safe_open(source, "pt") as opened:
        header = opened.metadata()
    state = safetensors.torch.load_file(source)
    made = {name: value.to(kind) if value.is_floating_point() else value for name, value in state.items()}
    safetensors.torch.save_file(made, target, header)


def check_keys(
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    path: Path,
    hint: str = "check the architecture, its stem and width, and the number of classes",
) -> None:
    """Raise `RubError` unless a state dict has exactly a model's own keys and shapes; what differs is named."""
    if faults := differences(state, own):
        raise RubError(f"checkpoint {path}: another architecture: keys {faults}; {hint}")
    for name, value in state.items():
        if own[name].is_floating_point() and not value.is_floating_point():
            raise RubError(f"checkpoint {path}: {name} is of type {value.dtype}; should be floating point")
        if name.endswith("running_var") and bool((value < 0).any()):
            raise RubError(f"checkpoint {path}: {name} is negative, but a variance; its training diverged")


def differences(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """What of a state dict is not as a model's own, in words; "" where nothing is.

    BatchNorm's ``num_batches_tracked`` may be absent.
    """
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = sorted(name for name in state if name not in own)
    shapes = [
        f"{name[:80]} {tuple(state[name].shape)} (the model has {tuple(own[name].shape)})"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    faults = [
        f"{len(names)} {what} ({', '.join(name[:120] for name in names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", shapes))
        if names
    ]
    return ", ".join(faults)


def plain(state: Mapping[str, Tensor], own: Collection[str] = ()) -> Plain:
    """State dict without what people wrap a network in, in float32.

    Taken off: ``module.`` (DataParallel, AveragedModel with its ``n_averaged``), ``_orig_mod.`` (torch.compile),
    ``model.`` or ``net.`` (Lightning), ``module.model.`` beside an attacker (MadryLab), ``1.`` behind a normaliser
    (`Sequential`), in any order; and any other first name that all keys share and the network does not have. Pruned
    weights are multiplied: ``weight_orig`` x ``weight_mask``. A normaliser's ``mean`` and ``std`` (``new_mean``...) are
    returned apart. Where `own`, the names of the network's tensors, is not given, only known wrappers come off.

    Example:
        >>> state = {"module.0.mean": torch.zeros(3), "module.0.std": torch.ones(3), "module.1.fc.bias": torch.ones(2)}
        >>> found = plain(state)
        >>> list(found.tensors), found.std
        (['fc.bias'], tensor([1., 1., 1.]))
    """
    kept = _unpruned({name: value for name, value in state.items() if not _BESIDE.fullmatch(name) or name in own})
    places: dict[str, dict[str, str]] = {}
    for name in kept:
        if (match := _NORMALISER.fullmatch(name)) and name not in own:
            places.setdefault(match[1] or "", {})[match[2]] = name
    found = {place: names for place, names in places.items() if len(names) == 2}
    dropped = {name for names in found.values() for name in names.values()}
    tensors = _unprefixed({name: value for name, value in kept.items() if name not in dropped}, own)
    single = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    if not found:
        return Plain(single)
    names = found[min(found, key=len)]  # the outermost
    return Plain(single, *(kept[names[part]].float().flatten() for part in ("mean", "std")))


def _unpruned(state: dict[str, Tensor]) -> dict[str, Tensor]:
    masked = {name[:-5] for name in state if name.endswith("_mask") and f"{name[:-5]}_orig" in state}
    made = {}
    for name, value in state.items():
        stem = name.removesuffix("_orig")
        if name.removesuffix("_mask") not in masked:
            made[stem if stem in masked else name] = value * state[f"{stem}_mask"] if stem in masked else value
    return made


def _unprefixed(state: dict[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    stages = [state]
    while (first := _shared_first(stages[-1])) and (own or first in _PREFIXES):
        stages.append({name.removeprefix(f"{first}."): value for name, value in stages[-1].items()})
    if not own:
        return stages[-1]
    names = set(own)
    best = max(stages, key=lambda stage: len(names & stage.keys()))  # the first of equals
    return best if names & best.keys() else _unprefixed(state, ())


def _shared_first(names: Collection[str]) -> str:
    firsts = {name.partition(".")[0] if "." in name else "" for name in names}
    return firsts.pop() if len(firsts) == 1 else ""


def read_state(path: Path) -> dict[str, Tensor]:
    """State dict of a checkpoint: safetensors, or a torch file read with ``weights_only=True``.

    Wrappers (``state_dict``, ``model``...) are taken off; nothing in a file can run code. Of an index of shards
    (``....index.json``) all its files are read.

    Raises:
        RubError: no such file, not a checkpoint, damaged, or code in a pickle.
    """
    return read_checkpoint(path)[0]


def read_checkpoint(path: Path, allow: Sequence[type] = ()) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State dict of a checkpoint, as `read_state`, and what lies beside it in its wrappers.

    A torch file may hold objects of `allow` besides tensors; making one must not be able to do anything.
    """
    if path.name.endswith(INDEX) and path.is_file():
        return _joined(path), {}
    if not path.is_file():
        raise RubError(f"checkpoint {path}: no such file; give a .safetensors, .pt, .pth, .pth.tar or .th file")
    _check_file(path)
    try:
        if tensors := path.suffix.lower() == ".safetensors":
            loaded: Any = safetensors.torch.load_file(path)
        else:
            known = [*_numpy_numbers(), *((_Named, name) for name in _LIGHTNING), *allow]
            with torch.serialization.safe_globals(known):
                loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or _names_objects(path):
            raise RubError(
                f"checkpoint {path}: holds pickled objects besides tensors (or a pickle protocol above torch's 2),"
                " which could run code and are not loaded; where it was made, write the tensors alone:"
                " torch.save(model.state_dict(), FILE), or safetensors.torch.save_file(model.state_dict(), FILE)"
            ) from None
        raise _damaged(path) from None
    except Exception:  # damaged bytes make the readers fail in any way: struct.error, IndexError, RuntimeError...
        raise _damaged(path) from None
    return (_checked(loaded, path), {}) if tensors else _tensors(loaded, path)


def _joined(index: Path) -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    for file in shards(index):
        part = read_state(file)
        if both := made.keys() & part.keys():
            raise RubError(f"checkpoint {index}: two files hold {min(both)}; copy all of its files again")
        made |= part
    return made


def _numpy_numbers() -> list[Any]:
    # Unlearn-Saliency saves such results beside its weights
    scalar = np.float64(0).__reduce__()[0]
    names = [(scalar, f"{package}.multiarray.scalar") for package in ("numpy.core", "numpy._core")]
    return [*names, np.dtype, *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "bool"))]


def _names_objects(path: Path) -> bool:
    # an intact file looks up functions or classes: its opcodes are listed here, not run
    try:
        if zipfile.is_zipfile(path):
            return True  # torch's own archive, whole, and yet not read as tensors
    except zipfile.BadZipFile:  # it says of itself that it has several parts
        return False
    with path.open("rb") as stream:
        try:  # torch's older files hold a magic number, a version and a machine, each a pickle, before the tensors
            codes = (code.name for _ in range(4) for code, _, _ in pickletools.genops(stream))
            return any(name in {"GLOBAL", "STACK_GLOBAL", "INST"} for name in codes)
        except Exception:  # bytes that are no pickle fail in any way
            return False


def _damaged(path: Path) -> RubError:
    return RubError(
        f"checkpoint {path}: truncated, or no checkpoint at all ({path.stat().st_size} bytes); copy it again"
    )


def _tensors(loaded: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    beside: dict[str, Any] = {}
    for _ in range(4):
        if isinstance(loaded, Mapping):
            wrapper = next((name for name in _WRAPPERS if _holds_more(loaded.get(name))), None)
            if wrapper is None:
                break
            beside |= {str(name): value for name, value in loaded.items() if name != wrapper}
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise RubError(f"checkpoint {path}: no state dict inside; save model.state_dict(), or safetensors")
    claimed = sum(value.numel() * value.element_size() for value in loaded.values())
    if claimed > 16 * path.stat().st_size + (1 << 28):  # tensors may repeat their memory
        raise RubError(f"checkpoint {path}: {path.stat().st_size} bytes that stand for {claimed}; save it as it is")
    return _checked({str(name): value for name, value in loaded.items()}, path), beside


def _checked(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors, all of them plain, real and finite; integers are left for `check_keys`, which knows the model's."""
    for name, value in state.items():
        if (kind := _strange(value)) is not None:
            raise RubError(f"checkpoint {path}: {name[:_SHOWN]} is {kind}; should be a plain tensor of real numbers")
        if value.is_floating_point() and not _real(value).isfinite().all():
            raise RubError(f"checkpoint {path}: {name[:_SHOWN]} is not finite (NaN or infinity); its training diverged")
    return state


def _strange(value: Tensor) -> str | None:
    if value.is_meta:
        return "a meta tensor, which has a shape and no values"
    if value.is_quantized or "_x2" in str(value.dtype):  # of two numbers in a byte, PyTorch reads none
        return f"quantised ({value.dtype})"
    if value.is_nested or value.layout is not torch.strided:
        return f"sparse or nested ({value.layout})"
    return f"complex ({value.dtype})" if value.is_complex() else None


def _real(value: Tensor) -> Tensor:
    return value.float() if value.element_size() == 1 else value  # of 8 bits there is no test


def _check_file(path: Path) -> None:
    """Say what is wrong with a file's first bytes and lengths, before anything of it is read or inflated."""
    size, tensors = path.stat().st_size, path.suffix.lower() == ".safetensors"
    with path.open("rb") as stream:
        start = stream.read(64)
    archive, header = start.startswith(b"PK"), int.from_bytes(start[:8], "little")
    listed = start[8:9] == b"{" and 2 <= header <= min(size - 8, _HEADER)
    if listed and tensors:
        _check_length(path, header, size)
        return  # the length of a header may begin like any other file
    if listed:
        raise RubError(f"checkpoint {path}: a safetensors file; its name should end in .safetensors")
    if tensors and (archive or start[:1] == b"\x80"):
        raise RubError(f"checkpoint {path}: a file of torch.save; its name should end in .pt or .pth")
    for magic, kind in _OTHERS.items():
        if start.lstrip().startswith(magic):
            raise RubError(f"checkpoint {path}: no checkpoint at all but {kind}")
    if archive:
        _check_archive(path, size)


def _check_length(path: Path, header: int, size: int) -> None:
    with path.open("rb") as stream:
        stream.seek(8)
        try:
            entries = json.loads(stream.read(header))
            ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
            more = size - 8 - header - max(ends, default=0)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return  # the library says that it is no header
    if more > 0:
        raise RubError(f"checkpoint {path}: {more} bytes after its end; copy it again, or cut them off")


def _check_archive(path: Path, size: int) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            end = archive.start_dir + sum(
                _ENTRY + len(p.filename.encode()) + len(p.extra) + len(p.comment) for p in parts
            )
            comment = len(archive.comment)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):  # the reader says what is wrong
        return
    if any("/code/__torch__" in part.filename for part in parts):
        raise RubError(f"checkpoint {path}: a TorchScript program, which is not run; save model.state_dict()")
    if packed := next((part for part in parts if part.compress_type != zipfile.ZIP_STORED), None):
        raise RubError(
            f"checkpoint {path}: {packed.filename[:_SHOWN]} in it is compressed, which torch.save never does;"
            " save it anew"
        )
    if sum(part.file_size for part in parts) > size:
        raise RubError(f"checkpoint {path}: parts of it overlap; {size} bytes that stand for more; save it anew")
    with path.open("rb") as stream:  # behind the list of parts, ends of 22 bytes, or of 98 for large files
        stream.seek(end)
        left = stream.read(98 + 22 + comment)
    last = left.rfind(b"PK\x05\x06")
    if last >= 0 and (more := size - end - last - 22 - comment) > 0:
        raise RubError(f"checkpoint {path}: {more} bytes after its end; copy it again, or cut them off")


def _holds_more(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(item, Tensor | Mapping) for item in value.values())
