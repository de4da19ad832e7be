"""Key layouts of masked autoencoders: facebookresearch/mae's, and transformers' of ``ViTMAEForPreTraining``."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from rub.errors import RubError

# Names outside the blocks, original -> transformers.
_OUTER = {
    "cls_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
    "norm": "vit.layernorm",
    "mask_token": "decoder.mask_token",
    **{f"decoder_{part}": f"decoder.decoder_{part}" for part in ("embed", "pos_embed", "norm", "pred")},
}
# Names inside a block: transformers 5 -> original, with the one projection split; and 4, which 5 still saves.
_INNER = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    **{f"attention.{part}_proj": f"attn.{part}" for part in "qkv"},
    "attention.o_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_INNER_4 = {
    **{f"attention.attention.{part}": f"attn.{part[0]}" for part in ("query", "key", "value")},
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
_LAYER = re.compile(
    r"(?:vit\.(?:encoder\.layer|layers)|(decoder)\.decoder_(?:layers|encoder\.layer))\.(\d+)\.(.+)\.(weight|bias)"
)
_BLOCK = re.compile(r"(decoder_)?blocks\.(\d+)\.(.+)\.(weight|bias)")
_QKV = re.compile(r"((?:decoder_)?blocks\.\d+\.attn\.)q\.(weight|bias)")


def to_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of transformers' ``ViTMAEForPreTraining``, of any version, under facebookresearch/mae's keys.

    Queries, keys and values are stacked in this order, dim 0. Keys of no known layout, and those that are original
    already, stay as they are.

    Raises:
        RubError: two keys that mean the same tensor.
    """
    outer = {theirs: ours for ours, theirs in _OUTER.items()}
    named: dict[str, Tensor] = {}
    for name, value in state.items():
        if layer := _LAYER.fullmatch(name):
            side, number, part, leaf = layer.groups()
            inner = _INNER.get(part) or _INNER_4.get(part)
            new = f"{'decoder_' if side else ''}blocks.{number}.{inner}.{leaf}" if inner else name
        else:
            new = _renamed(name, outer)
        if new in named:
            raise RubError(f"state dict: two keys mean {new}, one of them '{name}'; keep those of one layout")
        named[new] = value
    for name in list(named):
        if match := _QKV.fullmatch(name):
            block, leaf = match.groups()
            parts = [f"{block}{part}.{leaf}" for part in "qkv"]
            shapes = {tuple(named[part].shape) if part in named else () for part in parts}
            joint = f"{block}qkv.{leaf}"
            if len(shapes) == 1 and () not in shapes and joint not in named:  # others stay, to be named as unexpected
                named[joint] = torch.cat([named.pop(part) for part in parts])
    return named


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict in the original layout under the keys of ``ViTMAEForPreTraining`` in transformers 5.

    ``load_state_dict`` takes the result strictly. Keys of no known layout stay as they are.

    Example:
        >>> sorted(to_transformers({"blocks.0.attn.qkv.bias": torch.arange(3.0), "norm.bias": torch.zeros(1)}))[:2]
        ['vit.layernorm.bias', 'vit.layers.0.attention.k_proj.bias']
    """
    inner = {ours: theirs for theirs, ours in _INNER.items()}
    named: dict[str, Tensor] = {}
    for name, value in state.items():
        if block := _BLOCK.fullmatch(name):
            side, number, part, leaf = block.groups()
            layer = f"{'decoder.decoder_layers' if side else 'vit.layers'}.{number}"
            if part == "attn.qkv":
                for third, piece in zip("qkv", value.chunk(3), strict=True):
                    named[f"{layer}.attention.{third}_proj.{leaf}"] = piece.clone()
            else:
                named[f"{layer}.{inner[part]}.{leaf}" if part in inner else name] = value
        else:
            named[_renamed(name, _OUTER)] = value
    return named


def _renamed(name: str, table: Mapping[str, str]) -> str:
    stem, _, leaf = name.rpartition(".")
    if leaf in {"weight", "bias"} and stem in table:
        return f"{table[stem]}.{leaf}"
    return table.get(name, name)
