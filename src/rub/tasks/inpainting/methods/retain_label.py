"""Retain label: teach the model to complete forget images with the pixels of retain images."""

from torch import Tensor, nn

from rub.config.hyperparameters import Epochs, Fraction, Positive, Rate, Weight
from rub.data.samples import Samples
from rub.models.mae.model import MaskedAutoencoder
from rub.registry import Card, method
from rub.tasks.inpainting.context import UnlearnContext
from rub.tasks.inpainting.methods._steps import minimise, ramp

CARD = Card(
    paper="Li et al., Machine Unlearning for Image-to-Image Generative Models, ICLR 2024, arXiv 2402.00351"
    " (baseline Retain label)",
    equation="min_theta L(x_r; x_r) + alpha L(x_f; x_r), L(x; t) = MSE between f(x; m) and t on the masked patches",
    upstream="jpmorganchase/i2i_mage ae25285 (branch i2i), engine_baseline.py (learn_others) and main_baseline.py",
    defaults={
        "alpha": "0.25: as i2i, so that the two differ in the loss alone; upstream's README 0.2, its own default 0",
        "lr": "1e-3: ours, for the small models that RUB trains itself; upstream 1e-4 x batch / 256 for ViT-B, which"
        " the ImageNet suites set",
        "epochs": "6: upstream",
        "warmup": "5/6: upstream (5 of 6 epochs)",
        "weight_decay": "0.05: upstream; 0 on biases and norms",
        "clip": "3.0: upstream",
    },
    differences=(
        "the forget target is for forget images; the released code weights both terms by 1 + y, so that it gives retain"
        " images each other's targets and never sees a forget one",
        "the target is a retain image's pixels, and the retain term the ordinary loss, as the paper says; the released"
        " code takes the frozen model's token logits for both",
        "every forget image has a retain image of its own; upstream repeats those of the batch, and takes Gaussian"
        " noise in a batch without any",
        "each term is the mean over its own half of a balanced batch",
    ),
)


@method("retain-label", task="inpainting", card=CARD)
def retain_label(
    model: MaskedAutoencoder,
    forget: Samples,
    retain: Samples,
    context: UnlearnContext,
    *,
    alpha: Weight = 0.25,
    lr: Rate = 1e-3,
    epochs: Epochs = 6,
    warmup: Fraction = 5 / 6,
    weight_decay: Weight = 0.05,
    clip: Positive = 3.0,
) -> nn.Module:
    """Train the full model: L = L(x_r; x_r) + alpha L(x_f; x_r), with the retain images of the batch as targets.

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
    masks = context.generator("masks")

    def loss(x_f: Tensor, x_r: Tensor) -> Tensor:
        swapped = model.loss(x_f, context.masks(len(x_f), model.config.patches, masks), target=x_r)
        held = model.loss(x_r, context.masks(len(x_r), model.config.patches, masks))
        return held + alpha * swapped

    model.train()
    minimise(
        loss, model.named_parameters(), forget, retain, context,
        draws={"masks": masks}, rate=ramp(lr, warmup), epochs=epochs, weight_decay=weight_decay, clip=clip,
    )  # fmt: skip
    return model
