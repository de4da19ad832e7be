"""One search for every task whose probes are scored per sample: a queue that keeps batches full, and the best so far.

A sample leaves the batch as soon as it is finished and a waiting one takes its place; each carries its own state, so
that its search does not depend on its neighbours. What counts as recovered is decided in float32 alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from rub.attacks.base import AttackContext, Probes
from rub.attacks.linf import better, column, has_converged
from rub.config.hyperparameters import Hyper, PositiveInt
from rub.pipeline.checkpointing import AttributeState, Changing, Stateful

State = dict[str, Tensor]
"""Per-sample state of the samples in the batch, each tensor with leading axis B; ``row`` says which samples they are
(int64), ``t`` how many steps they have taken since the start."""
Scores = tuple[Tensor | None, ...]

Restarts = Annotated[PositiveInt, Hyper(
    "starts per sample: first the clean image, then random points of the ball",
    source="open in the paper: the clean image only; raise it for random starts")]  # fmt: skip
FinishBelow = Annotated[float, Hyper(
    "a sample is finished once recovered with D <= this; inf: being recovered is enough; 0: never",
    source="every sample has all steps, for a loss curve that shows convergence", ge=0, infinite=True)]  # fmt: skip
StepSize = Annotated[float | None, Hyper(
    "step size in units of eps; none: 2.5 / steps",
    source="open in the paper: 2.5 eps / steps (Madry et al., section 5)", gt=0)]  # fmt: skip


class Queue:
    """The samples in the batch of a search, and those that wait to enter it.

    Attributes:
        batch: state of those in it; without entries before the first.
        resumed: state of those that were in the batch of a run that was killed; they enter first.
        pending: int64 (N,) on the CPU, the samples to search, in the order in which they enter.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.batch: State = {}
        self.resumed: State = {}
        self.pending = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return _count(self.batch) + _count(self.resumed) + len(self.pending)

    def fill(self, batch_size: int, admit: Callable[[Tensor], State]) -> None:
        """Let samples enter while there is room."""
        room = batch_size - _count(self.batch)
        if room > 0 and _count(self.resumed):
            self.batch = _join(self.batch, {name: part[:room] for name, part in self.resumed.items()})
            self.resumed = {name: part[room:] for name, part in self.resumed.items()}
            room = batch_size - _count(self.batch)
        if room > 0 and len(self.pending):
            self.batch = _join(self.batch, admit(self.pending[:room]))
            self.pending = self.pending[room:]

    def state_dict(self) -> dict[str, Any]:
        """What a search goes on from."""
        return {"batch": self.batch, "resumed": self.resumed, "pending": self.pending}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Hold those that were in the batch: there may be room for fewer now."""
        parts = ({name: part.to(self.device) for name, part in state[where].items()} for where in ("batch", "resumed"))
        self.batch, self.resumed = {}, _join(*parts)
        self.pending = state["pending"]


def run_queue(
    queue: Queue, batch_size: int, admit: Callable[[Tensor], State], observe: Callable[[State], tuple[Scores, Tensor]],
    move: Callable[..., None], report: Callable[[int], None],
) -> None:  # fmt: skip
    """Search until no sample is waiting or in the batch.

    Args:
        queue: the samples to search.
        batch_size: most samples at once.
        admit: rows (B,), on the CPU -> their state at the start, on the device.
        observe: state -> what a move needs, per sample, and which samples leave the batch, bool (B,).
        move: called with the state of those that stay and what a move needs of them; replaces their iterates.
        report: told after each round how many samples are left.
    """
    while len(queue):
        queue.fill(batch_size, admit)
        scores, leaving = observe(queue.batch)
        if leaving.any():
            stay = ~leaving
            queue.batch = {name: part[stay] for name, part in queue.batch.items()}
            scores = tuple(None if part is None else part[stay] for part in scores)
        if _count(queue.batch):
            move(queue.batch, *scores)
            queue.batch["t"] += 1
        report(len(queue))


def _count(state: State) -> int:
    return len(state["row"]) if state else 0


def _join(first: State, second: State) -> State:
    if not _count(first) or not _count(second):
        return first if _count(first) else second
    return {name: torch.cat([part, second[name]]) for name, part in first.items()}


class Score(NamedTuple):
    """Per-sample results of one pass: D, float32 (B,), recovered, bool (B,), and the gradient if asked for."""

    loss: Tensor
    recovered: Tensor
    gradient: Tensor | None = None


class Rule(Protocol):
    """How an attack moves: the only part in which per-sample attacks differ."""

    @property
    def gradient(self) -> bool:
        """Whether `move` needs dD/dx."""

    def begin(self, state: State) -> None:
        """Add the rule's own entries to the state of samples that start; ``x`` is the first iterate."""

    def move(self, state: State, loss: Tensor, gradient: Tensor | None) -> None:
        """Replace ``x`` by the next iterate, given D (B,) and its gradient at the present one."""


