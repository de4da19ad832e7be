"""The recovery radius: how far an image has to be changed until the model says a given class."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rub.attacks.base import AttackContext, check_request
from rub.attacks.linf import column, sign_step
from rub.attacks.search import Queue, Scores, State, run_queue
from rub.data.samples import to_unit
from rub.pipeline.checkpointing import AttributeState
from rub.tasks.classification.attacks.base import Target
from rub.tasks.classification.attacks.scoring import Scorer
from rub.tasks.classification.spec import RadiusSpec

STEP = (0.25, 0.01)  # of a signed step, as a share of the budget that first succeeded: at the start and end of refining
CHANGE = (0.2, 0.01)  # of the budget at each step of refining, as a share of it: at the start and at the end


def radii(model: nn.Module, images: Tensor, labels: Tensor, spec: RadiusSpec, context: AttackContext) -> Tensor:
    """Smallest ||delta||_inf that was found at which a model says each image's label, float32 (N,), in 1/255.

    0: it says so of the image itself; infinity: no delta up to ``spec.largest`` was found. Images are floats here:
    1/255 is too coarse where models differ most. Per image, budgets double from ``spec.smallest`` until a search of
    ``spec.steps`` signed gradient steps down the margin max_{j != a} z_j - z_a succeeds, each from where the last one
    ended. From there the fast minimum-norm search (Pintor et al. 2021, arXiv 2102.12827) goes on for ``spec.refine``
    steps: the budget shrinks to below the smallest success after each, grows after each failure, and steps and changes
    of the budget become smaller along half a cosine. It is an upper bound of the true radius, decided in float32.

    Args:
        model: frozen, in eval mode, giving raw logits of [0, 1] images.
        images: uint8 (N, C, H, W).
        labels: int64 (N,), the class that the model is to say of each.
        spec: budgets and steps.
        context: ids, batch size, device, progress, checkpointer.

    Raises:
        RubError: the lengths disagree, or the model is in training mode.
    """
    check_request(model, images, labels=labels, ids=context.ids)
    nothing = torch.empty(len(labels), 0)
    target = Target(model, labels, nothing, nothing)
    scorer = Scorer(target, "margin", replace(context, fast=False, compile=False))
    found = _Radii(torch.full((len(images),), torch.inf, device=context.device))
    queue = Queue(context.device)
    part = context.checkpointer.section("radius", {"queue": queue, "found": found, "scorer": scorer})
    part.restore()
    if not len(queue):
        queue.pending = torch.arange(len(images))
    search = _Search(images, spec, scorer, found, context.device)

    def report(left: int) -> None:
        context.progress(len(images) - left, len(images), "radius")
        if left:
            part.keep(0)

    run_queue(queue, context.batch_size, search.admit, search.observe, search.move, report)
    return found.radius.cpu()


def log2_radius(radius: Tensor, spec: RadiusSpec) -> Tensor:
    """Binary logarithm of radii in 1/255: 0 counts as half of the smallest budget, never as twice the largest.

    Example:
        >>> log2_radius(torch.tensor([0.0, 1.0, torch.inf]), RadiusSpec(smallest=0.25, largest=32)).tolist()
        [-3.0, 0.0, 6.0]
    """
    return radius.clamp(spec.smallest / 2, 2 * spec.largest).log2()


class _Radii(AttributeState):
    changing = ("radius",)

    def __init__(self, radius: Tensor) -> None:
        self.radius = radius


@dataclass(frozen=True)
class _Search:
    images: Tensor
    spec: RadiusSpec
    scorer: Scorer
    found: _Radii
    device: torch.device

    def admit(self, rows: Tensor) -> State:
        clean, row = to_unit(self.images[rows].to(self.device)), rows.to(self.device)
        eps = torch.full(row.shape, self.spec.smallest, device=self.device)
        never = torch.full_like(eps, torch.inf)
        return {"row": row, "clean": clean, "x": clean, "eps": eps, "first": never, "best": never, "t": row * 0}

    def observe(self, state: State) -> tuple[Scores, Tensor]:
        """Gradients, and which images leave: their radius is known, or there is none."""
        score = self.scorer.guide(state["x"], state["row"], gradient=True)
        distance = 255 * (state["x"] - state["clean"]).abs().flatten(1).amax(1)
        state["reached"], found = score.recovered, state["best"] < torch.inf
        state["best"] = torch.where(score.recovered, torch.minimum(state["best"], distance), state["best"])
        state["first"] = torch.where(found, state["first"], state["best"])
        self.found.radius[state["row"]] = state["best"]
        state["failed"] = ~score.recovered & ~found & (state["t"] >= self.spec.steps)
        state["t"] = torch.where(state["failed"] | score.recovered & ~found, 0, state["t"])
        known = (state["best"] == 0) | found & (state["t"] >= self.spec.refine)
        never = state["failed"] & (2 * state["eps"] > self.spec.largest)
        return (score.gradient,), known | never

    def move(self, state: State, gradient: Tensor) -> None:
        """A step down the margin within the next budget."""
        reached, failed, best = state.pop("reached"), state.pop("failed"), state["best"]
        past = (1 + (math.pi * (state["t"] / max(self.spec.refine, 1)).clamp(max=1)).cos()) / 2  # from 1 to 0
        length, change = (end + (start - end) * past for start, end in (STEP, CHANGE))
        wider = torch.where(best < torch.inf, 1 + change, torch.where(failed, 2.0, 1.0))
        state["eps"] = torch.where(reached, best * (1 - change), (state["eps"] * wider).minimum(best))
        length = torch.where(best < torch.inf, length * state["first"], state["eps"] / 4)
        step, radius = (column(value, gradient) / 255 for value in (length, state["eps"]))
        state["x"] = sign_step(state["x"], gradient, state["clean"], step, radius)
