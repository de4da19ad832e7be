"""Foreign checkpoints of classifiers: the key layouts that people publish, loaded strictly."""

from pathlib import Path

import torch
from torch import Tensor, nn

from rub.errors import RubError
from rub.models.resnet import PaddedShortcut, ResNet
from rub.models.weights import check_keys, read_state

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
    state, normalisation = _canonical(read_state(path), model)
    own = model.state_dict()
    check_keys(state, own, path)
    for name, values in normalisation.items():
        buffer: Tensor = getattr(model, name)
        if values.numel() != buffer.numel():
            raise RubError(f"checkpoint {path}: normalises {values.numel()} channels, but the model {buffer.numel()}")
    model.load_state_dict({**own, **state})
    for name, values in normalisation.items():
        getattr(model, name).copy_(values.reshape(1, -1, 1, 1))


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
