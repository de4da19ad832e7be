"""Weights on disk: safetensors of our own, and state dicts of others, read strictly and without running code."""

import pickle
import pickletools
import zipfile
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from rub.errors import RubError

M = TypeVar("M", bound=nn.Module)
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")


def freeze(model: M) -> M:
    """Put a model in eval mode, switch off the gradients of its parameters, and return it (changed in place)."""
    return model.eval().requires_grad_(False)


def frozen(model: M) -> M:
    """An independent copy in eval mode whose parameters take no gradient."""
    return freeze(deepcopy(model))


def save_weights(model: nn.Module, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write the state dict as safetensors, contiguous and on the CPU, with metadata in its header."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    safetensors.torch.save_file(tensors, path, metadata)


def check_keys(
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    path: Path,
    hint: str = "check the architecture, its stem and width, and the number of classes",
) -> None:
    """Raise `RubError` unless a state dict has exactly a model's own keys and shapes; what differs is named.

    BatchNorm's ``num_batches_tracked`` may be absent.
    """
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = sorted(name for name in state if name not in own)
    shapes = [
        f"{name} {tuple(state[name].shape)} (the model has {tuple(own[name].shape)})"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if faults := [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", shapes))
        if names
    ]:
        raise RubError(f"checkpoint {path}: another architecture: keys {', '.join(faults)}; {hint}")


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the state dict of a checkpoint: safetensors, or a torch file read with ``weights_only=True``.

    Wrappers (``state_dict``, ``model``...) are taken off; nothing in a file can run code.

    Raises:
        RubError: no such file, not a checkpoint, damaged, or code in a pickle.
    """
    return read_checkpoint(path)[0]


def read_checkpoint(path: Path, allow: Sequence[type] = ()) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state dict of a checkpoint, as `read_state`, and what lies beside it in its wrappers.

    Args:
        path: the file.
        allow: classes besides tensors that a torch file may hold; making one must not be able to do anything.

    Raises:
        RubError: no such file, not a checkpoint, damaged, or code in a pickle.
    """
    if not path.is_file():
        raise RubError(f"checkpoint {path}: no such file; give a .safetensors, .pt, .pth, .pth.tar or .th file")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path), {}
        with torch.serialization.safe_globals([*_numpy_numbers(), *allow]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or _names_objects(path):
            raise RubError(
                f"checkpoint {path}: holds pickled objects besides tensors (or a pickle protocol above torch's 2),"
                " which could run code and are not loaded; save model.state_dict() alone, or safetensors"
            ) from None
        raise _damaged(path) from None
    except Exception:  # damaged bytes make the readers fail in any way: struct.error, IndexError, RuntimeError...
        raise _damaged(path) from None
    return _tensors(loaded, path)


def _numpy_numbers() -> list[Any]:
    """Return what rebuilds numpy's scalars and nothing else: Unlearn-Saliency saves such results beside its weights."""
    scalar = np.float64(0).__reduce__()[0]
    names = [(scalar, f"{package}.multiarray.scalar") for package in ("numpy.core", "numpy._core")]
    return [*names, np.dtype, *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "bool"))]


def _names_objects(path: Path) -> bool:
    """Return whether an intact file looks up functions or classes; its opcodes are listed here, not run."""
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
    for _ in range(3):
        if isinstance(loaded, Mapping):
            wrapper = next((name for name in _WRAPPERS if isinstance(loaded.get(name), Mapping)), None)
            if wrapper is None:
                break
            beside |= {str(name): value for name, value in loaded.items() if name != wrapper}
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise RubError(f"checkpoint {path}: no state dict inside; save model.state_dict(), or safetensors")
    return {str(name): value for name, value in loaded.items()}, beside
