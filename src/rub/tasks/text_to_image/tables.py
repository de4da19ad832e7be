"""The tables of the text-to-image task: pure functions from records to `Table`, concepts side by side."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rub.reports.grouping import (
    Group,
    Mains,
    Place,
    board_of,
    budgets_of,
    extracted,
    grouped,
    is_control,
    main_attack,
    place_of,
    row_order,
    tie_letters,
)
from rub.reports.table import Cell, Column, Row, Table, beside, fitting
from rub.reports.tables import Columns, Source, directions, failures, label, marks, seeds_note
from rub.reports.text import printable, slug
from rub.store.records import Record
from rub.tasks.text_to_image.caveats import CONTROL_ATTACKS, TASK, Concept, caveats, counted, judged_by
from rub.tasks.text_to_image.metrics import METRICS, PAPERS_PROMPTS

_METRICS = {metric.name: metric for metric in METRICS}
_GIVEN = "one choice of prompts"
_BOUND = "a higher cap might bring more back"
_FIRST = "Table 3"
_PAPER_CAP = "100"
_FED = {
    "asr_post": "own", "asr_other": "other", "picture_excess": "over other", "residual_knowledge": "over retrain"
}  # fmt: skip
_UTILITY = ("utility_accuracy", "utility_seen", "fid", "kid", "clip_score")


def text_to_image_tables(
    records: Sequence[Record], paper: Mapping[str, Any] | None = None, mains: Mains | None = None
) -> list[Table]:
    """Tables of every (suite, dataset, model, protocol) among the records, a column group per concept.

    Table 3 in the paper's shape; which methods are tied; what each attack and each control without a search brings
    back; what is left of other concepts; steps and gradient steps of every attack. Means are over seeds; intervals are
    over prompts and models (`rub.metrics.statistics.estimate`). An experiment is one concept, named
    after it; `paper`, from `rub.reports.tables.paper_numbers`, has method -> concept -> metric -> number.

    Example:
        >>> text_to_image_tables([])
        []
    """
    suites: dict[Group, dict[Group, list[Record]]] = {}
    for group, found in grouped(records, TASK).items():
        suites.setdefault(group._replace(experiment=""), {})[group] = found
    return [part for group, own in suites.items() for part in _suite_tables(_Suite.of(group, own, mains), paper or {})]


def headline(budgets: Sequence[str]) -> list[str]:
    """Budget of Table 3: the largest cap.

    Example:
        >>> headline(["50", "100"]), headline([])
        (['100'], [])
    """
    return list(budgets[-1:])


def leaders(records: Sequence[Record], main: str = "") -> list[Column]:
    """Columns of a leaderboard over these records, of any concept; numbers of two judges stand apart.

    Example:
        >>> leaders([])
        []
    """
    main = main or main_attack(records)
    made = Columns(METRICS, main)
    cap = next(iter(headline(budgets_of(records, main))), "none")
    wanted = [made("no attack", "asr_pre")]
    if cap != "none":
        head = f"{cap} steps"
        wanted += [
            made(head, "asr_post", cap),
            made(head, "steps_mean", cap, name="avg steps", decimals=1),
            made(head, "residual_knowledge", cap),
            *(made(head, "asr_post", cap, name=f"post, {name}", attack=name) for name in CONTROL_ATTACKS),
        ]
    wanted += [made("other concepts", name, decimals=1) for name in ("utility_accuracy", "fid")]
    columns = []
    for column in wanted:
        found = _placed(column, records)
        for one in found:
            columns.append(replace(one, name=f"{one.name}[{_judge(one)}]" if len(found) > 1 else one.name))
    return columns


def _placed(column: Column, records: Iterable[Record]) -> list[Column]:
    wanted = column.place[:4] if column.place is not None else ()
    return [replace(column, place=place) for place in dict.fromkeys(map(place_of, records)) if place[:4] == wanted]


def _judge(column: Column) -> str:
    return printable(column.place.extractor if column.place is not None else "").partition("@")[0]


@dataclass(frozen=True)
class _Suite:
    """The concepts of one group.

    Attributes:
        group: what they share, for names and titles.
        sources: concept -> its records.
        concepts: concept -> the same for `rub.tasks.text_to_image.caveats`.
        records: of all concepts.
        main: the main attack.
    """

    group: Group
    sources: Mapping[str, Source]
    concepts: Mapping[str, Concept]
    records: Sequence[Record]
    main: str

    @classmethod
    def of(cls, group: Group, found: Mapping[Group, Sequence[Record]], mains: Mains | None) -> "_Suite":
        """Gather the experiments of a group."""
        sources, concepts = {}, {}
        main = main_attack((record for records in found.values() for record in records), mains)
        for one, records in found.items():
            name, own = printable(one.experiment or one.dataset), extracted(records)
            sources[name] = Source(one, own, lambda columns, behind: (), _BOUND, _FIRST, main)
            rows = tuple(row_order((record.method for record in own), TASK))
            concepts[name] = Concept(board_of(own), rows, main, next(iter(headline(sources[name].budgets)), ""))
        if len(sources) == 1:
            group = group._replace(experiment=next(iter(sources)))
        everything = [record for source in sources.values() for record in source.records]
        return cls(group, sources, concepts, everything, main)

    @property
    def fed(self) -> Mapping[str, str]:
        """Attack that feeds pictures -> its cap."""
        return {record.attack: record.budget for record in self.records if record.metric == "asr_other"}

    @property
    def labels(self) -> list[str]:
        """Labels of all rows in order."""
        return [printable(method) for method in row_order((record.method for record in self.records), self.group.task)]

    def columns(
        self, concept: str, metric: str, budget: str = "none", *, group: str = "", name: str = "", attack: str = ""
    ) -> list[Column]:
        """Columns of a metric for one concept, under its name: one for each extractor that has records."""
        made = Columns(METRICS, self.main)
        column = made(group or concept, metric, budget, name=name, attack=attack)
        return _placed(column, self.sources[concept].records)

    def table(
        self,
        kind: str,
        title: str,
        columns: Iterable[tuple[str, Column]],
        notes: Iterable[str],
        paper: Mapping[str, Any],
    ) -> Table:
        """One table from columns of several concepts; each comes with its concept."""
        own = list(columns)
        pieces = [
            self.sources[concept].table(kind, title, [column], _published(self.known(paper, concept), concept))
            for concept, column in own
        ]
        group = self.group
        name = slug(f"{kind}-{group.experiment or (group.model if group.dataset == 'none' else group.dataset)}")
        behind = self.behind(own)
        said = [directions([column for _, column in own]), *counted(behind), *notes, *judged_by(behind)]
        said += marks([record for _, record in behind], _BOUND, _FIRST)
        return beside(pieces, self.labels, name, f"{title} ({label(group)})", said)

    def known(self, paper: Mapping[str, Any], concept: str) -> Mapping[str, Any]:
        """The paper's numbers, where its prompts were used; those of other prompts do not compare."""
        theirs = any(PAPERS_PROMPTS in record.setting for record in self.sources[concept].records)
        return paper if theirs else {}

    def behind(self, columns: Iterable[tuple[str, Column]]) -> list[tuple[str, Record]]:
        """Records behind columns, each with its concept."""
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
    for table in (
        *_table3(suite, paper),
        _attacks(suite),
        _pictures(suite),
        _utility(suite),
        _by_attack(suite, "steps", "Attack steps to the first success, mean", "steps_mean"),
        _by_attack(suite, "gradient", "Gradient steps of each attack per prompt, mean", "gradient_steps_mean"),
    ):
        parts = fitting(table) if table.columns else []
        for number, part in enumerate(parts):
            yield part if number == 0 else replace(part, notes=(part.notes[0], f"further notes: {parts[0].title}"))


