"""What a report's pages show, as plain values: the experiments of result folders, and their provenance cell by cell."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rub.config.documents import write_yaml
from rub.reports.figure_file import FigureFile
from rub.reports.folders import Claim, ResultFolder, mains_of
from rub.reports.grouping import Group, anchor, board_of, estimate, extracted, grouped, main_attack, row_order
from rub.reports.table import Table
from rub.reports.task_report import TaskReport, report_of, reports_of
from rub.reports.text import free_name, printable, slug
from rub.store.records import Record


@dataclass(frozen=True)
class Page:
    """One suite on one data set, with one network, under one protocol; what was read, or run, is its folder.

    Its group names no experiment, since it may hold several; `slug` is its file name without suffix, `media` leads from
    it to its figures and galleries, which are `drawn`.
    """

    group: Group
    slug: str
    records: Sequence[Record]
    tables: Sequence[Table]
    drawn: Sequence[FigureFile]
    media: str
    folder: ResultFolder

    @property
    def main(self) -> str:
        """Main attack of its protocol."""
        return main_attack(self.records, mains_of(self.folder.suite))

    @property
    def reporting(self) -> TaskReport:
        """How its task is reported."""
        return report_of(self.group.task)

    @property
    def claims(self) -> list[Claim]:
        """Files of witnesses of its task."""
        return [claim for claim in self.folder.claims if claim.task == self.group.task]

    @property
    def curves(self) -> list[Mapping[str, Any]]:
        """Searches of its experiments."""
        return [curve for curve in self.folder.curves if page_group(curve) == self.group]

    @property
    def experiments(self) -> list[Mapping[str, Any]]:
        """What was asked for, of its experiments."""
        names = {record.experiment for record in self.records}
        asked = self.folder.suite.get("experiments") or ()
        return [item for item in asked if item.get("task") == self.group.task and item.get("name", "") in names]


def page_group(row: Record | Mapping[str, Any]) -> Group:
    """Page that a record, or a row with the fields of `Group`, belongs to."""
    return Group.of(row)._replace(experiment="")


def page_records(records: Iterable[Record]) -> dict[Group, list[Record]]:
    """Records of each page, tasks in the order of the registry; unknown tasks are left out."""
    found: dict[Group, list[Record]] = {}
    for record in records:
        found.setdefault(page_group(record), []).append(record)
    known = list(reports_of(group.task for group in found))
    return {group: found[group] for task in known for group in found if group.task == task}


def tables_of(records: Sequence[Record], suite: Mapping[str, Any], taken: set[str]) -> list[Table]:
    """Tables of one page, numbered where their names are `taken` already, to which they are added.

    Raises:
        RubError: an experiment's ``paper`` key that the paper has no table for.
    """
    task = records[0].task
    experiments = [item for item in suite.get("experiments") or () if item.get("task") == task]
    keys = {str(item.get("name", "")): str(item.get("paper") or "") for item in experiments}
    tables: list[Table] = []
    for table in report_of(task).tables_of(records, keys, mains_of(suite)):
        name = free_name(table.name, taken, "-v")
        taken.add(name)
        tables.append(replace(table, name=name))
    return tables


def tabulated(records: Iterable[Record], suite: Mapping[str, Any]) -> list[tuple[Group, Sequence[Record], list[Table]]]:
    """Pages of one run, each with its records and tables, whose names all differ."""
    taken: set[str] = set()
    return [(group, own, tables_of(own, suite, taken)) for group, own in page_records(records).items()]


def page_slug(group: Group, taken: set[str]) -> str:
    """File name of a page, numbered where it is taken already; it is added to `taken`."""
    name = free_name(slug("-".join((group.suite, group.dataset, group.model, group.protocol))), taken)
    taken.add(name)
    return name


def merged(folders: Iterable[ResultFolder]) -> list[tuple[Group, ResultFolder, list[Record]]]:
    """Pages of several folders; parts of one suite, measured apart, become one page.

    Two folders are parts of one page where they share cells, such as those of the controls, and all that both measured
    came from the same stages with the same values; a cell that failed in one is taken from the other. Else each has
    its own page: nothing is averaged over two runs.
    """
    pages: list[tuple[Group, ResultFolder, list[Record]]] = []
    for folder in folders:
        for group, records in page_records(folder.records).items():
            for index, (other, first, own) in enumerate(pages):
                if other == group and _parts(own, records):
                    pages[index] = (group, _joined(first, folder), _together(own, records))
                    break
            else:
                pages.append((group, folder, list(records)))
    return pages


def _cell(record: Record) -> tuple[Any, ...]:
    """Which cell a record fills; a failed one names no extractor, and stands for all of its metric."""
    where = (record.experiment, record.method, record.metric, record.split, record.attack, record.budget)
    return (*where, record.unlearn_seed, record.mia_seed, record.original)


def _said(records: Iterable[Record]) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    measured = (record for record in records if record.status == "ok")
    return {(*_cell(r), r.extractor): (r.key, r.value, r.n) for r in measured}


def _parts(own: Sequence[Record], records: Sequence[Record]) -> bool:
    one, other = _said(own), _said(records)
    return bool(one.keys() & other) and all(one[cell] == other[cell] for cell in one.keys() & other)


def _together(own: Sequence[Record], records: Sequence[Record]) -> list[Record]:
    """Records of both, each cell once; what was measured takes the place of what failed."""
    both = [*own, *records]
    measured = {_cell(record) for record in both if record.status == "ok"}
    kept: dict[tuple[Any, ...], Record] = {}
    for record in both:
        if record.status == "ok" or _cell(record) not in measured:
            kept.setdefault((*_cell(record), record.extractor), record)
    return list(kept.values())


def _joined(first: ResultFolder, other: ResultFolder) -> ResultFolder:
    """Two folders as one: searches, claims, pictures and commands of both."""
    names = {claim.file for claim in first.claims}
    pictures = {one.name for one in first.drawn}
    asked, also = (folder.suite.get("experiments") or [] for folder in (first, other))
    return replace(
        first,
        places=(*first.places, *other.places),
        suite={**first.suite, "experiments": [*asked, *(item for item in also if item not in asked)]},
        command="\n".join(dict.fromkeys(line for line in (first.command, other.command) if line)),
        curves=[*first.curves, *(curve for curve in other.curves if curve not in first.curves)],
        drawn=(*first.drawn, *(one for one in other.drawn if one.name not in pictures)),
        claims=(*first.claims, *(claim for claim in other.claims if claim.file not in names)),
        reattacked={**other.reattacked, **first.reattacked},
        data=(*first.data, *(facts for facts in other.data if facts not in first.data)),
    )


def provenance(records: Sequence[Record]) -> Iterator[dict[str, Any]]:
    """Every cell of a page with the records behind it: the chain from a number to weights, stage and code."""
    if not records:
        return
    for group, found in grouped(records, records[0].task).items():
        board = board_of(extracted(found))
        order = row_order((method for method, _ in board), group.task)
        for (method, place), behind in sorted(board.items(), key=lambda item: order.index(item[0][0])):
            mean = estimate(behind)
            words = (group.experiment, method, place.metric, f"on {place.split}")
            searched = () if place.attack == "none" else (f"{place.attack} at {place.budget}",)
            yield {
                "id": anchor(group, method, place),
                "title": printable(", ".join(part for part in (*words, *searched, place.extractor) if part)),
                "mean": "no value" if mean is None else f"{mean.mean:.6g}",
                "rows": behind,
            }


def run_facts(page: Page) -> Iterator[dict[str, Any]]:
    """What is said of each experiment of a page: data, network, protocol, seeds, devices, sizes."""
    for group, records in grouped(page.records, page.group.task).items():
        found = [item for item in page.experiments if item.get("name", "") == group.experiment]
        experiment: dict[str, Any] = dict(found[0]) if found else {}
        asked = experiment.pop("protocol", None)
        protocol: dict[str, Any] = dict(asked) if isinstance(asked, dict) else {}
        seeds = {record.unlearn_seed for record in records if record.unlearn_seed is not None}
        told = [facts for facts in page.folder.data if (facts.task, facts.experiment) == (group.task, group.experiment)]
        mia = {record.mia_seed for record in records if record.mia_seed is not None}
        lines = {
            "data": group.dataset,
            "forgotten": ", ".join(one for facts in told for one in facts.forgotten),
            "images": "; ".join(note for facts in told for note in facts.notes),
            "network": group.model,
            "published by others": page.folder.published,
            "protocol": group.protocol + (f": {protocol['summary']}" if protocol.get("summary") else ""),
            "seeds": f"{len(seeds)} for unlearning" + (f", {len(mia)} for membership inference" if mia else ""),
            "device": ", ".join(sorted({record.device for record in records if record.device})),
            "cells": f"{len(records)}, of which {sum(record.status == 'failed' for record in records)} failed",
        }
        yield {
            "name": ", ".join(dict.fromkeys(part for part in group if part)),
            "facts": {name: text for name, text in lines.items() if text},
            "skipped": [name for facts in told for name in facts.skipped],
            "protocol": write_yaml(protocol, width=90) if protocol else "",
            "experiment": write_yaml(experiment, width=90) if experiment else "",
        }


def searches(page: Page) -> Iterator[dict[str, Any]]:
    """How many seeds of each search had stopped improving, and what it cost."""
    fields = ("experiment", "method", "attack", "budget", "split")
    found: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for curve in page.curves:
        found.setdefault(tuple(str(curve[field]) for field in fields), []).append(curve)
    order = row_order((key[1] for key in found), page.group.task)
    for key, rows in sorted(found.items(), key=lambda item: order.index(item[0][1])):
        finished = sum(bool(row["converged"]) for row in rows)
        yield {
            **dict(zip(fields, key, strict=True)),
            "split": ", ".join(part for part in (key[4], key[0]) if part),
            "seeds": len(rows),
            "finished": finished,
            "moving": finished < len(rows),
            "evaluations": round(sum(row["evaluations"] for row in rows) / len(rows)),
        }


def versions(records: Iterable[Record]) -> dict[str, str]:
    """Versions of RUB and of the libraries behind the records, and when they were made."""
    found: dict[str, dict[str, None]] = {}
    dates: set[str] = set()
    for record in records:
        for name, version in {"rub": record.code_version, **record.library_versions}.items():
            found.setdefault(name, {})[version] = None
        dates.add(record.created)
    lines = {name: ", ".join(filter(None, made)) for name, made in found.items() if any(made)}
    known = dates - {""}
    return {**lines, **({"measured": f"{min(known)} to {max(known)}"} if known else {})}
