"""Search every setting that the declared rule had to choose from: how much of a robustness is the setting's?

    python benchmarks/settings_under_attack.py results/table1-cifar10-resnet10 --data-root data --out settings.json

Reads `hyperparameters.json` and `suite.yaml` of a result folder of classification, and measures the recovery radii of
its protocol on the held-out seed's models; those that the store has are not made again. Prints Markdown: of each
setting the gap to retrain, which the rule looks at, beside the paired contrast, which it does not.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from choose_hyperparameters import HELD_OUT_SEED, held_out
from rich.console import Console

from rub import load_suite
from rub.api import default_store, make_runtime
from rub.errors import RubError
from rub.pipeline.graph import Stage
from rub.pipeline.inline import run_inline
from rub.pipeline.progress import Display
from rub.pipeline.runtime import Runtime
from rub.registry import TASKS
from rub.store.artifacts import Store
from rub.tasks.classification.graph import ClassificationGraph
from rub.tasks.classification.spec import ClassificationExperiment

SHOWN = ("own_radius", "other_radius", "selectivity", "own_reached")


def searched(experiment: ClassificationExperiment, method: str, given: dict[str, Any], runtime: Runtime) -> Stage:
    """The stage that measures the radii of a setting."""
    graph = ClassificationGraph(held_out(experiment, {method: given}), runtime.data_root)
    graph.shadows = {}
    return next(stage for stage in graph.further(method, HELD_OUT_SEED) if stage.kind == "radius")


def contrasts(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Metric -> value, N and interval over images, of forgotten training images."""
    names = {"value": "value", "n": "n", "low": "ci_low", "high": "ci_high"}
    return {
        row["metric"]: {name: row[field] for name, field in names.items()}
        for row in rows
        if row["metric"] in SHOWN and row["split"] == "forget"
    }


def lines(found: list[dict[str, Any]]) -> list[str]:
    """The table."""
    rows = ["| method | setting | gap | UA | own | other | selectivity | reached |", "|:---|:---|" + "---:|" * 6]
    for row in found:
        setting = ", ".join(f"{name} {value:g}" for name, value in row["parameters"].items())
        cells = [row["method"], f"**{setting}**" if row["chosen"] else setting, f"{100 * row['gap']:.1f}"]
        cells.append(f"{100 * row['ua']:.1f}")
        own, other, selectivity, reached = (row["contrast"][name] for name in SHOWN)
        cells += [f"{own['value']:.2f}", f"{other['value']:.2f}"]
        cells.append(f"{selectivity['value']:+.2f} ({selectivity['low']:+.2f} to {selectivity['high']:+.2f})")
        cells.append(f"{100 * reached['value']:.0f} ({100 * reached['low']:.0f}-{100 * reached['high']:.0f})")
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def main() -> None:
    """Search what was tried, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--methods", help="only these, comma-separated")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--store", type=Path, default=default_store())
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=256, help="images per forward pass")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the work; for a CPU")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    runtime = make_runtime(
        data_root=args.data_root, device=args.device, batch_size=args.batch_size, compile=args.compile
    )
    (experiment,) = load_suite(str(args.folder / "suite.yaml"), task="classification").experiments
    assert isinstance(experiment, ClassificationExperiment)
    choices = json.loads((args.folder / "hyperparameters.json").read_text())["methods"]
    found: list[dict[str, Any]] = []
    for method in args.methods.split(",") if args.methods else choices:
        for row in choices[method]["tried"]:
            if row["gap"] is None:  # it failed
                continue
            facts = {"chosen": row["parameters"] == choices[method]["chosen"], "ua": row["values"][0]["ua/forget"]}
            stage = searched(experiment, method, row["parameters"], runtime)
            found.append(
                {"method": method, "parameters": row["parameters"], "gap": row["gap"], **facts, "stage": stage}
            )
    wanted = [row["stage"] for row in found]
    tasks, store = {"classification": TASKS.get("classification", "classification").load()}, Store(args.store)
    with Display(Console(stderr=True)) as display:
        outcomes = run_inline(wanted, tasks, store, runtime, display, workers=args.workers)
    for row in found:
        outcome = outcomes[row.pop("stage").key]
        if outcome.artifact is None:
            raise RubError(f"{row['method']} {row['parameters']}: {outcome.reason}")
        row["contrast"] = contrasts(outcome.artifact.json("rows.json"))
    if args.out:
        args.out.write_text(json.dumps({"seed": HELD_OUT_SEED, "settings": found}, indent=1) + "\n")
    print("\n".join(lines(found)))


if __name__ == "__main__":
    main()
