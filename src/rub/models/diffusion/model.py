"""`Diffusion`: the parts of Stable Diffusion as one module, of any size, with the few operations that RUB needs.

Latent diffusion (Rombach et al. 2022): a text encoder, a UNet that predicts the noise e(x_t, t, c), and an autoencoder,
or none, where the latents are the pixels themselves. All sizes are read from the parts' configs.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rub.errors import RubError
from rub.models.weights import freeze

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    from rub.models.diffusion.guidance import Guided
    from rub.models.diffusion.patches import PatchAutoencoder

SCHEDULE: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}
"""The noise schedule of Stable Diffusion 1.x and 2.x-base (`scheduler_config.json` of its version 1.4)."""
PIXELS = 1024 * 1024  # of the pictures that the autoencoder holds at once: four of 512 x 512, 256 of 64 x 64


class Diffusion(nn.Module):
    """A text-to-image model.

    Attributes:
        unet: e(x_t, t, context), a `UNet2DConditionModel`.
        text_encoder: a `CLIPTextModel`.
        vae: an `AutoencoderKL`, a `PatchAutoencoder`, or None where latents are pixels in [-1, 1].
        tokenizer: a `CLIPTokenizer`; its ``model_max_length`` is L.
        schedule: the noise schedule, a diffusers scheduler config.
        guidance: what acts while pictures are drawn, or None.
        micro_batch: rows whose activations `predict` holds for a gradient, or None for all. Of more rows it forgets the
            activations, and makes them again in the backward pass, so many rows at a time: equal to rounding.
        widest: most rows that were predicted with a gradient so far.
    """

    alpha_bar: Tensor

    def __init__(
        self,
        unet: "UNet2DConditionModel",
        text_encoder: "CLIPTextModel",
        vae: "AutoencoderKL | PatchAutoencoder | None",
        tokenizer: "CLIPTokenizer",
        schedule: Mapping[str, Any] = SCHEDULE,
    ) -> None:
        from diffusers import DDIMScheduler

        super().__init__()
        self.unet, self.text_encoder, self.vae = unet, text_encoder, vae
        self.tokenizer, self.schedule = tokenizer, dict(schedule)
        self.guidance: Guided | None = None
        self.micro_batch: int | None = None
        self.widest = 0
        self.prediction = str(self.schedule.get("prediction_type", "epsilon"))
        if self.prediction not in ("epsilon", "v_prediction"):
            raise RubError(f"model: predicts '{self.prediction}'; should be 'epsilon' or 'v_prediction'")
        width, wanted = text_encoder.config.hidden_size, unet.config.cross_attention_dim
        if width != wanted:
            raise RubError(f"model: the text encoder is {width} wide, but the UNet's cross-attention takes {wanted}")
        given = {name: value for name, value in self.schedule.items() if name in SCHEDULE}
        given["prediction_type"] = "epsilon"  # `predict` gives noise, whatever the UNet does
        self.register_buffer("alpha_bar", DDIMScheduler(**given).alphas_cumprod.float(), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.alpha_bar.device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of a latent."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.unet.config.in_channels, height, width

    @property
    def timesteps(self) -> int:
        """T, the number of training time steps."""
        return len(self.alpha_bar)

    @property
    def length(self) -> int:
        """L, the number of tokens that a prompt is padded or cut to."""
        return min(int(self.tokenizer.model_max_length), int(self.text_encoder.config.max_position_embeddings))

    @property
    def token_embeddings(self) -> Tensor:
        """Embedding of every token, float (V, D): a parameter of the text encoder."""
        return cast(nn.Embedding, self.text_encoder.get_input_embeddings()).weight

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Token ids, int64 (B, L) on the device: BOS, the prompt, EOS, padding; longer prompts are cut."""
        ids: Tensor = self.tokenizer(
            list(prompts), padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        ).input_ids
        return ids.to(self.device)

    def encode(self, ids: Tensor) -> Tensor:
        """Context that the UNet attends to, float (B, L, D), of token ids (B, L)."""
        return cast(Tensor, self.text_encoder(ids)[0])

    def encode_soft(self, embeddings: Tensor) -> Tensor:
        """Context of input embeddings (B, L, D), which need not be those of any token; differentiable.

        A forward hook replaces the output of the embedding table, which works on every version of transformers.
        """
        table = self.text_encoder.get_input_embeddings()
        handle = table.register_forward_hook(lambda module, given, made: embeddings)
        try:
            return self.encode(torch.zeros(embeddings.shape[:2], dtype=torch.int64, device=self.device))
        finally:
            handle.remove()

    def context(self, prompts: Sequence[str]) -> Tensor:
        """Context of prompts, float (B, L, D)."""
        return self.encode(self.tokenize(prompts))

    def predict(self, x: Tensor, t: Tensor | int, context: Tensor) -> Tensor:
        """Predicted noise e(x_t, t, c) at one time step or (B,), of latents (B, C, h, w), context (B or 1, L, D).

        Of a UNet that predicts v = sqrt(alpha_bar_t) noise - sqrt(1 - alpha_bar_t) x_0 (Salimans & Ho 2022, appendix D)
        it is sqrt(alpha_bar_t) v + sqrt(1 - alpha_bar_t) x_t.
        """
        rows, context = len(x), context.expand(len(x), -1, -1)
        if torch.is_grad_enabled():
            self.widest = max(self.widest, rows)
        if self.micro_batch is None or rows <= self.micro_batch or not torch.is_grad_enabled():
            made = self._made(x, t, context)
        else:
            times = t if isinstance(t, Tensor) and t.ndim else torch.as_tensor(t, device=x.device).expand(rows)
            parts = zip(*(torch.split(part, self.micro_batch) for part in (x, times, context)), strict=True)
            made = torch.cat([checkpoint(self._made, *part, use_reentrant=False) for part in parts])
        if self.prediction == "epsilon":
            return made
        alpha = self._alpha_at(torch.as_tensor(t, device=x.device)).reshape(-1, 1, 1, 1)
        return alpha.sqrt() * made + (1 - alpha).sqrt() * x

    def _made(self, x: Tensor, t: Tensor | int, context: Tensor) -> Tensor:
        return cast(Tensor, self.unet(x, t, encoder_hidden_states=context).sample)

    def _alpha_at(self, t: Tensor) -> Tensor:
        """alpha_bar at time steps, between two of them by sigma, which samplers make linear in t."""
        sigma = ((1 - self.alpha_bar) / self.alpha_bar).sqrt()
        low = t.float().floor().long().clamp(0, self.timesteps - 1)
        high = (low + 1).clamp(max=self.timesteps - 1)
        at = torch.lerp(sigma[low], sigma[high], t.float() - low.float())
        return 1 / (1 + at.square())

    def noised(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise, at t, int64 (B,) (Ho et al. 2020, eq. 4)."""
        alpha = self.alpha_bar[t].reshape(-1, 1, 1, 1)
        return alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise

    @property
    def _pixels_per_latent(self) -> int:
        config: Any = self.vae.config if self.vae is not None else None
        return int(config.patch if hasattr(config, "patch") else 2 ** (len(config.block_out_channels) - 1))

    @torch.no_grad()
    def to_latents(self, images: Tensor) -> Tensor:
        """Clean latents x_0 of uint8 images (B, 1 or 3, H, W): the mean of the encoder, scaled."""
        x = images.to(self.device).float() / 127.5 - 1
        if self.vae is None:
            return x
        parts = torch.split(x, _most(x.shape[2:]))
        return torch.cat([self.vae.encode(part).latent_dist.mean * self.vae.config.scaling_factor for part in parts])

    @torch.no_grad()
    def to_images(self, latents: Tensor) -> Tensor:
        """uint8 images (B, 1 or 3, H, W) of clean latents, on the CPU."""
        if self.vae is None:
            return _levels(latents)
        x = latents / self.vae.config.scaling_factor
        parts = torch.split(x, _most(x.shape[2:], self._pixels_per_latent))
        return torch.cat([_levels(self.vae.decode(part).sample) for part in parts])


def _most(sides: Sequence[int], scale: int = 1) -> int:
    return max(PIXELS // (scale**2 * sides[0] * sides[1]), 1)


def _levels(x: Tensor) -> Tensor:
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()


def frozen(model: Diffusion) -> Diffusion:
    """A frozen copy of a model: e_0, the original; the tokenizer, which does not change, is shared."""
    tokenizer, model.tokenizer = model.tokenizer, None
    try:
        copy = deepcopy(model)
    finally:
        model.tokenizer = tokenizer
    copy.tokenizer = tokenizer
    return freeze(copy)
