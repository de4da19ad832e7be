"""Weights on disk: safetensors of our own, and foreign checkpoints, read strictly and without running code."""

import pickle
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from rub.classification.networks import PaddedShortcut, ResNet
from rub.errors import RubError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the state dict as safetensors, contiguous and on the CPU."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    safetensors.torch.save_file(tensors, path)


def load_weights(path: Path, model: nn.Module) -> None:
    """Load a checkpoint into a model, strictly: every key is accounted for.

    Reads safetensors, and torch files with ``weights_only=True`` (nothing in a file can run code). Understands
    wrappers (``state_dict``, ``model``...) and a ``module.`` prefix, and for a `ResNet`: Unlearn-Saliency's
    ``normalize`` layer (its mean and std become the model's), ``linear`` for ``fc`` and ``shortcut`` for
    ``downsample``. The public CIFAR ResNets of akamaster/pytorch_resnet_cifar10 (``module.``, ``linear``, no
    ``normalize``, option-A shortcuts) take inputs normalised by ImageNet's mean and std, which are then set on the
    model. BatchNorm's ``num_batches_tracked`` may be absent.

    Raises:
        RubError: no such file, not a checkpoint, code in a pickle, or missing, unexpected or misshapen keys.
    """
    state, normalisation = _canonical(_read(path), model)
    own = model.state_dict()
    _check_keys(state, own, path)
    for name, values in normalisation.items():
        buffer: Tensor = getattr(model, name)
        if values.numel() != buffer.numel():
            raise RubError(f"checkpoint {path}: normalises {values.numel()} channels, but the model {buffer.numel()}")
    model.load_state_dict({**own, **state})
    for name, values in normalisation.items():
        getattr(model, name).copy_(values.reshape(1, -1, 1, 1))


def _check_keys(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
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
        raise RubError(
            f"checkpoint {path}: another architecture: keys {', '.join(faults)};"
            " check the architecture, its stem and width, and the number of classes"
        )


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise RubError(f"checkpoint {path}: no such file; give a .safetensors, .pt, .pth, .pth.tar or .th file")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals(_numpy_numbers()):
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
    if zipfile.is_zipfile(path):
        return True  # torch's own archive, whole, and yet not read as tensors
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


def _tensors(loaded: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(3):
        if isinstance(loaded, Mapping):
            inner = next((loaded[name] for name in _WRAPPERS if isinstance(loaded.get(name), Mapping)), None)
            if inner is None:
                break
            loaded = inner
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise RubError(f"checkpoint {path}: no state dict inside; save model.state_dict(), or safetensors")
    return {str(name): value for name, value in loaded.items()}


def _canonical(state: dict[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the state under torchvision's names, and the mean and std that the checkpoint brings, if any."""
    parallel = all(name.startswith("module.") for name in state)
    if parallel:
        state = {name.removeprefix("module."): value for name, value in state.items()}
    if not isinstance(model, ResNet):
        return state, {}
    normalisation = {name: state.pop(f"normalize.{name}") for name in ("mean", "std") if f"normalize.{name}" in state}
    if "linear.weight" in state and "fc.weight" not in state:
        option_a = any(isinstance(module, PaddedShortcut) for module in model.modules())
        if parallel and option_a and not normalisation:
            normalisation = {"mean": torch.tensor(IMAGENET_MEAN), "std": torch.tensor(IMAGENET_STD)}
        state = {name.replace("linear.", "fc.", 1): value for name, value in state.items()}
    return {name.replace(".shortcut.", ".downsample."): value for name, value in state.items()}, normalisation