def _table3(suite: _Suite, paper: Mapping[str, Any]) -> Iterator[Table]:
    columns = [column for name in suite.sources for column in _of_concept(suite, name)]
    table = suite.table("table3", _FIRST, columns, _explained(suite, paper), paper)
    first, *others = table.notes
    seeds = seeds_note(suite.records, table, _GIVEN, "prompts")
    notes = (first, seeds, *others, *caveats(suite.concepts), *failures(suite.records))
    table = replace(table, notes=notes)
    after = f"after {printable(suite.main)}"
    tied = (
        f"tie: methods that share a letter are not told apart by paired tests of post-ASR {after} over the same prompts"
        " and seeds (Holm, 5 %); a is the most robust"
    )
    ties = [piece for name, concept in suite.concepts.items() for piece in _ties(name, concept, table.rows)]
    if ties and len(suite.sources) == 1:
        yield beside([table, *ties], suite.labels, table.name, table.title, (*table.notes, tied))
        return
    yield table
    if ties:
        title = f"{_FIRST}: which methods are tied ({label(suite.group)})"
        yield beside(ties, suite.labels, f"{table.name}-ties", title, (tied,))


def _of_concept(suite: _Suite, concept: str) -> Iterator[tuple[str, Column]]:
    cap = suite.concepts[concept].budget
    wanted = [("asr_pre", "none"), *((m, cap) for m in ("asr_post", "steps_mean", "steps_median") if cap)]
    return ((concept, column) for metric, budget in wanted for column in suite.columns(concept, metric, budget))


