"""What the methods that learn from pictures share: noisy pictures with their captions, and three losses on them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rub.errors import RubError
from rub.models.diffusion.model import Diffusion
from rub.pipeline.checkpointing import Changing
from rub.tasks.text_to_image.context import Side, UnlearnContext, draw_noise
from rub.training.batches import Stream, orders, refilled
from rub.training.context import beside


@dataclass(frozen=True)
class Noisy:
    """A batch of noisy pictures.

    Attributes:
        x: x_t, float (B, C, h, w).
        t: int64 (B,).
        noise: what was added, shape of x.
        given: context of the captions, float (B, L, D).
    """

    x: Tensor
    t: Tensor
    noise: Tensor
    given: Tensor


def noisy_pictures(model: Diffusion, side: Side, context: UnlearnContext, stream: str) -> Stream[Any, Noisy]:
    """Batches of one side's pictures without end, each with fresh t and noise.

    Args:
        model: its schedule and text encoder are used; no gradient flows.
        side: pictures and captions.
        context: batch size and seed.
        stream: names the order of the pictures; ``stream-noise`` names that of t and noise.

    Raises:
        RubError: there are no pictures.
    """
    pictures, size = context.pictures(side, stream), context.batch_size

    def draw() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        generator = context.generator(f"{stream}-noise")
        for rows in refilled(orders(len(side), context.generator(stream)), size):
            yield rows, *draw_noise(model, (len(rows), *side.latents.shape[1:]), generator)

    def make(drawn: tuple[Tensor, Tensor, Tensor]) -> Noisy:
        (x0, captions), t, noise = pictures.make(drawn[0]), drawn[1].to(context.device), drawn[2].to(context.device)
        with torch.no_grad():
            given = model.context(captions)
        return Noisy(model.noised(x0, t, noise), t, noise, given)

    return Stream(draw, make)


def pairs(
    model: Diffusion, forget: Side, retain: Side, context: UnlearnContext, iterations: int, changing: Changing
) -> Iterator[tuple[int, Noisy, Noisy]]:
    """(step, forget batch, retain batch) so often; progress is reported, and what changes is kept, see `counted`."""
    batches = {side: noisy_pictures(model, of, context, side) for side, of in (("forget", forget), ("retain", retain))}
    own = {f"{side} batches": stream for side, stream in batches.items()}
    for step in context.counted(iterations, beside(changing, own)):
        yield step, next(batches["forget"]), next(batches["retain"])


def embedded(model: Diffusion, prompt: str) -> Tensor:
    """Context of one prompt, (1, L, D), without a gradient."""
    with torch.no_grad():
        return model.context([prompt])


def other_prompt(context: UnlearnContext, retain: Side) -> str:
    """Anchor, or the first retain prompt where there is none.

    Raises:
        RubError: neither exists.
    """
    if not context.anchor and not retain.prompts:
        raise RubError("unlearning: this method needs another prompt; give concept.anchor, or retain some concepts")
    return context.anchor or retain.prompts[0]


def captioned(method: str, template: str, prompt: str) -> str:
    """Template with a prompt in the place of {}.

    Raises:
        RubError: a template without {}.
    """
    if "{}" not in template:
        raise RubError(f"{method}: template = '{template}': should hold {{}}, where the concept's prompt goes")
    return template.replace("{}", prompt)


def noise_loss(model: Diffusion, batch: Noisy) -> Tensor:
    """MSE(e(x_t, c), noise), the loss that diffusion models are trained on (Ho et al. 2020, eq. 14)."""
    return F.mse_loss(model.predict(batch.x, batch.t, batch.given).float(), batch.noise)


def guided_loss(model: Diffusion, batch: Noisy, empty: Tensor, w: float) -> Tensor:
    """MSE((1 + w) e(x_t, c) - w e(x_t, 0), noise), with a gradient through both predictions.

    Args:
        model: e.
        batch: noisy pictures.
        empty: context of the empty prompt, (1, L, D).
        w: weight of classifier-free guidance, >= 0; 0 is `noise_loss`.
    """
    if w == 0:
        return noise_loss(model, batch)
    given = model.predict(batch.x, batch.t, batch.given).float()
    without = model.predict(batch.x, batch.t, empty).float()
    return F.mse_loss((1 + w) * given - w * without, batch.noise)


def redirected_loss(model: Diffusion, teacher: Diffusion, batch: Noisy, other: Tensor) -> Tensor:
    """MSE(e(x_t, c), sg e'(x_t, c')): the same noisy picture under its caption and under another prompt.

    Args:
        model: e.
        teacher: e', which may be the model itself.
        batch: noisy pictures, with the contexts of c.
        other: context of c', (1, L, D).
    """
    found = model.predict(batch.x, batch.t, batch.given).float()
    with torch.no_grad():  # after e: some versions of torch keep what autocast casts in here, without a gradient
        wanted = teacher.predict(batch.x, batch.t, other).float()
    return F.mse_loss(found, wanted)
