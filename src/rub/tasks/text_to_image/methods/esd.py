"""ESD: the concept's prompt learns to predict what guidance away from the concept would."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from rub.config.hyperparameters import Epochs, Rate, Weight
from rub.models.diffusion.groups import parameter_group
from rub.models.diffusion.model import Diffusion, freeze
from rub.pipeline.checkpointing import ParameterState
from rub.registry import Card, method
from rub.tasks.text_to_image.context import Side, UnlearnContext, frozen, train_only

DrawnBy = Literal["base", "model"]

CARD = Card(
    paper="Gandikota et al., Erasing Concepts from Diffusion Models, ICCV 2023, arXiv 2303.07345",
    equation="min E ||e_u(x_t, c) - [e_0(x_t, 0) - eta (e_0(x_t, c) - e_0(x_t, 0))]||^2,"
    " x_t from a DDIM run of prompt c that stops at a random step",
    upstream="rohitgandikota/erasing 25613d2, esd_sd.py (new); a2189e9, train-scripts/train-esd.py (old, ancestor of"
    " the code of most other methods)",
    defaults={
        "eta": "1.0: old code, and the new code's 2 (see differences)",
        "guidance": "3.0: both",
        "lr": "5e-5: new code; old 1e-5",
        "iterations": "200: new code; old 1000",
        "group": "esd-x, esd-u: new code; old xattn, which is the same as esd-x, and noxattn",
        "drawn_by": "base: new code; old model, the one being trained",
    },
    differences=(
        "eta is the paper's and the old code's; the new code's first term is e_0(x, c) and its eta therefore one more:"
        " e_0(x, c) - 2 (e_0(x, c) - e_0(x, 0)) is this target with eta 1. An eta of 1 there only regresses onto"
        " e_0(x, 0)",
        "no erase_from: the first term is always e_0(x, 0)",
        "one prompt, the concept's first; the old code may split its prompt in several and take one at random per step",
        "t is drawn from the time steps that the next DDIM step stands for, as in the old code; the new one takes the"
        " time step of the sampler",
        "float32 weights, as in the old code; bfloat16 in the new one",
        "pictures per step and their size are the experiment's; upstream 1, of 512 pixels in the old code and 1024 in"
        " the new",
        "the old code's group names are those of groups that exist; in the new code, whose README names them, they"
        " select nothing",
    ),
)


def negative_guidance(concept: Tensor, empty: Tensor, eta: float) -> Tensor:
    """Return e_0(x, 0) - eta (e_0(x, c) - e_0(x, 0)).

    Args:
        concept: e_0(x, c), any shape.
        empty: e_0(x, 0), same shape.
        eta: how far away from the concept, >= 0.

    Example:
        >>> negative_guidance(torch.tensor([3.0]), torch.tensor([1.0]), 0.5)
        tensor([0.])
    """
    return empty - eta * (concept - empty)


def esd_loss(
    model: Diffusion,
    original: Diffusion,
    x: Tensor,
    t: Tensor,
    given: Tensor,
    concept: Tensor,
    empty: Tensor,
    eta: float,
) -> Tensor:
    """Return MSE(e_u(x_t, given), e_0(x_t, 0) - eta (e_0(x_t, c) - e_0(x_t, 0))).

    Args:
        model: e_u.
        original: e_0, frozen.
        x: noisy latents (B, C, h, w).
        t: int64 (B,).
        given: the context that e_u sees, (1, L, D): that of c, or of an adversarial prompt.
        concept: of c by the original's text encoder, (1, L, D).
        empty: of the empty prompt by it, (1, L, D).
        eta: how far away from the concept.
    """
    both = torch.cat([concept.expand(len(x), -1, -1), empty.expand(len(x), -1, -1)])
    with torch.no_grad():
        towards, without = original.predict(torch.cat([x, x]), torch.cat([t, t]), both).float().chunk(2)
    return F.mse_loss(model.predict(x, t, given).float(), negative_guidance(towards, without, eta))


def erase(
    model: Diffusion,
    prompt: str,
    group: str,
    context: UnlearnContext,
    *,
    eta: float,
    guidance: float,
    lr: float,
    iterations: int,
    drawn_by: DrawnBy,
) -> Diffusion:
    """Train one group of a UNet's weights down ESD's loss of a prompt; arguments as for `esd_x`."""
    original = frozen(model)
    weights = train_only(model, parameter_group(model, group))
    optimizer, draws = context.adam(weights.values(), lr), context.generator("steps")
    concept, empty = original.context([prompt]), original.context([""])
    for _ in context.counted(iterations, {"weights": ParameterState(weights), "optimizer": optimizer, "draws": draws}):
        with context.autocast():  # on its own: weights that autocast keeps from here would have no gradient below
            x, t = context.partial(original if drawn_by == "base" else model, prompt, draws, guidance=guidance)
        with context.autocast():
            loss = esd_loss(model, original, x, t, concept, concept, empty, eta)
        context.descend(loss, optimizer)
    return freeze(model)


@method("esd-x", task="text-to-image", card=CARD)
def esd_x(
    model: Diffusion,
    forget: Side,
    retain: Side,
    context: UnlearnContext,
    *,
    eta: Weight = 1.0,
    guidance: Weight = 3.0,
    lr: Rate = 5e-5,
    iterations: Epochs = 200,
    group: Literal["esd-x", "esd-x-strict"] = "esd-x",
    drawn_by: DrawnBy = "base",
) -> Diffusion:
    """Train the cross-attention of the UNet, from the concept's prompt alone.

    Args:
        model: trainable copy of the original; changed in place.
        forget: its first prompt is the concept's; no pictures are used.
        retain: not used.
        context: batch size, sampler, seed; its anchor is not used.
        eta: how far away from the concept the target lies, >= 0, in the paper's convention.
        guidance: weight of classifier-free guidance in the partial DDIM run, >= 0.
        lr: learning rate of Adam, > 0.
        iterations: steps, >= 1.
        group: "esd-x": all of the cross-attention; "esd-x-strict": its keys and values alone.
        drawn_by: who draws x_t: "base", the original, or "model", the one being trained.

    Raises:
        Diverged: the loss is not finite.
    """
    return erase(
        model, forget.prompts[0], group, context,
        eta=eta, guidance=guidance, lr=lr, iterations=iterations, drawn_by=drawn_by,
    )  # fmt: skip


@method("esd-u", task="text-to-image", card=CARD)
def esd_u(
    model: Diffusion,
    forget: Side,
    retain: Side,
    context: UnlearnContext,
    *,
    eta: Weight = 1.0,
    guidance: Weight = 3.0,
    lr: Rate = 5e-5,
    iterations: Epochs = 200,
    group: Literal["esd-u", "noxattn"] = "esd-u",
    drawn_by: DrawnBy = "base",
) -> Diffusion:
    """Train the UNet without its cross-attention, from the concept's prompt alone.

    Args:
        model: trainable copy of the original; changed in place.
        forget: its first prompt is the concept's; no pictures are used.
        retain: not used.
        context: batch size, sampler, seed; its anchor is not used.
        eta: how far away from the concept the target lies, >= 0, in the paper's convention.
        guidance: weight of classifier-free guidance in the partial DDIM run, >= 0.
        lr: learning rate of Adam, > 0.
        iterations: steps, >= 1.
        group: "esd-u": linear layers and convolutions; "noxattn": also norms, but neither output nor time embedding.
        drawn_by: who draws x_t: "base", the original, or "model", the one being trained.

    Raises:
        Diverged: the loss is not finite.
    """
    return erase(
        model, forget.prompts[0], group, context,
        eta=eta, guidance=guidance, lr=lr, iterations=iterations, drawn_by=drawn_by,
    )  # fmt: skip
