"""Where a search may go around each input: balls of two norms, and parts of the image where any value is allowed.

Every function is per sample (leading axis N), like those of `rub.attacks.linf`.
"""

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from rub.attacks.linf import column, project

CLOSE = 1 - 1e-5  # of a length: float32 sums of many squares are off by less
HALVINGS = 10  # of the interval in which the threshold of rounding lies


class Region:
    """A set of changes delta around 0; what a rule of search and its harness ask of it. By itself: an L-infinity ball.

    Attributes:
        eps: its radius in pixel units of [0, 1] images; step sizes are shares of it.
    """

    eps: float

    def near(self, delta: Tensor) -> Tensor:
        """The nearest change to delta (N, C, H, W) in the set, before the pixel range is looked at."""
        return delta.clamp(-self.eps, self.eps)

    def steepest(self, direction: Tensor) -> Tensor:
        """The step of length 1 in the set's norm that goes furthest along a direction (N, ...)."""
        return direction.sign()

    def draw(self, u: Tensor) -> Tensor:
        """A random change from uniform numbers u in [0, 1), (N, ...); `near` of it is in the set."""
        return self.eps * (2 * u - 1)

    def whole(self, levels: Tensor) -> Tensor:
        """Whole numbers near changes of the set, both in steps of 1/255, that are in the set too."""
        return levels.round()

    def holds(self, levels: Tensor) -> Tensor:
        """Whether integer changes (N, C, H, W), in steps of 1/255, are in the set, bool (N,); exact."""
        return levels.abs().flatten(1).amax(1) <= round(255 * self.eps)

    def confine(self, x: Tensor, clean: Tensor) -> Tensor:
        """P(x): the change of `clean` moved into the set, then the image into [0, 1], which leaves no set here."""
        return (clean + self.near(x - clean)).clamp(0.0, 1.0)

    def stored(self, x: Tensor, clean: Tensor) -> Tensor:
        """Points of the set around `clean`, floats in [0, 1], as uint8 images that are in it."""
        return (x * 255).round_().to(torch.uint8)

    def step(self, x: Tensor, direction: Tensor, clean: Tensor, step_size: float | Tensor) -> Tensor:
        """P(x - step_size * the steepest step along `direction`), a step down a loss; its size in pixel units."""
        return self.confine(x - step_size * self.steepest(direction), clean)


@dataclass(frozen=True)
class Linf(Region):
    """||delta||_inf <= eps."""

    eps: float

    def confine(self, x: Tensor, clean: Tensor) -> Tensor:
        """The nearest point."""
        return project(x, clean, self.eps)


@dataclass(frozen=True)
class L2(Region):
    """||delta||_2 <= eps, over all pixels and channels, as in Madry et al. 2018 and Croce & Hein 2020.

    As in their code, a change is scaled into the ball before the image is clipped: what comes out is in both, but not
    always the nearest point of both. An image is stored with each change rounded to a whole level, away from 0 only
    where the ball allows it: changes with the largest fractions first, at one threshold per image, from 1/2 upwards.

    Attributes:
        exact: eps as it is written, so that 255^2 eps^2 is known exactly.
    """

    exact: Fraction

    @property
    def eps(self) -> float:  # type: ignore[override]
        """Radius in pixel units."""
        return float(self.exact)

    @property
    def limit(self) -> int:
        """The largest sum of squared levels in the ball."""
        return int((255 * self.exact) ** 2)

    def near(self, delta: Tensor) -> Tensor:
        """The nearest change, on the way to 0."""
        length = torch.linalg.vector_norm(delta.flatten(1), dim=1)
        return delta * column((self.eps / length.clamp_min(1e-12)).clamp(max=1.0), delta)

    def steepest(self, direction: Tensor) -> Tensor:
        """Direction / ||direction||_2, and 0 where it is 0."""
        length = torch.linalg.vector_norm(direction.flatten(1), dim=1)
        return direction / column(length.clamp_min(torch.finfo(direction.dtype).tiny), direction)

    def draw(self, u: Tensor) -> Tensor:
        """A point of the sphere: a normal vector, by the inverse of its distribution function, scaled to eps."""
        return self.eps * self.steepest(torch.erfinv((2 * u - 1).clamp(-1 + 1e-6, 1 - 1e-6)))

    def whole(self, levels: Tensor) -> Tensor:
        """Rounded with the lowest threshold that stays in the ball; towards 0 is always inside."""
        size = levels.abs() * CLOSE
        floor = size.floor()
        part = size - floor
        low = torch.full((len(levels),), 0.5, device=levels.device)

        def rounded(threshold: Tensor) -> Tensor:
            return floor + (part >= column(threshold, part))

        best = torch.where(self._inside(rounded(low)), low, 1.0)
        for _ in range(HALVINGS):
            middle = (low + best) / 2
            inside = self._inside(rounded(middle))
            low, best = torch.where(inside, low, middle), torch.where(inside, middle, best)
        return rounded(best) * levels.sign()

    def holds(self, levels: Tensor) -> Tensor:
        """The sum of squares against its limit, in whole numbers."""
        return self._inside(levels)

    def stored(self, x: Tensor, clean: Tensor) -> Tensor:
        """8-bit images whose changes are rounded as `whole` does."""
        origin = (clean * 255).round()
        return (origin + self.whole(x * 255 - origin)).clamp_(0, 255).to(torch.uint8)

    def _inside(self, levels: Tensor) -> Tensor:
        return levels.to(torch.int64).square().flatten(1).sum(1) <= self.limit


class Masked(Region):
    """Any values inside a part of the image, none outside; steps are shares of the whole pixel range."""

    eps = 1.0

    def mask(self, height: int, width: int) -> Tensor:
        """Where pixels may change, bool (H, W)."""
        raise NotImplementedError

    def near(self, delta: Tensor) -> Tensor:
        """The change inside the mask."""
        return delta.clamp(-1, 1) * self.mask(*delta.shape[-2:]).to(delta)

    def holds(self, levels: Tensor) -> Tensor:
        """No change outside the mask."""
        return ~((levels != 0) & ~self.mask(*levels.shape[-2:]).to(levels.device)).flatten(1).any(1)


@dataclass(frozen=True)
class Patch(Masked):
    """A square of `side` pixels whose top left pixel is at `place` (row, column); in the middle when None."""

    side: int
    place: tuple[int, int] | None = None

    def mask(self, height: int, width: int) -> Tensor:
        """True in the square."""
        top, left = self.place or ((height - self.side) // 2, (width - self.side) // 2)
        inside = torch.zeros(height, width, dtype=torch.bool)
        inside[top : top + self.side, left : left + self.side] = True
        return inside


@dataclass(frozen=True)
class Border(Masked):
    """A frame of `width` pixels along the four sides."""

    width: int

    def mask(self, height: int, width: int) -> Tensor:
        """True in the frame."""
        frame = torch.ones(height, width, dtype=torch.bool)
        frame[self.width : height - self.width, self.width : width - self.width] = False
        return frame


def region_of(eps: "float | Region") -> Region:
    """A region as it is; of a number, the L-infinity ball of that radius in pixel units."""
    return eps if isinstance(eps, Region) else Linf(eps)
