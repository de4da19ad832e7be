"""Checkpoints of masked autoencoders: the layouts that people publish, loaded strictly into one model.

Formats: facebookresearch/mae's ``.pth`` files, transformers' ``ViTMAEForPreTraining`` (a state dict, or a folder with
``config.json``) under its names of version 4, of version 5, and those that version 5 saves
(``decoder.decoder_encoder.layer.N``), and RUB's own safetensors, which carry their sizes.
"""

import json
import math
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rub.errors import RubError
from rub.models.files import weights_file
from rub.models.mae.config import LAYOUTS, METADATA, agreed_config, stored_config
from rub.models.mae.layouts import to_original, to_transformers
from rub.models.mae.masks import gather, keyed_noise, make_mask
from rub.models.mae.model import MaskedAutoencoder
from rub.models.weights import check_keys, plain, read_checkpoint, save_weights

__all__ = ["load_mae", "looks_normalised", "refuse_normalised", "save_mae", "to_original", "to_transformers"]

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def load_mae(
    path: Path,
    *,
    heads: int | None = None,
    decoder_heads: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    image_size: int | None = None,
) -> MaskedAutoencoder:
    """Masked autoencoder of a checkpoint, on the CPU, in float32: every key is accounted for.

    Sizes come from the tensors' shapes; heads from the file (RUB's own, ``config.json``), the published sizes or the
    arguments; the layer norms' eps from the file, else 1e-6; mean and std from the file (RUB's own,
    ``preprocessor_config.json``) or the arguments, else ImageNet's. No code in a file is run. Models that predict
    per-patch-normalised pixels are refused where the file tells; `refuse_normalised` tests the model itself.

    Args:
        path: a file, or a folder that transformers saved.
        heads: of the encoder.
        decoder_heads: of the decoder.
        mean: per channel, of the input normalisation in [0, 1] pixel space.
        std: likewise.
        image_size: the side that the model should have, in pixels.

    Raises:
        RubError: no such file, not a checkpoint, damaged, or code in a pickle; an encoder without decoder, or missing,
            unexpected or misshapen keys; unknown heads, mean or std, or arguments and file that disagree; a model that
            predicts per-patch-normalised pixels.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from rub.models.mae.model import build_mae
        >>> with TemporaryDirectory() as folder:
        ...     save_mae(build_mae("mae-mini", channels=1, mean=(0.5,), std=(0.5,)), Path(folder, "m.safetensors"))
        ...     load_mae(Path(folder, "m.safetensors")).config.heads
        4
    """
    path = Path(path)
    file = weights_file(path)
    if file != path and not (path / "config.json").is_file():
        raise RubError(f"checkpoint {path}: a folder should hold config.json and {' or '.join(_WEIGHTS)}")
    state, beside = read_checkpoint(file, allow=[Namespace])
    state = _plain(state, path)
    stored = stored_config(file, path, file.name in _WEIGHTS)
    _refuse_by_name(stored.pop("norm_pix_loss", False), beside.get("args"), path)
    asked = {"heads": heads, "decoder_heads": decoder_heads, "mean": mean, "std": std, "image_size": image_size}
    config = agreed_config(state, stored, {name: value for name, value in asked.items() if value is not None}, path)
    with torch.device("meta"):  # a file of another architecture costs no memory
        own = MaskedAutoencoder(config).state_dict()
    check_keys(state, own, path, LAYOUTS)
    model = MaskedAutoencoder(config)
    model.load_state_dict(state)
    return model


def save_mae(model: MaskedAutoencoder, path: Path) -> None:
    """Write safetensors in the original layout, with the model's config as JSON in the header for `load_mae`."""
    save_weights(model, path, {METADATA: json.dumps(asdict(model.config))})


def looks_normalised(model: MaskedAutoencoder, images: Tensor, noise: Tensor, ratio: float = 0.75) -> bool:
    """Whether a model predicts per-patch-normalised pixels (MAE's ``norm_pix_loss``) and not plain ones.

    On masked patches t, the share 1 - MSE / variance that the prediction explains of the normalised target
    (t - mean(t)) / sqrt(var(t) + 1e-6), with the patch's unbiased variance (He et al. 2022), is compared with the
    share of t that it explains. A model that explains neither (untrained, or unlearned altogether) is not normalised.
    Some dozens of natural images, uint8 (N, C, H, W), are enough, and their mask noise, float (N, L).
    """
    device = model.pos_embed.device
    plain, guesses = [], []
    with torch.no_grad():
        for batch, rows in zip(torch.split(images, 32), torch.split(noise, 32), strict=True):
            x, mask = batch.to(device).float() / 255, make_mask(rows.to(device), ratio)
            guesses.append(gather(model(x, mask), mask.hidden).double())
            plain.append(gather(model.normalise(model.patchify(x)), mask.hidden).double())
    guess, target = torch.cat(guesses), torch.cat(plain)
    scaled = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    explained = _explained(guess, scaled)
    return explained > max(_explained(guess, target), 0.01)  # a constant output explains 0, up to rounding


def refuse_normalised(model: MaskedAutoencoder, images: Tensor, path: Path) -> None:
    """Raise `RubError` if `looks_normalised` says so of these images, uint8 (N, C, H, W); the first 64 are used."""
    images = images[:64]
    if looks_normalised(model, images, keyed_noise(torch.arange(len(images)), model.config.patches)):
        raise _normalised(path, f"on {len(images)} images its outputs fit such targets better than plain ones")


def _explained(guess: Tensor, target: Tensor) -> float:
    variance = float(target.var(correction=0))
    return 1 - float((guess - target).square().mean()) / variance if variance > 0 else -math.inf


def _normalised(path: Path, evidence: str) -> RubError:
    return RubError(
        f"checkpoint {path}: predicts per-patch-normalised pixels ({evidence}), which show an image only with the true"
        " mean and std of every hidden patch, and so leak the answer; use a model of plain pixels (mae_visualize_vit_*)"
    )


def _refuse_by_name(flag: Any, args: Any, path: Path) -> None:
    options = vars(args) if isinstance(args, Namespace) else args if isinstance(args, Mapping) else {}
    trained = options.get("norm_pix_loss")
    if flag:
        raise _normalised(path, "config.json: norm_pix_loss")
    if isinstance(trained, int) and trained:
        raise _normalised(path, "its stored args: norm_pix_loss")
    if fnmatch(path.name.lower(), "mae_pretrain_vit_*_full.*"):
        raise _normalised(path, "published as mae_pretrain_vit_*_full")


def _plain(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    try:
        state = to_original(plain(state).tensors)
    except RubError as error:
        raise RubError(f"checkpoint {path}: {error}") from None
    encoder = any(name.endswith(("patch_embed.proj.weight", "patch_embeddings.projection.weight")) for name in state)
    if encoder and not any(name.startswith(("decoder", "mask_token")) for name in state):
        raise RubError(
            f"checkpoint {path}: the decoder is missing: an encoder alone (as mae_pretrain_vit_*.pth, timm's) cannot"
            " inpaint; the published files with a decoder for plain pixels are mae_visualize_vit_{base,large,huge}.pth"
        )
    if faults := [name for name, value in state.items() if not value.is_floating_point()]:
        raise RubError(f"checkpoint {path}: {faults[0]} is of type {state[faults[0]].dtype}; should be floating point")
    return state
