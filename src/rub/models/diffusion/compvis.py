"""CompVis names: the layout of latent-diffusion checkpoints, in which many methods publish their UNet.

A whole model in that layout has an autoencoder and a text encoder too: CLIP's under transformers' names in Stable
Diffusion 1.x, OpenCLIP's in 2.x.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
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
# Of the autoencoder: names outside the blocks, inside a ResNet block, and inside the attention, which is a convolution
# of 1 x 1 pixels there.
_VAE_OUTER = {"conv_norm_out": "norm_out"}
_VAE_RESNET = {"conv_shortcut": "nin_shortcut"}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
# Of OpenCLIP's text encoder: names outside the layers and inside one, OpenCLIP -> transformers.
_OPEN_OUTER = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_OPEN_INNER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_OPEN_BEHIND = ("text_projection", "logit_scale", "attn_mask")  # the mask is built, not learned
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
_VAE_BLOCK = re.compile(r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.+)")
_VAE_MIDDLE = re.compile(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
_OPEN_LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)")
_OPEN_JOINED = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")


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


def vae_from_compvis(state: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """State dict of an autoencoder under diffusers' names; keys that mean none of `names` stay as they are.

    The matrices of its attention come as convolutions (C, C, 1, 1), and are (C, C) in diffusers.
    """
    levels = len({match[2] for name in names if (match := _VAE_BLOCK.fullmatch(name)) and match[1] == "decoder"})
    known = {_vae_name(name, levels): name for name in names}
    made = {known.get(name, name): value for name, value in state.items()}
    return {
        name: value[:, :, 0, 0] if ".attentions." in name and value.shape[2:] == (1, 1) else value
        for name, value in made.items()
    }


def encoder_from_open_clip(state: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """State dict of OpenCLIP's text encoder under transformers' names (5.6 and later).

    Stable Diffusion 2.x takes the context before the last layer, so that `names` have one layer less than the file;
    that layer and the projection behind it are left out. Other keys that mean none of `names` stay as they are.
    """
    layers = {name.split(".")[2] for name in names if name.startswith("encoder.layers.")}
    last = f"transformer.resblocks.{len(layers)}."
    made: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.startswith(last) or name in _OPEN_BEHIND:
            continue
        if (joined := _OPEN_JOINED.fullmatch(name)) and value.ndim and len(value) % 3 == 0:
            stem = f"encoder.layers.{joined[1]}.self_attn"
            parts = zip("qkv", value.chunk(3), strict=True)
            made |= {f"{stem}.{part}_proj.{joined[2]}": piece for part, piece in parts}
        elif (layer := _OPEN_LAYER.fullmatch(name)) and layer[2] in _OPEN_INNER:
            made[f"encoder.layers.{layer[1]}.{_OPEN_INNER[layer[2]]}.{layer[3]}"] = value
        else:
            made[_OPEN_OUTER.get(name, name)] = value
    return made


def _vae_name(name: str, levels: int) -> str:
    if match := _VAE_MIDDLE.fullmatch(name):
        side, kind, number, rest = match.groups()
        stem, _, leaf = rest.rpartition(".")
        if kind == "attentions":
            return f"{side}.mid.attn_1.{_VAE_ATTENTION.get(stem, stem)}.{leaf}"
        return f"{side}.mid.block_{int(number) + 1}.{rest}"
    if match := _VAE_BLOCK.fullmatch(name):
        side, block, kind, layer, rest = match.groups()
        level = f"encoder.down.{block}" if side == "encoder" else f"decoder.up.{levels - 1 - int(block)}"
        if kind != "resnets":
            return f"{level}.{kind.removesuffix('rs')}.{rest}"  # downsample, upsample
        stem, _, leaf = rest.rpartition(".")
        return f"{level}.block.{layer}.{_VAE_RESNET.get(stem, stem)}.{leaf}"
    stem, _, leaf = name.rpartition(".")
    side, _, inner = stem.partition(".")
    return f"{side}.{_VAE_OUTER.get(inner, inner)}.{leaf}" if inner else name


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
