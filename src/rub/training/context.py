"""What everything that trains on images shares: named random streams, augmentation, batches, steps."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rub.data.samples import Samples, to_unit
from rub.errors import Diverged, RubError
from rub.pipeline.callback import Progress, silent
from rub.pipeline.checkpointing import AttributeState, Changing, Checkpointer, Section
from rub.training.device import compiled, copy_to_host_async, on_device, tf32


@dataclass(frozen=True)
class Augmentation:
    """Random crop with zero padding and horizontal flip, drawn per batch from a generator.

    Attributes:
        padding: pixels of zero padding on each side before the crop; 0 switches the crop off.
        flip: whether to mirror each image with probability 1/2 (off for digits, where it changes the class).
    """

    padding: int = 4
    flip: bool = True

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return augmented images of the same shape (N, C, H, W) and dtype."""
        count, _, height, width = images.shape
        if self.padding == 0 and not self.flip:
            return images
        pad = self.padding
        shift, mirrored = self.draw(count, generator)
        rows = torch.arange(height) + shift[0, :, None]
        columns = torch.arange(width) + shift[1, :, None]
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
        device = images.device
        padded = F.pad(images, (pad, pad, pad, pad))
        batch = torch.arange(count, device=device)[:, None, None]
        picked = padded[batch, :, rows.to(device)[:, :, None], columns.to(device)[:, None, :]]
        return picked.permute(0, 3, 1, 2)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return what a batch of so many images draws: shifts, int64 (2, N), and which are mirrored, bool (N,)."""
        if self.padding == 0 and not self.flip:
            return torch.zeros(2, count, dtype=torch.int64), torch.zeros(count, dtype=torch.bool)
        shift = torch.randint(0, 2 * self.padding + 1, (2, count), generator=generator)
        return shift, torch.randint(0, 2, (count,), generator=generator).bool() & self.flip


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
        """Return a CPU generator whose numbers depend on the seed and the name of the stream only."""
        return seeded(self.seed, stream)

    def batches(
        self,
        samples: Samples,
        generator: torch.Generator,
        *,
        batch_size: int | None = None,
        shuffle: bool = True,
        augment: bool = True,
        skip: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (x, y) over one pass of the samples: x float32 (B, C, H, W) in [0, 1], y int64 (B,), on the device.

        The last, smaller batch is kept unless it holds a single image (batch normalisation needs two). The first
        `skip` batches are drawn from the generator, but not made.
        """
        count, size = len(samples), batch_size or self.batch_size
        samples = on_device(samples, self.device)
        order = torch.randperm(count, generator=generator) if shuffle else torch.arange(count)
        for start in range(0, count, size):
            index = order[start : start + size]
            if len(index) == 1 and count > 1 and shuffle:
                continue
            if start < skip * size:
                if augment:
                    self.augmentation.draw(len(index), generator)
                continue
            images = samples.take(index).to(self.device)
            if augment:
                images = self.augmentation(images, generator)
            x = to_unit(images).contiguous(memory_format=torch.channels_last)
            yield x, samples.labels[index].to(self.device)

    def epochs(self, samples: Samples, epochs: int, changing: Changing | None = None) -> "Epochs":
        """Return the batches of several shuffled, augmented passes over the samples; they report progress.

        With `changing`, what else a step leaves to the next, they keep a state now and then, and a killed run goes on
        from it; without, it starts anew.
        """
        return Epochs(self, samples, epochs, changing)

    def endless(self, samples: Samples, stream: str) -> "Endless":
        """Return the batches of shuffled, augmented passes over samples without end, in the order of a named stream.

        Raises:
            RubError: there are no images.
        """
        return Endless(self, samples, self.generator(stream))

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
        """Return the part of this stage that keeps these; one that keeps nothing where there is none to keep."""
        return Checkpointer().section(name, {}) if changing is None else self.checkpointer.section(name, changing)

    def forward(self, model: nn.Module, x: Tensor) -> Tensor:
        """Return the model's logits in float32, computed in the context's precision."""
        with self.autocast():
            logits: Tensor = compiled(model, self.compile)(x)
        return logits.float()

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Compute the body in the context's precision; weights stay float32."""
        bfloat16 = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")
        with tf32(self.precision == "tf32"), bfloat16:
            yield

    def sgd(self, model: nn.Module, lr: float, momentum: float = 0.9, weight_decay: float = 5e-4) -> torch.optim.SGD:
        """Return SGD over all parameters with the defaults of the Unlearn-Saliency code (momentum .9, decay 5e-4)."""
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
    """Return what changes with RUB's own batches, whose roles hold a space; None where nothing is to be kept."""
    return None if changing is None else {**changing, **batches}


