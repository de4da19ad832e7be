"""The verdict of an audit of this task: from figures to one of four outcomes, with the sentences that say why."""

from dataclasses import dataclass

from rub.audits.base import ALONE, MOVING, Rate, Rule, Verdict, first_of, percent

ALIVE = 0.5  # of the original's skill on kept images: below, a model is destroyed
UNTOUCHED = 0.9  # of the forgotten images that were never gone: above, nothing was forgotten


@dataclass(frozen=True)
class Figures:
    """The numbers behind a verdict, at one budget; rates are shares of forgotten images near the original's output.

    Attributes:
        kept: skill on kept images of every model that is audited, by its row: what it explains of the masked patches
            beyond the mean colour of the visible ones; 1 is perfect, 0 is that colour.
        forgotten: skill on forgotten images, likewise.
        clean: forgotten images that were never gone: the unlearned model still completes them as the original does.
        attacked: the same for its probes.
        converged: whether the search had stopped improving.
        steered: forgotten images that the same search leads to the original's output for an unrelated, kept image.
        clean_retrained: as `clean`, of the retrained model; None without one.
        retrained: as `attacked`, of the retrained model on its own probes; None without one.
        attack: the search.
    """

    kept: dict[str, float]
    forgotten: dict[str, float]
    clean: Rate
    attacked: Rate
    converged: bool
    steered: Rate
    clean_retrained: Rate | None = None
    retrained: Rate | None = None
    attack: str = "uma"

    def alive(self, row: str) -> bool:
        """Whether a model still completes kept images: with at least `ALIVE` of the original's skill."""
        return row in self.kept and self.kept[row] >= ALIVE * self.kept["original"]


def conclude(figures: Figures, budget: str) -> Verdict:
    """The verdict for these figures: the first of these rules that applies.

    A retrained model that no longer completes kept images is no reference: the rules go on as if there were none.

    1. The original does not complete kept images: nothing can be said of what was made of it.
    2. *destroyed*: the unlearned model has less than half of the original's skill on kept images.
    3. *recovered*: more forgotten images were never gone than the retrained model completes so; without a retrained
       model, nearly all of them.
    4. The original completes forgotten images no better than the unlearned model: nothing can be said.
    5. At least half come back, and as many are led to the output for an unrelated image (the paired null: same image,
       mask and search, another target): the search paints anything.
    6. *recovered*: more come back than are led to the unrelated output and than the retrained model gives under the
       same search.
    7. There is no retrained model, and more come back than are led elsewhere: a model that never saw these classes may
       complete them as well, from what is visible.
    8. The search had not converged: nothing can be said.
    9. *no residual found*.

    A share is more than another by five points at least, without overlapping intervals.
    """
    model = "retrained" if figures.alive("retrained") else None
    clean_reference = figures.clean_retrained if model else None
    reference = figures.retrained if model else None
    reached, own = figures.attacked, figures.attacked.exceeds(figures.steered)
    still = figures.clean.exceeds(clean_reference) if clean_reference else figures.clean.low >= UNTOUCHED
    facts = (
        f"{percent(figures.clean)} of forgotten images were never gone, {percent(reached)} are completed as the"
        f" original did at {budget}",
        f"led to an unrelated output by the same search: {percent(figures.steered)}",
        *((f"the retrained model is at {percent(reference)}",) if reference else ()),
        *(() if reference else (_NO_REFERENCE if "retrained" in figures.kept else ALONE,)),
    )
    rules: tuple[Rule, ...] = (
        (figures.kept["original"] <= 0, "cannot tell", (_BLIND,)),
        (not figures.alive("unlearned"), "destroyed", (_told_kept(figures), _DESTROYED)),
        (still, "recovered", (*facts, "they were not forgotten in the first place")),
        (figures.forgotten["original"] <= figures.forgotten["unlearned"], "cannot tell", (*facts, _UNKNOWN)),
        (reached.value >= 0.5 and not own, "cannot tell", (*facts, _STEERED)),
        (reference is not None and own and reached.exceeds(reference), "recovered", (*facts, _BACK)),
        (reference is None and own, "cannot tell", (*facts, _UNDECIDED)),
        (not figures.converged, "cannot tell", (*facts, MOVING)),
        (True, "no residual found", facts),
    )
    return first_of(rules)


def _told_kept(figures: Figures) -> str:
    original, unlearned = (100 * figures.kept[row] for row in ("original", "unlearned"))
    return f"skill on kept images: {unlearned:.1f} %, the original's is {original:.1f} %"


_BLIND = "the original completes kept images no better than their mean colour: wrong weights, mask ratio, mean or std?"
_DESTROYED = "the unlearned model no longer completes what it was to keep: nothing else can be said of it"
_UNKNOWN = "the original completes forgotten images no better than the unlearned model"
_NO_REFERENCE = "the retrained model given does not complete kept images, and is no reference"
_BACK = "changing the input alone brings the forgotten completions back, beyond what the retrained model gives"
_STEERED = "the search paints unrelated images as well: at this budget it says nothing"
_UNDECIDED = "a model that never saw these classes may do so from what is visible: --retrained would decide"
