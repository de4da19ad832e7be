"""Guidance: what a defence does while pictures are drawn, instead of changing weights.

A `Guidance` gives, at every step of the sampler, the two predictions that classifier-free guidance combines. A search
goes through it: what stands for e_u(x_t, d) in its loss is the prediction under which plain guidance would draw the
same (`effective`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from rub.config.hyperparameters import resolve
from rub.errors import RubError
from rub.registry import METHODS

if TYPE_CHECKING:
    from rub.models.diffusion.model import Diffusion

TASK = "text-to-image"
LARGEST = 1 << 20  # bytes of a file that says which guidance
SEARCHED = 7.5  # weight of classifier-free guidance that a search takes, where prompts have their own


class Guidance(Protocol):
    """A defence that acts when pictures are drawn."""

    def predictions(
        self, model: "Diffusion", x: Tensor, t: Tensor | int, context: Tensor, empty: Tensor, memory: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """(without, given), each (B, C, h, w): the sampler follows without + g (given - without).

        Args:
            model: predicts; its weights are the original's.
            x: latents (B, C, h, w), scaled as the model takes them.
            t: time step, one or (B,), 0 to T - 1.
            context: of the prompts, (B or 1, L, D).
            empty: of the empty prompt, (1, L, D).
            memory: what one step leaves to the next of the same run; empty at its first step, and in a search.
        """


@dataclass(frozen=True)
class Guided:
    """The guidance of a model, and what it was made of: a method's name, the concept, the anchor, hyperparameters."""

    name: str
    concept: str
    anchor: str
    parameters: Mapping[str, Any]
    guidance: Guidance

    def describe(self) -> str:
        """The same as JSON, for `read_guidance`."""
        facts = {"concept": self.concept, "anchor": self.anchor, "parameters": dict(self.parameters)}
        return json.dumps({"guidance": self.name, **facts}, indent=1, sort_keys=True)


def guided_by(name: str, concept: str, anchor: str, parameters: Mapping[str, Any]) -> Guided:
    """Guidance that a method of this name gives to models; hyperparameters are checked.

    Raises:
        RubError: no method of this name, one that changes weights instead, or wrong hyperparameters.
    """
    entry = METHODS.get(name, TASK)
    factory = getattr(entry.load(), "guidance", None)
    if factory is None:
        raise RubError(f"guidance '{name}': this method changes weights; should be one of rub.guidance")
    checked = resolve(entry, parameters, f"guidance {name}")
    return Guided(name, concept, anchor, checked, factory(concept, anchor, **checked))


def read_guidance(path: Path) -> Guided:
    """Guidance of a JSON file: ``{"guidance": "sld", "concept": "church", "anchor": "", "parameters": {}}``.

    Raises:
        RubError: no such file, or another content.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError("is too large")
        facts = json.loads(path.read_text(encoding="utf-8"))
        name, concept = facts["guidance"], facts["concept"]
        anchor, parameters = facts.get("anchor", ""), facts.get("parameters", {})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise RubError(f"checkpoint {path}: should be JSON with guidance, concept, anchor and parameters") from None
    if not all(isinstance(text, str) for text in (name, concept, anchor)) or not isinstance(parameters, dict):
        raise RubError(f"checkpoint {path}: guidance, concept and anchor should be text, parameters a mapping")
    return guided_by(name, concept, anchor, parameters)


def both(
    model: "Diffusion", x: Tensor, t: Tensor | int, context: Tensor, empty: Tensor, memory: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """(without, given) of the model's guidance; without one e(x, 0) and e(x, c).

    Raises:
        RubError: the guidance gives another shape.
    """
    if model.guidance is None:
        without, given = predict_all(model, x, t, (empty, context))
        return without, given
    without, given = model.guidance.guidance.predictions(model, x, t, context, empty, memory)
    for made in (without, given):
        if made.shape != x.shape:
            raise RubError(f"guidance '{model.guidance.name}': gave {tuple(made.shape)}; should be {tuple(x.shape)}")
    return without, given


def predict_all(model: "Diffusion", x: Tensor, t: Tensor | int, contexts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Predicted noise for each context, (B or 1, L, D), in one call."""
    count = len(x)
    given = torch.cat([context.expand(count, -1, -1) for context in contexts])
    times = t.repeat(len(contexts)) if isinstance(t, Tensor) and t.ndim else t
    return model.predict(x.repeat(len(contexts), 1, 1, 1), times, given).chunk(len(contexts))


def effective(model: "Diffusion", empty: Tensor, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
    """The e(x_t, c) under which plain classifier-free guidance of weight `SEARCHED` would follow the same noise.

    e' = (without + g (given - without) - e(x, 0)) / g + e(x, 0); where ``without`` is e(x, 0) it is ``given``.
    `empty` is the context of the empty prompt, (1, L, D).
    """
    without, given = both(model, x, t, context, empty, {})
    with torch.no_grad():
        plain = model.predict(x, t, empty)
    return (without + SEARCHED * (given - without) - plain) / SEARCHED + plain
