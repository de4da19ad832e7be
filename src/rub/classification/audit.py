"""Audit two checkpoints that RUB did not make, and say in plain words whether the knowledge can be brought back."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rub.classification.specs import ClassificationExperiment
from rub.classification.task import Graph
from rub.errors import RubError
from rub.pipeline.engines import run_inline
from rub.pipeline.plan import Plan, Stage
from rub.pipeline.progress import Display
from rub.pipeline.stages import Runtime
from rub.store.artifacts import Store, file_sha256
from rub.store.records import Record

VerdictName = Literal["recovered", "hidden", "no residual found at this budget", "cannot tell"]
MARGIN = 0.05  # a difference below five points is not called a recovery, however many samples stand behind it


@dataclass(frozen=True)
class Rate:
    """A proportion with its 95 % Wilson interval over samples."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Figures:
    """The numbers behind a verdict, at the largest budget of the protocol.

    Attributes:
        original: UA of the original model on clean forget images (control: it must know them).
        clean: UA of the unlearned model on clean forget images.
        attacked: UA of the unlearned model on the probes.
        converged: whether the search had stopped improving.
        steered: share of retain images that the same search pushes into a forgotten class (negative control).
        retrained: UA of the retrained model on its probes; None without one.
        bias_free: metric -> (original, unlearned, retrained or None): logit AUC and linear-probe recall.
    """

    original: Rate
    clean: Rate
    attacked: Rate
    converged: bool
    steered: Rate
    retrained: Rate | None
    bias_free: Mapping[str, tuple[float, float, float | None]]


