"""How any task declares its metrics, names the cells of its tables, and collects the rows that fill them."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rub.errors import RubError
from rub.metrics.statistics import PerSample, Run, estimate, wilson
from rub.registry import METRICS, Entry, task_of
from rub.store.artifacts import Artifact
from rub.store.records import number

if TYPE_CHECKING:
    from rub.metrics.membership import Shadows
    from rub.pipeline.runtime import Runtime

Direction = Literal["up", "down", "reference"]


def direction_of(direction: Direction, scenario: str) -> Direction:
    """What is better in a scenario: of single samples, less than a model keeps that never saw them is no better.

    Example:
        >>> direction_of("down", ""), direction_of("down", "samples"), direction_of("up", "samples")
        ('down', 'reference', 'up')
    """
    return "reference" if scenario == "samples" and direction == "down" else direction


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a model makes of one evaluation set: arrays of N samples, in the order of `ids`.

    Attributes:
        ids: int64 (N,), sample or prompt ids.
        labels: int64 (N,), classes; of prompts, what the judge calls the concept that each names.
        logits: float32 (N, C), the classifier's; where a model makes images, what the task's judge says of them.
        features: float32 (N, D), penultimate features of the same network.
        images: uint8 (N, channels, height, width), what a model made; empty for a classifier.
        texts: the prompts that images were drawn for.
        scores: further numbers of the same pass, or of the search that made the inputs -> an array (N, ...).
        num_classes: C of the data set.
        forget_classes: the classes to be forgotten; empty where single samples are.
        others: what `Metric.needs` asks for -> the outputs there.
        shadows: shadow models, where `Metric.shadows` asks for them.
        spec: what the measuring stage was asked: its seed, and the protocol's choices.
        facts: how they were made, such as ``extractor``, or of an attack ``converged``.
        head: weight (C, D) and bias (C,) of the layer that makes logits of features; None where there is none.
        runtime: device, folders and caches, for a metric that runs a network of its own.
    """

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    features: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    images: NDArray[np.uint8] = field(default_factory=lambda: np.empty((0, 0, 0, 0), np.uint8))
    texts: tuple[str, ...] = ()
    scores: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    num_classes: int = 0
    forget_classes: tuple[int, ...] = ()
    others: "Mapping[str, Outputs]" = field(default_factory=dict)
    shadows: "Shadows | None" = None
    spec: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    head: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
    runtime: "Runtime | None" = None

    def __getitem__(self, name: str) -> "Outputs":
        """Outputs that the metric needs beside its own, such as ``outputs["original"]``."""
        return self.others[name]

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: NDArray[np.bool_]) -> "Outputs":
        """Outputs of these samples alone, bool (N,)."""
        arrays = {name: getattr(self, name) for name in ("ids", "labels", "logits", "features", "images")}
        chosen = {name: values[rows] for name, values in arrays.items() if len(values)}
        texts = tuple(text for text, row in zip(self.texts, rows, strict=True) if row) if self.texts else ()
        scores = {name: values[rows] for name, values in self.scores.items()}
        return replace(self, **chosen, texts=texts, scores=scores)


def joined(parts: Sequence[Outputs]) -> Outputs:
    """Outputs of one model for several groups of samples, one after the other."""
    names = ("ids", "labels", "logits", "features")
    arrays: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return replace(parts[0], **arrays)


class Counted(NamedTuple):
    """A number, and how many samples stand behind it where they are not those of the set, with its 95 % interval."""

    value: float
    n: int
    low: float | None = None
    high: float | None = None


Found = ArrayLike | Counted | None
"""What a metric's function gives: a number; or bool (N,), of which the share is meant; or float (N,), a value of each
sample, of which the mean is; or None where this machine, or this data set, does not have what it takes."""


