"""Random encoder: move the forget embeddings to Gaussian vectors, and hold the retain embeddings."""

from typing import Annotated

import torch
from torch import Tensor, nn

from rub.config.hyperparameters import Hyper, Weight
from rub.data.samples import Samples
from rub.models.mae.model import MaskedAutoencoder
from rub.models.weights import frozen
from rub.registry import Card, method
from rub.tasks.inpainting.context import UnlearnContext
from rub.tasks.inpainting.methods._steps import Clip, Decay, Passes, PeakRate, Warmup, minimise, ramp

CARD = Card(
    paper="Li et al., Machine Unlearning for Image-to-Image Generative Models, ICLR 2024, arXiv 2402.00351"
    " (baseline Random encoder)",
    equation="min_E E_{D_r} |E(x; m) - g|^2 + alpha E_{D_u} |E(x; m) - e|^2, g = E_0(x; m), e ~ N(mean(g), std(g)^2)",
    upstream="jpmorganchase/i2i_mage ae25285 (branch i2i), engine_baseline.py (encoder_noise) and main_baseline.py",
    differences=(
        "the forget target is for forget images; the released code weights both terms by 1 + y, so that it trains"
        " retain images towards noise and never sees a forget one",
        "a masked autoencoder instead of MAGE; the optimiser holds the encoder alone",
        "each term is the mean over its own half of a balanced batch",
    ),
)


@method("random-encoder", task="inpainting", card=CARD)
def random_encoder(
    model: MaskedAutoencoder, forget: Samples, retain: Samples, context: UnlearnContext, *,
    alpha: Annotated[Weight, Hyper("weight of the forget term",
        source="ours: embeddings leave a layer norm with nearly one length, so that targets around one mean push"
        " weakly; upstream's README 0.2, its own default 0")] = 1.0,
    lr: PeakRate = 1e-3,
    epochs: Passes = 6,
    warmup: Warmup = 5 / 6,
    weight_decay: Decay = 0.05,
    clip: Clip = 3.0,
) -> nn.Module:  # fmt: skip
    """Train the encoder alone: L = |E(x_r) - g_r|^2 + alpha |E(x_f) - e|^2, e Gaussian with g's mean and deviation.

    The mean and the standard deviation of g are two numbers over the embeddings of the whole batch.
    """
    original = frozen(model)
    masks, noises = context.generator("masks"), context.generator("noise")

    def loss(x_f: Tensor, x_r: Tensor) -> Tensor:
        x, count = torch.cat([x_f, x_r]), len(x_f)
        mask = context.masks(len(x), model.config.patches, masks)
        with torch.no_grad():
            g = original.encode(x, mask).float()
        e = torch.randn(g[:count].shape, generator=noises).to(g.device) * g.std() + g.mean()
        z = model.encode(x, mask).float()
        return (z[count:] - g[count:]).square().mean() + alpha * (z[:count] - e).square().mean()

    model.train()
    minimise(
        loss, model.encoder_parameters(), forget, retain, context,
        draws={"masks": masks, "noises": noises}, rate=ramp(lr, warmup), epochs=epochs, weight_decay=weight_decay,
        clip=clip,
    )  # fmt: skip
    return model
