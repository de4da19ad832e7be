"""The tables of the classification task: pure functions from records to `Table`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from rub.metrics.base import direction_of
from rub.reports.grouping import (
    Mains,
    Place,
    board_of,
    budgets_of,
    estimate,
    grouped,
    is_control,
    kind_of,
    main_attack,
    row_order,
    tie_letters,
    told_apart,
)
from rub.reports.table import Cell, Column, Table, fitting
from rub.reports.tables import Columns, Source, failures, seeds_note
from rub.reports.text import printable, slug
from rub.store.records import Record
from rub.tasks.classification.metrics import GAPS, METRICS
from rub.tasks.classification.spec import ATTACK_PROTOCOL

_CLEAN = "no attack"  # a leaderboard's upper header
_TELLING = "2/255"  # of a curve: networks differ most there
_RADII = (("own_radius", "own"), ("other_radius", "other"), ("selectivity", "selectivity"), ("own_reached", "reached"))
FOUND_AGAIN = 0.9  # share of its own images that a search has to bring back from the original
REACHES = 0.5  # share of images on which it has to reach another class
FALSE_MEMBERS = 0.05  # share of a retrained model's attacked images that may be called members without a note
_GIVEN = "one choice of images and one set of shadow models"


def classification_tables(
    records: Sequence[Record], paper: Mapping[str, Any] | None = None, mains: Mains | None = None
) -> list[Table]:
    """Tables of every (suite, experiment, dataset, model, protocol) among the records.

    Table 1 in the paper's shape; the gap to retraining and what it costs; the paired contrast; what remains, without
    an attack; where it is; attacks and controls, one table per budget; and, when the main attack ran at more budgets
    than Table 1 shows, its robustness curve. Means are over seeds, intervals over images and models
    (`rub.metrics.statistics.estimate`). Each table fits 80 columns; `paper` is from
    `rub.reports.tables.paper_numbers`.
    """
    tables: list[Table] = []
    for group, own in grouped(records, "classification").items():
        source = Source(group, own, _explained, "UA is a lower bound", "Table 1", main_attack(own, mains))
        shown = headline(source.budgets)
        tables += [
            _table1(source, shown, paper or {}),
            _gap(source),
            _contrast(source),
            _remains(source),
            _layers(source),
        ]
        beside = set(source.others)
        others = {record.budget for record in own if record.attack in beside}
        budgets = budgets_of(own)
        kinds = [[one for one in budgets if kind_of(one) == kind] for kind in dict.fromkeys(map(kind_of, budgets))]
        wanted = others.union(*map(headline, kinds))
        tables += [_attacks(source, budget) for budget in budgets if budget in wanted]
        if len(source.budgets) > len(shown):
            tables.append(_curve(source))
    return [part for table in tables if table.columns for part in fitting(table)]


def headline(budgets: Sequence[str]) -> list[str]:
    """Budgets of the paper's table where both are there, else the two largest of the first kind.

    Example:
        >>> headline(["1/255", "8/255", "16/255", "32/255"]), headline(["32/255", "64/255", "l2:1"])
        (['8/255', '16/255'], ['32/255', '64/255'])
    """
    paper = ["8/255", "16/255"]
    first = [budget for budget in budgets if kind_of(budget) == kind_of(budgets[0])]
    return paper if set(paper) <= set(budgets) else first[-2:]


def leaders(records: Sequence[Record], main: str = "") -> list[Column]:
    """Columns of a leaderboard over these records, of any group; those without records are left out there.

    Example:
        >>> [column.title for column in leaders([])]
        ['TA ↑', 'UA ↓', 'own ≈', 'selectivity ≈', 'MIA ↓', 'log-odds AUC ≈']
    """
    main = main or main_attack(records)
    scenario = records[0].scenario if records else ""
    made, budgets = _columns(main, scenario), budgets_of(records, main)
    shown = headline(budgets)
    if records and records[0].protocol == ATTACK_PROTOCOL:  # attacks are compared, and stand beside one another
        return [made(at, "ua", at, attack=name, name=printable(name)) for at in shown for name in _searches(records)]
    columns = [made("", "ta"), made(_CLEAN, "ua")]
    if scenario:
        clean = [made(_CLEAN, name) for name in ("ra", "mia_svc", "mia_population", "boundary")]
        return [made("", "avg_gap"), *columns, *clean, *(made(budget, "ua", budget) for budget in shown)]
    curve = _TELLING in budgets
    if curve:
        columns.append(made(_TELLING, "ua", _TELLING))
    columns += [made(budget, "ua", budget) for budget in shown]
    for budget in shown[-1:]:
        columns.append(made(budget, "residual_knowledge", budget))
    columns += [made(_CLEAN, "own_radius"), made(_CLEAN, "selectivity")]
    return [*columns, made(_CLEAN, "mia_shadow"), made(_CLEAN, "log_odds_auc")]


def _searches(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(record.attack for record in records if record.attack != "none"))


def _columns(main: str, scenario: str) -> Columns:
    return Columns(METRICS, main, lambda metric, split: direction_of(metric.direction, scenario))


def _table1(source: Source, shown: Sequence[str], paper: Mapping[str, Any]) -> Table:
    group, records = source.group, source.records
    made = _columns(source.main, source.group.scenario)
    columns = [made("", "ta", decimals=2)]
    for budget in ("none", *shown):
        columns += [made(budget, "ua", budget, decimals=2), made(budget, "mia_shadow", budget)]
    table = source.table("table1", "Table 1", columns, _published(paper))
    notes = [seeds_note(records, table, _GIVEN), *table.notes]
    if any(cell.paper is not None for row in table.rows for cell in row.cells):
        notes.append(f"in parentheses: the paper's own number (its network: ResNet-50; here: {printable(group.model)})")
        if group.dataset == "tiny-imagenet":
            notes.append("the paper's TA here seems to count the forgotten classes: compare it with TA all")
    notes += [*_failed_controls(records, source.main), *_beyond(table, source.main), *_too_far(source)]
    tied = _ties(source, shown[-1]) if shown and not group.scenario else {}
    if tied:
        cells = [Cell((tied.get(row.label, ""),)) for row in table.rows]
        rows = [replace(row, cells=(*row.cells, cell)) for row, cell in zip(table.rows, cells, strict=True)]
        notes.append(
            f"tie: methods that share a letter are not told apart by paired tests of UA at {shown[-1]} over the same"
            " images and seeds (Holm, 5 %); a is best"
        )
        table = replace(table, columns=(*table.columns, Column("", "tie")), rows=tuple(rows))
    return replace(table, notes=(*notes, *failures(records)))


def _failed_controls(records: Sequence[Record], main: str) -> Iterator[str]:
    """What shows that a search is too weak to lean on: it does not bring back what is there, or reaches no class."""
    measured = [record for record in records if record.value is not None]
    known = [
        record for record in measured
        if (record.method, record.metric, record.split, record.attack) == ("original", "ua", "forget", main)
    ]  # fmt: skip
    for budget in budgets_of(known):
        share = fmean(record.value or 0.0 for record in known if record.budget == budget)
        if share < FOUND_AGAIN:
            yield (
                f"CONTROL FAILED: at {budget} the search brings back {100 * share:.0f} % of the images from the"
                " original itself, which forgot nothing: what it does not bring back is no evidence of forgetting"
            )
    reach = [record for record in measured if (record.metric, record.split) == ("other_reached", "forget")]
    blind = dict.fromkeys(record.method for record in reach if (record.value or 0.0) < REACHES)
    if blind:
        yield (
            f"CONTROL FAILED: of {', '.join(map(printable, blind))}, most images reach no other class either, so that"
            " the search says nothing about their own"
        )


def _beyond(table: Table, main: str) -> list[str]:
    cells = [
        (column, cell)
        for row in table.rows
        if row.label == "retrain"
        for column, cell in zip(table.columns, row.cells, strict=True)
        if column.place and column.place.metric == "mia_shadow" and column.place.attack == main
    ]
    found = [f"{cell.value:.3f} at {column.group}" for column, cell in cells if (cell.value or 0.0) > FALSE_MEMBERS]
    if not found:
        return []
    return [
        f"MIA of attacked images calls retrain's members ({', '.join(found)}), which never saw them: where a search "
        "ends, outputs are unlike those that the MIA learned from; values up to that are no evidence"
    ]


def _too_far(source: Source) -> Iterator[str]:
    """Where single samples are forgotten: rows that recognise fewer of them than the retrained model does."""
    if not source.group.scenario:
        return
    board, place = board_of(source.records), Place("ua", "forget", "none", "none")
    reference = next((board[row, place] for row in ("retrain", "retrained") if (row, place) in board), ())
    said = estimate(reference, 100)
    for method in dict.fromkeys(record.method for record in source.records):
        own = board.get((method, place), ())
        found = estimate(own, 100)
        if said and found and found.mean < said.mean and told_apart(own, reference):
            yield (
                f"OVER-FORGOTTEN: {printable(method)} recognises {found.mean:.1f} % of the forgotten images, a model"
                f" that never saw them {said.mean:.1f} %: they stand out, which is no forgetting"
            )


def _gap(source: Source) -> Table:
    made = _columns(source.main, source.group.scenario)
    columns = [made("", name) for name in ("avg_gap", *GAPS, "klom", "ulira")]
    columns.append(made("", "passes", controls=True))
    table = source.table("gap", "Distance to the retrained model, and what it costs", columns)
    if not any(column.place and column.place.metric == "avg_gap" for column in table.columns):
        return replace(table, columns=())
    seconds = {
        printable(method): fmean(record.seconds for record in found)
        for (method, place), found in board_of(source.records).items()
        if place[:3] == ("ua", "forget", "none") and all(record.status == "ok" for record in found)
    }
    rows = tuple(
        replace(row, cells=(*row.cells, Cell((f"{seconds[row.label]:.0f}" if seconds.get(row.label) else "-",))))
        for row in table.rows
    )
    notes = (
        *table.notes,
        "avg gap: mean distance to the retrained model in UA, RA, TA and MIA SVC; retrain's own: to another seed of it",
        "passes: images through the network, teachers included, per training image; RTE: seconds, means over seeds",
    )
    return replace(table, columns=(*table.columns, Column("", "RTE", unit="s")), rows=rows, notes=notes)


def _contrast(source: Source) -> Table:
    made = _columns(source.main, source.group.scenario)
    columns = [
        made(images, metric, split=split, name=name)
        for images, split in (("forgotten images", "forget"), ("unseen images", "forget_test"))
        for metric, name in _RADII
    ]
    columns.append(made("", "boundary"))
    return source.table("contrast", "Paired contrast: log2 radius in 1/255", columns)


def _remains(source: Source) -> Table:
    made = _columns(source.main, source.group.scenario)
    columns = [
        made("TA", "ta", name="kept"),
        made("TA", "ta_all", name="all"),
        made("", "ra"),
        made("UA", "ua_test", name="test"),
        made("", "zrf"),
        made("MIA", "mia_svc", name="SVC"),
        made("MIA", "mia_population", name="population"),
        made("MIA", "mia_rmia"),
        made("MIA", "mia_lira"),
    ]
    return source.table("remains", "What remains, without an attack", columns)


def _layers(source: Source) -> Table:
    made = _columns(source.main, source.group.scenario)
    columns = [
        made("log-odds", "log_odds_auc", name="AUC"),
        made("head", "head_refit", name="refitted"),
        made("transplant", "transplant", name="UA"),
        made("transplant", "transplant_ta", name="TA"),
        made("probe", "probe_balanced", name="balanced"),
        made("probe", "probe_accuracy", name="recall"),
        made("", "prototypes"),
        made("relearning", "relearn", name="all"),
        made("relearning", "relearn_retain", name="kept"),
    ]
    return source.table("layers", "Where it is: head, features, weights", columns)


def _attacks(source: Source, budget: str) -> Table:
    made = _columns(source.main, source.group.scenario)
    columns = [
        made(source.main, "ua_before", budget),
        made(source.main, "ua", budget),
        made(source.main, "ua", budget, "other", name="other", controls=True),
        made(source.main, "residual_knowledge", budget),
        made(source.main, "residual_ratio", budget),
        made(source.main, "ua_test", budget, name="test"),
        made(source.main, "ua", budget, "retain", name="steer", controls=True),
        *(made(name, "ua", budget, attack=name) for name in source.others),
    ]
    table = source.table(f"attacks-{slug(budget.partition('/')[0])}", f"Attacks and controls at {budget}", columns)
    compared = source.group.protocol == ATTACK_PROTOCOL and source.others
    return _with_worst(table, source, budget) if compared else table


def _with_worst(table: Table, source: Source, budget: str) -> Table:
    """The table with a column that says what the worst of all attacks brings back of each row, and which that is."""
    board, attacks = board_of(source.records), (source.main, *source.others)
    worst: dict[str, str] = {}
    for method in dict.fromkeys(record.method for record in source.records):
        found = {name: estimate(board.get((method, Place("ua", "forget", name, budget)), ()), 100) for name in attacks}
        means = {name: interval.mean for name, interval in found.items() if interval is not None}
        if any(means.values()):
            name = max(means, key=lambda one: means[one])  # the first of equals
            worst[printable(method)] = f"{means[name]:.1f} {printable(name)}"
    rows = [replace(row, cells=(*row.cells, Cell((worst.get(row.label, "-"),)))) for row in table.rows]
    note = "worst of all: the most that any of these attacks brings back, and which; of equals the first"
    columns = (*table.columns, Column("", "worst of all"))
    return replace(table, columns=columns, rows=tuple(rows), notes=(*table.notes, note))


def _curve(source: Source) -> Table:
    made = _columns(source.main, source.group.scenario)
    lines = (
        ("UA", "ua", "forget"), ("other", "ua", "other"), ("test", "ua_test", "forget_test"), ("steer", "ua", "retain"),
    )  # fmt: skip
    columns = [
        made(f"{name} at", metric, budget, split, name=budget, controls=name in ("other", "steer"))
        for name, metric, split in lines
        for budget in ("none", *source.budgets)
    ]
    return source.table("curve", f"Robustness curve of {printable(source.main)}, and its controls", columns)


def _published(paper: Mapping[str, Any]) -> Callable[[str, Place], float | None]:
    def number(method: str, place: Place) -> float | None:
        key = {"ta": "ta", "ua": "ua", "mia_shadow": "mia"}.get(place.metric)
        if key is None or method not in paper:
            return None
        value = paper[method].get("ta") if key == "ta" else paper[method].get(place.budget, {}).get(key)
        return None if value is None else float(value)

    return number


def _ties(source: Source, budget: str) -> dict[str, str]:
    board, place = board_of(source.records), Place("ua", "forget", source.main, budget)
    order = row_order((record.method for record in source.records), source.group.task)
    rows = (method for method in order if not is_control(method, source.group.task))
    return tie_letters({printable(name): board.get((name, place), ()) for name in rows})


def _explained(columns: Sequence[Column], records: Sequence[Record]) -> Iterator[str]:
    if any(column.name == "excess" for column in columns):
        yield "excess: UA minus the retrained model's under the same attack, in points (residual knowledge)"
        yield "ratio: recovered images per recovered image of the retrained model, (1 + sum u) / (1 + sum r)"
    if any(column.name == "selectivity" for column in columns):
        yield "own, other: log2 of the smallest change, in 1/255, that makes an image its own or another class"
        yield "selectivity: other - own of an image, above 0 where its own class is the nearer one"
        yield "reached: images that reach their class within the change that takes 9 of 10 to another one"
    if any(column.name == "before" for column in columns):
        yield "before: UA of the attacked images themselves, without the attack"
    if any(column.place and (column.place.metric, column.place.split) == ("ua", "other") for column in columns):
        yield "other: the same images searched towards another class each; where that works as often, UA is no evidence"
    if any(column.group == "transplant" for column in columns):
        yield "transplant: the original's last layer on these features; TA says whether it fits them at all"
        yield "refitted, balanced, prototypes: balanced accuracy of forgotten and kept, from a few images a class"
    if any(column.group == "relearning" for column in columns):
        yield "relearning: log2 of the steps of fine-tuning, on all classes or kept ones alone, until half is back"
    if any(column.place and column.place.metric == "boundary" for column in columns):
        yield "boundary AUC: how well log2(other / own) tells forgotten from unseen images of their classes; .5: chance"
    if any("steer" in (column.name, column.group.removesuffix(" at")) for column in columns):
        yield "test: unseen images of forgotten classes; steer: kept images pushed into a forgotten class (control)"
