"""The tables of the text-to-image task: pure functions from records to `Table`, concepts side by side."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rub.reports.grouping import (
    Group,
    Place,
    budgets_of,
    extracted,
    grouped,
    is_control,
    place_of,
    row_order,
    tie_letters,
)
from rub.reports.table import Cell, Column, Row, Table, beside, fitting
from rub.reports.tables import Source, directions, failures, label, marks, seeds_note
from rub.reports.text import printable, slug
from rub.store.records import Record
from rub.tasks.text_to_image.caveats import CONTROL_ATTACKS, TASK, Concept, caveats, concept_of, counted, judged_by
from rub.tasks.text_to_image.metrics import METRICS_DECLARED

_METRICS = {metric.name: metric for metric in METRICS_DECLARED}
_GIVEN = "one original and one choice of prompts"
_BOUND = "a higher cap might bring more back"
_FIRST = "Table 3"
_PAPER_CAP = "100"
_UTILITY = {
    "utility_accuracy": "accuracy %",
    "utility_seen": "accuracy % (seen)",
    "fid": "FID",
    "kid": "KID",
    "clip_score": "CLIP",
}
_TIED = "tie: methods that share a letter have overlapping 95 % intervals of post-ASR after uma; a is the most robust"
_DECIMALS = {
    "utility_accuracy": 1,
    "utility_seen": 1,
    "fid": 2,
    "kid": 4,
    "clip_score": 2,
    "steps_mean": 2,
    "gradient_steps_mean": 0,
}


def text_to_image_tables(records: Sequence[Record], paper: Mapping[str, Any] | None = None) -> list[Table]:
    """Return the tables of every (suite, dataset, model, protocol) among the records, a column group per concept.

    Table 3 in the paper's shape; which methods are tied; what each attack and each control without a search brings
    back; what is left of other concepts; steps and gradient steps of every attack. Means are over seeds; intervals are
    clustered by unlearning seed, or over prompts (Wilson) where there is one model.

    Args:
        records: rows of any task; those of other tasks are left out. An experiment is one concept, named after it.
        paper: method -> concept -> metric -> the paper's number, from `rub.reports.tables.paper_numbers`.

    Returns:
        Tables that fit 80 columns each; empty without records of this task.

    Example:
        >>> text_to_image_tables([])
        []
    """
    suites: dict[Group, dict[Group, list[Record]]] = {}
    for group, found in grouped(records, TASK).items():
        suites.setdefault(group._replace(experiment=""), {})[group] = found
    return [part for group, own in suites.items() for part in _suite_tables(_Suite.of(group, own), paper or {})]


def headline(budgets: Sequence[str]) -> list[str]:
    """Return the budget of Table 3: the largest cap.

    Example:
        >>> headline(["50", "100"]), headline([])
        (['100'], [])
    """
    return list(budgets[-1:])


def leaders(records: Sequence[Record]) -> list[Column]:
    """Return the columns of a leaderboard over these records, of any concept; numbers of two judges stand apart.

    Example:
        >>> leaders([])
        []
    """
    cap = next(iter(headline(budgets_of(records, "uma"))), "")
    wanted = [("no attack", "pre", "asr_pre", "none", "none", 1)]
    searched = (
        ("post", "asr_post", "uma"),
        ("avg steps", "steps_mean", "uma"),
        ("excess", "residual_knowledge", "uma"),
    )
    for name, metric, attack in (*searched, *((f"post, {name}", "asr_post", name) for name in CONTROL_ATTACKS)):
        wanted.append((f"{cap} steps", name, metric, attack, cap, 1))
    wanted += [("other concepts", _UTILITY[name], name, "none", "none", 1) for name in ("utility_accuracy", "fid")]
    columns = []
    for group, name, metric, attack, budget, decimals in wanted:
        shape = (metric, _METRICS[metric].split, attack, budget)
        places = dict.fromkeys(place for record in records if (place := place_of(record))[:4] == shape)
        for place in places:
            judge = f"[{printable(place.extractor).partition('@')[0]}]" if len(places) > 1 else ""
            columns.append(replace(_column(group, f"{name}{judge}", place, decimals), group=printable(group)))
    return columns


@dataclass(frozen=True)
class _Suite:
    """The concepts of one group.

    Attributes:
        group: what they share, for names and titles.
        sources: concept -> its records.
        concepts: concept -> the same for `rub.tasks.text_to_image.caveats`.
        records: of all concepts.
    """

    group: Group
    sources: Mapping[str, Source]
    concepts: Mapping[str, Concept]
    records: Sequence[Record]

    @classmethod
    def of(cls, group: Group, found: Mapping[Group, Sequence[Record]]) -> "_Suite":
        """Gather the experiments of a group."""
        sources, concepts = {}, {}
        for one, records in found.items():
            name, own = printable(one.experiment or one.dataset), extracted(records)
            sources[name] = Source(one, own, lambda columns, behind: (), _BOUND, _FIRST)
            concepts[name] = concept_of(own, next(iter(headline(budgets_of(own, "uma"))), ""))
        if len(sources) == 1:
            group = group._replace(experiment=next(iter(sources)))
        return cls(group, sources, concepts, [record for source in sources.values() for record in source.records])

    @property
    def labels(self) -> list[str]:
        """Return the labels of all rows in order."""
        return [printable(method) for method in row_order((record.method for record in self.records), self.group.task)]

    def places(self, concept: str, metric: str, attack: str = "none", budget: str = "none") -> list[Place]:
        """Return the cells of a metric for one concept, one for each extractor."""
        wanted = (metric, _METRICS[metric].split, attack, budget)
        found = (place_of(record) for record in self.sources[concept].records)
        return list(dict.fromkeys(place for place in found if place[:4] == wanted))

    def table(
        self,
        kind: str,
        title: str,
        columns: Iterable[tuple[str, Column]],
        notes: Iterable[str],
        paper: Mapping[str, Any],
    ) -> Table:
        """Return one table from columns of several concepts; each comes with its concept."""
        own = list(columns)
        pieces = [
            self.sources[concept].table(kind, title, [column], _published(paper, concept)) for concept, column in own
        ]
        group = self.group
        name = slug(f"{kind}-{group.experiment or (group.model if group.dataset == 'none' else group.dataset)}")
        behind = self.behind(own)
        said = [directions([column for _, column in own]), *counted(behind), *notes, *judged_by(behind)]
        said += marks([record for _, record in behind], _BOUND, _FIRST)
        return beside(pieces, self.labels, name, f"{title} ({label(group)})", said)

    def behind(self, columns: Iterable[tuple[str, Column]]) -> list[tuple[str, Record]]:
        """Return the records behind columns, each with its concept."""
        used: dict[str, set[Place | None]] = {}
        for concept, column in columns:
            used.setdefault(concept, set()).add(column.place)
        return [
            (concept, record)
            for concept, places in used.items()
            for record in self.sources[concept].records
            if place_of(record) in places
        ]


def _suite_tables(suite: _Suite, paper: Mapping[str, Any]) -> Iterator[Table]:
    """Yield the tables of one suite, cut to fit."""
    for table in (
        *_table3(suite, paper),
        _attacks(suite),
        _utility(suite),
        _by_attack(suite, "steps", "Attack steps to the first success, mean", "steps_mean"),
        _by_attack(suite, "gradient", "Gradient steps of each attack per prompt, mean", "gradient_steps_mean"),
    ):
        parts = fitting(table) if table.columns else []
        for number, part in enumerate(parts):
            yield part if number == 0 else replace(part, notes=(part.notes[0], f"further notes: {parts[0].title}"))


def _table3(suite: _Suite, paper: Mapping[str, Any]) -> Iterator[Table]:
    """Yield Table 3, with ties as a column of it, or as a table of their own where there are several concepts."""
    columns = [column for name in suite.sources for column in _of_concept(suite, name)]
    table = suite.table("table3", _FIRST, columns, _explained(suite, paper), paper)
    first, *others = table.notes
    seeds = seeds_note(suite.records, _GIVEN, "prompts")
    notes = (first, seeds, *others, *caveats(suite.concepts), *failures(suite.records))
    table = replace(table, notes=notes)
    ties = [piece for name, concept in suite.concepts.items() for piece in _ties(name, concept, table.rows)]
    if ties and len(suite.sources) == 1:
        yield beside([table, *ties], suite.labels, table.name, table.title, (*table.notes, _TIED))
        return
    yield table
    if ties:
        title = f"{_FIRST}: which methods are tied ({label(suite.group)})"
        yield beside(ties, suite.labels, f"{table.name}-ties", title, (_TIED,))


def _of_concept(suite: _Suite, concept: str) -> Iterator[tuple[str, Column]]:
    """Yield the columns of Table 3 for one concept."""
    cap = suite.concepts[concept].budget
    for name, metric, decimals, attack in (
        ("pre", "asr_pre", 1, "none"), ("post", "asr_post", 1, "uma"),
        ("avg", "steps_mean", 2, "uma"), ("med", "steps_median", 1, "uma"),
    ):  # fmt: skip
        for place in suite.places(concept, metric, attack, "none" if attack == "none" else cap):
            yield concept, _column(concept, name, place, decimals)


def _attacks(suite: _Suite) -> Table:
    """Return what every attack brings back at its cap, and how much of that the retrained model explains."""
    columns = list(_of_attacks(suite, "asr_post"))
    excess = [
        (concept, _column("excess", concept, place, 1))
        for concept, rows in suite.concepts.items()
        for place in suite.places(concept, "residual_knowledge", "uma", rows.budget)
    ]
    notes = ["prompts (%) that show the concept without an attack or after it"]
    if excess:
        notes.append("excess: post-ASR of uma minus the retrained model's, in points (residual knowledge)")
    attacks = {column.place.attack for _, column in columns if column.place is not None}
    if controls := [name for name in CONTROL_ATTACKS if name in attacks]:
        notes.append(f"controls without a search: {', '.join(controls)}; what they bring back was hardly gone")
    return suite.table("attacks", "Post-ASR of every attack at its cap", [*columns, *excess], notes, {})


def _by_attack(suite: _Suite, kind: str, title: str, metric: str) -> Table:
    """Return a metric of the work that attacks do; those without any are left out."""
    columns = list(_of_attacks(suite, metric))
    spent = {record.attack for _, record in suite.behind(columns) if record.value}
    kept = [(name, column) for name, column in columns if column.place is not None and column.place.attack in spent]
    return suite.table(kind, title, kept, (), {})


def _of_attacks(suite: _Suite, metric: str) -> Iterator[tuple[str, Column]]:
    """Yield the columns of a metric after each attack, uma first; those of one attack under one header."""
    searches = dict.fromkeys((r.attack, r.budget) for r in suite.records if r.metric == metric and r.attack != "none")
    caps = {cap for _, cap in searches}
    for attack, cap in sorted(searches, key=lambda search: search[0] != "uma"):
        head = printable(attack if len(caps) == 1 else f"{attack} {cap}")
        for concept in suite.sources:
            for place in suite.places(concept, metric, attack, cap):
                yield concept, _column(head, concept, place, _DECIMALS.get(metric, 1))


def _utility(suite: _Suite) -> Table:
    """Return what is left of other concepts, one column for each concept that was forgotten and each judge."""
    columns = []
    for metric, title in _UTILITY.items():
        found = [(concept, suite.places(concept, metric)) for concept in suite.sources]
        several = any(len(places) > 1 for _, places in found)
        for concept, places in found:
            for place in places:
                name = printable(place.extractor).partition("@")[0]
                head = f"{title}[{name}]" if several and name else title
                columns.append((concept, _column(head, concept, place, _DECIMALS[metric])))
    notes = ["pictures of other concepts; columns are named after the concept that was forgotten"]
    if any(column.place is not None and column.place.metric == "utility_seen" for _, column in columns):
        notes.append("seen: of concepts that the retrained model was trained on; it stands for several forgotten ones")
    return suite.table("utility", "What is left of other concepts", columns, notes, {})


def _column(group: str, name: str, place: Place, decimals: int) -> Column:
    metric = _METRICS[place.metric]
    percent = metric.unit == "fraction"
    sampled = percent and metric.low == 0  # a difference of shares has no Wilson interval
    return Column(group, name, place, metric.direction, percent, decimals, metric.unit, sampled)


def _ties(name: str, concept: Concept, rows: Sequence[Row]) -> Iterator[Table]:
    """Yield the column of tie letters of one concept; nothing with fewer than two methods."""
    methods = [method for method in concept.methods if not is_control(method, TASK)]
    shares = {printable(method): post for method in methods if (post := concept.post(method)) is not None}
    if len(shares) > 1:
        letters = tie_letters(shares)
        cells = tuple(Row(row.label, row.control, (Cell((letters.get(row.label, ""),)),)) for row in rows)
        yield Table("", "", (Column(name, "tie"),), cells, ())


def _published(paper: Mapping[str, Any], concept: str) -> Callable[[str, Place], float | None]:
    """Return what gives the paper's number for a cell of a concept; it allowed 100 attack steps."""
    nudity = concept == "nudity"
    names = {"esd-u": "" if nudity else "esd", "esd-x": "esd" if nudity else ""}

    def number(method: str, place: Place) -> float | None:
        found = paper.get(names.get(method, method), {}).get(concept.replace("-", "_"), {}).get(place.metric)
        if found is None or place.budget not in ("none", _PAPER_CAP):
            return None
        return float(found) * (100 if _METRICS[place.metric].unit == "fraction" else 1)

    return number


def _explained(suite: _Suite, paper: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the columns of Table 3 are."""
    caps = "/".join(dict.fromkeys(concept.budget for concept in suite.concepts.values() if concept.budget))
    if not caps:
        yield "pre: prompts (%) whose picture shows the concept, without an attack; uma did not run"
        return
    yield f"pre, post: prompts (%) whose picture shows the concept, without an attack, and with uma ({caps} steps)"
    yield f"avg, med: steps to the first success; 0 where none was needed, {caps} where none came"
    if _PAPER_CAP in caps.split("/") and any(_known(paper, name) for name in suite.sources):
        yield "in parentheses: the paper's own number (Stable Diffusion, published checkpoints; N 50, of nudity 118)"
        if {"esd-u", "esd-x"} & {record.method for record in suite.records}:
            yield "the paper's ESD stands with esd-u, of nudity with esd-x, the checkpoints published for them"


def _known(paper: Mapping[str, Any], concept: str) -> bool:
    return any(concept.replace("-", "_") in rows for rows in paper.values())
