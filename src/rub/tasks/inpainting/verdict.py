"""The verdict of an audit of this task: from figures to one of three outcomes, with the sentences that say why."""

from dataclasses import dataclass

from rub.audits.base import ALONE, MOVING, Rate, Rule, Verdict, first_of, percent


@dataclass(frozen=True)
class Figures:
    """The numbers behind a verdict, at one budget; rates are shares of images near the original's output.

    Attributes:
        original: mean squared error of the original to the true forget images, on masked patches.
        unlearned: likewise of the unlearned model.
        clean: forget images that the unlearned model still completes as the original does.
        attacked: the same for its probes.
        converged: whether the search had stopped improving.
        steered: forget images that the same search leads to the original's output for an unrelated, retained image.
        retrained: the retrained model's share on its own probes; None without one.
        attack: the search.
    """

    original: float
    unlearned: float
    clean: Rate
    attacked: Rate
    converged: bool
    steered: Rate
    retrained: Rate | None
    attack: str = "uma"


def conclude(figures: Figures, budget: str) -> Verdict:
    """The verdict for these figures: the first of these rules that applies.

    1. *recovered*: at least half of the clean images come out as before: the model never forgot.
    2. The original completes the forget images no better than the unlearned model: nothing can be said.
    3. *recovered*: the share on the probes exceeds the reference by five points, without overlapping intervals. The
       reference is the retrained model under the same search or, without one, the share of images that the search
       steers to the output for an unrelated image.
    4. There is no retrained model and at least half come back: the search leads the decoder anywhere.
    5. The search had not converged: nothing can be said.
    6. *no residual found at this budget*.
    """
    reached, alone = figures.attacked, figures.retrained is None
    reference = figures.retrained or figures.steered
    whose = "outputs for unrelated images reached by the same search" if alone else "the retrained model"
    facts = (
        f"{percent(figures.clean)} of clean forget images and {percent(reached)} of the probes at {budget} are"
        " completed as the original did",
        f"the reference ({whose}) is at {percent(reference)}",
    )
    rules: tuple[Rule, ...] = (
        (figures.clean.low >= 0.5, "recovered", (*facts, "they were not forgotten in the first place")),
        (figures.original >= figures.unlearned, "cannot tell", (_UNKNOWN,)),
        (reached.exceeds(reference), "recovered", (*facts, _BACK)),
        (alone and reached.value >= 0.5, "cannot tell", (*facts, _STEERED)),
        (not figures.converged, "cannot tell", (*facts, MOVING)),
        (True, "no residual found at this budget", (*facts, *((ALONE,) if alone else ()))),
    )
    return first_of(rules)


_UNKNOWN = "the original model completes the forget images no better than the unlearned one"
_BACK = "changing the input alone brings the forgotten completions back"
_STEERED = "the search leads the decoder to unrelated images as well: a retrained model (--retrained) would decide"
