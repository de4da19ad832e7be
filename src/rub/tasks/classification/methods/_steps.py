"""Pieces that several methods share: rounds of batches, images beside a set, distillation, L2 steps, finiteness."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rub.attacks.regions import L2
from rub.config.hyperparameters import Hyper
from rub.data.samples import Samples, concatenate
from rub.errors import Diverged, RubError
from rub.models.network import batch_norms
from rub.pipeline.checkpointing import Changing
from rub.tasks.classification.context import UnlearnContext
from rub.training.batches import Stream, cuts


class Batch(NamedTuple):
    """A training batch: its epoch (from 0), the part it belongs to, images (B, C, H, W) in [0, 1], labels (B,)."""

    epoch: int
    part: str
    x: Tensor
    y: Tensor


BatchNorm = Annotated[Literal["train", "eval"], Hyper(
    "batch normalisation while the forget set alone is seen: `train`, its running statistics drift to that set (beside"
    " such a row stands the control drift); `eval`, they stay the original's")]  # fmt: skip
"""Hyperparameter of methods that train on the forget set alone."""
Parts = Mapping[str, Samples]
Maker = Callable[[Tensor], tuple[Tensor, Tensor]]


def rounds(context: UnlearnContext, parts: Callable[[], Iterable[Parts]], changing: Changing) -> Iterator[Batch]:
    """Shuffled, augmented batches: in every epoch, one pass over each part in turn; progress is reported.

    Args:
        context: source of batches and random numbers.
        parts: gives name -> samples for each epoch; begins anew, from fresh generators, whenever it is called.
        changing: what else a step leaves to the next; see `rub.pipeline.checkpointing`.
    """

    def draw() -> Iterator[tuple[int, str, Maker, Tensor]]:
        generator = context.generator("batches")
        for epoch, current in enumerate(parts()):
            for name, samples in current.items():
                make = context.maker(samples)
                for drawn in context.drawn(len(samples), generator):
                    yield epoch, name, make, drawn

    sizes = [sum(len(cuts(len(samples), context.batch_size)) for samples in now.values()) for now in parts()]
    batches = Stream(draw, lambda item: Batch(item[0], item[1], *item[2](item[3])))
    for _ in context.counted(sum(sizes), {**changing, "own batches": batches}, epochs=len(sizes)):
        yield next(batches)


def train_mode(model: nn.Module, batch_norm: Literal["train", "eval"]) -> None:
    """Put the model in train mode, its batch normalisations in that mode; in eval mode they use what they have seen.

    Example:
        >>> layer = nn.BatchNorm2d(3)
        >>> train_mode(nn.Sequential(layer), "eval")
        >>> layer.training
        False
    """
    model.train()
    for layer in batch_norms(model):
        layer.train(batch_norm == "train")


def distillation(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(softmax(teacher/T) || softmax(student/T)), averaged over the batch; logits (B, C).

    Example:
        >>> distillation(torch.zeros(2, 3), torch.zeros(2, 3)).item()
        0.0
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


@dataclass(frozen=True)
class Beside:
    """Images that a method made, shuffled among those of a set: floats, which stay as they are.

    Attributes:
        samples: the set.
        images: the others, float32 (M, C, H, W) on the CPU.
        labels: theirs, int64 (M,).
    """

    samples: Samples
    images: Tensor
    labels: Tensor

    @property
    def marked(self) -> Samples:
        """As many samples as there are images, with rows as labels; those of the made images are blank."""
        blank = torch.zeros(self.images.shape, dtype=torch.uint8)
        both = concatenate([self.samples, Samples(blank, self.labels, torch.arange(len(blank)))])
        return replace(both, labels=torch.arange(len(both)))

    def batch(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels of a batch of the marked set: x (B, C, H, W), rows (B,)."""
        place = rows.cpu() - len(self.samples)
        made = torch.where(place >= 0)[0]
        labels = torch.cat([self.samples.labels, self.labels])[rows.cpu()]
        return x.index_copy(0, made.to(x.device), self.images[place[made]].to(x.device)), labels.to(x.device)


def input_gradient(model: nn.Module, x: Tensor, y: Tensor, context: UnlearnContext) -> tuple[Tensor, Tensor]:
    """Logits (B, C) at x (B, C, H, W), and the gradient there of the batch's mean cross-entropy with y (B,)."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        logits = context.forward(model, leaf)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y), leaf)
    return logits.detach(), gradient


def l2_step(x: Tensor, direction: Tensor, step: float, centre: Tensor, radius: float) -> Tensor:
    """A step of length `step` along each direction, back into the L2 ball around the centre, then into [0, 1].

    Args:
        x: where it begins, (B, C, H, W), as direction and centre.
        direction: of any length above about 1e-10; a shorter one makes a shorter step.
        step: length; negative goes the other way.
        centre: of the ball.
        radius: of the ball.

    Example:
        >>> l2_step(torch.zeros(1, 1, 1, 2), torch.tensor([[[[3.0, 4.0]]]]), 1.0, torch.zeros(1, 1, 1, 2), 0.5)
        tensor([[[[0.3000, 0.4000]]]])
    """
    length = torch.linalg.vector_norm(direction, dim=(1, 2, 3), keepdim=True)
    return L2(Fraction(radius)).confine(x + step * direction / (length + 1e-10), centre)


def clipped_step(optimizer: torch.optim.Optimizer, limit: float) -> None:
    """Take a step with the gradients that are in place, shortened to an L2 norm of `limit` over all that is moved."""
    nn.utils.clip_grad_norm_([weight for group in optimizer.param_groups for weight in group["params"]], limit)
    optimizer.step()


def convolutions(model: nn.Module, method: str) -> dict[str, nn.Conv2d]:
    """Model's 2-d convolutions by name.

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
