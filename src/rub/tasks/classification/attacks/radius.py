"""The recovery radius: how far an image has to be changed until the model says a given class."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rub.attacks.base import AttackContext, check_request
from rub.attacks.linf import column, project, sign_step
from rub.attacks.search import Queue, Scores, State, run_queue
from rub.data.samples import to_unit
from rub.pipeline.checkpointing import AttributeState
from rub.tasks.classification.attacks.base import Target
from rub.tasks.classification.attacks.scoring import Scorer
from rub.tasks.classification.spec import RadiusSpec


def radii(model: nn.Module, images: Tensor, labels: Tensor, spec: RadiusSpec, context: AttackContext) -> Tensor:
    """Smallest ||delta||_inf that was found at which a model says each image's label, float32 (N,), in 1/255.

    0: it says so of the image itself; infinity: no delta up to ``spec.largest`` was found. Images are floats here:
    1/255 is too coarse where models differ most. Per image, budgets double from ``spec.smallest`` until a search of
    ``spec.steps`` signed gradient steps down the margin max_{j != a} z_j - z_a succeeds, each from where the last one
    ended; then the interval between the largest failure and the smallest success is halved on a log scale until it is
    narrower than ``spec.precision``. It is an upper bound of the true radius, decided in float32.

    Args:
        model: frozen, in eval mode, giving raw logits of [0, 1] images.
        images: uint8 (N, C, H, W).
        labels: int64 (N,), the class that the model is to say of each.
        spec: budgets, steps and precision.
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
        budget = torch.full(row.shape, self.spec.smallest, device=self.device)
        state = {"row": row, "clean": clean, "x": clean, "eps": budget, "low": budget / 2}
        return {**state, "high": torch.full_like(budget, torch.inf), "nearest": clean, "t": torch.zeros_like(row)}

    def observe(self, state: State) -> tuple[Scores, Tensor]:
        """Gradients, and which images leave: their radius is known, or there is none."""
        score = self.scorer.guide(state["x"], state["row"], gradient=True)
        reached, distance = score.recovered, 255 * (state["x"] - state["clean"]).abs().flatten(1).amax(1)
        state["high"] = torch.where(reached, torch.minimum(state["high"], distance), state["high"])
        state["nearest"] = torch.where(column(reached, state["x"]), state["x"], state["nearest"])
        failed = ~reached & (state["t"] >= self.spec.steps)
        state["low"] = torch.where(failed, state["eps"], state["low"])
        known = state["high"] / state["low"] <= 2**self.spec.precision
        never = failed & (state["high"] == torch.inf) & (2 * state["eps"] > self.spec.largest)
        self.found.radius[state["row"]] = state["high"]
        state["ended"] = reached | failed
        return (score.gradient,), known | never

    def move(self, state: State, gradient: Tensor) -> None:
        """The next budget where this one has ended, else a step down the margin."""
        ended, bracketed = state.pop("ended"), state["high"] < torch.inf
        middle = (state["low"] * state["high"]).sqrt()
        state["eps"] = torch.where(ended, torch.where(bracketed, middle, 2 * state["eps"]), state["eps"])
        radius = column(state["eps"], gradient) / 255
        step = sign_step(state["x"], gradient, state["clean"], radius / 4, radius)
        restart = project(torch.where(column(bracketed, step), state["nearest"], state["x"]), state["clean"], radius)
        state["x"] = torch.where(column(ended, step), restart, step)
        state["t"] = torch.where(ended, -1, state["t"])  # counted on to 0
