"""What a judge is: a network that looks at generated images, for IS, FID and KID, and says which concept they show."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rub.data.samples import ImageDataset
from rub.errors import RubError, unknown

Label = int | str
"""What a judge calls a concept: the number of a class, or its name."""
LISTED = 20  # most names that an error lists


@dataclass(frozen=True)
class Judgement:
    """What a judge makes of N images, on the CPU.

    Attributes:
        scores: float32 (N, K), one column per class; the logits of a classifier, which the Inception Score reads.
        features: float32 (N, D), for FID and KID.
    """

    scores: Tensor
    features: Tensor


class Judge(Protocol):
    """A frozen network that looks at images.

    Attributes:
        name: such as ``digits-resnet10``.
        sha256: of its weights.
        description: what it is and how good, in words; "" where there is nothing to say.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def sha256(self) -> str: ...  # noqa: D102

    @property
    def description(self) -> str: ...  # noqa: D102

    def __call__(self, images: Tensor) -> Judgement:
        """Scores and features of uint8 images (N, 1 or 3, H, W)."""
        ...


@runtime_checkable
class ConceptJudge(Judge, Protocol):
    """A judge that says which images show a concept.

    Attributes:
        classes: name of each column of its scores.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...  # noqa: D102

    def knows(self, label: Label) -> bool:
        """Whether it can tell what is called `label`."""
        ...

    def hits(self, judgement: Judgement, label: Label) -> Tensor:
        """Which images show what the judge calls `label`, bool (N,).

        Raises:
            RubError: it does not know the label.
        """
        ...

    def score_of(self, judgement: Judgement, label: Label) -> Tensor:
        """How sure it is of that, float32 (N,) in [0, 1]; raises as `hits`."""
        ...


def identity(judge: Judge) -> str:
    """Name and weights of a judge, as records have them: numbers of two judges do not compare."""
    return f"{judge.name}@{judge.sha256[:12]}"


@dataclass(frozen=True)
class JudgeContext:
    """What the function behind a judge receives besides its files.

    Attributes:
        name: of the judge, as reports print it.
        batch_size: images per forward pass; does not change results beyond rounding.
        device: where it runs.
        measured: how good it turned out to be, in words that belong into `description`; "" before it was measured.
        dataset: of the suite, where the judge is one of its own data set.
    """

    name: str
    batch_size: int = 64
    device: str = "cpu"
    measured: str = ""
    dataset: ImageDataset | None = None

    def describe(self, kind: str) -> str:
        """Description of a judge: its kind, and what was measured."""
        return "; ".join(filter(None, (kind, self.measured)))


@dataclass(frozen=True)
class Argmax:
    """A judge whose verdict is the class of the highest logit, among all classes or among some.

    Attributes:
        name: its name.
        sha256: of its weights.
        description: what it is and how good, in words.
        classes: name of each score; commas part several names of one class.
        predict: uint8 images (N, 1 or 3, H, W) -> logits and features.
        among: columns of the classes at hand; () means all.
    """

    name: str
    sha256: str
    description: str
    classes: tuple[str, ...]
    predict: Callable[[Tensor], Judgement]
    among: tuple[int, ...] = ()

    def __call__(self, images: Tensor) -> Judgement:
        """Logits and features of uint8 images."""
        return self.predict(images)

    def knows(self, label: Label) -> bool:
        """Whether there is such a class, among those at hand."""
        with suppress(RubError):
            return self.index(label) >= 0
        return False

    def hits(self, judgement: Judgement, label: Label) -> Tensor:
        """Where the concept's logit is the highest, bool (N,)."""
        return self._logits(judgement).argmax(1) == self.index(label)

    def score_of(self, judgement: Judgement, label: Label) -> Tensor:
        """Softmax probability of the concept among the classes at hand, float32 (N,)."""
        return self._logits(judgement).softmax(1)[:, self.index(label)]

    def index(self, label: Label) -> int:
        """Column of a label."""
        place = index_of(label, self.classes)
        if self.among and place not in self.among:
            names = ", ".join(self.classes[item] for item in self.among)
            raise RubError(
                f"judge {self.name}: {label} is not among the classes at hand: {names}; add it to judge.among"
            )
        return place

    def _logits(self, judgement: Judgement) -> Tensor:
        if not self.among:
            return judgement.scores
        kept = torch.full_like(judgement.scores, -torch.inf)
        columns = list(self.among)
        kept[:, columns] = judgement.scores[:, columns]
        return kept


def index_of(label: Label, classes: Sequence[str]) -> int:
    """Place of a label: its number, or a name. Case does not matter; dashes and underscores are spaces.

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
    # of a thousand classes, the nearest are listed
    if len(known) <= LISTED:
        return unknown("label of the judge", label, known)
    near = get_close_matches(_plain(label), known, n=LISTED // 4, cutoff=0)
    return unknown(f"label of the judge ({len(known)} names, the nearest listed)", label, near)


def _plain(name: str) -> str:
    return " ".join(name.replace("-", " ").replace("_", " ").lower().split())
