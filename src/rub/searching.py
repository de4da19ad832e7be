"""What per-sample searches of every task share: the queue that keeps batches full, and the curves of its progress.

A sample leaves the batch as soon as it is finished and a waiting one takes its place; each carries its own state, so
that its search does not depend on its neighbours.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rub.optim import has_converged

State = dict[str, Tensor]
"""Per-sample state of the samples in the batch, each tensor with leading axis B; ``row`` says which samples they are
(int64), ``t`` how many steps they have taken since the start."""
Scores = tuple[Tensor | None, ...]


def drain(
    waiting: Tensor,
    batch_size: int,
    admit: Callable[[Tensor], State],
    observe: Callable[[State], tuple[Scores, Tensor]],
    move: Callable[..., None],
    report: Callable[[int], None],
) -> None:
    """Search until no sample is waiting or in the batch.

    Args:
        waiting: int64 (N,), the samples to search, in the order in which they enter.
        batch_size: most samples at once.
        admit: rows (B,) -> their state at the start.
        observe: state -> what a move needs, per sample, and which samples leave the batch, bool (B,).
        move: called with the state of those that stay and what a move needs of them; replaces their iterates.
        report: told after each round how many samples are left.
    """
    state = admit(waiting[:0])
    while len(waiting) or len(state["row"]):
        room = batch_size - len(state["row"])
        if room and len(waiting):
            state = _join(state, admit(waiting[:room]))
            waiting = waiting[room:]
        scores, leaving = observe(state)
        if leaving.any():
            stay = ~leaving
            state = {name: part[stay] for name, part in state.items()}
            scores = tuple(None if part is None else part[stay] for part in scores)
        if len(state["row"]):
            move(state, *scores)
            state["t"] += 1
        report(len(waiting) + len(state["row"]))


def _join(first: State, second: State) -> State:
    return {name: torch.cat([part, second[name]]) for name, part in first.items()} if len(first["row"]) else second


class Course:
    """How far every sample has come: whether it is finished, where it recovered, its lowest loss after each step.

    Attributes:
        finished: bool (N,).
        step: int64 (N,), the step at which a sample was first recovered, counted over all restarts; -1: not yet.
        lowest: float32 (N,), as the guide of the search scored it; inf before the first score.
    """

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
