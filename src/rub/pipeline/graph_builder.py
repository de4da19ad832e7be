"""From an experiment to its graph of stages: what the builders of all tasks share. Free of torch."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

from rub.config.hyperparameters import resolved
from rub.config.suite import Experiment
from rub.errors import RubError, unknown
from rub.metrics.base import Cells, Metric, metrics_of
from rub.metrics.dose import DOSES, cells_on_scale, dose_of, dose_row
from rub.pipeline.graph import Graph, Stage
from rub.registry import ATTACKS, CONTROLS, METHODS, METRICS, Entry, source_hash

E = TypeVar("E", bound=Experiment)
RETRAIN_SEED = 1000  # training seeds of different roles must not meet: the original's are below
NO_REFERENCE = "retrains: 0: no model shows what forgotten is like"


@dataclass(frozen=True)
class FromFiles:
    """Models that someone else made, in place of those that an experiment would train and unlearn.

    Attributes:
        weights: row (``original``, ``unlearned``, ``retrained``) -> its checkpoint. Without an original here, the
            experiment says where it is.
        facts: what the files do not tell, as the task's reader takes it.
    """

    weights: Mapping[str, Path]
    facts: Mapping[str, Any] = field(default_factory=dict)


class GraphBuilder(ABC, Generic[E]):
    """Builds the stages of one experiment; every stage is a pure function of the experiment.

    A task's builder says how its models are made and measured; rows, components and the retrained reference are here.

    Attributes:
        given: models from files; None where the experiment makes its own.
        doses: rows of models that were trained on a share of the forget set.
        methods: method or control of a plug-in -> what a stage's spec says of it.
        metrics: metrics of plug-ins.
        retrains: number of models that are retrained without the forget set: as the experiment says, else one for each
            unlearning seed.
        dataset_name: the data, as records and tables call it.
        model_name: the network, likewise.
        attacks: label -> the protocol's plan of an attack.
        runs: label -> what a stage's spec says of the attack's searches.
    """

    task: ClassVar[str]
    versions: ClassVar[Mapping[str, int]]
    """Stage kind -> version of its function; raised when its results change."""
    sets: ClassVar[tuple[str, ...]] = ()
    """Evaluation sets that metrics of plug-ins can be measured on; none where the task takes no such metrics."""
    dataset_name: str
    model_name: str
    several_originals: ClassVar[bool] = False
    """Whether the task measures more than one original model."""
    scenario: str = ""
    """What kind of forget set it is, as `rub.store.records.Record` has it."""
    controls: tuple[str, ...] = ()
    """The task's own rows beside the original and the retrained models that are no methods."""

    def __init__(self, experiment: E, data_root: Path | None, given: FromFiles | None = None) -> None:
        experiment.check()
        self.experiment, self.data_root, self.given = experiment, data_root, given
        if experiment.seeds.originals > 1 and not self.several_originals:
            raise RubError(f"seeds.originals = {experiment.seeds.originals}: task {self.task} measures one original")
        self.doses = [dose_row(percent) for percent in experiment.doses]
        self.retrains: int = getattr(experiment, "retrains", experiment.seeds.unlearn)
        self.methods = {
            name: resolved(METHODS.get(name, self.task), parameters, f"methods.{name}")
            for name, parameters in experiment.methods.items()
        } | {
            name: resolved(CONTROLS.get(name, self.task), parameters, f"controls.{name}")
            for name, parameters in experiment.controls.items()
        }
        self.metrics = [self._further(name) for name in experiment.metrics]
        self.attacks: Mapping[str, Any] = experiment.protocol.attacks
        self.runs = {
            label: [resolved(ATTACKS.get(run.name, self.task), run.parameters, f"attacks.{label}") for run in plan.runs]
            for label, plan in self.attacks.items()
        }

    def graph(self) -> Graph:
        """Stages of every row, after those that show at once whether the request can be met."""
        rows = list(self.rows())
        stages = [*self.first(), *(self.model(*row) for row in rows if self.given is not None)]
        measured = {row: self.measurements(*row) for row in rows}
        stages += [stage for made in measured.values() for stage in made]
        stages += self.together()
        if self.experiment.doses:
            stages += self._scale(measured)
        originals = {row: number for row in rows if (number := self.original_of(*row))}
        return Graph(tuple(stages), self.common(), self.notes(), originals)

    def rows(self) -> Iterator[tuple[str, int]]:
        """(method, unlearning seed) of every row: the controls first, each with the seeds that it has."""
        if self.given is not None:
            yield "original", 0
            yield from ((name, 0) for name in self.given.weights if name != "original")
            return
        seeds = self.experiment.seeds
        yield from (("original", number) for number in range(seeds.originals))
        yield from (("retrain", seed) for seed in range(self.retrains))
        yield from ((name, seed) for name in self.doses for seed in range(seeds.doses))
        controls = dict.fromkeys((*self.controls, *self.experiment.controls))
        yield from ((name, number) for name in controls for number in range(seeds.originals))
        unlearned = range(seeds.originals * seeds.unlearn)
        yield from ((name, seed) for name in self.experiment.methods for seed in unlearned)

    def original_of(self, method: str, seed: int) -> int:
        """Number of the original that a row belongs to: seeds go round the originals, so that more seeds only add."""
        return seed % self.experiment.seeds.originals

    def model(self, method: str, seed: int) -> Stage:
        """Stage that makes the weights of a row."""
        if method == "original":
            return self.originals[seed]
        if self.given is not None:
            return self.imported(method, self.given)
        if method == "retrain":
            return self.retrain(seed)
        if (percent := dose_of(method)) is not None:
            return self.dose(percent, seed)
        return self.control(method, seed) if method in self.controls else self.unlearn(method, seed)

    @cached_property
    def originals(self) -> Sequence[Stage]:
        """Stages of the models before unlearning."""
        if self.given is not None and "original" in self.given.weights:
            return [self.imported("original", self.given)]
        return [self.trained(number) for number in range(self.experiment.seeds.originals)]

    @property
    def original(self) -> Stage:
        """Stage of the first model before unlearning."""
        return self.originals[0]

    def retrained(self, seed: int) -> tuple[str, int] | None:
        """Row of the retrained model that the rows of an unlearning seed are compared with; None without one."""
        if self.given is not None:
            return ("retrained", 0) if "retrained" in self.given.weights else None
        return ("retrain", seed % self.retrains) if self.retrains else None

    def measurements(self, method: str, seed: int) -> list[Stage]:
        """Measuring stages of one row: clean, one for each attack and budget, and its gallery."""
        return [
            self.measure(method, seed),
            *(self.measure_attack(method, seed, name, at) for name in self.asked(method) for at in self.budgets(name)),
            *self.further(method, seed),
            *self.gallery(method, seed),
        ]

    def asked(self, method: str) -> Iterable[str]:
        """Attacks on a row. Models of a dose are a scale: of the attacks, the main one is enough."""
        main = self.experiment.protocol.main_attack
        return [label for label in self.attacks if label == main or method not in self.doses]

    def _scale(self, measured: Mapping[tuple[str, int], Sequence[Stage]]) -> Iterator[Stage]:
        """Stages that say how each metric goes with the dose, and where each row stands on that scale."""
        originals = {" ".join(map(str, row)): number for row in measured if (number := self.original_of(*row))}
        measuring = {row: [stage for stage in made if stage.cells] for row, made in measured.items()}
        doses = [stage for row, made in measuring.items() if dose_of(row[0]) is not None for stage in made]
        scale = [
            cell for row, made in measuring.items() if row[0] in self.doses for stage in made for cell in stage.cells
        ]
        methods = dict.fromkeys(method for method, _ in measured if dose_of(method) is None)
        rising = {item.name: item.knowledge == "rises" for item in metrics_of(self.task) if item.knowledge}
        shared = {"originals": originals, "rising": rising}
        for method in (DOSES, *methods):
            own = [stage for row, made in measuring.items() if row[0] == method for stage in made]
            cells = cells_on_scale(method, [cell for stage in own for cell in stage.cells] or scale, scale, rising)
            text = "how metrics go with the dose" if method == DOSES else f"dose-equivalents of {method}"
            inputs = {stage.label: stage for stage in (*doses, *own)}
            yield self.stage("scale", text, {"method": method, **shared}, inputs, cost=1000, cells=cells)

    def further(self, method: str, seed: int) -> Iterator[Stage]:
        """Stages of the metrics of plug-ins: one for each, and for each attack on their images if they ask for it."""
        for entry in self.metrics:
            yield self._metric(entry, method, seed)
            metric: Metric = entry.load()
            for label in self.asked(method):
                if metric.attacked and metric.split in self.attacked(label):
                    yield from (self._metric(entry, method, seed, label, budget) for budget in self.budgets(label))

    def _further(self, name: str) -> Entry[Any]:
        metrics = {metric.name for metric in metrics_of(self.task)}
        own = {entry.name: entry for entry in METRICS.entries(self.task)}
        if name not in own:
            always = f"metric '{name}' is always measured; leave it out of 'metrics'"
            raise RubError(always) if name in metrics else unknown(f"{self.task} metric", name, metrics)
        asked = own[name].load()
        if wrong := [one for one in (asked.split, *asked.needs) if one not in (*self.sets, "original")]:
            raise RubError(f"metric '{name}' needs {wrong[0]}: {self.task} has {', '.join(self.sets) or 'no sets'}")
        return own[name]

    def _metric(self, entry: Entry[Any], method: str, seed: int, label: str = "", budget: Any = None) -> Stage:
        metric: Metric = entry.load()
        at = {"attack": label or "none", "budget": self.budget_name(budget) if label else "none"}
        own, inputs = self.outputs(metric, method, seed)
        spec = own | {"metric": entry.name, "source": source_hash(entry), "method": method, "seed": seed, **at}
        if label:
            inputs = {**inputs, "attack": self.searched(method, seed, label, budget, metric.split)}
        cells = self.cells(metric, method, seed, **at)
        text = f"measure {metric.name} of {method}, seed {seed}" + (f": {label} {at['budget']}" if label else "")
        return self.stage("metric", text, spec, inputs, cost=1000, cells=cells)

    def common(self) -> dict[str, str]:
        """Record fields that all rows share."""
        protocol: str = self.experiment.protocol.name
        names = {"task": self.task, "experiment": self.experiment.name, "protocol": protocol, "scenario": self.scenario}
        return names | {"dataset": self.dataset_name, "model": self.model_name}

    def stage(
        self,
        kind: str,
        label: str,
        spec: Mapping[str, Any],
        inputs: Mapping[str, Stage],
        *,
        cost: float,
        cells: Iterable[Mapping[str, Any]] = (),
        files: Mapping[str, Path] | None = None,
    ) -> Stage:
        """A stage of this task, of the present version of its kind."""
        return Stage(self.task, kind, self.versions[kind], label, spec, inputs, files or {}, cost, tuple(cells))

    def first(self) -> list[Stage]:
        """Stages that notice a request that cannot be met before anything is trained."""
        return []

    def notes(self) -> tuple[str, ...]:
        """Choices made for this experiment that a reader should know, one line each."""
        return () if self.retrains else (NO_REFERENCE,)

    def budgets(self, label: str) -> Iterable[Any]:
        """Budgets of an attack, the smallest first."""
        return cast(Iterable[Any], self.attacks[label].budgets)

    def budget_name(self, budget: Any) -> str:
        """Name of a budget in records."""
        return str(budget)

    def attacked(self, label: str) -> Sequence[str]:
        """Evaluation sets that an attack works on."""
        return ()

    def searched(self, method: str, seed: int, label: str, budget: Any, split: str) -> Stage:
        """Stage of an attack on one row and one of these sets."""
        raise NotImplementedError(f"{self.task} attacks no evaluation sets")

    def cells(self, metric: Metric, method: str, seed: int, **where: Any) -> list[dict[str, Any]]:
        """Cells that a metric fills for a row."""
        return [Cells([metric])(method, seed, metric.name, **where)]

    def outputs(self, metric: Metric, method: str, seed: int) -> tuple[dict[str, Any], dict[str, Stage]]:
        """Spec and inputs of a stage that reads what a row's model makes of the evaluation sets, for a metric."""
        raise NotImplementedError(f"{self.task} has no evaluation sets")

    def together(self) -> Iterable[Stage]:
        """Stages that measure all seeds of a method together."""
        return ()

    def gallery(self, method: str, seed: int) -> list[Stage]:
        """Stage of a row's pictures, in a list; none without pictures."""
        return []

    def control(self, name: str, seed: int) -> Stage:
        """Stage that makes the model of one of `controls`; by default as a method's."""
        return self.unlearn(name, seed)

    @abstractmethod
    def trained(self, number: int) -> Stage:
        """Stage of the original of this number, from 0, as the experiment asks for it."""

    @abstractmethod
    def retrain(self, seed: int) -> Stage:
        """Stage that trains a model without the forget set."""

    def dose(self, percent: float, seed: int) -> Stage:
        """Stage that trains a model on the retain set and a share of the forget set."""
        raise RubError(f"doses: task {self.task} trains no models on a share of the forget set")

    @abstractmethod
    def unlearn(self, method: str, seed: int) -> Stage:
        """Stage that runs a method on the original."""

    def imported(self, row: str, given: FromFiles) -> Stage:
        """Stage that reads a row's model from a file; its key holds the hash of the file."""
        raise RubError(f"task {self.task}: models cannot be read from files")

    @abstractmethod
    def measure(self, method: str, seed: int) -> Stage:
        """Stage that measures a row without an attack."""

    def measure_attack(self, method: str, seed: int, label: str, budget: Any) -> Stage:
        """Stage that measures a row under an attack at one budget."""
        raise RubError(f"task {self.task}: its models cannot be attacked")
