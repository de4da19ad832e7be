"""The verdict of an audit: from figures to one of six outcomes, with the sentences that say why."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from rub.audits.base import MARGIN, MOVING, Rate, Rule, Verdict, first_of, percent
from rub.reports.wrecks import DESTROYED

TRUSTED = 0.9  # of the same: what a retrained model has to keep to be a reference
SELECTIVE = 0.5  # log2: the own class within 71 % of the change that another one takes
REACHED = 0.05  # a class that this share of images or more reaches is not out of reach
STRONG = 0.9  # share of images on which a search reaches another class: it would reach this one too
STANDS = 0.02  # a gauge-free AUC this near the original's stands where it stood


@dataclass(frozen=True)
class Estimate:
    """A mean over images with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Layer:
    """A measure of what is left behind the output: of the original, the unlearned, and the retrained model.

    Attributes:
        title: what it is called.
        original: of the model before unlearning.
        unlearned: of the model that is judged.
        retrained: of the reference, None without one.
        margin: original and retrained have to differ by this much for it to tell anything.
    """

    title: str
    original: float
    unlearned: float
    retrained: float | None = None
    margin: float = MARGIN

    @property
    def remains(self) -> bool:
        """Whether the unlearned model is nearer to the original than to the retrained one."""
        if self.retrained is None or abs(self.original - self.retrained) < self.margin:
            return False
        return abs(self.unlearned - self.original) < abs(self.unlearned - self.retrained)


@dataclass(frozen=True)
class Contrast:
    """The paired contrast of one model on forgotten training images; see `rub.tasks.classification.contrast`.

    Attributes:
        own: log2 of the radius in 1/255 towards the image's own class.
        other: the same towards another class.
        selectivity: log2(other / own) per image.
        reached: share of images that reach their own class within the change that takes 9 of 10 to another class.
        other_reached: share of images that reach another class at all.
        count: number of images.
    """

    own: Estimate
    other: Estimate
    selectivity: Estimate
    reached: Rate
    other_reached: Rate
    count: int


@dataclass(frozen=True)
class Figures:
    """The numbers behind a verdict.

    Attributes:
        accuracy: role -> TA, accuracy on test images of the classes that were kept.
        chance: accuracy of guessing among the kept classes.
        known: UA of the original on clean forget images.
        clean: UA of the unlearned model on clean forget images.
        contrast: of the unlearned model.
        attacked: budget -> UA of the unlearned model on 8-bit probes of the main attack.
        corrupted: severity -> the same after the best of common corruptions, without an adversary; no rule reads it.
        converged: whether the main attack had levelled off at its largest budget.
        said: UA of the retrained model on clean forget images, None without one.
        log_odds: the gauge-free score of the head.
        transplant: UA on unseen images with the original's last layer on the model's features.
        transplant_accuracy: TA with that layer, of the unlearned model: whether it fits the features at all.
        membership: what membership attacks say of the forget set; no rule reads it.
        normalisation: what inputs are normalised by, as far as it is known.
        layers: what needs a retrained model to be read: refitted head, probe, prototypes, relearning.
    """

    accuracy: Mapping[str, float]
    chance: float
    known: Rate
    clean: Rate
    contrast: Contrast
    attacked: Mapping[str, Rate]
    converged: bool
    said: Rate | None = None
    log_odds: Layer | None = None
    transplant: Layer | None = None
    transplant_accuracy: float | None = None
    layers: tuple[Layer, ...] = ()
    membership: tuple[Layer, ...] = ()
    corrupted: Mapping[str, Rate] = field(default_factory=dict)
    attack: str = "uma"
    normalisation: str = ""

    def kept(self, accuracy: float) -> float:
        """What an accuracy on kept classes lies above chance, as a share of the original's."""
        return (accuracy - self.chance) / max(self.accuracy["original"] - self.chance, 1e-9)


