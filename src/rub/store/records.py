"""The record schema: one measured row with its provenance, and its parquet, JSON and duckdb forms."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, FiniteFloat, SkipValidation

from rub.config.suite import Frozen
from rub.errors import RubError

if TYPE_CHECKING:
    import duckdb

SCHEMA_VERSION = 1
LARGEST_VALUE = 1e12  # of any metric, either way
MOST_RECORDS = 100_000  # of one folder; a small compressed file can stand for far more
LARGEST_FILE = 1 << 29  # bytes, unpacked


class Record(Frozen):
    """One row of ``records.parquet``. `status` is ``ok`` or ``failed``; a failed row has a reason and no value."""

    schema_version: int = Field(SCHEMA_VERSION, ge=1)
    task: str
    suite: str
    experiment: str
    protocol: str
    dataset: str
    model: str
    method: str
    attack: str
    """Attack id; ``none`` for clean rows."""
    budget: str
    """``none``, ``8/255``, ``unbounded`` or a step cap."""
    metric: str
    split: str
    value: FiniteFloat | None = Field(ge=-LARGEST_VALUE, le=LARGEST_VALUE)
    n: int = Field(ge=0, lt=1 << 62)
    """Number of samples behind the value."""
    unlearn_seed: int | None = Field(ge=0, lt=1 << 62)
    """None where the value is of all of a method's seeds together."""
    original: int = Field(0, ge=0)
    """Number of the original model that the row belongs to."""
    mia_seed: int | None = Field(ge=0, lt=1 << 62)
    direction: Literal["up", "down", "reference"]
    ci_low: FiniteFloat | None = None
    ci_high: FiniteFloat | None = None
    status: Literal["ok", "failed"] = "ok"
    reason: str = ""
    extractor: str = ""
    """What looked at the images, such as ``digits-resnet10@3f2a...`` or ``inception-v3-compat@6726...``; values of
    different extractors do not compare."""
    scenario: Literal["", "samples"] = ""
    """``samples``: single samples are forgotten, of classes that are kept; else whole classes, or concepts."""
    setting: str = ""
    """What else decides the value: reference set, splits, threshold."""
    converged: bool | None = None
    """Whether the attack behind the value had stopped improving; None for clean rows."""
    evaluations: int | None = Field(None, ge=0, lt=1 << 62)
    """Forward passes of single images that the attack spent."""
    seconds: float = 0.0
    device: str = ""
    key: str
    """Key of the stage that measured the row."""
    inputs: tuple[str, ...] = ()
    """Keys of that stage's inputs."""
    weights_sha256: str = ""
    code_version: str = ""
    library_versions: dict[str, str] = Field(default_factory=dict)
    created: str = ""


