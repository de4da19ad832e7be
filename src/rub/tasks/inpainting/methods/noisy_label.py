"""Noisy label: teach the model to complete forget images with noise."""

from typing import Annotated

import torch
from torch import Tensor, nn

from rub.config.hyperparameters import Hyper, Weight
from rub.data.samples import Samples
from rub.models.mae.model import MaskedAutoencoder
from rub.registry import Card, method
from rub.tasks.inpainting.context import UnlearnContext
from rub.tasks.inpainting.methods._steps import Clip, Decay, Passes, PeakRate, Warmup, minimise, ramp
from rub.tasks.inpainting.methods._targets import Noise, noise_images

CARD = Card(
    paper="Li et al., Machine Unlearning for Image-to-Image Generative Models, ICLR 2024, arXiv 2402.00351"
    " (baseline Noisy label)",
    equation="min_theta L(x_r; x_r) + alpha L(x_f; n), L(x; t) = MSE between f(x; m) and t on the masked patches,"
    " n = clamp(std(x) N(0, 1) + mean(x), 0, 1)",
    upstream="jpmorganchase/i2i_mage ae25285 (branch i2i), engine_baseline.py (full_model_noise) and main_baseline.py",
    differences=(
        "the target is noise pixels; upstream's is random token ids (a rounded, clamped Gaussian) under MAGE's"
        " cross-entropy",
        "each term is the mean over its own half of a balanced batch",
    ),
)


@method("noisy-label", task="inpainting", card=CARD)
def noisy_label(
    model: MaskedAutoencoder, forget: Samples, retain: Samples, context: UnlearnContext, *,
    alpha: Annotated[Weight, Hyper("weight of the forget term",
        source="as i2i, so that the two differ in the loss alone; upstream's README 0.2, its own default 0")] = 0.25,
    noise: Annotated[Noise, Hyper("distribution of the noise images",
        source="upstream's noise images for I2I")] = "normal",
    lr: PeakRate = 1e-3,
    epochs: Passes = 6,
    warmup: Warmup = 5 / 6,
    weight_decay: Decay = 0.05,
    clip: Clip = 3.0,
) -> nn.Module:  # fmt: skip
    """Train the full model: L = L(x_r; x_r) + alpha L(x_f; n), with fresh noise n in every step."""
    masks, noises = context.generator("masks"), context.generator("noise")

    def loss(x_f: Tensor, x_r: Tensor) -> Tensor:
        target = noise_images(torch.cat([x_f, x_r]), len(x_f), noise, noises)
        noisy = model.loss(x_f, context.masks(len(x_f), model.config.patches, masks), target=target)
        held = model.loss(x_r, context.masks(len(x_r), model.config.patches, masks))
        return held + alpha * noisy

    model.train()
    minimise(
        loss, model.named_parameters(), forget, retain, context,
        draws={"masks": masks, "noises": noises}, rate=ramp(lr, warmup), epochs=epochs, weight_decay=weight_decay,
        clip=clip,
    )  # fmt: skip
    return model
