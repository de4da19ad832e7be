"""The search that every per-sample attack shares, on the queue of `rub.attacks.search`.

What counts as recovered is decided in float32 alone.
"""

from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from torch import Tensor

from rub.attacks.linf import better, column, keyed_uniform, project
from rub.attacks.search import Scores, State, Trajectory, run_starts
from rub.config.hyperparameters import Hyper
from rub.data.samples import to_unit
from rub.tasks.classification.attacks.base import AttackContext, Budget, Probes, Target
from rub.tasks.classification.attacks.divergences import Divergence
from rub.tasks.classification.attacks.scoring import Score, Scorer

# `State` holds `row`, `id` (int64), `t`, `clean`, `x` (float32 images), `best` (uint8), `best_loss`, `best_recovered`,
# and the rule's own.


Grid = Annotated[bool, Hyper(
    "score iterates as 8-bit images; False is the textbook search, rounded only at the end",
    source="what is stored is an 8-bit image")]  # fmt: skip


class Rule(Protocol):
    """How an attack moves: the only part in which per-sample attacks differ."""

    @property
    def gradient(self) -> bool:
        """Whether `move` needs dD/dx."""

    def begin(self, state: State) -> None:
        """Add the rule's own entries to the state of samples that start; `state["x"]` is the first iterate."""

    def move(self, state: State, loss: Tensor, gradient: Tensor | None) -> None:
        """Replace `state["x"]` by the next iterate, given D (B,) and dD/dx at the present one."""


@dataclass(frozen=True)
class Schedule:
    """How long a search goes on.

    Attributes:
        divergence: the D that is minimised.
        steps: moves per start, >= 0; an iterate is scored before the first move and after each.
        restarts: starts per sample, >= 1: the first from the clean image (or the context's start), others random.
        finish_below: a sample is finished once it is recovered and D <= this; inf: being recovered is enough; 0: never.
        grid: score every iterate rounded to the 1/255 grid, with a straight-through gradient.
    """

    divergence: Divergence
    steps: int
    restarts: int = 1
    finish_below: float = 0.0
    grid: bool = True


def search(
    rule: Rule, plan: Schedule, target: Target, images: Tensor, budget: Budget, context: AttackContext
) -> Probes:
    """Run a rule on every image and return each one's best probe: recovered first, then the lowest D.

    Args:
        rule: how iterates move.
        plan: steps, restarts, divergence and when a sample is finished.
        target: what the attack aims at; row i belongs to image i.
        images: uint8 (N, C, H, W), the clean images.
        budget: how far probes may go.
        context: seed, ids, batch size, device, start, and whether to search in bfloat16.
    """
    job = _Search(rule, plan, target, images, budget, context)
    job.run()
    return job.ledger.probes(job.scorer.evaluations)


def on_grid(x: Tensor) -> Tensor:
    """Return the 8-bit image nearest to x (values k/255), exactly as `to_unit` gives it."""
    return (x * 255).round_().div_(255)


def to_bytes(x: Tensor) -> Tensor:
    """Return float images in [0, 1] as uint8, rounded to the nearest level."""
    return (x * 255).round_().to(torch.uint8)


class Ledger(Trajectory):
    """The best probe of every sample so far; holds float32 scores only, so a claim is never bfloat16's alone."""

    changing = (*Trajectory.changing, "images", "loss", "recovered")

    def __init__(self, images: Tensor, total_steps: int, device: torch.device) -> None:
        """Start from the clean images, none of them scored."""
        super().__init__(len(images), total_steps, device)
        self.images = images.clone()
        self.loss = torch.full((len(images),), torch.inf, device=device)
        self.recovered = torch.zeros(len(images), dtype=torch.bool, device=device)

    def offer(self, rows: Tensor, images: Tensor, score: Score, step: Tensor) -> None:
        """Keep these uint8 images where they beat what is known; note the step where one is recovered at last."""
        first = score.recovered & (self.step[rows] < 0)
        self.step[rows[first]] = step[first]
        win = better(score.recovered, score.loss, self.recovered[rows], self.loss[rows])
        self.images[rows[win].cpu()] = images[win].cpu()
        self.loss[rows[win]], self.recovered[rows[win]] = score.loss[win], score.recovered[win]

    def track(self, rows: Tensor, step: Tensor, loss: Tensor, counts: Tensor, finished: Tensor) -> None:
        """Enter D of these samples into the curve where `counts`; the finished keep theirs to the end."""
        self.enter(rows, step, torch.minimum(self.lowest[rows], loss), counts, finished)

    def probes(self, evaluations: int) -> Probes:
        """Return what was found."""
        successes, losses, converged = self.curves()
        return Probes(self.images, self.loss.cpu(), self.step.cpu(), successes, losses, evaluations, converged)


