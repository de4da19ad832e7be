"""Adapters: low-rank additions to the weights of a UNet, under the names that kohya's tools and SPM publish."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rub.errors import RubError
from rub.models.diffusion.model import Diffusion, frozen

PREFIX = "lora_unet_"
_DOWN, _UP, _ALPHA = "lora_down.weight", "lora_up.weight", "alpha"
Target = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class Adapter:
    """A low-rank change of a UNet.

    Attributes:
        state: for every adapted module, whose path with ``_`` for ``.`` follows ``lora_unet_``:
            ``<name>.lora_down.weight`` (r, in) or (r, in, k, k), ``<name>.lora_up.weight`` (out, r) or (out, r, 1, 1),
            and ``<name>.alpha``, one number; without it alpha is r.
        metadata: ``prompts`` that it erases, ``rank`` and ``alpha``.
    """

    state: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)


def is_adapter(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has keys of an adapter."""
    return any(name.startswith(PREFIX) for name in state)


class _Pair(nn.Module):
    """Down and up beside one module: up(down(x)) alpha / r."""

    def __init__(self, target: Target, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        weight = target.weight
        r = min(rank, *weight.shape[:2])
        down = torch.empty(r, *weight.shape[1:])
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
        self.down = nn.Parameter(down.to(weight))
        self.up = nn.Parameter(weight.new_zeros(len(weight), r, *[1] * (weight.ndim - 2)))
        self.alpha, self.scale = alpha, alpha / r
        # Kept in a list, so that the base model's module does not become a part of this one.
        self._target = [target]

    def forward(self, x: Tensor) -> Tensor:
        target = self._target[0]
        if isinstance(target, nn.Linear):
            made = F.linear(F.linear(x, self.down), self.up)
        else:
            inner = F.conv2d(x, self.down, None, target.stride, target.padding, target.dilation)
            made = F.conv2d(inner, self.up)
        return cast(Tensor, made * self.scale)


class Attached(nn.Module):
    """Trainable adapters that work on a UNet through forward hooks: y = W x + m (alpha / r) up(down(x)).

    The UNet's own weights are not touched. `parameters` are those of the adapters; a `multiplier` m of 0 is the model
    without adapters, bit for bit.
    """

    def __init__(self, targets: Mapping[str, Target], rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        self.multiplier = 1.0
        self.pairs = nn.ModuleDict({name: _Pair(target, rank, alpha, generator) for name, target in targets.items()})
        self._handles = [
            target.register_forward_hook(
                lambda _, given, made, pair=self.pairs[name]: (
                    made + self.multiplier * pair(given[0]) if self.multiplier else made
                )
            )
            for name, target in targets.items()
        ]

    @contextmanager
    def off(self) -> Iterator[None]:
        """Let the model work without the adapters inside a ``with``."""
        before, self.multiplier = self.multiplier, 0.0
        try:
            yield
        finally:
            self.multiplier = before

    def remove(self) -> None:
        """Take the hooks off; the model is what it was."""
        for handle in self._handles:
            handle.remove()

    def adapter(self, prompts: Sequence[str] = ()) -> Adapter:
        """Adapters as they are now, on the CPU; the metadata hold the prompts that they erase."""
        state, ranks, alphas = {}, set(), set()
        for name, pair in self.pairs.items():
            assert isinstance(pair, _Pair)
            state[f"{name}.{_DOWN}"] = pair.down.detach().cpu().clone()
            state[f"{name}.{_UP}"] = pair.up.detach().cpu().clone()
            state[f"{name}.{_ALPHA}"] = torch.tensor(pair.alpha)
            ranks.add(len(pair.down))
            alphas.add(pair.alpha)
        return Adapter(state, {"prompts": ",".join(prompts), "rank": str(max(ranks)), "alpha": str(max(alphas))})


def attach(model: Diffusion, rank: int, generator: torch.Generator, *, alpha: float = 1.0) -> Attached:
    """Put adapters on every Linear and Conv2d inside the UNet's `Transformer2DModel` modules, as SPM does.

    y = W x + m (alpha / r) up(down(x)) (Lyu et al. 2024); down is drawn by Kaiming's uniform rule with a = sqrt 5, up
    is 0, so that the model is at first unchanged. A convolution's down has its kernel, stride and padding, up is 1 x 1.
    The rank is at most the module's smaller side; down is drawn on the CPU, module by module.
    """
    from diffusers import Transformer2DModel

    inside = [path for path, module in model.unet.named_modules() if isinstance(module, Transformer2DModel)]
    chosen = {
        _kohya(path): module
        for path, module in model.unet.named_modules()
        if isinstance(module, Target) and any(path.startswith(f"{outer}.") for outer in inside)
    }
    if not chosen:
        raise RubError("adapter: the UNet has no Linear or Conv2d in a Transformer2DModel to adapt")
    return Attached(chosen, rank, alpha, generator)


@torch.no_grad()
def merge(model: Diffusion, adapter: Adapter, multiplier: float = 1.0) -> Diffusion:
    """Frozen copy of a model with W + m (alpha / r) up.down for W, in float32, wherever the adapter has one."""
    made = frozen(model)
    modules = {_kohya(path): module for path, module in made.unet.named_modules() if isinstance(module, Target)}
    for name, (down, up, alpha) in _pairs(adapter.state).items():
        if name not in modules:
            raise RubError(f"adapter: the UNet has no Linear or Conv2d '{name.removeprefix(PREFIX)}'")
        weight = modules[name].weight
        product = torch.einsum("or,r...->o...", up.to(weight.device).flatten(1), down.to(weight.device))
        change = product * (multiplier * alpha / len(down))
        if change.shape != weight.shape:
            raise RubError(
                f"adapter: {name} changes weights of shape {tuple(change.shape)}, but the model has"
                f" {tuple(weight.shape)}; another architecture"
            )
        weight.add_(change.to(weight))
    return made


def _pairs(state: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor, float]]:
    wrong = [key for key in state if not key.startswith(PREFIX) or _split(key)[1] not in {_DOWN, _UP, _ALPHA}]
    if wrong:
        raise RubError(
            f"adapter: {len(wrong)} keys of another kind ({', '.join(wrong[:3])}); should be {PREFIX}<module>.{_DOWN},"
            f" .{_UP} and .{_ALPHA}"
        )
    found = {}
    for name in sorted({_split(key)[0] for key in state}):
        down, up = state.get(f"{name}.{_DOWN}"), state.get(f"{name}.{_UP}")
        if down is None or up is None:
            raise RubError(f"adapter: {name} should have both {_DOWN} and {_UP}")
        if not (2 <= down.ndim == up.ndim and up.shape[1] == len(down) > 0 and up.numel() == up.shape[0] * len(down)):
            raise RubError(
                f"adapter: {name}: down {tuple(down.shape)} and up {tuple(up.shape)} do not fit together; should be"
                " (r, in, ...) and (out, r, 1...)"
            )
        alpha = state.get(f"{name}.{_ALPHA}", torch.tensor(float(len(down))))
        if alpha.numel() != 1:
            raise RubError(f"adapter: {name}.{_ALPHA} of shape {tuple(alpha.shape)}; should be one number")
        found[name] = down.float(), up.float(), float(alpha)
    return found


def _split(key: str) -> tuple[str, str]:
    name, _, kind = key.partition(".")
    return name, kind


def _kohya(path: str) -> str:
    return PREFIX + path.replace(".", "_")
