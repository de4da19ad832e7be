"""Set a measured Table 3 beside the paper's object concepts: numbers, orders, and what the controls explain.

    python benchmarks/against_paper_table3.py results/text-to-image-imagenette

Prints Markdown. Where there are several unlearning seeds, what counts is each prompt's mean over them, so N is the
number of prompts, and no interval sees the choice of seeds: the last table shows them one by one. Orders: of each pair
of the paper's methods, whether our post-ASR differs over the same prompts (exact sign test, McNemar's with one seed,
Holm-corrected over the pairs of a concept; *all*: the prompts of all concepts together) says the same as the paper's,
the opposite, or cannot tell. Controls: what UMA brings back beside what as many draws of random tokens and of other
seeds bring back from the same model, and what UMA brings back from the retrained one; paired over prompts.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from against_paper import tally
from scipy.stats import binomtest, kendalltau

from rub import read_records
from rub.metrics.statistics import wilson

NAMES = {"esd": "esd-x"}  # what the paper calls ESD is, on objects, its variant for cross-attention
Found = dict[tuple[str, str, str], dict[tuple[int, int], tuple[bool, bool, int]]]
"""(concept, method, attack) -> (seed, prompt) -> (whether it was drawn before, whether it is after, steps)."""
Hits = Mapping[tuple[str, int], float]
"""(concept, prompt) -> in which share of the seeds it came back."""


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    found = samples(folder)
    caps = {row.attack: int(row.budget) for row in read_records(folder) if row.metric == "asr_post"}
    paper = json.loads(files("rub.reports").joinpath("paper_tables.json").read_text())["table3"]
    paper = {NAMES.get(name, name): row for name, row in paper.items()}
    tables = [numbers(found, paper, caps["uma"]), orders(found, paper), controls(found)]
    if len({seed for cell in found.values() for seed, _ in cell}) > 1:
        tables.append(by_seed(found))
    for lines in tables:
        print("\n".join(lines), end="\n\n")


def samples(folder: Path) -> Found:
    """Return what became of every prompt under every attack."""
    found: Found = {}
    for row in pq.read_table(folder / "samples.parquet").to_pylist():
        cell = found.setdefault((row["experiment"], row["method"], row["attack"]), {})
        cell[row["unlearn_seed"], row["sample_id"]] = row["clean"], row["recovered"], row["step"]
    return found


def concepts(found: Found) -> list[str]:
    """Return the concepts in order."""
    return list(dict.fromkeys(concept for concept, _, _ in found))


def rows(found: Found) -> list[str]:
    """Return the methods and controls in order."""
    return list(dict.fromkeys(method for _, method, _ in found))


def rate(hits: Hits) -> str:
    """Return a share with its Wilson interval over prompts, in percent."""
    share = float(np.mean(list(hits.values())))
    low, high = wilson(round(share * len(hits)), len(hits))
    return f"{100 * share:.0f} ({100 * low:.0f}-{100 * high:.0f})"


def numbers(found: Found, paper: dict[str, dict[str, dict[str, float]]], cap: int) -> list[str]:
    """Return ASR before and after and the steps, with the paper's after a slash."""
    heads = [f"{concept} {what}" for concept in concepts(found) for what in ("before", "after", "steps")]
    lines = ["| method | " + " | ".join(heads) + " |", "|:---|" + "---:|" * len(heads)]
    for method in rows(found):
        cells = []
        for concept in concepts(found):
            prompts = list(found[concept, method, "uma"].values())
            theirs = paper.get(method, {}).get(concept.replace("-", "_"))
            steps = float(np.mean([cap if step < 0 else step for _, _, step in prompts]))
            clean, back = before(found, [concept], method), after(found, [concept], method, "uma")
            ours = rate(clean), rate(back), f"{steps:.1f}"
            if theirs:
                shown = (
                    f"{100 * theirs['asr_pre']:.0f}",
                    f"{100 * theirs['asr_post']:.0f}",
                    f"{theirs['steps_mean']:.1f}",
                )
                ours = tuple(f"{one} / {other}" for one, other in zip(ours, shown, strict=True))
            cells += ours
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def mcnemar(one: Hits, other: Hits) -> tuple[float, int, int]:
    """Return the exact two-sided p over prompts that disagree, and how many say more for the one, and for the other."""
    pairs = [(one[key], other[key]) for key in one.keys() & other.keys()]
    only, opposite = sum(a > b for a, b in pairs), sum(b > a for a, b in pairs)
    p = binomtest(only, only + opposite).pvalue if only + opposite else 1.0
    return float(p), only, opposite