class SampledRecord(Record):
    """A record with what each sample gave, of which its value is the mean; neither is written with it."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    ids: SkipValidation[NDArray[Any]] = Field(exclude=True, repr=False)
    """Samples, (n,), each once."""
    values: SkipValidation[NDArray[np.float64]] = Field(exclude=True, repr=False)
    """Float64 (n,)."""


def identity(record: Record) -> dict[str, Any]:
    """The record without what may differ between two equal runs: times, the creation date, the device."""
    return record.model_dump(exclude={"seconds", "created", "device"})


def write_records(
    records: Sequence[Record], per_sample: Mapping[str, Sequence[Mapping[str, Any]]], folder: Path
) -> None:
    """Write ``records.parquet``, ``records.json`` and a parquet file for each list of rows that is not empty."""
    import pyarrow
    import pyarrow.parquet

    folder.mkdir(parents=True, exist_ok=True)
    rows = [record.model_dump() | {"library_versions": _flat(record.library_versions)} for record in records]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=_schema()), folder / "records.parquet")
    lines = ",\n".join(record.model_dump_json() for record in records)
    (folder / "records.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    for name, found in per_sample.items():
        if found:
            table = pyarrow.Table.from_pylist(list(found))
            pyarrow.parquet.write_table(table, folder / f"{name}.parquet", compression="zstd")


def read_records(path: Path) -> list[Record]:
    """Read and validate the records of a result folder, or of its ``records.json`` or ``records.parquet``.

    Raises:
        RubError: no such file, or a row that does not fit the schema; the first problem is named.
    """
    import json

    if path.is_dir():
        path = path / ("records.parquet" if (path / "records.parquet").is_file() else "records.json")
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise RubError(f"{path}: more than {LARGEST_FILE >> 20} MiB")
        if path.suffix == ".parquet":
            import pyarrow.parquet

            facts = pyarrow.parquet.ParquetFile(path).metadata
            count = facts.num_rows
            groups = (facts.row_group(index) for index in range(facts.num_row_groups))
            if sum(group.total_byte_size for group in groups) > LARGEST_FILE:
                raise RubError(f"{path}: unpacks to more than {LARGEST_FILE >> 20} MiB")
            if count > MOST_RECORDS:
                raise RubError(f"{path}: {count} records; at most {MOST_RECORDS} are read")
            rows = pyarrow.parquet.read_table(path).to_pylist()
            rows = [row | {"library_versions": dict(p.split("==") for p in row["library_versions"])} for row in rows]
        else:
            rows = json.loads(path.read_text(encoding="utf-8"))
    except RubError:
        raise
    except FileNotFoundError:
        raise RubError(f"{path}: no records here; give a folder written by rub run --out") from None
    except Exception as error:
        raise RubError(f"{path}: cannot be read as records ({type(error).__name__})") from None
    if not isinstance(rows, list):
        raise RubError(f"{path}: not a list of records")
    newest = max((row.get("schema_version", 1) for row in rows if isinstance(row, dict)), default=1, key=_number)
    if _number(newest) > SCHEMA_VERSION:
        raise RubError(f"{path}: of a newer RUB (schema {newest}, here {SCHEMA_VERSION}); update RUB to read it")
    try:
        return [Record.model_validate(row) for row in rows]
    except (pydantic.ValidationError, TypeError) as error:
        first = error.errors()[0] if isinstance(error, pydantic.ValidationError) else {"loc": (), "msg": str(error)}
        where, wrong = ".".join(map(str, first["loc"])), str(first["msg"]).removeprefix("Value error, ")
        said = f"{where}: {wrong}" if where else wrong
        raise RubError(f"{path}: not a valid record: {said}") from None


def connect(folders: Iterable[Path]) -> "duckdb.DuckDBPyConnection":
    """In-memory duckdb connection with the views ``records``, ``samples`` and ``values`` over result folders.

    Example:
        >>> from pathlib import Path
        >>> sql = "select method, avg(value) from records where metric = 'ua' group by method"
        >>> rows = connect([Path("rub-out")]).sql(sql).fetchall()  # doctest: +SKIP
    """
    import duckdb

    folders = list(folders)
    connection = duckdb.connect()
    for view in ("records", "samples", "values"):
        files = [str(folder / f"{view}.parquet") for folder in folders if (folder / f"{view}.parquet").is_file()]
        if files:
            connection.read_parquet(files, union_by_name=True).create_view(view)
    return connection


def _number(version: Any) -> float:
    return version if isinstance(version, int | float) else 0


def number(value: float | None) -> float | None:
    """The value, or None where it is NaN: JSON and parquet rows hold no NaN."""
    return None if value is None or math.isnan(value) else float(value)


def _flat(versions: Mapping[str, str]) -> list[str]:
    return [f"{name}=={version}" for name, version in sorted(versions.items())]


def _schema() -> Any:
    import pyarrow as pa

    kinds = {
        "schema_version": pa.int32(), "n": pa.int64(), "unlearn_seed": pa.int64(), "original": pa.int64(),
        "mia_seed": pa.int64(),
        "evaluations": pa.int64(), "value": pa.float64(), "ci_low": pa.float64(), "ci_high": pa.float64(),
        "seconds": pa.float64(), "converged": pa.bool_(), "inputs": pa.list_(pa.string()),
        "library_versions": pa.list_(pa.string()),
    }  # fmt: skip
    return pa.schema([(name, kinds.get(name, pa.string())) for name in Record.model_fields])
