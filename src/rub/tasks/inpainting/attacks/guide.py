"""Scoring of visible patches against the original's output: a fast one that guides a search, and float32's own."""

import copy
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rub.models.mae.masks import Mask
from rub.models.mae.model import MaskedAutoencoder, PatchEmbed
from rub.models.mae.transformer import Attention, Block
from rub.models.network import InFloat32
from rub.pipeline.checkpointing import AttributeState
from rub.tasks.inpainting.attacks.base import AttackContext, divergence
from rub.training.device import compiled_batches

CPU_WIDTH = 64
"""On CPUs, narrower encoders do not gain from bfloat16 what its second looks cost: at this width 1.1 to 1.4 times."""


class Score(NamedTuple):
    """Per-sample results of one pass: D, float32 (B,), and where asked for the gradient of D * (numbers compared).

    The gradient, (B, K, P), is that of the sum of squares instead of the mean: means over 10^5 numbers have gradients
    near 1e-6, next to which the 1e-8 of Adam's denominator counts.
    """

    loss: Tensor
    gradient: Tensor | None = None


class Guide(AttributeState):
    """Scores batches of visible patches, and counts every image it passes through a model.

    Attributes:
        evaluations: forward passes of single images so far; a forward+backward pair counts once.
        is_exact: whether the guide is the float32 model itself, so that its scores need no re-evaluation.
    """

    changing = ("evaluations",)

    def __init__(self, model: MaskedAutoencoder, context: AttackContext) -> None:
        """Prepare the float32 model and, in fast mode and where the device computes in it, its bfloat16 copy."""
        self.evaluations = 0
        fast = context.fast and _pays(model, context.device)
        self.is_exact = not (fast or context.compile)
        self._exact = Predict(model, fast=False)
        self._guide = Predict(halved(model, context.device) if fast else model, fast=fast)
        self._steep = compiled_batches(self._guide, context.batch_size, context.compile)

    def __call__(self, visible: Tensor, mask: Mask, reference: Tensor, *, gradient: bool) -> Score:
        """Score visible patches for the search.

        Args:
            visible: float32 (B, K, P) in pixel space.
            mask: of these images.
            reference: float32 (B, L - K, P) in pixel space.
            gradient: whether to return it; parameters never receive gradients.
        """
        self.evaluations += len(visible)
        visible = visible.detach().requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            predicted = (self._steep if gradient else self._guide)(visible, mask.keep, mask.hidden)
            total = (predicted - reference).square().sum((1, 2))
        slope = torch.autograd.grad(total.sum(), visible)[0] if gradient else None
        return Score(total.detach() / reference[0].numel(), slope)

    @torch.no_grad()
    def exact(self, visible: Tensor, mask: Mask, reference: Tensor) -> Tensor:
        """D (B,) as the target's own model has it in float32; arguments as above."""
        self.evaluations += len(visible)
        return divergence(self._exact(visible, mask.keep, mask.hidden), reference)


class Predict(nn.Module):
    """From visible patches to masked ones, both in pixel space."""

    def __init__(self, model: MaskedAutoencoder, *, fast: bool) -> None:
        """`fast` computes under autocast."""
        super().__init__()
        self.model, self.fast = model, fast

    def forward(self, visible: Tensor, keep: Tensor, hidden: Tensor) -> Tensor:
        """(B, L - K, P) for visible patches (B, K, P) and the parts of their mask."""
        model, mask = self.model, Mask(keep, hidden)
        with torch.autocast(visible.device.type, torch.bfloat16, enabled=self.fast):
            predicted = model.decode_hidden(model.encode_patches(model.normalise(visible), mask), mask)
        return model.denormalise(predicted.float())


def _pays(model: MaskedAutoencoder, device: torch.device) -> bool:
    return device.type != "cpu" or (torch.cpu._is_avx512_bf16_supported() and model.config.dim >= CPU_WIDTH)


def halved(model: MaskedAutoencoder, device: torch.device) -> MaskedAutoencoder:
    """Copy whose matrix products are in bfloat16, to be called under autocast.

    Residual stream and layer norms stay in float32, and so do the patch projection (bfloat16 has half the resolution
    of an 8-bit image there) and the prediction head.
    """
    guide = copy.deepcopy(model)
    for block in (*guide.blocks, *guide.decoder_blocks):
        block = cast(Block, block)
        attention, mlp = block.attn, block.mlp
        if device.type == "cpu":
            block.attn = cast(Attention, _PlainAttention(attention))
        for layer in (attention.qkv, attention.proj, mlp.fc1, mlp.fc2):
            layer.to(torch.bfloat16)
    guide.decoder_embed.to(torch.bfloat16)
    guide.patch_embed = cast(PatchEmbed, InFloat32(guide.patch_embed))
    guide.decoder_pred = cast(nn.Linear, InFloat32(guide.decoder_pred))
    return guide


class _PlainAttention(nn.Module):
    """Attention as two products and a softmax: on CPUs, torch's fused backward pass is up to ten times slower."""

    def __init__(self, inner: Attention) -> None:
        super().__init__()
        self.inner = inner
        dim = inner.proj.in_features
        with torch.no_grad():  # queries come scaled, which saves a pass over them
            for parameter in (inner.qkv.weight, inner.qkv.bias):
                parameter[:dim] *= (dim // inner.heads) ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        count, tokens, dim = x.shape
        heads = self.inner.heads
        with torch.autocast(x.device.type, enabled=False):
            qkv = self.inner.qkv(x.to(torch.bfloat16)).view(count, tokens, 3, heads, dim // heads)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            weights = F.softmax(q @ k.transpose(-1, -2), -1)
            out: Tensor = self.inner.proj((weights @ v).transpose(1, 2).reshape(count, tokens, dim))
        return out
