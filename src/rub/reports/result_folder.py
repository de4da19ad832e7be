"""What a run gives, and the folder that it is written to."""

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rub.config.documents import read_yaml_file, write_yaml
from rub.config.suite import Experiment, Suite
from rub.data.facts import DataFacts, facts_of, placed
from rub.errors import RubError
from rub.metrics.base import direction_of
from rub.pipeline.execution import Outcome
from rub.pipeline.graph import Graph, Stage, in_order
from rub.pipeline.runtime import code_version
from rub.reports import lineage
from rub.reports.folders import delete_files
from rub.reports.lineage import StageFacts
from rub.reports.text import free_name, placeless, printable, without_places
from rub.store.artifacts import Artifact
from rub.store.manifest import MANIFEST as MANIFEST_NAME
from rub.store.manifest import OWN, seal_folder
from rub.store.records import Record, write_records
from rub.witness.claims import MANIFEST, TENSORS, Witness, file_stem

if TYPE_CHECKING:
    from rub.reports.grouping import Group
    from rub.reports.table import Table


_WORDS = ("suite", "dataset", "model", "method", "extractor", "setting", "reason")  # that may name a file of the user's


@dataclass(frozen=True)
class Result:
    """What a run gives.

    Attributes:
        records: one row per measured value, failed cells included.
        samples: per-sample outcomes of every attack, the rows of ``samples.parquet``.
        values: what metrics that are means over samples give for each, the rows of ``values.parquet``.
        curves: success and loss against steps of every attack.
        failures: one line for each stage that failed.
        counts: how many stages were ``cached``, ``done``, ``failed`` and ``blocked``.
        galleries: pictures of what models make, one mapping per row and set of images; ``path`` is a file of the store.
        witnesses: experiment and folder of the store, each with one file of witnesses.
        suite: what was asked for, as plain data.
        data: what is told of the images of each experiment.
        stages: what the keys of all records are the hashes of.
    """

    records: tuple[Record, ...]
    samples: tuple[Mapping[str, Any], ...] = ()
    values: tuple[Mapping[str, Any], ...] = ()
    curves: tuple[Mapping[str, Any], ...] = ()
    failures: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    galleries: tuple[Mapping[str, Any], ...] = ()
    witnesses: tuple[tuple[str, Path], ...] = ()
    suite: Mapping[str, Any] = field(default_factory=dict)
    data: tuple[DataFacts, ...] = ()
    stages: tuple[StageFacts, ...] = ()

    @cached_property
    def pages(self) -> "list[tuple[Group, Sequence[Record], list[Table]]]":
        """What a page shows, its records, and its tables; made once."""
        from rub.reports.pages import tabulated

        return tabulated(self.measured, self.suite)

    @cached_property
    def measured(self) -> list[Record]:
        """Records joined with what each sample gave, as reports take them."""
        from rub.reports.samples import rows_of, sampled

        return sampled(self.records, rows_of(self.samples), rows_of(self.values))


def prepare(out: Path, suite: str, *, overwrite: bool = False) -> None:
    """Make sure that a result folder can be written, before hours are spent; what is in it stays until there is better.

    Raises:
        RubError: it is a file, cannot be written, or holds the run of another suite and may not be overwritten.
    """
    known = None
    with suppress(RubError, OSError):
        known = read_yaml_file(out / "suite.yaml", "suite.yaml")
    held = known.get("name") if isinstance(known, dict) else None
    if isinstance(held, str) and held != suite and not overwrite:
        raise RubError(
            f"--out {out}: holds a run of the suite '{printable(held)[:60]}'; give another folder, or --overwrite"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "suite.yaml").touch()
    except OSError as error:
        raise RubError(f"--out {out}: cannot be written ({error.strerror}); give another folder") from None


def _clear(out: Path) -> None:
    """Delete RUB's own files of a run before."""
    for place in (out / name for name in (*OWN, MANIFEST_NAME)):
        if place.is_dir() and not place.is_symlink():
            delete_files(place)
        else:
            place.unlink(missing_ok=True)


def collect(suite: Suite, plans: Sequence[tuple[Experiment, Graph]], outcomes: Mapping[str, Outcome]) -> Result:
    """Gather the rows of all measuring stages; a stage without an artifact gives its cells as failed rows."""
    records: list[Record] = []
    samples: list[Mapping[str, Any]] = []
    values: list[Mapping[str, Any]] = []
    curves: list[Mapping[str, Any]] = []
    galleries: list[Mapping[str, Any]] = []
    witnesses: list[tuple[str, Path]] = []
    told: list[DataFacts] = []
    for experiment, graph in plans:
        common = {**graph.common, "suite": suite.name}
        data = _data(graph, outcomes)
        told += [] if data is None else [facts_of(data, experiment)]
        for stage in graph.stages:
            records += _records(stage, outcomes[stage.key], graph, common)
            artifact = outcomes[stage.key].artifact
            if artifact is None:
                continue
            files = artifact.manifest["files"]
            for name, rows in (("samples.json", samples), ("values.json", values), ("curves.json", curves)):
                found = artifact.json(name) if name in files else ()
                found = placed(found, data) if data is not None and rows is samples else found
                rows.extend({**common, **row, "original": _original(graph, row)} for row in found)
            if "gallery.json" in files:
                made = artifact.json("gallery.json")
                where = {**common, "method": made["method"], "unlearn_seed": made["unlearn_seed"]}
                galleries += [
                    {**where, "split": part["split"], "path": artifact.file(part["file"])} for part in made["parts"]
                ]
            if MANIFEST in files:
                witnesses.append((common["experiment"], artifact.path))
    statuses = [outcome.status for outcome in outcomes.values()]
    counts = {status: statuses.count(status) for status in ("cached", "done", "failed", "blocked")}
    failures = tuple(outcome.reason for outcome in outcomes.values() if outcome.status == "failed")
    spec = suite.model_dump(mode="json", exclude={"experiments"})
    spec["experiments"] = [item.model_dump(mode="json") for item in suite.experiments]
    return Result(
        tuple(records),
        tuple(samples),
        tuple(values),
        tuple(curves),
        failures,
        counts,
        tuple(galleries),
        tuple(witnesses),
        spec,
        tuple(told),
        tuple(lineage.facts_of(in_order(stage for _, graph in plans for stage in graph.stages))),
    )


