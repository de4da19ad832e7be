"""The search that every attack here shares, on the queue of `rub.attacks.search` and on visible patches only.

Masked patches of an input never reach the network, so the variable of a search is the (K, P) visible numbers of each
image and delta is 0 elsewhere. What counts as recovered is decided in float32 alone.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rub.attacks.linf import column, keyed_uniform, project
from rub.attacks.search import Scores, State, Trajectory, run_starts
from rub.models.mae.masks import Mask, gather, scatter
from rub.models.mae.model import MaskedAutoencoder
from rub.tasks.inpainting.attacks.base import FREE, GRIDDED, AttackContext, Budget, Probes, Target, apply_delta
from rub.tasks.inpainting.attacks.guide import Guide, Score

# `State` holds `row`, `id` (int64), `t`, `keep`, `hidden` (the mask), `reference`, `levels` (uint8 visible patches
# (B, K, P)), `clean` (the same in [0, 1]), `x` (float32 visible patches), `best` (delta as stored), `best_loss`,
# and the rule's own.

CHUNK = 256
FARTHEST = 6e4  # the range of float16, in which free deltas are kept


class Rule(Protocol):
    """How an attack moves: the only part in which attacks differ."""

    @property
    def gradient(self) -> bool:
        """Whether `move` needs the gradient."""

    def begin(self, state: State) -> None:
        """Add the rule's own entries to the state of samples that start; `state["x"]` is the first iterate."""

    def move(self, state: State, gradient: Tensor | None) -> None:
        """Replace `state["x"]` by the next iterate, given the gradient of the squared error (B, K, P) at this one."""


@dataclass(frozen=True)
class Schedule:
    """How long a search goes on.

    Attributes:
        steps: moves per start, >= 0; an iterate is scored before the first move and after each.
        restarts: starts per sample, >= 1: the first from the clean image (or the context's start), others random.
        finish_below: a sample is finished once it is recovered and D <= this; inf: being recovered is enough.
    """

    steps: int
    restarts: int = 1
    finish_below: float = 0.0


def search(
    rule: Rule, plan: Schedule, target: Target, images: Tensor, budget: Budget, context: AttackContext
) -> Probes:
    """Run a rule on every image and return the probe of each with the lowest D.

    Every iterate is scored as it would be stored (rounded to 8 bits, or delta to float16); its gradient there moves the
    iterate itself, straight through the rounding.

    Args:
        rule: how iterates move.
        plan: steps, restarts and when a sample is finished.
        target: what the attack aims at; row i belongs to image i.
        images: uint8 (N, C, H, W), the clean images.
        budget: how far probes may go.
        context: seed, ids, threshold, batch size, device, start, and whether to search in bfloat16.
    """
    job = _Search(rule, plan, target, images, budget, context)
    job.run()
    return job.ledger.probes(target.model, target.mask, job.guide.evaluations)


def confine(x: Tensor, clean: Tensor, budget: Budget) -> Tensor:
    """Return the nearest point to x (pixel space) that the budget allows around `clean`."""
    if budget.eps is not None:
        return project(x, clean, budget.eps)
    return x.clamp(0, 1) if budget.gridded else clean + (x - clean).clamp(-FARTHEST, FARTHEST)


class Ledger(Trajectory):
    """The best delta of every sample so far; holds float32 scores only, so a claim is never bfloat16's alone."""

    changing = (*Trajectory.changing, "delta", "loss", "start")

    def __init__(self, delta: Tensor, total_steps: int, threshold: float, device: torch.device) -> None:
        """Start from a zero `delta` (N, K, P) of the stored type, none of them scored."""
        super().__init__(len(delta), total_steps, device)
        self.delta, self.threshold = delta, threshold
        self.loss = torch.full((len(delta),), torch.inf, device=device)
        self.start = self.loss.clone()

    def offer(self, rows: Tensor, delta: Tensor, loss: Tensor, step: Tensor) -> None:
        """Keep these deltas where they beat what is known; note the step where one recovers at last."""
        first = (loss <= self.threshold) & (self.step[rows] < 0)
        self.step[rows[first]] = step[first]
        win = loss < self.loss[rows]
        self.delta[rows[win].cpu()] = delta[win].cpu()
        self.loss[rows[win]] = loss[win]

    def track(self, rows: Tensor, step: Tensor, loss: Tensor, counts: Tensor, finished: Tensor) -> None:
        """Enter D of these samples into the curve where `counts`; the finished keep theirs to the end."""
        self.enter(rows, step, torch.fmin(self.lowest[rows], loss), counts, finished)

    def probes(self, model: MaskedAutoencoder, mask: Mask, evaluations: int) -> Probes:
        """Return what was found, with deltas as images."""
        successes, losses, converged = self.curves()
        found = self.loss.cpu(), self.start.cpu(), self.step.cpu()
        return Probes(as_images(self.delta, model, mask), *found, successes, losses, evaluations, converged)


