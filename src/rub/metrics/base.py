"""How any task declares its metrics, names the cells of its tables, and collects the rows that fill them."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rub.metrics.statistics import wilson
from rub.store.records import number


@dataclass(frozen=True)
class Metric:
    """The declaration of a metric; tables and sort orders read directions from here.

    Attributes:
        name: the id used in records.
        direction: ``"up"`` higher is better, ``"down"`` lower is better, ``"reference"`` closest to the retrained model
            is best.
        unit: what the number counts.
        low: smallest value it can take.
        high: largest value it can take.
        summary: its meaning in one plain line.
        split: the images it is measured on, unless a row says otherwise.
    """

    name: str
    direction: Literal["up", "down", "reference"]
    unit: str
    low: float
    high: float
    summary: str
    split: str = "forget"


class Cells:
    """Gives the record fields that name one cell; a plan declares them, a measuring stage fills them.

    Example:
        >>> cell = Cells([Metric("ua", "down", "fraction", 0, 1, "accuracy on forgotten images")])
        >>> cell("ft", 0, "ua")["split"], cell("ft", 0, "ua")["direction"]
        ('forget', 'down')
    """

    def __init__(self, declared: Iterable[Metric]) -> None:
        """Know the metrics of one task."""
        self._metrics = {metric.name: metric for metric in declared}

    def __call__(
        self,
        method: str,
        seed: int,
        metric: str,
        split: str = "",
        *,
        attack: str = "none",
        budget: str = "none",
        mia_seed: int | None = None,
    ) -> dict[str, Any]:
        """Return the fields of a cell; the split is the metric's own unless given."""
        return {
            "method": method,
            "unlearn_seed": seed,
            "mia_seed": mia_seed,
            "attack": attack,
            "budget": budget,
            "metric": metric,
            "split": split or self._metrics[metric].split,
            "direction": self._metrics[metric].direction,
        }


class Measured:
    """Collects the rows of one measuring stage, all of one model."""

    def __init__(self, cell: Callable[..., dict[str, Any]], method: str, seed: int, facts: Mapping[str, Any]) -> None:
        """`cell` names the rows; `facts` are record fields shared by the rows, such as ``weights_sha256``."""
        self.cell, self.method, self.seed, self.facts = cell, method, seed, facts
        self.rows: list[dict[str, Any]] = []

    def add(self, metric: str, value: float, n: int, **where: Any) -> None:
        """Add a row with a value and the number of samples behind it."""
        row = self.cell(self.method, self.seed, metric, **where)
        self.rows.append({**row, **self.facts, "value": number(value), "n": n})

    def share(self, metric: str, hits: NDArray[np.bool_], **where: Any) -> None:
        """Add a proportion with its Wilson interval over samples."""
        low, high = wilson(int(hits.sum()), len(hits))
        self.add(metric, float(hits.mean()), len(hits), **where)
        self.rows[-1] |= {"ci_low": low, "ci_high": high}

    def save(self, out: Path) -> None:
        """Write ``rows.json``."""
        (out / "rows.json").write_text(json.dumps(self.rows, allow_nan=False), encoding="utf-8")
