"""Writing a report: of a run, into its result folder; or of several result folders, as one site."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rub.errors import RubError
from rub.pipeline.execution import one_line
from rub.reports.figure_file import FigureFile
from rub.reports.figures import draw_figures
from rub.reports.folders import ResultFolder, claims_of, copy_gallery, delete_files, mains_of, outside, read_folder
from rub.reports.galleries import draw_galleries
from rub.reports.grouping import Group
from rub.reports.pages import Page, merged, page_slug, tables_of, tabulated
from rub.reports.render import to_csv, to_latex, to_markdown
from rub.reports.site import write_site
from rub.reports.table import Table
from rub.store import manifest as sealing
from rub.store.records import Record

FORMATS = ("html", "md", "tex", "csv")
_STRANGE = "this installation does not know the task"
_UNREPORTED = (RubError, ValueError, TypeError, IndexError, KeyError, ArithmeticError)
"""What numbers of others may bring about on their way into a table."""
_RENDER = {"md": to_markdown, "tex": to_latex, "csv": to_csv}


def write_report(
    records: Sequence[Record],
    curves: Sequence[Mapping[str, Any]],
    out: Path,
    facts: Mapping[str, Any],
    made: Sequence[tuple[Group, Sequence[Record], list[Table]]] | None = None,
    galleries: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write ``tables/``, ``figures/`` and the pages of ``report/`` into the result folder of a run.

    Args:
        records: every row of the run.
        curves: the rows of ``curves.json``, one for each search.
        out: the result folder; is made when it is not there.
        facts: ``command``, ``suite`` as plain data, and ``data``, the `DataFacts` of each experiment.
        made: pages with their tables, where `rub.reports.pages.tabulated` made them already.
        galleries: as for `rub.reports.galleries.draw_galleries`.

    Returns:
        The path of the leaderboard, ``report/index.html``.

    Raises:
        RubError: an experiment's ``paper`` key that the paper has no table for, or a gallery that cannot be read.
    """
    suite = facts.get("suite") or {}
    drawn = [
        *draw_figures(records, curves, out / "figures", mains=mains_of(suite)),
        *draw_galleries(galleries, out / "figures"),
    ]
    pictures = [{"group": list(one.group), "name": one.name, "caption": one.caption} for one in drawn if not one.vector]
    if pictures:
        (out / "galleries.json").write_text(json.dumps(pictures, indent=1), encoding="utf-8")
    claims, data = tuple(claims_of(out / "witnesses")), tuple(facts.get("data") or ())
    folder = ResultFolder((), records, curves, suite, str(facts.get("command", "")), tuple(drawn), claims, data)
    slugs: set[str] = set()
    pages = []
    for group, own, tables in tabulated(records, suite) if made is None else made:
        mine = [one for one in drawn if one.group._replace(experiment="") == group]
        pages.append(Page(group, page_slug(group, slugs), own, tables, mine, "../../figures", folder))
    _write_tables([table for page in pages for table in page.tables], out / "tables", tuple(_RENDER))
    known = {page.group.task for page in pages}
    strangers = {f"records of {record.task}": _STRANGE for record in records if record.task not in known}
    title = str(suite.get("name") or ", ".join(dict.fromkeys(record.suite for record in records)) or "no records")
    return write_site(pages, out / "report", title, strangers)


