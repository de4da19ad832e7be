"""Scissorhands: draw the weights that matter most to the concept anew, then recover the retain pictures."""

from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from rub.config.hyperparameters import AdamRate, Fraction, Hyper, Iterations, PositiveInt, Weight
from rub.errors import RubError
from rub.models.diffusion.groups import UNetGroup, parameter_group
from rub.models.diffusion.model import Diffusion
from rub.models.weights import freeze
from rub.pipeline.checkpointing import Changing, ParameterState
from rub.registry import Card, method
from rub.tasks.text_to_image.context import Side, UnlearnContext, train_only
from rub.tasks.text_to_image.methods._losses import (
    Noisy,
    embedded,
    guided_loss,
    noise_loss,
    noisy_pictures,
    pairs,
    redirected_loss,
)
from rub.training.saliency import gradients, top_mask

Init = Literal["trunc_normal", "kaiming_uniform"]
Forgetting = Literal["ascent", "anchor"]

BLOCKS = ("unet.up_blocks.1.attentions.1.", "unet.up_blocks.2.attentions.1.")  # CompVis: output_blocks 4 and 7

CARD = Card(
    paper="Wu and Harandi, Scissorhands: Scrub Data Influence via Connection Sensitivity in Networks, ECCV 2024,"
    " arXiv 2401.06187",
    equation="1. theta drawn anew where |theta| sum_b |grad L_b| is among the top 1 - sparsity, L_b ="
    " MSE((1 + w) e(x_t, c) - w e(x_t, 0), noise) on forget pictures; 2. min L_r - lambda L_u, L = MSE(e(x_t, c),"
    " noise), or L_r + lambda MSE(e(x_t, c), sg e(x_t, anchor))",
    upstream="JingWu321/Scissorhands 73ae065, SD/shs_cls.py, shs_nsfw.py and train_shs.sh",
    differences=(
        "pictures and captions are the experiment's; upstream takes Imagenette, and for nudity pictures that Stable"
        " Diffusion drew",
        "latents are the means of the autoencoder's posterior; upstream samples it",
        "saliency is ranked over the whole UNet and weights are drawn anew only in attn1 of output_blocks 4 and 7"
        " (up_blocks.1.attentions.1 and up_blocks.2.attentions.1), as upstream; a model that lacks one of these has"
        " them drawn anew in attn1 of all its up blocks",
        "they are drawn anew whatever `group` trains, as upstream",
        "exactly round((1 - sparsity) P) of the P weights are salient, and ties go to the earlier weight; upstream"
        " takes those above a threshold",
        "no projection of gradients, which the paper's second step has: upstream defines GEM's and never calls it",
        "both iterators go on; upstream creates them anew for every step, so that every step sees the first batch of"
        " what is not shuffled",
        "the anchor is the experiment's; upstream's is 'a photo of a person wearing clothes'",
        "training ends after `iterations` steps; upstream trains 3 or 5 epochs and takes a checkpoint on the way",
        "pictures per step are the experiment's; upstream 8 for classes, 16 for nudity",
    ),
    passes=lambda iterations, prune_batches, guidance, batch, **_: (
        batch * (prune_batches * (6 if guidance else 3) + iterations * (3 + 3))
    ),
)


def connection_sensitivity(
    model: Diffusion, parameters: dict[str, nn.Parameter], forget: Side, context: UnlearnContext, *, batches: int,
    guidance: float,
) -> dict[str, Tensor]:  # fmt: skip
    """|theta| sum_b |grad L_b| by parameter name (SNIP, Lee et al. 2019, with absolute values per batch).

    Args:
        model: e.
        parameters: of the model, the ones to score.
        forget: its pictures are used.
        context: batch size and seed.
        batches: how many are summed.
        guidance: w of L_b.
    """
    empty = embedded(model, "")

    def losses() -> Iterator[Tensor]:
        for batch in islice(noisy_pictures(model, forget, context, "prune"), batches):
            with context.autocast():
                loss = guided_loss(model, batch, empty, guidance)
            yield loss

    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for found in gradients(parameters, losses()):
        for name, gradient in found.items():
            total[name] += gradient.abs()
    return {name: parameter.detach().abs() * total[name] for name, parameter in parameters.items()}


def redrawn_names(model: Diffusion) -> list[str]:
    """Parameters that may be drawn anew: attn1 of `BLOCKS`, or of all up blocks where one is missing.

    Raises:
        RubError: no up block has self-attention.
    """
    attention = [name for name in parameter_group(model, "selfattn") if name.startswith("unet.up_blocks.")]
    if not attention:
        raise RubError("scissorhands: no up block of this model has self-attention, where its weights are drawn anew")
    if all(any(name.startswith(block) for name in attention) for block in BLOCKS):
        return [name for name in attention if name.startswith(BLOCKS)]
    return attention


