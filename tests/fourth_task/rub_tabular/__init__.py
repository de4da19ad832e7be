"""A fourth task for RUB: forget rows of a table. Found by the entry point ``rub.tasks``, or with ``--plugin``."""

import rub
from rub.pipeline.task import Task

from . import stages  # noqa: F401 - its decorators register
from .graph import METRICS, TabularExperiment, TabularGraph

TASK = Task(
    name="tabular",
    experiment=TabularExperiment,
    graph=TabularGraph,
    functions={kind: f"{__name__}.stages:{kind}_" for kind in ("train", "import", "unlearn", "attack", "measure")},
    metrics=METRICS,
    report=f"{__name__}.report:REPORT",
    audit=f"{__name__}.report:AUDIT",
    verify=f"{__name__}.stages:verify",
    controls={
        "original": "the network before unlearning.",
        "retrain": "trained without the forgotten rows; what 'forgotten' looks like.",
        "retrained": "weights that an audit was given as trained without them.",
    },
)
ATTACKS = {"uma": {"runs": ["uma"], "budgets": [10, 50]}}
rub.task(TASK, summary="forget rows of a table")
rub.protocol("tabular-1", task="tabular", summary="Small changes of a row.", attacks=ATTACKS)
