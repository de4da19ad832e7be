"""Set a measured Table 1 beside the paper's: numbers, orders, and what the controls explain; prints Markdown.

    python benchmarks/against_paper.py results/table1-cifar10-small

Orders: of each pair of the paper's methods, whether our paired difference over unlearning seeds (95 % t interval,
Holm-corrected over the pairs of a column) says the same, the opposite, or cannot tell.
Controls: how many points of the own images' UA remain over that of unseen images of the class, and over that of
unrelated, retained images which are steered into it, at the same budget; each with the 95 % interval over images
(Newcombe 1998, method 10, of the mean rates and the number of images). *More than steering* is said where it and the
interval over seeds exclude 0; *not told apart from steering* says that this many images cannot tell.
"""

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau, ttest_rel

from rub import read_records
from rub.metrics.statistics import Run, difference, estimate, wilson
from rub.reports.grouping import budgets_of
from rub.store.records import Record

BUDGETS = ("none", "8/255", "16/255")  # the paper's
MORE = "more than steering"
BySeed = dict[int, list[float]]


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    records = [row for row in read_records(parser.parse_args().folder) if row.status == "ok"]
    paper = json.loads(files("rub.reports").joinpath("paper_tables.json").read_text())["table1"][records[0].dataset]
    for lines in (numbers(records, paper), orders(records, paper), controls(records)):
        print("\n".join(lines), end="\n\n")


def values(records: Iterable[Record], method: str, metric: str, budget: str, split: str) -> BySeed:
    """Return unlearning seed -> values, in percent where the paper has percent."""
    found: BySeed = defaultdict(list)
    attack = "none" if budget == "none" else "uma"
    for row in records:
        cell = (row.method, row.metric, row.attack, row.budget, row.split)
        if cell == (method, metric, attack, budget, split):
            found[row.unlearn_seed].append((1 if metric.startswith("mia") else 100) * row.value)
    return dict(found)


def columns() -> list[tuple[str, str, str, str]]:
    """Return heading, metric, budget and split of the paper's columns."""
    rows = [("TA", "ta", "none", "test")]
    for budget in BUDGETS:
        rows += [(f"UA {budget}", "ua", budget, "forget"), (f"MIA {budget}", "mia_shadow", budget, "forget")]
    return rows


def printed(paper: dict[str, Any], method: str, metric: str, budget: str) -> float | None:
    """Return the paper's number, or None where it has none."""
    row = paper[method]
    found = row["ta"] if metric == "ta" else row[budget]["ua" if metric == "ua" else "mia"]
    return None if found is None else float(found)


