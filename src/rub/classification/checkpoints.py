"""Weights on disk: safetensors of our own, and foreign checkpoints, read strictly and without running code."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

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
    wrappers (``state_dict``, ``model``...), a ``module.`` prefix, Unlearn-Saliency's ``normalize`` layer (its mean and
    std become the model's), and the public CIFAR ResNets of akamaster/pytorch_resnet_cifar10: ``linear`` for ``fc``,
    with inputs normalised by ImageNet's mean and std, which are then set on the model. BatchNorm's
    ``num_batches_tracked`` may be absent.

    Raises:
        RubError: no such file, not a checkpoint, code in a pickle, or missing, unexpected or misshapen keys.
    """
    state, normalisation = _canonical(_read(path))
    own = model.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} {tuple(state[name].shape)} (the model has {tuple(own[name].shape)})"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    for what, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", shapes)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise RubError(
                f"checkpoint {path}: another architecture: {len(names)} {what} keys: {', '.join(names[:3])}{more};"
                " check --arch, --stem, --width and the number of classes"
            )
    model.load_state_dict({**own, **state})
    if normalisation is not None:
        for name, values in zip(("mean", "std"), normalisation, strict=True):
            buffer: Tensor = getattr(model, name)
            buffer.copy_(values.reshape(1, -1, 1, 1).expand_as(buffer))


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise RubError(f"checkpoint {path}: no such file; give a .safetensors, .pt, .pth, .pth.tar or .th file")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            raise RubError(
                f"checkpoint {path}: holds pickled objects besides tensors, which could run code and are not loaded;"
                " save model.state_dict() alone, or safetensors"
            ) from None
        raise _damaged(path) from None
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError):
        raise _damaged(path) from None
    return _tensors(loaded, path)


def _damaged(path: Path) -> RubError:
    return RubError(f"checkpoint {path}: truncated, or no checkpoint at all ({path.stat().st_size} bytes); copy it again")


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


def _canonical(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor] | None]:
    """Return the state under torchvision's names, and the mean and std that the checkpoint brings, if any."""
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    normalisation: tuple[Tensor, Tensor] | None = None
    carried = {name: state.pop(name) for name in list(state) if name.startswith("normalize.")}
    if "normalize.mean" in carried and "normalize.std" in carried:
        normalisation = carried["normalize.mean"], carried["normalize.std"]
    if "linear.weight" in state and "fc.weight" not in state:
        normalisation = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        state = {name.replace("linear.", "fc.", 1): value for name, value in state.items()}
    return state, normalisation