def _attacks(suite: _Suite) -> Table:
    fed = suite.fed
    columns = [(name, column) for name, column in _of_attacks(suite, "asr_post") if _attack(column) not in fed]
    excess = [
        (concept, column)
        for concept, rows in suite.concepts.items()
        for column in suite.columns(concept, "residual_knowledge", rows.budget, group="excess", name=concept)
        if rows.budget
    ]
    notes = ["prompts (%) that show the concept without an attack or after it"]
    if excess:
        notes.append(
            f"excess: post-ASR of {printable(suite.main)} minus the retrained model's, in points (residual knowledge)"
        )
    attacks = {_attack(column) for _, column in columns}
    if fed:
        notes.append(f"attacks that feed pictures stand in a table of their own: {', '.join(map(printable, fed))}")
    if controls := [name for name in CONTROL_ATTACKS if name in attacks]:
        notes.append(f"controls without a search: {', '.join(controls)}; what they bring back was hardly gone")
    return suite.table("attacks", "Post-ASR of every attack at its cap", [*columns, *excess], notes, {})


def _pictures(suite: _Suite) -> Table:
    columns = []
    for attack, budget in suite.fed.items():
        for concept in suite.sources:
            head = f"{attack} {budget}" if len(suite.sources) == 1 else f"{attack} {budget}, {concept}"
            for metric, name in _FED.items():
                found = suite.columns(concept, metric, budget, group=head, name=name, attack=attack)
                columns += [(concept, column) for column in found]
    notes = [
        "prompts (%) that show the concept without an attack or after one that feeds pictures, or what is made of them;"
        " own: of the concept, other: as many of kept concepts",
        "over other, over retrain: own minus other, and minus own on the retrained model, in points; a picture that is"
        " fed is seen in what any model draws of it, so that only what exceeds both is the model's",
        *_beyond(suite),
    ]
    return suite.table("pictures", "Inputs other than prompts", columns, notes, {})


def _beyond(suite: _Suite) -> Iterator[str]:
    found = {
        f"{printable(attack)}, {name}" if len(suite.concepts) > 1 else printable(attack): own
        for attack, budget in suite.fed.items()
        for name, concept in suite.concepts.items()
        if (own := [printable(method) for method in concept.methods if concept.beyond(method, attack, budget)])
    }
    if suite.fed:
        told = "; ".join(f"{attack}: {', '.join(own)}" for attack, own in found.items()) or "no method with any of them"
        yield f"told apart from both, by paired tests where prompts are known one by one: {told}"


def _attack(column: Column) -> str:
    return "" if column.place is None else column.place.attack