class _Search:
    def __init__(
        self, rule: Rule, plan: Schedule, target: Target, images: Tensor, budget: Budget, context: AttackContext
    ) -> None:
        self.rule, self.plan, self.images, self.eps, self.context = rule, plan, images, budget.eps, context
        self.scorer = Scorer(target, plan.divergence, context)
        self.ledger = Ledger(images, plan.steps * plan.restarts, context.device)
        self.ids = context.ids.to(context.device)

    def run(self) -> None:
        """Give every unfinished sample its starts."""
        run_starts(
            self.ledger, self.plan.restarts, self.context, self._admit, self._observe, self.rule.move,
            scorer=self.scorer,
        )  # fmt: skip

    def _admit(self, rows: Tensor, restart: int) -> State:
        """Return the state of samples at their start."""
        place, device = rows, self.context.device
        rows = rows.to(device)
        clean = to_unit(self.images[place].to(device))
        start = clean
        if restart:
            noise = keyed_uniform(self.context.seed, "start", self.ids[rows], restart, clean[:1].numel())
            start = project(clean + self.eps * (2 * noise.reshape(clean.shape) - 1), clean, self.eps)
        elif self.context.start is not None:
            start = project(to_unit(self.context.start[place].to(device)), clean, self.eps)
        worst = torch.full_like(rows, torch.inf, dtype=torch.float32)
        state = {"row": rows, "id": self.ids[rows], "t": torch.zeros_like(rows), "clean": clean, "x": start}
        state |= {
            "best": to_bytes(clean),
            "best_loss": worst,
            "best_recovered": torch.zeros_like(rows, dtype=torch.bool),
        }
        self.rule.begin(state)
        return state

    def _observe(self, state: State, restart: int) -> tuple[Scores, Tensor]:
        """Score the present iterates and write them down; return D, its gradient, and which samples leave."""
        last = state["t"] == self.plan.steps
        x = on_grid(state["x"]) if self.plan.grid else state["x"]
        score = self.scorer.guide(x, state["row"], gradient=self.rule.gradient and not bool(last.all()))
        win = better(score.recovered, score.loss, state["best_recovered"], state["best_loss"])
        state["best"] = torch.where(column(win, x), to_bytes(x), state["best"])
        state["best_loss"] = torch.where(win, score.loss, state["best_loss"])
        state["best_recovered"] = torch.where(win, score.recovered, state["best_recovered"])

        step = restart * self.plan.steps + state["t"]
        finishing = score.recovered & (score.loss <= self.plan.finish_below) & (self.plan.finish_below > 0)
        news = score.recovered & ((self.ledger.step[state["row"]] < 0) | finishing)
        exact = self._confirm(
            state["row"][news], to_bytes(x[news]), Score(score.loss[news], score.recovered[news]), step[news]
        )
        done = torch.zeros_like(last)
        done[news] = finishing[news] & exact.recovered & (exact.loss <= self.plan.finish_below)
        ends = last & ~done
        best = Score(state["best_loss"][ends], state["best_recovered"][ends])
        self._confirm(state["row"][ends], state["best"][ends], best, step[ends])
        # The first iterate of a later start shares its step number with the last of the start before.
        self.ledger.track(state["row"], step, score.loss, (state["t"] > 0) | (restart == 0), done)
        return (score.loss, score.gradient), done | ends

    def _confirm(self, rows: Tensor, images: Tensor, score: Score, step: Tensor) -> Score:
        """Offer images to the ledger under their float32 scores, and return these."""
        if not self.scorer.is_exact:
            score = self.scorer.exact(images, rows)
        self.ledger.offer(rows, images, score, step)
        return score
