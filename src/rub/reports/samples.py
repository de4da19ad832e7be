"""Records joined with what each sample gave, so that intervals can be over samples and rows paired by them."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rub.errors import RubError
from rub.reports.task_report import reports_of
from rub.reports.text import printable
from rub.store.manifest import LATER, MANIFEST, read_manifest
from rub.store.records import LARGEST_FILE, Record, SampledRecord

if TYPE_CHECKING:
    import pyarrow

CELL = (
    "task", "suite", "experiment", "dataset", "model", "protocol", "method", "unlearn_seed", "attack", "budget", "split"
)  # fmt: skip
"""Columns that say which search of which row a sample belongs to."""
_TYPES = {
    **dict.fromkeys(("sample_id", "label", "step", "gradient_steps", "evaluations", "original"), ("int64",)),
    "unlearn_seed": ("int64", "null"), "linf": ("int64", "double"),
    **dict.fromkeys(("clean", "recovered"), ("bool",)), **dict.fromkeys(("distance", "score", "value"), ("double",)),
}  # fmt: skip
_MOST = 5_000_000  # rows of one file
_ROUNDING = 1e-4  # values are kept with four digits

Found = Mapping[tuple[Any, ...], tuple[NDArray[Any], NDArray[np.float64]]]
"""Cell -> its samples and their values."""


def joined(records: Sequence[Record], folder: Path) -> list[Record]:
    """Records with their samples, where ``samples.parquet`` or ``values.parquet`` of a result folder has them.

    Raises:
        RubError: a file that cannot be read as such rows.
    """
    return sampled(records, *tables_in(folder))


def tables_in(folder: Path) -> "tuple[pyarrow.Table | None, pyarrow.Table | None]":
    """``samples.parquet`` and ``values.parquet`` of a result folder; None where there is none, or it was not sealed.

    Raises:
        RubError: a file that cannot be read as such rows.
    """
    sealed = read_manifest(folder)["files"] if (folder / MANIFEST).is_file() else LATER
    names = ["samples.parquet", *(name for name in LATER if name in sealed)]
    samples, *values = (read_rows(folder / name) for name in names)
    return samples, values[0] if values else None


def rows_of(rows: Sequence[Mapping[str, Any]]) -> "pyarrow.Table | None":
    """Rows that were not written yet as `sampled` takes them."""
    import pyarrow

    return pyarrow.Table.from_pylist(list(rows)) if rows else None


def sampled(records: Sequence[Record], samples: "pyarrow.Table | None", values: "pyarrow.Table | None") -> list[Record]:
    """Records, those with samples as `rub.store.records.SampledRecord`.

    Args:
        records: of any tasks.
        samples: per-sample outcomes of attacks: of each sample whether it was ``recovered``, of which the metric that
            the task reports of an attack is the mean.
        values: ``value`` of each sample for any ``metric``.

    Where the samples of a record are not as many as it says, or have another mean, it stays as it is.
    """
    outcomes = _cells(samples, CELL, "recovered")
    valued = _cells(values, (*CELL, "metric"), "value")
    searched = {
        (task, axis.metric, axis.split)
        for task, report in reports_of(record.task for record in records).items()
        for axis in (report.robustness, *report.beside.values())
    }
    return [_joined(record, outcomes, valued, searched) for record in records]


def _joined(record: Record, outcomes: Found, valued: Found, searched: set[tuple[str, str, str]]) -> Record:
    if record.value is None or record.mia_seed is not None:
        return record
    cell = tuple(getattr(record, name) for name in CELL)
    found = valued.get((*cell, record.metric))
    if found is None and record.attack != "none" and (record.task, record.metric, record.split) in searched:
        found = outcomes.get(cell)
    if found is None or len(found[0]) != record.n or abs(float(found[1].mean()) - record.value) > _ROUNDING:
        return record
    return SampledRecord.model_construct(**dict(record), ids=found[0], values=found[1])


def _cells(table: "pyarrow.Table | None", names: Sequence[str], value: str) -> Found:
    return {} if table is None else dict(_split(table, names, value))


def _split(
    table: "pyarrow.Table", names: Sequence[str], value: str
) -> Iterator[tuple[tuple[Any, ...], tuple[NDArray[Any], NDArray[np.float64]]]]:
    """Samples and values of each cell; a cell that has a sample twice, or a value that is not finite, is left out."""
    ids, values = table["sample_id"].to_numpy(), table[value].to_numpy().astype(np.float64)
    for cell, rows in cells_of(table, names):
        own, its = ids[rows], values[rows]
        if len(np.unique(own)) == len(own) and np.isfinite(its).all():
            yield cell, (own, its)


def cells_of(
    table: "pyarrow.Table", names: Sequence[str] = CELL
) -> Iterator[tuple[tuple[Any, ...], NDArray[np.int64]]]:
    """Values of these columns -> the numbers of the rows, int64, that have them all."""
    coded = [table[name].combine_chunks().dictionary_encode(null_encoding="encode") for name in names]
    cell = np.zeros(len(table), np.int64)
    for column in coded:  # numbered anew each time: the product of all would not fit
        cell = cell * len(column.dictionary) + column.indices.to_numpy(zero_copy_only=False)
        cell = np.unique(cell, return_inverse=True)[1]
    order = np.argsort(cell, kind="stable")
    ends = np.concatenate([[0], np.cumsum(np.bincount(cell))])
    for start, end in pairwise(ends):
        if end > start:
            yield tuple(column[int(order[start])].as_py() for column in coded), order[start:end]


def read_rows(path: Path) -> "pyarrow.Table | None":
    """A file of rows, each column of its type; None where there is none.

    Raises:
        RubError: it cannot be read as such rows.
    """
    import pyarrow
    import pyarrow.parquet

    if not path.is_file():
        return None
    try:
        if path.is_symlink() or path.stat().st_size > LARGEST_FILE:
            raise RubError(f"{path}: a link, or more than {LARGEST_FILE >> 20} MiB")
        if pyarrow.parquet.ParquetFile(path).metadata.num_rows > _MOST:
            raise RubError(f"{path}: more than {_MOST} rows")
        table = pyarrow.parquet.read_table(path)
        needed = {*CELL, "sample_id", "value", "metric"} if path.stem == "values" else {*CELL, "sample_id", "recovered"}
        if missing := needed - set(table.column_names):
            raise RubError(f"{path}: has no column {min(missing)}")
        for name in sorted(set(table.column_names) & (needed | set(_TYPES))):
            kind, right = str(table.schema.field(name).type), _TYPES.get(name, ("string", "large_string"))
            if kind not in right:
                raise RubError(f"{path}: column {name} should be of type {right[0]}, not {printable(kind)[:40]}")
            if table[name].null_count and name in needed - {"unlearn_seed"}:
                raise RubError(f"{path}: column {name} has rows without a value")
        return table
    except (OSError, pyarrow.ArrowException) as error:
        raise RubError(f"{path}: cannot be read as rows of samples ({type(error).__name__})") from None
