"""What an unlearning method of masked autoencoders receives besides its model and data."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rub.data.samples import Samples
from rub.models.mae.masks import Mask, make_mask
from rub.pipeline.checkpointing import Changing
from rub.training.context import Endless, TrainContext, beside


@dataclass(frozen=True, kw_only=True)
class UnlearnContext(TrainContext):
    """Everything an unlearning method may use besides its model and data; the rest is in `TrainContext`.

    Attributes:
        mask_ratio: fraction of masked patches, inside (0, 1).
    """

    mask_ratio: float = 0.75

    def masks(self, count: int, patches: int, generator: torch.Generator) -> Mask:
        """Return fresh random masks for `count` images of `patches` patches, on the device."""
        return make_mask(torch.rand(count, patches, generator=generator), self.mask_ratio).to(self.device)

    def steps(self, forget: Samples, retain: Samples, epochs: int) -> int:
        """Return how many batches `pairs` yields."""
        return epochs * math.ceil(max(len(forget), len(retain)) / self._half)

    def pairs(
        self,
        forget: Samples,
        retain: Samples,
        epochs: int,
        changing: Changing | None = None,
        *,
        stream: str = "pairs",
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (step, x_f, x_r), balanced half batches of float32 images in [0, 1], and report progress.

        An epoch is one shuffled, augmented pass over the longer set; the shorter one starts again when it ends. With
        `changing`, what else a step leaves to the next, a state is kept now and then, see `counted`.
        """
        wrong, right = (
            Whole(self, samples, self._half, self.generator(f"{stream}-{name}"))
            for name, samples in (("forget", forget), ("retain", retain))
        )
        total = self.steps(forget, retain, epochs)
        own = {"forget batches": wrong, "retain batches": right}
        for step in self.counted(total, beside(changing, own), epochs=epochs):
            yield step, next(wrong), next(right)

    def adamw(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        lr: float,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.95),
    ) -> torch.optim.AdamW:
        """Return AdamW with the defaults of MAE's training (decay .05 on matrices only, betas .9 and .95)."""
        trainable = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
        matrices = [p for _, p in trainable if p.ndim > 1 and p.shape[:2] != (1, 1)]
        others = [p for _, p in trainable if p.ndim <= 1 or p.shape[:2] == (1, 1)]  # biases, norms and the two tokens
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=lr, betas=betas)

    @property
    def _half(self) -> int:
        return max(self.batch_size // 2, 1)


class Whole:
    """Images without end, always as many at a time, which go on where a state was kept.

    A batch may hold the last images of a pass and the first of the next.
    """

    def __init__(self, context: TrainContext, samples: Samples, size: int, generator: torch.Generator) -> None:
        """Begin with the first batch.

        Raises:
            RubError: there are no images.
        """
        self.batches, self.size = Endless(context, samples, generator, size), size
        self.waiting = torch.empty(0, device=context.device)

    def __iter__(self) -> Iterator[Tensor]:
        """Return itself."""
        return self

    def __next__(self) -> Tensor:
        """Return the next images, float32 (size, C, H, W) in [0, 1]."""
        while len(self.waiting) < self.size:
            x, _ = next(self.batches)
            self.waiting = torch.cat([self.waiting, x]) if len(self.waiting) else x
        batch, self.waiting = self.waiting[: self.size], self.waiting[self.size :]
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return where the passes stand, and the images that were made but not yet given."""
        return {"batches": self.batches.state_dict(), "waiting": self.waiting.clone()}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go on from `state_dict`."""
        self.batches.load_state_dict(state["batches"])
        self.waiting = state["waiting"].to(self.waiting.device)


def warmup_cosine(lr: float, step: int, total: int, warmup: int) -> float:
    """Return the learning rate of a step: linear up over `warmup` steps, then half a cosine down to 0.

    Args:
        lr: peak, > 0.
        step: 0 to total - 1.
        total: number of steps.
        warmup: number of warm-up steps, 0 to total.

    Example:
        >>> [round(warmup_cosine(1.0, step, 4, 2), 2) for step in range(4)]
        [0.5, 1.0, 1.0, 0.5]
    """
    if step < warmup:
        return lr * (step + 1) / warmup
    return lr * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1))) / 2
