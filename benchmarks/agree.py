"""Compare two runs of one suite, such as one on a CPU and one on a GPU: do their numbers agree within their intervals?

    python benchmarks/agree.py results/on-cpu results/on-gpu

Every cell (method, attack, budget, metric, split) that both have: the 95 % intervals over samples and unlearning seeds,
as far as the records know them. Prints the cells whose intervals do not meet; exit 1 if these are more than one in
twenty.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

from rub import read_records
from rub.metrics.statistics import Interval
from rub.reports.grouping import estimate
from rub.store.records import Record

Cell = tuple[str, ...]
FIELDS = ("task", "experiment", "protocol", "method", "attack", "budget", "metric", "split")


def intervals(folder: Path) -> tuple[dict[Cell, Interval], str]:
    """Return cell -> interval, and the device."""
    rows: dict[Cell, list[Record]] = defaultdict(list)
    records = [row for row in read_records(folder) if row.status == "ok"]
    for row in records:
        rows[tuple(str(getattr(row, name)) for name in FIELDS)].append(row)
    return {cell: interval(found) for cell, found in rows.items()}, ", ".join(sorted({row.device for row in records}))


def interval(rows: list[Record]) -> Interval:
    """Return the mean of a cell with its interval; a value without one is its own interval."""
    found = estimate(rows)
    if found is None:
        raise SystemExit(f"{rows[0].method}: {rows[0].metric} has no value")
    return found if found.over else Interval(found.mean, found.mean, found.mean)


def main() -> None:
    """Print what does not agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("one", type=Path)
    parser.add_argument("other", type=Path)
    args = parser.parse_args()
    (one, device), (other, second) = intervals(args.one), intervals(args.other)
    both = [cell for cell in one if cell in other]
    if not both:
        raise SystemExit("the two folders share no cell: should be runs of one suite")
    apart = [cell for cell in both if one[cell].low > other[cell].high or other[cell].low > one[cell].high]
    for cell in apart:
        pair = " / ".join(f"{it.mean:.4f} ({it.low:.4f} to {it.high:.4f})" for it in (one[cell], other[cell]))
        print(f"{' '.join(cell[3:])}: {pair}")
    same = sum(one[cell].mean == other[cell].mean for cell in both)
    print(f"{device} against {second}: {len(both)} cells, {same} equal, {len(apart)} apart")
    sys.exit(len(apart) > len(both) / 20)


if __name__ == "__main__":
    main()