@dataclass(frozen=True)
class Metric:
    """Everything that is said of a metric, and the function that computes it.

    Attributes:
        name: the id used in records.
        title: what tables call it.
        meaning: one plain line.
        function: outputs on `split` -> the value; one of a module, so that workers can be sent it.
        direction: ``"up"`` higher is better, ``"down"`` lower is better, ``"reference"`` closest to the retrained model
            is best.
        unit: what the number counts; ``%``: a share, stored as 0..1 and shown in percent.
        decimals: digits after the point where it is shown.
        split: the evaluation set that it is measured on, unless a row says otherwise.
        low: smallest value it can take.
        high: largest value it can take.
        needs: other evaluation sets of the same model, or ``original``, the original model on `split`.
        shadows: how many shadow models it takes, at least.
        seeded: whether it has a value for each membership seed, with the shadow models of that seed.
        classwise: whether it takes whole classes that are forgotten.
        samplewise: whether it takes single samples that are forgotten.
        made: whether it takes models that RUB made, and not checkpoints.
        stage: kind of the stage that measures it without an attack; "" where none does.
        knowledge: ``"rises"`` or ``"falls"`` with what is left of the forgotten knowledge, which puts it on the dose
            scale; "" of what is no measure of that.
        attacked: whether it is measured on what every attack of the protocol found for `split`.
        optional: whether it may be left out, so that no row of it is missed.
        share: whether its function gives bool (N,): the value is a whole number of N samples, the interval Wilson's.
        facts: outputs -> further record fields, such as ``extractor`` and ``setting``: what the value depends on.
    """

    name: str
    title: str
    meaning: str
    function: Callable[[Outputs], Found]
    direction: Direction
    unit: str = "%"
    decimals: int = 1
    split: str = "forget"
    low: float = 0.0
    high: float = 1.0
    needs: tuple[str, ...] = ()
    shadows: int = 0
    seeded: bool = False
    classwise: bool = False
    samplewise: bool = False
    made: bool = False
    stage: str = "measure"
    knowledge: Literal["rises", "falls", ""] = ""
    attacked: bool = False
    optional: bool = False
    share: bool = False
    facts: Callable[[Outputs], Mapping[str, Any]] | None = None

    @property
    def percent(self) -> bool:
        """Whether it is a share that is shown in percent."""
        return self.unit == "%"

    @property
    def stored_unit(self) -> str:
        """What the stored number counts.

        Example:
            >>> Metric("ua", "UA", "accuracy on forgotten images", len, "down").stored_unit
            'fraction'
        """
        return "fraction" if self.percent else self.unit

    def asked(self, outputs: Callable[[str], Outputs], split: str = "") -> Outputs:
        """Outputs that its function takes, on its own set or another, with the others that it needs."""
        return replace(outputs(split or self.split), others={needed: outputs(needed) for needed in self.needs})


def metric(
    name: str,
    *,
    task: str,
    title: str = "",
    unit: str = "%",
    decimals: int = 1,
    direction: Direction = "reference",
    split: str = "forget",
    low: float | None = None,
    high: float | None = None,
    needs: Iterable[str] = (),
    shadows: int = 0,
    seeded: bool = False,
    attacked: bool = False,
    knowledge: Literal["rises", "falls", ""] = "",
) -> Callable[[Callable[[Outputs], Found]], Metric]:
    """Register a metric: ``def f(outputs: Outputs) -> float``, or bool (N,) for a share of samples.

    The first line of its docstring is its meaning. It is measured for every row of an experiment, each by a stage of
    its own, where a suite names it in ``metrics`` or a plug-in brings it; what shares its forward passes is not
    measured again.

    Args:
        name: the id used in records.
        task: whose outputs it reads.
        title: what tables call it; its name when left out.
        unit: ``%`` for a share in 0..1, else what the number counts.
        decimals: digits after the point.
        direction: as `Metric.direction`.
        split: the evaluation set.
        low: smallest value; 0 for a share, else none.
        high: largest value; 1 for a share, else none.
        needs: as `Metric.needs`.
        shadows: as `Metric.shadows`.
        seeded: as `Metric.seeded`.
        attacked: as `Metric.attacked`.
        knowledge: as `Metric.knowledge`.

    Example:
        >>> from rub.registry import scoped
        >>> with scoped():
        ...     @metric("confidence", task="classification")
        ...     def confidence(outputs):
        ...         '''Largest softmax probability, mean over forgotten images.'''
        ...         shares = np.exp(outputs.logits - outputs.logits.max(axis=1, keepdims=True))
        ...         return (shares.max(axis=1) / shares.sum(axis=1)).mean()
        >>> confidence.title, confidence.meaning
        ('confidence', 'Largest softmax probability, mean over forgotten images.')
    """
    ends = (0.0, 1.0) if unit == "%" else (-np.inf, np.inf)

    def register_metric(function: Callable[[Outputs], Found]) -> Metric:
        meaning = (function.__doc__ or "").strip().partition("\n")[0]
        made = Metric(
            name, title or name, meaning, function, direction, unit, decimals, split,
            ends[0] if low is None else low, ends[1] if high is None else high,
            needs=tuple(needs), shadows=shadows, seeded=seeded, attacked=attacked, knowledge=knowledge,
        )  # fmt: skip
        METRICS.add(Entry(name, task, meaning, made, function.__module__))
        return made

    return register_metric


