"""What an attack on a masked autoencoder aims at, and how far a probe may go."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from rub.attacks import base
from rub.errors import RubError
from rub.models.mae.masks import Mask
from rub.models.mae.model import MaskedAutoencoder

GRIDDED, FREE = torch.int16, torch.float16
"""Types of a stored delta: levels of 1/255, or pixel units where the input may be any real image."""


@dataclass(frozen=True)
class Budget:
    """How far a probe may leave its image x, whose pixels are in [0, 1].

    ``"8/255"``: ||delta||_inf <= 8/255, an 8-bit image. ``"unbounded"``: any 8-bit image. ``"free"``: any real image;
    delta is a float16. ``"none"``: the image itself.

    Attributes:
        name: as used in records.

    Example:
        >>> Budget.parse(8), Budget("8/255").eps == 8 / 255, Budget("free").eps
        (Budget(name='8/255'), True, None)
    """

    name: str

    def __post_init__(self) -> None:
        number = re.fullmatch(r"([1-9]\d{0,2})/255", self.name)
        if self.name not in ("none", "unbounded", "free") and not (number and int(number[1]) <= 255):
            raise RubError(f"budget '{self.name}': should be '1/255' to '255/255', 'unbounded', 'free' or 'none'")

    @classmethod
    def parse(cls, value: str | int) -> "Budget":
        """Budget of a name or of a number of levels; 0 and ``"0/255"`` mean ``"none"``.

        Raises:
            RubError: neither.
        """
        name = f"{value}/255" if isinstance(value, int) else value
        return cls("none" if name == "0/255" else name)

    @property
    def levels(self) -> int | None:
        """Eps in 1/255 steps, None where there is no bound."""
        if self.name == "none":
            return 0
        return int(self.name.partition("/")[0]) if "/" in self.name else None

    @property
    def eps(self) -> float | None:
        """Eps as a fraction of the pixel range, None where there is no bound."""
        return None if self.levels is None else self.levels / 255

    @property
    def bounded(self) -> bool:
        """Whether ||delta||_inf has a bound."""
        return self.levels is not None

    @property
    def gridded(self) -> bool:
        """Whether probes are 8-bit images."""
        return self.name != "free"

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Target:
    """What an attack aims at: the unlearned model, and what the original model made of the clean images.

    Attributes:
        model: the unlearned model f_u, frozen, in eval mode.
        mask: m of each image (N rows); both models see the same.
        reference: float32 (N, L - K, P), f(x; m) on the masked patches in pixel space, not clamped, in the order of
            ``mask.hidden``; computed once.
    """

    model: MaskedAutoencoder
    mask: Mask
    reference: Tensor


@dataclass(frozen=True, kw_only=True)
class AttackContext(base.AttackContext):
    """Everything an attack may use besides its target and images; its start is a delta.

    Attributes:
        threshold: a probe is recovered when D <= this, in squared pixel units, >= 0.
    """

    threshold: float


def apply_delta(images: Tensor, delta: Tensor) -> Tensor:
    """Probes x + delta, float32 in pixel units; of a gridded delta exactly the 8-bit image.

    Args:
        images: uint8, any shape.
        delta: int16 levels of 1/255, or floating point in pixel units; same shape.

    Example:
        >>> apply_delta(torch.tensor([255, 10], dtype=torch.uint8), torch.tensor([-255, 41], dtype=torch.int16))
        tensor([0.0000, 0.2000])
    """
    if delta.dtype == GRIDDED:
        return (images.to(GRIDDED) + delta).to(torch.float32) / 255
    return images.to(torch.float32) / 255 + delta.to(torch.float32)


def divergence(predicted: Tensor, reference: Tensor) -> Tensor:
    """D (N,): the mean squared difference over masked patches and their numbers (paper, eq. 2, D = MSE).

    Args:
        predicted: float32 (N, L - K, P) in pixel space.
        reference: same shape.

    Example:
        >>> divergence(torch.ones(2, 3, 4), torch.zeros(2, 3, 4))
        tensor([1., 1.])
    """
    return (predicted - reference).square().mean((1, 2))
