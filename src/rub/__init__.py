"""RUB, the Robust Unlearning Benchmark: can forgotten knowledge be brought back by changing only the input?

The public API is imported lazily, so that ``import rub`` costs nothing: `run`, `audit`, `load_suite`, `plan`, `verify`,
`report`, `submit`, `read_records`, `read_results`, `recover`, `load_model`, and the decorators `method`, `guidance`,
`control`, `attack`, `network`, `dataset`, `metric` and `judge` with `Card` and `Hyper`. `attacks.adapt` takes attacks
of others.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rub import attacks as attacks
    from rub.api import audit, plan, report, run, submit, verify
    from rub.config.hyperparameters import Hyper
    from rub.config.suite import load_suite
    from rub.data.base import dataset
    from rub.judges.spec import judge
    from rub.metrics.base import metric
    from rub.registry import Card, attack, control, guidance, method, network, protocol, task
    from rub.reports.frames import read_results
    from rub.store.records import read_records
    from rub.tasks.classification.recover import recover
    from rub.zoo.lookup import load_model

__all__ = [
    "Card", "Hyper", "attack", "audit", "control", "dataset", "guidance", "judge", "load_model", "load_suite", "method",
    "metric", "network", "plan", "protocol", "read_records", "read_results", "recover", "report", "run", "submit",
    "task", "verify",
]  # fmt: skip

_WHERE = {
    "audit": "rub.api",
    "plan": "rub.api",
    "report": "rub.api",
    "run": "rub.api",
    "submit": "rub.api",
    "verify": "rub.api",
    "load_suite": "rub.config.suite",
    "load_model": "rub.zoo.lookup",
    "read_records": "rub.store.records",
    "read_results": "rub.reports.frames",
    "recover": "rub.tasks.classification.recover",
    "Card": "rub.registry",
    "Hyper": "rub.config.hyperparameters",
    "attack": "rub.registry",
    "control": "rub.registry",
    "dataset": "rub.data.base",
    "judge": "rub.judges.spec",
    "guidance": "rub.registry",
    "method": "rub.registry",
    "metric": "rub.metrics.base",
    "network": "rub.registry",
    "protocol": "rub.registry",
    "task": "rub.registry",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use (PEP 562)."""
    if name == "attacks":
        return importlib.import_module("rub.attacks")
    if name not in _WHERE:
        raise AttributeError(f"module 'rub' has no attribute '{name}'")
    return getattr(importlib.import_module(_WHERE[name]), name)
