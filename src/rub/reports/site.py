"""The pages of a report: a leaderboard, a page per experiment and per method, and one in plain words.

Static files that open from the file system: no script, style, font or picture comes from elsewhere, and every text is
escaped, since records may come from anyone.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rub.config.documents import write_yaml
from rub.config.suite import protocols_of
from rub.metrics.base import metrics_of
from rub.metrics.dose import DOSES
from rub.registry import METHODS
from rub.reports.board import Board, BoardRow, boards
from rub.reports.cards import Described, described
from rub.reports.comparison import apart
from rub.reports.folders import protocols_in
from rub.reports.grouping import controls_of, grouped
from rub.reports.pages import Page, provenance, run_facts, searches, versions
from rub.reports.table import column_groups
from rub.reports.tables import failures
from rub.reports.task_report import report_of
from rub.reports.text import free_name, printable, slug

if TYPE_CHECKING:
    from jinja2 import Environment

_BETTER = {"up": "higher", "down": "lower", "reference": "closest to the retrained model"}


def write_site(pages: Sequence[Page], out: Path, title: str, refused: Mapping[str, str] | None = None) -> Path:
    """Write ``index.html``, ``words.html``, ``experiments/`` and ``methods/``, and return the path of the first.

    `refused` says for result folders why they are not shown.
    """
    templates = _templates()
    runs = _apart(pages)
    made = _marked(
        boards(
            (page.slug, group, own, page.main)
            for page in pages
            for group, own in grouped(page.records, page.group.task).items()
        ),
        pages,
        runs,
    )
    names = _method_files(pages)
    shared = {"title": title, "pages": pages, "apart": runs, "tasks": _tasks(pages), "method_files": names}
    _write(templates, out / "index.html", "index.html.j2", "", {
        **shared, "boards": made, "refused": dict(refused or {}),
    })  # fmt: skip
    for page in pages:
        _write(templates, out / "experiments" / f"{page.slug}.html", "experiment.html.j2", "../", {
            **shared, "page": page, "runs": list(run_facts(page)), "searches": list(searches(page)),
            "provenance": list(provenance(page.records)), "failed": list(failures(page.records)),
            "versions": versions(page.records),
        })  # fmt: skip
    for (task, method), name in names.items():
        own = [_beside_controls(board, method) for board in made if board.task == task]
        _write(templates, out / "methods" / f"{name}.html", "method.html.j2", "../", {
            **shared, "method": method, "task": task, "boards": [board for board in own if board.rows],
            "about": _about(task, method), "control": controls_of(task).get(method, ""),
        })  # fmt: skip
    _write(templates, out / "words.html", "words.html.j2", "", {**shared, "better": _BETTER})
    for name in ("site.css", "site.js"):
        text = templates.loader.get_source(templates, name)[0] if templates.loader else ""
        (out / name).write_text(text, encoding="utf-8")
    return out / "index.html"


def _templates() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("rub.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=_shown,
    )  # fmt: skip
    made.globals["controls_of"] = controls_of
    made.filters |= {"spans": column_groups, "short": _short}
    return made


def _write(templates: "Environment", path: Path, template: str, root: str, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(templates.get_template(template).render({**content, "root": root}), encoding="utf-8")


def _marked(made: Iterable[Board], pages: Iterable[Page], runs: Mapping[str, str]) -> list[Board]:
    """Boards whose rows say whether they were attacked again, and which run they are of."""
    told = {page.slug: page.folder.reattacked for page in pages}

    def mark(row: BoardRow) -> BoardRow:
        again = told[row.page].get((row.group.task, row.group.experiment, row.method), "")
        return replace(row, reattacked=again, apart=runs[row.page])

    return [replace(board, rows=tuple(map(mark, board.rows))) for board in made]


def _apart(pages: Sequence[Page]) -> dict[str, str]:
    """Page -> what tells its run from those of other pages with the same suite, data, network and protocol."""
    found: dict[str, str] = {}
    for group in dict.fromkeys(page.group for page in pages):
        own = [page for page in pages if page.group == group]
        asked = [{"experiments": page.experiments} for page in own]
        found |= {page.slug: words for page, words in zip(own, apart(asked), strict=True)}
    return found


def _beside_controls(board: Board, method: str) -> Board:
    places = {(row.page, row.group) for row in board.rows if row.method == method}
    kept = (row for row in board.rows if row.method == method or (row.control and (row.page, row.group) in places))
    return replace(board, rows=tuple(kept) if places else ())


def _method_files(pages: Iterable[Page]) -> dict[tuple[str, str], str]:
    names: dict[tuple[str, str], str] = {}
    for page in pages:
        for method in dict.fromkeys(printable(record.method) for record in page.records if record.method != DOSES):
            if (page.group.task, method) not in names:
                name = f"{slug(page.group.task)}-{slug(method)}"
                names[page.group.task, method] = free_name(name, names.values())
    return names


def _tasks(pages: Iterable[Page]) -> dict[str, Any]:
    return {
        task: {"reporting": report_of(task), "metrics": metrics_of(task), "protocols": list(_protocols(task, pages))}
        for task in dict.fromkeys(page.group.task for page in pages)
    }


def _protocols(task: str, pages: Iterable[Page]) -> Iterator[tuple[str, str]]:

    own = [page for page in pages if page.group.task == task]
    known = {name: found for page in own for (_, name), found in protocols_in(page.folder.suite).items()}
    known |= protocols_of(task)
    for name in dict.fromkeys(page.group.protocol for page in own):
        if name in known:
            yield name, write_yaml(known[name].model_dump(mode="json"), width=90)


def _about(task: str, method: str) -> Described | None:
    entry = next((entry for entry in METHODS.entries(task) if entry.name == method), None)
    return None if entry is None else described(entry)


def _shown(value: Any) -> Any:
    """Text without control characters, which no page may hold; what is escaped already stays as it is."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in value)


def _short(key: str) -> str:
    return printable(key)[:12]
