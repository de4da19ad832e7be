"""A linear autoencoder: the leading principal components of square patches, for miniatures that draw photos.

An autoencoder of convolutions takes longer to train on two cores than all the rest. The best linear one (the
Karhunen-Loeve transform of p x p patches) needs no training: of 32 px photos (Imagenette) 8 of 48 numbers of a 4 x 4
patch keep 96 % of the variance, and a classifier that is right on 77 % of real pictures is right on 66 % of those that
went through it (12 numbers: 98 %, 73 %).
"""

from types import SimpleNamespace
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor
from torch.nn import functional as F


class PatchAutoencoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """z = B (x - m) for every p x p patch x, with orthonormal rows B; decoded as B^T z + m.

    It begins with the first pixels of each patch; `fit` finds the components, of which `kept` make a latent.

    Attributes:
        basis: B, float32 (kept, channels p^2).
        center: m, float32 (channels p^2).
    """

    basis: Tensor
    center: Tensor

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, patch: int = 4, channels: int = 3, kept: int = 8, scaling_factor: float = 1.0) -> None:
        super().__init__()
        wide = channels * patch**2
        self.basis = torch.nn.Parameter(torch.eye(kept, wide), requires_grad=False)
        self.center = torch.nn.Parameter(torch.zeros(wide), requires_grad=False)

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Set B and m to the leading components and mean of patches of images (N, channels, H, W) in [-1, 1].

        Latents get unit variance; H and W are multiples of p.

        """
        rows = F.pixel_unshuffle(images, self.config.patch).permute(0, 2, 3, 1).flatten(0, 2).double()
        self.center.copy_(rows.mean(0))
        covariance = (rows - rows.mean(0)).T @ (rows - rows.mean(0)) / len(rows)
        values, vectors = torch.linalg.eigh(covariance)  # ascending
        leading = vectors.flip(1)[:, : self.config.kept].T
        signs = leading.gather(1, leading.abs().argmax(1, keepdim=True)).sign()  # a component has no sign of its own
        self.basis.copy_(leading * signs)
        self.register_to_config(scaling_factor=float(values.flip(0)[: self.config.kept].mean().rsqrt()))

    def encode(self, x: Tensor) -> SimpleNamespace:
        """Latents (B, kept, H / p, W / p) of images (B, channels, H, W), as `AutoencoderKL` gives them: one point."""
        folded = F.pixel_unshuffle(x, self.config.patch) - self.center[:, None, None]
        mean = F.conv2d(folded, self.basis[:, :, None, None])
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean))

    def decode(self, z: Tensor, **_: Any) -> DecoderOutput:
        """Images of latents."""
        folded = F.conv2d(z, self.basis.T[:, :, None, None]) + self.center[:, None, None]
        return DecoderOutput(sample=F.pixel_shuffle(folded, self.config.patch))
