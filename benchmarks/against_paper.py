"""Set a measured Table 1 beside the paper's: numbers, orders, the paired contrast, and what holds in a second network.

    python benchmarks/against_paper.py results/table1-cifar10-resnet10
    python benchmarks/against_paper.py results/table1-cifar10-resnet10 results/table1-cifar10-vgg16

Prints Markdown. Intervals and tests are those of the tables (`rub.metrics.statistics`): 95 %, over images, originals
and unlearning seeds, tests Holm-corrected over the pairs of a column.
Contrast: what comes back of the same images towards their own class and towards another one, at each budget and in
radii, with the dose of the forget set that each layer says is left. A class is *nearer* than another where the mean
selectivity is above 0 (interval), else *as near* where images reach it, and *out of reach* where fewer than 5 % do.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from rub.metrics import statistics
from rub.metrics.dose import DOSE, DoseEquivalent, dose_of
from rub.reports.doses import on_scale
from rub.reports.folders import read_folder
from rub.reports.grouping import budgets_of, estimate, is_share, row_order, run_of
from rub.store.records import Record
from rub.tasks.classification.verdict import REACHED

BUDGETS = ("none", "8/255", "16/255")  # the paper's
LAYERS = {"own_radius": "own radius", "log_odds_auc": "log-odds AUC", "probe_balanced": "balanced probe"}
Records = Sequence[Record]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("second", type=Path, nargs="?", help="the same table of another network")
    arguments = parser.parse_args()
    records = measured(arguments.folder)
    paper = json.loads(files("rub.reports").joinpath("paper_tables.json").read_text())["table1"][records[0].dataset]
    tables = [numbers(records, paper), orders(records, paper), curve(records), contrast(records)]
    if arguments.second:
        tables.append(networks(records, measured(arguments.second)))
    for lines in tables:
        print("\n".join(lines), end="\n\n")


def measured(folder: Path) -> Records:
    """Records of a folder that have a value, with the values of single images."""
    return [row for row in read_folder(folder).records if row.value is not None]


def cell(
    records: Records, method: str, metric: str, split: str, attack: str = "none", budget: str = "none"
) -> list[Record]:
    """Records of one cell, without those of the dose scale."""
    wanted = (method, metric, split, attack, budget)
    return [
        row
        for row in records
        if (row.method, row.metric, row.split, row.attack, row.budget) == wanted and not on_scale(row)
    ]


def columns() -> list[tuple[str, str, str, str]]:
    """Heading, metric, budget and split of the paper's columns."""
    rows = [("TA", "ta", "none", "test")]
    for budget in BUDGETS:
        rows += [(f"UA {budget}", "ua", budget, "forget"), (f"MIA {budget}", "mia_shadow", budget, "forget")]
    return rows


def ours(records: Records, method: str, metric: str, budget: str, split: str) -> list[Record]:
    """Records of one of the paper's columns."""
    return cell(records, method, metric, split, "none" if budget == "none" else "uma", budget)


def printed(paper: dict[str, Any], method: str, metric: str, budget: str) -> float | None:
    """The paper's number, or None where it has none."""
    row = paper[method]
    found = row["ta"] if metric == "ta" else row[budget]["ua" if metric == "ua" else "mia"]
    return None if found is None else float(found)


def numbers(records: Records, paper: dict[str, Any]) -> list[str]:
    """Our means with their intervals beside the paper's; bold where its number lies inside."""
    heads = columns()
    lines = ["| method | " + " | ".join(head for head, *_ in heads) + " |", "|:---|" + "---:|" * len(heads)]
    for method in paper:
        cells = []
        for _, metric, budget, split in heads:
            digits, scale = (3, 1) if metric.startswith("mia") else (1, 100)
            found = estimate(ours(records, method, metric, budget, split), scale)
            theirs = printed(paper, method, metric, budget)
            if found is None:
                cells.append("")
                continue
            text = f"{found.mean:.{digits}f} {found.low:.{digits}f}-{found.high:.{digits}f}"
            text += "" if theirs is None else f" ({theirs:.{digits}f})"
            cells.append(f"**{text}**" if theirs is not None and found.low <= theirs <= found.high else text)
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def orders(records: Records, paper: dict[str, Any]) -> list[str]:
    """For each column, how the paper's order of its methods fares."""
    methods = [name for name in paper if name not in ("original", "retrain")]
    lines = [
        "| column | Kendall's tau | pairs | the paper's order confirmed | contradicted | cannot tell |",
        "|:---|---:|---:|---:|:---|---:|",
    ]
    for head, metric, budget, split in columns():
        found = {name: ours(records, name, metric, budget, split) for name in methods}
        theirs = {name: printed(paper, name, metric, budget) for name in methods}
        known = {name: value for name, value in theirs.items() if value is not None and found[name]}
        if len(known) < len(methods):
            continue
        means = [float(np.mean([row.value for row in found[name]])) for name in methods]
        tau = kendalltau(means, [known[name] for name in methods]).statistic
        pairs = [(a, b) for a, b in combinations(methods, 2) if known[a] != known[b]]
        tests = [
            statistics.difference(
                *([run_of(row) for row in found[name]] for name in pair), share=metric != "mia_shadow"
            )
            for pair in pairs
        ]
        lines.append(f"| {head} | {tau:.2f} | {tally(pairs, [(test.mean, test.p) for test in tests], known)} |")
    return lines


