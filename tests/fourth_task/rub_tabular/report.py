"""How the task is reported, and audits of networks that others made."""

from pathlib import Path

from rub.audits.base import Audit, AuditRequest, Verdict, existing, percent, validated
from rub.pipeline.graph_builder import FromFiles
from rub.reports.grouping import budgets_of, grouped, main_attack
from rub.reports.tables import Columns, Source
from rub.reports.task_report import Axis, TaskReport

from .graph import METRICS, TabularExperiment


def columns(records, main=""):
    main = main or main_attack(records)
    made, budgets, names = Columns(METRICS, main), budgets_of(records, main), ("recovered", "residual_knowledge")
    return [made("", "ta"), made("none", "recovered"), *(made(at, name, at) for at in budgets for name in names)]


def tables(records, paper, mains):
    parts, told = grouped(records, "tabular").items(), (lambda *_: (), "more may come back", "Table")
    sources = [Source(group, own, *told, main_attack(own, mains)) for group, own in parts]
    return [source.table("tabular", "Table", columns(source.records, source.main)) for source in sources]


WORDS = {"recovered": "Forgotten rows that get the original's answer, changed by at most the budget."}
CAPTIONS = {"robustness": "Rows recovered against the budget.", "utility": "Accuracy against robustness."}
ROBUSTNESS, UTILITY = Axis("recovered", "forget", "recovered"), Axis("ta", "test", "TA")
REPORT = TaskReport(
    tables, lambda budgets: list(budgets[-2:]), columns, "rows of a table", "Table", "tabular", ROBUSTNESS, UTILITY,
    METRICS, WORDS, CAPTIONS, success="share of forgotten rows recovered", forgotten="forgotten rows",
)  # fmt: skip


class TabularAudit(AuditRequest):
    """Measure an unlearned network against its original: recovered, or no residual found."""

    task = "tabular"
    original: Path
    unlearned: Path
    table: str

    def experiment(self):
        return validated(TabularExperiment, {"task": "tabular", "table": self.table, "protocol": "tabular-1"})

    def models(self):
        return FromFiles(existing({"original": self.original, "unlearned": self.unlearned}, "a .safetensors file"))


def conclude(rates, budget):
    (clean, attacked), none = rates.values(), "no residual found at this budget"
    why = f"{percent(attacked)} at {budget}, {percent(clean)} without an attack"
    return Verdict("recovered" if attacked.exceeds(clean) else none, (why,))


AUDIT = Audit(
    TabularAudit, "--original a.safetensors --unlearned b.safetensors --table moons",
    lambda rows: {name: rows.rate("unlearned", "recovered", "forget", name) for name in ("none", rows.attack)},
    conclude, lambda rates, budget: [f"{attack:<10} {percent(rate)}" for attack, rate in rates.items()],
)  # fmt: skip