class Scorer(Stateful, Protocol):
    """A model that scores, which counts every image it passes through.

    Attributes:
        evaluations: forward passes of single images so far; a forward+backward pair counts once.
    """

    evaluations: int


class Objective(Protocol):
    """What a search minimises: how samples start, how iterates are stored and scored, and when a sample is finished."""

    @property
    def scorer(self) -> Scorer:
        """The model that scores."""

    @property
    def is_exact(self) -> bool:
        """Whether the guide scores what is stored, in float32, so that its scores need no re-evaluation."""

    def admit(self, rows: Tensor, restart: int) -> State:
        """``clean`` inputs and first iterates ``x`` of rows (B,), with what scoring needs, on the device."""

    def stored(self, state: State) -> Tensor:
        """Iterates (B, ...) as they would be stored."""

    def guide(self, state: State, stored: Tensor, *, gradient: bool) -> Score:
        """Scores that guide the search."""

    def exact(self, state: State, which: Tensor, stored: Tensor) -> Score:
        """Float32 scores of `stored`, which belong to the samples that `which`, bool (B,), selects."""

    def finished(self, score: Score) -> Tensor:
        """Whether each sample needs no further step, bool; only recovered ones are."""

    def lower(self, first: Tensor, second: Tensor, /) -> Tensor:
        """The lower of two losses (B,)."""


@dataclass(frozen=True)
class Schedule:
    """How long a search goes on.

    Attributes:
        steps: moves per start, >= 0; an iterate is scored before the first move and after each.
        restarts: starts per sample, >= 1: the first from the clean image (or the context's start), others random.
    """

    steps: int
    restarts: int = 1


class BestSoFar(AttributeState):
    """The best probe of every sample so far, and the curves; float32 scores only, so no claim is bfloat16's alone.

    Attributes:
        inputs: (N, ...) on the CPU, probes as they are stored.
        loss: float32 (N,), their D.
        recovered: bool (N,).
        finished: bool (N,).
        step: int64 (N,), the step at which a sample was first recovered, counted over all restarts; -1: not yet.
        lowest: float32 (N,), lowest loss as the guide of the search scored it; inf before the first score.
    """

    changing: ClassVar[tuple[str, ...]] = (
        "inputs", "loss", "recovered", "finished", "step", "lowest", "_curve", "_tail", "_moved", "_searched",
    )  # fmt: skip

    def __init__(self, clean: Tensor, total_steps: int, device: torch.device) -> None:
        """Start from the clean inputs (N, ...) as they are stored, none of them scored."""
        self.inputs = clean.clone()
        self.loss = torch.full((len(clean),), torch.inf, device=device)
        self.recovered = torch.zeros(len(clean), dtype=torch.bool, device=device)
        self.finished, self.lowest = self.recovered.clone(), self.loss.clone()
        self.step = torch.full((len(clean),), -1, device=device)
        self._curve = torch.zeros(total_steps + 2, dtype=torch.float64)
        self._tail, self._moved, self._searched = (torch.zeros_like(self._curve) for _ in range(3))

    def offer(self, rows: Tensor, inputs: Tensor, score: Score, step: Tensor) -> None:
        """Keep these probes where they beat what is known; note the step where one is recovered at last."""
        first = score.recovered & (self.step[rows] < 0)
        self.step[rows[first]] = step[first]
        win = better(score.recovered, score.loss, self.recovered[rows], self.loss[rows])
        self.inputs[rows[win].cpu()] = inputs[win].cpu()
        self.loss[rows[win]], self.recovered[rows[win]] = score.loss[win], score.recovered[win]

    def enter(
        self, rows: Tensor, step: Tensor, lowest: Tensor, counts: Tensor, finished: Tensor, moved: Tensor
    ) -> None:
        """Enter the lowest loss of these samples into the curve where `counts`; the finished keep theirs to the end.

        `moved` says whose stored probe is another one than at the step before.
        """
        self.lowest[rows] = lowest
        self.finished[rows[finished]] = True
        value, step, counts = lowest.double().cpu(), step.cpu(), counts.double().cpu()
        self._curve.index_add_(0, step, value * counts)
        self._searched.index_add_(0, step, counts)
        self._moved.index_add_(0, step, moved * counts)
        self._tail.index_add_(0, step + 1, value * finished.cpu())

    def probes(self, evaluations: int) -> Probes:
        """What was found, with the share recovered and the mean lowest loss after each step."""
        count, steps = len(self.step), len(self._curve) - 1
        losses = ((self._curve + self._tail.cumsum(0))[:-1] / count).tolist()
        hits = torch.bincount(self.step[self.step >= 0].cpu(), minlength=steps).cumsum(0)
        successes = (hits.double() / count).tolist()
        moves = (self._moved / self._searched.clamp_min(1)).cumsum(0)[:-1].tolist()
        converged = has_converged(successes, losses, moves)
        curves = tuple(successes), tuple(losses)
        return Probes(self.inputs, self.loss.cpu(), self.step.cpu(), *curves, evaluations, converged)


