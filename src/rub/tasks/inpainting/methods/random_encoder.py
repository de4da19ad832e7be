"""Random encoder: move the forget embeddings to Gaussian vectors, and hold the retain embeddings."""

import torch
from torch import Tensor, nn

from rub.config.hyperparameters import Epochs, Fraction, Positive, Rate, Weight
from rub.data.samples import Samples
from rub.models.mae.model import MaskedAutoencoder
from rub.registry import Card, method
from rub.tasks.inpainting.context import UnlearnContext
from rub.tasks.inpainting.methods._steps import frozen, minimise, ramp

CARD = Card(
    paper="Li et al., Machine Unlearning for Image-to-Image Generative Models, ICLR 2024, arXiv 2402.00351"
    " (baseline Random encoder)",
    equation="min_E E_{D_r} |E(x; m) - g|^2 + alpha E_{D_u} |E(x; m) - e|^2, g = E_0(x; m), e ~ N(mean(g), std(g)^2)",
    upstream="jpmorganchase/i2i_mage ae25285 (branch i2i), engine_baseline.py (encoder_noise) and main_baseline.py",
    defaults={
        "alpha": "1.0: ours: embeddings leave a layer norm with nearly one length, so that targets around one mean push"
        " weakly; upstream's README 0.2, its own default 0",
        "lr": "1e-3: ours, for the small models that RUB trains itself; upstream 1e-4 x batch / 256 for ViT-B, which"
        " the ImageNet suites set",
        "epochs": "6: upstream",
        "warmup": "5/6: upstream (5 of 6 epochs)",
        "weight_decay": "0.05: upstream; 0 on biases and norms",
        "clip": "3.0: upstream",
    },
    differences=(
        "the forget target is for forget images; the released code weights both terms by 1 + y, so that it trains"
        " retain images towards noise and never sees a forget one",
        "a masked autoencoder instead of MAGE; the optimiser holds the encoder alone",
        "each term is the mean over its own half of a balanced batch",
    ),
)


@method("random-encoder", task="inpainting", card=CARD)
def random_encoder(
    model: MaskedAutoencoder,
    forget: Samples,
    retain: Samples,
    context: UnlearnContext,
    *,
    alpha: Weight = 1.0,
    lr: Rate = 1e-3,
    epochs: Epochs = 6,
    warmup: Fraction = 5 / 6,
    weight_decay: Weight = 0.05,
    clip: Positive = 3.0,
) -> nn.Module:
    """Train the encoder alone: L = |E(x_r) - g_r|^2 + alpha |E(x_f) - e|^2, e Gaussian with g's mean and deviation.

    The mean and the standard deviation of g are two numbers over the embeddings of the whole batch.

    Args:
        model: trainable copy of the original; changed in place.
        forget: D_u.
        retain: D_r.
        context: batches, masks, seed and steps.
        alpha: weight of the forget term, >= 0.
        lr: peak learning rate of AdamW, > 0.
        epochs: passes over the longer set, >= 1.
        warmup: fraction of the steps with a rising learning rate, 0 to 1; half a cosine follows.
        weight_decay: of AdamW, >= 0.
        clip: largest norm of the gradient, > 0.

    Raises:
        Diverged: the loss is not finite.
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
