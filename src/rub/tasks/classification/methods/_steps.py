"""Pieces that several methods share: rounds of batches, frozen copies, distillation, learning rates, finiteness."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rub.data.samples import Samples
from rub.errors import Diverged, RubError
from rub.pipeline.checkpointing import AttributeState, Changing
from rub.tasks.classification.context import UnlearnContext
from rub.training.context import beside


class Batch(NamedTuple):
    """A training batch: its epoch (from 0), the part it belongs to, images (B, C, H, W) in [0, 1], labels (B,)."""

    epoch: int
    part: str
    x: Tensor
    y: Tensor


class Rounds(AttributeState):
    """Shuffled, augmented batches: in every epoch, one pass over each part in turn; see `rounds`.

    Attributes:
        epoch: rounds that are over.
        part: parts of this round that are over.
        place: batches of the present part that were yielded.
        before: batches of the rounds that are over.
        opening: state of the generator at the start of the present part.
        drawing: state of what the parts are drawn from, at the start of this round.
    """

    changing = ("epoch", "part", "place", "before", "opening", "drawing")

    def __init__(
        self, context: UnlearnContext, epochs: int, parts: Callable[[int], Mapping[str, Samples]],
        draws: torch.Generator,
    ) -> None:  # fmt: skip
        """Begin with the first batch; arguments as for `rounds`."""
        self.context, self.epochs, self.parts, self.draws = context, epochs, parts, draws
        self.generator = context.generator("batches")
        self.epoch, self.part, self.place, self.before = 0, 0, 0, 0
        self.opening, self.drawing = self.generator.get_state(), draws.get_state()

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches, and report progress."""
        while self.epoch < self.epochs:
            self.draws.set_state(self.drawing)
            current = list(self.parts(self.epoch).items())
            sizes = [math.ceil(len(samples) / self.context.batch_size) for _, samples in current]
            total = self.before + (self.epochs - self.epoch) * sum(sizes)
            while self.part < len(current):
                name, samples = current[self.part]
                self.generator.set_state(self.opening)
                for x, y in self.context.batches(samples, self.generator, skip=self.place):
                    self.place += 1
                    yield Batch(self.epoch, name, x, y)
                    done = self.before + sum(sizes[: self.part]) + self.place
                    self.context.progress(done, total, f"epoch {self.epoch + 1}/{self.epochs}")
                self.part, self.place, self.opening = self.part + 1, 0, self.generator.get_state()
            self.epoch, self.part, self.before = self.epoch + 1, 0, self.before + sum(sizes)
            self.drawing = self.draws.get_state()


def rounds(
    context: UnlearnContext,
    epochs: int,
    parts: Callable[[int], Mapping[str, Samples]],
    changing: Changing,
    draws: torch.Generator | None = None,
) -> Iterator[Batch]:
    """Yield shuffled, augmented batches: in every epoch, one pass over each part in turn; progress is reported.

    Args:
        context: source of batches and random numbers.
        epochs: number of rounds.
        parts: epoch (from 0) -> name -> samples, asked for when the epoch begins.
        changing: what else a step leaves to the next; see `rub.pipeline.checkpointing`.
        draws: what the parts are drawn from, if anything.
    """
    batches = Rounds(context, epochs, parts, draws or torch.Generator())
    part = context.section("rounds", beside(changing, {"own batches": batches}))
    for step, batch in enumerate(batches, part.restore()):
        yield batch
        part.keep(step + 1)


def distillation(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return T^2 KL(softmax(teacher/T) || softmax(student/T)), averaged over the batch; logits (B, C).

    Example:
        >>> distillation(torch.zeros(2, 3), torch.zeros(2, 3)).item()
        0.0
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def convolutions(model: nn.Module, method: str) -> dict[str, nn.Conv2d]:
    """Return the model's 2-d convolutions by name.

    Raises:
        RubError: there is none, and the method edits convolutions.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    if not found:
        raise RubError(f"{method}: {type(model).__name__} has no Conv2d layer; use a convolutional network")
    return found


def require_finite(model: nn.Module, method: str) -> None:
    """Refuse weights that an edit made infinite or NaN.

    Raises:
        Diverged: names the first such parameter.
    """
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise Diverged(f"{method}: parameter {name} is not finite")
