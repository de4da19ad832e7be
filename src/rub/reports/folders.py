"""A result folder as a report reads it. It may come from anyone: nothing in it is trusted, or run, or followed."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from rub.config.documents import read_yaml_file
from rub.config.suite import Frozen, Protocol, protocol_kind, protocol_of
from rub.data.facts import DataFacts
from rub.errors import RubError
from rub.metrics.base import metrics_of
from rub.registry import TASKS
from rub.reports.consistency import Told, contradictions
from rub.reports.figure_file import FigureFile
from rub.reports.grouping import Group
from rub.reports.lineage import read_stages
from rub.reports.samples import joined, tables_in
from rub.reports.text import mixed_letters, printable
from rub.store.manifest import MANIFEST, changed_files, read_manifest
from rub.store.records import LARGEST_VALUE, Record, read_records
from rub.witness.claims import read_claim

EXTERNAL: Final = "external models"
"""What ``submission.json`` calls models that others published, measured as they are."""
_LARGEST = 1 << 28  # bytes of a JSON or YAML file; a larger one is not read
_ROUNDING = 1e-6
_MOST_LINES = 100  # contradictions that are counted
_PROTOCOL = re.compile(r"(?!.*\.ya?ml$)[A-Za-z0-9_.-]+([*@][0-9a-f]{6})?")  # a name, not the path of a file
_PIXELS, _ALL_PIXELS = 1 << 24, 1 << 28  # of a gallery, of all those of a folder
_MOST = {"curves": 5_000, "pages": 60, "methods": 300, "galleries": 300}  # of a folder, which others wait for
_LONGEST_NAME, _LONGEST_COMMAND = 300, 20_000


class Curve(Frozen):
    """Success and loss of one search against its steps, a row of ``curves.json``; further fields are left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    task: str
    suite: str
    experiment: str
    dataset: str
    model: str
    protocol: str
    scenario: str = ""
    method: str
    unlearn_seed: int | None
    attack: str
    budget: str
    split: str
    success_curve: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(min_length=1)
    loss_curve: tuple[Annotated[FiniteFloat, Field(ge=-LARGEST_VALUE, le=LARGEST_VALUE)], ...]
    evaluations: int = Field(ge=0, lt=1 << 62)
    converged: bool


class Gallery(Frozen):
    """A picture in ``figures/``, a row of ``galleries.json``."""

    group: tuple[str, ...] = Field(min_length=6, max_length=7)
    name: str = Field(pattern=r"^gallery-[a-z0-9-]{1,200}$")
    caption: str


class Again(Frozen):
    """A method that was to be attacked again, of ``submission.json``; further fields are left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    task: str
    experiment: str
    method: str
    images: int = Field(ge=0, lt=1 << 62)
    reason: str = ""

    def said(self, date: str, by: str) -> str:
        """When, by whom and on how many samples; or why not.

        Example:
            >>> Again(task="inpainting", experiment="", method="i2i", images=64).said("2026-11-29", "the board")
            '2026-11-29 by the board, 64 samples'
        """
        if self.images and not self.reason:
            return f"{date} by {by}, {self.images} samples"
        return f"no: {printable(self.reason)[:_LONGEST_NAME] or 'of no samples'}"


class Submission(Frozen):
    """What ``rub submit`` says of the folder that it wrote; further fields are left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    date: str = Field("", pattern=r"^([0-9]{4}-[0-9]{2}-[0-9]{2})?$")
    kind: str = Field("", max_length=40)
    link: str = Field("", max_length=2000)
    by: Literal["the submitter", "the board"] = "the submitter"
    """Who ran it: the board, where the folder had been submitted before."""
    reattacked: tuple[Again, ...] = ()


@dataclass(frozen=True)
class Claim:
    """One file of witnesses: `row` says method, seed, attack and budget in words, `count` how many probes it has."""

    task: str
    file: str
    method: str
    row: str
    count: int


@dataclass(frozen=True)
class ResultFolder:
    """What a result folder holds, read from these places; there are none for a run that is being written.

    What is `drawn` are its galleries, and for a run also its figures.
    """

    places: tuple[Path, ...]
    records: Sequence[Record]
    curves: Sequence[Mapping[str, Any]]
    suite: Mapping[str, Any]
    command: str
    drawn: tuple[FigureFile, ...] = ()
    claims: tuple[Claim, ...] = ()
    data: tuple[DataFacts, ...] = ()
    reattacked: Mapping[tuple[str, str, str], str] = field(default_factory=dict)
    """Task, experiment, method -> when and by whom it was attacked again, or why not; empty before ``rub submit``."""
    published: str = ""
    """Where models that others published are, as ``rub submit`` was told; "" of other folders."""


