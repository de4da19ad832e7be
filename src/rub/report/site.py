"""The report of a result folder: tables in every format, figures, and one static page that opens without a network."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rub.registry import TASKS
from rub.report.drawn import Drawn
from rub.report.figures import draw_figures
from rub.report.galleries import draw_galleries
from rub.report.grouping import Group, grouped, row_order, slug
from rub.report.render import to_csv, to_latex, to_markdown
from rub.report.reporting import Reporting, reportings
from rub.report.table import Table, column_groups
from rub.report.tables import failures
from rub.store.records import Record

Facts = Mapping[str, Any]
_FORMATS = {"md": to_markdown, "tex": to_latex, "csv": to_csv}
_BETTER = {"up": "higher", "down": "lower", "reference": "closest to the retrained model"}


def write_report(
    records: Sequence[Record],
    curves: Sequence[Mapping[str, Any]],
    out: Path,
    facts: Facts,
    paper: Mapping[str, Any] | None = None,
    galleries: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write ``tables/``, ``figures/`` and ``report/index.html`` into a result folder.

    Args:
        records: every row of the run.
        curves: success and loss against steps, one mapping per search (the rows of ``curves.json``).
        out: the result folder; is made when it is not there.
        facts: ``command``, and ``suite``: the suite as plain data with its experiments.
        paper: the paper's numbers for all experiments; None takes each experiment's own ``paper`` key of the suite.
        galleries: pictures of what models make, as for `rub.report.galleries.draw_galleries`.

    Returns:
        The path of the page.

    Raises:
        RubError: an experiment's ``paper`` key that the paper has no table for, or a gallery that cannot be read.
    """
    tables: list[tuple[str, Table]] = []
    for task, reporting in reportings(record.task for record in records).items():
        of_task = [record for record in records if record.task == task]
        keys = {
            item.get("name", ""): item.get("paper", "") for item in _experiments(facts) if item.get("task", "") == task
        }
        tables += [(task, table) for table in reporting.tables_of(of_task, keys, paper)]
    tables = list(_distinct(tables))
    folder = out / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    for _, table in tables:
        for suffix, render in _FORMATS.items():
            (folder / f"{table.name}.{suffix}").write_text(render(table), encoding="utf-8")
    drawn = [*draw_figures(records, curves, out / "figures"), *draw_galleries(galleries, out / "figures")]
    return write_page(records, tables, drawn, curves, out, facts)


def write_page(
    records: Sequence[Record],
    tables: Sequence[tuple[str, Table]],
    drawn: Sequence[Drawn],
    curves: Sequence[Mapping[str, Any]],
    out: Path,
    facts: Facts,
) -> Path:
    """Write ``report/index.html``: one file without scripts, styles or fonts from elsewhere; every text is escaped.

    Args:
        records: every row of the run.
        tables: task and table in the order of the page, with distinct names.
        drawn: figures and galleries in ``figures/``.
        curves: the searches, for the list of those that did not finish.
        out: the result folder.
        facts: as for `write_report`.

    Returns:
        The path of the page.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = Environment(
        loader=PackageLoader("rub.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    pages.filters["spans"] = column_groups
    known = reportings(record.task for record in records)
    content = _content(records, list(known), facts) | {
        "tasks": [
            _section(
                task,
                reporting,
                [table for owner, table in tables if owner == task],
                [one for one in drawn if one.task == task],
                [curve for curve in curves if curve["task"] == task],
            )
            for task, reporting in known.items()
        ]
    }
    page = out / "report" / "index.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(pages.get_template("index.html.j2").render(content), encoding="utf-8")
    return page


def _content(records: Sequence[Record], tasks: Sequence[str], facts: Facts) -> dict[str, Any]:
    """Return what the page says in words of all tasks together."""
    suite = facts.get("suite") or {}
    return {
        "title": suite.get("name") or ", ".join(dict.fromkeys(record.suite for record in records)) or "no records",
        "summary": str(suite.get("summary", "")).rstrip("."),
        "runs": [_run(group, own, facts) for task in tasks for group, own in grouped(records, task).items()],
        "strangers": sorted({record.task for record in records} - set(tasks)),
        "better": _BETTER,
        "failed": list(failures(records)),
        "command": str(facts.get("command", "")),
        "versions": _versions(records),
    }


def _section(
    task: str,
    reporting: Reporting,
    tables: Sequence[Table],
    drawn: Sequence[Drawn],
    curves: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return what the page shows of one task."""
    return {
        "id": slug(task),
        "anchor": slug(reporting.prefix),
        "title": reporting.title,
        "heading": reporting.first,
        "first": [table for table in tables if table.name.startswith(reporting.prefix)],
        "others": [table for table in tables if not table.name.startswith(reporting.prefix)],
        "figures": [one for one in drawn if one.vector],
        "galleries": [one for one in drawn if not one.vector],
        "searches": list(_searches(curves, task)),
        "words": {name: f"Control: {text}" for name, text in reporting.controls.items()} | dict(reporting.words),
        "metrics": TASKS.get(task, task).load().metrics,
    }


