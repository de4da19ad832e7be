"""Records joined with what each sample gave: which are, which are not, and files that hold something else."""

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from rub.errors import RubError
from rub.metrics.statistics import OWN, SAMPLES, wilson
from rub.reports.grouping import estimate
from rub.reports.samples import joined, rows_of, sampled
from rub.store.records import Record, SampledRecord, read_records, write_records

AT = {"attack": "uma", "budget": "8/255"}


def outcomes(record, hits):
    """Rows of samples.parquet: one sample for each of these outcomes."""
    names = (
        "task",
        "suite",
        "experiment",
        "dataset",
        "model",
        "protocol",
        "method",
        "unlearn_seed",
        "attack",
        "budget",
    )
    fields = {name: getattr(record, name) for name in (*names, "split")}
    return [{**fields, "sample_id": 7 * k, "recovered": bool(hit)} for k, hit in enumerate(hits)]


@pytest.fixture
def attacked(make_row):
    def made(hits, **more):
        low, high = wilson(sum(hits), len(hits))
        fields = {"n": len(hits), "ci_low": low, "ci_high": high, **AT, **more}
        return make_row("ft", "ua", sum(hits) / len(hits), **fields)

    return made


def test_an_attack_is_joined_with_its_samples(attacked):
    hits = [1, 0, 0, 1, 1, 0, 0, 0, 0, 1]
    record = attacked(hits)
    other = outcomes(attacked(hits, seed=1), np.ones(10))
    (found,) = sampled([record], rows_of([*other, *outcomes(record, hits)]), None)
    assert isinstance(found, SampledRecord)
    assert found.ids.tolist() == [7 * k for k in range(10)]
    assert found.values.tolist() == hits
    assert found.model_dump() == record.model_dump()
    assert estimate([found]).over == (SAMPLES,)
    assert estimate([record]).over == (OWN,)


def test_samples_that_say_something_else_are_not_joined(attacked, make_row):
    hits = [1, 0, 0, 1]
    record, clean = attacked(hits), make_row("ft", "ua", 0.5, n=4)
    twice = outcomes(record, hits)
    twice[1]["sample_id"] = 0
    for rows in (outcomes(record, [1, 1, 1, 0]), outcomes(record, hits)[:3], twice):
        assert sampled([record, clean], rows_of(rows), None) == [record, clean]
    assert sampled([clean], rows_of(outcomes(record, hits)), None) == [clean]
    attack = make_row("ft", "mia_shadow", 0.5, n=4, mia=0, **AT)  # as many, with the same mean, but another metric
    assert sampled([attack], rows_of(outcomes(record, hits)), None) == [attack]


def test_values_are_joined_with_their_metric(make_row, tmp_path):
    record, other = (
        make_row("ft", "ua", 2.0, n=3, **AT).model_copy(update={"metric": name}) for name in ("mine", "yours")
    )
    values = [
        {**{key: row[key] for key in row if key != "recovered"}, "metric": "mine", "value": value}
        for row, value in zip(outcomes(record, np.ones(3)), (1.0, 2.0, 3.0), strict=True)
    ]
    write_records([record, other], {"values": values}, tmp_path)
    found, left = joined(read_records(tmp_path), tmp_path)
    assert isinstance(found, SampledRecord)
    assert found.values.tolist() == [1, 2, 3]
    assert type(left) is Record
    half = 4.302652729911275 / np.sqrt(3)  # of three values with standard deviation 1
    assert (estimate([found]).high, estimate([found]).over) == (pytest.approx(2 + half), (SAMPLES,))


def test_a_folder_without_samples_stays_as_it_is(make_row, tmp_path):
    records = [make_row("ft", "ua", 0.5, **AT)]
    write_records(records, {}, tmp_path)
    assert joined(read_records(tmp_path), tmp_path) == records


@pytest.mark.parametrize("text", ["", "not parquet"])
def test_files_that_hold_no_samples_are_refused(make_row, tmp_path, text):
    (tmp_path / "samples.parquet").write_text(text)
    with pytest.raises(RubError, match=r"samples\.parquet: cannot be read as rows of samples"):
        joined([make_row("ft", "ua", 0.5)], tmp_path)


def test_a_missing_column_is_named(make_row, tmp_path):
    rows = outcomes(make_row("ft", "ua", 0.5, **AT), [1, 0])
    pyarrow.parquet.write_table(rows_of(rows).drop_columns(["recovered"]), tmp_path / "samples.parquet")
    with pytest.raises(RubError, match=r"samples\.parquet: has no column recovered"):
        joined([], tmp_path)
