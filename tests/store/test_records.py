"""Records: their parquet and JSON forms, duckdb views, and what is refused."""

import json

import pyarrow.parquet
import pytest
import torch
from pydantic import ValidationError

from rub.errors import RubError
from rub.store.records import Record, connect, identity, number, read_records, write_records

BASE = {
    "task": "classification",
    "suite": "tiny",
    "experiment": "",
    "protocol": "rub-paper-1",
    "dataset": "digits",
    "model": "resnet10-w2",
    "method": "ft",
    "attack": "none",
    "budget": "none",
    "metric": "ua",
    "split": "forget",
    "value": 0.25,
    "n": 128,
    "unlearn_seed": 0,
    "mia_seed": None,
    "direction": "down",
    "key": "ab" * 32,
}


def record(**changes):
    return Record.model_validate({**BASE, **changes})


ROWS = [
    record(
        ci_low=0.1 + 0.2, ci_high=1 / 3, inputs=("cd" * 32, "ef" * 32), library_versions={"torch": "2.13", "numpy": "2"}
    ),
    record(metric="ra", split="retain", direction="up", value=1.0, weights_sha256="01" * 32, device="cpu x1"),
    record(value=None, n=0, status="failed", reason='diverged: "loss", at step 3\nagain; ünïcode'),
    record(
        attack="uma", budget="8/255", converged=False, evaluations=10**12, mia_seed=3, original=2, metric="mia_shadow"
    ),
]
SAMPLES = [{"method": "ft", "sample_id": index, "recovered": bool(index % 2), "distance": 0.5} for index in range(4)]


@pytest.mark.parametrize("name", ["", "records.parquet", "records.json"])
def test_records_come_back_exactly(tmp_path, name):
    write_records(ROWS, {"samples": SAMPLES}, tmp_path)
    assert read_records(tmp_path / name) == ROWS


def test_without_parquet_the_json_is_read(tmp_path):
    write_records(ROWS, {}, tmp_path)
    (tmp_path / "records.parquet").unlink()
    assert read_records(tmp_path) == ROWS
    assert not (tmp_path / "samples.parquet").exists()


def test_json_is_plain_and_has_no_nan(tmp_path):
    write_records(ROWS, {}, tmp_path)

    def refuse(constant):
        raise AssertionError(constant)

    rows = json.loads((tmp_path / "records.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert [row["value"] for row in rows] == [0.25, 1.0, None, 0.25]
    assert rows[0]["ci_low"] == 0.1 + 0.2
    assert [number(value) for value in (None, float("nan"), 1)] == [None, None, 1.0]


def test_columns_keep_their_types_whatever_the_rows(tmp_path):
    write_records(ROWS, {}, tmp_path / "all")
    write_records([ROWS[2]], {}, tmp_path / "failed")
    write_records([], {}, tmp_path / "empty")
    schemas = [pyarrow.parquet.read_schema(tmp_path / name / "records.parquet") for name in ("all", "failed", "empty")]
    assert schemas[0] == schemas[1] == schemas[2]
    assert schemas[0].names == list(Record.model_fields)
    assert str(schemas[0].field("value").type) == "double"
    assert str(schemas[0].field("evaluations").type) == "int64"
    assert read_records(tmp_path / "empty") == []


def test_duckdb_sees_records_and_samples_of_several_folders(tmp_path):
    write_records(ROWS, {"samples": SAMPLES}, tmp_path / "one")
    write_records([record(method="ga", value=0.75)], {}, tmp_path / "two")
    connection = connect([tmp_path / "one", tmp_path / "two", tmp_path / "nowhere"])
    asked = "select method, avg(value), count(*) from records where metric = 'ua' group by method order by method"
    assert connection.sql(asked).fetchall() == [("ft", 0.25, 2), ("ga", 0.75, 1)]
    assert connection.sql("select sum(n) from records where status = 'ok'").fetchall() == [(128 * 4,)]
    assert connection.sql("select count(*) from samples where recovered").fetchall() == [(2,)]


@pytest.mark.parametrize(
    "change",
    [
        {"direction": "sideways"},
        {"status": "maybe"},
        {"value": float("nan")},
        {"value": float("inf")},
        {"value": "high"},
        {"n": None},
        {"n": 1 << 62},
        {"n": -1},
        {"n": True},
        {"n": 2.5},
        {"value": 2e12},
        {"value": True},
        {"unlearn_seed": -(1 << 63)},
        {"unlearn_seed": 1 << 62},
        {"mia_seed": -1},
        {"original": -1},
        {"evaluations": 1 << 62},
        {"ci_low": float("nan")},
        {"ci_high": float("inf")},
        {"schema_version": 0},
        {"method": None},
        {"colour": "red"},
        {"key": 3},
    ],
)
def test_invalid_rows_are_refused(tmp_path, change):
    with pytest.raises(ValidationError):
        record(**change)
    write_records(ROWS, {}, tmp_path)
    path = tmp_path / "records.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    rows[1] |= change
    path.write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(RubError, match=f"{path}: not a valid record: {next(iter(change))}") as error:
        read_records(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[", "{}]", '"text"', "[3]", "3", "[null]", '{"a": 1}'])
def test_files_that_hold_no_records_are_refused(tmp_path, text):
    for name in ("records.json", "records.parquet"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        with pytest.raises(RubError, match=str(path)):
            read_records(path)


def test_parquet_of_something_else_is_refused(tmp_path):
    path = tmp_path / "records.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"a": [1, 2]}), path)
    with pytest.raises(RubError, match="records"):
        read_records(tmp_path)


def test_nowhere_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "none", tmp_path / "none.json", tmp_path / "none.parquet"):
        with pytest.raises(RubError, match="no records here; give a folder written by rub run --out"):
            read_records(path)


def test_identity_leaves_out_when_and_where():
    same = record(seconds=3.5, created="2030-01-01T00:00:00+00:00", device="another")
    assert identity(same) == identity(record())
    for change in ({"value": 0.26}, {"key": "00" * 32}, {"n": 127}, {"code_version": "x"}, {"weights_sha256": "00"}):
        assert identity(record(**change)) != identity(record())


def test_the_tiny_run_survives_its_own_files(tiny, tiny_out):
    assert read_records(tiny_out) == list(tiny.result.records)
    assert read_records(tiny_out / "records.json") == list(tiny.result.records)
    count = connect([tiny_out]).sql("select count(*) from samples").fetchall()
    assert count == [(len(tiny.result.samples),)]


def test_experiments_with_equal_rows_keep_their_own_witnesses(tmp_path):
    """Two concepts of one suite make claims about the same method, seed, attack and budget."""
    from rub.reports.result_folder import _write_witnesses
    from rub.witness.claims import read_witness, witness_files, write_witness

    fields = {
        "task": "text-to-image", "method": "esd-x", "unlearn_seed": 0, "attack": "uma", "budget": "20",
        "split": "forget", "claim": "", "at_most": 0.0, "models": {},
    }  # fmt: skip
    places = []
    for place_id, concept in enumerate(("church", "tench")):
        place = tmp_path / concept
        place.mkdir()
        sample = {"id": place_id, "sha256": "0" * 64, "value": 0.0}
        write_witness(fields | {"data": {"concept": concept}, "samples": [sample]}, {"ids": torch.ones(1)}, place)
        places.append((concept, place))
    _write_witnesses(places, tmp_path / "out" / "witnesses")
    kept = [read_witness(path)[0].data["concept"] for path in witness_files(tmp_path / "out")]
    assert sorted(kept) == ["church", "tench"]