def tally(pairs: Sequence[tuple[str, str]], tests: Sequence[tuple[float, float]], theirs: Mapping[str, float]) -> str:
    """How many pairs there are, and how many say the same as the paper, the opposite (which), and nothing.

    Args:
        pairs: of methods.
        tests: of each pair the difference, first minus second, and its p, which is Holm-corrected here.
        theirs: the paper's numbers.
    """
    told: dict[str, list[str]] = {word: [] for word in ("same", "opposite", "open")}
    for (a, b), (difference, _), p in zip(pairs, tests, statistics.holm([p for _, p in tests]), strict=True):
        agree = np.sign(difference) == np.sign(theirs[a] - theirs[b])
        told["open" if p > statistics.LEVEL or not difference else "same" if agree else "opposite"].append(f"{a}/{b}")
    opposite = f" ({', '.join(told['opposite'])})" if told["opposite"] else ""
    return f"{len(pairs)} | {len(told['same'])} | {len(told['opposite'])}{opposite} | {len(told['open'])}"


def curve(records: Records) -> list[str]:
    """Own / unseen / other at every budget, in percent; bold where the own class is reached more often than another."""
    budgets = budgets_of(records, "uma")
    lines = ["| method | " + " | ".join(budgets) + " |", "|:---|" + "---:|" * len(budgets)]
    for method in row_order({row.method for row in records if row.attack == "uma"}, "classification"):
        cells = []
        for budget in budgets:
            own, unseen, other = (
                cell(records, method, metric, split, "uma", budget)
                for metric, split in (("ua", "forget"), ("ua_test", "forget_test"), ("ua", "other"))
            )
            shares = [estimate(part, 100) for part in (own, unseen, other)]
            text = " / ".join("-" if share is None else f"{share.mean:.0f}" for share in shares)
            cells.append(f"**{text}**" if own and other and above(own, other) else text)
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def above(one: Records, other: Records) -> bool:
    """Whether a paired test says that the first is the larger."""
    found = statistics.difference(
        *([run_of(row) for row in side] for side in (one, other)), share=is_share([*one, *other])
    )
    return found.mean > 0 and found.p <= statistics.LEVEL


def contrast(records: Records) -> list[str]:
    """Radii, selectivity, what is reached, and the dose that each layer says is left."""
    heads = ["own", "other", "selectivity", "reached", *(f"dose by {name}" for name in LAYERS.values()), "the class is"]
    lines = ["| method | " + " | ".join(heads) + " |", "|:---|" + "---:|" * (len(heads) - 1) + ":---|"]
    for method in row_order({row.method for row in records if row.metric == "selectivity"}, "classification"):
        cells = [interval(records, method, metric, 2) for metric in ("own_radius", "other_radius", "selectivity")]
        cells.append(interval(records, method, "own_reached", 0, 100))
        cells += [dose(records, method, metric) for metric in LAYERS]
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {reading(records, method)} |")
    return lines


def interval(records: Records, method: str, metric: str, digits: int, scale: float = 1) -> str:
    """A mean over forgotten images with its interval."""
    found = estimate(cell(records, method, metric, "forget"), scale)
    return "" if found is None else f"{found.mean:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f})"


def dose(records: Records, method: str, metric: str) -> str:
    """The dose-equivalent of a row on a metric, in percent; the true one of a dose model."""
    true = dose_of(method)
    if true is not None:
        return f"[{true:g}]"
    rows = [row for row in records if row.method == method and row.metric == metric + DOSE and on_scale(row)]
    forget = [row for row in rows if row.split == "forget"] or rows
    if not forget:
        return ""
    (row, *_) = forget
    ends = [row.value or 0.0 if end is None else end for end in (row.ci_low, row.ci_high)]
    return DoseEquivalent(row.value or 0.0, ends[0], ends[1], row.setting).text  # type: ignore[arg-type]


def reading(records: Records, method: str) -> str:
    """What the contrast says of a row."""
    reached, selectivity = (estimate(cell(records, method, name, "forget")) for name in ("own_reached", "selectivity"))
    if reached is None or selectivity is None:
        return ""
    if selectivity.low > 0:
        return "nearer"
    return "out of reach" if reached.mean < REACHED else "as near"


def networks(one: Records, other: Records) -> list[str]:
    """Selectivity, dose by the own radius and reading of the rows that both networks have."""
    names = [one[0].model, other[0].model]
    parts = ("TA", "UA none", "selectivity", "dose", "the class is")
    lines = ["| method | " + " | ".join(f"{part}, {name}" for part in parts for name in names) + " |"]
    lines.append("|:---|" + "---:|" * (2 * len(parts)))
    both = {row.method for row in one if row.metric == "selectivity"} & {row.method for row in other}
    for method in row_order(both, "classification"):
        rows = []
        for records in (one, other):
            plain = [estimate(cell(records, method, *place), 100) for place in (("ta", "test"), ("ua", "forget"))]
            shares = ["" if share is None else f"{share.mean:.1f}" for share in plain]
            rows.append(
                [*shares, interval(records, method, "selectivity", 1), dose(records, method, "own_radius"),
                 reading(records, method)]
            )  # fmt: skip
        lines.append(f"| {method} | " + " | ".join(text for pair in zip(*rows, strict=True) for text in pair) + " |")
    return lines


if __name__ == "__main__":
    main()