def write_result(result: Result, out: Path, command: str, beside: Mapping[str, str] | None = None) -> Path:
    """Write a result folder, with texts `beside` as further files, seal it, and return the path of its page."""
    from rub.reports.writing import write_report

    result = _published(result)
    try:
        _clear(out)
        write_records(result.records, {"samples": result.samples, "values": result.values}, out)
        (out / "curves.json").write_text(json.dumps(list(result.curves)), encoding="utf-8")
        (out / "suite.yaml").write_text(write_yaml(dict(result.suite)), encoding="utf-8")
        if result.stages:
            (out / lineage.NAME).write_text(lineage.written(result.stages), encoding="utf-8")
        _write_witnesses(result.witnesses, out / "witnesses")
        facts = {"command": command, "suite": result.suite, "data": result.data}
        page = write_report(result.measured, result.curves, out, facts, result.pages, result.galleries)
        for name, text in (beside or {}).items():
            (out / name).write_text(text, encoding="utf-8")
        data = [facts.model_dump(mode="json") for facts in result.data]
        seal_folder(out, {"command": command, "code_version": code_version(), "data": data})
        return page
    except OSError as error:
        raise RubError(f"--out {out}: cannot be written ({error.strerror}); the stages are kept in the store") from None


def _published(result: Result) -> Result:
    """The result without the paths of this machine, in what was asked for and in the words of every row."""

    def clean(row: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**row, **{name: without_places(row[name]) for name in _WORDS if isinstance(row.get(name), str)}}

    records = []
    for record in result.records:
        words = {name: without_places(getattr(record, name)) for name in _WORDS if name in Record.model_fields}
        changed = {name: text for name, text in words.items() if text != getattr(record, name)}
        records.append(record.model_copy(update=changed) if changed else record)
    return replace(
        result,
        records=tuple(records),
        samples=tuple(map(clean, result.samples)),
        values=tuple(map(clean, result.values)),
        curves=tuple(map(clean, result.curves)),
        galleries=tuple(map(clean, result.galleries)),
        suite=placeless(result.suite),
        stages=result.stages if _placeless(result.stages) else (),
    )


def _placeless(rows: Sequence[StageFacts]) -> bool:
    """Whether no setting is a path of this machine, which could not be published, nor left out of a hash."""
    return all(placeless(row.spec) == row.spec for row in rows)


def _write_witnesses(places: Sequence[tuple[str, Path]], folder: Path) -> None:
    if places:
        folder.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    for experiment, place in places:
        named = file_stem(Witness.model_validate_json((place / MANIFEST).read_text(encoding="utf-8")), experiment)
        stem = free_name(named, taken)
        taken.add(stem)
        shutil.copyfile(place / MANIFEST, folder / f"{stem}.json")
        shutil.copyfile(place / TENSORS, folder / f"{stem}.safetensors")


def _data(graph: Graph, outcomes: Mapping[str, Outcome]) -> Artifact | None:
    """Data artifact of an experiment; None for one without images, or where they could not be read."""
    found = (outcomes[stage.key].artifact for stage in in_order(graph.stages) if stage.kind == "data")
    return next(found, None)


def _original(graph: Graph, row: Mapping[str, Any]) -> int:
    return graph.originals.get((row["method"], row["unlearn_seed"]), 0)


def _records(stage: Stage, outcome: Outcome, graph: Graph, common: Mapping[str, str]) -> list[Record]:
    if outcome.artifact is None:
        failed = {"value": None, "n": 0, "status": "failed", "reason": outcome.reason, "key": stage.key}
        rows = [{**dict(cell), **failed} for cell in stage.cells]
        return [Record.model_validate({**common, **_placed(graph, row)}) for row in rows]
    if not stage.cells:
        return []
    manifest = outcome.artifact.manifest
    provenance = {
        "key": stage.key,
        "inputs": tuple(key for _, key in sorted(manifest["inputs"].items())),
        "code_version": manifest["code_version"],
        "library_versions": manifest["library_versions"],
        "created": manifest["created"],
    }
    rows = outcome.artifact.json("rows.json")
    return [Record.model_validate({**common, **provenance, **_placed(graph, row)}) for row in rows]


def _placed(graph: Graph, row: Mapping[str, Any]) -> dict[str, Any]:
    better = direction_of(row["direction"], graph.common.get("scenario", ""))
    return {**row, "original": _original(graph, row), "direction": better}
