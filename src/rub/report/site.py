"""The report of a result folder: tables in every format, figures, and one static page that opens without a network."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rub.classification.metrics import METRICS_DECLARED
from rub.report.figures import CAPTIONS, classification_figures
from rub.report.grouping import Group, grouped, row_order
from rub.report.render import column_groups, to_csv, to_latex, to_markdown
from rub.report.table import Table
from rub.report.tables import classification_tables, failures, paper_numbers
from rub.store.records import Record

Facts = Mapping[str, Any]
_FORMATS = {"md": to_markdown, "tex": to_latex, "csv": to_csv}
_BETTER = {"up": "higher", "down": "lower", "reference": "closest to the retrained model"}
_WORDS = {
    "original": "Control: the model before unlearning. Its forgotten knowledge must be recoverable, else the "
    "measurement does not work.",
    "retrain": "Control: trained without the forget set from the start; what 'forgotten' looks like.",
    "sham": "Control: the original with the forgotten outputs switched off. It has unlearned nothing, yet scores that "
    "read the label alone call it perfect; the bias-free columns do not.",
    "UA": "How many forgotten images are still recognised. Under an attack, each image is first changed by at most "
    "the budget to bring its old output back.",
    "MIA": "How many forgotten images a membership attack calls members of the training set.",
    "excess": "UA under the attack minus that of the retrained model under the same attack (residual knowledge): what "
    "an attack on a model that never saw the data does not explain.",
    "ratio": "The same comparison as a ratio: images recovered from the method per image recovered from the retrained "
    "model, with one added to both counts.",
    "test": "UA on images of forgotten classes that nobody trained on: is a class recalled, or training images?",
    "steer": "Control: how many kept images the same search pushes into a forgotten class. Where it is as high as UA, "
    "the search could have produced the class rather than found it.",
    "noise": "Control: the best of as many random changes of the same size. What it recovers needs no search.",
    "logit AUC, linear probe": "Read the knowledge behind the output: they do not move when an output is only lowered.",
    "± and tie": "Intervals are over unlearning seeds; results that share an unlearned model count once. Methods whose "
    "intervals overlap share a letter: the data do not order them.",
    "!": "The search was still improving when it stopped, so the number is a lower bound.",
}


def write_report(
    records: Sequence[Record],
    curves: Sequence[Mapping[str, Any]],
    out: Path,
    facts: Facts,
    paper: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``tables/``, ``figures/`` and ``report/index.html`` into a result folder.

    Args:
        records: every row of the run.
        curves: success and loss against steps, one mapping per search (the rows of ``curves.json``).
        out: the result folder; is made when it is not there.
        facts: ``command``, and ``suite``: the suite as plain data with its experiments.
        paper: the paper's numbers for all experiments; None takes each experiment's own ``paper`` key of the suite.

    Returns:
        The path of the page.

    Raises:
        RubError: an experiment's ``paper`` key that the paper has no table for.
    """
    keys = {item.get("name", ""): item.get("paper", "") for item in _experiments(facts)}
    tables: list[Table] = []
    for name in dict.fromkeys(record.experiment for record in records):
        own = [record for record in records if record.experiment == name]
        tables += classification_tables(own, paper or paper_numbers(keys.get(name, "")))
    tables = list(_distinct(tables))
    folder = out / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    for table in tables:
        for suffix, render in _FORMATS.items():
            (folder / f"{table.name}.{suffix}").write_text(render(table), encoding="utf-8")
    figures = classification_figures(records, curves, out / "figures")
    return write_page(records, tables, figures, curves, out, facts)


def write_page(
    records: Sequence[Record],
    tables: Sequence[Table],
    figure_names: Sequence[str],
    curves: Sequence[Mapping[str, Any]],
    out: Path,
    facts: Facts,
) -> Path:
    """Write ``report/index.html``: one file without scripts, styles or fonts from elsewhere; every text is escaped.

    Args:
        records: every row of the run.
        tables: in the order of the page, with distinct names.
        figure_names: files in ``figures/``, as `classification_figures` returns them.
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
    content = _content(records, facts) | {
        "first": [table for table in tables if table.name.startswith("table1")],
        "others": [table for table in tables if not table.name.startswith("table1")],
        "figures": [
            {"svg": name, "png": name.removesuffix("svg") + "png", "caption": CAPTIONS[name.partition("-")[0]]}
            for name in figure_names
            if name.endswith(".svg")
        ],
        "searches": list(_searches(curves)),
    }
    page = out / "report" / "index.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(pages.get_template("index.html.j2").render(content), encoding="utf-8")
    return page


def _content(records: Sequence[Record], facts: Facts) -> dict[str, Any]:
    """Return what the page says in words."""
    suite = facts.get("suite") or {}
    return {
        "title": suite.get("name") or ", ".join(dict.fromkeys(record.suite for record in records)) or "no records",
        "summary": str(suite.get("summary", "")).rstrip("."),
        "runs": [_run(group, own, facts) for group, own in grouped(records).items()],
        "words": _WORDS,
        "metrics": METRICS_DECLARED,
        "better": _BETTER,
        "failed": list(failures(records)),
        "command": str(facts.get("command", "")),
        "versions": _versions(records),
    }


def _run(group: Group, records: Sequence[Record], facts: Facts) -> dict[str, Any]:
    """Return what the page says of one group: data, network, protocol, seeds, devices, sizes."""
    import yaml

    found = [item for item in _experiments(facts) if item.get("name", "") == group.experiment]
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


def _searches(curves: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield how many seeds of each search had stopped improving, and what it cost."""
    fields = ("method", "attack", "budget", "split")
    found: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for curve in curves:
        found.setdefault((*(curve[field] for field in Group._fields), *(curve[f] for f in fields)), []).append(curve)
    order = row_order(str(rows[0]["method"]) for rows in found.values())
    for rows in sorted(found.values(), key=lambda rows: order.index(str(rows[0]["method"]))):
        finished = sum(bool(row["converged"]) for row in rows)
        yield {
            **{field: rows[0][field] for field in fields},
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


def _distinct(tables: Iterable[Table]) -> Iterator[Table]:
    """Yield the tables, numbered where two groups would share a file name."""
    taken: set[str] = set()
    for table in tables:
        number, name = 1, table.name
        while name in taken:
            number, name = number + 1, f"{table.name}-v{number + 1}"
        taken.add(name)
        yield replace(table, name=name)
