"""How far a probe may leave its image: a number of levels, or the text that names another kind. Free of torch."""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

from rub.errors import RubError

if TYPE_CHECKING:
    from torch import Tensor

    from rub.attacks.regions import Region

Kind = Literal["linf", "l2", "patch", "border", "corruption"]
SEARCHED: tuple[Kind, ...] = ("linf", "l2", "patch", "border")  # those that are a `Region`
FORMS = "a whole number of 1/255 (L-inf), l2:0.5, patch:8, patch:8@0x4, border:2 or corruption:3"
_TEXT = re.compile(
    r"(?P<l2>l2:(?P<radius>\d{1,3}(\.\d{1,6})?))|patch:(?P<side>\d{1,4})(@(?P<top>\d{1,4})x(?P<left>\d{1,4}))?"
    r"|border:(?P<width>\d{1,4})|corruption:(?P<severity>[1-5])",
    re.ASCII,
)


@dataclass(frozen=True)
class Budget:
    """How far a probe may leave its image.

    Attributes:
        size: L-inf: eps in 1/255 steps, an integer >= 0 (8 means 8/255; 0: no search). L2: ||delta||_2 in pixel units
            of [0, 1] images. Patch: its side in pixels. Border: its width. Corruption: its severity, 1 to 5.
        kind: which of them.
        place: row and column of a patch's top left pixel; in the middle when None.

    Example:
        >>> Budget(8).name, Budget.of("l2:0.50").name, Budget.of("patch:8@0x4").place
        ('8/255', 'l2:0.5', (0, 4))
    """

    size: int | Fraction
    kind: Kind = "linf"
    place: tuple[int, int] | None = None

    @classmethod
    def of(cls, value: int | str) -> "Budget":
        """The budget that a protocol gives: levels of L-inf, or text.

        Raises:
            RubError: neither.
        """
        if isinstance(value, int) or re.fullmatch(r"\d{1,9}", value, re.ASCII):
            if not 0 <= int(value) <= 255:
                raise RubError(f"eps = {value}/255: should be between 0 and 255 steps of 1/255")
            return cls(int(value))
        found = _TEXT.fullmatch(value)
        if found is None:
            raise RubError(f"budget {value[:60]!r}: should be {FORMS}")
        kind = value.partition(":")[0]
        size = next(Fraction(found[name]) for name in ("radius", "side", "width", "severity") if found[name])
        if not size:
            raise RubError(f"budget '{value}': should be more than 0")
        place = (int(found["top"]), int(found["left"])) if found["top"] else None
        return cls(size if kind == "l2" else int(size), kind, place)  # type: ignore[arg-type]

    @classmethod
    def named(cls, name: str) -> "Budget":
        """The budget of a record, which names L-inf ``8/255``.

        Raises:
            RubError: there is none of this name.
        """
        levels = re.fullmatch(r"(\d{1,3})/255", name, re.ASCII)
        if levels is None and name.isdecimal():
            raise RubError(f"budget '{name[:60]}': should be 1/255 to 255/255, l2:0.5, patch:8, border:2, corruption:3")
        return cls.of(int(levels[1]) if levels else name)

    @property
    def name(self) -> str:
        """As records have it."""
        return f"{self.size}/255" if self.kind == "linf" else str(self.given)

    @property
    def given(self) -> int | str:
        """As a protocol gives it."""
        if self.kind == "linf":
            return int(self.size)
        place = "" if self.place is None else f"@{self.place[0]}x{self.place[1]}"
        number = f"{float(self.size):.6f}".rstrip("0").rstrip(".") if self.kind == "l2" else self.size
        return f"{self.kind}:{number}{place}"

    @property
    def order(self) -> tuple[str, float, tuple[int, int]]:
        """To sort by: L-inf first, then the other kinds by name, each by size."""
        return "" if self.kind == "linf" else self.kind, float(self.size), self.place or (-1, -1)

    @property
    def levels(self) -> int:
        """How far one pixel may be changed at most, in 1/255 steps; of L-inf, its size."""
        return min(int(self.size if self.kind == "linf" else 255 * Fraction(self.eps)), 255)

    @property
    def eps(self) -> float:
        """Radius as a fraction of the pixel range [0, 1]: of L-inf or L2; 1 where any value is allowed."""
        if self.kind == "linf":
            return self.levels / 255
        return float(self.size) if self.kind == "l2" else 1.0

    @property
    def region(self) -> "Region":
        """The set of changes: its projection, steepest step, random points and rounding.

        Raises:
            RubError: corruptions are no set around an image that could be searched.
        """
        from rub.attacks.regions import L2, Border, Linf, Patch

        match self.kind:
            case "linf":
                return Linf(self.eps)
            case "l2":
                return L2(Fraction(self.size))
            case "patch":
                return Patch(int(self.size), self.place)
            case "border":
                return Border(int(self.size))
            case "corruption":
                raise RubError(f"budget {self.name}: cannot be searched; it takes the attack corruptions")

    def confine(self, x: "Tensor", clean: "Tensor") -> "Tensor":
        """Images x (N, C, H, W), floats, moved into the budget around clean ones in [0, 1]."""
        return self.region.confine(x, clean)

    def holds(self, probes: "Tensor", images: "Tensor", ids: "Tensor") -> "Tensor":
        """Whether each 8-bit probe lies within the budget of its image, bool (N,).

        A corrupted image lies within where it is the image itself, or one of `rub.attacks.corruptions` of it, up to
        2/255 per pixel: decoders and sums differ so much between machines.

        Args:
            probes: integers in 1/255, (N, C, H, W).
            images: uint8, likewise.
            ids: int64 (N,), which decide the random numbers of corruptions.
        """
        import torch

        from rub.attacks.corruptions import is_corrupted

        def within(part: slice) -> "Tensor":
            if self.kind == "corruption":
                return is_corrupted(probes[part], images[part], ids[part], int(self.size))
            return self.region.holds(probes[part].to(torch.int16) - images[part])

        # copies of all take much memory
        return torch.cat([within(slice(start, start + 256)) for start in range(0, len(images), 256)])

    def contains(self, other: "Budget") -> bool:
        """Whether all that lies within another, smaller budget lies within this one.

        Example:
            >>> Budget(8).contains(Budget(4)), Budget.of("l2:1").contains(Budget(4))
            (True, False)
        """
        alike = self.kind == other.kind != "corruption" and self.place == other.place
        return alike and 0 < other.size < self.size

    def check(self, height: int, width: int) -> None:
        """Refuse a patch or border that leaves nothing of an image untouched, or does not fit into it."""
        if self.kind not in ("patch", "border"):
            return
        size = int(self.size) * (2 if self.kind == "border" else 1)
        top, left = self.place or (0, 0)
        if size >= min(height, width) or top + size > height or left + size > width:
            raise RubError(f"budget {self.name}: does not fit into images of {height} x {width} px")

    def __str__(self) -> str:
        return self.name if self.size else "none"