def metrics_of(task: str) -> tuple[Metric, ...]:
    """Every metric of a task: those of its own stages in the order of its tables, then those of plug-ins.

    Raises:
        RubError: a plug-in gave one the name of another.

    Example:
        >>> metrics_of("classification")[0].title
        'TA'
    """
    shipped: tuple[Metric, ...] = task_of(task).metrics
    own: list[Metric] = [entry.load() for entry in METRICS.entries(task)]
    for taken in {item.name for item in shipped} & {item.name for item in own}:
        raise RubError(f"metric '{taken}' ({task}) is already defined by rub: choose another name")
    return *shipped, *own


def measure_metric(
    task: str,
    spec: Mapping[str, Any],
    outputs: Callable[[str], Outputs],
    facts: Mapping[str, Any],
    out: Path,
    shadows: "Iterable[tuple[dict[str, Any], Shadows | None]]" = (({}, None),),
) -> None:
    """Compute a metric of a plug-in for the row that a spec names, and write its ``rows.json`` into a folder.

    Args:
        task: the metric's.
        spec: of the stage: metric, method, seed, attack, budget.
        outputs: name of an evaluation set, or ``original`` -> outputs.
        facts: record fields of the row.
        out: the folder.
        shadows: record fields of each value, such as its membership seed, and the shadow models that it is to have.

    Raises:
        ValueError: its function gives neither a number nor bool (N,), or one outside its range.
    """
    metric: Metric = METRICS.get(spec["metric"], task).load()
    own = metric.asked(outputs)
    measured = Measured(Cells([metric]), spec["method"], spec["seed"], facts)
    for where, models in shadows:
        measured.compute(metric, replace(own, shadows=models), attack=spec["attack"], budget=spec["budget"], **where)
    for found in [row["value"] for row in measured.rows] or [None]:
        if found is None or not metric.low - 1e-6 <= found <= metric.high + 1e-6:
            raise ValueError(
                f"metric '{metric.name}' is {found} for {spec['method']}: should lie from {metric.low} to {metric.high}"
            )
    measured.save(out)