def conclude(figures: Figures, budget: str) -> Verdict:
    """The verdict for these figures: the first of these rules that applies.

    1. The original recognises fewer than half of the forget images: nothing can be said.
    2. *destroyed*: of the original's accuracy above chance on kept classes, less than half is left.
    3. *recovered*: the unlearned model recognises at least half of the clean forget images, or their own class is
       nearer than another one: the mean selectivity is `SELECTIVE` or more, and its interval excludes 0.
    4. The search reaches no other class on most images: it says nothing about the own one.
    5. Some images reach their class, but the interval of the selectivity holds 0 and `SELECTIVE`: too few images.
    6. *ordinary*: some images reach their class where others are reached, no more easily than those.
    7. *hidden*: the class is out of reach, but the head (gauge-free AUC within `STANDS` of the original's) or the
       features (the original's last layer reads at least half as much from them) have it still, or the refitted head,
       the probe, prototypes or relearning are nearer to the original's than to a retrained model's.
    8. The attack was still improving, and the search reaches another class on fewer than `STRONG` of the images, so
       that nothing shows that it is strong enough: nothing can be said.
    9. *no residual found*.

    A retrained model is asked first whether it classifies what it kept and does not know the class; else it is left
    out. It decides nothing about the output, where the image's own other class is the reference.
    """
    contrast, selectivity, reference = figures.contrast, figures.contrast.selectivity, _reference(figures)
    lying = tuple(_behind(figures, trusted=reference is None))
    facts = (_said(contrast), *([reference] if reference else ()))
    left, before = figures.accuracy["unlearned"], figures.accuracy["original"]
    unknown = f"the original model itself recognises only {percent(figures.known)} of the forget images"
    ruined = f"its accuracy on kept classes is {left:.1%}, the original's {before:.1%}: nothing else is said"
    few = f"N = {contrast.count} images are too few to say whether that is more easily than another class (--samples)"
    selective = selectivity.value >= SELECTIVE and selectivity.low > 0
    unsure = selectivity.low <= 0 and selectivity.high >= SELECTIVE
    reached = contrast.reached.low > REACHED
    rules: tuple[Rule, ...] = (
        (figures.known.low < 0.5, "cannot tell", (unknown,)),
        (figures.kept(left) < DESTROYED, "destroyed", (ruined,)),
        (figures.clean.low >= 0.5, "recovered", (*facts, "it was not forgotten in the first place")),
        (selective, "recovered", (*facts, _BACK)),
        (contrast.other_reached.value < 0.5, "cannot tell", (*facts, _BLIND)),
        (reached and unsure, "cannot tell", (*facts, few)),
        (reached, "ordinary", (*facts, _ORDINARY)),
        (bool(lying), "hidden", (*facts, *lying, _HIDDEN)),
        (not figures.converged and contrast.other_reached.value < STRONG, "cannot tell", (*facts, MOVING)),
        (True, "no residual found", (*facts, *_power(figures))),
    )
    return first_of(rules)


_BACK = "a change of the input brings the class back more easily than it makes any other class of the same image"
_ORDINARY = (
    "its own class is as any other to it: alive, but the images are no more recognised as it than as something else;"
    " a model that never saw the class cannot be brought to say it"
)
_HIDDEN = "no change of the input brings it back, but the knowledge is still in the weights"
_BLIND = "the search brings most images to no other class either (masked gradients?): it says nothing about this one"


def _said(contrast: Contrast) -> str:
    change = f"{2**-contrast.selectivity.value:.2g} times the change that another class of the same image takes"
    return f"{percent(contrast.reached)} of images reach their own class where 90 % reach another; it takes {change}"


def _reference(figures: Figures) -> str | None:
    """Why a retrained model that was given is no reference; None where it is one, or none was given."""
    if figures.said is None:
        return None
    if figures.kept(figures.accuracy["retrained"]) < TRUSTED:
        return (
            f"the retrained model is no reference: its accuracy on kept classes is {figures.accuracy['retrained']:.1%},"
            f" the original's {figures.accuracy['original']:.1%}"
        )
    if figures.said.low > REACHED:
        return f"the retrained model is no reference: it recognises {percent(figures.said)} of the forget images"
    return None


def _behind(figures: Figures, *, trusted: bool) -> Iterator[str]:
    """What is left behind the output, a sentence each."""
    head, swap = figures.log_odds, figures.transplant
    telling = head is not None and not (trusted and head.retrained and head.retrained >= head.original - STANDS)
    if head is not None and telling and head.unlearned >= head.original - STANDS:
        yield f"{head.title}: {head.unlearned:.3f}, the original's {head.original:.3f}"
    fits = figures.transplant_accuracy is not None and figures.kept(figures.transplant_accuracy) >= DESTROYED
    if swap is not None and fits and swap.unlearned >= swap.original / 2:
        yield f"{swap.title}: {swap.unlearned:.1%}, the original's own {swap.original:.1%}"
    for layer in figures.layers if trusted else ():
        if layer.remains:
            values = f"{layer.unlearned:.3g}, original {layer.original:.3g}, retrained {layer.retrained:.3g}"
            yield f"{layer.title}: {values}"


def _power(figures: Figures) -> Iterator[str]:
    most = figures.contrast.reached.high
    yield f"with N = {figures.contrast.count} images, what {100 * most:.1f} % of them could reach would have shown"
    if figures.said is None or _reference(figures) is not None:
        yield "without a retrained model, refitted heads, probes and relearning were not judged (--retrained)"
