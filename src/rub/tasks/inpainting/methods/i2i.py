"""I2I: move the encoder's forget embeddings to those of noise, and hold its retain embeddings."""

from typing import Annotated

import torch
from torch import Tensor, nn

from rub.config.hyperparameters import Hyper, Weight
from rub.data.samples import Samples
from rub.models.mae.masks import Mask
from rub.models.mae.model import MaskedAutoencoder
from rub.models.weights import frozen
from rub.registry import Card, method
from rub.tasks.inpainting.context import UnlearnContext
from rub.tasks.inpainting.methods._steps import Clip, Decay, Passes, PeakRate, Warmup, minimise, ramp
from rub.tasks.inpainting.methods._targets import Noise, noise_images

CARD = Card(
    paper="Li et al., Machine Unlearning for Image-to-Image Generative Models, ICLR 2024, arXiv 2402.00351",
    equation="min_E E_{D_r} |E(x; m) - E_0(x; m)|^2 + alpha E_{D_u} |E(x; m) - E_0(n; m)|^2,"
    " n = clamp(std(x) N(0, 1) + mean(x), 0, 1)",
    upstream="jpmorganchase/i2i_mage ae25285 (branch i2i), engine_unlearn.py and main_unlearn.py",
    differences=(
        "a masked autoencoder: upstream released VQ-GAN (MAGE) and diffusion code only",
        "the optimiser holds the encoder alone; upstream gives it all parameters, of which only the encoder has"
        " gradients",
        "each term is the mean over its own half of a balanced batch; upstream's factor 1 +- y over the whole batch is"
        " the same on balanced batches and drifts with the mixture on others",
        "alpha_R is 1, as upstream by default",
        "the experiment's mask ratio; upstream draws MAGE's from a truncated normal",
        "every draw comes from the seed; upstream re-seeds from the clock at every step",
    ),
)


def i2i_losses(
    student: MaskedAutoencoder, original: MaskedAutoencoder, x_f: Tensor, x_r: Tensor, noise: Tensor, mask: Mask
) -> tuple[Tensor, Tensor]:
    """(L_R, L_F), the mean squared distances of the student's embeddings to E_0(x_r; m) and to E_0(n; m).

    Args:
        student: E, being trained.
        original: E_0, frozen.
        x_f: forget images, float (B, C, H, W) in [0, 1].
        x_r: retain images, likewise.
        noise: n, one image for each of x_f.
        mask: m of the 2 B images, forget first; the same for all three embeddings.
    """
    with torch.no_grad():
        target = original.encode(torch.cat([noise, x_r]), mask).float()
    error = (student.encode(torch.cat([x_f, x_r]), mask).float() - target).square()
    return error[len(x_f) :].mean(), error[: len(x_f)].mean()


@method("i2i", task="inpainting", card=CARD)
def i2i(
    model: MaskedAutoencoder, forget: Samples, retain: Samples, context: UnlearnContext, *,
    alpha: Annotated[Weight, Hyper("weight of the forget term",
        source="ours, next to upstream's README (0.2); upstream's own default, 0, forgets nothing")] = 0.25,
    noise: Annotated[Noise, Hyper("distribution of the noise images",
        source="upstream")] = "normal",
    lr: Annotated[PeakRate, Hyper(source="ours, for the small models that RUB trains itself; upstream 5e-5 (1e-4 x"
        " batch 128 / 256) for ViT-B, which the ImageNet suites set")] = 1e-3,
    epochs: Passes = 6,
    warmup: Warmup = 5 / 6,
    weight_decay: Decay = 0.05,
    clip: Clip = 3.0,
) -> nn.Module:  # fmt: skip
    """Train the encoder alone: L = L_R + alpha L_F. The decoder stays bit for bit what it was."""
    original = frozen(model)
    masks, noises = context.generator("masks"), context.generator("noise")

    def loss(x_f: Tensor, x_r: Tensor) -> Tensor:
        mask = context.masks(len(x_f) + len(x_r), model.config.patches, masks)
        images = noise_images(torch.cat([x_f, x_r]), len(x_f), noise, noises)
        held, forgotten = i2i_losses(model, original, x_f, x_r, images, mask)
        return held + alpha * forgotten

    model.train()
    minimise(
        loss, model.encoder_parameters(), forget, retain, context,
        draws={"masks": masks, "noises": noises}, rate=ramp(lr, warmup), epochs=epochs, weight_decay=weight_decay,
        clip=clip,
    )  # fmt: skip
    return model
