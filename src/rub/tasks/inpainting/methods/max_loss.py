"""Max loss: descend on the retain set while ascending on the forget set."""

from typing import Annotated

from torch import Tensor, nn

from rub.config.hyperparameters import Hyper, Weight
from rub.data.samples import Samples
from rub.models.mae.model import MaskedAutoencoder
from rub.registry import Card, method
from rub.tasks.inpainting.context import UnlearnContext
from rub.tasks.inpainting.methods._steps import Clip, Decay, Passes, PeakRate, Warmup, minimise, ramp

CARD = Card(
    paper="Li et al., Machine Unlearning for Image-to-Image Generative Models, ICLR 2024, arXiv 2402.00351"
    " (baseline Max loss)",
    equation="min_theta L(D_r) - alpha min(L(D_u), cap), L = MSE on the masked patches in normalised pixels",
    upstream="jpmorganchase/i2i_mage ae25285 (branch i2i), engine_baseline.py (max_full_model_loss)",
    differences=(
        "masked-patch MSE in place of MAGE's cross-entropy over tokens; neither has an upper bound, so that the ascent"
        " stops in batches whose forget loss is above `cap`",
        "each term is the mean over its own half of a balanced batch",
        "upstream's README starts the noise-label loss under this name",
    ),
)


@method("max-loss", task="inpainting", card=CARD)
def max_loss(
    model: MaskedAutoencoder, forget: Samples, retain: Samples, context: UnlearnContext, *,
    alpha: Annotated[Weight, Hyper("weight of the ascent",
        source="upstream's README; its own default, 0, forgets nothing")] = 0.2,
    cap: Annotated[float | None, Hyper(
        "a forget batch whose loss (in units of squared normalised pixels) is above it is left alone; None: no cap",
        source="ours, about the loss of predicting the mean everywhere, where nothing is left to forget; null is"
        " upstream's unbounded loss", gt=0)] = 1.0,
    lr: PeakRate = 1e-3,
    epochs: Passes = 6,
    warmup: Warmup = 5 / 6,
    weight_decay: Decay = 0.05,
    clip: Clip = 3.0,
) -> nn.Module:  # fmt: skip
    """Train the full model: L = L(x_r) - alpha min(L(x_f), cap)."""
    masks = context.generator("masks")

    def loss(x_f: Tensor, x_r: Tensor) -> Tensor:
        drop = model.loss(x_f, context.masks(len(x_f), model.config.patches, masks))
        keep = model.loss(x_r, context.masks(len(x_r), model.config.patches, masks))
        return keep - alpha * (drop if cap is None else drop.clamp(max=cap))

    model.train()
    minimise(
        loss, model.named_parameters(), forget, retain, context,
        draws={"masks": masks}, rate=ramp(lr, warmup), epochs=epochs, weight_decay=weight_decay, clip=clip,
    )  # fmt: skip
    return model
