"""The verdict of an audit where single samples were forgotten: are they told from images that no model ever saw?"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rub.audits.base import Rate, Rule, Verdict, first_of, percent
from rub.reports.wrecks import DESTROYED
from rub.tasks.classification.verdict import TRUSTED, Estimate

CHANCE = 0.5  # AUC of what is not told apart


@dataclass(frozen=True)
class Signal:
    """What tells forgotten training images from unseen images of their classes: an AUC of each model.

    Attributes:
        title: what it is called.
        original: of the model before unlearning, which shows whether it can tell at all.
        unlearned: of the model that is judged.
        retrained: of the reference, None without one.
    """

    title: str
    original: Estimate
    unlearned: Estimate
    retrained: Estimate | None = None

    @property
    def tells(self) -> bool:
        """Whether it tells that the original was trained on them."""
        return self.original.low > max(CHANCE, self.null.high)

    @property
    def null(self) -> Estimate:
        """What a model has that never saw them: the retrained one's, or chance."""
        return self.retrained or Estimate(CHANCE, CHANCE, CHANCE)

    @property
    def remembered(self) -> bool:
        """Whether the unlearned model is told to have been trained on them, beyond the reference."""
        return self.unlearned.low > self.null.high

    @property
    def conspicuous(self) -> bool:
        """Whether they stand out the other way: less like training images than unseen ones are."""
        return self.unlearned.high < self.null.low

    def __str__(self) -> str:
        values = (("original", self.original), ("unlearned", self.unlearned), ("retrained", self.retrained))
        return ", ".join(f"{role} {x.value:.3f} ({x.low:.3f} to {x.high:.3f})" for role, x in values if x is not None)


@dataclass(frozen=True)
class SampleFigures:
    """The numbers behind a verdict.

    Attributes:
        accuracy: role -> TA, accuracy on test images.
        chance: accuracy of guessing.
        recognised: role -> UA, accuracy on the forgotten training images.
        unseen: role -> accuracy on unseen images of their classes.
        signals: what tells forgotten from unseen images.
        gap: mean distance of the unlearned to the retrained model in UA, RA, TA and MIA; None without one.
    """

    accuracy: Mapping[str, float]
    chance: float
    recognised: Mapping[str, Rate]
    unseen: Mapping[str, Rate]
    signals: tuple[Signal, ...]
    gap: float | None = None

    def kept(self, role: str) -> float:
        """What a model's accuracy lies above chance, as a share of the original's."""
        return (self.accuracy[role] - self.chance) / max(self.accuracy["original"] - self.chance, 1e-9)

    @property
    def expected(self) -> Rate:
        """How many forgotten images a model recognises that never saw them: the retrained one, or of unseen ones."""
        return self.recognised.get("retrained", self.unseen["unlearned"])


def conclude(figures: SampleFigures, budget: str) -> Verdict:
    """The verdict for these figures: the first of these rules that applies.

    1. *destroyed*: of the original's accuracy above chance, less than half is left.
    2. The retrained model that was given is no reference: it classifies less than `TRUSTED` of what the original does.
    3. No signal tells that the original was trained on the forgotten images: it cannot tell of any other model either.
    4. *remembered*: a signal that tells it of the original tells it of the unlearned model too, beyond what it says of
       the retrained model, or beyond chance without one.
    5. *over-forgotten*: fewer of the forgotten images are recognised than of images that were never seen, or a signal
       tells them from those the other way: they stand out.
    6. *no residual found*.

    What a search of inputs finds decides nothing: the class of a forgotten sample was kept, so that its image is most
    often recognised as it is, by a retrained model too.
    """
    telling = [signal for signal in figures.signals if signal.tells]
    remembered = [f"{signal.title}: {signal}" for signal in telling if signal.remembered]
    found, expected = figures.recognised["unlearned"], figures.expected
    below = found.high < expected.low
    apart = [f"{signal.title}: {signal}" for signal in telling if signal.conspicuous]
    ruined = f"its accuracy is {figures.accuracy['unlearned']:.1%}, the original's {figures.accuracy['original']:.1%}"
    reference = "retrained" not in figures.accuracy or figures.kept("retrained") >= TRUSTED
    weak = f"the retrained model is no reference: its accuracy is {figures.accuracy.get('retrained', 0):.1%}"
    rules: tuple[Rule, ...] = (
        (figures.kept("unlearned") < DESTROYED, "destroyed", (f"{ruined}: nothing else is said",)),
        (not reference, "cannot tell", (weak,)),
        (not telling, "cannot tell", (_BLIND,)),
        (bool(remembered), "remembered", (*remembered, *_alone(figures))),
        (below or bool(apart), "over-forgotten", (*_below(figures, below=below), *apart)),
        (True, "no residual found", (*_power(telling), *_alone(figures))),
    )
    return first_of(rules)


_BLIND = (
    "nothing tells the forgotten images from unseen ones even in the original, which was trained on them: nothing can"
    " show whether a model forgot"
)


def _below(figures: SampleFigures, *, below: bool) -> Iterator[str]:
    if below:
        who = "by a retrained model" if "retrained" in figures.recognised else "of unseen images of their classes"
        yield f"{percent(figures.recognised['unlearned'])} of them are recognised, {who} {percent(figures.expected)}"
    yield "they stand out among images that were never seen: whoever looks can tell what was to be forgotten"


def _power(signals: list[Signal]) -> Iterator[str]:
    for one in signals:
        yield f"{one.title}: {one}; an AUC of {max(one.null.high, one.unlearned.high):.3f} would have shown"


def _alone(figures: SampleFigures) -> Iterator[str]:
    if "retrained" not in figures.accuracy:
        yield (
            "without a retrained model, forgotten images are taken to be like unseen ones of their classes: so they are"
            " if they were drawn at random, and need not be if they were chosen"
        )


def told(figures: SampleFigures, budget: str) -> Iterator[str]:
    """The figures as lines of text."""
    yield _line("TA", *(f"{role} {100 * value:.1f} %" for role, value in figures.accuracy.items()))
    for role, rate in figures.recognised.items():
        yield _line(f"recognised, {role}", f"forgotten {percent(rate)}", f"unseen {percent(figures.unseen[role])}")
    for signal in figures.signals:
        yield _line(signal.title, str(signal))
    if figures.gap is not None:
        yield _line("average gap to retrained", f"{100 * figures.gap:.1f} points (UA, RA, TA, MIA SVC)")


def _line(title: str, *values: str) -> str:
    return f"{title:<24} {', '.join(values)}"