class Epochs(AttributeState):
    """The batches of several passes over samples, which know where they stand: they go on where a state was kept.

    Attributes:
        epoch: passes that are over.
        place: batches of the present pass that were yielded.
        opening: state of the generator at the start of this pass.
    """

    changing = ("epoch", "place", "opening")

    def __init__(self, context: TrainContext, samples: Samples, epochs: int, changing: Changing | None) -> None:
        """Made by `TrainContext.epochs`."""
        self.context, self.samples, self.epochs, self.others = context, samples, epochs, changing
        self.generator = context.generator("batches")
        self.epoch, self.place, self.opening = 0, 0, self.generator.get_state()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (x, y) as `TrainContext.batches` does."""
        part = self.context.section("epochs", beside(self.others, {"own batches": self}))
        part.restore()
        passes = math.ceil(len(self.samples) / self.context.batch_size)
        self.generator.set_state(self.opening)
        while self.epoch < self.epochs:
            for batch in self.context.batches(self.samples, self.generator, skip=self.place):
                self.place += 1
                yield batch
                done = self.epoch * passes + self.place
                self.context.progress(done, self.epochs * passes, f"epoch {self.epoch + 1}/{self.epochs}")
                part.keep(done)
            self.epoch, self.place, self.opening = self.epoch + 1, 0, self.generator.get_state()


class Endless(AttributeState):
    """Batches without end, in shuffled, augmented passes over samples; they go on where a state was kept.

    Attributes:
        place: batches of this pass that were given.
        opening: state of the generator at the start of this pass.
    """

    changing = ("place", "opening")

    def __init__(
        self, context: TrainContext, samples: Samples, generator: torch.Generator, batch_size: int | None = None
    ) -> None:
        """Begin with the first batch.

        Raises:
            RubError: there are no images, or batches of one, which `TrainContext.batches` leaves out.
        """
        if not len(samples):
            raise RubError("unlearning: an empty set of images; both forget and retain should hold some")
        if (batch_size or context.batch_size) == 1 and len(samples) > 1:
            raise RubError("unlearning: batches of one image; each set should give two at a time")
        self.context, self.samples, self.generator, self.batch_size = context, samples, generator, batch_size
        self.place, self.opening = 0, generator.get_state()
        self._pass: Iterator[tuple[Tensor, Tensor]] | None = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Return itself."""
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        """Return (x, y) as `TrainContext.batches` does."""
        while True:
            if self._pass is None:
                self.generator.set_state(self.opening)
                self._pass = self.context.batches(
                    self.samples, self.generator, batch_size=self.batch_size, skip=self.place
                )
            for batch in self._pass:
                self.place += 1
                return batch
            self._pass, self.place, self.opening = None, 0, self.generator.get_state()


class Shuffled:
    """Rows of a set, so many at a time, in shuffled passes without end; it goes on where a state was kept.

    A batch may hold the last rows of one pass and the first of the next.

    Example:
        >>> rows = Shuffled(3, 2, torch.Generator().manual_seed(0))
        >>> sorted(torch.cat([next(rows) for _ in range(3)]).tolist())
        [0, 0, 1, 1, 2, 2]
    """

    def __init__(self, count: int, size: int, generator: torch.Generator) -> None:
        """Take the number of rows, at least 1, and of those of a batch."""
        self.count, self.size, self.generator = count, size, generator
        self.order = torch.empty(0, dtype=torch.int64)

    def __iter__(self) -> Iterator[Tensor]:
        """Return itself."""
        return self

    def __next__(self) -> Tensor:
        """Return the next rows, int64 (size,)."""
        while len(self.order) < self.size:
            self.order = torch.cat([self.order, torch.randperm(self.count, generator=self.generator)])
        rows, self.order = self.order[: self.size], self.order[self.size :]
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Return what is left of this pass, and the generator's state."""
        return {"order": self.order.clone(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go on from `state_dict`."""
        self.order = state["order"]
        self.generator.set_state(state["generator"])


def seeded(seed: int, stream: str) -> torch.Generator:
    """Return a CPU generator for a named stream: seed = first 63 bits of SHA-256(``"seed:stream"``)."""
    digest = sha256(f"{seed}:{stream}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
