"""What per-sample searches of every task share: the queue that keeps batches full, and the curves of its progress.

A sample leaves the batch as soon as it is finished and a waiting one takes its place; each carries its own state, so
that its search does not depend on its neighbours.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, ClassVar, Protocol

import torch
from torch import Tensor

from rub.attacks.linf import has_converged
from rub.config.hyperparameters import Hyper, PositiveInt, Weight
from rub.pipeline.callback import Progress
from rub.pipeline.checkpointing import AttributeState, Checkpointer, Stateful

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
Momentum = Annotated[Weight, Hyper(
    "weight of the running average of normalised gradients; 0 uses the plain gradient",
    source="open in the paper")]  # fmt: skip


class Queue:
    """Who is in the batch of a search, and who waits to enter it.

    Attributes:
        batch: state of those in it; without entries before the first.
        resumed: state of those that were in the batch of a run that was killed; they enter first.
        pending: int64 (N,) on the CPU, the samples to search, in the order in which they enter.
    """

    def __init__(self, device: torch.device) -> None:
        """Begin with nobody."""
        self.device = device
        self.batch: State = {}
        self.resumed: State = {}
        self.pending = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        """Return how many samples are not done."""
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
        """Return what a search goes on from."""
        return {"batch": self.batch, "resumed": self.resumed, "pending": self.pending}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Hold those that were in the batch: there may be room for fewer now."""
        parts = ({name: part.to(self.device) for name, part in state[where].items()} for where in ("batch", "resumed"))
        self.batch, self.resumed = {}, _join(*parts)
        self.pending = state["pending"]


def run_queue(
    queue: Queue,
    batch_size: int,
    admit: Callable[[Tensor], State],
    observe: Callable[[State], tuple[Scores, Tensor]],
    move: Callable[..., None],
    report: Callable[[int], None],
) -> None:
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


class Context(Protocol):
    """What `run_starts` needs of an attack's context."""

    @property
    def batch_size(self) -> int:
        """Most samples at once."""

    @property
    def progress(self) -> Progress:
        """Told of every round."""

    @property
    def checkpointer(self) -> Checkpointer:
        """Keeps states of the search."""


def run_starts(
    trajectory: "Trajectory",
    restarts: int,
    context: Context,
    admit: Callable[..., State],
    observe: Callable[..., tuple[Scores, Tensor]],
    move: Callable[..., None],
    **changing: Stateful,
) -> None:
    """Give every sample that is not finished its starts, the first one of all before the second of any.

    Args:
        trajectory: of all samples.
        restarts: starts per sample, >= 1.
        context: batch size, progress, checkpointer.
        admit: as for `run_queue`, with the number of the start as `restart`.
        observe: likewise.
        move: as for `run_queue`.
        changing: what else changes meanwhile, for the states that are kept.
    """
    queue, count = Queue(trajectory.step.device), len(trajectory.step)
    part = context.checkpointer.section("search", {"queue": queue, "trajectory": trajectory, **changing})
    for restart in range(part.restore(), restarts):

        def report(left: int, restart: int = restart) -> None:
            note = f"recovered {int((trajectory.step >= 0).sum())} of {count}"
            context.progress(restart * count + count - left, restarts * count, note)
            if left:
                part.keep(restart)

        if not len(queue):  # else a run that was killed left samples on their way
            queue.pending = torch.nonzero(~trajectory.finished).squeeze(1).cpu()
        admitted, observed = partial(admit, restart=restart), partial(observe, restart=restart)
        run_queue(queue, context.batch_size, admitted, observed, move, report)


class Trajectory(AttributeState):
    """How far every sample has come: whether it is finished, where it recovered, its lowest loss after each step.

    Attributes:
        finished: bool (N,).
        step: int64 (N,), the step at which a sample was first recovered, counted over all restarts; -1: not yet.
        lowest: float32 (N,), as the guide of the search scored it; inf before the first score.
    """

    changing: ClassVar[tuple[str, ...]] = ("finished", "step", "lowest", "_curve", "_tail")

    def __init__(self, count: int, total_steps: int, device: torch.device) -> None:
        """Begin with `count` samples that have no score."""
        self.finished = torch.zeros(count, dtype=torch.bool, device=device)
        self.step = torch.full((count,), -1, device=device)
        self.lowest = torch.full((count,), torch.inf, device=device)
        self._curve = torch.zeros(total_steps + 2, dtype=torch.float64)
        self._tail = torch.zeros_like(self._curve)

    def enter(self, rows: Tensor, step: Tensor, lowest: Tensor, counts: Tensor, finished: Tensor) -> None:
        """Enter the lowest loss of these samples into the curve where `counts`; the finished keep theirs to the end."""
        self.lowest[rows] = lowest
        self.finished[rows[finished]] = True
        value, step = lowest.double().cpu(), step.cpu()
        self._curve.index_add_(0, step, value * counts.cpu())
        self._tail.index_add_(0, step + 1, value * finished.cpu())

    def curves(self) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
        """Return the share recovered and the mean lowest loss after each step, and whether they had levelled off."""
        count, steps = len(self.step), len(self._curve) - 1
        losses = ((self._curve + self._tail.cumsum(0))[:-1] / count).tolist()
        hits = torch.bincount(self.step[self.step >= 0].cpu(), minlength=steps).cumsum(0)
        successes = (hits.double() / count).tolist()
        return tuple(successes), tuple(losses), has_converged(successes, losses)
