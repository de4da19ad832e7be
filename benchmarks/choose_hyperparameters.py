"""Choose the hyperparameters of a suite by one declared rule; the attack takes no part.

Rule: on a held-out unlearning seed, each method runs with every setting of its grid; the setting with the smallest mean
gap to the retrained model of that seed over UA, RA and TA (as SalUn's average gap) is chosen, the first of equals.

    python benchmarks/choose_hyperparameters.py table1-cifar10-small --data-root data --grid GRID.yaml --out CHOICE.json
"""

import argparse
import json
from pathlib import Path

import yaml
from rich.console import Console

from rub.api import default_store, make_runtime
from rub.classification.task import TASK, Graph
from rub.pipeline.engines import run_inline
from rub.pipeline.progress import Display
from rub.specs import load_suite
from rub.store.artifacts import Store

HELD_OUT_SEED = 999
METRICS = ("ua", "ra", "ta")


def settings(grid: dict) -> list[dict]:
    """Return every combination of the listed values, as hyperparameters."""
    combined = [{}]
    for name, values in grid.items():
        combined = [{**given, name: value} for given in combined for value in values]
    return combined


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("suite")
    parser.add_argument("--grid", type=Path, required=True, help="YAML: method -> hyperparameter -> list of values")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--store", type=Path, default=default_store())
    parser.add_argument("--methods", help="only these, comma-separated")
    arguments = parser.parse_args()
    runtime = make_runtime(data_root=arguments.data_root)
    grid = yaml.safe_load(arguments.grid.read_text())
    chosen = arguments.methods.split(",") if arguments.methods else list(grid)
    base = load_suite(arguments.suite, task="classification").experiments[0]
    store = Store(arguments.store)

    def measured(method: str, parameters: dict) -> dict[str, float] | str:
        methods = {} if method == "retrain" else {method: parameters}
        graph = Graph(base.model_copy(update={"methods": methods}), runtime.data_root)
        graph.shadows = {}
        stage = graph.measurements(method, HELD_OUT_SEED)[0]
        with Display(Console(), quiet=True) as display:
            outcome = run_inline([stage], {"classification": TASK}, store, runtime, display)[stage.key]
        if outcome.artifact is None:
            return outcome.reason
        rows = {row["metric"]: row["value"] for row in outcome.artifact.json("rows.json")}
        return {metric: rows[metric] for metric in (*METRICS, "logit_auc", "probe_accuracy")}

    reference = measured("retrain", {})
    print("retrain", reference, flush=True)
    results: dict = {"rule": __doc__.split("\n\n")[1], "seed": HELD_OUT_SEED, "retrain": reference, "methods": {}}
    if arguments.out.exists():
        results["methods"] = json.loads(arguments.out.read_text())["methods"]
    for method in chosen:
        tried = []
        for given in settings(grid[method]):
            values = measured(method, given)
            failed = isinstance(values, str)
            gap = None if failed else sum(abs(values[m] - reference[m]) for m in METRICS) / len(METRICS)
            tried.append({"parameters": given, "gap": gap, "values": values})
            print(method, given, "failed" if failed else f"gap {gap:.4f}", values, flush=True)
        best = min((row for row in tried if row["gap"] is not None), key=lambda row: row["gap"])
        results["methods"][method] = {"chosen": best["parameters"], "gap": best["gap"], "tried": tried}
        arguments.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