def write_reports(
    folders: Sequence[Path], out: Path, formats: Sequence[str] = FORMATS, workers: int = 1
) -> tuple[Path, dict[str, str]]:
    """Write one site, and tables, of several result folders; nothing in them is trusted.

    Args:
        folders: written by ``rub run --out``, by anyone.
        out: the site's folder; is made when it is not there.
        formats: of `FORMATS`.
        workers: processes that draw figures; a script that asks for several needs ``if __name__ == "__main__":``.

    Returns:
        The leaderboard (without ``html``, the folder of the tables), and result folder -> why it is not shown.

    Raises:
        RubError: an unknown format, a place that cannot be written, or no folder that can be shown; the first reason.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise RubError(f"--format {','.join(formats)}: should be some of {', '.join(FORMATS)}")
    places = [place for given in folders for place in _below(given)]
    outside(out, places)
    read: list[ResultFolder] = []
    refused: dict[str, str] = {}
    for path in places:
        try:
            read.append(read_folder(path))
        except RubError as error:
            refused[str(path)] = str(error)
    try:
        _clear(out)
        pages = _pages(merged(read), out, formats, workers, refused)
        if not pages:
            raise RubError(next(iter(refused.values()), "these folders hold no records of a known task"))
        if "html" not in formats:
            return out / "tables", refused
        return write_site(pages, out, "Leaderboard", refused), refused
    except OSError as error:
        raise RubError(f"--out {out}: cannot be written ({error.strerror}); give another folder") from None


def _clear(out: Path) -> None:
    """Take away the pages of a report before: what is withdrawn must not stay."""
    for name in ("experiments", "methods", "figures", "tables"):
        if (out / name).is_symlink():
            (out / name).unlink()
        delete_files(out / name)


def _below(path: Path) -> list[Path]:
    if not path.is_dir() or any((path / name).exists() for name in ("records.parquet", "records.json")):
        return [path]
    inside = [item for item in sorted(path.iterdir()) if item.is_dir() and not item.is_symlink()]
    return [item for item in inside if any((item / name).exists() for name in sealing.OWN)] or [path]


def _pages(
    parts: Iterable[tuple[Group, ResultFolder, Sequence[Record]]],
    out: Path,
    formats: Sequence[str],
    workers: int,
    refused: dict[str, str],
) -> list[Page]:
    """Pages after writing their tables, and their figures where there are to be pages.

    One whose records cannot be reported is added to `refused` instead: the others must not suffer from it.
    """
    slugs: set[str] = set()
    pages = []
    for group, folder, records in parts:
        name = page_slug(group, slugs)
        try:
            tables = tables_of(records, folder.suite, set())
        except _UNREPORTED as error:
            refused.update({str(place): f"{place}: cannot be reported ({one_line(error)})" for place in folder.places})
            continue
        _write_tables(tables, out / "tables" / name, formats)
        pages.append(Page(group, name, records, tables, (), f"../figures/{name}", folder))
    if "html" not in formats:
        return pages
    work = [
        (page.records, page.curves, out / "figures" / page.slug, ("svg",), mains_of(page.folder.suite))
        for page in pages
    ]
    return [
        replace(page, drawn=[*figures, *_copied(page, out / "figures" / page.slug)])
        for page, figures in zip(pages, _drawn(work, workers), strict=True)
    ]


def _drawn(work: Sequence[tuple[Any, ...]], workers: int) -> list[list[FigureFile]]:
    """Draw the figures of every page, in several processes where that is worth their start."""
    if min(workers, len(work)) < 2:
        return [draw_figures(*one) for one in work]
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(min(workers, len(work)), get_context("spawn")) as pool:
        return list(pool.map(draw_figures, *zip(*work, strict=True)))


def _copied(page: Page, target: Path) -> list[FigureFile]:
    """Copy the galleries of a page's folders, those that they still have; one that is no picture is left out."""
    kept = []
    for one in page.folder.drawn:
        sources = (place / "figures" / f"{one.name}.png" for place in page.folder.places)
        source = next((path for path in sources if path.is_file()), None)
        if source is not None and one.group._replace(experiment="") == page.group:
            with suppress(RubError):
                copy_gallery(source, target / f"{one.name}.png")
                kept.append(one)
    return kept


def _write_tables(tables: Iterable[Table], folder: Path, formats: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for table in tables:
        for suffix in formats:
            if suffix in _RENDER:
                (folder / f"{table.name}.{suffix}").write_text(_RENDER[suffix](table), encoding="utf-8")