def read_folder(path: Path, *, consistent: bool = True) -> ResultFolder:
    """Read a result folder after comparing every file with its manifest, and its numbers with each other.

    Args:
        path: of anyone.
        consistent: False where whoever asks lists its contradictions (`contradictions_in`) himself.

    Raises:
        RubError: no result folder, a changed file, records of a newer schema, a file that cannot be read, or numbers
            that contradict each other.
    """
    if not path.is_dir():
        raise RubError(f"{path}: no such folder; give a folder written by rub run --out")
    if not any((path / name).is_file() for name in ("records.parquet", "records.json")):
        raise RubError(f"{path}: no records here; give a folder written by rub run --out")
    try:
        changed = changed_files(path)
    except OSError as error:
        raise RubError(f"{path}: cannot be read ({error.strerror})") from None
    if changed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise RubError(f"{path}: {printable(changed[0])}{more}")
    records = joined(read_records(path), path)
    _check_ranges(path, records)
    _check_budget(path, records)
    manifest = read_manifest(path)
    if len(str(manifest.get("command", ""))) > _LONGEST_COMMAND:
        raise RubError(f"{path}: a command of more than {_LONGEST_COMMAND} characters")
    galleries = _validated(path / "galleries.json", tuple[Gallery, ...])
    submission: Submission = _validated(path / "submission.json", Submission) or Submission()
    _check_pictures(path, galleries)
    curves = _validated(path / "curves.json", tuple[Curve, ...])
    if len(curves) > _MOST["curves"]:
        raise RubError(f"{path}: {len(curves)} curves; at most {_MOST['curves']} are shown")
    if consistent and (found := list(islice(contradictions_in(path), _MOST_LINES))):
        raise RubError(f"{path}: {found[0]}" + (f" (and {len(found) - 1} more)" if len(found) > 1 else ""))
    return ResultFolder(
        (path,),
        records,
        [curve.model_dump() for curve in curves],
        _suite(path / "suite.yaml"),
        str(manifest.get("command", "")),
        tuple(FigureFile(Group(*one.group), one.name, printable(one.caption), vector=False) for one in galleries),
        tuple(claims_of(path / "witnesses")),
        _typed(manifest.get("data", ()), tuple[DataFacts, ...], path / MANIFEST),
        _reattacked(submission),
        printable(submission.link or "elsewhere") if submission.kind == EXTERNAL else "",
    )


def _reattacked(submission: Submission) -> dict[tuple[str, str, str], str]:
    return {
        (one.task, one.experiment, printable(one.method)): one.said(submission.date, submission.by)
        for one in submission.reattacked
    }


def contradictions_in(path: Path) -> Iterator[str]:
    """One line for each thing in a result folder that something else in it contradicts.

    Raises:
        RubError: a file that cannot be read.
    """
    both = all((path / f"records.{kind}").is_file() for kind in ("parquet", "json"))
    samples, values = tables_in(path)
    records, suite = read_records(path), _suite(path / "suite.yaml")
    yield from contradictions(
        Told(
            records,
            read_records(path / "records.json") if both else None,
            samples,
            values,
            [curve.model_dump() for curve in _validated(path / "curves.json", tuple[Curve, ...])],
            suite,
            {place.stem: read_claim(place) for place in sorted((path / "witnesses").glob("*.json"))},
            read_stages(path),
        )
    )
    from rub.audits.verdict_file import disagreements  # audits make reports, and so import them

    yield from disagreements(path, records, mains_of(suite))


def _check_budget(path: Path, records: Sequence[Record]) -> None:
    """Make sure that a folder takes no more pages, rows and letters than one of its own making would."""
    pages = {(one.task, one.dataset, one.model, one.protocol, one.scenario) for one in records}
    counts = {"pages": len(pages), "methods": len({one.method for one in records})}
    for what, count in counts.items():
        if count > _MOST[what]:
            raise RubError(f"{path}: {count} {what}; at most {_MOST[what]} of a folder are shown")
    for one in records:
        components = (one.task, one.protocol, one.method, one.attack, one.budget, one.metric, one.split)
        for text in (*components, one.suite, one.experiment, one.dataset, one.model):
            if len(text) > _LONGEST_NAME:
                raise RubError(f"{path}: a name of {len(text)} characters ({printable(text[:40])}...)")
            if not text.isascii() and (text in components or mixed_letters(text)):
                raise RubError(f"{path}: the name '{printable(text)[:40]}' has letters that look like others")
        if one.ci_low is not None and one.ci_high is not None and one.ci_low > one.ci_high:
            name = printable(f"{one.metric} of {one.method}")[:120]
            raise RubError(f"{path}: the interval of {name} ends before it begins")


def _check_pictures(path: Path, galleries: Sequence[Gallery]) -> None:
    """Make sure that the pictures of a folder are no more than a page can show; only their heads are read."""
    from PIL import Image

    if len(galleries) > _MOST["galleries"]:
        raise RubError(f"{path}: {len(galleries)} galleries; at most {_MOST['galleries']} are shown")
    left = _ALL_PIXELS
    for one in galleries:
        place = path / "figures" / f"{one.name}.png"
        no_picture = suppress(OSError, ValueError, SyntaxError, Image.DecompressionBombError)
        with no_picture, Image.open(place, formats=["PNG"]) as picture:
            left -= picture.width * picture.height
        if left < 0:
            raise RubError(f"{path}: pictures of more than {_ALL_PIXELS} pixels in all")


