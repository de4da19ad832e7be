"""SalUn: what is drawn for the concept's captions becomes what another prompt draws, by the salient weights alone."""

from collections.abc import Iterator
from itertools import islice
from math import ceil
from typing import Annotated, Literal

from torch import Tensor, nn

from rub.config.hyperparameters import AdamRate, Fraction, Hyper, Iterations, Weight
from rub.models.diffusion.groups import parameter_group
from rub.models.diffusion.model import Diffusion, frozen
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
    other_prompt,
    pairs,
    redirected_loss,
)
from rub.training.saliency import MaskedStep, summed_gradients, top_mask

Teacher = Literal["live", "frozen"]

CARD = Card(
    paper="Fan et al., SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency, ICLR 2024,"
    " arXiv 2310.12508",
    equation="theta_u = s * theta + (1 - s) * theta_0, s = 1 on the top fraction k of"
    " |sum_{D_u} grad MSE((1 + w) e(x_t, c) - w e(x_t, 0), noise)|;"
    " theta = argmin MSE(e(x_t, c), sg e(x_t, c')) + alpha MSE(e(x_r, c_r), noise)",
    upstream="OPTML-Group/Unlearn-Saliency a6e89fd, SD/train-scripts/generate_mask.py, random_label.py and"
    " nsfw_removal.py",
    differences=(
        "pictures and captions are the experiment's; upstream takes Imagenette at 512 pixels with 'an image of a"
        " {label}', and for nudity 800 + 800 pictures that Stable Diffusion 1.4 drew",
        "latents are the means of the autoencoder's posterior; upstream samples it",
        "the pseudo prompt c' is the experiment's anchor (upstream's for nudity: 'a photo of a person wearing"
        " clothes'), or the first retain prompt where there is none; upstream takes the class (k + 1) mod 10",
        "pictures per step are the experiment's; upstream 8",
        "weights outside the mask stay exactly at theta_0; upstream masks the gradients before Adam, which without"
        " weight decay comes to the same",
        "exactly round(k P) of the P weights of the group are kept, and ties go to the earlier weight; upstream ranks"
        " the whole UNet whatever it trains",
        "the largest sums are kept; generate_mask.py at 2b0a8a1 lacks a sign and keeps the smallest half",
        "every step takes the next forget pictures; random_label.py at ac880a2 takes the first batch every time",
        "the last batch of the mask's pass is filled up with pictures of a second one",
        "the result is what the last step left, as upstream",
    ),
    passes=lambda iterations, mask_batches, guidance, batch, shown, **_: (
        batch * ((mask_batches or ceil(shown / batch)) * (6 if guidance else 3) + iterations * (1 + 3 + 3))
    ),
)


def saliency_mask(
    model: Diffusion, parameters: dict[str, nn.Parameter], forget: Side, context: UnlearnContext, *, batches: int,
    guidance: float, k: float,
) -> dict[str, Tensor]:  # fmt: skip
    """Bool masks by parameter name: True on the top fraction k of |G|, ranked over all parameters together.

    G = sum over batches of grad MSE((1 + w) e(x_t, c) - w e(x_t, 0), noise). Upstream sums the gradients of the
    negative, which the absolute value undoes.

    Args:
        model: e.
        parameters: of the model, the ones to rank.
        forget: its pictures are used.
        context: batch size and seed.
        batches: how many are summed.
        guidance: w.
        k: 0 to 1.
    """
    empty = embedded(model, "")

    def losses() -> Iterator[Tensor]:
        for batch in islice(noisy_pictures(model, forget, context, "mask"), batches):
            with context.autocast():
                loss = guided_loss(model, batch, empty, guidance)
            yield loss

    total = summed_gradients(parameters, losses())
    return top_mask({name: gradient.abs() for name, gradient in total.items()}, k)


def salun_loss(
    model: Diffusion, teacher: Diffusion, forget: Noisy, retain: Noisy, other: Tensor, alpha: float
) -> Tensor:
    """MSE(e(x_t, c), sg e'(x_t, c')) + alpha MSE(e(x_r, c_r), noise).

    Args:
        model: e.
        teacher: e': the model itself, or the frozen original.
        forget: noisy forget pictures with the contexts of c.
        retain: noisy retain pictures with those of c_r.
        other: context of c', (1, L, D).
        alpha: weight of the retain pictures.
    """
    return redirected_loss(model, teacher, forget, other) + alpha * noise_loss(model, retain)


@method("salun", task="text-to-image", card=CARD)
def salun(
    model: Diffusion, forget: Side, retain: Side, context: UnlearnContext, *,
    alpha: Annotated[Weight, Hyper("weight of the retain pictures",
        source="upstream for objects; 0.1 for nudity")] = 0.5,
    k: Annotated[Fraction, Hyper("fraction of the group's weights that may move", source="upstream")] = 0.5,
    guidance: Annotated[Weight, Hyper("weight w of classifier-free guidance in the mask's loss",
        source="upstream")] = 7.5,
    mask_batches: Annotated[int | None, Hyper("batches whose gradients are summed; none: enough for one pass",
        source="one pass over the forget pictures, as upstream", ge=1)] = None,
    pseudo_target: Annotated[Teacher, Hyper(
        "who gives the target: `live`, the model being trained, or `frozen`, the original",
        source="upstream")] = "live",
    group: Annotated[Literal["full", "xattn"], Hyper("`full`: all of the UNet; `xattn`: its cross-attention",
        source="upstream")] = "full",
    lr: Annotated[AdamRate, Hyper(source="upstream")] = 1e-5,
    iterations: Annotated[Iterations, Hyper(
        source="upstream for objects, 5 epochs of about 950 pictures in batches of 8; 100 for nudity")] = 600,
) -> Diffusion:  # fmt: skip
    """Train the UNet's salient weights to draw another prompt for the concept's captions; the others do not move.

    The other prompt is the anchor, or the first retain prompt where there is none.

    Raises:
        RubError: no pictures of one side, or neither an anchor nor a retain prompt.
    """
    other = embedded(model, other_prompt(context, retain))
    parameters = train_only(model.eval(), parameter_group(model, group))
    batches = mask_batches or ceil(len(forget) / context.batch_size)
    mask = saliency_mask(model, parameters, forget, context, batches=batches, guidance=guidance, k=k)
    step, optimizer = MaskedStep(parameters, mask), context.adam(parameters.values(), lr)
    teacher = model if pseudo_target == "live" else frozen(model)
    changing: Changing = {"weights": ParameterState(parameters), "optimizer": optimizer}
    for _, forget_batch, retain_batch in pairs(model, forget, retain, context, iterations, changing):
        with context.autocast():
            loss = salun_loss(model, teacher, forget_batch, retain_batch, other, alpha)
        context.backward(loss, optimizer)
        step(optimizer)
    return freeze(model)
