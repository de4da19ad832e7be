"""CompVis names of a UNet: the layout of latent-diffusion checkpoints, in which many methods publish."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from rub.errors import RubError

PREFIX = "model.diffusion_model."
ROOTS = frozenset({"input_blocks", "middle_block", "output_blocks", "time_embed", "out"})
# Names outside the blocks, diffusers -> CompVis.
_OUTER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
# Names inside a ResNet block, likewise; those inside a transformer are the same in both.
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def to_compvis(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """State dict of a UNet, or a part of it, under CompVis names, ``model.diffusion_model.`` in front.

    Block b, layer l of ``down_blocks`` is ``input_blocks.{1 + b (n + 1) + l}``, and of ``up_blocks``
    ``output_blocks.{b (n + 1) + l}``, n = ``layers_per_block`` (the layout of CompVis/stable-diffusion's UNetModel).

    Raises:
        RubError: a name that CompVis has none for.
    """
    name_of = _namer(config)
    return {f"{PREFIX}{name_of(name)}": value for name, value in state.items()}


def from_compvis(state: Mapping[str, Tensor], names: Iterable[str], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """State dict of a UNet under diffusers' names; keys that mean none of `names` stay as they are."""
    name_of = _namer(config)
    known = {name_of(name): name for name in names}
    bare = {name.removeprefix(PREFIX): value for name, value in state.items()}
    return {known.get(name, name): value for name, value in bare.items()}


def _namer(config: Mapping[str, Any]) -> Callable[[str], str]:
    layers, attended = config["layers_per_block"], [kind.startswith("Cross") for kind in config["up_block_types"]]
    if not isinstance(layers, int):
        raise RubError(f"UNet with layers_per_block {layers}: CompVis names need the same number in every block")

    def name_of(name: str) -> str:
        stem, _, leaf = name.rpartition(".")
        if stem in _OUTER:
            return f"{_OUTER[stem]}.{leaf}"
        if match := _MIDDLE.fullmatch(name):
            kind, number, rest = match.groups()
            return f"middle_block.{2 * int(number) + (kind == 'attentions')}.{_inner(kind, rest)}"
        if match := _BLOCK.fullmatch(name):
            side, block, kind, layer, rest = match.groups()
            first = int(block) * (layers + 1)
            if kind == "downsamplers":
                return f"input_blocks.{1 + first + layers}.0.op.{rest.removeprefix('conv.')}"
            if kind == "upsamplers":
                return f"output_blocks.{first + layers}.{1 + attended[int(block)]}.{rest}"
            place = (
                f"input_blocks.{1 + first + int(layer)}" if side == "down" else f"output_blocks.{first + int(layer)}"
            )
            return f"{place}.{int(kind == 'attentions')}.{_inner(kind, rest)}"
        raise RubError(f"UNet tensor '{name}': CompVis has no name for it")

    return name_of


def _inner(kind: str, rest: str) -> str:
    stem, _, leaf = rest.rpartition(".")
    return f"{_RESNET[stem]}.{leaf}" if kind == "resnets" and stem in _RESNET else rest
