"""The classification task as the pipeline sees it: from an experiment to its graph of stages. Free of torch."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rub.data.base import source_of
from rub.data.spec import check_classes, data_stage, num_images
from rub.pipeline.graph import Plan, Stage
from rub.pipeline.runtime import Runtime
from rub.registry import ATTACKS, METHODS, NETWORKS, resolved
from rub.tasks.classification.metrics import METRICS_DECLARED, cell
from rub.tasks.classification.spec import CONTROLS, AttackSpec, ClassificationExperiment

# Version of each stage function; raised when its results change.
VERSIONS = {
    "split": 1,
    "train": 1,
    "import": 1,
    "shadow": 1,
    "unlearn": 1,
    "attack": 1,
    "measure": 1,
    "measure-attack": 2,  # keeps witnesses
}
# Training seeds of different roles must not meet: the original uses its own, these are offset.
RETRAIN_SEED, SHADOW_SEED = 1000, 2000
LIRA_SHADOWS = 4  # each point is out of half of them, and LiRA's spread needs two
# name -> (training images, classes) of the data sets that are known before they are read


class ClassificationTask:
    """Table 1: unlearn classes or samples from an image classifier, then search inputs that bring them back."""

    name = "classification"
    experiment = ClassificationExperiment
    metrics = METRICS_DECLARED
    reporting = "rub.tasks.classification.report:REPORTING"
    audit = "rub.tasks.classification.audit:audit"
    verify = "rub.tasks.classification.witnesses:verify"
    functions: Mapping[str, str] = {
        "data": "rub.data.splits:read",
        "split": "rub.tasks.classification.stages:split_ids",
        "train": "rub.tasks.classification.stages:train",
        "import": "rub.tasks.classification.stages:import_weights",
        "shadow": "rub.tasks.classification.stages:shadow",
        "unlearn": "rub.tasks.classification.stages:unlearn",
        "attack": "rub.tasks.classification.stages:attack",
        "measure": "rub.tasks.classification.measure:measure",
        "measure-attack": "rub.tasks.classification.measure:measure_attack",
    }

    def plan(self, experiment: ClassificationExperiment, runtime: Runtime) -> Plan:
        """Return the graph: data, original, controls, every method and seed, attacks, measurements."""
        graph = Graph(experiment, runtime.data_root)
        stages = [graph.split()]  # first: a forget set that cannot be is noticed before anything is trained
        for method, seed in graph.models():
            stages += graph.measurements(method, seed)
        classwise = experiment.forget.classes is not None
        notes = () if classwise else ("sham and bias-free metrics need forgotten classes; this forget set has none",)
        return Plan(tuple(stages), graph.common, notes)


class Graph:
    """Builds the stages of one experiment; every stage is a pure function of the experiment."""

    def __init__(self, experiment: ClassificationExperiment, data_root: Path | None) -> None:
        """Validate methods and attacks against the registry, and fingerprint the data.

        Raises:
            RubError: an unknown component or hyperparameter, or data that is not there.
        """
        experiment.refuse_as_methods(CONTROLS)
        NETWORKS.get(experiment.model.arch, "classification")
        self.experiment = experiment
        self.methods = {
            name: resolved(METHODS.get(name, "classification"), given, f"methods.{name}")
            for name, given in experiment.methods.items()
        }
        self.runs = {
            label: [
                resolved(ATTACKS.get(run.name, "classification"), run.parameters, f"attacks.{label}")
                for run in plan.runs
            ]
            for label, plan in experiment.protocol.attacks.items()
        }
        self.data = data_stage("classification", experiment.dataset, data_root)
        self.size = num_images(experiment.dataset, 10_000)
        if classes := source_of(experiment.dataset.name).classes:
            check_classes(experiment.forget.classes or (), classes)
        self.original = self._train("train original", {"kind": "all"}, experiment.seeds.train)
        pairs = range(experiment.seeds.mia * experiment.protocol.shadows_per_seed)
        self.shadows = {f"shadow_{index}": self._shadow(index) for index in pairs}
        self.common = {
            "task": "classification",
            "experiment": experiment.name,
            "protocol": experiment.protocol.name,
            "dataset": experiment.dataset.title,
            "model": model_name(experiment),
        }

    def split(self) -> Stage:
        """Return the stage that checks the forget spec against the data and writes down who is forgotten."""
        spec = {"forget": self.experiment.forget.model_dump(), "validation": self.experiment.dataset.validation}
        return self._stage("split", "split the data", spec, {"data": self.data}, cost=1000)

    def models(self) -> Iterator[tuple[str, int]]:
        """Yield (method, unlearning seed) of every row: the controls first, each with the seeds that it has."""
        seeds = range(self.experiment.seeds.unlearn)
        yield "original", 0
        yield from (("retrain", seed) for seed in seeds)
        if self.experiment.forget.classes is not None:
            yield "sham", 0
        yield from ((name, seed) for name in self.methods for seed in seeds)

    def model(self, method: str, seed: int) -> Stage:
        """Return the stage that makes the weights of a row."""
        if method == "original":
            return self.original
        forget = self.experiment.forget.model_dump()
        if method == "retrain":
            return self._train(f"retrain, seed {seed}", {"kind": "retain", "forget": forget}, RETRAIN_SEED + seed)
        given = self.methods.get(method) or resolved(METHODS.get(method, "classification"), {}, method)
        training = self.experiment.training
        spec = {
            "method": given,
            "forget": forget,
            "validation": self.experiment.dataset.validation,
            "seed": seed,
            "batch_size": training.batch_size,
            "padding": training.padding,
            "precision": training.precision,
        }
        epochs = float(given["parameters"].get("epochs", 2))
        return self._stage(
            "unlearn", f"unlearn {method}, seed {seed}", spec, {"data": self.data, "original": self.original},
            cost=3 * epochs * self.size,
        )  # fmt: skip

    def measurements(self, method: str, seed: int) -> list[Stage]:
        """Return the measuring stages of one row: clean, and one for each attack and budget."""
        stages = [self._measure(method, seed)]
        for label, plan in self.experiment.protocol.attacks.items():
            stages += [self._measure_attack(method, seed, label, plan, level) for level in plan.budgets if level > 0]
        return stages

    def attack(self, method: str, seed: int, label: str, level: int, split: str) -> Stage:
        """Return the stage that searches probes for one row, attack, budget and set of images."""
        evaluation, plan = self.experiment.evaluation, self.experiment.protocol.attacks[label]
        samples = evaluation.attack_samples if split == "forget" else evaluation.control_samples
        spec = {
            "runs": self.runs[label],
            "levels": level,
            "split": split,
            "samples": samples,
            "forget": self.experiment.forget.model_dump(),
            "validation": self.experiment.dataset.validation,
            "seed": seed,
        }
        inputs = {"data": self.data, "original": self.original, "unlearned": self.model(method, seed)}
        smaller = [budget for budget in plan.budgets if 0 < budget < level]
        if plan.warm_start and smaller:
            inputs["warm"] = self.attack(method, seed, label, smaller[-1], split)
        steps = sum(
            run["parameters"].get("steps", 100) * run["parameters"].get("restarts", 1) for run in self.runs[label]
        )
        label_text = f"attack {method}, seed {seed}: {label} {level}/255 on {split}"
        return self._stage("attack", label_text, spec, inputs, cost=2.0 * steps * (samples or self.size // 10))

    def reference(self, method: str, seed: int) -> tuple[str, int] | None:
        """Return the retrained row that a row is compared with: of its own seed, of seed 0 for the single controls."""
        return "retrain", 0 if method in ("original", "sham") else seed

    def _measure(self, method: str, seed: int) -> Stage:
        experiment = self.experiment
        spec = {
            "method": method,
            "seed": seed,
            "forget": experiment.forget.model_dump(),
            "validation": experiment.dataset.validation,
            "retain_samples": experiment.evaluation.retain_samples,
            "probe_per_class": experiment.protocol.probe_per_class,
            "probe_total": experiment.protocol.probe_total,
            "shadows_per_seed": experiment.protocol.shadows_per_seed,
            "mia_seeds": experiment.seeds.mia,
        }
        inputs = {"data": self.data, "unlearned": self.model(method, seed), **self.shadows}
        metrics = ["ta", "ta_all", "ra", "ua", "mia_svc"]
        if experiment.forget.classes is not None:
            metrics += ["ua_test", "logit_auc", "probe_accuracy"]
        cells = [cell(method, seed, metric) for metric in metrics]
        if self.shadows:
            cells += [cell(method, seed, "mia_rmia")]
            cells += [cell(method, seed, "mia_lira")] if len(self.shadows) >= LIRA_SHADOWS else []
            cells += [cell(method, seed, "mia_shadow", mia_seed=index) for index in range(experiment.seeds.mia)]
        return self._stage(
            "measure", f"measure {method}, seed {seed}", spec, inputs, cost=0.3 * self.size, cells=tuple(cells)
        )

    def _measure_attack(self, method: str, seed: int, label: str, plan: AttackSpec, level: int) -> Stage:
        experiment = self.experiment
        splits = [split for split in plan.splits if split != "retain" or experiment.forget.classes is not None]
        inputs = {"data": self.data, "unlearned": self.model(method, seed), **self.shadows}
        inputs |= {f"attack_{split}": self.attack(method, seed, label, level, split) for split in splits}
        if "forget" in splits:
            reference = self.reference(method, seed)
            if reference is not None:
                inputs["attack_retrained"] = self.attack(*reference, label, level, "forget")
        spec = {
            "method": method,
            "seed": seed,
            "attack": label,
            "budget": f"{level}/255",
            "splits": splits,
            "witnesses": experiment.evaluation.witnesses,
            "forget": experiment.forget.model_dump(),
            "validation": experiment.dataset.validation,
            "shadows_per_seed": experiment.protocol.shadows_per_seed,
            "mia_seeds": experiment.seeds.mia,
        }
        at: dict[str, Any] = {"attack": label, "budget": f"{level}/255"}
        cells = [cell(method, seed, "ua_test" if split == "forget_test" else "ua", split, **at) for split in splits]
        if "attack_retrained" in inputs:
            cells += [cell(method, seed, metric, **at) for metric in ("residual_knowledge", "residual_ratio")]
        if "forget" in splits and self.shadows:
            cells += [cell(method, seed, "mia_shadow", mia_seed=index, **at) for index in range(experiment.seeds.mia)]
        text = f"measure {method}, seed {seed}: {label} {level}/255"
        return self._stage("measure-attack", text, spec, inputs, cost=1000, cells=tuple(cells))

    def _train(self, label: str, subset: Mapping[str, Any], seed: int) -> Stage:
        experiment = self.experiment
        spec = {
            "model": experiment.model.model_dump(),
            "training": experiment.training.model_dump(),
            "subset": dict(subset),
            "validation": experiment.dataset.validation,
            "seed": seed,
        }
        cost = 3.0 * experiment.training.epochs * self.size
        return self._stage("train", label, spec, {"data": self.data}, cost=cost)

    def _shadow(self, index: int) -> Stage:
        """Return shadow `index`; 2i and 2i + 1 are trained on complementary halves."""
        experiment = self.experiment
        spec = {
            "model": experiment.model.model_dump(),
            "training": experiment.training.model_dump(),
            "validation": experiment.dataset.validation,
            "seed": SHADOW_SEED + index,
            "half_seed": SHADOW_SEED + index // 2,
            "half": index % 2,
        }
        cost = 1.5 * experiment.training.epochs * self.size
        return self._stage("shadow", f"train shadow {index}", spec, {"data": self.data}, cost=cost)

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
        return Stage("classification", kind, VERSIONS[kind], label, spec, inputs, cost=cost, cells=cells)


def model_name(experiment: ClassificationExperiment) -> str:
    """Return the network's name for records, such as ``resnet10-w24-half``."""
    model = experiment.model
    width = "" if model.width is None else f"-w{model.width}"
    return f"{model.arch}{width}" + ("" if model.stem == "cifar" else f"-{model.stem}")


TASK = ClassificationTask()