def as_images(visible: Tensor, model: MaskedAutoencoder, mask: Mask) -> Tensor:
    """Return images (N, C, H, W) with these visible patches (N, K, P) and 0 on masked ones."""
    c = model.config
    out = visible.new_zeros(len(visible), c.channels, c.image_size, c.image_size)
    for start in range(0, len(visible), CHUNK):  # a second copy of all would take much memory
        part = slice(start, start + CHUNK)
        blank = visible.new_zeros(len(out[part]), c.patches, c.patch_dim)
        out[part] = model.unpatchify(scatter(visible[part], mask.keep[part], blank))
    return out


class _Search:
    def __init__(
        self, rule: Rule, plan: Schedule, target: Target, images: Tensor, budget: Budget, context: AttackContext
    ) -> None:
        self.rule, self.plan, self.target, self.images = rule, plan, target, images
        self.budget, self.context = budget, context
        self.finish = min(plan.finish_below, context.threshold)
        self.guide = Guide(target.model, context)
        kind = GRIDDED if budget.gridded else FREE
        blank = torch.zeros(*target.mask.keep.shape, target.model.config.patch_dim, dtype=kind)
        self.ledger = Ledger(blank, plan.steps * plan.restarts, context.threshold, context.device)

    def run(self) -> None:
        """Give every unfinished sample its starts."""
        run_starts(
            self.ledger, self.plan.restarts, self.context, self._admit, self._observe, self.rule.move,
            guide=self.guide,
        )  # fmt: skip

    def _admit(self, rows: Tensor, restart: int) -> State:
        """Return the state of samples at their start."""
        place, device, model = rows, self.context.device, self.target.model
        rows = rows.to(device)
        mask = self.target.mask.select(place)
        levels = gather(model.patchify(self.images[place]), mask.keep).to(device)
        ids = self.context.ids[place].to(device)
        clean = start = levels.to(torch.float32) / 255
        if restart:
            uniform = keyed_uniform(self.context.seed, "start", ids, restart, clean[:1].numel()).reshape(clean.shape)
            eps = self.budget.eps
            start = uniform if eps is None else project(clean + eps * (2 * uniform - 1), clean, eps)
        elif self.context.start is not None:
            delta = gather(model.patchify(self.context.start[place]), mask.keep).to(device)
            start = confine(apply_delta(levels, delta), clean, self.budget)
        worst = torch.full_like(rows, torch.inf, dtype=torch.float32)
        state = {"row": rows, "id": ids, "t": torch.zeros_like(rows), "levels": levels, "clean": clean, "x": start}
        state |= {"keep": mask.keep.to(device), "hidden": mask.hidden.to(device)}
        state |= {"reference": self.target.reference[place].to(device), "best_loss": worst}
        state["best"] = torch.zeros_like(clean, dtype=self.ledger.delta.dtype)
        self.rule.begin(state)
        return state

    def _observe(self, state: State, restart: int) -> tuple[Scores, Tensor]:
        """Score the present iterates and write them down; return their gradients and which samples leave the batch."""
        last = state["t"] == self.plan.steps
        delta = self._stored(state)
        score = self._score(state, delta, gradient=self.rule.gradient and not bool(last.all()))
        win = score.loss < state["best_loss"]
        state["best"] = torch.where(column(win, delta), delta, state["best"])
        state["best_loss"] = torch.where(win, score.loss, state["best_loss"])

        rows, step = state["row"], restart * self.plan.steps + state["t"]
        if restart == 0 and self.context.start is None:
            at_start = state["t"] == 0
            self.ledger.start[rows[at_start]] = score.loss[at_start]
        finishing = score.loss <= self.finish
        news = finishing | ((score.loss <= self.context.threshold) & (self.ledger.step[rows] < 0))
        done = torch.zeros_like(last)
        done[news] = finishing[news] & (self._confirm(state, news, delta, score.loss, step) <= self.finish)
        ends = last & ~done
        self._confirm(state, ends, state["best"], state["best_loss"], step)
        # The first iterate of a later start shares its step number with the last of the start before.
        self.ledger.track(rows, step, score.loss, (state["t"] > 0) | (restart == 0), done)
        return (score.gradient,), done | ends

    def _stored(self, state: State) -> Tensor:
        """Return the delta of the present iterates as it would be stored."""
        if self.budget.gridded:
            return (state["x"] * 255).round().to(GRIDDED) - state["levels"]
        return (state["x"] - state["clean"]).to(FREE)

    def _score(self, state: State, delta: Tensor, *, gradient: bool) -> Score:
        mask = Mask(state["keep"], state["hidden"])
        return self.guide(apply_delta(state["levels"], delta), mask, state["reference"], gradient=gradient)

    def _confirm(self, state: State, which: Tensor, delta: Tensor, loss: Tensor, step: Tensor) -> Tensor:
        """Offer the deltas of these samples to the ledger under their float32 scores, and return these."""
        loss, delta = loss[which], delta[which]
        if not self.guide.is_exact and len(loss):
            mask = Mask(state["keep"][which], state["hidden"][which])
            visible = apply_delta(state["levels"][which], delta)
            loss = self.guide.exact(visible, mask, state["reference"][which])
        self.ledger.offer(state["row"][which], delta, loss, step[which])
        return loss
