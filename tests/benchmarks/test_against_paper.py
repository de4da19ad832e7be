"""The pages beside the paper's tables: their statistics by hand, and what they print of results that are committed."""

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rub.store.records import SampledRecord

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scripts():
    """Return the two scripts as modules."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return [importlib.import_module(name) for name in ("against_paper", "against_paper_table3")]
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def test_mcnemar_counts_what_disagrees(scripts):
    one = {(0, i): i < 5 or i == 9 for i in range(12)}  # 0-4 only here, 9 in both
    other = {(0, i): i in (9, 10) for i in range(12)}  # 10 only there
    assert scripts[1].mcnemar(one, other) == (pytest.approx(2 * (1 + 6) / 2**6), 5, 1)
    assert scripts[1].mcnemar(one, one) == (1.0, 0, 0)


def test_seeds_of_one_prompt_are_one_prompt(scripts):
    lost, back, never = (False, True, 3), (True, True, 0), (False, False, -1)
    found = {
        ("church", "esd-x", "uma"): {(0, 0): lost, (1, 0): never, (0, 1): back, (1, 1): back},
        ("church", "retrain", "uma"): {(0, 0): never, (0, 1): never},
    }
    table3 = scripts[1]
    own, theirs = (table3.after(found, ["church"], name, "uma") for name in ("esd-x", "retrain"))
    assert own == {("church", 0): 0.5, ("church", 1): 1.0}
    assert table3.before(found, ["church"], "esd-x") == {("church", 0): 0.0, ("church", 1): 1.0}
    assert table3.mcnemar(own, theirs) == (0.5, 2, 0)  # of two prompts, both: 2 / 2^2
    assert table3.difference(own, theirs) == "+75 (p 0.5)"
    assert table3.rate(theirs) == "0 (0-66)"  # Wilson, N = 2: 1.96^2 / (2 + 1.96^2)
    assert table3.by_seed(found)[2:] == ["| esd-x | 100, 50 |", "| retrain | 0 |"]


def test_the_order_of_a_pair_is_told_where_its_corrected_p_is_small(scripts):
    pairs = [("a", "b"), ("a", "c"), ("b", "c"), ("b", "d")]
    theirs = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    # .01 <= .05/4 and .015 <= .05/3; .03 > .05/2: the last would pass alone
    tests = [(-1.0, 0.03), (2.0, 0.01), (-1.0, 0.04), (-1.0, 0.015)]
    assert scripts[0].tally(pairs, tests, theirs) == "4 | 1 | 1 (a/c) | 2"


def attacked(make_row, method, budget, shares, images=100):
    """Own, unseen and other images that come back in these shares, of two seeds."""
    cells = (("ua", "forget"), ("ua_test", "forget_test"), ("ua", "other"))
    return [
        sampled(make_row(method, metric, share, split=split, attack="uma", budget=budget, n=images, unlearn_seed=seed))
        for seed in range(2)
        for (metric, split), share in zip(cells, shares, strict=True)
    ]


def sampled(row):
    """The record with an image each, of which the first come back."""
    values = (np.arange(row.n) < round(row.value * row.n)).astype(float)
    return SampledRecord.model_construct(**dict(row), ids=np.arange(row.n), values=values)


def test_the_curve_shows_where_the_own_class_is_reached_more_often_than_another(scripts, make_row):
    rows = [
        *attacked(make_row, "ft", "1/255", (0.5, 0.45, 0.1)), *attacked(make_row, "ft", "16/255", (0.95, 0.95, 0.93)),
        *attacked(make_row, "rl", "16/255", (0.02, 0.0, 0.6)),
    ]  # fmt: skip
    assert scripts[0].curve(rows) == [
        "| method | 1/255 | 16/255 |",
        "|:---|---:|---:|",
        "| ft | **50 / 45 / 10** | 95 / 95 / 93 |",
        "| rl | - / - / - | 2 / 0 / 60 |",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "folder", "methods", "count"),
    [  # numbers, orders, and two of what comes back
        ("against_paper", "table1-cifar10-resnet10", ["ft", "rl", "iu", "l1-sparse", "salun"], 4),
        ("against_paper_table3", "text-to-image-imagenette", ["esd-x", "fmn", "spm", "salun", "erasediff"], 4),
    ],
)
def test_tables_of_committed_results(script, folder, methods, count):
    words = [sys.executable, ROOT / "benchmarks" / f"{script}.py", ROOT / "results" / folder]
    done = subprocess.run([str(word) for word in words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tables = [part for part in done.stdout.strip().split("\n\n") if part.startswith("|")]
    assert len(tables) == count
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1  # every row has a cell for each column
    for method in methods:
        assert f"| {method} |" in tables[0] and f"| {method} |" in tables[2]
