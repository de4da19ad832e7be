"""Result folders as DataFrames."""

import shutil

import pytest

import rub
from rub.errors import RubError
from rub.reports.frames import SAMPLE_COLUMNS
from rub.store.records import Record


def test_a_folder_is_three_frames(tiny, tiny_out):
    found = rub.read_results(tiny_out)
    assert [*found.records.columns] == [*Record.model_fields, "hyperparameters"]
    assert len(found.records) == len(tiny.result.records)
    said = found.records.set_index("method").hyperparameters
    assert "epochs 1" in said["ft"].iloc[0]
    assert set(said[["original", "retrain"]]) == {""}
    assert set(found.samples.columns) | set(found.values.columns) <= set(SAMPLE_COLUMNS)
    wanted = found.records.query("metric == 'ua' and attack == 'uma' and split == 'forget' and method == 'ft'")
    own = found.samples.query("attack == 'uma' and split == 'forget' and method == 'ft'").groupby("budget").recovered
    for row in wanted.itertuples():
        assert own.mean()[row.budget] == pytest.approx(row.value)


@pytest.mark.parametrize("name", ["inpainting-digits", "text-to-image-digits", "table1-cifar10-resnet10"])
def test_the_columns_of_committed_results_are_described(request, name):
    found = rub.read_results(request.config.rootpath / "results" / name)
    assert len(found.samples)
    assert set(found.samples.columns) | set(found.values.columns) <= set(SAMPLE_COLUMNS)


def test_a_changed_folder_is_refused(tiny_out, tmp_path):
    copy = shutil.copytree(tiny_out, tmp_path / "copy")
    (copy / "curves.json").write_text("[]", encoding="utf-8")
    with pytest.raises(RubError, match=r"curves.json"):
        rub.read_results(copy)
