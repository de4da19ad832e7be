"""The interface of a network: [0, 1] images to logits, penultimate features, its head, its normalisation.

A network is any `nn.Module` of float images (N, C, H, W) in [0, 1] that gives raw logits (N, classes). Its *head* is
its last `nn.Linear` in order of definition, or the module that its attribute ``head_name`` names; the *penultimate
features* are what the head is given, and the logits again in a network without one. `build_network` makes a network
by the name of a registered builder.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rub.config.hyperparameters import resolve
from rub.errors import RubError
from rub.models.lookup import network_entry, without_defaults
from rub.models.weights import frozen


class Outputs(NamedTuple):
    """What a network makes of a batch: raw logits (N, classes) and penultimate features (N, D)."""

    logits: Tensor
    features: Tensor


class Normalised(nn.Module):
    """A network of normalised images as one of [0, 1] images.

    Its state dict is that of the network inside: mean and std are kept beside it.

    Args:
        network: of images (N, C, S, S), normalised; gives logits, or an output of transformers with ``logits``.
        mean: per channel, in [0, 1] pixel space: (1, C, 1, 1).
        std: likewise.
        size: S, to which images are resized (bilinear) inside the network; None takes them as they are.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor, size: int | None = None) -> None:
        super().__init__()
        self.network, self.size = network, size
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Raw logits (N, classes) of images (N, C, H, W) in [0, 1]."""
        x = (x - self.mean) / self.std
        if self.size is not None and x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, self.size, mode="bilinear", antialias=min(x.shape[-2:]) > self.size)
        made = self.network(x)
        return cast(Tensor, getattr(made, "logits", made))

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """State dict of the network inside."""
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load a state dict of the network inside."""
        return self.network.load_state_dict(*args, **kwargs)


def build_network(
    arch: str,
    *,
    num_classes: int,
    channels: int = 3,
    size: int = 32,
    mean: Sequence[float] = (0.5,),
    std: Sequence[float] = (0.5,),
    seed: int = 0,
    **parameters: Any,
) -> nn.Module:
    """Build a registered network of [0, 1] images, with weights drawn from `seed`.

    What the builder makes is given normalised images: it is put into `Normalised`, unless it has buffers ``mean`` and
    ``std`` of its own, which are then set. Images are resized to its attribute ``input_size`` where it has one.

    Args:
        arch: a name from ``rub list models``, or ``my_net.py:build``.
        num_classes: number of logits.
        channels: image channels.
        size: side of the images in pixels.
        mean: mean of the normalisation, in [0, 1] pixel space: one value per channel, or one for all.
        std: standard deviation, likewise.
        seed: seed of the initial weights.
        parameters: hyperparameters of the builder.

    Raises:
        RubError: an unknown network, hyperparameters or values that do not fit it, or what is built is no network.

    Example:
        >>> network = build_network("resnet18", num_classes=10, width=16)
        >>> network(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    entry, named = network_entry(arch)
    given = resolve(entry, {**named, **without_defaults(parameters)}, "network")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed every accelerator
        try:
            made = entry.load()(num_classes=num_classes, channels=channels, size=size, **given)
        except RubError:
            raise
        except Exception as error:  # the builder may be anybody's
            said = f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")
            raise RubError(f"network {arch}: {said}") from error
    if not isinstance(made, nn.Module):
        raise RubError(f"network {arch}: its builder returned {type(made).__name__}; should be a torch.nn.Module")
    means, deviations = _per_channel("mean", mean, channels), _per_channel("std", std, channels)
    if isinstance(getattr(made, "mean", None), Tensor) and isinstance(getattr(made, "std", None), Tensor):
        model: nn.Module = made
        set_normalisation(made, means, deviations)
    else:
        model = Normalised(made, means, deviations, getattr(made, "input_size", None))
    width = getattr(head(model), "out_features", num_classes)
    if width != num_classes:
        raise RubError(
            f"network {arch}: its last nn.Linear gives {width} values, not {num_classes} classes; name the layer that"
            " gives the logits in an attribute head_name"
        )
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def set_normalisation(model: nn.Module, mean: Tensor, std: Tensor) -> None:
    """Set the normalisation that a network holds; values per channel, in [0, 1] pixel space."""
    for buffer, values in ((model.mean, mean), (model.std, std)):
        cast(Tensor, buffer).copy_(values.reshape(1, -1, 1, 1))


def normalisation(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation that a network normalises its images by, in [0, 1] pixel space; 0 and 1 without.

    Example:
        >>> network = Normalised(nn.Flatten(), torch.full((1, 1, 1, 1), 0.5), torch.full((1, 1, 1, 1), 0.25))
        >>> [value.item() for value in normalisation(network)], [value.item() for value in normalisation(nn.Flatten())]
        ([0.5, 0.25], [0.0, 1.0])
    """
    mean, std = getattr(model, "mean", None), getattr(model, "std", None)
    if isinstance(mean, Tensor) and isinstance(std, Tensor):
        return mean, std
    return torch.tensor(0.0), torch.tensor(1.0)


