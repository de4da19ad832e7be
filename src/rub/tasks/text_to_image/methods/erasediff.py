"""EraseDiff: descend on the retain pictures while the concept's captions learn to draw something else."""

from itertools import islice
from math import ceil
from typing import Annotated

import torch
from torch import Tensor, nn

from rub.config.hyperparameters import AdamRate, Count, Hyper, PositiveInt, Weight
from rub.models.diffusion.groups import UNetGroup, parameter_group
from rub.models.diffusion.model import Diffusion
from rub.models.weights import freeze
from rub.pipeline.checkpointing import Changing, ParameterState
from rub.registry import Card, method
from rub.tasks.text_to_image.context import Side, UnlearnContext, train_only
from rub.tasks.text_to_image.methods._losses import Noisy, embedded, noise_loss, noisy_pictures, pairs, redirected_loss

CARD = Card(
    paper="Wu et al., Erasing Undesirable Influence in Diffusion Models, CVPR 2025, arXiv 2401.05779",
    equation="min L_r + lambda (L_f - Lbar), L_r = MSE(e(x_r, c_r), noise), L_f = MSE(e(x_t, c), sg e(x_t, c')),"
    " Lbar = mean L_f over K steps ahead on L_f alone; Lbar is constant, so the gradient is"
    " grad L_r + lambda grad L_f",
    upstream="JingWu321/EraseDiff 14f4e98, sd/train_scripts/erasediff_cls.py and erasediff_nsfw.py",
    differences=(
        "pictures and captions are the experiment's; upstream takes Imagenette with 'an image of a {label}', and for"
        " nudity pictures that Stable Diffusion drew",
        "latents are the means of the autoencoder's posterior; upstream samples it",
        "the pseudo prompt c' is the experiment's anchor where it names one (upstream released a nudity model for 'a"
        " photo of a person wearing clothes' too)",
        "training ends after `iterations` steps; upstream trains 2 or 5 epochs and takes a checkpoint on the way",
        "the forget iterator goes on; upstream creates it anew for every step, unshuffled, so that every step sees the"
        " first batch",
        "the K steps ahead come before every `every` steps, and what they leave are Adam's moments, nothing else;"
        " upstream with K = 2 passes runs both loops twice and puts the weights of the epoch's start back in between,"
        " which undoes the first outer pass",
        "Lbar is left out, as it has no gradient",
        "no adaptive lambda: the paper's BOME step is not in upstream's code, whose negative lambda is a branch that"
        " does nothing or uses an undefined name",
        "pictures per step are the experiment's; upstream 16",
    ),
    passes=lambda iterations, every, inner_steps, batch, **_: (
        batch * (ceil(iterations / every) * inner_steps * (1 + 3) + iterations * (1 + 3 + 3))
    ),
)


def erasediff_loss(model: Diffusion, forget: Noisy, retain: Noisy, other: Tensor, lam: float) -> Tensor:
    """L_r + lambda L_f, whose gradient is that of L_r + lambda (L_f - Lbar).

    Args:
        model: e.
        forget: noisy forget pictures.
        retain: noisy retain pictures.
        other: context of the pseudo prompt c', (1, L, D).
        lam: lambda.
    """
    return noise_loss(model, retain) + lam * redirected_loss(model, model, forget, other)


@method("erasediff", task="text-to-image", card=CARD)
def erasediff(
    model: Diffusion, forget: Side, retain: Side, context: UnlearnContext, *,
    lam: Annotated[Weight, Hyper("weight lambda of the forget pictures",
        source="upstream's scripts; its argparse 0.1")] = 1.0,
    pseudo: Annotated[str, Hyper("the prompt that the forget captions shall draw",
        source="upstream")] = "a photo of a pokemon",
    group: Annotated[UNetGroup, Hyper("UNet weights that are trained, see `rub.models.diffusion.groups`",
        source="upstream for classes; noxattn for nudity")] = "full",
    inner_steps: Annotated[Count, Hyper("K steps of the same Adam on L_f alone, after which the weights are put back",
        source="upstream for classes, K = 1 pass over about 950 pictures in batches of 16")] = 60,
    every: Annotated[PositiveInt, Hyper(
        "steps from one such excursion to the next; the first comes before the first step",
        source="upstream, likewise one pass")] = 60,
    lr: Annotated[AdamRate, Hyper(source="upstream")] = 1e-5,
    iterations: Annotated[PositiveInt, Hyper("training steps that count",
        source="upstream for classes, the checkpoint that its script calls enough; step 160 for nudity, counted with"
        " those that it undoes (see differences)")] = 60,
) -> Diffusion:  # fmt: skip
    """Train a group of the UNet's weights on L_r + lambda L_f, with Adam's moments warmed up on L_f.

    The anchor replaces `pseudo` unless it is "".

    Raises:
        RubError: no pictures of one side.
    """
    other = embedded(model, context.anchor or pseudo)
    parameters = train_only(model.eval(), parameter_group(model, group))
    optimizer = context.adam(parameters.values(), lr)
    ahead = noisy_pictures(model, forget, context, "ahead")

    def look_ahead() -> None:
        start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        for batch in islice(ahead, inner_steps):
            with context.autocast():
                loss = redirected_loss(model, model, batch, other)
            context.descend(loss, optimizer)
        put_back(parameters, start)

    changing: Changing = {"weights": ParameterState(parameters), "optimizer": optimizer, "ahead": ahead}
    for step, forget_batch, retain_batch in pairs(model, forget, retain, context, iterations, changing):
        if inner_steps and step % every == 0:
            look_ahead()
        with context.autocast():
            loss = erasediff_loss(model, forget_batch, retain_batch, other, lam)
        context.descend(loss, optimizer)
    return freeze(model)


@torch.no_grad()
def put_back(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    """Set parameters to the values of the same name."""
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
