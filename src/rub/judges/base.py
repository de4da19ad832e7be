"""What a judge is: it looks at pictures and says which of them show a concept, and how sure it is."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Protocol

import torch
from torch import Tensor

from rub.errors import RubError, unknown

Label = int | str
"""What a judge calls a concept: the number of a class, or its name."""
LISTED = 20  # most names that an error lists


@dataclass(frozen=True)
class Judgement:
    """What a judge sees in N pictures.

    Attributes:
        scores: float32 (N, K), one column per class.
        features: float32 (N, D), for FID and KID.
    """

    scores: Tensor
    features: Tensor


class Judge(Protocol):
    """Looks at pictures, and says which show a concept.

    Attributes:
        name: such as ``digits-resnet10``.
        sha256: of its weights.
        told: what it is and how good, in words.
        classes: name of each column of its scores.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def sha256(self) -> str: ...  # noqa: D102

    @property
    def told(self) -> str: ...  # noqa: D102

    @property
    def classes(self) -> tuple[str, ...]: ...  # noqa: D102

    def __call__(self, images: Tensor) -> Judgement:
        """Look at pictures, uint8 (N, 1 or 3, H, W); what it returns is on the CPU."""
        ...

    def knows(self, label: Label) -> bool:
        """Return whether it can tell what is called `label`."""
        ...

    def hits(self, look: Judgement, label: Label) -> Tensor:
        """Return which pictures show what the judge calls `label`, bool (N,).

        Raises:
            RubError: it does not know the label.
        """
        ...

    def score_of(self, look: Judgement, label: Label) -> Tensor:
        """Return how sure it is of that, float32 (N,) in [0, 1]; raises as `hits`."""
        ...


@dataclass(frozen=True)
class JudgeContext:
    """What the function behind a judge receives besides its files.

    Attributes:
        name: of the judge, as reports print it.
        batch_size: pictures per forward pass; does not change results beyond rounding.
        device: where it runs.
        measured: how good it turned out to be, in words that belong into `told`; "" before it was measured.
    """

    name: str
    batch_size: int = 64
    device: str = "cpu"
    measured: str = ""


@dataclass(frozen=True)
class Argmax:
    """A judge whose verdict is the class of the highest logit, among all classes or among some.

    Attributes:
        name: its name.
        sha256: of its weights.
        told: what it is and how good, in words.
        classes: name of each score; commas part several names of one class.
        look: uint8 pictures (N, 1 or 3, H, W) -> logits and features.
        among: columns of the classes at hand; () means all.
    """

    name: str
    sha256: str
    told: str
    classes: tuple[str, ...]
    look: Callable[[Tensor], Judgement]
    among: tuple[int, ...] = ()

    def __call__(self, images: Tensor) -> Judgement:
        """Look at pictures."""
        return self.look(images)

    def knows(self, label: Label) -> bool:
        """Return whether there is such a class, among those at hand."""
        try:
            self.index(label)
        except RubError:
            return False
        return True

    def hits(self, look: Judgement, label: Label) -> Tensor:
        """Return where the concept's score is the highest, bool (N,)."""
        return self._kept(look).argmax(1) == self.index(label)

    def score_of(self, look: Judgement, label: Label) -> Tensor:
        """Return the concept's softmax probability among the classes at hand, float32 (N,)."""
        return self._kept(look).softmax(1)[:, self.index(label)]

    def index(self, label: Label) -> int:
        """Return the column of a label.

        Raises:
            RubError: there is no such class, or it is not among those at hand.
        """
        place = index_of(label, self.classes)
        if self.among and place not in self.among:
            names = ", ".join(self.classes[item] for item in self.among)
            raise RubError(
                f"judge {self.name}: {label} is not among the classes at hand: {names}; add it to judge.among"
            )
        return place

    def _kept(self, look: Judgement) -> Tensor:
        if not self.among:
            return look.scores
        kept = torch.full_like(look.scores, -torch.inf)
        columns = list(self.among)
        kept[:, columns] = look.scores[:, columns]
        return kept


def index_of(label: Label, classes: Sequence[str]) -> int:
    """Return the place of a label: its number, or a name. Case does not matter; dashes and underscores are spaces.

    Raises:
        RubError: there is none, or several classes have this name.

    Example:
        >>> index_of("garbage-truck", ["tench, Tinca tinca", "garbage truck, dustcart"])
        1
    """
    if isinstance(label, int):
        if 0 <= label < len(classes):
            return label
        raise RubError(f"judge: label {label} does not exist; it has labels 0 to {len(classes) - 1}")
    names = [{_plain(name), *map(_plain, name.split(","))} for name in classes]
    places = [place for place, own in enumerate(names) if _plain(label) in own]
    if len(places) > 1:
        numbers = ", ".join(map(str, places))
        raise RubError(f"judge: several classes are called '{label}'; give the number of one: {numbers}")
    if not places:
        raise _no_class(label, Counter(name for own in names for name in own))
    return places[0]


def _no_class(label: str, known: Counter[str]) -> RubError:
    """Build the error for a name that no class has; of a thousand classes it lists the nearest."""
    if len(known) <= LISTED:
        return unknown("label of the judge", label, known)
    near = get_close_matches(_plain(label), known, n=LISTED // 4, cutoff=0)
    return unknown(f"label of the judge ({len(known)} names, the nearest listed)", label, near)


def _plain(name: str) -> str:
    return " ".join(name.replace("-", " ").replace("_", " ").lower().split())
