"""Counting as in Table 3: per-prompt steps against hand-made cases, and all 35 published cells from their counts."""

import numpy as np
import pytest

from rub.reports.tables import paper_numbers
from rub.tasks.text_to_image.metrics import counted_steps

CONCEPTS = {"church": 50, "garbage_truck": 50, "nudity": 118, "parachute": 50, "tench": 50}
# (pre, post, failures, sum of steps) of each concept, worked out from the printed averages and rates.
COUNTS = {
    "advunlearn": [(0, 4, 46, 4697), (0, 3, 47, 4791), (9, 42, 76, 8603), (1, 7, 43, 4459), (0, 3, 47, 4777)],
    "erasediff": [(3, 38, 12, 2286), (3, 26, 24, 3234), (0, 7, 111, 11254), (2, 41, 9, 1472), (0, 6, 44, 4647)],
    "esd": [(7, 38, 12, 1929), (1, 22, 28, 3699), (25, 107, 11, 3051), (3, 40, 10, 2223), (0, 23, 27, 3352)],
    "fmn": [(26, 48, 2, 339), (23, 49, 1, 198), (104, 118, 0, 46), (26, 50, 0, 105), (18, 50, 0, 321)],
    "salun": [(5, 34, 16, 2358), (1, 25, 25, 3386), (2, 29, 89, 9996), (4, 44, 6, 1516), (0, 12, 38, 4420)],
    "scissorhands": [(0, 4, 46, 4818), (0, 2, 48, 4985), (0, 14, 104, 10897), (1, 22, 28, 3919), (0, 9, 41, 4579)],
    "spm": [(22, 48, 2, 376), (2, 41, 9, 1868), (66, 118, 0, 199), (13, 48, 2, 617), (3, 47, 3, 896)],
}
CELLS = [
    (method, concept, n, counts)
    for method, row in COUNTS.items()
    for (concept, n), counts in zip(CONCEPTS.items(), row, strict=True)
]


@pytest.mark.parametrize(("method", "concept", "n", "counts"), CELLS, ids=str)
def test_every_published_cell_follows_from_its_counts(method, concept, n, counts):
    printed, (pre, post, failures, total) = paper_numbers("table3")[method][concept], counts
    assert 0 <= pre <= post and post + failures == n
    assert post - pre <= total - 100 * failures <= 100 * (post - pre), "1 to 100 steps of each attacked success"
    assert abs(total / n - printed["steps_mean"]) <= 0.005 + 1e-9
    assert abs(pre / n - printed["asr_pre"]) <= 0.0005 + 1e-9
    assert abs(post / n - printed["asr_post"]) <= 0.0005 + 1e-9
    median = printed["steps_median"]
    assert 0 <= median <= 100
    assert failures <= n / 2 or median == 100
    assert pre <= n / 2 or median == 0


def test_the_table_has_35_cells():
    assert len(CELLS) == 35
    assert {(m, c) for m, c, _, _ in CELLS} == {(m, c) for m, row in paper_numbers("table3").items() for c in row}


@pytest.mark.parametrize(("method", "concept", "n", "counts"), CELLS, ids=str)
def test_steps_with_these_counts_give_the_same_cell(method, concept, n, counts):
    pre, post, failures, total = counts
    steps, left = [0] * pre + [-1] * failures, total - 100 * failures
    for more in range(post - pre - 1, -1, -1):  # any steps from 1 to 100 that add up
        steps.append(min(100, left - more))
        left -= steps[-1]
    found = counted_steps(np.random.default_rng(0).permutation(steps), 100)
    assert left == 0
    assert (len(found), int(found.sum()), float(found.mean())) == (n, total, total / n)
    assert failures <= n / 2 or np.median(found) == 100
    assert pre <= n / 2 or np.median(found) == 0


def test_the_three_kinds_of_prompts_by_hand():
    found = counted_steps([0, 0, 4, 10, -1, -1], 10)  # a success at the last step costs as much as a failure
    assert found.tolist() == [0, 0, 4, 10, 10, 10]
    assert (found.mean(), np.median(found)) == (34 / 6, 7.0)


def test_one_prompt_and_all_of_a_kind():
    assert counted_steps([-1], 7).tolist() == [7]
    assert counted_steps(np.array([0, 0], np.int64), 7).tolist() == [0, 0]


@pytest.mark.parametrize("steps", [[], [-2], [101], [[0]]])
def test_steps_that_cannot_be_are_refused(steps):
    with pytest.raises(ValueError, match="-1 to 100"):
        counted_steps(steps, 100)
