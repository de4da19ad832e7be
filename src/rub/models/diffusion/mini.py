"""Miniature Stable Diffusions: the same classes, small enough to train in minutes on two cores."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rub.errors import unknown
from rub.models.diffusion.model import SCHEDULE, Diffusion

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import CLIPTokenizer

    from rub.models.diffusion.patches import PatchAutoencoder


@dataclass(frozen=True)
class Sizes:
    """The sizes of a miniature."""

    channels: tuple[int, ...]  # of each level of the UNet; all but the last have cross-attention
    layers: int = 1  # ResNet blocks per level
    head: int = 16  # width of an attention head
    width: int = 64  # of the text encoder and of cross-attention
    text_layers: int = 2
    autoencoder: tuple[int, ...] = ()  # channels of each of its levels, between which the side is halved; () for none
    latents: int = 4  # channels of the autoencoder's latents
    patch: int = 0  # p: the autoencoder keeps components of p x p patches instead; 0 for none


ARCHITECTURES: Mapping[str, Sizes] = {
    "sd-pico": Sizes((8, 16), head=8, width=16, text_layers=1),
    "sd-nano": Sizes((16, 32), head=8, width=32, text_layers=1),
    "sd-mini": Sizes((32, 64)),
    "sd-small": Sizes((64, 128), patch=4, latents=8),
    "sd-latent": Sizes((64, 128), autoencoder=(16, 32, 32)),
    "sd-medium": Sizes((96, 192, 192), layers=2, head=32, width=128, autoencoder=(64, 128, 128)),
}


def build_mini(arch: str, *, channels: int, size: int, tokenizer: "CLIPTokenizer", seed: int) -> Diffusion:
    """Untrained miniature of `ARCHITECTURES`, for square images of 1 or 3 channels; the tokenizer gives L."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    if arch not in ARCHITECTURES:
        raise unknown("text-to-image model", arch, ARCHITECTURES)
    sizes = ARCHITECTURES[arch]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=sizes.width,
                intermediate_size=2 * sizes.width,
                num_hidden_layers=sizes.text_layers,
                num_attention_heads=max(sizes.width // 16, 1),
                max_position_embeddings=tokenizer.model_max_length,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        vae = _autoencoder(sizes, channels, size)
        deep = sizes.channels[:-1]
        wide = channels if vae is None else sizes.latents
        shrinks = sizes.patch or 2 ** max(len(sizes.autoencoder) - 1, 0)
        unet = UNet2DConditionModel(
            sample_size=size // shrinks,
            in_channels=wide,
            out_channels=wide,
            layers_per_block=sizes.layers,
            block_out_channels=sizes.channels,
            norm_num_groups=8,
            down_block_types=(*("CrossAttnDownBlock2D" for _ in deep), "DownBlock2D"),
            up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D" for _ in deep)),
            cross_attention_dim=sizes.width,
            attention_head_dim=tuple(max(width // sizes.head, 1) for width in sizes.channels),
        )
    return Diffusion(unet, text_encoder, vae, tokenizer, SCHEDULE).eval()


def _autoencoder(sizes: Sizes, channels: int, size: int) -> "AutoencoderKL | PatchAutoencoder | None":
    if sizes.patch:
        from rub.models.diffusion.patches import PatchAutoencoder

        return PatchAutoencoder(sizes.patch, channels, sizes.latents)
    if not sizes.autoencoder:
        return None
    from diffusers import AutoencoderKL

    levels = len(sizes.autoencoder)
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=sizes.autoencoder,
        layers_per_block=1,
        latent_channels=sizes.latents,
        norm_num_groups=8,
        sample_size=size,
        mid_block_add_attention=False,
    )


def reinitialised(model: Diffusion, seed: int) -> Diffusion:
    """Model with the text encoder and autoencoder of another one and a UNet that was never trained."""
    unet: Any = type(model.unet)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        drawn = unet.from_config(model.unet.config)
    return Diffusion(drawn, model.text_encoder, model.vae, model.tokenizer, model.schedule).eval()
