"""How the task is reported, and audits of networks that others made."""

from pathlib import Path

from rub.audits.base import Audit, AuditRequest, Verdict, existing, percent, validated
from rub.pipeline.graph_builder import FromFiles
from rub.reports.grouping import budgets_of, grouped, main_attack
from rub.reports.tables import Columns, Source
from rub.reports.task_report import Axis, TaskReport

from .graph import METRICS, TabularExperiment


def columns(records, main=""):
    made, main = Columns(METRICS, main or main_attack(records)), main or main_attack(records)
    attacked = [made(at, name, at) for at in budgets_of(records, main) for name in ("recovered", "residual_knowledge")]
    return [made("", "ta"), made("none", "recovered"), *attacked]


def tables(records, paper, mains):
    made = []
    for group, own in grouped(records, "tabular").items():
        source = Source(group, own, lambda *_: (), "more may come back", "Table", main_attack(own, mains))
        made.append(source.table("tabular", "Table", columns(own, source.main)))
    return made


REPORT = TaskReport(
    title="rows of a table",
    first="Table",
    prefix="tabular",
    tables=tables,
    headline=lambda budgets: list(budgets[-2:]),
    leaders=columns,
    robustness=Axis("recovered", "forget", "recovered"),
    utility=Axis("ta", "test", "TA"),
    metrics=METRICS,
    success="share of forgotten rows recovered",
    forgotten="forgotten rows",
    words={"recovered": "Forgotten rows that get the original's answer, changed by at most the budget."},
    captions={"robustness": "Rows recovered against the budget.", "utility": "Accuracy against robustness."},
)


class TabularAudit(AuditRequest):
    """Measure an unlearned network against its original: recovered, or no residual found."""

    task = "tabular"
    original: Path
    """Weights before unlearning."""
    unlearned: Path
    """Weights after unlearning."""
    table: str
    """blobs or moons."""
    protocol: str = "tabular-1"
    """A name from rub list protocols."""

    def experiment(self):
        return validated(TabularExperiment, {"task": "tabular", "table": self.table, "protocol": self.protocol})

    def models(self):
        return FromFiles(existing({"original": self.original, "unlearned": self.unlearned}, "a .safetensors file"))


def figures(rows):
    return {attack: rows.rate("unlearned", "recovered", "forget", attack) for attack in ("none", rows.attack)}


def conclude(rates, budget):
    clean, attacked = rates.values()
    name = "recovered" if attacked.exceeds(clean) else "no residual found at this budget"
    return Verdict(name, (f"{percent(attacked)} at {budget}, {percent(clean)} without an attack",))


def told(rates, budget):
    return [f"{attack:<10} {percent(rate)}" for attack, rate in rates.items()]


AUDIT = Audit(TabularAudit, "--original a.safetensors --unlearned b.safetensors --table moons", figures, conclude, told)
