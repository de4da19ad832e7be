"""Max loss: descend on the retain set while ascending on the forget set."""

from torch import Tensor, nn

from rub.config.hyperparameters import Epochs, Fraction, Positive, Rate, Weight
from rub.data.samples import Samples
from rub.models.mae.model import MaskedAutoencoder
from rub.registry import Card, method
from rub.tasks.inpainting.context import UnlearnContext
from rub.tasks.inpainting.methods._steps import minimise, ramp

CARD = Card(
    paper="Li et al., Machine Unlearning for Image-to-Image Generative Models, ICLR 2024, arXiv 2402.00351"
    " (baseline Max loss)",
    equation="min_theta L(D_r) - alpha min(L(D_u), cap), L = MSE on the masked patches in normalised pixels",
    upstream="jpmorganchase/i2i_mage ae25285 (branch i2i), engine_baseline.py (max_full_model_loss)",
    defaults={
        "alpha": "0.2: upstream's README; its own default, 0, forgets nothing",
        "cap": "1.0: ours, about the loss of predicting the mean everywhere, where nothing is left to forget; null is"
        " upstream's unbounded loss",
        "lr": "1e-3: ours, for the small models that RUB trains itself; upstream 1e-4 x batch / 256 for ViT-B, which"
        " the ImageNet suites set",
        "epochs": "6: upstream",
        "warmup": "5/6: upstream (5 of 6 epochs)",
        "weight_decay": "0.05: upstream; 0 on biases and norms",
        "clip": "3.0: upstream",
    },
    differences=(
        "masked-patch MSE in place of MAGE's cross-entropy over tokens; neither has an upper bound, so that the ascent"
        " stops in batches whose forget loss is above `cap`",
        "each term is the mean over its own half of a balanced batch",
        "upstream's README starts the noise-label loss under this name",
    ),
)


@method("max-loss", task="inpainting", card=CARD)
def max_loss(
    model: MaskedAutoencoder,
    forget: Samples,
    retain: Samples,
    context: UnlearnContext,
    *,
    alpha: Weight = 0.2,
    cap: Positive | None = 1.0,
    lr: Rate = 1e-3,
    epochs: Epochs = 6,
    warmup: Fraction = 5 / 6,
    weight_decay: Weight = 0.05,
    clip: Positive = 3.0,
) -> nn.Module:
    """Train the full model: L = L(x_r) - alpha min(L(x_f), cap).

    Args:
        model: trainable copy of the original; changed in place.
        forget: D_u.
        retain: D_r.
        context: batches, masks, seed and steps.
        alpha: weight of the ascent, >= 0.
        cap: a forget batch whose loss (in units of squared normalised pixels) is above it is left alone; None: no cap.
        lr: peak learning rate of AdamW, > 0.
        epochs: passes over the longer set, >= 1.
        warmup: fraction of the steps with a rising learning rate, 0 to 1; half a cosine follows.
        weight_decay: of AdamW, >= 0.
        clip: largest norm of the gradient, > 0.

    Raises:
        Diverged: the loss is not finite.
    """
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