def head(model: nn.Module) -> nn.Module | None:
    """Layer whose inputs are the penultimate features; None in a network without an `nn.Linear` that names no layer.

    Raises:
        RubError: ``head_name`` names a layer that is not there.

    Example:
        >>> head(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
        Linear(in_features=3, out_features=2, bias=True)
    """
    if isinstance(model, Normalised):
        return head(model.network)
    name = getattr(model, "head_name", None)
    if name is None:
        return next((module for module in reversed(list(model.modules())) if isinstance(module, nn.Linear)), None)
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise RubError(f"{type(model).__name__}: has no layer '{name}', which its head_name names") from None


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """Batch normalisations of a model that keep running statistics: what train mode moves without a step.

    Example:
        >>> layers = nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False), nn.LayerNorm(2)
        >>> batch_norms(nn.Sequential(*layers)) == [layers[0]]
        True
    """
    kind = nn.modules.batchnorm._BatchNorm
    return [module for module in model.modules() if isinstance(module, kind) and module.track_running_stats]


def outputs(model: nn.Module, x: Tensor) -> Outputs:
    """Logits and penultimate features of images, in one pass; features at several positions are averaged over them.

    Args:
        model: a network.
        x: (N, C, H, W) in [0, 1].

    Raises:
        RubError: the head is not called, or gives another number of values than there are logits.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> [tuple(part.shape) for part in outputs(network, torch.zeros(5, 1, 2, 2))]
        [(5, 2), (5, 3)]
    """
    layer, given = head(model), []
    if layer is None:
        logits = model(x)
        return Outputs(logits, logits)
    hook = layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    try:
        logits = model(x)
    finally:
        hook.remove()
    if not given or getattr(layer, "out_features", logits.shape[1]) != logits.shape[1]:
        raise RubError(
            f"{type(model).__name__}: its last nn.Linear does not give its {logits.shape[1]} logits; name the layer"
            " that does in an attribute head_name"
        )
    features = given[-1]
    if features.ndim > 2:
        features = features.flatten(2).mean(2) if isinstance(layer, nn.Conv2d) else features.flatten(1, -2).mean(1)
    return Outputs(logits, features)


def frozen_copy(model: nn.Module) -> nn.Module:
    """Copy in eval mode and channels-last, without gradients; batch norms are folded where the network can do that.

    A network can where it has a method ``fold()``, which changes it to one of the same function in eval mode.
    """
    copied = frozen(model)
    for module in (copied, getattr(copied, "network", None)):
        if callable(fold := getattr(module, "fold", None)):
            fold()
    return copied.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def with_float32_head(model: nn.Module) -> nn.Module:
    """The network itself, its head changed so that it computes in float32 under autocast too.

    Logits in bfloat16 would resolve a divergence to 1/32 or worse.
    """
    layer = head(model)
    if layer is None:
        return model
    name = next(name for name, module in model.named_modules() if module is layer)
    if not name:
        return InFloat32(layer)
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, InFloat32(layer))
    return model


class InFloat32(nn.Module):
    """A layer that computes in float32 also under autocast."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """What the layer gives for x, float32."""
        with torch.autocast(x.device.type, enabled=False):
            return cast(Tensor, self.layer(x.float()))


def _per_channel(name: str, values: Sequence[float], channels: int) -> Tensor:
    if len(values) not in (1, channels):
        raise RubError(f"network {name}: got {len(values)} values; should be one per channel ({channels}), or one")
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1).repeat(1, channels // len(values), 1, 1)
