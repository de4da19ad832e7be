"""From an experiment of the image-to-image task to its graph of stages. Free of torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rub.config.suite import DEFAULT_MAIN, located
from rub.data.spec import data_stage, forget_set, num_images
from rub.errors import RubError
from rub.judges.spec import judge_stage
from rub.metrics.base import Metric
from rub.pipeline.graph import Stage
from rub.pipeline.graph_builder import RETRAIN_SEED, FromFiles, GraphBuilder
from rub.registry import NETWORKS
from rub.store.artifacts import file_sha256
from rub.tasks.inpainting.metrics import beside, cell, metrics_for, split_of
from rub.tasks.inpainting.spec import InpaintingExperiment, Level

RANDOM_SEED = 2000  # seeds of different roles must not meet
DOSE_SEED = 3000


class InpaintingGraph(GraphBuilder[InpaintingExperiment]):
    """Stages of Table 2: data, judge, original, controls, methods, attacks, measurements, galleries."""

    task = "inpainting"
    versions = (
        dict.fromkeys(("choose", "train", "import", "initialise", "unlearn", "gallery"), 1)
        | dict.fromkeys(("scale", "metric"), 1)
        | dict.fromkeys(("reference", "measure", "measure-attack"), 2)
        | {"attack": 2}  # convergence counts moves
    )  # fmt: skip
    sets = ("forget", "retain")
    controls = ("random_init",)

    def __init__(
        self, experiment: InpaintingExperiment, data_root: Path | None, given: FromFiles | None = None
    ) -> None:
        super().__init__(experiment, data_root, given)
        dataset, self.model_name = experiment.dataset, experiment.model.arch
        if self.model_name != "foreign":
            NETWORKS.get(self.model_name, self.task)
        self.dataset_name, self.size = dataset.title, num_images(dataset, 24_000)
        self.data = data_stage(self.task, dataset, data_root)
        forget = forget_set(experiment.forget, dataset, data_root)
        self.experiment = experiment = experiment.model_copy(update={"forget": forget})
        options: dict[str, Any] = {"version": 1, "images": self.size, "measured": False}
        self.judge = judge_stage(self.task, experiment.judge, self.data, dataset, data_root, **options)
        self.chosen = self._chosen()
        self.reference = self.stage(
            "reference",
            "look at the real images and the original's reconstructions",
            {},
            {"data": self.data, "chosen": self.chosen, "original": self.original, "judge": self.judge},
            cost=4 * experiment.evaluation.samples,
        )

    def first(self) -> list[Stage]:
        """The stage that chooses the images, and notices a forget set that cannot be."""
        return [self.chosen]

    def trained(self, number: int) -> Stage:
        """Stage that trains the original, or reads the checkpoint that the experiment names."""
        model = self.experiment.model
        if model.weights is None:
            return self._train("train original", "all", self.experiment.seeds.train + number)
        return self._imported(located(model.weights, self.data_root), "import the original", {})

    def retrain(self, seed: int) -> Stage:
        """Stage that trains a model on the retained classes."""
        return self._train(f"retrain, seed {seed}", "retain", RETRAIN_SEED + seed)

    def dose(self, percent: float, seed: int) -> Stage:
        """Stage that trains a model on the retained classes and a share of the forgotten ones."""
        share = {"dose": {"percent": percent, "seed": seed}}
        return self._train(f"train dose {percent:g} %, seed {seed}", "dose", DOSE_SEED + seed, share)

    def control(self, name: str, seed: int) -> Stage:
        """Stage that draws a model that was never trained."""
        drawn = {"seed": RANDOM_SEED + seed}
        return self.stage("initialise", "initialise at random", drawn, {"original": self.original}, cost=1)

    def unlearn(self, method: str, seed: int) -> Stage:
        """Stage that runs a method on the original."""
        experiment, given = self.experiment, self.methods[method]
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
        inputs = {"data": self.data, "original": self.original}
        return self.stage("unlearn", f"unlearn {method}, seed {seed}", spec, inputs, cost=3 * epochs * self.size)

    def imported(self, row: str, given: FromFiles) -> Stage:
        """Stage that reads a checkpoint of an audit."""
        return self._imported(given.weights[row], f"read {row}", given.facts)

    def gallery(self, method: str, seed: int) -> list[Stage]:
        """Stage of a row's pictures: one bounded and one unbounded search beside what both models make."""
        main = self.experiment.protocol.main_attack
        if not self.experiment.evaluation.gallery or seed or not main:
            return []
        budgets = self.attacks[main].budgets
        bounded = [budget for budget in budgets if isinstance(budget, int)]
        first = 8 if 8 in bounded else bounded[-1] if bounded else None
        shown = [budget for budget in budgets if budget in (first, "unbounded")]
        spec = {
            "method": method,
            "seed": seed,
            "count": self.experiment.evaluation.gallery,
            "budgets": [named(budget) for budget in shown],
        }
        if main != DEFAULT_MAIN:
            spec["attack"] = main
        inputs = self._seen(method, seed) | {
            f"attack_{place}_{split}": self.searched(method, seed, main, budget, split)
            for place, budget in enumerate(shown)
            for split in self.sets
        }
        return [self.stage("gallery", f"pictures of {method}", spec, inputs, cost=100)]

    def searched(self, method: str, seed: int, label: str, budget: Level, split: str) -> Stage:
        """Stage that searches probes for one row, attack, budget and set of images."""
        evaluation, plan = self.experiment.evaluation, self.attacks[label]
        count = evaluation.steered_samples if split == "steered" else evaluation.samples
        spec = {
            "runs": self.runs[label],
            "budget": budget,
            "split": split,
            "recovered_below": self.experiment.protocol.recovered_below,
            "seed": seed,
        }
        inputs, place = self._seen(method, seed), plan.budgets.index(budget)
        if plan.warm_start and place and budget != "free":
            inputs["warm"] = self.searched(method, seed, label, plan.budgets[place - 1], split)
        steps = sum(
            run["parameters"].get("steps", 100) * run["parameters"].get("restarts", 1) for run in self.runs[label]
        )
        text = f"attack {method}, seed {seed}: {label} {named(budget)} on {split}"
        return self.stage("attack", text, spec, inputs, cost=2.0 * steps * count)

    def budget_name(self, budget: Level) -> str:
        """A budget in 1/255, or its name."""
        return named(budget)

    def attacked(self, label: str) -> Sequence[str]:
        """Images that an attack works on."""
        return list(self.attacks[label].splits)

    def outputs(self, metric: Metric, method: str, seed: int) -> tuple[dict[str, Any], dict[str, Stage]]:
        """The images, the models that complete them, and the judge of what they make."""
        return {}, self._seen(method, seed) | {"judge": self.judge}

    def _seen(self, method: str, seed: int) -> dict[str, Stage]:
        models = {"original": self.original, "unlearned": self.model(method, seed)}
        return {"data": self.data, "chosen": self.chosen, **models}

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
        return self.stage("choose", "choose images and their masks", spec, {"data": self.data}, cost=100)

    def _train(self, label: str, subset: str, seed: int, further: Mapping[str, Any] = MappingProxyType({})) -> Stage:
        experiment = self.experiment
        spec = {
            "model": experiment.model.model_dump(exclude={"weights", "mask_seed"}),
            "training": experiment.training.model_dump(),
            "subset": subset,
            "forget": None if subset == "all" else experiment.forget.model_dump(),
            "validation": experiment.dataset.validation,
            "seed": seed,
            **further,
        }
        cost = 3.0 * experiment.training.epochs * self.size
        return self.stage("train", label, spec, {"data": self.data}, cost=cost)

    def measure(self, method: str, seed: int) -> Stage:
        """Stage that measures a row on clean images."""
        spec = {"method": method, "seed": seed, **self._scoring()}
        inputs = self._seen(method, seed) | {"reference": self.reference, "judge": self.judge}
        measured = [
            (metric, split)
            for split in self.sets
            for metric in metrics_for(split, beside(split, self.sets))
            if not metric.optional
        ]
        cells = tuple(cell(method, seed, metric.name, split) for metric, split in measured)
        cost = 4.0 * self.experiment.evaluation.samples
        return self.stage("measure", f"measure {method}, seed {seed}", spec, inputs, cost=cost, cells=cells)

    def measure_attack(self, method: str, seed: int, label: str, budget: Level) -> Stage:
        """Stage that measures a row under an attack, with the same attack on the retrained model beside it."""
        plan = self.attacks[label]
        spec = {
            "method": method,
            "seed": seed,
            "attack": label,
            "budget": named(budget),
            "splits": list(plan.splits),
            "witnesses": self.experiment.evaluation.witnesses,
            **self._scoring(),
        }
        inputs = self._seen(method, seed) | {"reference": self.reference, "judge": self.judge}
        inputs |= {f"attack_{split}": self.searched(method, seed, label, budget, split) for split in plan.splits}
        if "forget" in plan.splits and (reference := self.retrained(seed)) is not None:
            inputs["attack_retrained"] = self.searched(*reference, label, budget, "forget")
        has = "attack_retrained" in inputs
        measured = [
            (metric, split)
            for split in plan.splits
            for metric in metrics_for(split, beside(split, plan.splits, retrained=has), attacked=True)
        ]
        cells = [
            cell(method, seed, metric.name, split_of(metric, split), attack=label, budget=named(budget))
            for metric, split in measured
            if not metric.optional
        ]
        text, cost = f"measure {method}, seed {seed}: {label} {named(budget)}", 4.0 * self.experiment.evaluation.samples
        return self.stage("measure-attack", text, spec, inputs, cost=cost, cells=cells)

    def _scoring(self) -> dict[str, Any]:
        protocol = self.experiment.protocol
        return {"recovered_below": protocol.recovered_below, "is_splits": protocol.is_splits}

    # Its key holds the hash of every file. The data's images say whether the model predicts plain pixels; `sizes` are
    # those that shapes do not tell, as for `rub.models.mae.checkpoints.load_mae`.
    def _imported(self, path: Path, label: str, sizes: Mapping[str, Any]) -> Stage:
        if not path.exists():
            raise RubError(f"checkpoint {path}: no such file; give a .pth, .safetensors or a transformers folder")
        files = sorted(item for item in path.iterdir() if item.is_file()) if path.is_dir() else [path]
        hashes = {item.name: file_sha256(item) for item in files}
        spec = {"arch": self.experiment.model.arch, "sha256": hashes, "sizes": dict(sizes)}
        return self.stage("import", label, spec, {"data": self.data}, files={"weights": path}, cost=1000)


def named(budget: Level) -> str:
    """Name of a budget in records.

    Example:
        >>> named(8), named("unbounded")
        ('8/255', 'unbounded')
    """
    return f"{budget}/255" if isinstance(budget, int) else budget
