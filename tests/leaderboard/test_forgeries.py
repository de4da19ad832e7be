"""Folders that were changed and sealed again: what contradicts something in the folder is refused."""

import importlib.util
from collections import Counter
from pathlib import Path

import pytest

from rub.errors import RubError
from rub.reports.folders import contradictions_in, read_folder

EACH = 10

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def kinds():
    path = Path(__file__).parents[2] / "benchmarks" / "forgeries.py"
    spec = importlib.util.spec_from_file_location("rub_forgeries", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def refused(place):
    try:
        read_folder(place)
    except RubError as error:
        assert "\n" not in str(error)
        return True
    return False


def test_a_folder_of_a_run_is_accepted_and_so_is_one_written_again(tiny_out, kinds, tmp_path):
    assert list(contradictions_in(tiny_out)) == []
    assert not refused(Folder.read(tiny_out).write(tmp_path / "again", tiny_out))


def test_200_forgeries_that_contradict_something_are_all_refused(tiny_out, kinds, tmp_path):
    caught = Counter(
        name for name, place in kinds.forged(tmp_path / "f", tiny_out, kinds.CONTRADICTING, EACH) if refused(place)
    )
    assert caught == {forgery.__name__: EACH for forgery in kinds.CONTRADICTING}
    assert caught.total() == 200


def test_forgeries_that_nothing_contradicts_are_not_found_by_reading(tiny_out, kinds, tmp_path):
    caught = Counter(
        name for name, place in kinds.forged(tmp_path / "f", tiny_out, kinds.SILENT, EACH) if refused(place)
    )
    assert caught == {}  # what finds the first kind is the attack run again; the second is out of reach