def minimise(rule: Rule, schedule: Schedule, objective: Objective, clean: Tensor, context: AttackContext) -> Probes:
    """Run a rule on every sample and keep the best probe of each: recovered first, then the lowest D.

    Every sample that is not finished has its starts, the first one of all before the second of any.

    Args:
        rule: how iterates move.
        schedule: steps and restarts.
        objective: what is minimised.
        clean: the clean inputs (N, ...) as they are stored, on the CPU.
        context: seed, ids, batch size, device, progress, checkpointer.
    """
    queue, count = Queue(context.device), len(clean)
    best = BestSoFar(clean, schedule.steps * schedule.restarts, context.device)
    changing: Changing = {"queue": queue, "best": best, "scorer": objective.scorer}
    part = context.checkpointer.section("search", changing)
    for restart in range(part.restore(), schedule.restarts):
        start = _Start(rule, schedule.steps, objective, best, context, restart)

        def report(left: int, restart: int = restart) -> None:
            note = f"recovered {int((best.step >= 0).sum())} of {count}"
            context.progress(restart * count + count - left, schedule.restarts * count, note)
            if left:
                part.keep(restart)

        if not len(queue):  # else a run that was killed left samples on their way
            queue.pending = torch.nonzero(~best.finished).squeeze(1).cpu()
        run_queue(queue, context.batch_size, start.admit, start.observe, rule.move, report)
    return best.probes(objective.scorer.evaluations)


@dataclass(frozen=True)
class _Start:
    """One start of all samples: what `run_queue` calls."""

    rule: Rule
    steps: int
    objective: Objective
    best: BestSoFar
    context: AttackContext
    number: int

    def admit(self, rows: Tensor) -> State:
        device = self.context.device
        state = {
            "row": rows.to(device),
            "id": self.context.ids[rows].to(device),
            **self.objective.admit(rows, self.number),
        }
        state["t"] = torch.zeros_like(state["row"])
        state["best"] = state["last"] = self.objective.stored({**state, "x": state["clean"]})
        state["best_loss"] = torch.full_like(state["row"], torch.inf, dtype=torch.float32)
        state["best_recovered"] = torch.zeros_like(state["row"], dtype=torch.bool)
        self.rule.begin(state)
        return state

    def observe(self, state: State) -> tuple[Scores, Tensor]:
        """Score the present iterates and write them down; D, its gradient, and which samples leave."""
        last = state["t"] == self.steps
        stored = self.objective.stored(state)
        score = self.objective.guide(state, stored, gradient=self.rule.gradient and not bool(last.all()))
        moved = (stored != state["last"]).flatten(1).any(1) & (state["t"] > 0)
        state["last"] = stored
        win = better(score.recovered, score.loss, state["best_recovered"], state["best_loss"])
        state["best"] = torch.where(column(win, stored), stored, state["best"])
        state["best_loss"] = torch.where(win, score.loss, state["best_loss"])
        state["best_recovered"] = torch.where(win, score.recovered, state["best_recovered"])

        rows, step = state["row"], self.number * self.steps + state["t"]
        finishing = self.objective.finished(score)
        news = score.recovered & ((self.best.step[rows] < 0) | finishing)
        done = torch.zeros_like(last)
        done[news] = finishing[news] & self.objective.finished(self._confirm(state, news, stored, score, step))
        ends = last & ~done
        self._confirm(state, ends, state["best"], Score(state["best_loss"], state["best_recovered"]), step)
        # The first iterate of a later start shares its step number with the last of the start before.
        counts = (state["t"] > 0) | (self.number == 0)
        lowest = self.objective.lower(self.best.lowest[rows], score.loss)
        self.best.enter(rows, step, lowest, counts, done, moved.double().cpu())
        return (score.loss, score.gradient), done | ends

    def _confirm(self, state: State, which: Tensor, stored: Tensor, score: Score, step: Tensor) -> Score:
        score, stored = Score(score.loss[which], score.recovered[which]), stored[which]
        if not self.objective.is_exact and len(stored):
            score = self.objective.exact(state, which, stored)
        self.best.offer(state["row"][which], stored, score, step[which])
        return score