@torch.no_grad()
def redraw(
    parameters: dict[str, nn.Parameter], masks: dict[str, Tensor], init: Init, generator: torch.Generator
) -> None:
    """Draw the entries anew where the masks are True: weights from `init`, biases 0.

    Args:
        parameters: changed in place.
        masks: bool, by the same names.
        init: "trunc_normal": N(0, 0.02^2), cut at +-2; "kaiming_uniform": U(-b, b), b = sqrt(6 / fan_in).
        generator: on the CPU.
    """
    for name, parameter in parameters.items():
        fresh = torch.zeros(parameter.shape)
        if not name.endswith(".bias"):
            if init == "trunc_normal":
                nn.init.trunc_normal_(fresh, std=0.02, generator=generator)
            else:
                nn.init.kaiming_uniform_(fresh, generator=generator)
        parameter.copy_(torch.where(masks[name], fresh.to(parameter), parameter))


def scissorhands_loss(
    model: Diffusion, forget: Noisy, retain: Noisy, anchor: Tensor, lam: float, forget_loss: Forgetting
) -> Tensor:
    """L_r - lambda L_u ("ascent"), or L_r + lambda MSE(e(x_t, c), sg e(x_t, anchor)) ("anchor").

    Args:
        model: e.
        forget: noisy forget pictures.
        retain: noisy retain pictures.
        anchor: context of the anchor, (1, L, D); used by "anchor" alone.
        lam: lambda.
        forget_loss: which of the two.
    """
    held = noise_loss(model, retain)
    if forget_loss == "ascent":
        return held - lam * noise_loss(model, forget)
    return held + lam * redirected_loss(model, model, forget, anchor)


@method("scissorhands", task="text-to-image", card=CARD)
def scissorhands(
    model: Diffusion, forget: Side, retain: Side, context: UnlearnContext, *,
    sparsity: Annotated[Fraction, Hyper("fraction of the UNet's weights that is not salient",
        source="upstream for classes; 0.995 for nudity")] = 0.999,
    prune_batches: Annotated[PositiveInt, Hyper("batches of forget pictures that make up the saliency",
        source="upstream")] = 10,
    guidance: Annotated[Weight, Hyper("weight w of classifier-free guidance in the saliency's loss",
        source="upstream for classes; 0 for nudity")] = 7.5,
    init: Annotated[Init, Hyper("what salient weights are drawn from; biases become 0",
        source="upstream for classes (standard deviation 0.02); kaiming_uniform for nudity")] = "trunc_normal",
    forget_loss: Annotated[Forgetting, Hyper(
        "`ascent` on the forget pictures, or their captions learn to draw the `anchor`",
        source="upstream for classes; anchor for nudity")] = "ascent",
    lam: Annotated[Weight, Hyper("weight of the forget pictures", source="upstream")] = 0.1,
    group: Annotated[UNetGroup, Hyper("UNet weights that are trained afterwards, see `rub.models.diffusion.groups`",
        source="upstream")] = "full",
    lr: Annotated[AdamRate, Hyper(source="upstream for classes; 1e-5 for nudity")] = 2e-5,
    iterations: Annotated[Iterations, Hyper(
        source="the checkpoint that upstream keeps for classes; 89, 99 or 109 for nudity")] = 79,
) -> Diffusion:  # fmt: skip
    """Draw salient self-attention weights anew, then train a group of the UNet's weights.

    The anchor is used by the forget loss `anchor` alone; "" is the empty prompt.

    Raises:
        RubError: no pictures of one side, or a model without self-attention on its way up.
    """
    drawn, anchor = redrawn_names(model), embedded(model, context.anchor)
    everything = train_only(model.eval(), parameter_group(model, "full"))
    mask = top_mask(
        connection_sensitivity(model, everything, forget, context, batches=prune_batches, guidance=guidance),
        1 - sparsity,
    )
    redraw({name: everything[name] for name in drawn}, mask, init, context.generator("init"))
    del mask
    weights = train_only(model, parameter_group(model, group))
    optimizer = context.adam(weights.values(), lr)
    changing: Changing = {"weights": ParameterState(weights), "optimizer": optimizer}
    for _, forget_batch, retain_batch in pairs(model, forget, retain, context, iterations, changing):
        with context.autocast():
            loss = scissorhands_loss(model, forget_batch, retain_batch, anchor, lam, forget_loss)
        context.descend(loss, optimizer)
    return freeze(model)
