"""The verdict of an audit: from figures to one of four outcomes, with the sentences that say why."""

from collections.abc import Mapping
from dataclasses import dataclass

from rub.audits.base import ALONE, MARGIN, MOVING, Rate, Rule, Verdict, first_of, percent


@dataclass(frozen=True)
class Figures:
    """The numbers behind a verdict, at one budget; None where it was not measured.

    Attributes:
        original: UA of the original model on clean forget images (control: it must know them).
        clean: UA of the unlearned model on clean forget images.
        attacked: UA of the unlearned model on the probes.
        steered: share of retain images that the same search pushes into a forgotten class (negative control).
        retrained: UA of the retrained model on its probes.
        bias_free: metric -> (original, unlearned, retrained or None): logit AUC and linear-probe recall.
        accuracy: of the original model on test images of all classes.
    """

    original: Rate
    clean: Rate
    attacked: Rate
    converged: bool
    steered: Rate
    retrained: Rate | None
    bias_free: Mapping[str, tuple[float, float, float | None]]
    attack: str = "uma"
    accuracy: float | None = None


def conclude(figures: Figures, budget: str) -> Verdict:
    """The verdict for these figures: the first of these rules that applies.

    1. The original classifies fewer than half of the forget images: nothing can be said.
    2. *recovered*: the unlearned model classifies at least half of the clean ones: it never forgot.
    3. *recovered*: UA on the probes exceeds the reference by `MARGIN`, and the intervals do not overlap. The reference
       is the retrained model under the same search, or, without one, the share of retain images that the search
       steers into a forgotten class.
    4. UA on the probes is high, but no higher than the steered share, and there is no retrained model: the search
       pushes anything there, so nothing can be said.
    5. *hidden*: a bias-free metric is closer to the original's value than to the retrained model's (without one:
       the logit AUC is within 0.02 of the original's; a linear probe then says nothing, since features that are good
       for the other classes may well separate this one too).
    6. The search had not converged: nothing can be said.
    7. *no residual found at this budget*.
    """
    reached, reference = figures.attacked, figures.retrained or figures.steered
    alone = figures.retrained is None
    kept = _still_there(figures.bias_free)
    whose = "retain images steered into the forgotten class" if alone else "the retrained model"
    facts = (
        f"the forgotten class is recognised on {percent(figures.clean)} of clean images and on {percent(reached)} of"
        f" probes at {budget}",
        f"the reference ({whose}) is at {percent(reference)}",
    )
    unknown = (f"the original model itself classifies only {percent(figures.original)} of the forget images",)
    rules: tuple[Rule, ...] = (
        (figures.original.low < 0.5, "cannot tell", unknown),
        (figures.clean.low >= 0.5, "recovered", (*facts, "it was not forgotten in the first place")),
        (reached.exceeds(reference), "recovered", (*facts, _BACK)),
        (alone and reached.value >= 0.5, "cannot tell", (*facts, _STEERED)),
        (bool(kept), "hidden", (*facts, *kept, _HIDDEN)),
        (not figures.converged, "cannot tell", (*facts, MOVING)),
        (True, "no residual found at this budget", (*facts, *((ALONE,) if alone else ()))),
    )
    return first_of(rules)


_BACK = "changing the input alone brings the forgotten knowledge back"
_STEERED = "the search steers unrelated images into the class as often: a retrained model (--retrained) would decide"
_HIDDEN = "the input search does not bring it back, but the knowledge is still in the weights"


def _still_there(metrics: Mapping[str, tuple[float, float, float | None]]) -> tuple[str, ...]:
    found = []
    for name, (before, after, never) in metrics.items():
        threshold = before - 0.02 if never is None else (before + never) / 2
        informative = name == "logit_auc" if never is None else before - never >= MARGIN
        if informative and after >= threshold:
            reference = "" if never is None else f" (retrained: {never:.3f})"
            found.append(f"{name} is {after:.3f}, the original's is {before:.3f}{reference}")
    return tuple(found)