def after(found: Found, cells: Sequence[str], method: str, attack: str) -> Hits:
    """Return how often each prompt of these concepts came back."""
    return _shares(found, cells, method, attack, 1)


def before(found: Found, cells: Sequence[str], method: str) -> Hits:
    """Return how often each prompt of these concepts was drawn without an attack."""
    return _shares(found, cells, method, "uma", 0)


def _shares(found: Found, cells: Sequence[str], method: str, attack: str, place: int) -> Hits:
    """Return the mean over seeds of one of the two yes or no answers, for each prompt of these concepts."""
    seen: dict[tuple[str, int], list[bool]] = defaultdict(list)
    for concept in cells:
        for (_, prompt), row in found[concept, method, attack].items():
            seen[concept, prompt].append(bool(row[place]))
    return {key: float(np.mean(values)) for key, values in seen.items()}


def by_seed(found: Found) -> list[str]:
    """Return what UMA brings back of each method with each unlearning seed, in percent."""
    lines = ["| method | " + " | ".join(concepts(found)) + " |", "|:---|" + "---:|" * len(concepts(found))]
    for method in rows(found):
        cells = []
        for concept in concepts(found):
            seeds: dict[int, list[bool]] = defaultdict(list)
            for (seed, _), (_, back, _) in found[concept, method, "uma"].items():
                seeds[seed].append(back)
            cells.append(", ".join(f"{100 * np.mean(seeds[seed]):.0f}" for seed in sorted(seeds)))
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def orders(found: Found, paper: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Return, for each concept and all of them, how the paper's order of its methods by post-ASR fares."""
    methods = [name for name in paper if (concepts(found)[0], name, "uma") in found]
    if len(methods) < 2:
        return ["Fewer than two of the paper's methods: no order."]
    lines = [
        "| concept | N | Kendall's tau | pairs | the paper's order confirmed | contradicted | cannot tell |",
        "|:---|---:|---:|---:|---:|:---|---:|",
    ]
    for name, cells in [*((concept, [concept]) for concept in concepts(found)), ("all", concepts(found))]:
        theirs = {
            method: float(np.mean([paper[method][concept.replace("-", "_")]["asr_post"] for concept in cells]))
            for method in methods
        }
        ours = {method: after(found, cells, method, "uma") for method in methods}
        pairs = [(a, b) for a, b in combinations(methods, 2) if theirs[a] != theirs[b]]
        tests = [mcnemar(ours[a], ours[b]) for a, b in pairs]
        means = [float(np.mean(list(ours[method].values()))) for method in methods]
        tau = kendalltau(means, [theirs[method] for method in methods]).statistic
        told = tally(pairs, [(only - other, p) for p, only, other in tests], theirs)
        lines.append(f"| {name} | {len(ours[methods[0]])} | {tau:.2f} | {told} |")
    return lines


def controls(found: Found) -> list[str]:
    """Return, for each method over all concepts, what UMA brings back beside the controls."""
    pooled = concepts(found)
    attacks = [attack for attack in dict.fromkeys(attack for _, _, attack in found) if attack != "uma"]
    heads = ["before", "uma", *attacks, *(f"uma - {attack}" for attack in attacks), "uma - uma on retrain"]
    lines = ["| method | " + " | ".join(heads) + " |", "|:---|" + "---:|" * len(heads)]
    for method in rows(found):
        own = after(found, pooled, method, "uma")
        others = [after(found, pooled, method, attack) for attack in attacks]
        cells = [rate(before(found, pooled, method)), rate(own), *map(rate, others)]
        cells += [difference(own, other) for other in others]
        cells.append("" if method == "retrain" else difference(own, after(found, pooled, "retrain", "uma")))
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def difference(one: Hits, other: Hits) -> str:
    """Return a paired difference in points, and in parentheses the exact p."""
    p, _, _ = mcnemar(one, other)
    return f"{100 * np.mean([one[key] - other[key] for key in one]):+.0f} (p {p:.1g})"


if __name__ == "__main__":
    main()
