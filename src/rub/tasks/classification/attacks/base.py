"""What an attack on a classifier aims at, and how far a probe may go."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from rub.attacks.base import Probes


@dataclass(frozen=True)
class Budget:
    """How far a probe may leave its image: ||delta||_inf <= eps, with eps in pixel space of [0, 1] images.

    Attributes:
        levels: eps in 1/255 steps, an integer >= 0 (8 means 8/255).
    """

    levels: int

    @property
    def eps(self) -> float:
        """Eps as a fraction of the pixel range [0, 1]."""
        return self.levels / 255

    def __str__(self) -> str:
        return f"{self.levels}/255" if self.levels else "none"


@dataclass(frozen=True)
class Target:
    """What an attack aims at: the unlearned model, and what the original model said of the clean images.

    Attributes:
        model: the unlearned model f_u, frozen, in eval mode, giving raw logits of [0, 1] images.
        labels: int64 (N,), the label of each image: a probe that is classified so is *recovered*.
        reference: float32 (N, C), the original model's logits f(x) of the clean images, computed once.
        features: float32 (N, D), the original model's penultimate features of the clean images.
    """

    model: nn.Module
    labels: Tensor
    reference: Tensor
    features: Tensor


Attack = Callable[..., Probes | Tensor]
"""The best probe of each sample, or all that a search knows of it."""
