"""What everything that trains on images shares: named random streams, augmentation, batches, steps."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rub.data.samples import Samples, to_unit
from rub.errors import Diverged, RubError
from rub.pipeline.callback import Progress, silent
from rub.pipeline.checkpointing import Changing, Checkpointer, Section
from rub.pipeline.rng import seeded
from rub.training.batches import Augmentation, Stream, cuts, refilled
from rub.training.device import compiled, copy_to_host_async, on_device, reduced, tf32


@dataclass(frozen=True, kw_only=True)
class TrainContext:
    """How a model is trained, whatever the task: seed, batches, precision, device.

    Attributes:
        seed: every random draw comes from `generator(stream)`.
        batch_size: training batch size.
        augmentation: the training augmentation.
        precision: ``"float32"``, ``"tf32"`` (on CUDA; see `rub.training.device.tf32`) or ``"bfloat16"`` (autocast of
            forward passes; weights stay float32).
        device: where the model and the batches live.
        progress: told of every epoch and batch.
        checkpointer: keeps states of long loops; see `rub.pipeline.checkpointing`.
        compile: whether networks are compiled; see `rub.training.device`.
    """

    seed: int
    batch_size: int = 256
    augmentation: Augmentation = field(default_factory=Augmentation)
    precision: str = "float32"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    progress: Progress = silent
    checkpointer: Checkpointer = field(default_factory=Checkpointer)
    compile: bool = False

    def generator(self, stream: str) -> torch.Generator:
        """CPU generator whose numbers depend on the seed and the name of the stream only."""
        return seeded(self.seed, stream)

    def batches(
        self, samples: Samples, generator: torch.Generator, *, batch_size: int | None = None, shuffle: bool = True,
        augment: bool = True,
    ) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
        """(x, y) over one pass of the samples: x float32 (B, C, H, W) in [0, 1], y int64 (B,), on the device.

        The last, smaller batch is kept unless it holds a single image of a shuffled pass (batch normalisation needs
        two).
        """
        drawn = self.drawn(len(samples), generator, batch_size=batch_size, shuffle=shuffle, augment=augment)
        return map(self.maker(samples), drawn)

    def drawn(
        self, count: int, generator: torch.Generator, *, batch_size: int | None = None, shuffle: bool = True,
        augment: bool = True,
    ) -> Iterator[Tensor]:  # fmt: skip
        """What the batches of one pass over `count` images draw, int64 (B, 1 or 4): rows and augmentation."""
        order = torch.randperm(count, generator=generator) if shuffle else torch.arange(count)
        for part in cuts(count, batch_size or self.batch_size, lone=not shuffle):
            rows = order[part, None]
            yield torch.cat([rows, self.augmentation.draw(len(rows), generator)], 1) if augment else rows

    def maker(self, samples: Samples) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Function of what was `drawn` for a batch to its images and labels, as `batches` gives them."""
        placed = on_device(samples, self.device)

        def make(drawn: Tensor) -> tuple[Tensor, Tensor]:
            images = self.augmentation.apply(placed.take(drawn[:, 0]).to(self.device), drawn[:, 1:])
            x = to_unit(images).contiguous(memory_format=torch.channels_last)
            return x, samples.labels[drawn[:, 0]].to(self.device)

        return make

    def endless(
        self, samples: Samples, stream: str, batch_size: int | None = None, *, even: bool = False
    ) -> Stream[Tensor, tuple[Tensor, Tensor]]:
        """Batches of shuffled, augmented passes over samples without end, in the order of a named stream.

        Args:
            samples: at least one.
            stream: its name.
            batch_size: images per batch; None: the context's.
            even: whether all batches have that size, the last images of a pass standing with the first of the next.

        Raises:
            RubError: there are no images, or batches of one.
        """
        size = batch_size or self.batch_size
        if not len(samples):
            raise RubError("unlearning: an empty set of images; both forget and retain should hold some")
        if size == 1 and len(samples) > 1:
            raise RubError("unlearning: batches of one image; each set should give two at a time")

        def passes() -> Iterator[Tensor]:
            generator = self.generator(stream)
            while True:
                yield from self.drawn(len(samples), generator, batch_size=size)

        return Stream(lambda: refilled(passes(), size) if even else passes(), self.maker(samples))

    def epochs(
        self, samples: Samples, epochs: int, changing: Changing | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of several shuffled, augmented passes over the samples; they report progress.

        With `changing`, what else a step leaves to the next, they keep a state now and then, and a killed run goes on
        from it; without, it starts anew.
        """
        if len(samples):
            batches = self.endless(samples, "batches")
            steps = epochs * len(cuts(len(samples), self.batch_size))
            for _ in self.counted(steps, beside(changing, {"own batches": batches}), epochs=epochs):
                yield next(batches)

    def counted(self, steps: int, changing: Changing | None = None, *, epochs: int = 0) -> Iterator[int]:
        """Yield 0 to steps - 1, report progress, and keep a state now and then: a killed run goes on from there.

        Args:
            steps: how many.
            changing: what a step leaves to the next; None: nothing is kept, and a killed run starts anew.
            epochs: how many passes these are, for the report; 0: none.
        """
        part = self.section("steps", changing)
        for step in range(part.restore(), steps):
            yield step
            self.progress(step + 1, steps, f"epoch {step * epochs // steps + 1}/{epochs}" if epochs else "")
            part.keep(step + 1)

    def section(self, name: str, changing: Changing | None) -> Section:
        """Part of this stage that keeps these; one that keeps nothing where there is none to keep."""
        return Checkpointer().section(name, {}) if changing is None else self.checkpointer.section(name, changing)

    def forward(self, model: nn.Module, x: Tensor) -> Tensor:
        """Model's logits in float32, computed in the context's precision."""
        with self.autocast():
            logits: Tensor = compiled(model, self.compile)(x)
        return logits.float()

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Compute the body in the context's precision; weights stay float32."""
        with reduced(self.precision, self.device):
            yield

    def sgd(self, model: nn.Module, lr: float, momentum: float = 0.9, weight_decay: float = 5e-4) -> torch.optim.SGD:
        """SGD over all parameters with the defaults of the Unlearn-Saliency code (momentum .9, decay 5e-4)."""
        return torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)

    def descend(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> float:
        """Take one optimiser step down the loss, and return the loss before it.

        Raises:
            Diverged: the loss is not finite.
        """
        value = self.backward(loss, optimizer)
        optimizer.step()
        return value

    def backward(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> float:
        """Fill fresh gradients of the loss without stepping, for methods that edit gradients; return the loss.

        Raises:
            Diverged: the loss is not finite.
        """
        arrived = copy_to_host_async(loss.detach())
        optimizer.zero_grad(set_to_none=True)
        with tf32(self.precision == "tf32"):
            loss.backward()  # type: ignore[no-untyped-call]
        # Looked at only now, a GPU has the backward pass to do while it waits for what to do next.
        value = arrived().item()
        if not math.isfinite(value):
            raise Diverged(f"the loss became {value}")
        return value


def beside(changing: Changing | None, batches: Changing) -> Changing | None:
    """Everything that changes, RUB's own batches included, whose roles hold a space; None where nothing is kept."""
    return None if changing is None else {**changing, **batches}


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def warmup_cosine(lr: float, step: int, total: int, warmup: int) -> float:
    """Learning rate of a step: linear up over `warmup` steps, then half a cosine down to 0.

    Example:
        >>> [round(warmup_cosine(1.0, step, 4, 2), 2) for step in range(4)]
        [0.5, 1.0, 1.0, 0.5]
    """
    if step < warmup:
        return lr * (step + 1) / warmup
    return lr * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1))) / 2