@dataclass(frozen=True)
class Verdict:
    """One of four outcomes, with the sentences that say why."""

    name: VerdictName
    why: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What an audit gives: the verdict, its figures at the largest budget, all records, and failures."""

    verdict: Verdict
    figures: Figures | None
    budget: str
    records: tuple[Record, ...]
    failures: tuple[str, ...]


def judge(figures: Figures, budget: str) -> Verdict:
    """Return the verdict for these figures.

    Rules, in this order:

    1. The original must classify at least half of the forget images, else nothing can be said.
    2. *recovered*: UA on the probes exceeds the reference by `MARGIN`, and the intervals do not overlap. The reference
       is the retrained model under the same search, or, without one, the share of retain images that the search
       steers into a forgotten class.
    3. UA on the probes is high, but no higher than the steered share, and there is no retrained model: the search
       pushes anything there, so nothing can be said.
    4. *hidden*: a bias-free metric is closer to the original's value than to the retrained model's (without one:
       within 0.02 of the original's).
    5. A search that had not converged says nothing.
    6. Otherwise no residual was found at this budget.
    """
    known, reached = figures.original, figures.attacked
    if known.low < 0.5:
        return Verdict(
            "cannot tell", (f"the original model itself classifies only {_pct(known)} of the forget images",)
        )
    reference = figures.retrained or figures.steered
    whose = "the retrained model" if figures.retrained else "retain images steered into the forgotten class"
    facts = (
        f"the forgotten class is recognised on {_pct(figures.clean)} of clean images and on {_pct(reached)} of probes"
        f" at {budget}",
        f"the reference ({whose}) is at {_pct(reference)}",
    )
    if reached.low > reference.high and reached.value - reference.value >= MARGIN:
        return Verdict("recovered", (*facts, "changing the input alone brings the forgotten knowledge back"))
    if figures.retrained is None and reached.value >= 0.5:
        note = (
            "the search steers unrelated images into the class as often: a retrained model (--retrained) would decide"
        )
        return Verdict("cannot tell", (*facts, note))
    if kept := _still_there(figures.bias_free):
        note = "the input search does not bring it back, but the knowledge is still in the weights"
        return Verdict("hidden", (*facts, *kept, note))
    if not figures.converged:
        note = "the search was still improving when it stopped: run a protocol with more steps (rub-strict-1)"
        return Verdict("cannot tell", (*facts, note))
    missing = (
        () if figures.retrained else ("no retrained model was given, so residuals are judged without a reference",)
    )
    return Verdict("no residual found at this budget", (*facts, *missing))


def audit(
    *,
    original: Path,
    unlearned: Path,
    retrained: Path | None,
    model: Mapping[str, Any],
    data: str,
    size: int | None,
    forget_classes: tuple[int, ...],
    protocol: str,
    samples: int,
    store: Path | None,
    runtime: Runtime,
    display: Display,
    out: Path | None,
) -> Report:
    """Measure an unlearned checkpoint against its original and end in a verdict.

    Args:
        original: checkpoint before unlearning, in any format of `load_weights`.
        unlearned: checkpoint after unlearning, of the same architecture.
        retrained: checkpoint trained without the forget set, if there is one.
        model: arch, stem and width.
        data: a data set name, or the path of an image folder or ``.npz`` file.
        size: side in pixels for images of a folder.
        forget_classes: the forgotten classes, jointly.
        protocol: name of a classification protocol; its ``uma`` plan is run.
        samples: forget images to attack; half as many for the controls.
        store: folder of stages; the user's cache when None.
        runtime: from `rub.api.make_runtime`.
        display: shows progress.
        out: result folder to write, or None.

    Raises:
        RubError: a missing or wrong checkpoint, class or data set.
    """
    from rub.api import collect, default_store, write_result
    from rub.classification.task import TASK
    from rub.specs import Suite

    experiment = _experiment(model, data, size, forget_classes, protocol, samples)
    given = {"original": original, "unlearned": unlearned, "retrained": retrained}
    graph = AuditGraph(experiment, runtime.data_root, {name: path for name, path in given.items() if path is not None})
    stages = [stage for name in graph.weights for stage in graph.measurements(name, 0)]
    plan = Plan(tuple(stages), graph.common)
    with display:
        outcomes = run_inline(stages, {"classification": TASK}, Store(store or default_store()), runtime, display)
    result = collect("audit", [(experiment, plan)], outcomes)
    if out is not None:
        write_result(result, Suite(name="audit", summary="an audit", experiments=(experiment,)), out, "rub audit")
    budget = f"{experiment.protocol.attacks['uma'].budgets[-1]}/255"
    if result.failures:
        return Report(Verdict("cannot tell", result.failures), None, budget, result.records, result.failures)
    figures = figures_of(result.records, budget)
    return Report(judge(figures, budget), figures, budget, result.records, ())


class AuditGraph(Graph):
    """The graph of an audit: models come from checkpoints, everything behind them is the same as in a suite."""

    def __init__(
        self, experiment: ClassificationExperiment, data_root: Path | None, weights: Mapping[str, Path]
    ) -> None:
        """Hash the checkpoints, so that another file under the same name is another stage."""
        for name, path in weights.items():
            if not path.is_file():
                raise RubError(
                    f"--{name} {path}: no such file; give a checkpoint (.safetensors, .pt, .pth, .pth.tar, .th)"
                )
        self.weights = weights
        super().__init__(experiment, data_root)
        self.shadows = {}
        self.original = self.model("original", 0)

    def model(self, method: str, seed: int) -> Stage:
        """Return the stage that reads a row's checkpoint; the names are original, unlearned and retrained."""
        path = self.weights[method]
        spec = {"model": self.experiment.model.model_dump(), "sha256": file_sha256(path)}
        files = {"weights": path}
        return Stage("classification", "import", 1, f"read {method}", spec, {"data": self.data}, files=files, cost=1000)

    def reference(self, method: str, seed: int) -> tuple[str, int] | None:
        """Return the retrained checkpoint's row when there is one."""
        return ("retrained", 0) if "retrained" in self.weights else None


def figures_of(records: tuple[Record, ...], budget: str) -> Figures:
    """Return the figures behind the verdict from an audit's records."""

    def pick(method: str, metric: str, split: str, attack: str = "none") -> Record | None:
        at = budget if attack != "none" else "none"
        found = [
            record
            for record in records
            if (record.method, record.metric, record.split, record.attack, record.budget)
            == (method, metric, split, attack, at)
        ]
        return found[0] if found else None

    def rate(method: str, metric: str, split: str, attack: str = "none") -> Rate:
        record = pick(method, metric, split, attack)
        if record is None or record.value is None or record.ci_low is None or record.ci_high is None:
            raise RubError(
                f"audit: no value of {metric} for {method}; the protocol has to attack forget and retain images"
            )
        return Rate(record.value, record.ci_low, record.ci_high)

    attacked = pick("unlearned", "ua", "forget", "uma")
    has_retrained = pick("retrained", "ua", "forget", "uma") is not None
    bias_free: dict[str, tuple[float, float, float | None]] = {}
    for metric, split in (("logit_auc", "test"), ("probe_accuracy", "forget_test")):
        values = [pick(method, metric, split) for method in ("original", "unlearned", "retrained")]
        before, after, never = (None if record is None else record.value for record in values)
        if before is not None and after is not None:
            bias_free[metric] = (before, after, never)
    return Figures(
        original=rate("original", "ua", "forget"),
        clean=rate("unlearned", "ua", "forget"),
        attacked=rate("unlearned", "ua", "forget", "uma"),
        converged=attacked is not None and attacked.converged is True,
        steered=rate("unlearned", "ua", "retain", "uma"),
        retrained=rate("retrained", "ua", "forget", "uma") if has_retrained else None,
        bias_free=bias_free,
    )


def lines(report: Report) -> Iterator[str]:
    """Yield an audit's verdict and figures as text (rich markup)."""
    figures = report.figures
    if figures is not None:
        yield f"UA of the original model on clean forget images   {_pct(figures.original)}"
        yield f"UA of the unlearned model, clean                  {_pct(figures.clean)}"
        yield f"UA of the unlearned model, UMA at {report.budget:<8}        {_pct(figures.attacked)}"
        yield f"retain images steered into the class (control)    {_pct(figures.steered)}"
        if figures.retrained is not None:
            yield f"UA of the retrained model, UMA at {report.budget:<8}        {_pct(figures.retrained)}"
        for name, (before, after, never) in figures.bias_free.items():
            reference = "" if never is None else f", retrained {never:.3f}"
            yield f"{name:<15} original {before:.3f}, unlearned {after:.3f}{reference}"
    yield f"[b]Verdict: {report.verdict.name}[/b]"
    yield from (f"  - {sentence}" for sentence in report.verdict.why)


def _still_there(metrics: Mapping[str, tuple[float, float, float | None]]) -> tuple[str, ...]:
    found = []
    for name, (before, after, never) in metrics.items():
        threshold = before - 0.02 if never is None else (before + never) / 2
        informative = never is None or before - never >= MARGIN
        if informative and after >= threshold:
            reference = "" if never is None else f" (retrained: {never:.3f})"
            found.append(f"{name} is {after:.3f}, the original's is {before:.3f}{reference}")
    return tuple(found)


def _pct(rate: Rate) -> str:
    return f"{100 * rate.value:.1f} % ({100 * rate.low:.1f} to {100 * rate.high:.1f})"


def _experiment(
    model: Mapping[str, Any], data: str, size: int | None, classes: tuple[int, ...], protocol: str, samples: int
) -> ClassificationExperiment:
    from pydantic import ValidationError

    from rub.registry import first_error

    dataset: dict[str, Any] = {"name": data, "size": size, "validation": 0.0}
    path = Path(data)
    if path.is_dir() or path.suffix == ".npz":
        dataset |= {"name": "npz" if path.suffix == ".npz" else "folder", "path": data}
    try:
        return ClassificationExperiment.model_validate(
            {
                "task": "classification",
                "dataset": dataset,
                "model": dict(model),
                "forget": {"classes": classes},
                "protocol": protocol,
                "evaluation": {
                    "attack_samples": samples,
                    "control_samples": max(samples // 2, 5),
                    "retain_samples": 5000,
                },
            }
        )
    except ValidationError as error:
        raise RubError(first_error(error, "audit", ClassificationExperiment.model_fields)) from None