def _by_attack(suite: _Suite, kind: str, title: str, metric: str) -> Table:
    columns = list(_of_attacks(suite, metric))
    spent = {record.attack for _, record in suite.behind(columns) if record.value}
    kept = [(name, column) for name, column in columns if column.place is not None and column.place.attack in spent]
    return suite.table(kind, title, kept, (), {})


def _of_attacks(suite: _Suite, metric: str) -> Iterator[tuple[str, Column]]:
    searches = dict.fromkeys((r.attack, r.budget) for r in suite.records if r.metric == metric and r.attack != "none")
    caps = {cap for _, cap in searches}
    for attack, cap in sorted(searches, key=lambda search: search[0] != suite.main):
        head = attack if len(caps) == 1 else f"{attack} {cap}"
        for concept in suite.sources:
            for column in suite.columns(concept, metric, cap, group=head, name=concept, attack=attack):
                yield concept, column


def _utility(suite: _Suite) -> Table:
    columns = []
    for metric in _UTILITY:
        title = _METRICS[metric].title
        found = [(concept, suite.columns(concept, metric, name=concept)) for concept in suite.sources]
        several = any(len(own) > 1 for _, own in found)
        for concept, own in found:
            for column in own:
                head = f"{title}[{judge}]" if several and (judge := _judge(column)) else title
                columns.append((concept, replace(column, group=head)))
    notes = ["pictures of other concepts; columns are named after the concept that was forgotten"]
    if any(column.place is not None and column.place.metric == "utility_seen" for _, column in columns):
        notes.append("seen: of concepts that the retrained model was trained on; it stands for several forgotten ones")
    return suite.table("utility", "What is left of other concepts", columns, notes, {})


def _ties(name: str, concept: Concept, rows: Sequence[Row]) -> Iterator[Table]:
    methods = [method for method in concept.methods if not is_control(method, TASK)]
    letters = tie_letters({printable(method): concept.after(method) for method in methods})
    if len(letters) > 1:
        cells = tuple(Row(row.label, row.control, (Cell((letters.get(row.label, ""),)),)) for row in rows)
        yield Table("", "", (Column(name, "tie"),), cells, ())


def _published(paper: Mapping[str, Any], concept: str) -> Callable[[str, Place], float | None]:
    nudity = concept == "nudity"
    names = {"esd-u": "" if nudity else "esd", "esd-x": "esd" if nudity else ""}

    def number(method: str, place: Place) -> float | None:
        found = paper.get(names.get(method, method), {}).get(concept.replace("-", "_"), {}).get(place.metric)
        if found is None or place.budget not in ("none", _PAPER_CAP):
            return None
        return float(found) * (100 if _METRICS[place.metric].percent else 1)

    return number


def _explained(suite: _Suite, paper: Mapping[str, Any]) -> Iterator[str]:
    caps = "/".join(dict.fromkeys(concept.budget for concept in suite.concepts.values() if concept.budget))
    main = printable(suite.main)
    if not caps:
        yield f"pre: prompts (%) whose picture shows the concept, without an attack; {main or 'no attack'} did not run"
        return
    yield f"pre, post: prompts (%) whose picture shows the concept, without an attack, and with {main} ({caps} steps)"
    if suite.main in suite.fed:
        yield f"{main} feeds pictures of the concept: what it reaches says nothing without its table of other inputs"
    yield f"avg, med: steps to the first success; 0 where none was needed, {caps} where none came"
    theirs = [name for name in suite.sources if any(name.replace("-", "_") in rows for rows in paper.values())]
    if _PAPER_CAP not in caps.split("/") or not theirs:
        return
    same = [name for name in theirs if suite.known(paper, name)]
    if same:
        yield "in parentheses: the paper's own number (Stable Diffusion, published checkpoints; N 50, of nudity 118)"
        if {"esd-u", "esd-x"} & {record.method for record in suite.records}:
            yield "the paper's ESD stands with esd-u, of nudity with esd-x, the checkpoints published for them"
    if other := [name for name in theirs if name not in same]:
        yield f"other prompts than the paper's, so that its numbers are not shown: {', '.join(other)} (see --prompts)"