class Cells:
    """The record fields that name one cell; a graph declares them, a measuring stage fills them.

    Example:
        >>> cell = Cells([Metric("ua", "UA", "accuracy on forgotten images", len, "down")])
        >>> cell("ft", 0, "ua")["split"], cell("ft", 0, "ua")["direction"]
        ('forget', 'down')
    """

    def __init__(self, declared: Iterable[Metric]) -> None:
        self._metrics = {metric.name: metric for metric in declared}

    def __call__(
        self,
        method: str,
        seed: int | None,
        metric: str,
        split: str = "",
        *,
        attack: str = "none",
        budget: str = "none",
        mia_seed: int | None = None,
    ) -> dict[str, Any]:
        """Fields of a cell; the split is the metric's own unless given."""
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
    """The rows of one measuring stage, all of one model; `facts` are record fields that they share."""

    def __init__(
        self, cell: Callable[..., dict[str, Any]], method: str, seed: int | None, facts: Mapping[str, Any]
    ) -> None:
        self.cell, self.method, self.seed, self.facts = cell, method, seed, facts
        self.rows: list[dict[str, Any]] = []
        self.values: list[dict[str, Any]] = []

    def add(self, metric: str, value: float, n: int, **where: Any) -> None:
        """Add a row with a value and the number of samples behind it."""
        row = self.cell(self.method, self.seed, metric, **where)
        self.rows.append({**row, **self.facts, "value": number(value), "n": n})

    def share(self, metric: str, hits: NDArray[np.bool_], **where: Any) -> None:
        """Add a proportion with its Wilson interval over samples."""
        low, high = wilson(int(hits.sum()), len(hits))
        self.add(metric, float(hits.mean()), len(hits), **where)
        self.rows[-1] |= {"ci_low": low, "ci_high": high}

    def mean(self, metric: str, values: NDArray[np.floating], ids: NDArray[np.int64], **where: Any) -> None:
        """Add the mean of a value per sample, float (N,), with its t interval over samples, and keep the values."""
        self.add(metric, float(values.mean()), len(values), **where)
        if len(values) > 1:
            own = PerSample(ids, values.astype(np.float64))
            interval = estimate([Run(float(own.values.mean()), n=len(ids), samples=own)])
            self.rows[-1] |= {"ci_low": interval.low, "ci_high": interval.high}
        names = ("method", "unlearn_seed", "attack", "budget", "metric", "split")
        cell = {name: self.rows[-1][name] for name in names}
        for sample, value in zip(ids.tolist(), values.tolist(), strict=True):
            self.values.append({**cell, "sample_id": sample, "value": round(value, 4)})

    def compute(self, metric: Metric, outputs: Outputs, **where: Any) -> None:
        """Add what a metric's function gives: a number, a share of samples, or the mean of their values; or nothing.

        Raises:
            ValueError: it gives something else.
        """
        found = metric.function(outputs)
        if found is None:
            return
        counted = found if isinstance(found, Counted) else None
        value = np.asarray(counted.value if counted else found)
        if value.dtype == np.bool_ and value.ndim == 1 and len(value):
            self.share(metric.name, value.astype(np.bool_), **where)
        elif value.shape == (len(outputs),) and len(value) and np.issubdtype(value.dtype, np.floating):
            self.mean(metric.name, value, outputs.ids, **where)
        elif value.ndim == 0 and np.issubdtype(value.dtype, np.number):
            self.add(metric.name, float(value), counted.n if counted else len(outputs), **where)
            if counted and counted.low is not None:
                self.rows[-1] |= {"ci_low": counted.low, "ci_high": counted.high}
        else:
            told = f"{value.dtype} {value.shape}"
            raise ValueError(f"metric '{metric.name}' gave {told}: should be a number, bool (N,) or float (N,)")
        if metric.facts is not None:
            self.rows[-1] |= metric.facts(outputs)

    def save(self, out: Path, **further: Any) -> None:
        """Write ``rows.json``, ``values.json`` if samples have some, and further lists of rows under their names."""
        values = {"values": self.values} if self.values else {}
        for name, rows in {"rows": self.rows, **values, **further}.items():
            (out / f"{name}.json").write_text(json.dumps(rows, allow_nan=False), encoding="utf-8")


def row_of(spec: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Fields that the per-sample rows and the curve of an attack share."""
    budget = spec["budget"] if "budget" in spec else str(spec["cap"])
    names = {"method": spec["method"], "unlearn_seed": spec["seed"], "attack": spec["attack"]}
    return names | {"budget": budget, "split": split}


def origin_of(weights_sha256: str, made: Artifact) -> dict[str, Any]:
    """Which weights a row is about, and where and how long what it measures was made."""
    facts = {"weights_sha256": weights_sha256}
    return facts | {name: made.manifest[name] for name in ("seconds", "device")}
