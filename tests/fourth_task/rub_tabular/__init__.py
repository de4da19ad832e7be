"""A fourth task for RUB: forget rows of a table. Found by the entry point ``rub.tasks``, or with ``--plugin``."""

import rub
from rub.pipeline.task import Task

from . import stages  # noqa: F401 - its decorators register
from .graph import METRICS, TabularExperiment, TabularGraph

FUNCTIONS = {kind: f"{__name__}.stages:{kind}_" for kind in TabularGraph.versions}
REPORT, AUDIT, VERIFY = f"{__name__}.report:REPORT", f"{__name__}.report:AUDIT", f"{__name__}.stages:verify"
LOOKS = "trained without the forgotten rows; what 'forgotten' looks like."
CONTROLS = {"original": "the network before unlearning.", "retrain": LOOKS}
TASK = Task("tabular", TabularExperiment, TabularGraph, FUNCTIONS, METRICS, REPORT, AUDIT, VERIFY, controls=CONTROLS)
rub.task(TASK, summary="forget rows of a table")
ATTACKS = {"uma": {"runs": ["uma"], "budgets": [10, 50]}}
rub.protocol("tabular-1", task="tabular", summary="Small changes of a row.", attacks=ATTACKS)