def _run(group: Group, records: Sequence[Record], facts: Facts) -> dict[str, Any]:
    """Return what the page says of one group: data, network, protocol, seeds, devices, sizes."""
    import yaml

    asked = (group.task, group.experiment)
    found = [item for item in _experiments(facts) if (item.get("task", ""), item.get("name", "")) == asked]
    experiment: dict[str, Any] = dict(found[0]) if found else {}
    protocol = dict(experiment.pop("protocol", None) or {})
    seeds = {record.unlearn_seed for record in records if record.unlearn_seed is not None}
    mia = {record.mia_seed for record in records if record.mia_seed is not None}
    lines = {
        "data": group.dataset,
        "network": group.model,
        "protocol": group.protocol + (f": {protocol['summary']}" if protocol.get("summary") else ""),
        "seeds": f"{len(seeds)} for unlearning" + (f", {len(mia)} for membership inference" if mia else ""),
        "device": ", ".join(sorted({record.device for record in records if record.device})),
        "cells": f"{len(records)}, of which {sum(record.status == 'failed' for record in records)} failed",
    }
    return {
        "name": ", ".join(dict.fromkeys(part for part in group if part)),
        "facts": {name: text for name, text in lines.items() if text},
        "protocol_name": group.protocol,
        "protocol": yaml.safe_dump(protocol, sort_keys=False, width=90) if protocol else "",
        "experiment": yaml.safe_dump(experiment, sort_keys=False, width=90) if experiment else "",
    }


def _searches(curves: Iterable[Mapping[str, Any]], task: str) -> Iterator[dict[str, Any]]:
    """Yield how many seeds of each search had stopped improving, and what it cost."""
    fields = ("method", "attack", "budget", "split")
    found: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for curve in curves:
        found.setdefault((*(curve[field] for field in Group._fields), *(curve[f] for f in fields)), []).append(curve)
    order = row_order((str(rows[0]["method"]) for rows in found.values()), task)
    several = len({key[: len(Group._fields)] for key in found}) > 1
    for rows in sorted(found.values(), key=lambda rows: order.index(str(rows[0]["method"]))):
        finished = sum(bool(row["converged"]) for row in rows)
        yield {
            **{field: rows[0][field] for field in fields},
            **({"split": f"{rows[0]['split']}, {rows[0]['experiment'] or rows[0]['dataset']}"} if several else {}),
            "seeds": len(rows),
            "finished": finished,
            "moving": finished < len(rows),
            "evaluations": round(sum(row["evaluations"] for row in rows) / len(rows)),
        }


def _versions(records: Iterable[Record]) -> dict[str, str]:
    """Return the versions of RUB and of the libraries behind the records, and when they were made."""
    found: dict[str, dict[str, None]] = {}
    dates: list[str] = []
    for record in records:
        for name, version in {"rub": record.code_version, **record.library_versions}.items():
            found.setdefault(name, {})[version] = None
        dates.append(record.created)
    lines = {name: ", ".join(v for v in versions if v) for name, versions in found.items() if any(versions)}
    known = sorted(date for date in dates if date)
    return {**lines, **({"measured": f"{known[0]} to {known[-1]}"} if known else {})}


def _experiments(facts: Facts) -> Sequence[Mapping[str, Any]]:
    experiments: Sequence[Mapping[str, Any]] = (facts.get("suite") or {}).get("experiments") or ()
    return experiments


def _distinct(tables: Iterable[tuple[str, Table]]) -> Iterator[tuple[str, Table]]:
    """Yield the tables with their tasks, numbered where two groups would share a file name."""
    taken: set[str] = set()
    for task, table in tables:
        number, name = 1, table.name
        while name in taken:
            number, name = number + 1, f"{table.name}-v{number + 1}"
        taken.add(name)
        yield task, replace(table, name=name)
