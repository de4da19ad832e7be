"""How the text-to-image task is reported: its tables, and the prose of ``report.yaml``."""

from rub.reports.task_report import read_report
from rub.tasks.text_to_image.metrics import METRICS
from rub.tasks.text_to_image.tables import headline, leaders, text_to_image_tables

REPORTING = read_report(
    "rub.tasks.text_to_image:report.yaml", METRICS, tables=text_to_image_tables, headline=headline, leaders=leaders
)
