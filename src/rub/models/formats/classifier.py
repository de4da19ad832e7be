"""Foreign checkpoints of classifiers: the layouts that people publish, loaded strictly, and what they fit."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor, nn

from rub.config.hyperparameters import hyperparameters
from rub.errors import RubError
from rub.models.files import weights_file
from rub.models.hf import renamed
from rub.models.lookup import TASK
from rub.models.network import set_normalisation
from rub.models.resnet import PaddedShortcut, ResNet
from rub.models.weights import Plain, check_keys, differences, plain, read_state
from rub.registry import NETWORKS

NEAR = 16  # tensors that another stem or head of a network has more or less
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_weights(path: Path, model: nn.Module) -> None:
    """Load a checkpoint into a network, strictly: every key is accounted for.

    Reads safetensors, and torch files with ``weights_only=True`` (nothing in a file can run code), or the one in a
    folder. Wrappers come off, see `rub.models.weights.plain`, and a normaliser's mean and std become the network's.
    For a `ResNet`, ``linear`` means ``fc`` and ``shortcut`` means ``downsample``; the public CIFAR ResNets of
    akamaster/pytorch_resnet_cifar10 (``module.``, ``linear``, option-A shortcuts) take inputs normalised by ImageNet's
    mean and std. Networks of transformers are read from files of any of its versions. BatchNorm's
    ``num_batches_tracked`` may be absent.

    Raises:
        RubError: no such file, not a checkpoint, code in a pickle, or missing, unexpected or misshapen keys: then the
            registered network that the keys and shapes are those of is named.
    """
    file = weights_file(path)
    state = read_state(file)
    own = model.state_dict()
    as_it_is = not differences(state, own)  # then a prefix, or a mask, belongs to the network
    tensors, mean, std = Plain(state) if as_it_is else _in_its_names(state, model)
    try:
        check_keys(tensors, own, path)
    except RubError as error:
        raise RubError(f"{error}{_fitting(state)}") from None
    if mean is not None and std is not None:
        channels = getattr(model, "mean", torch.empty(0)).numel()
        if mean.numel() != channels:
            raise RubError(f"checkpoint {path}: normalises {mean.numel()} channels, but the model {channels}")
        if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
            raise RubError(
                f"checkpoint {path}: normalises by mean {_shown(mean)} and std {_shown(std)}; std should be above 0"
            )
        set_normalisation(model, mean, std)
    model.load_state_dict({**own, **tensors})


def _shown(values: Tensor) -> str:
    return ", ".join(f"{value:g}" for value in values[:4].tolist())


def known_network(state: Mapping[str, Tensor]) -> tuple[dict[str, Any], int] | None:
    """Registered network whose keys and shapes a state dict has, and how many classes it has; None: there is none.

    Args:
        state: as a file holds it.

    Returns:
        ``arch`` and those hyperparameters that are not the default ones; the number of logits.
    """
    state = {name: torch.zeros(()).expand(value.shape) for name, value in state.items()}  # shapes are all that counts
    found = plain(state).tensors
    convolution = next((value for value in found.values() if value.ndim == 4), None)
    matrices = [value for value in found.values() if value.ndim == 2]
    if convolution is None or not matrices:
        return None
    width, channels, _, kernel = convolution.shape
    blocks = len({name.split(".")[1] for name in found if name.startswith("layer1.")})
    layers = len({match[1] for name in found if (match := re.search(r"\.layers?\.(\d+)\.", name))})
    guesses = {"width": width, "depth": 6 * blocks + 2 if blocks else layers}
    for num_classes in dict.fromkeys((matrices[-1].shape[0], matrices[0].shape[0])):  # safetensors sorts its keys
        for entry in NETWORKS.entries(TASK):
            if entry.name.endswith(":*"):
                continue
            build, shape = entry.load(), {"num_classes": num_classes, "channels": channels, "size": 8 * kernel}
            for given in _variants(build, guesses):
                network = _attempt(build, shape, given)
                if network is not None and abs(_count(network.state_dict()) - _count(found)) > NEAR:
                    break
                if network is not None and _fits(state, network):
                    return {"arch": entry.name, **_needed(state, build, shape, given)}, num_classes
    return None


def _attempt(build: Callable[..., nn.Module], shape: Mapping[str, int], given: Mapping[str, Any]) -> nn.Module | None:
    try:
        hyperparameters(build)(**given)  # within their ranges
        with torch.device("meta"):  # no memory is taken
            return build(**shape, **given)
    except Exception:  # a guess that this network cannot have, or a builder of anybody's
        return None


def _fits(state: Mapping[str, Tensor], network: nn.Module) -> bool:
    return not differences(_in_its_names(state, network).tensors, network.state_dict())


def _count(names: Iterable[str]) -> int:
    return sum(not name.endswith("num_batches_tracked") for name in names)


def _variants(build: Any, guesses: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    choices = {
        name: get_args(field.annotation) if get_origin(field.annotation) is Literal else (guesses[name],)
        for name, field in hyperparameters(build).model_fields.items()
        if get_origin(field.annotation) is Literal or name in guesses
    }
    for values in product(*choices.values()):
        yield dict(zip(choices, values, strict=True))


def _needed(
    state: Mapping[str, Tensor], build: Any, shape: Mapping[str, int], given: Mapping[str, Any]
) -> dict[str, Any]:
    needed = dict(given)
    for name in given:
        fewer = {other: value for other, value in needed.items() if other != name}
        network = _attempt(build, shape, fewer)
        if network is not None and _fits(state, network):
            needed = fewer
    return needed


def _fitting(state: Mapping[str, Tensor]) -> str:
    if (found := known_network(state)) is None:
        return ""
    (spec, classes) = found
    own = ", ".join(f"{name} {value}" for name, value in spec.items() if name != "arch")
    return f"; they are those of {spec['arch']}{f' ({own})' if own else ''} with {classes} classes"


def _in_its_names(state: Mapping[str, Tensor], model: nn.Module) -> Plain:
    own = model.state_dict()
    found = plain(state, own)
    network = getattr(model, "network", model)
    if isinstance(network, ResNet):
        tensors = dict(found.tensors)
        linear = "linear.weight" in tensors and "fc.weight" not in tensors
        names = {name: name.replace(".shortcut.", ".downsample.") for name in tensors}
        if linear:
            names |= {name: f"fc.{name[7:]}" for name in tensors if name.startswith("linear.")}
        made = {names[name]: value for name, value in tensors.items()}
        public = linear and all(name.startswith("module.") for name in state) and found.mean is None
        if public and any(isinstance(module, PaddedShortcut) for module in network.modules()):
            return Plain(made, torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD))
        return Plain(made, found.mean, found.std)
    if type(network).__module__.startswith("transformers."):
        return Plain(renamed(network, found.tensors), found.mean, found.std)
    return found
