"""The masked autoencoder (He et al., CVPR 2022, arXiv 2111.06377) in the key layout of its published weights.

Written from the paper and the checkpoints' keys; numerically equal to transformers' ``ViTMAEForPreTraining`` (tested).
The input normalisation is inside, so that images, perturbations and budgets are in [0, 1] pixel space.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rub.errors import RubError, unknown
from rub.models.mae.masks import Mask, gather, scatter
from rub.models.mae.transformer import Block

# (image size, patch size, dim, depth, heads, decoder dim, decoder depth, decoder heads)
ARCHITECTURES: Mapping[str, tuple[int, ...]] = {
    "mae-vit-base": (224, 16, 768, 12, 12, 512, 8, 16),
    "mae-vit-large": (224, 16, 1024, 24, 16, 512, 8, 16),
    "mae-vit-huge": (224, 14, 1280, 32, 16, 512, 8, 16),
    "mae-small": (32, 4, 128, 4, 4, 96, 2, 4),
    "mae-mini": (32, 4, 64, 4, 4, 48, 2, 4),
    "mae-nano": (32, 4, 32, 2, 4, 32, 1, 4),
}


@dataclass(frozen=True)
class MAEConfig:
    """Sizes of a masked autoencoder of square images, and the normalisation of its inputs.

    `dim` is a width, `depth` a number of blocks, `mlp_ratio` the hidden width of a block's MLP in units of its width.
    Layer norms have eps 1e-6 in the original, 1e-12 in transformers' default. Mean and std are per channel, in [0, 1]
    pixel space.
    """

    image_size: int
    patch_size: int
    channels: int
    dim: int
    depth: int
    heads: int
    decoder_dim: int
    decoder_depth: int
    decoder_heads: int
    mlp_ratio: float = 4.0
    eps: float = 1e-6
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit together."""
        if self.image_size % self.patch_size:
            raise RubError(f"image size {self.image_size}: should be a multiple of the patch size {self.patch_size}")
        sides = ((self.dim, self.heads, "dim"), (self.decoder_dim, self.decoder_heads, "decoder_dim"))
        for width, heads, what in sides:
            if width % heads or width % 4:
                raise RubError(f"{what} = {width}: should be a multiple of 4 and of its {heads} heads")
        if not len(self.mean) == len(self.std) == self.channels:
            raise RubError(
                f"mean {self.mean} and std {self.std}: should have a value for each of {self.channels} channels"
            )

    @property
    def grid(self) -> int:
        """Number of patches along a side."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """L, the number of patches."""
        return self.grid**2

    @property
    def patch_dim(self) -> int:
        """P, the numbers in a patch."""
        return self.patch_size**2 * self.channels


class PatchEmbed(nn.Module):
    """Holds the patch projection; `MaskedAutoencoder` applies it to the visible patches only."""

    def __init__(self, channels: int, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch_size, patch_size)

    def forward(self, patches: Tensor) -> Tensor:
        """Map patches (N, K, P), in (row, column, channel) order, to (N, K, dim)."""
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(patches, weight, self.proj.bias)


class MaskedAutoencoder(nn.Module):
    """f(x; m): encode the visible patches, decode all of them; the state-dict keys are those of facebookresearch/mae.

    Example:
        >>> from rub.models.mae.masks import keyed_noise, make_mask
        >>> model = build_mae("mae-mini", channels=1, mean=(0.5,), std=(0.5,))
        >>> x = torch.rand(2, 1, 32, 32)
        >>> mask = make_mask(keyed_noise(torch.tensor([0, 1]), 64), 0.75)
        >>> tuple(model(x, mask).shape), tuple(model.encode(x, mask).shape)
        ((2, 64, 16), (2, 17, 64))
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: MAEConfig, seed: int = 0) -> None:
        super().__init__()
        c = self.config = config
        fixed = {"requires_grad": False}
        self.cls_token = nn.Parameter(torch.zeros(1, 1, c.dim))
        self.pos_embed = nn.Parameter(sincos(c.grid, c.dim), **fixed)
        self.patch_embed = PatchEmbed(c.channels, c.patch_size, c.dim)
        self.blocks = nn.ModuleList(Block(c.dim, c.heads, c.mlp_ratio, c.eps) for _ in range(c.depth))
        self.norm = nn.LayerNorm(c.dim, eps=c.eps)
        self.decoder_embed = nn.Linear(c.dim, c.decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, c.decoder_dim))
        self.decoder_pos_embed = nn.Parameter(sincos(c.grid, c.decoder_dim), **fixed)
        self.decoder_blocks = nn.ModuleList(
            Block(c.decoder_dim, c.decoder_heads, c.mlp_ratio, c.eps) for _ in range(c.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(c.decoder_dim, eps=c.eps)
        self.decoder_pred = nn.Linear(c.decoder_dim, c.patch_dim)
        self.register_buffer("mean", torch.tensor(c.mean).repeat(c.patch_size**2), persistent=False)
        self.register_buffer("std", torch.tensor(c.std).repeat(c.patch_size**2), persistent=False)
        self._initialise(torch.Generator().manual_seed(seed))

    def _initialise(self, generator: torch.Generator) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                # Of a convolution, the weight counts as the matrix that it is for a patch.
                nn.init.xavier_uniform_(module.weight.data.flatten(1), generator=generator)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.cls_token, std=0.02, generator=generator)
        nn.init.normal_(self.mask_token, std=0.02, generator=generator)

    def encoder_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Trainable parameters of the encoder with their names."""
        return [
            (name, parameter)
            for name, parameter in self.named_parameters()
            if parameter.requires_grad and not name.startswith(("decoder", "mask_token"))
        ]

    def patchify(self, images: Tensor) -> Tensor:
        """Rearrange (N, C, H, W) to patches (N, L, P), each in (row, column, channel) order."""
        c = self.config
        if images.shape[1:] != (c.channels, c.image_size, c.image_size):
            raise RubError(
                f"images of shape {tuple(images.shape[1:])}: the model takes"
                f" {(c.channels, c.image_size, c.image_size)}; set the size to {c.image_size}"
            )
        split = images.reshape(len(images), c.channels, c.grid, c.patch_size, c.grid, c.patch_size)
        return split.permute(0, 2, 4, 3, 5, 1).reshape(len(images), c.patches, c.patch_dim)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Rearrange patches (N, L, P) to images (N, C, H, W)."""
        c = self.config
        split = patches.reshape(len(patches), c.grid, c.grid, c.patch_size, c.patch_size, c.channels)
        return split.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), c.channels, c.image_size, c.image_size)

    def normalise(self, patches: Tensor) -> Tensor:
        """Map patches (..., P) from [0, 1] pixel space to the space that the network works in."""
        return (patches - self.mean) / self.std

    def denormalise(self, patches: Tensor) -> Tensor:
        """Map patches (..., P) back to pixel space."""
        return patches * self.std + self.mean

    def encode(self, x: Tensor, mask: Mask) -> Tensor:
        """Latent (N, 1 + K, dim) of the visible patches of x, float (N, C, H, W) in [0, 1]."""
        return self.encode_patches(gather(self.normalise(self.patchify(x)), mask.keep), mask)

    def encode_patches(self, visible: Tensor, mask: Mask) -> Tensor:
        """Latent of visible patches (N, K, P) in normalised pixels."""
        tokens = self.patch_embed(visible) + self.pos_embed[0, 1:][mask.keep]
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        tokens = torch.cat([first, tokens], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return cast(Tensor, self.norm(tokens))

    def decode(self, latent: Tensor, mask: Mask) -> Tensor:
        """Predicted patches (N, L, P) in normalised pixels; those of visible patches are untrained."""
        return self._predicted(self._decoded(latent, mask))

    def decode_hidden(self, latent: Tensor, mask: Mask) -> Tensor:
        """Predicted masked patches only, (N, L - K, P) in the order of ``mask.hidden``."""
        return self._predicted(gather(self._decoded(latent, mask), mask.hidden))

    def _predicted(self, tokens: Tensor) -> Tensor:
        return cast(Tensor, self.decoder_pred(self.decoder_norm(tokens)))

    def _decoded(self, latent: Tensor, mask: Mask) -> Tensor:
        seen = self.decoder_embed(latent)
        blanks = self.mask_token.to(seen.dtype).expand(len(seen), mask.hidden.shape[1], -1)
        patches = gather(torch.cat([seen[:, 1:], blanks], 1), mask.restore)
        tokens: Tensor = torch.cat([seen[:, :1], patches], 1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return tokens[:, 1:]

    def forward(self, x: Tensor, mask: Mask) -> Tensor:
        """Predicted patches (N, L, P) in normalised pixels."""
        return self.decode(self.encode(x, mask), mask)

    def loss(self, x: Tensor, mask: Mask, target: Tensor | None = None) -> Tensor:
        """MAE loss of x, or of another target: mean over masked patches of the squared error in normalised pixels."""
        wanted = self.normalise(self.patchify(x if target is None else target))
        predicted = self.decode_hidden(self.encode(x, mask), mask)
        return F.mse_loss(predicted.float(), gather(wanted, mask.hidden))

    def reconstruct(self, x: Tensor, mask: Mask) -> Tensor:
        """f(x; m) on the masked patches: (N, L - K, P) in pixel space, float32, not clamped."""
        return self.denormalise(self.decode_hidden(self.encode(x, mask), mask).float())


def paste(hidden: Tensor, x: Tensor, mask: Mask, model: MaskedAutoencoder) -> Tensor:
    """Images (N, C, H, W) in [0, 1]: the visible patches of x beside `MaskedAutoencoder.reconstruct`'s, clamped."""
    return model.unpatchify(scatter(hidden, mask.hidden, model.patchify(x))).clamp(0, 1)


def sincos(grid: int, dim: int) -> Tensor:
    """Fixed 2-D sine-cosine position embeddings (1, 1 + grid^2, dim); the class token has zeros.

    The first half of the channels encodes the column, the second the row; frequencies are 10000^(-4i/dim).
    """
    omega = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * omega
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    columns, rows = waves.repeat(grid, 1), waves.repeat_interleave(grid, 0)
    return torch.cat([torch.zeros(1, dim), torch.cat([columns, rows], 1).float()])[None]


def build_mae(
    name: str,
    *,
    channels: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    image_size: int | None = None,
    patch_size: int | None = None,
    seed: int = 0,
) -> MaskedAutoencoder:
    """Freshly initialised masked autoencoder of `ARCHITECTURES`, with other sizes where they are given."""
    if name not in ARCHITECTURES:
        raise unknown("model", name, ARCHITECTURES)
    size, patch, dim, depth, heads, decoder_dim, decoder_depth, decoder_heads = ARCHITECTURES[name]
    config = MAEConfig(
        image_size or size, patch_size or patch, channels, dim, depth, heads, decoder_dim, decoder_depth, decoder_heads,
        mean=mean, std=std,
    )  # fmt: skip
    return MaskedAutoencoder(config, seed)
