"""A task: all that the pipeline, audits, witnesses and reports take from it, declared as one value."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rub.config.suite import Experiment
from rub.metrics.base import Metric
from rub.pipeline.graph import Graph
from rub.pipeline.graph_builder import FromFiles, GraphBuilder


@dataclass(frozen=True)
class Task:
    """A kind of thing that can be unlearned, and how that is measured.

    Targets are ``module:attribute`` strings, imported when they are needed, so that a task's names can be listed
    without loading torch. The pipeline itself knows nothing of images or prompts.

    Attributes:
        name: as suites write it.
        experiment: the spec of its experiments.
        graph: builder of an experiment's stages, from the experiment, the folder of data, and models from files.
        functions: stage kind -> target of its stage function, a `rub.pipeline.runtime.StageFunction`.
        metrics: every metric, in the order of its tables.
        report: target of its `rub.reports.task_report.TaskReport`; "": one table of its metrics.
        audit: target of its `rub.audits.base.Audit`; "" where checkpoints of others cannot be audited.
        verify: target of the function that scores a witness again, see `rub.witness.claims`; "" without witnesses.
        zoo: target of its `rub.zoo.entry.Shelf`; "" where its models cannot be published.
        work: target of the function from an experiment and the folder of data to the FLOPs of its stages, by precision;
            "" where they are not known.
        reattack: target of the function that runs a row's search again, a `rub.witness.reattack.ReattackFunction`; ""
            where low numbers of its rows cannot be checked.
        controls: rows that the graph makes itself for every experiment -> what each is, beside original and retrained
            models; ``builtin.yaml`` lists those of RUB's own tasks.
    """

    name: str
    experiment: type[Experiment]
    graph: Callable[[Any, Path | None, FromFiles | None], GraphBuilder[Any]]
    functions: Mapping[str, str]
    metrics: tuple[Metric, ...]
    report: str = ""
    audit: str = ""
    verify: str = ""
    zoo: str = ""
    work: str = ""
    reattack: str = ""
    controls: Mapping[str, str] = field(default_factory=dict)

    def plan(self, experiment: Experiment, data_root: Path | None) -> Graph:
        """Graph of an experiment."""
        return self.graph(experiment, data_root, None).graph()
