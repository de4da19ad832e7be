"""How the classification task is reported: its tables, and the prose of ``report.yaml``."""

from rub.reports.task_report import read_report
from rub.tasks.classification.metrics import METRICS
from rub.tasks.classification.tables import classification_tables, headline, leaders

REPORTING = read_report(
    "rub.tasks.classification:report.yaml", METRICS, tables=classification_tables, headline=headline, leaders=leaders
)
