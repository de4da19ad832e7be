"""Choose the hyperparameters of a suite by one declared rule; the attack takes no part.

Rule: on a held-out unlearning seed, each method runs with every setting of its grid; the setting with the smallest mean
gap is chosen, the first of equals. The gap is that to the retrained model: the mean absolute difference over UA, RA and
TA (classification, as SalUn's average gap; TA, here, on images of the kept classes that are held out of all training,
so that no test image takes part), or over ASR before the attack and judged accuracy of kept concepts (text-to-image;
those that the retrained model knows). Of inpainting, where a model that never saw a class may complete it as well, it
is minus the contrast on images that are held out of all training: how much more skill is lost on forgotten images than
on kept ones; settings that keep less than 95 % of the original's skill on kept images are out, and so are those whose
contrast is not above 0 (95 % interval over images). Of a suite with several experiments of the task, the mean over
these.

    python benchmarks/choose_hyperparameters.py table1-cifar10-small --data-root data --grid GRID.yaml --out CHOICE.json
    python benchmarks/choose_hyperparameters.py SUITE --task text-to-image --grid GRID.yaml --out CHOICE.json
    python benchmarks/choose_hyperparameters.py SUITE --grid GRID.yaml --out CHOICE.json --tuned tuned.yaml

What a suite says of a method and the grid does not stays as it is. The last form writes the suite with the chosen
settings, for `rub run`.
"""

import argparse
import json
from collections.abc import Mapping
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
from rub.tasks.inpainting.metrics import KEEPS

HELD_OUT_SEED = 999
Rows = dict[str, float]
Cells = tuple[tuple[str, str], ...]
# task -> the row that settings are compared with, the (metric, split) of rows without an attack that are compared, and
# metrics that are written down beside them
RULES: Mapping[str, tuple[str, Cells, tuple[str, ...]]] = {
    "classification": ("retrain", (("ua", "forget"), ("ra", "retain"), ("va", "validation")), ()),
    "text-to-image": ("retrain", (("asr_pre", "forget"), ("utility_accuracy", "retain")), ("utility_seen",)),
    "inpainting": (
        "original", (("skill", "forget"), ("skill", "retain"), ("skill_contrast", "forget")), ("fid", "recovered"),
    ),
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
        RubError: nothing is held out to choose on.
    """
    if experiment.task in ("classification", "inpainting") and not experiment.dataset.validation:
        raise RubError("dataset.validation = 0: settings are chosen on images that are held out; give it 0.1, say")
    control = method in ("original", "retrain")
    changed = held_out(experiment, {} if control else {method: parameters})
    if experiment.task == "inpainting":
        protocol = experiment.protocol.model_copy(update={"images": "validation"})
        changed = changed.model_copy(update={"protocol": protocol})
    graph = TASKS.get(experiment.task, experiment.task).load().graph(changed, runtime.data_root, None)
    if experiment.task == "classification":
        graph.shadows = {}
    # A miniature is trained for few seeds only: the first stands for all.
    seed = 0 if control and experiment.task != "classification" else HELD_OUT_SEED
    return cast(Stage, graph.measure(method, seed))


def measured(task: str, outcome: Outcome) -> Rows | str:
    """Return ``metric/split`` -> value of a measurement that has ended, or why it failed.

    ``metric/split low`` is the lower end of a contrast's interval.
    """
    if outcome.artifact is None:
        return outcome.reason
    _, compared, others = RULES[task]
    found = {}
    for row in outcome.artifact.json("rows.json"):
        if (row["metric"], row["split"]) in compared or row["metric"] in others:
            name = f"{row['metric']}/{row['split']}"
            found[name] = row["value"]
            if row["metric"].endswith("_contrast"):
                found[f"{name} low"] = row["ci_low"]
    return found


def gap(task: str, values: Rows, reference: Rows) -> float | None:
    """What is to be small: the mean distance to the retrained model, or minus the contrast; None where that is out."""
    if task == "inpainting":
        kept = values["skill/retain"] >= KEEPS * reference["skill/retain"]
        return -values["skill_contrast/forget"] if kept and values["skill_contrast/forget low"] > 0 else None
    names = [f"{metric}/{split}" for metric, split in RULES[task][1]]
    names = [NEARER[name] if NEARER.get(name) in reference else name for name in names]
    return sum(abs(values[name] - reference[name]) for name in names) / len(names)


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

    What `out` holds of the same experiments, seed and grid is taken over. A method whose every setting fails or is out
    by the rule is left out, with the reasons or values in `out`.

    Raises:
        RubError: the model that settings are compared with failed.
    """
    name = experiments[0].task
    tasks = {name: TASKS.get(name, name).load()}
    compared_with = RULES[name][0]
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
        (compared_with, {}),
        *((method, one) for method in grid if method not in known for one in tries(experiments, method, grid[method])),
    ]
    stages = [[measurement(experiment, *run, runtime) for experiment in experiments] for run in runs]
    wanted = [stage for row in stages for stage in row]
    with Display(Console(), quiet=quiet) as display:
        outcomes = run_inline(wanted, tasks, store, runtime, display, workers=workers)
    values = [[measured(name, outcomes[stage.key]) for stage in row] for row in stages]
    references = values[0]
    if failed := [row for row in references if isinstance(row, str)]:
        raise RubError(f"{compared_with} failed: {failed[0]}")
    tried: dict[str, list[dict[str, Any]]] = {method: [] for method in grid}
    for (method, parameters), rows in zip(runs[1:], values[1:], strict=True):
        gaps = [gap(name, row, other) for row, other in zip(rows, references, strict=True) if isinstance(row, dict)]
        fine = [one for one in gaps if one is not None]
        mean = sum(fine) / len(fine) if len(fine) == len(experiments) else None
        tried[method].append({"parameters": parameters, "gap": mean, "values": rows})
    results |= {compared_with: references, "methods": {m: known.get(m) or _best(rows) for m, rows in tried.items()}}
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
    for method in grid:
        if method not in chosen:
            print(f"# {method}: none of {len(settings(grid[method]))} settings will do; see {arguments.out}")


if __name__ == "__main__":
    main()
