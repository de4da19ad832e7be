"""The pages beside the paper's tables: their statistics by hand, and what they print of results that are committed."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scripts():
    """Return the two scripts as modules."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return [importlib.import_module(name) for name in ("against_paper", "against_paper_table3")]
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def test_newcombe_is_the_example_of_his_paper(scripts):
    # Newcombe (1998), table II, method 10: 56/70 - 48/80
    low, high = scripts[0].newcombe(80.0, 70, 60.0, 80)
    assert (round(low, 2), round(high, 2)) == (5.24, 33.39)


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


def test_holm_stops_at_the_first_that_fails(scripts):
    # .01 <= .05/4, .015 <= .05/3, .03 > .05/2: the last would pass alone
    assert scripts[0].holm([(0.03, 1), (0.01, -1), (0.04, 1), (0.015, 1)]) == [0, -1, 0, 1]


def test_a_difference_that_every_seed_repeats_is_told(scripts):
    assert scripts[0].paired_t({0: [3.0], 1: [4.0]}, {0: [1.0], 1: [2.0]}) == (0.0, 1)
    assert scripts[0].paired_t({0: [3.0]}, {0: [1.0]}) == (1.0, 0)
    assert scripts[0].paired_t({0: [1.0], 1: [2.0], 2: [4.0]}, {0: [2.0], 1: [4.0], 2: [5.0]})[1] == -1


def attacked(method, budget, shares, seeds=2):
    """Return rows of own, unseen and steered images that come back in these shares, of 100 images each."""
    cells = (("ua", "forget"), ("ua_test", "forget_test"), ("ua", "retain"))
    return [
        SimpleNamespace(
            method=method, metric=metric, split=split, attack="uma", budget=budget, value=share, n=100,
            unlearn_seed=seed,
        )
        for seed in range(seeds)
        for (metric, split), share in zip(cells, shares, strict=True)
    ]  # fmt: skip


def test_controls_say_at_every_budget_what_steering_explains(scripts):
    rows = [
        *attacked("ft", "1/255", (0.5, 0.45, 0.1)), *attacked("ft", "16/255", (0.95, 0.95, 0.93)),
        *attacked("rl", "16/255", (0.02, 0.0, 0.0)), *attacked("original", "16/255", (0.95, 0.95, 0.1), seeds=1),
    ]  # fmt: skip
    lines = scripts[0].controls(rows)
    assert lines[:4] == [
        "| method | 1/255 | 16/255 |",
        "|:---|---:|---:|",
        "| ft | **50 / 45 / 10** | 95 / 95 / 93 |",
        "| rl |  | 2 / 0 / 0 |",
    ]
    said = [line.split(" | ")[-1] for line in lines if line.startswith(("| ft", "| rl", "| original"))][3:]
    assert said == ["more than steering |", "not told apart from steering |", "nothing came back |", "one model |"]
    # Newcombe's interval of 50 and 10 of 100 by hand: Wilson .404 to .596 and .055 to .174
    assert any("| +40.0 (+27.8 to +50.6) |" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "folder", "methods", "count"),
    [  # numbers, orders, controls; then the differences at two budgets, or the seeds one by one
        ("against_paper", "table1-cifar10-small", ["ft", "rl", "iu", "l1-sparse", "salun"], 5),
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
