"""From an experiment of the classification task to its graph of stages. Free of torch."""

from collections.abc import Iterable, Iterator, Mapping
from math import log2
from pathlib import Path
from typing import Any, ClassVar

from rub.config.hyperparameters import resolved
from rub.data.spec import data_stage, forget_set, num_images
from rub.errors import RubError
from rub.metrics.base import Cells, Metric
from rub.metrics.klom import FEWEST
from rub.models.lookup import hyperparameters_in, network_spec, network_title
from rub.pipeline.graph import Stage
from rub.pipeline.graph_builder import RETRAIN_SEED, FromFiles, GraphBuilder
from rub.registry import ATTACKS, METHODS, card_of, unlearner
from rub.store.artifacts import file_sha256
from rub.tasks.classification.budgets import Budget
from rub.tasks.classification.metrics import attacked_metrics, clean_metrics, metrics_of_stage, radius_metrics
from rub.tasks.classification.spec import ClassificationExperiment, ModelSpec, RadiusSpec, RelearnSpec

SHADOW_SEED = 2000  # training seeds of different roles must not meet
DOSE_SEED = 3000
OTHER_SEED = 5000
LEAST_SHADOWS = 6  # of U-LiRA: without the audited one, each point is in two and out of two


class ClassificationGraph(GraphBuilder[ClassificationExperiment]):
    """Stages of Table 1: data, original, retrained and shadow models, methods, attacks, measurements."""

    task = "classification"
    several_originals = True
    versions: ClassVar[Mapping[str, int]] = {
        "train": 1,
        "import": 2,  # a given mean and std hold
        "shadow": 1,
        "half": 1,
        "unlearn-half": 1,
        "ulira": 1,
        "initialise": 1,
        "unlearn": 1,
        "attack": 2,  # convergence counts moves
        "radius": 1,
        "relearn": 1,
        "measure": 4,  # membership without shadows, ZRF, passes
        "measure-attack": 3,  # of the very images, those recognised before
        "gap": 1,
        "klom": 1,
        "scale": 1,
        "metric": 1,
    }
    sets: ClassVar[tuple[str, ...]] = ("forget", "retain", "test", "forget_test", "validation")

    def __init__(
        self, experiment: ClassificationExperiment, data_root: Path | None, given: FromFiles | None = None
    ) -> None:
        super().__init__(experiment, data_root, given)
        self.dataset_name, self.model_name = experiment.dataset.title, _title(experiment.model)
        self.network = network_spec(experiment.model.model_dump())
        self.classwise = not experiment.forget.samples
        self.scenario = "" if self.classwise else "samples"
        for name in () if self.classwise else experiment.methods:
            if METHODS.get(name, self.task).classes_only:
                raise RubError(f"methods.{name}: forgets whole classes only; give forget.classes, or leave {name} out")
        asked = "drift" in experiment.controls
        forget_only = "train" in [self.methods[name]["parameters"].get("batch_norm") for name in experiment.methods]
        drifts = (asked or forget_only) and _drifts(self.network, experiment.dataset.size)
        if asked and drifts is False:
            raise RubError(
                f"controls.drift: {self.model_name} has no batch normalisation that could drift; leave it out"
            )
        self.drifts: bool | None = asked or drifts
        self.controls = tuple(self._controls())
        self.data = data_stage(self.task, experiment.dataset, data_root)
        self._check_budgets(experiment.dataset.size)
        self.size = num_images(experiment.dataset, 10_000)
        forget = forget_set(experiment.forget, experiment.dataset, data_root)
        self.experiment = experiment = experiment.model_copy(update={"forget": forget})
        self.parts = {"forget": experiment.forget.model_dump(), "validation": experiment.dataset.validation}
        self.parts |= {} if self.classwise else {"scenario": self.scenario}  # no key changes where it is the classes'
        count = experiment.seeds.mia * experiment.protocol.shadows_per_seed if experiment.evaluation.shadows else 0
        self.shadows = {f"shadow_{index}": self._shadow(index) for index in range(count)}

    def notes(self) -> tuple[str, ...]:
        """What is left out where no whole class is forgotten."""
        lacking = ("controls and measures of the head need forgotten classes; this forget set has none",)
        unseen = ("the control drift is left out: this network cannot be looked at before its data are read",)
        unpaired = tuple(
            f"{label} cannot aim at another class: its rows have no paired control"
            for label, plan in self.attacks.items()
            if "other" in plan.splits and not self._aims(label)
        )
        cost = f"{len(self.shadows)} shadow models, {self.experiment.training.epochs} epochs each on half of the images"
        trained = (f"trains {cost}",) if self.shadows and self.given is not None else ()
        noted = trained + (() if self.classwise else lacking) + (unseen if self.drifts is None else ()) + unpaired
        return super().notes() + noted

    def _check_budgets(self, side: int | None) -> None:
        for label, plan in self.attacks.items():
            for budget in map(Budget.of, plan.budgets):
                if side is not None:
                    budget.check(side, side)
                for run in plan.runs:
                    kinds = card_of(ATTACKS.get(run.name, self.task)).budgets
                    if budget.size and budget.kind not in kinds:
                        can = f"cannot search within {budget.name}; it can within {', '.join(kinds)}"
                        raise RubError(f"attacks.{label}: {run.name} {can}")

    def _controls(self) -> Iterator[str]:
        if self.classwise:
            yield from ("sham", "zero-row")
        if self.drifts:
            yield "drift"
        yield from (name for name in ("random_init", "other-seed") if name in self.experiment.controls)

    def control(self, name: str, seed: int) -> Stage:
        """Stage that makes a control: from the original, or as a network of its own."""
        if name == "random_init":
            spec = {"model": self.network, "seed": OTHER_SEED + seed}
            return self.stage("initialise", "initialise at random", spec, {"data": self.data}, cost=1)
        if name == "other-seed":
            return self._train(
                f"train other-seed, seed {seed}", {"kind": "all"}, OTHER_SEED + self.experiment.seeds.train + seed
            )
        return super().control(name, seed)

    def trained(self, number: int) -> Stage:
        """Stage that trains an original."""
        label = "train original" + (f" {number}" if number else "")
        return self._train(label, {"kind": "all"}, self.experiment.seeds.train + number)

    def retrain(self, seed: int) -> Stage:
        """Stage that trains a model on the retain set."""
        subset = {"kind": "retain", "forget": self.experiment.forget.model_dump()}
        return self._train(f"retrain, seed {seed}", subset, RETRAIN_SEED + seed)

    def dose(self, percent: float, seed: int) -> Stage:
        """Stage that trains a model on the retain set and a share of the forget set."""
        forget = self.experiment.forget.model_dump()
        subset = {"kind": "dose", "forget": forget, "percent": percent, "seed": seed}
        return self._train(f"train dose {percent:g} %, seed {seed}", subset, DOSE_SEED + seed)

    def unlearn(self, method: str, seed: int) -> Stage:
        """Stage that runs a method on its original."""
        spec = self._unlearning(method, seed)
        epochs = float(spec["method"]["parameters"].get("epochs", 2))
        inputs = {"data": self.data, "original": self.originals[self.original_of(method, seed)]}
        return self.stage("unlearn", f"unlearn {method}, seed {seed}", spec, inputs, cost=3 * epochs * self.size)

    def _unlearning(self, method: str, seed: int) -> dict[str, Any]:
        training = self.experiment.training
        return {
            "method": self.methods.get(method) or resolved(unlearner(method, self.task), {}, method),
            **self.parts,
            "seed": seed,
            "batch_size": training.batch_size,
            "padding": training.padding,
            "precision": training.precision,
        }

    def imported(self, row: str, given: FromFiles) -> Stage:
        """Stage that reads a checkpoint; its key holds the hash of the file."""
        path = given.weights[row]
        spec = {"model": {**self.network, **given.facts.get(row, {})}, "sha256": file_sha256(path)}
        return self.stage("import", f"read {row}", spec, {"data": self.data}, files={"weights": path}, cost=1000)

    def budgets(self, label: str) -> Iterable[Budget]:
        """Budgets of an attack; 0 is the measurement without an attack."""
        return (budget for budget in map(Budget.of, self.attacks[label].budgets) if budget.size)

    def searched(self, method: str, seed: int, label: str, budget: Budget, split: str) -> Stage:
        """Stage that searches probes for one row, attack, budget and set of images."""
        evaluation, plan = self.experiment.evaluation, self.attacks[label]
        samples = evaluation.attack_samples if split in ("forget", "other") else evaluation.control_samples
        spec = {
            "runs": self.runs[label],
            "levels": budget.given,
            "split": split,
            "samples": samples,
            **self.parts,
            "seed": seed,
            **({"eligible": True} if self.experiment.protocol.eligible else {}),
        }
        inputs = {"data": self.data, **self.pair(method, seed), **self._knowing()}
        smaller = [other for other in self.budgets(label) if budget.contains(other)]
        if plan.warm_start and smaller:
            inputs["warm"] = self.searched(method, seed, label, smaller[-1], split)
        steps = sum(
            run["parameters"].get("steps", 100) * run["parameters"].get("restarts", 1) for run in self.runs[label]
        )
        label_text = f"attack {method}, seed {seed}: {label} {budget.name} on {split}"
        return self.stage("attack", label_text, spec, inputs, cost=2.0 * steps * (samples or self.size // 10))

    def measure(self, method: str, seed: int) -> Stage:
        """Stage that measures a row on clean images."""
        experiment = self.experiment
        spec = {
            "method": method,
            "seed": seed,
            **self.parts,
            "retain_samples": experiment.evaluation.retain_samples,
            "probe_per_class": experiment.protocol.probe_per_class,
            "probe_total": experiment.protocol.probe_total,
            "few_images": experiment.protocol.few_images,
            "shadows_per_seed": experiment.protocol.shadows_per_seed,
            "mia_seeds": experiment.seeds.mia,
            "made": self.given is None,
        }
        inputs = {"data": self.data, **self.pair(method, seed), **self.shadows}
        held_out = self.experiment.dataset.validation > 0
        made = self.given is None
        measured = clean_metrics(self.classwise, shadows=len(self.shadows), held_out=held_out, made=made)
        cells = [each for metric in measured for each in self.cells(metric, method, seed)]
        return self.stage("measure", f"measure {method}, seed {seed}", spec, inputs, cost=0.3 * self.size, cells=cells)

    def further(self, method: str, seed: int) -> Iterator[Stage]:
        """The gap to retraining, the paired contrast where the protocol searches radii, metrics of plug-ins."""
        yield from self._gap(method, seed)
        if self.experiment.protocol.radius is not None:
            yield self._radius(method, seed, self.experiment.protocol.radius)
        if self.classwise and self.experiment.protocol.relearn is not None:
            yield self._relearn(method, seed, self.experiment.protocol.relearn)
        yield from super().further(method, seed)

    def together(self) -> Iterator[Stage]:
        """KLOM and U-LiRA of every method, where they are asked for."""
        if self.experiment.evaluation.klom:
            yield from self._klom()
        if self.experiment.evaluation.ulira:
            yield from self._ulira(self.experiment.evaluation.ulira)

    def _ulira(self, count: int) -> Iterator[Stage]:
        if count < LEAST_SHADOWS:
            raise RubError(f"evaluation.ulira: {count} shadows; it takes {LEAST_SHADOWS} at least")
        halves = [self._shadow(index, "half") for index in range(count)]
        for method in self.experiment.methods:
            cost = 1.5 * float(self.methods[method]["parameters"].get("epochs", 2)) * self.size
            forgot = {
                f"shadow_{index}": self.stage(
                    "unlearn-half", f"unlearn {method} on shadow {index}", self._unlearning(method, index),
                    {"data": self.data, "original": half}, cost=cost,
                )
                for index, half in enumerate(halves)
            }  # fmt: skip
            cells = [Cells([metric])(method, None, metric.name) for metric in metrics_of_stage("ulira")]
            yield self.stage("ulira", f"U-LiRA of {method}", {"method": method}, forgot, cost=1000, cells=cells)

    def _klom(self) -> Iterator[Stage]:
        seeds = self.experiment.seeds.originals * self.experiment.seeds.unlearn
        if min(self.retrains, seeds) < FEWEST:
            said = f"{seeds} unlearning seeds and {self.retrains} retrained models"
            raise RubError(f"evaluation.klom: {said}; it takes {FEWEST} of both (seeds.unlearn)")
        retrained = {f"retrained_{seed}": self.model("retrain", seed) for seed in range(self.retrains)}
        for method in self.experiment.methods:
            models = {f"unlearned_{seed}": self.model(method, seed) for seed in range(seeds)}
            spec = {"method": method, **self.parts}
            cells = [Cells([metric])(method, None, metric.name) for metric in metrics_of_stage("klom")]
            inputs, cost = {"data": self.data, **models, **retrained}, 0.1 * self.size * (seeds + self.retrains)
            text = f"compare all seeds of {method} with retrain"
            yield self.stage("klom", text, spec, inputs, cost=cost, cells=cells)

    def _gap(self, method: str, seed: int) -> Iterator[Stage]:
        reference = self.retrained(seed)
        if reference == (method, seed):  # two retrained models show what seeds alone do
            reference = ("retrain", (seed + 1) % self.retrains) if self.given is None and self.retrains > 1 else None
        if reference is not None:
            inputs = {"unlearned": self.measure(method, seed), "retrained": self.measure(*reference)}
            cells = [each for metric in metrics_of_stage("gap") for each in self.cells(metric, method, seed)]
            spec = {"method": method, "seed": seed}
            yield self.stage("gap", f"compare {method}, seed {seed}, with retrain", spec, inputs, cost=1, cells=cells)

    def _radius(self, method: str, seed: int, search: RadiusSpec) -> Stage:
        evaluation = self.experiment.evaluation
        samples = {"forget": evaluation.attack_samples, "forget_test": evaluation.control_samples}
        spec = {"method": method, "seed": seed, **self.parts, "radius": search.model_dump(), "samples": samples}
        found = radius_metrics(self.classwise, samples)
        cells = [each for split, metric in found for each in self.cells(metric, method, seed, split=split)]
        count = sum(number or self.size // 10 for number in samples.values())
        rungs = log2(search.largest / search.smallest) + 1
        inputs = {"data": self.data, **self.pair(method, seed), **self._knowing()}
        text = f"search radii of {method}, seed {seed}"
        return self.stage(
            "radius", text, spec, inputs, cost=4.0 * (search.steps * rungs + search.refine) * count, cells=cells
        )

    def _relearn(self, method: str, seed: int, tuning: RelearnSpec) -> Stage:
        spec = {"method": method, "seed": seed, **self.parts, "relearn": tuning.model_dump()}
        cells = [each for metric in metrics_of_stage("relearn") for each in self.cells(metric, method, seed)]
        inputs, cost = {"data": self.data, **self.pair(method, seed)}, 6.0 * tuning.steps * tuning.batch_size
        return self.stage("relearn", f"relearn {method}, seed {seed}", spec, inputs, cost=cost, cells=cells)

    def measure_attack(self, method: str, seed: int, label: str, budget: Budget) -> Stage:
        """Stage that measures a row under an attack, with the same attack on the retrained model beside it."""
        experiment, splits = self.experiment, self.attacked(label)
        inputs = {"data": self.data, "unlearned": self.model(method, seed), **self.shadows}
        inputs |= {f"attack_{split}": self.searched(method, seed, label, budget, split) for split in splits}
        if "forget" in splits and (reference := self.retrained(seed)) is not None:
            inputs["attack_retrained"] = self.searched(*reference, label, budget, "forget")
        spec = {
            "method": method,
            "seed": seed,
            "attack": label,
            "budget": budget.name,
            "splits": splits,
            "witnesses": experiment.evaluation.witnesses,
            **self.parts,
            "shadows_per_seed": experiment.protocol.shadows_per_seed,
            "mia_seeds": experiment.seeds.mia,
        }
        at: dict[str, Any] = {"attack": label, "budget": budget.name}
        cells = [
            each
            for split in splits
            for metric in attacked_metrics(split, shadows=len(self.shadows), retrained="attack_retrained" in inputs)
            for each in self.cells(metric, method, seed, split=split, **at)
        ]
        text = f"measure {method}, seed {seed}: {label} {budget.name}"
        return self.stage("measure-attack", text, spec, inputs, cost=1000, cells=cells)

    def budget_name(self, budget: Budget) -> str:
        """As records have it."""
        return budget.name

    def attacked(self, label: str) -> list[str]:
        """Images that an attack works on: towards another class only where it can aim there."""
        left_out = {*(() if self.classwise else ("retain",)), *(() if self._aims(label) else ("other",))}
        return [split for split in self.attacks[label].splits if split not in left_out]

    def _aims(self, label: str) -> bool:
        return all(card_of(ATTACKS.get(run.name, self.task)).other_class for run in self.attacks[label].runs)

    def cells(self, metric: Metric, method: str, seed: int, **where: Any) -> list[dict[str, Any]]:
        """Its cells: one for each membership seed, where it has several."""
        seeds = range(self.experiment.seeds.mia) if metric.seeded else [None]
        return [Cells([metric])(method, seed, metric.name, mia_seed=index, **where) for index in seeds]

    def outputs(self, metric: Metric, method: str, seed: int) -> tuple[dict[str, Any], dict[str, Stage]]:
        """What decides the evaluation sets, and the models that look at them, with shadow models if it takes them."""
        experiment = self.experiment
        spec = {**self.parts, "retain_samples": experiment.evaluation.retain_samples}
        inputs = {"data": self.data, **self.pair(method, seed)}
        if not metric.shadows:
            return spec, inputs
        if len(self.shadows) < metric.shadows:
            raise RubError(
                f"metric '{metric.name}' needs {metric.shadows} shadow models, this experiment has {len(self.shadows)}"
            )
        seeds = {"shadows_per_seed": experiment.protocol.shadows_per_seed, "mia_seeds": experiment.seeds.mia}
        return spec | seeds, inputs | self.shadows

    def pair(self, method: str, seed: int) -> dict[str, Stage]:
        """The model of a row, and the original that it is compared with."""
        return {"original": self.originals[self.original_of(method, seed)], "unlearned": self.model(method, seed)}

    def _knowing(self) -> dict[str, Stage]:
        """Originals that all have to be right on an image that is searched, so that every row has the same images."""
        if len(self.originals) == 1 or not self.experiment.protocol.eligible:
            return {}
        return {f"known_{number}": stage for number, stage in enumerate(self.originals)}

    def _train(self, label: str, subset: Mapping[str, Any], seed: int) -> Stage:
        experiment = self.experiment
        spec = {
            "model": self.network,
            "training": experiment.training.model_dump(),
            "subset": dict(subset),
            "validation": experiment.dataset.validation,
            "seed": seed,
        }
        return self.stage("train", label, spec, {"data": self.data}, cost=3.0 * experiment.training.epochs * self.size)

    def _shadow(self, index: int, kind: str = "shadow") -> Stage:
        # 2i and 2i + 1 are trained on complementary halves.
        experiment = self.experiment
        spec = {
            "model": self.network,
            "training": experiment.training.model_dump(),
            "validation": experiment.dataset.validation,
            "seed": SHADOW_SEED + index,
            "half_seed": SHADOW_SEED + index // 2,
            "half": index % 2,
        }
        cost = 1.5 * experiment.training.epochs * self.size
        return self.stage(kind, f"train {kind} {index}", spec, {"data": self.data}, cost=cost)


def _drifts(network: Mapping[str, Any], size: int | None) -> bool | None:
    """Whether a network has batch normalisation; None if it cannot be built for images of 3 channels and this size."""
    from rub.models.network import batch_norms, build_network

    shape: Any = {"num_classes": 10, "channels": 3, "size": size or 32, "mean": (0.5,), "std": (0.5,)}
    try:
        return bool(batch_norms(build_network(network["arch"], **shape, **hyperparameters_in(network))))
    except RubError:
        return None


def _title(model: ModelSpec) -> str:
    own = "".join(f"-{name}{value}" for name, value in (model.model_extra or {}).items() if name != "config")
    width = "" if model.width is None else f"-w{model.width}"
    return network_title(model.arch) + width + ("" if model.stem == "cifar" else f"-{model.stem}") + own