def numbers(records: list[Record], paper: dict[str, Any]) -> list[str]:
    """Return our means with half of the 95 % interval over seeds beside the paper's; bold where it lies inside."""
    heads = columns()
    lines = ["| method | " + " | ".join(head for head, *_ in heads) + " |", "|:---|" + "---:|" * len(heads)]
    for method in paper:
        cells = []
        for _, metric, budget, split in heads:
            found, theirs = values(records, method, metric, budget, split), printed(paper, method, metric, budget)
            if not found:
                cells.append("")
                continue
            mean = estimate(
                [Run(value, seed=seed, mia=k) for seed, many in found.items() for k, value in enumerate(many)]
            )
            digits = 3 if metric.startswith("mia") else 1
            ours = f"{mean.mean:.{digits}f}"
            inside = theirs is not None and len(found) > 1 and mean.low <= theirs <= mean.high
            half = f" ±{(mean.high - mean.low) / 2:.{digits}f}" if len(found) > 1 else ""
            other = "" if theirs is None else f" ({theirs:.{digits}f})"
            cells.append(f"**{ours}{half}{other}**" if inside else f"{ours}{half}{other}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def orders(records: list[Record], paper: dict[str, Any]) -> list[str]:
    """Return, for each column, how the paper's order of its methods fares."""
    methods = [name for name in paper if name not in ("original", "retrain")]
    lines = [
        "| column | Kendall's tau | pairs | the paper's order confirmed | contradicted | cannot tell |",
        "|:---|---:|---:|---:|---:|:---|",
    ]
    for head, metric, budget, split in columns():
        ours = {name: values(records, name, metric, budget, split) for name in methods}
        theirs = {name: printed(paper, name, metric, budget) for name in methods}
        if not all(ours.values()) or None in theirs.values():
            continue
        means = [np.mean([np.mean(many) for many in ours[name].values()]) for name in methods]
        tau = kendalltau(means, [theirs[name] for name in methods]).statistic
        pairs = [(a, b) for a, b in combinations(methods, 2) if theirs[a] != theirs[b]]
        signs = holm([paired_t(ours[a], ours[b]) for a, b in pairs])
        lines.append(f"| {head} | {tau:.2f} | {tally(pairs, signs, theirs)} |")
    return lines


def tally(pairs: Sequence[tuple[str, str]], signs: Sequence[int], theirs: Mapping[str, float]) -> str:
    """Return how many pairs there are, and how many say the same as the paper, the opposite (which), and nothing."""
    told: dict[str, list[str]] = {word: [] for word in ("same", "opposite", "open")}
    for (a, b), sign in zip(pairs, signs, strict=True):
        word = "open" if sign == 0 else "same" if sign == np.sign(theirs[a] - theirs[b]) else "opposite"
        told[word].append(f"{a}/{b}")
    said = ", ".join(told["opposite"])
    opposite = f"{len(told['opposite'])}{f' ({said})' if said else ''}"
    return f"{len(pairs)} | {len(told['same'])} | {opposite} | {len(told['open'])}"


def paired_t(one: BySeed, other: BySeed) -> tuple[float, int]:
    """Return p of a paired t test over unlearning seeds, and the sign of the mean difference."""
    seeds = sorted(one.keys() & other.keys())
    means = [[np.mean(side[seed]) for seed in seeds] for side in (one, other)]
    difference = np.subtract(*means)
    if len(seeds) < 2:
        return 1.0, 0
    if np.ptp(difference) == 0:  # every seed says exactly the same
        return (0.0 if difference[0] else 1.0), int(np.sign(difference[0]))
    return float(ttest_rel(*means).pvalue), int(np.sign(difference.mean()))


def holm(tests: Sequence[tuple[float, int]], level: float = 0.05) -> list[int]:
    """Return the signs of the tests (p, sign) that are significant together, 0 for the others (Holm 1979)."""
    signs = [0] * len(tests)
    for rank, index in enumerate(sorted(range(len(tests)), key=lambda i: tests[i][0])):
        if tests[index][0] > level / (len(tests) - rank):
            break
        signs[index] = tests[index][1]
    return signs


@dataclass(frozen=True)
class Beside:
    """What comes back of a method's own images at a budget, beside the controls; in percent.

    Attributes:
        own, unseen, steered: mean UA of own images, of unseen images of the class, and of steered, retained images.
        over_unseen, over_steered: the differences with their intervals over images, in points.
        said: what can be said of it.
    """

    own: float
    unseen: float
    steered: float
    over_unseen: str
    over_steered: str
    said: str


def beside(records: Sequence[Record], method: str, budget: str) -> Beside | None:
    """Return what stands beside a method's own images at a budget; None where it was not attacked."""
    cells = [("ua", "forget"), ("ua_test", "forget_test"), ("ua", "retain")]
    own, _, steered = sides = [values(records, method, metric, budget, split) for metric, split in cells]
    if not own or not steered:
        return None
    means = [float(np.mean([np.mean(many) for many in side.values()])) for side in sides]
    sizes = [count(records, method, metric, budget, split) for metric, split in cells]
    gap = difference(
        *([Run(float(np.mean(many)), seed=seed) for seed, many in side.items()] for side in (own, steered))
    )
    over_unseen = newcombe(means[0], sizes[0], means[1], sizes[1])
    over_steered = newcombe(means[0], sizes[0], means[2], sizes[2])
    return Beside(
        *means,
        told(means[0] - means[1], *over_unseen),
        told(gap.mean, *over_steered),
        explained(means[0], gap.low, over_steered[0], len(own)),
    )


def controls(records: list[Record]) -> list[str]:
    """Return own / unseen / steered at every budget, and then, for each budget, the differences."""
    methods = list(dict.fromkeys(row.method for row in records))
    budgets = budgets_of(records, "uma")
    found = {
        (method, budget): one for budget in budgets for method in methods if (one := beside(records, method, budget))
    }
    lines = ["| method | " + " | ".join(budgets) + " |", "|:---|" + "---:|" * len(budgets)]
    for method in dict.fromkeys(method for method, _ in found):
        cells = [found.get((method, budget)) for budget in budgets]
        lines.append(f"| {method} | " + " | ".join(map(compact, cells)) + " |")
    head = "| method | own images | class, unseen | steered | own - unseen | own - steered | what can be said |"
    for budget in budgets:
        lines += ["", f"At {budget}:", "", head, "|:---|---:|---:|---:|---:|---:|:---|"]
        for (method, at), one in found.items():
            if at == budget:
                shares = " | ".join(f"{share:.1f}" for share in (one.own, one.unseen, one.steered))
                lines.append(f"| {method} | {shares} | {one.over_unseen} | {one.over_steered} | {one.said} |")
    return lines


def compact(one: Beside | None) -> str:
    """Return own / unseen / steered; bold where own images come back more often than others are steered."""
    if one is None:
        return ""
    shares = f"{one.own:.0f} / {one.unseen:.0f} / {one.steered:.0f}"
    return f"**{shares}**" if one.said == MORE else shares


def told(mean: float, low: float, high: float) -> str:
    """Return a difference with its interval, in points."""
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def count(records: Iterable[Record], method: str, metric: str, budget: str, split: str) -> int:
    """Return the number of attacked images behind a UA."""
    cell = (method, metric, "uma", budget, split)
    return next(row.n for row in records if (row.method, row.metric, row.attack, row.budget, row.split) == cell)


def newcombe(a: float, a_count: int, b: float, b_count: int) -> tuple[float, float]:
    """Return the 95 % interval of a - b, of two independent proportions, all in percent."""
    (a_low, a_high), (b_low, b_high) = (
        [100 * end for end in wilson(round(p * n / 100), n)] for p, n in ((a, a_count), (b, b_count))
    )
    return a - b - math.hypot(a - a_low, b_high - b), a - b + math.hypot(a_high - a, b - b_low)


def explained(own: float, over_seeds: float, over_images: float, seeds: int) -> str:
    """Return one of: nothing came back; not told apart from steering; more than steering; one seed."""
    if own < 5:
        return "nothing came back"
    if seeds < 2:
        return "one model"
    return MORE if min(over_seeds, over_images) > 0 else "not told apart from steering"


if __name__ == "__main__":
    main()
