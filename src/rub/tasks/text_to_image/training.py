"""Training a miniature: the autoencoder first, then text encoder and UNet together on noise prediction."""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from rub.data.samples import Samples
from rub.models.diffusion.model import Diffusion
from rub.pipeline.checkpointing import Changing
from rub.tasks.text_to_image.context import UnlearnContext
from rub.training.context import set_rate, warmup_cosine
from rub.training.device import compiled

KL_WEIGHT = 1e-6  # of the autoencoder's loss (Rombach et al. 2022, appendix G)
CHUNK = 256
MOST = 2000  # images that principal components are found from: 128,000 patches of 32 px images
Caption = Callable[[Tensor, torch.Generator], list[str]]
"""Labels (B,) and a generator -> a caption for each."""


def _rate(lr: float, step: int, total: int) -> float:
    return warmup_cosine(lr, step, total, max(total // 20, 1))


def fit(
    model: Diffusion, samples: Samples, caption: Caption, context: UnlearnContext, training: Mapping[str, Any]
) -> Diffusion:
    """Train a miniature from scratch and return it in eval mode, changed in place.

    L = E w_t |noise - e(x_t, t, TE(caption))|^2 (Ho et al. 2020, eq. 14; Rombach et al. 2022, eq. 3) over text encoder
    and UNet, with `min_snr` weights; a share of the captions is empty (Ho & Salimans 2022). The running mean of the
    weights is kept. The context's augmentation says whether to mirror; `training` is a `TrainingSpec`.
    """
    trains = isinstance(model.vae, AutoencoderKL)
    total = training["steps"] + (training["autoencoder_steps"] if trains else 0)
    if trains:
        fit_autoencoder(model, samples, context, training, total)
    elif model.vae is not None:
        model.vae.fit(samples.take(slice(MOST)).to(context.device).float() / 127.5 - 1)
    latents = encoded(model, samples, mirror=context.augmentation.flip)
    learned: nn.Module = nn.ModuleList([model.text_encoder, model.unet])
    mean = deepcopy(learned)
    learned.train()
    optimizer = torch.optim.AdamW(learned.parameters(), lr=training["lr"], weight_decay=0.01)
    generator, weight = context.generator("diffusion"), min_snr(model.alpha_bar)
    predict = compiled(model.predict, context.compile)
    changing: Changing = {"learned": learned, "mean": mean, "optimizer": optimizer, "draws": generator}
    part = context.checkpointer.section("train", changing)
    for step in range(part.restore(), training["steps"]):
        set_rate(optimizer, _rate(training["lr"], step, training["steps"]))
        rows = torch.randint(0, len(samples), (context.batch_size,), generator=generator)
        side = torch.randint(0, len(latents), (context.batch_size,), generator=generator)
        x, t, noise = context.noised(model, latents[side, rows].to(context.device), generator)
        texts = caption(samples.labels[rows], generator)
        kept = torch.rand(len(texts), generator=generator) >= training["dropout"]
        texts = [text if keep else "" for text, keep in zip(texts, kept.tolist(), strict=True)]
        with context.autocast():
            error = (predict(x, t, model.context(texts)).float() - noise).square().mean((1, 2, 3))
        loss = (weight[t] * error).mean()
        value = context.descend(loss, optimizer)
        _average(mean, learned, min(training["ema"], (1 + step) / (10 + step)))
        context.progress(total - training["steps"] + step + 1, total, f"loss {value:.3f}")
        part.keep(step + 1)
    learned.load_state_dict(mean.state_dict())
    return model.eval()


def min_snr(alpha_bar: Tensor, gamma: float = 5.0) -> Tensor:
    """Weight w_t = min(SNR_t, gamma) / SNR_t, SNR_t = alpha_bar_t / (1 - alpha_bar_t), with mean 1 over t.

    Hang et al. 2023 (Efficient Diffusion Training via Min-SNR Weighting Strategy), eq. 9 for a model that predicts the
    noise. On digits the prompt is obeyed after about half as many steps as without.

    Example:
        >>> [round(weight, 3) for weight in min_snr(torch.tensor([0.5, 10 / 11])).tolist()]
        [1.333, 0.667]
    """
    ratio = alpha_bar / (1 - alpha_bar)
    weight = ratio.clamp_max(gamma) / ratio
    return weight / weight.mean()


def fit_autoencoder(
    model: Diffusion, samples: Samples, context: UnlearnContext, training: Mapping[str, Any], total: int
) -> None:
    """Train the autoencoder on |x - D(z)| + |x - D(z)|^2 + 1e-6 KL, and scale its latents to unit variance.

    Latent diffusion adds a perceptual and an adversarial loss, whose networks a miniature does without.
    """
    vae = model.vae
    assert isinstance(vae, AutoencoderKL)
    vae.train()
    steps = training["autoencoder_steps"]
    optimizer = torch.optim.AdamW(vae.parameters(), lr=training["autoencoder_lr"], weight_decay=0.0)
    generator = context.generator("autoencoder")
    part = context.checkpointer.section("autoencoder", {"vae": vae, "optimizer": optimizer, "draws": generator})
    for step in range(part.restore(), steps):
        set_rate(optimizer, _rate(training["autoencoder_lr"], step, steps))
        rows = torch.randint(0, len(samples), (training["autoencoder_batch"],), generator=generator)
        images = context.augmentation(samples.take(rows).to(context.device), generator)
        x = images.float() / 127.5 - 1
        with context.autocast():
            posterior: Any = vae.encode(x).latent_dist
            z = posterior.mean + posterior.std * context.normal(posterior.mean.shape, generator)
            made = vae.decode(z).sample.float()
        error = made - x
        loss = error.abs().mean() + error.square().mean() + KL_WEIGHT * posterior.kl().mean()
        value = context.descend(loss, optimizer)
        context.progress(step + 1, total, f"autoencoder {value:.3f}")
        part.keep(step + 1)
    vae.eval()
    vae.register_to_config(scaling_factor=1.0)
    spread = encoded(model, samples.select(range(min(4 * CHUNK, len(samples)))), mirror=False).std()
    vae.register_to_config(scaling_factor=float(1 / spread))


def encoded(model: Diffusion, samples: Samples, *, mirror: bool) -> Tensor:
    """Latents of images, float32 (1 or 2, N, C, h, w) on the CPU; the second are of the mirrored images."""
    views = (False, True) if mirror else (False,)
    return torch.stack([torch.cat(list(_parts(model, samples, flip))) for flip in views])


def _parts(model: Diffusion, samples: Samples, flip: bool) -> Iterator[Tensor]:
    for start in range(0, len(samples), CHUNK):
        images = samples.take(slice(start, start + CHUNK))
        yield model.to_latents(images.flip(3) if flip else images).cpu()


@torch.no_grad()
def _average(mean: nn.Module, now: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(mean.parameters()), list(now.parameters()), 1 - decay)
