"""The config of a masked autoencoder's checkpoint: what shapes, file and arguments agree upon."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from rub.errors import RubError
from rub.models.mae.model import ARCHITECTURES, MAEConfig

METADATA = "rub_mae"
"""The entry of RUB's safetensors header that holds the config as JSON."""
LAYOUTS = "RUB reads facebookresearch/mae's, transformers' ViTMAEForPreTraining's and its own layout"

# These widths have one number of heads in every published MAE.
_HEADS = {768: 12, 1024: 16, 1280: 16}
_DECODER_HEADS = {512: 16}
_CONFIG_JSON = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "num_channels": "channels",
    "hidden_size": "dim",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "decoder_hidden_size": "decoder_dim",
    "decoder_num_hidden_layers": "decoder_depth",
    "decoder_num_attention_heads": "decoder_heads",
    "layer_norm_eps": "eps",
}


def agreed_config(
    state: Mapping[str, Tensor], stored: Mapping[str, Any], asked: Mapping[str, Any], path: Path
) -> MAEConfig:
    """Config that the shapes of a state dict, its file and the arguments agree upon.

    The state is in the original layout, `stored` as of `stored_config`, `asked` under the names of `MAEConfig`.

    Raises:
        RubError: they disagree, or none of them tells the heads, or the mean and std.
    """
    sizes, asked = _sizes(state, path), _checked(asked, path)
    ratio = stored.get("mlp_ratio", 0.0)
    if int(sizes["dim"] * ratio) == int(sizes["dim"] * sizes["mlp_ratio"]):
        sizes["mlp_ratio"] = ratio  # many ratios give this number of units
    for source, said, facts in (("its config says", stored, sizes), ("the arguments say", asked, {**stored, **sizes})):
        for name, value in said.items():
            if name in facts and not _same(value, facts[name]):
                raise RubError(
                    f"checkpoint {path}: the model's {name} is {_text(facts[name])}, but {source} {_text(value)};"
                    f" should be the same"
                )
    known = {**_known_heads(sizes), **stored, **asked}
    for name, width in (("heads", "dim"), ("decoder_heads", "decoder_dim")):
        if name not in known:
            raise RubError(
                f"checkpoint {path}: no tensor's shape tells the number of attention heads, and {width} ="
                f" {sizes[width]} is no published size; give {name}, or the folder with its config.json"
            )
    if ("mean" in known) != ("std" in known) or (sizes["channels"] != 3 and "mean" not in known):
        raise RubError(f"checkpoint {path}: inputs of {sizes['channels']} channels; give both their mean and their std")
    return MAEConfig(**_checked({**known, **sizes}, path))


def stored_config(file: Path, path: Path, transformers: bool) -> dict[str, Any]:
    """What a file says of its config, under the names of `MAEConfig`, and the flag ``norm_pix_loss`` if known.

    Of RUB's own safetensors the header is read; with `transformers` the JSON files beside the weights.

    Raises:
        RubError: no valid config, or of another model.
    """
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as opened:
            text = (opened.metadata() or {}).get(METADATA)
        if text is not None:
            values, names = _json(text, f"header's {METADATA}", path), {field.name for field in fields(MAEConfig)}
            if values.keys() != names:
                raise RubError(
                    f"checkpoint {path}: its header's {METADATA} should have exactly {', '.join(sorted(names))}"
                )
            return _checked(values, path)
    if not transformers or not (file.parent / "config.json").is_file():
        return {}
    return _transformers(file.parent, path)


