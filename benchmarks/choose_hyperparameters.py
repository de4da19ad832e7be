"""Choose the hyperparameters of a suite by one declared rule; the attack takes no part.

Rule: on a held-out unlearning seed, each method runs with every setting of its grid; the setting with the smallest mean
gap to the retrained model is chosen, the first of equals. The gap is the mean absolute difference over UA, RA and TA
(classification, as SalUn's average gap; TA, here, on images of the kept classes that are held out of all training, so
that no test image takes part), over ASR before the attack and judged accuracy of kept concepts
(text-to-image; those that the retrained model knows), or of the logarithms of the error to the true image on forgotten
and kept images (inpainting); of a suite with several experiments of the task, the mean over these.

    python benchmarks/choose_hyperparameters.py table1-cifar10-small --data-root data --grid GRID.yaml --out CHOICE.json
    python benchmarks/choose_hyperparameters.py SUITE --task text-to-image --grid GRID.yaml --out CHOICE.json
    python benchmarks/choose_hyperparameters.py SUITE --grid GRID.yaml --out CHOICE.json --tuned tuned.yaml

What a suite says of a method and the grid does not stays as it is. The last form writes the suite with the chosen
settings, for `rub run`.
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any, cast

import yaml
from rich.console import Console

from rub.api import default_store, make_runtime
from rub.config.suite import Experiment, load_suite
from rub.errors import RubError
from rub.pipeline.execution import Outcome
from rub.pipeline.graph import Stage
from rub.pipeline.inline import run_inline
from rub.pipeline.progress import Display
from rub.pipeline.runtime import Runtime
from rub.registry import TASKS
from rub.store.artifacts import Store

HELD_OUT_SEED = 999
Rows = dict[str, float]
# task -> its (metric, split) without an attack, what they are compared on, and what else is written down
RULES: Mapping[str, tuple[tuple[tuple[str, str], ...], Callable[[float], float], tuple[str, ...]]] = {
    "classification": ((("ua", "forget"), ("ra", "retain"), ("va", "validation")), lambda value: value, ()),
    "text-to-image": ((("asr_pre", "forget"), ("utility_accuracy", "retain")), lambda value: value, ("utility_seen",)),
    "inpainting": ((("mse_input", "forget"), ("mse_input", "retain")), math.log, ("fid",)),
}  # fmt: skip

NEARER = {"utility_accuracy/retain": "utility_seen/retain"}  # where the retrained model stands for several concepts


def settings(grid: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Return every combination of the listed values, as hyperparameters."""
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def tries(experiments: list[Experiment], method: str, grid: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Return every setting of a method: what the suite says of it, and over that what the grid does."""
    own = experiments[0].methods.get(method, {})
    return [{**own, **one} for one in settings(grid)]


def held_out(experiment: Experiment, methods: dict[str, dict[str, Any]]) -> Experiment:
    """Return the experiment with these methods and room for the held-out seed among those of its first original."""
    seeds = experiment.seeds.model_copy(update={"originals": 1, "unlearn": HELD_OUT_SEED + 1})
    return experiment.model_copy(update={"methods": methods, "seeds": seeds})


def measurement(experiment: Experiment, method: str, parameters: dict[str, Any], runtime: Runtime) -> Stage:
    """Return the stage that measures a method without an attack on the held-out seed.

    Raises:
        RubError: of classification, nothing is held out to choose on.
    """
    if experiment.task == "classification" and not experiment.dataset.validation:
        raise RubError("dataset.validation = 0: settings are chosen on images that are held out; give it 0.1, say")
    changed = held_out(experiment, {} if method == "retrain" else {method: parameters})
    graph = TASKS.get(experiment.task, experiment.task).load().graph(changed, runtime.data_root, None)
    if experiment.task == "classification":
        graph.shadows = {}
    # A miniature is retrained for few seeds only: the first stands for all.
    seed = 0 if method == "retrain" and experiment.task != "classification" else HELD_OUT_SEED
    return cast(Stage, graph.measure(method, seed))


def measured(task: str, outcome: Outcome) -> Rows | str:
    """Return ``metric/split`` -> value of a measurement that has ended, or why it failed."""
    if outcome.artifact is None:
        return outcome.reason
    compared, _, others = RULES[task]
    wanted = {f"{metric}/{split}" for metric, split in compared}
    rows = outcome.artifact.json("rows.json")
    return {
        f"{row['metric']}/{row['split']}": row["value"]
        for row in rows
        if f"{row['metric']}/{row['split']}" in wanted or row["metric"] in others
    }


def gap(task: str, values: Rows, reference: Rows) -> float:
    """Return the mean distance to the retrained model."""
    compared, scale, _ = RULES[task]
    names = [f"{metric}/{split}" for metric, split in compared]
    names = [NEARER[name] if NEARER.get(name) in reference else name for name in names]
    return sum(abs(scale(values[name]) - scale(reference[name])) for name in names) / len(names)


def choose(
    experiments: list[Experiment],
    grid: Mapping[str, Mapping[str, list[Any]]],
    store: Store,
    runtime: Runtime,
    out: Path,
    *,
    workers: int = 1,
    quiet: bool = False,
) -> dict[str, dict[str, Any]]:
    """Try every setting, write all of it down, and return method -> chosen hyperparameters.

    What `out` holds of the same experiments, seed and grid is taken over. A method whose every setting fails is left
    out, with the reasons in `out`.

    Raises:
        RubError: the retrained model failed.
    """
    name = experiments[0].task
    tasks = {name: TASKS.get(name, name).load()}
    rule = (__doc__ or "").split("\n\n")[1].replace("\n", " ")
    asked = [experiment.model_dump(mode="json", exclude={"methods", "resources"}) for experiment in experiments]
    results: dict[str, Any] = {"rule": rule, "seed": HELD_OUT_SEED, "experiments": asked}
    before = json.loads(out.read_text()) if out.exists() else {}
    same = all(before.get(key) == value for key, value in results.items())
    known = {
        method: before["methods"][method]
        for method, values in grid.items()
        if same
        and [row["parameters"] for row in before["methods"].get(method, {}).get("tried", [])]
        == tries(experiments, method, values)
    }
    runs = [
        ("retrain", {}),
        *((method, one) for method in grid if method not in known for one in tries(experiments, method, grid[method])),
    ]
    stages = [[measurement(experiment, *run, runtime) for experiment in experiments] for run in runs]
    wanted = [stage for row in stages for stage in row]
    with Display(Console(), quiet=quiet) as display:
        outcomes = run_inline(wanted, tasks, store, runtime, display, workers=workers)
    values = [[measured(name, outcomes[stage.key]) for stage in row] for row in stages]
    references = values[0]
    if failed := [row for row in references if isinstance(row, str)]:
        raise RubError(f"retrain failed: {failed[0]}")
    tried: dict[str, list[dict[str, Any]]] = {method: [] for method in grid}
    for (method, parameters), rows in zip(runs[1:], values[1:], strict=True):
        gaps = [gap(name, row, other) for row, other in zip(rows, references, strict=True) if isinstance(row, dict)]
        mean = sum(gaps) / len(gaps) if len(gaps) == len(experiments) else None
        tried[method].append({"parameters": parameters, "gap": mean, "values": rows})
    results |= {"retrain": references, "methods": {m: known.get(m) or _best(rows) for m, rows in tried.items()}}
    out.write_text(json.dumps(results, indent=1))
    chosen = {method: results["methods"][method]["chosen"] for method in grid}
    return {method: parameters for method, parameters in chosen.items() if parameters is not None}


def _best(tried: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what is written down of a method: the setting with the smallest gap, and all that were tried."""
    fine = [row for row in tried if row["gap"] is not None]
    best = min(fine, key=lambda row: row["gap"]) if fine else {"parameters": None, "gap": None}
    return {"chosen": best["parameters"], "gap": best["gap"], "tried": tried}


def main() -> None:
    """Read the suite and the grid, and choose."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite")
    parser.add_argument("--task", default="classification", choices=RULES)
    parser.add_argument("--grid", type=Path, required=True, help="YAML: method -> hyperparameter -> list of values")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tuned", type=Path, help="write the suite with the chosen settings to this YAML file")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--store", type=Path, default=default_store())
    parser.add_argument("--methods", help="only these, comma-separated")
    parser.add_argument("--set", action="append", default=[], help="overrides, as of rub run")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the work")
    arguments = parser.parse_args()
    grid = yaml.safe_load(arguments.grid.read_text())
    if arguments.methods:
        grid = {method: grid[method] for method in arguments.methods.split(",")}
    suite = load_suite(arguments.suite, task=arguments.task, overrides=arguments.set)
    experiments = list(suite.experiments)
    runtime = make_runtime(data_root=arguments.data_root)
    store = Store(arguments.store)
    chosen = choose(experiments, grid, store, runtime, arguments.out, workers=arguments.workers)
    if arguments.tuned:
        made = [one.model_copy(update={"methods": {**one.methods, **chosen}}) for one in experiments]
        tuned = {"name": f"{suite.name}-tuned", **suite.model_dump(mode="json", exclude={"name", "experiments"})}
        tuned["experiments"] = [one.model_dump(mode="json") for one in made]
        arguments.tuned.write_text(yaml.safe_dump(tuned, sort_keys=False))
    print(yaml.safe_dump(chosen, sort_keys=False, default_flow_style=None), end="")


if __name__ == "__main__":
    main()
