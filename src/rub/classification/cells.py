"""The record fields that name one cell of a table; a plan declares them, a measuring stage fills them."""

from typing import Any

from rub.classification.metrics import METRICS_DECLARED

DIRECTIONS = {metric.name: metric.direction for metric in METRICS_DECLARED}
SPLITS = {
    "ta": "test",
    "ta_all": "test",
    "ra": "retain",
    "ua_test": "forget_test",
    "logit_auc": "test",
    "probe_accuracy": "forget_test",
}


def cell(
    method: str,
    seed: int,
    metric: str,
    split: str = "",
    *,
    attack: str = "none",
    budget: str = "none",
    mia_seed: int | None = None,
) -> dict[str, Any]:
    """Return the record fields that name one cell; the split is the metric's own unless given.

    Example:
        >>> cell("ft", 0, "ta")["split"], cell("ft", 0, "ua")["direction"]
        ('test', 'down')
    """
    return {
        "method": method,
        "unlearn_seed": seed,
        "mia_seed": mia_seed,
        "attack": attack,
        "budget": budget,
        "metric": metric,
        "split": split or SPLITS.get(metric, "forget"),
        "direction": DIRECTIONS[metric],
    }
