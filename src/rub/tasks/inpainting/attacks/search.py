"""Visible patches as the objective of `rub.attacks.search`: how they start, are stored and scored.

Masked patches of an input never reach the network, so the variable of a search is the (K, P) visible numbers of each
image and delta is 0 elsewhere.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rub.attacks.base import Probes
from rub.attacks.linf import project
from rub.attacks.rules import uniform_like
from rub.attacks.search import Rule, Schedule, Score, State, minimise
from rub.models.mae.masks import Mask, gather, scatter
from rub.models.mae.model import MaskedAutoencoder
from rub.tasks.inpainting.attacks.base import FREE, GRIDDED, AttackContext, Budget, Target, apply_delta
from rub.tasks.inpainting.attacks.guide import Guide

CHUNK = 256
FARTHEST = 6e4  # the range of float16, in which free deltas are kept


def search(
    rule: Rule, schedule: Schedule, target: Target, images: Tensor, budget: Budget, context: AttackContext, *,
    finish_below: float = 0.0,
) -> Probes:  # fmt: skip
    """Run a rule on every image and keep the probe of each with the lowest D.

    Every iterate is scored as it would be stored (rounded to 8 bits, or delta to float16); its gradient there moves the
    iterate itself, straight through the rounding.

    Args:
        rule: how iterates move.
        schedule: steps and restarts.
        target: what the attack aims at; row i belongs to image i.
        images: uint8 (N, C, H, W), the clean images.
        budget: how far probes may go.
        context: seed, ids, threshold, batch size, device, start, and whether to search in bfloat16.
        finish_below: a sample is finished once it is recovered and D <= this; inf: being recovered is enough.
    """
    kind = GRIDDED if budget.gridded else FREE
    blank = torch.zeros(*target.mask.keep.shape, target.model.config.patch_dim, dtype=kind)
    finish = min(finish_below, context.threshold)
    objective = VisiblePatches(Guide(target.model, context), target, images, budget, context, finish)
    found = minimise(rule, schedule, objective, blank, context)
    return replace(found, inputs=as_images(found.inputs, target.model, target.mask))


def confine(x: Tensor, clean: Tensor, budget: Budget) -> Tensor:
    """The nearest point to x (pixel space) that the budget allows around `clean`."""
    if budget.eps is not None:
        return project(x, clean, budget.eps)
    return x.clamp(0, 1) if budget.gridded else clean + (x - clean).clamp(-FARTHEST, FARTHEST)


def as_images(visible: Tensor, model: MaskedAutoencoder, mask: Mask) -> Tensor:
    """Images (N, C, H, W) with these visible patches (N, K, P) and 0 on masked ones."""
    c = model.config
    out = visible.new_zeros(len(visible), c.channels, c.image_size, c.image_size)
    for start in range(0, len(visible), CHUNK):  # a second copy of all would take much memory
        part = slice(start, start + CHUNK)
        blank = visible.new_zeros(len(out[part]), c.patches, c.patch_dim)
        out[part] = model.unpatchify(scatter(visible[part], mask.keep[part], blank))
    return out


@dataclass(frozen=True)
class VisiblePatches:
    """Visible patches (B, K, P), stored as deltas; see `rub.attacks.search.Objective`."""

    scorer: Guide
    target: Target
    images: Tensor
    budget: Budget
    context: AttackContext
    finish: float

    @property
    def is_exact(self) -> bool:
        """Whether the guide is the float32 model: what it scores is always what is stored."""
        return self.scorer.is_exact

    def admit(self, rows: Tensor, restart: int) -> State:
        """Clean patches with their masks and references, and a start: themselves, the context's, or a random one."""
        context, device, model = self.context, self.context.device, self.target.model
        mask = self.target.mask.select(rows)
        levels = gather(model.patchify(self.images[rows]), mask.keep).to(device)
        start = clean = levels.to(torch.float32) / 255
        if restart:
            uniform = uniform_like(clean, context.seed, "start", context.ids[rows].to(device), restart)
            eps = self.budget.eps
            start = uniform if eps is None else project(clean + eps * (2 * uniform - 1), clean, eps)
        elif context.start is not None:
            delta = gather(model.patchify(context.start[rows]), mask.keep).to(device)
            start = confine(apply_delta(levels, delta), clean, self.budget)
        reference = self.target.reference[rows].to(device)
        state = {"levels": levels, "clean": clean, "x": start, "reference": reference}
        return state | {"keep": mask.keep.to(device), "hidden": mask.hidden.to(device)}

    def stored(self, state: State) -> Tensor:
        """Deltas of the iterates."""
        if self.budget.gridded:
            return (state["x"] * 255).round().to(GRIDDED) - state["levels"]
        return (state["x"] - state["clean"]).to(FREE)

    def guide(self, state: State, stored: Tensor, *, gradient: bool) -> Score:
        """Scores of the deltas, with straight-through gradients."""
        mask = Mask(state["keep"], state["hidden"])
        return self._judged(
            *self.scorer(apply_delta(state["levels"], stored), mask, state["reference"], gradient=gradient)
        )

    def exact(self, state: State, which: Tensor, stored: Tensor) -> Score:
        """Float32 scores."""
        mask = Mask(state["keep"][which], state["hidden"][which])
        visible = apply_delta(state["levels"][which], stored)
        return self._judged(self.scorer.exact(visible, mask, state["reference"][which]))

    def finished(self, score: Score) -> Tensor:
        """Recovered with D <= `finish`."""
        return score.loss <= self.finish

    def lower(self, first: Tensor, second: Tensor, /) -> Tensor:
        """The lower of two losses; the other where one is NaN."""
        return torch.fmin(first, second)

    def _judged(self, loss: Tensor, gradient: Tensor | None = None) -> Score:
        return Score(loss, loss <= self.context.threshold, gradient)
