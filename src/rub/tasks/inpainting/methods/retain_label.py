"""Retain label: teach the model to complete forget images with the pixels of retain images."""

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
    " (baseline Retain label)",
    equation="min_theta L(x_r; x_r) + alpha L(x_f; x_r), L(x; t) = MSE between f(x; m) and t on the masked patches",
    upstream="jpmorganchase/i2i_mage ae25285 (branch i2i), engine_baseline.py (learn_others) and main_baseline.py",
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
    model: MaskedAutoencoder, forget: Samples, retain: Samples, context: UnlearnContext, *,
    alpha: Annotated[Weight, Hyper("weight of the forget term",
        source="as i2i, so that the two differ in the loss alone; upstream's README 0.2, its own default 0")] = 0.25,
    lr: PeakRate = 1e-3,
    epochs: Passes = 6,
    warmup: Warmup = 5 / 6,
    weight_decay: Decay = 0.05,
    clip: Clip = 3.0,
) -> nn.Module:  # fmt: skip
    """Train the full model: L = L(x_r; x_r) + alpha L(x_f; x_r), with the retain images of the batch as targets."""
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
