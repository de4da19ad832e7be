"""The image-to-image task as the pipeline sees it: from an experiment to its graph of stages. Free of torch."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rub.config.suite import located
from rub.data.spec import data_stage, num_images
from rub.errors import RubError
from rub.judges.extractor_stage import judge_stage
from rub.pipeline.graph import Plan, Stage
from rub.pipeline.runtime import Runtime
from rub.registry import ATTACKS, METHODS, NETWORKS, resolved
from rub.store.artifacts import file_sha256
from rub.tasks.inpainting.metrics import METRICS_DECLARED, cell
from rub.tasks.inpainting.spec import AttackSpec, InpaintingExperiment, Level

# Version of each stage function; raised when its results change.
VERSIONS = {
    "choose": 1,
    "train": 1,
    "import": 1,
    "initialise": 1,
    "unlearn": 1,
    "reference": 1,
    "attack": 1,
    "measure": 1,
    "measure-attack": 1,
    "gallery": 1,
}
RETRAIN_SEED, RANDOM_SEED = 1000, 2000  # seeds of different roles must not meet
IMAGE_METRICS = ("is", "fid", "fid_original", "kid", "mse_original", "mse_input", "psnr", "ssim", "recovered")


class InpaintingTask:
    """Table 2: unlearn classes from a masked autoencoder, then search inputs that bring its old outputs back."""

    name = "inpainting"
    experiment = InpaintingExperiment
    metrics = METRICS_DECLARED
    reporting = "rub.tasks.inpainting.report:REPORTING"
    audit = "rub.tasks.inpainting.audit:audit"
    verify = "rub.tasks.inpainting.witnesses:verify"
    functions: Mapping[str, str] = {
        "data": "rub.data.splits:read",
        "judge": "rub.judges.extractors:judge",
        "choose": "rub.tasks.inpainting.stages:choose",
        "train": "rub.tasks.inpainting.stages:train",
        "import": "rub.tasks.inpainting.stages:import_weights",
        "initialise": "rub.tasks.inpainting.stages:initialise",
        "unlearn": "rub.tasks.inpainting.stages:unlearn",
        "reference": "rub.tasks.inpainting.measure:reference",
        "attack": "rub.tasks.inpainting.stages:attack",
        "measure": "rub.tasks.inpainting.measure:measure",
        "measure-attack": "rub.tasks.inpainting.measure:measure_attack",
        "gallery": "rub.tasks.inpainting.galleries:gallery",
    }

    def plan(self, experiment: InpaintingExperiment, runtime: Runtime) -> Plan:
        """Return the graph: data, judge, original, controls, methods and seeds, attacks, measurements, galleries."""
        graph = Graph(experiment, runtime.data_root)
        stages = [graph.chosen]  # first: a forget set that cannot be is noticed before anything is trained
        for method, seed in graph.models():
            stages += graph.measurements(method, seed)
        notes = () if experiment.retrains else ("retrains: 0: no model shows what forgotten is like",)
        return Plan(tuple(stages), graph.common, notes)


class Graph:
    """Builds the stages of one experiment; every stage is a pure function of the experiment."""

    def __init__(self, experiment: InpaintingExperiment, data_root: Path | None) -> None:
        """Validate methods and attacks against the registry, and fingerprint the data.

        Raises:
            RubError: an unknown component or hyperparameter, or data or weights that are not there.
        """
        experiment.check()
        self.experiment, self.data_root = experiment, data_root
        if experiment.model.arch != "foreign":
            NETWORKS.get(experiment.model.arch, "inpainting")
        self.methods = {
            name: resolved(METHODS.get(name, "inpainting"), given, f"methods.{name}")
            for name, given in experiment.methods.items()
        }
        self.runs = {
            label: [
                resolved(ATTACKS.get(run.name, "inpainting"), run.parameters, f"attacks.{label}") for run in plan.runs
            ]
            for label, plan in experiment.protocol.attacks.items()
        }
        self.data = data_stage("inpainting", experiment.dataset, data_root)
        self.size = num_images(experiment.dataset, 24_000)
        self.judge = judge_stage("inpainting", experiment.judge, self.data, experiment.dataset, data_root, self.size)
        self.chosen = self._chosen()
        self.original = self._original()
        self.reference = self._stage(
            "reference",
            "look at the real images and the original's reconstructions",
            {},
            {"data": self.data, "chosen": self.chosen, "original": self.original, "judge": self.judge},
            cost=4 * experiment.evaluation.samples,
        )
        self.common = {
            "task": "inpainting",
            "experiment": experiment.name,
            "protocol": experiment.protocol.name,
            "dataset": experiment.dataset.title,
            "model": experiment.model.arch,
        }

    def models(self) -> Iterator[tuple[str, int]]:
        """Yield (method, unlearning seed) of every row: the controls first, each with the seeds that it has."""
        yield "original", 0
        yield from (("retrain", seed) for seed in range(self.experiment.retrains))
        yield "random_init", 0
        yield from ((name, seed) for name in self.methods for seed in range(self.experiment.seeds.unlearn))

    def model(self, method: str, seed: int) -> Stage:
        """Return the stage that makes the weights of a row."""
        if method == "original":
            return self.original
        if method == "retrain":
            return self._train(f"retrain, seed {seed}", "retain", RETRAIN_SEED + seed)
        if method == "random_init":
            drawn = {"seed": RANDOM_SEED + seed}
            return self._stage("initialise", "initialise at random", drawn, {"original": self.original}, cost=1)
        experiment = self.experiment
        given = self.methods[method]
        spec: dict[str, Any] = {
            "method": given,
            "forget": experiment.forget.model_dump(),
            "validation": experiment.dataset.validation,
            "seed": seed,
            "mask_ratio": experiment.model.mask_ratio,
            "batch_size": experiment.training.batch_size,
            "padding": experiment.training.padding,
            "precision": experiment.training.precision,
        }
        epochs = float(given["parameters"].get("epochs", 2))
        return self._stage(
            "unlearn", f"unlearn {method}, seed {seed}", spec, {"data": self.data, "original": self.original},
            cost=3 * epochs * self.size,
        )  # fmt: skip

    def measurements(self, method: str, seed: int) -> list[Stage]:
        """Return the measuring stages of one row: clean, one for each attack and budget, and a gallery."""
        stages = [self._measure(method, seed)]
        for label, plan in self.experiment.protocol.attacks.items():
            stages += [self._measure_attack(method, seed, label, plan, budget) for budget in plan.budgets]
        if self.experiment.evaluation.gallery and seed == 0 and "uma" in self.experiment.protocol.attacks:
            stages.append(self._gallery(method, seed))
        return stages

    def attack(self, method: str, seed: int, label: str, budget: Level, split: str) -> Stage:
        """Return the stage that searches probes for one row, attack, budget and set of images."""
        evaluation = self.experiment.evaluation
        count = evaluation.steered_samples if split == "steered" else evaluation.samples
        spec = {
            "runs": self.runs[label],
            "budget": budget,
            "split": split,
            "recovered_below": self.experiment.protocol.recovered_below,
            "seed": seed,
        }
        inputs = {**self._seen(), "original": self.original, "unlearned": self.model(method, seed)}
        plan = self.experiment.protocol.attacks[label]
        place = plan.budgets.index(budget)
        if plan.warm_start and place and budget != "free":
            inputs["warm"] = self.attack(method, seed, label, plan.budgets[place - 1], split)
        steps = sum(
            run["parameters"].get("steps", 100) * run["parameters"].get("restarts", 1) for run in self.runs[label]
        )
        text = f"attack {method}, seed {seed}: {label} {named(budget)} on {split}"
        return self._stage("attack", text, spec, inputs, cost=2.0 * steps * count)

    def retrained(self, seed: int) -> tuple[str, int] | None:
        """Return the retrained row that the rows of an unlearning seed are compared with; None without one."""
        count = self.experiment.retrains
        return ("retrain", seed % count) if count else None

    def _seen(self) -> dict[str, Stage]:
        return {"data": self.data, "chosen": self.chosen}

    def _chosen(self) -> Stage:
        experiment = self.experiment
        spec = {
            "forget": experiment.forget.model_dump(),
            "validation": experiment.dataset.validation,
            "images": experiment.protocol.images,
            "samples": experiment.evaluation.samples,
            "steered_samples": experiment.evaluation.steered_samples,
            "mask_seed": experiment.model.mask_seed,
            "mask_ratio": experiment.model.mask_ratio,
        }
        return self._stage("choose", "choose images and their masks", spec, {"data": self.data}, cost=100)

    def _original(self) -> Stage:
        model = self.experiment.model
        if model.weights is None:
            return self._train("train original", "all", self.experiment.seeds.train)
        path = located(model.weights, self.data_root)
        return imported(path, "import the original", model.arch, self.data)

    def _train(self, label: str, subset: str, seed: int) -> Stage:
        experiment = self.experiment
        spec = {
            "model": experiment.model.model_dump(exclude={"weights", "mask_seed"}),
            "training": experiment.training.model_dump(),
            "subset": subset,
            "forget": experiment.forget.model_dump() if subset == "retain" else None,
            "validation": experiment.dataset.validation,
            "seed": seed,
        }
        cost = 3.0 * experiment.training.epochs * self.size
        return self._stage("train", label, spec, {"data": self.data}, cost=cost)

    def _measure(self, method: str, seed: int) -> Stage:
        spec = {"method": method, "seed": seed, **self._scoring()}
        inputs = {**self._seen(), "original": self.original, "unlearned": self.model(method, seed)}
        inputs |= {"reference": self.reference, "judge": self.judge}
        cells = tuple(cell(method, seed, metric, split) for split in ("forget", "retain") for metric in IMAGE_METRICS)
        cost = 4.0 * self.experiment.evaluation.samples
        return self._stage("measure", f"measure {method}, seed {seed}", spec, inputs, cost=cost, cells=cells)

    def _measure_attack(self, method: str, seed: int, label: str, plan: AttackSpec, budget: Level) -> Stage:
        spec = {
            "method": method,
            "seed": seed,
            "attack": label,
            "budget": named(budget),
            "splits": list(plan.splits),
            "witnesses": self.experiment.evaluation.witnesses,
            **self._scoring(),
        }
        inputs = {**self._seen(), "original": self.original, "unlearned": self.model(method, seed)}
        inputs |= {"reference": self.reference, "judge": self.judge}
        inputs |= {f"attack_{split}": self.attack(method, seed, label, budget, split) for split in plan.splits}
        reference = self.retrained(seed)
        if "forget" in plan.splits and reference is not None:
            inputs["attack_retrained"] = self.attack(*reference, label, budget, "forget")
        cells = [
            cell(method, seed, metric, split, attack=label, budget=named(budget))
            for split in plan.splits
            for metric in (("mse_original", "recovered") if split == "steered" else IMAGE_METRICS)
        ]
        if "attack_retrained" in inputs:
            cells.append(cell(method, seed, "residual_knowledge", "forget", attack=label, budget=named(budget)))
        text = f"measure {method}, seed {seed}: {label} {named(budget)}"
        cost = 4.0 * self.experiment.evaluation.samples
        return self._stage("measure-attack", text, spec, inputs, cost=cost, cells=tuple(cells))

    def _gallery(self, method: str, seed: int) -> Stage:
        """Return the stage of the pictures: one bounded and one unbounded search beside what both models make."""
        budgets = self.experiment.protocol.attacks["uma"].budgets
        bounded = [budget for budget in budgets if isinstance(budget, int)]
        first = 8 if 8 in bounded else bounded[-1] if bounded else None
        shown = [budget for budget in budgets if budget in (first, "unbounded")]
        spec = {
            "method": method,
            "seed": seed,
            "count": self.experiment.evaluation.gallery,
            "budgets": [named(budget) for budget in shown],
        }
        inputs = {**self._seen(), "original": self.original, "unlearned": self.model(method, seed)}
        for place, budget in enumerate(shown):
            for split in ("forget", "retain"):
                inputs[f"attack_{place}_{split}"] = self.attack(method, seed, "uma", budget, split)
        return self._stage("gallery", f"pictures of {method}", spec, inputs, cost=100)

    def _scoring(self) -> dict[str, Any]:
        protocol = self.experiment.protocol
        return {"recovered_below": protocol.recovered_below, "is_splits": protocol.is_splits}

    def _stage(
        self,
        kind: str,
        label: str,
        spec: Mapping[str, Any],
        inputs: Mapping[str, Stage],
        *,
        cost: float,
        cells: tuple[Mapping[str, Any], ...] = (),
    ) -> Stage:
        return Stage("inpainting", kind, VERSIONS[kind], label, spec, inputs, cost=cost, cells=cells)


def imported(path: Path, label: str, arch: str, data: Stage, **sizes: Any) -> Stage:
    """Return the stage that reads a checkpoint that someone else made; its key holds the hash of the file.

    Args:
        path: a file, or a folder in transformers' layout.
        label: what people see.
        arch: a known name, which fixes the sizes, or ``foreign``.
        data: the data stage; its images say whether the model predicts plain pixels.
        **sizes: what shapes do not tell, as for `rub.models.mae.checkpoints.load_mae`.

    Raises:
        RubError: there is no such file.
    """
    files = sorted(item for item in path.iterdir() if item.is_file()) if path.is_dir() else [path]
    if not path.exists():
        raise RubError(f"checkpoint {path}: no such file; give a .pth, .safetensors or a transformers folder")
    spec = {"arch": arch, "sha256": {item.name: file_sha256(item) for item in files}, "sizes": sizes}
    return Stage(
        "inpainting", "import", VERSIONS["import"], label, spec, {"data": data}, files={"weights": path}, cost=1000
    )


def named(budget: Level) -> str:
    """Return a budget's name in records.

    Example:
        >>> named(8), named("unbounded")
        ('8/255', 'unbounded')
    """
    return f"{budget}/255" if isinstance(budget, int) else budget


TASK = InpaintingTask()