def _check_ranges(path: Path, records: Iterable[Record]) -> None:
    """Make sure that every value is one that its metric can take."""
    ranges = {
        (entry.name, metric.name): (metric.low - _ROUNDING, metric.high + _ROUNDING)
        for entry in TASKS.entries()
        for metric in metrics_of(entry.name)
    }
    for record in records:
        low, high = ranges.get((record.task, record.metric), (-math.inf, math.inf))
        if record.value is not None and not low <= record.value <= high:
            name = printable(f"{record.metric} of {record.method}")[:120]
            raise RubError(f"{path}: {name} is {record.value:g}; it lies from {low:g} to {high:g}")


def protocols_in(suite: Mapping[str, Any]) -> dict[tuple[str, str], Protocol]:
    """Protocols that a suite of anyone holds whole, by task and name; one whose fields do not give its name is out."""
    found: dict[tuple[str, str], Protocol] = {}
    known = {entry.name for entry in TASKS.entries()}
    for item in suite.get("experiments") or ():
        task, given = item.get("task"), item.get("protocol")
        name = str(given.get("name")) if isinstance(given, dict) else ""
        if task in known and _PROTOCOL.fullmatch(name):
            with suppress(ValueError):
                made = protocol_of(given, task, protocol_kind(task))
                found |= {(task, name): made} if made.name == name else {}
    return found


def mains_of(suite: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """Main attacks of the protocols in a suite."""
    return {place: protocol.main_attack for place, protocol in protocols_in(suite).items()}


def experiment_in(suite: Mapping[str, Any], task: str, name: str) -> Mapping[str, Any]:
    """What a suite says of one of its experiments; empty where it says nothing.

    Example:
        >>> experiment_in({"experiments": [{"task": "inpainting", "name": "small"}]}, "inpainting", "small")
        {'task': 'inpainting', 'name': 'small'}
    """
    experiments: Sequence[Mapping[str, Any]] = suite.get("experiments") or ()
    return next((one for one in experiments if (one.get("task"), one.get("name", "")) == (task, name)), {})


def outside(out: Path, folders: Iterable[Path]) -> None:
    """Make sure that `out` is none of these result folders, nor in one: writing there would break its seal."""
    place = out.resolve()
    for folder in folders:
        if place.is_relative_to(folder.resolve()):
            raise RubError(f"--out {out}: lies in the result folder {folder}; give a place outside")


def delete_files(folder: Path) -> None:
    """Delete the files, and links, in a folder that a report or run before wrote, and in those below it."""
    for path in folder.rglob("*.*"):
        if path.is_symlink() or path.is_file():
            path.unlink()


def claims_of(folder: Path) -> Iterator[Claim]:
    """What each file of witnesses in a folder is about."""
    for path in sorted(folder.glob("*.json")):
        claim = read_claim(path)
        row = f"{claim.method}, seed {claim.unlearn_seed}: {claim.attack} at {claim.budget}"
        yield Claim(claim.task, path.stem, printable(claim.method), printable(row), len(claim.samples))


def copy_gallery(source: Path, target: Path) -> None:
    """Write a gallery's pixels anew: what else a picture of others may hold is left behind."""
    from PIL import Image

    if source.is_symlink() or not source.is_file():
        raise RubError(f"{source}: no such picture")
    try:
        with Image.open(source, formats=["PNG"]) as picture:
            if picture.width * picture.height > _PIXELS:
                raise RubError(f"{source}: more than {_PIXELS} pixels")
            clean = Image.frombytes("RGB", picture.size, picture.convert("RGB").tobytes())
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RubError(f"{source}: cannot be read as PNG ({type(error).__name__})") from None
    clean.save(target)


def _validated(path: Path, kind: Any) -> Any:
    """A JSON file as this type; empty where there is none."""
    if not path.exists():
        return ()
    try:
        return _typed(json.loads(_text(path)), kind, path)
    except (ValueError, RecursionError) as error:
        raise RubError(f"{path}: cannot be read ({type(error).__name__})") from None


def _typed(value: Any, kind: Any, path: Path) -> Any:
    try:
        return TypeAdapter(kind).validate_python(value, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        raise RubError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _suite(path: Path) -> Mapping[str, Any]:
    """Suite as plain data; empty where there is none."""
    if not path.exists():
        return {}
    if path.is_symlink():
        raise RubError(f"{path}: a link")
    suite = read_yaml_file(path, str(path))
    experiments = suite.get("experiments", []) if isinstance(suite, dict) else None
    if not isinstance(suite, dict) or not isinstance(experiments, list) or not all(map(_experiment, experiments)):
        raise RubError(f"{path}: should be a mapping with a list of experiments")
    return suite


def _experiment(item: Any) -> bool:
    """Whether a value can stand for an experiment: a mapping whose name, task and key are text."""
    return isinstance(item, dict) and all(isinstance(item.get(name, ""), str) for name in ("name", "task", "paper"))


def _text(path: Path) -> str:
    if path.is_symlink() or not path.is_file() or path.stat().st_size > _LARGEST:
        raise RubError(f"{path}: a link, or no file of at most {_LARGEST >> 20} MiB")
    return path.read_text(encoding="utf-8")
