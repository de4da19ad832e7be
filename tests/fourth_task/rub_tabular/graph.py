"""What an experiment asks for, what is measured, and its stages."""

from typing import Literal

from pydantic import Field

from rub.config.suite import Component, Experiment, Frozen, Protocol
from rub.metrics.base import Cells, Metric
from rub.pipeline.graph_builder import RETRAIN_SEED, GraphBuilder
from rub.store.artifacts import file_sha256


def right(outputs):
    return outputs.logits.argmax(1) == outputs.labels


def excess(outputs):
    return right(outputs).mean() - right(outputs["retrained"]).mean()


METRICS = (
    Metric("ta", "TA", "accuracy on test rows", right, "up", split="test"),
    Metric("recovered", "recovered", "forgotten rows that get the original's answer", right, "down"),
    Metric("residual_knowledge", "excess", "minus the retrained model's", excess, "down", low=-1, needs=("retrained",)),
)
cell = Cells(METRICS)


class TableSpec(Frozen):
    bare_field = "name"
    name: Literal["circles", "moons"]
    forget: int = Field(20, ge=5, le=200)  # training rows, of 225


class AttackSpec(Frozen):
    runs: tuple[Component, ...]
    budgets: tuple[int, ...]  # how far a feature may move, in hundredths of its standard deviation


class TabularProtocol(Protocol):
    attacks: dict[str, AttackSpec]


class TabularExperiment(Experiment):
    task: Literal["tabular"]
    table: TableSpec
    protocol: TabularProtocol


class TabularGraph(GraphBuilder):
    task, model_name = "tabular", "mlp32"
    versions = dict.fromkeys(("train", "import", "unlearn", "attack", "measure"), 1)
    dataset_name = property(lambda self: self.experiment.table.name)

    def trained(self, number):
        return self._made("train", "train original", seed=self.experiment.seeds.train, parts=["retain", "forget"])

    def retrain(self, seed):
        return self._made("train", f"retrain, seed {seed}", seed=RETRAIN_SEED + seed, parts=["retain"])

    def unlearn(self, method, seed):
        inputs = {"original": self.original}
        return self._made("unlearn", f"unlearn {method}, seed {seed}", inputs, method=self.methods[method], seed=seed)

    def imported(self, row, given):
        files = {"weights": given.weights[row]}
        return self._made("import", f"read {row}", files=files, sha256=file_sha256(files["weights"]))

    def attack(self, method, seed, label, budget):
        inputs = {"original": self.original, "unlearned": self.model(method, seed)}
        text = f"attack {method}, seed {seed}: {label} {budget}/100"
        return self._made("attack", text, inputs, runs=self.runs[label], budget=budget, seed=seed)

    def measure(self, method, seed, given=(), names=("ta", "recovered"), **at):
        cells = [cell(method, seed, name, **at) for name in names]
        inputs = {"original": self.original, "unlearned": self.model(method, seed), **dict(given)}
        text = f"measure {method}, seed {seed}: {' '.join(at.values()) or 'clean'}"
        return self._made("measure", text, inputs, cells=cells, method=method, seed=seed, **at)

    def measure_attack(self, method, seed, label, budget):
        inputs, names = {"attack": self.attack(method, seed, label, budget)}, ["recovered"]
        if reference := self.retrained(seed):
            inputs["retrained"], names = self.attack(*reference, label, budget), [*names, "residual_knowledge"]
        return self.measure(method, seed, inputs, names, attack=label, budget=f"{budget}/100")

    def _made(self, kind, label, inputs=(), files=None, cells=(), **spec):
        spec["table"] = self.experiment.table.model_dump()
        return self.stage(kind, label, spec, dict(inputs), cost=1, files=files, cells=cells)
