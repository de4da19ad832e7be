"""How the image-to-image task is reported: its tables, and the prose of ``report.yaml``."""

from rub.reports.task_report import read_report
from rub.tasks.inpainting.metrics import METRICS
from rub.tasks.inpainting.tables import headline, inpainting_tables, leaders

REPORTING = read_report(
    "rub.tasks.inpainting:report.yaml", METRICS, tables=inpainting_tables, headline=headline, leaders=leaders
)
