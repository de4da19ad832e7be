"""SalUn on a masked autoencoder: random targets for the forget set, confined to the weights salient for it."""

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rub.config.hyperparameters import Fraction, Hyper, Rate, Weight
from rub.data.samples import Samples, to_unit
from rub.models.mae.masks import Mask
from rub.models.mae.model import MaskedAutoencoder
from rub.registry import Card, method
from rub.tasks.inpainting.context import UnlearnContext
from rub.tasks.inpainting.methods._steps import Clip, Decay, Passes, minimise
from rub.tasks.inpainting.methods._targets import noise_images
from rub.training.saliency import MaskedStep, summed_gradients, top_mask

Target = Literal["swapped-output", "retain-image", "noise-image"]

CARD = Card(
    paper="Fan et al., SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency, ICLR 2024,"
    " arXiv 2310.12508",
    equation="theta_u = s * theta + (1 - s) * theta_0, s = 1 on the top fraction k of |sum_{D_u} grad L(x_f)|;"
    " theta = argmin beta L(x_r) + MSE(f(x_f; m), sg f(x_r; m)) on the masked patches",
    upstream="OPTML-Group/Unlearn-Saliency a6e89fd, DDPM and SD (it has no masked autoencoder)",
    differences=(
        "the port is ours: SalUn has no inpainting and no masked autoencoder code",
        "`target` says what a random label is: the model's output for the retain image under the same mask, the retain"
        " image itself (Li et al.'s Retain label), or a noise image (their Noisy label)",
        "the other image is drawn anew in every step; upstream's other class is fixed, (c + 1) mod 10",
        "weights outside the mask stay exactly at theta_0, against weight decay and momentum (upstream since PR 33 of"
        " February 2026, in Classification only)",
        "ranked are the trainable parameters; the two fixed position embeddings have no gradient",
        "the saliency gradient is one sum over unaugmented images with a mask each: batch size and clipping do not"
        " enter, as they do upstream",
        "exactly round(k P) weights are kept; ties go to the earlier weight",
    ),
)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that take a gradient, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def saliency_mask(model: MaskedAutoencoder, forget: Samples, context: UnlearnContext, k: float) -> dict[str, Tensor]:
    """Bool masks by parameter name: True on the top fraction k of |G|, G = sum over D_u of grad L(x_f; m).

    The gradients are taken in eval mode with one seeded mask per image; the weights are left alone.
    """
    model.eval()
    masks = context.masks(len(forget), model.config.patches, context.generator("saliency"))

    def losses() -> Iterator[Tensor]:
        for start in range(0, len(forget), context.batch_size):
            part = slice(start, start + context.batch_size)
            x = to_unit(forget.take(part).to(context.device))
            with context.autocast():
                yield model.loss(x, masks.select(part)) * len(x)

    total = summed_gradients(trainable(model), losses())
    return top_mask({name: gradient.abs() for name, gradient in total.items()}, k)


def swapped_loss(model: MaskedAutoencoder, x_f: Tensor, other: Tensor, mask: Mask) -> Tensor:
    """MSE(f(x_f; m), sg f(other; m)) on the masked patches, in normalised pixels.

    Args:
        model: f as it is now.
        x_f: float (B, C, H, W) in [0, 1].
        other: likewise.
        mask: m, of both.
    """
    with torch.no_grad():
        target = model.decode_hidden(model.encode(other, mask), mask).float()
    return F.mse_loss(model.decode_hidden(model.encode(x_f, mask), mask).float(), target)


@method("salun", task="inpainting", card=CARD)
def salun(
    model: MaskedAutoencoder, forget: Samples, retain: Samples, context: UnlearnContext, *,
    target: Annotated[Target, Hyper("what a random label is: `swapped-output`, the model's detached output for a"
        " retain image; `retain-image`; `noise-image`",
        source="upstream DDPM and SD, where a sample's target is the current model's own, detached output for another"
        " class")] = "swapped-output",
    k: Annotated[Fraction, Hyper("fraction of weights that may move", source="upstream DDPM and SD")] = 0.5,
    retain_weight: Annotated[Weight, Hyper("beta, weight of the retain loss",
        source="ours, both terms being one MSE; upstream DDPM 1e-3 (summed squares), SD 0.1, README 0.5")] = 1.0,
    lr: Annotated[Rate, Hyper("constant learning rate of AdamW",
        source="ours, for the small models that RUB trains itself; upstream Adam 1e-4 (DDPM) and 1e-5 (SD), which the"
        " ImageNet suites follow")] = 1e-3,
    epochs: Annotated[Passes, Hyper(source="upstream SD")] = 5,
    weight_decay: Annotated[Decay, Hyper(source="as this task's other methods; upstream Adam without")] = 0.05,
    clip: Annotated[Clip, Hyper(source="upstream DDPM; before the mask, as there")] = 1.0,
) -> nn.Module:  # fmt: skip
    """Train the salient weights of the full model: L = retain_weight L(x_r) + the error to a random target on x_f."""
    step = MaskedStep(trainable(model), saliency_mask(model, forget, context, k))
    masks, noises = context.generator("masks"), context.generator("noise")

    def loss(x_f: Tensor, x_r: Tensor) -> Tensor:
        mask = context.masks(len(x_f), model.config.patches, masks)
        held = model.loss(x_r, context.masks(len(x_r), model.config.patches, masks))
        if target == "swapped-output":
            return retain_weight * held + swapped_loss(model, x_f, x_r, mask)
        wanted = x_r if target == "retain-image" else noise_images(torch.cat([x_f, x_r]), len(x_f), "normal", noises)
        return retain_weight * held + model.loss(x_f, mask, target=wanted)

    model.train()
    minimise(
        loss, trainable(model).items(), forget, retain, context,
        draws={"masks": masks, "noises": noises}, rate=lambda step, total: lr, epochs=epochs,
        weight_decay=weight_decay, clip=clip, step=step,
    )  # fmt: skip
    return model
