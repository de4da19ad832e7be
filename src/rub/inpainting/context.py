"""What an unlearning method of masked autoencoders receives besides its model and data."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rub.errors import RubError
from rub.images.context import TrainContext
from rub.images.samples import Samples
from rub.inpainting.masks import Mask, make_mask


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
        self, forget: Samples, retain: Samples, epochs: int, *, stream: str = "pairs"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (x_f, x_r), balanced half batches of float32 images in [0, 1], and report progress.

        An epoch is one shuffled, augmented pass over the longer set; the shorter one starts again when it ends.
        """
        total = self.steps(forget, retain, epochs)
        sides = [self._endless(part, self.generator(f"{stream}-{name}"))
                 for name, part in (("forget", forget), ("retain", retain))]  # fmt: skip
        for step in range(total):
            yield next(sides[0]), next(sides[1])
            self.progress(step + 1, total, f"epoch {step * epochs // total + 1}/{epochs}")

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

    def _endless(self, samples: Samples, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield half batches without end; one may hold the last images of a pass and the first of the next."""
        if not len(samples):
            raise RubError("unlearning: an empty set of images; both forget and retain should hold some")
        kept: list[Tensor] = []
        waiting = 0
        while True:
            for x, _ in self.batches(samples, generator, batch_size=self._half):
                kept.append(x)
                waiting += len(x)
                while waiting >= self._half:
                    joined = torch.cat(kept) if len(kept) > 1 else kept[0]
                    yield joined[: self._half]
                    kept = [joined[self._half :]] if len(joined) > self._half else []
                    waiting = sum(len(part) for part in kept)


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
