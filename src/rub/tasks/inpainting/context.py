"""What an unlearning method of masked autoencoders receives besides its model and data."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rub.data.samples import Samples
from rub.models.mae.masks import Mask, make_mask
from rub.pipeline.checkpointing import Changing
from rub.training.context import TrainContext, beside


@dataclass(frozen=True, kw_only=True)
class UnlearnContext(TrainContext):
    """Everything an unlearning method may use besides its model and data; the rest is in `TrainContext`.

    Attributes:
        mask_ratio: fraction of masked patches, inside (0, 1).
    """

    mask_ratio: float = 0.75

    def masks(self, count: int, patches: int, generator: torch.Generator) -> Mask:
        """Fresh random masks for `count` images of `patches` patches, on the device."""
        return make_mask(torch.rand(count, patches, generator=generator), self.mask_ratio).to(self.device)

    def steps(self, forget: Samples, retain: Samples, epochs: int) -> int:
        """Number of batches that `pairs` yields."""
        return epochs * math.ceil(max(len(forget), len(retain)) / self._half)

    def pairs(
        self, forget: Samples, retain: Samples, epochs: int, changing: Changing | None = None, *, stream: str = "pairs"
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (step, x_f, x_r), balanced half batches of float32 images in [0, 1], and report progress.

        An epoch is one shuffled, augmented pass over the longer set; the shorter one starts again when it ends. With
        `changing`, what else a step leaves to the next, a state is kept now and then, see `counted`.
        """
        sets = {"forget": forget, "retain": retain}
        halves = {
            name: self.endless(samples, f"{stream}-{name}", self._half, even=True) for name, samples in sets.items()
        }
        own = {f"{name} batches": batches for name, batches in halves.items()}
        for step in self.counted(self.steps(forget, retain, epochs), beside(changing, own), epochs=epochs):
            yield step, next(halves["forget"])[0], next(halves["retain"])[0]

    def adamw(
        self, parameters: Iterable[tuple[str, nn.Parameter]], lr: float, weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.95),
    ) -> torch.optim.AdamW:  # fmt: skip
        """AdamW with the defaults of MAE's training (decay .05 on matrices only, betas .9 and .95)."""
        trainable = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
        matrices = [p for _, p in trainable if p.ndim > 1 and p.shape[:2] != (1, 1)]
        others = [p for _, p in trainable if p.ndim <= 1 or p.shape[:2] == (1, 1)]  # biases, norms and the two tokens
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=lr, betas=betas)

    @property
    def _half(self) -> int:
        return max(self.batch_size // 2, 1)
