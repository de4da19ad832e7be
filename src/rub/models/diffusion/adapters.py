"""Adapters: low-rank additions to the weights of UNet and text encoder.

Inside RUB they go by the names that kohya's tools and SPM publish, ``lora_unet_<module>.lora_down.weight``;
`kohya_names` makes these of what peft and diffusers write.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rub.errors import RubError
from rub.models.diffusion.model import Diffusion, frozen

PREFIX, ENCODER = "lora_unet_", "lora_te_"
_DOWN, _UP, _ALPHA = "lora_down.weight", "lora_up.weight", "alpha"
Target = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class Adapter:
    """A low-rank change of a UNet, and of a text encoder.

    Attributes:
        state: for every adapted module, whose path with ``_`` for ``.`` follows ``lora_unet_``, or ``lora_te_``:
            ``<name>.lora_down.weight`` (r, in) or (r, in, k, k), ``<name>.lora_up.weight`` (out, r) or (out, r, 1, 1),
            and ``<name>.alpha``, one number; without it alpha is r.
        metadata: ``prompts`` that it erases, ``rank`` and ``alpha``.
    """

    state: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)


def is_adapter(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has keys of an adapter."""
    return any("lora_" in name or "_lora." in name or ".lora." in name or "hada_" in name for name in state)


_PEFT = re.compile(
    r"(?:base_model\.model\.)?(?:(unet|text_encoder)\.)?(.+?)"
    r"\.(?:lora_(A|B)(?:\.default)?|lora_linear_layer\.(down|up)|lora\.(down|up))\.weight"
)
# diffusers before 0.22
_PROCESSOR = re.compile(r"(?:(unet)\.)?(.+)\.processor\.to_(q|k|v|out)_lora\.(down|up)\.weight")


def kohya_names(state: Mapping[str, Tensor], model: Diffusion, ranks: Mapping[str, Any]) -> dict[str, Tensor]:
    """State dict of a LoRA under kohya's names, which it may have already.

    Known are peft's (``base_model.model.<path>.lora_A.weight``), diffusers' (``unet.<path>.lora_A.weight``,
    ``.lora.down``, ``.processor.to_q_lora.down``), and both in one file. Where neither the file nor `ranks` says an
    alpha, it is the rank.

    Args:
        state: of the file.
        model: tells a path of the UNet from one of the text encoder where the names do not.
        ranks: peft's or diffusers' own description: ``lora_alpha``, ``alpha_pattern``, also after ``unet.``.

    Raises:
        RubError: a low-rank form of another kind (LoHa, LoKr, DoRA, rsLoRA), or a key of no known layout.
    """
    if scaled := [name for name, value in ranks.items() if value is True and name.endswith(_OTHER_SCALES)]:
        raise RubError(f"adapter: {scaled[0]} is set, another kind of low-rank change; should be W + alpha / r up down")
    made: dict[str, Tensor] = {}
    encoder = {_plain_encoder(path) for path, _ in model.text_encoder.named_modules()}
    for key, value in state.items():
        if key.startswith((PREFIX, ENCODER)):
            made[key] = value
            continue
        if match := _PROCESSOR.fullmatch(key):
            part, path, which, side = match[1] or "unet", f"{match[2]}.to_{match[3]}", match[3], match[4]
            path += ".0" if which == "out" else ""
        elif match := _PEFT.fullmatch(key):
            part, path = match[1], match[2]
            part = part or ("text_encoder" if _plain_encoder(path) in encoder else "unet")
            side = {"A": "down", "B": "up"}.get(match[3] or "", match[4] or match[5])
        else:
            kind = next((form for form in _OTHERS if form in key), "")
            what = f"a low-rank change of another kind ({kind})" if kind else "a key of no known layout"
            raise RubError(f"adapter: {what}, {key}; should be LoRA under the names of kohya, peft or diffusers")
        name = (ENCODER if part == "text_encoder" else PREFIX) + path.replace(".", "_")
        made[f"{name}.{_DOWN if side == 'down' else _UP}"] = value
        alpha = _alpha_of(ranks, part, path)
        if alpha is not None:
            made[f"{name}.{_ALPHA}"] = torch.tensor(alpha)
    return made


_OTHER_SCALES = ("use_rslora", "use_dora")
_OTHERS = ("hada_", "lokr_", "lora_magnitude_vector", "dora_scale", "lora_mid", "oft_")


def _plain_encoder(path: str) -> str:
    return path.removeprefix("text_model.")


def _alpha_of(ranks: Mapping[str, Any], part: str, path: str) -> float | None:
    own = {name.removeprefix(f"{part}."): value for name, value in ranks.items()}
    pattern = own.get("alpha_pattern")
    found = pattern.get(path) if isinstance(pattern, Mapping) else None
    alpha = own.get("lora_alpha") if found is None else found
    return float(alpha) if isinstance(alpha, int | float) else None


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
    for path, module in made.text_encoder.named_modules():
        if isinstance(module, Target):
            modules[f"{ENCODER}text_model_{_plain_encoder(path).replace('.', '_')}"] = module
    for name, (down, up, alpha) in _pairs(adapter.state).items():
        if name not in modules:
            part = "UNet" if name.startswith(PREFIX) else "text encoder"
            raise RubError(f"adapter: the {part} has no Linear or Conv2d '{name.removeprefix(PREFIX)}'")
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
    kinds = {_DOWN, _UP, _ALPHA}
    wrong = [key for key in state if not key.startswith((PREFIX, ENCODER)) or _split(key)[1] not in kinds]
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
        found[_full(name)] = down.float(), up.float(), float(alpha)
    return found


def _full(name: str) -> str:
    """Name of a module of the text encoder with ``text_model_``, which newer versions of transformers leave out."""
    inner = name.removeprefix(ENCODER)
    return f"{ENCODER}text_model_{inner}" if inner != name and not inner.startswith("text_model_") else name


def _split(key: str) -> tuple[str, str]:
    name, _, kind = key.partition(".")
    return name, kind


def _kohya(path: str) -> str:
    return PREFIX + path.replace(".", "_")
