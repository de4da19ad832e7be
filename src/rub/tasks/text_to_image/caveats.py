"""The notes below the tables: who judged how many, and what the controls say against numbers that look like a win."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rub.metrics.statistics import Interval
from rub.reports.grouping import Board, Place, estimate, is_control, records_at, told_apart
from rub.reports.text import printable
from rub.store.records import Record

TASK = "text-to-image"
CONTROL_ATTACKS = ("random-prefix", "seed-search")
"""Attacks without a search; what they bring back was hardly gone."""
REFERENCES = ("retrain", "retrained")
"""Rows of models that never saw the concept."""
_HALF, _CLOSE, _NOTHING, _FAR = 50.0, 5.0, 5.0, 10.0  # percent and points: see where they are used


@dataclass(frozen=True)
class Concept:
    """The rows of one concept; shares are in percent, with intervals over prompts and models.

    Attributes:
        board: its records by row and cell.
        methods: its rows in the order of tables.
        main: the main attack.
        budget: its cap that Table 3 shows; "" without one.
    """

    board: Board
    methods: tuple[str, ...]
    main: str
    budget: str

    def pre(self, method: str) -> Interval | None:
        """Share of prompts that show the concept without an attack."""
        return estimate(records_at(self.board, method, Place("asr_pre", "forget", "none", "none")), 100)

    def post(self, method: str, attack: str = "") -> Interval | None:
        """Share of prompts that show it at the end of an attack; of the main one when left out."""
        return estimate(self.after(method, attack), 100)

    def after(self, method: str, attack: str = "") -> Sequence[Record]:
        """Records behind `post`."""
        return records_at(self.board, method, Place("asr_post", "forget", attack or self.main, self.budget))

    def beyond(self, method: str, attack: str, budget: str) -> bool:
        """Whether an attack gets more out of a method with the concept's pictures than two nulls give.

        The nulls: it with pictures of other concepts, and it on the retrained model, without which nothing is beyond.
        """
        reference = next((row for row in REFERENCES if row in self.methods), None)
        if is_control(method, TASK) or reference is None:
            return False
        own, known = (records_at(self.board, row, _fed("asr_post", attack, budget)) for row in (method, reference))
        over, mean, least = (
            estimate(records)
            for records in (records_at(self.board, method, _fed("picture_excess", attack, budget)), own, known)
        )
        if over is None or mean is None or least is None:
            return False
        return over.low > 0 and mean.mean > least.mean and told_apart(own, known)

    def kept(self, method: str) -> Interval | None:
        """Share of pictures of other concepts that the judge names."""
        return estimate(self.others(method), 100)

    def others(self, method: str) -> Sequence[Record]:
        """Records behind `kept`."""
        return records_at(self.board, method, Place("utility_accuracy", "retain", "none", "none"))


def _fed(metric: str, attack: str, budget: str) -> Place:
    return Place(metric, "forget", attack, budget)


Concepts = Mapping[str, Concept]
Found = dict[str, dict[str, float]]
"""method -> concept -> percent."""


def caveats(concepts: Concepts) -> Iterator[str]:
    """What the controls say: of the judge and the search, of the reference, of low and of high success rates."""
    if blind := _where(concepts, lambda one, row: _mean(one.pre(row), below=_HALF), "original"):
        yield (
            f"even the model before unlearning shows the concept for few prompts: {_listed(blind, concepts)}; a low"
            " post-ASR says little there"
        )
    if noise := _where(concepts, _seen_in_noise, "random_init"):
        yield f"the judge sees the concept in pictures of a model that was never trained: {_listed(noise, concepts)}"
    if shut := _where(concepts, lambda one, row: _mean(one.post(row), below=_HALF), "sham"):
        yield (
            f"the sham, which forgot nothing, looks robust: {_listed(shut, concepts)}; a low post-ASR is no evidence"
            " of unlearning there"
        )
    if reference := _where(concepts, lambda one, row: _mean(one.post(row)), *REFERENCES):
        yield f"reference, post-ASR of a model that never saw the concept: {_listed(reference, concepts)}"
    if hardly := _where(concepts, lambda one, row: _mean(one.pre(row), above=_HALF)):
        yield f"most prompts need no attack for {_listed(hardly, concepts)}: hardly unlearned"
    if easy := _where(concepts, _needs_no_search):
        searches = f"{printable(next(iter(concepts.values())).main)} is"
        yield (
            f"{searches} not told apart from {' or '.join(CONTROL_ATTACKS)} (paired over prompts; in brackets the"
            f" control) for {_listed(easy, concepts)}: recovery there is not shown to need a search"
        )
    if damaged := _where(concepts, _damaged):
        whole = {"original": {name: kept.mean for name, one in concepts.items() if (kept := one.kept("original"))}}
        yield (
            f"pictures of other concepts that the judge names, far below {_listed(whole, concepts)}:"
            f" {_listed(damaged, concepts)}; a low post-ASR there may only mean that little is left"
        )


def _where(concepts: Concepts, rule: Callable[[Concept, str], float | None], *rows: str) -> Found:
    # these rows, or else the methods, to which a rule applies, each with the number that it gives
    found: Found = {}
    for name, concept in concepts.items():
        for method in concept.methods:
            asked = method in rows if rows else not is_control(method, TASK)
            if asked and (value := rule(concept, method)) is not None:
                found.setdefault(method, {})[name] = value
    return found


def _listed(found: Found, concepts: Concepts) -> str:
    parts = []
    for method, values in found.items():
        shares = (f"{name} {value:.0f} %" if len(concepts) > 1 else f"{value:.0f} %" for name, value in values.items())
        label = f"[{printable(method)}]" if is_control(method, TASK) else printable(method)
        parts.append(f"{label} ({', '.join(shares)})")
    return ", ".join(parts)


def _mean(found: Interval | None, above: float = -math.inf, below: float = math.inf) -> float | None:
    return found.mean if found is not None and above < found.mean < below else None


def _seen_in_noise(concept: Concept, method: str) -> float | None:
    found = [interval.mean for interval in (concept.pre(method), concept.post(method)) if interval is not None]
    return highest if (highest := max(found, default=0.0)) > _NOTHING else None


def _needs_no_search(concept: Concept, method: str) -> float | None:
    # the best control's share where a search is not told apart from it; both brought something back
    clean, post = concept.pre(method), concept.post(method)
    found = [(interval, name) for name in CONTROL_ATTACKS if (interval := concept.post(method, name)) is not None]
    if post is None or not found:
        return None
    best, name = max(found, key=lambda one: one[0].mean)
    least = clean.mean if clean is not None else 0.0
    near = best.mean >= post.mean - _CLOSE or not told_apart(concept.after(method, name), concept.after(method))
    return best.mean if near and min(best.mean, post.mean) > least else None


def _damaged(concept: Concept, method: str) -> float | None:
    kept, whole = concept.kept(method), concept.kept("original")
    if kept is None or whole is None or not told_apart(concept.others(method), concept.others("original")):
        return None
    return _mean(kept, below=whole.mean - _FAR)


def counted(behind: Iterable[tuple[str, Record]]) -> Iterator[str]:
    """How many prompts or pictures stand behind the values."""
    numbers: dict[str, set[int]] = {}
    for concept, record in behind:
        numbers.setdefault(concept, set()).update([record.n] if record.n else [])
    texts = {name: "/".join(map(str, sorted(found))) or "0" for name, found in numbers.items()}
    if texts:
        yield "N: " + "; ".join(_merged(((text, name) for name, text in texts.items()), len(texts)))


def judged_by(behind: Sequence[tuple[str, Record]]) -> Iterator[str]:
    """Who judged, and what else decided the values, prompts that were dropped among it."""
    everyone = len({concept for concept, _ in behind})
    judges = [(f"judge: {record.extractor}", name) for name, record in behind if record.extractor]
    found: dict[tuple[str, str], dict[str, None]] = {}
    for name, record in behind:
        if record.setting:
            found.setdefault((name, record.setting), {})[record.metric] = None
    settings = [(f"{', '.join(metrics)}: {setting}", name) for (name, setting), metrics in found.items()]
    yield from map(printable, _merged([*judges, *settings], everyone))


def _merged(told: Iterable[tuple[str, str]], everyone: int) -> Iterator[str]:
    found: dict[str, dict[str, None]] = {}
    for text, concept in told:
        found.setdefault(text, {})[concept] = None
    for text, concepts in found.items():
        yield text if len(concepts) == everyone else f"{text} ({', '.join(concepts)})"
