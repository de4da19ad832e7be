"""ESD: the concept's prompt learns to predict what guidance away from the concept would."""

from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from rub.config.hyperparameters import AdamRate, Hyper, Iterations, Weight
from rub.models.diffusion.groups import parameter_group
from rub.models.diffusion.model import Diffusion, frozen
from rub.models.weights import freeze
from rub.pipeline.checkpointing import ParameterState
from rub.registry import Card, method
from rub.tasks.text_to_image.context import Side, UnlearnContext, train_only

DrawnBy = Literal["base", "model"]
Drawer = Annotated[DrawnBy, Hyper(
    "who draws x_t: `model`, the one being trained, or `base`, the original",
    source="old code, which is behind the published files; new base")]  # fmt: skip
Eta = Annotated[Weight, Hyper(
    "how far away from the concept the target lies, in the paper's convention",
    source="old code, and the new code's 2 (see differences)")]  # fmt: skip
Guidance = Annotated[Weight, Hyper("weight of classifier-free guidance in the partial DDIM run", source="both codes")]
Learning = Annotated[AdamRate, Hyper(source="new code; old 1e-5")]
Steps = Annotated[Iterations, Hyper(source="new code; old 1000")]

CARD = Card(
    paper="Gandikota et al., Erasing Concepts from Diffusion Models, ICCV 2023, arXiv 2303.07345",
    equation="min E ||e_u(x_t, c) - [e_0(x_t, 0) - eta (e_0(x_t, c) - e_0(x_t, 0))]||^2,"
    " x_t from a DDIM run of prompt c that stops at a random step",
    upstream="rohitgandikota/erasing 25613d2, esd_sd.py (new); a2189e9, train-scripts/train-esd.py (old, ancestor of"
    " the code of most other methods)",
    differences=(
        "eta is the paper's and the old code's; the new code's first term is e_0(x, c) and its eta therefore one more:"
        " e_0(x, c) - 2 (e_0(x, c) - e_0(x, 0)) is this target with eta 1. An eta of 1 there only regresses onto"
        " e_0(x, 0)",
        "no erase_from: the first term is always e_0(x, 0)",
        "one prompt, the concept's first; the old code may split its prompt in several and take one at random per step",
        "t is drawn from the time steps that the next DDIM step stands for: the old code draws it so, but its DDIM run"
        " ends later, with latents some 49 time steps cleaner than their t says; the new code takes the sampler's time"
        " step",
        "float32 weights, as in the old code; bfloat16 in the new one",
        "pictures per step and their size are the experiment's; upstream 1, of 512 pixels in the old code and 1024 in"
        " the new",
        "the old code's group names are those of groups that exist; in the new code, whose README names them, they"
        " select nothing",
    ),
    # x_t takes half of the sampler's steps, each with and without the prompt
    passes=lambda iterations, batch, sampler_steps, **_: iterations * batch * (sampler_steps + 2 + 3),
)


def negative_guidance(concept: Tensor, empty: Tensor, eta: float) -> Tensor:
    """e_0(x, 0) - eta (e_0(x, c) - e_0(x, 0)).

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
    model: Diffusion, original: Diffusion, x: Tensor, t: Tensor, given: Tensor, concept: Tensor, empty: Tensor,
    eta: float,
) -> Tensor:  # fmt: skip
    """MSE(e_u(x_t, given), e_0(x_t, 0) - eta (e_0(x_t, c) - e_0(x_t, 0))).

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
    model: Diffusion, prompt: str, group: str, context: UnlearnContext, *, eta: float, guidance: float, lr: float,
    iterations: int, drawn_by: DrawnBy,
) -> Diffusion:  # fmt: skip
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
    model: Diffusion, forget: Side, retain: Side, context: UnlearnContext, *,
    eta: Eta = 1.0, guidance: Guidance = 3.0, lr: Learning = 5e-5, iterations: Steps = 200,
    group: Annotated[Literal["esd-x", "esd-x-strict"], Hyper(
        "`esd-x`: all of the cross-attention; `esd-x-strict`: its keys and values alone",
        source="new code; old xattn, which is the same")] = "esd-x",
    drawn_by: Drawer = "model",
) -> Diffusion:  # fmt: skip
    """Train the cross-attention of the UNet, from the concept's prompt alone.

    The forget side's first prompt names the concept; retain side and anchor are not used.
    """
    return erase(
        model, forget.prompts[0], group, context,
        eta=eta, guidance=guidance, lr=lr, iterations=iterations, drawn_by=drawn_by,
    )  # fmt: skip


@method("esd-u", task="text-to-image", card=CARD)
def esd_u(
    model: Diffusion, forget: Side, retain: Side, context: UnlearnContext, *,
    eta: Eta = 1.0, guidance: Guidance = 3.0, lr: Learning = 5e-5, iterations: Steps = 200,
    group: Annotated[Literal["esd-u", "noxattn"], Hyper(
        "`esd-u`: linear layers and convolutions; `noxattn`: also norms, but neither output nor time embedding",
        source="new code; old noxattn")] = "esd-u",
    drawn_by: Drawer = "model",
) -> Diffusion:  # fmt: skip
    """Train the UNet without its cross-attention, from the concept's prompt alone.

    The forget side's first prompt names the concept; retain side and anchor are not used.
    """
    return erase(
        model, forget.prompts[0], group, context,
        eta=eta, guidance=guidance, lr=lr, iterations=iterations, drawn_by=drawn_by,
    )  # fmt: skip
