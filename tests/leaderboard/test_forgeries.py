"""Folders that were changed and sealed again: what contradicts something in the folder is refused."""

from collections import Counter

import numpy as np
import pytest
from scipy.stats import binomtest

from rub.errors import RubError
from rub.leaderboard.submit import REATTACKED, attacked_again, power
from rub.reports.folders import contradictions_in, read_folder
from rub.store.artifacts import Store
from rub.witness.claims import Sources

EACH = 10

pytestmark = pytest.mark.slow


def refused(place):
    try:
        read_folder(place)
    except RubError as error:
        assert "\n" not in str(error)
        return True
    return False


def test_a_folder_of_a_run_is_accepted_and_so_is_one_written_again(tiny_out, kinds, tmp_path):
    assert list(contradictions_in(tiny_out)) == []
    assert not refused(kinds.Folder.read(tiny_out).write(tmp_path / "again", tiny_out))


def test_220_forgeries_that_contradict_something_are_all_refused(tiny_out, kinds, tmp_path):
    caught = Counter(
        name for name, place in kinds.forged(tmp_path / "f", tiny_out, kinds.CONTRADICTING, EACH) if refused(place)
    )
    assert caught == {forgery.__name__: EACH for forgery in kinds.CONTRADICTING}
    assert caught.total() == 220


def test_forgeries_that_nothing_contradicts_are_not_found_by_reading(tiny_out, kinds, tmp_path):
    caught = Counter(
        name for name, place in kinds.forged(tmp_path / "f", tiny_out, kinds.SILENT, EACH) if refused(place)
    )
    assert caught == {}  # what finds the first kind is the attack run again; the second is out of reach


def test_a_lowered_rate_that_agrees_with_everything_is_found_by_attacking_again(tiny, tiny_out, kinds, tmp_path):
    sources = Sources(store=Store(tiny.store))
    [honest] = attacked_again(tiny_out, sources)
    assert (honest.reason, honest.more, honest.images) == ("", 0, 8)
    [(_, place)] = kinds.forged(tmp_path / "f", tiny_out, kinds.SILENT[:1], 1)
    [lowered] = attacked_again(place, sources)
    assert lowered.more == lowered.found - lowered.claimed > 0
    assert lowered.p == pytest.approx(0.5**lowered.more)  # all differ to one side
    [missing] = attacked_again(tiny_out, Sources())
    assert "not in the store" in missing.reason


def test_the_power_is_that_of_a_sign_test():
    draw = np.random.default_rng(0).random((20_000, REATTACKED)) < 0.2
    found = np.array([binomtest(int(k), int(k), alternative="greater").pvalue < 0.01 for k in draw.sum(1) if k])
    assert power(0.2) == pytest.approx(found.mean(), abs=0.01)
