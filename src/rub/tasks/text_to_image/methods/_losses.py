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
from rub.tasks.text_to_image.context import Side, UnlearnContext
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


class NoisyPictures:
    """Batches of one side's pictures without end, each with fresh t and noise; they go on where a state was kept."""

    def __init__(self, model: Diffusion, side: Side, context: UnlearnContext, stream: str) -> None:
        """Begin with the first batch.

        Args:
            model: its schedule and text encoder are used; no gradient flows.
            side: pictures and captions.
            context: batch size and seed.
            stream: names the order of the pictures; ``stream-noise`` names that of t and noise.

        Raises:
            RubError: there are no pictures.
        """
        self.model, self.context = model, context
        self.pictures, self.draws = context.pictures(side, stream), context.generator(f"{stream}-noise")

    def __iter__(self) -> Iterator[Noisy]:
        """Return itself."""
        return self

    def __next__(self) -> Noisy:
        """Return the next batch."""
        x0, captions = next(self.pictures)
        x, t, noise = self.context.draw(self.model, x0, self.draws)
        with torch.no_grad():
            given = self.model.context(captions)
        return Noisy(x, t, noise, given)

    def state_dict(self) -> dict[str, Any]:
        """Return where the pictures and the noise stand."""
        return {"pictures": self.pictures.state_dict(), "draws": self.draws.get_state()}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go on from `state_dict`."""
        self.pictures.load_state_dict(state["pictures"])
        self.draws.set_state(state["draws"])


def pairs(
    model: Diffusion, forget: Side, retain: Side, context: UnlearnContext, iterations: int, changing: Changing
) -> Iterator[tuple[int, Noisy, Noisy]]:
    """Yield (step, forget batch, retain batch) so often, report progress, and keep what changes, see `counted`."""
    wrong, right = (NoisyPictures(model, *side) for side in ((forget, context, "forget"), (retain, context, "retain")))
    for step in context.counted(iterations, beside(changing, {"forget batches": wrong, "retain batches": right})):
        yield step, next(wrong), next(right)


def embedded(model: Diffusion, prompt: str) -> Tensor:
    """Return the context of one prompt, (1, L, D), without a gradient."""
    with torch.no_grad():
        return model.context([prompt])


def other_prompt(context: UnlearnContext, retain: Side) -> str:
    """Return the anchor, or the first retain prompt where there is none.

    Raises:
        RubError: neither exists.
    """
    if not context.anchor and not retain.prompts:
        raise RubError("unlearning: this method needs another prompt; give concept.anchor, or retain some concepts")
    return context.anchor or retain.prompts[0]


def noise_loss(model: Diffusion, batch: Noisy) -> Tensor:
    """Return MSE(e(x_t, c), noise), the loss that diffusion models are trained on (Ho et al. 2020, eq. 14)."""
    return F.mse_loss(model.predict(batch.x, batch.t, batch.given).float(), batch.noise)


def guided_loss(model: Diffusion, batch: Noisy, empty: Tensor, w: float) -> Tensor:
    """Return MSE((1 + w) e(x_t, c) - w e(x_t, 0), noise), with a gradient through both predictions.

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
    """Return MSE(e(x_t, c), sg e'(x_t, c')): the same noisy picture under its caption and under another prompt.

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
