"""Which weights of a diffusion model a method trains: the named groups of ESD, its descendants and AdvUnlearn."""

from collections.abc import Callable, Mapping
from typing import Literal

from torch import nn

from rub.errors import RubError, unknown
from rub.models.diffusion.model import Diffusion

UNetGroup = Literal[
    "xattn", "noxattn", "selfattn", "full", "notime", "xlayer", "selflayer",
    "esd-x", "esd-u", "esd-all", "esd-x-strict",
]  # fmt: skip
"""The groups of UNet weights, for annotations of hyperparameters."""

Rule = Callable[[str, bool], bool]

# CompVis numbers blocks through, diffusers by level; a level of Stable Diffusion 1.x has 2 layers on the way down and 3
# on the way up: input_blocks.i is down_blocks[(i - 1) // 3], layer (i - 1) % 3, output_blocks.i is up_blocks[i // 3],
# layer i % 3.
LAYERS: Mapping[str, tuple[str, ...]] = {
    "xlayer": ("up_blocks.2.attentions.0.", "up_blocks.2.attentions.2."),  # output_blocks.6 and 8
    "selflayer": ("down_blocks.1.attentions.0.", "down_blocks.2.attentions.0."),  # input_blocks.4 and 7
}


# ResNets' own time_emb_proj is not part of the time embedding, there as here.
_ENDS = ("conv_out.", "conv_norm_out.", "time_embedding.")

UNET: Mapping[str, Rule] = {
    "xattn": lambda name, layer: ".attn2." in name,
    "noxattn": lambda name, layer: not (".attn2." in name or name.startswith(_ENDS)),
    "selfattn": lambda name, layer: ".attn1." in name,
    "full": lambda name, layer: True,
    "notime": lambda name, layer: not name.startswith(_ENDS),
    "xlayer": lambda name, layer: ".attn2." in name and name.startswith(LAYERS["xlayer"]),
    "selflayer": lambda name, layer: ".attn1." in name and name.startswith(LAYERS["selflayer"]),
    "esd-x": lambda name, layer: layer and ".attn2." in name,
    "esd-u": lambda name, layer: layer and ".attn2." not in name,
    "esd-all": lambda name, layer: layer,
    "esd-x-strict": lambda name, layer: layer and (".attn2.to_k." in name or ".attn2.to_v." in name),
}
"""Group -> (name without ``unet.``, whether a Linear or Conv2d owns it) -> whether it belongs to the group."""

# Without a common prefix: transformers before 5.6 has another level, ``text_model.``, in its names.
TEXT_ENCODER: Mapping[str, tuple[str, ...]] = {"text_encoder_full": ("encoder.layers.", "final_layer_norm.")}


def parameter_group(model: Diffusion, name: str) -> list[str]:
    """Names of a group's parameters as `named_parameters` gives them, in its order.

    - ``full``, ``xattn`` (cross-attention, attn2), ``selfattn`` (attn1), ``noxattn`` (all but attn2, the output's
      norm and convolution, and the time embedding), ``notime`` (all but the latter two), ``xlayer`` (attn2 of
      CompVis's output_blocks 6 and 8), ``selflayer`` (attn1 of input_blocks 4 and 7): ESD's first code, train-esd.py.
    - ``esd-x``, ``esd-u``, ``esd-all`` (attn2, all but attn2, all), ``esd-x-strict`` (attn2's to_k and to_v), of Linear
      and Conv2d alone, so without norms: ESD's later code, esd_sd.py.
    - ``text_encoder_full`` (the layers and the final norm, without the embeddings): AdvUnlearn.

    Raises:
        RubError: there is no such group, or this model lacks its layers.
    """
    if name not in UNET and name not in TEXT_ENCODER:
        raise unknown("parameter group", name, [*UNET, *TEXT_ENCODER])
    if not (found := _members(model, name)):
        known = ", ".join(group for group in (*UNET, *TEXT_ENCODER) if _members(model, group))
        raise RubError(f"parameter group '{name}': this model lacks its layers; groups of this model: {known}")
    return found


def _members(model: Diffusion, group: str) -> list[str]:
    if group in TEXT_ENCODER:
        parts = [(f"text_encoder.{name}", name.removeprefix("text_model.")) for name in _names(model.text_encoder)]
        return [full for full, name in parts if name.startswith(TEXT_ENCODER[group])]
    owned = _names(model.unet)
    found = [f"unet.{name}" for name, layer in owned.items() if UNET[group](name, layer)]
    whole = all(any(name.startswith(f"unet.{place}") for name in found) for place in LAYERS.get(group, ()))
    return found if whole else []


def _names(module: nn.Module) -> dict[str, bool]:
    return {
        f"{place}.{name}" if place else name: isinstance(part, nn.Linear | nn.Conv2d)
        for place, part in module.named_modules()
        for name, _ in part.named_parameters(recurse=False)
    }