def _transformers(folder: Path, path: Path) -> dict[str, Any]:
    values = _json((folder / "config.json").read_bytes(), "config.json", path)
    kind, activation = values.get("model_type"), values.get("hidden_act", "gelu")
    if kind != "vit_mae" or activation != "gelu":
        raise RubError(
            f"checkpoint {path}: its config.json is of model_type {kind!r:.40} with hidden_act {activation!r:.40};"
            " should be 'vit_mae' with 'gelu'"
        )
    stored = {ours: values[theirs] for theirs, ours in _CONFIG_JSON.items() if theirs in values}
    for name in ("image_size", "patch_size"):  # transformers also writes the two sides
        sides = stored.get(name)
        if isinstance(sides, list) and len(sides) == 2 and sides[0] == sides[1]:
            stored[name] = sides[0]
    inputs = folder / "preprocessor_config.json"
    if inputs.is_file():
        read = _json(inputs.read_bytes(), inputs.name, path)
        if read.get("do_normalize", True):
            stored |= {
                ours: read[theirs] for theirs, ours in (("image_mean", "mean"), ("image_std", "std")) if theirs in read
            }
        elif isinstance(channels := stored.get("channels"), int):
            stored |= {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    return {**_checked(stored, path), "norm_pix_loss": bool(values.get("norm_pix_loss", False))}


def _json(text: str | bytes, what: str, path: Path) -> dict[str, Any]:
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        read = None
    if not isinstance(read, dict):
        raise RubError(f"checkpoint {path}: its {what} is no JSON object; copy it again")
    return read


def _checked(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    checked = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    for name, value in checked.items():
        colours = name in {"mean", "std"}
        kind: Any = int | float if colours or name in {"eps", "mlp_ratio"} else int
        low = -1e6 if name == "mean" else -1 if name == "decoder_depth" else 0
        each = value if colours and isinstance(value, tuple) else (value,)
        if isinstance(value, tuple) != colours or not all(
            isinstance(number, kind) and not isinstance(number, bool) and low < number < 1e6 for number in each
        ):
            should = "a number for each channel" if colours else "a positive number"
            raise RubError(f"checkpoint {path}: {name} = {value!s:.40}; should be {should}, std above 0")
    return checked


def _shape(state: Mapping[str, Tensor], name: str, ndim: int, path: Path) -> tuple[int, ...]:
    shape = tuple(state[name].shape) if name in state else ()
    if len(shape) != ndim or 0 in shape:
        found = f"has the shape {shape}" if name in state else "is missing"
        raise RubError(f"checkpoint {path}: no masked autoencoder: {name} {found}, should have {ndim} axes; {LAYOUTS}")
    return shape


def _sizes(state: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    dim, channels, patch, across = _shape(state, "patch_embed.proj.weight", 4, path)
    patches = _shape(state, "pos_embed", 3, path)[1] - 1
    grid = math.isqrt(patches)
    if across != patch or not grid or grid**2 != patches:
        raise RubError(
            f"checkpoint {path}: {patches} patches of {patch} x {across} pixels;"
            " should be square patches of a square image"
        )
    units = _shape(state, "blocks.0.mlp.fc1.weight", 2, path)[0]
    ratio = units / dim
    return {
        "image_size": grid * patch,
        "patch_size": patch,
        "channels": channels,
        "dim": dim,
        "depth": _depth(state, "blocks."),
        "decoder_dim": _shape(state, "mask_token", 3, path)[2],
        "decoder_depth": _depth(state, "decoder_blocks."),
        # A block has int(dim * ratio) units, and rounding may have put the quotient below the whole number.
        "mlp_ratio": ratio if int(dim * ratio) == units else math.nextafter(ratio, math.inf),
    }


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).partition(".")[0] for name in state if name.startswith(prefix)})


def _known_heads(sizes: Mapping[str, Any]) -> dict[str, int]:
    known = {"heads": _HEADS.get(sizes["dim"]), "decoder_heads": _DECODER_HEADS.get(sizes["decoder_dim"])}
    widths = tuple(sizes[name] for name in ("dim", "depth", "decoder_dim", "decoder_depth"))
    for _, _, dim, depth, heads, decoder_dim, decoder_depth, decoder_heads in ARCHITECTURES.values():
        if widths == (dim, depth, decoder_dim, decoder_depth):
            known = {"heads": heads, "decoder_heads": decoder_heads}
    return {name: heads for name, heads in known.items() if heads is not None}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return math.isclose(one, other, rel_tol=1e-6)


def _text(value: Any) -> str:
    return f"({', '.join(map(_text, value))})" if isinstance(value, tuple) else f"{value:.6g}"
