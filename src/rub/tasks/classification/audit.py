"""Audit two checkpoints that RUB did not make, and say in plain words whether the knowledge can be brought back."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rub.audits.base import Report, Rows, broken, conclude, dataset_of, existing, measure, percent
from rub.errors import RubError
from rub.pipeline.graph_builder import FromFiles
from rub.pipeline.progress import Display
from rub.pipeline.runtime import Runtime
from rub.store.records import Record
from rub.tasks.classification.graph import ClassificationGraph
from rub.tasks.classification.spec import ClassificationExperiment
from rub.tasks.classification.task import TASK
from rub.tasks.classification.verdict import Figures, judge


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
    command: str = "",
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
        command: what the user typed, for "how to reproduce".

    Raises:
        RubError: a missing or wrong checkpoint, class or data set.
    """
    experiment = _experiment(model, data, size, forget_classes, protocol, samples)
    given = {"original": original, "unlearned": unlearned, "retrained": retrained}
    kinds = "a checkpoint (.safetensors, .pt, .pth, .pth.tar, .th)"
    graph = ClassificationGraph(experiment, runtime.data_root, FromFiles(existing(given, kinds))).graph()
    result = measure(
        experiment, graph, TASK, store=store, runtime=runtime, display=display, out=out,
        command=command,
    )  # fmt: skip
    budgets = [f"{level}/255" for level in experiment.protocol.attacks["uma"].budgets if level > 0]
    if result.failures:
        return broken(result, budgets[-1])
    return conclude(result.records, budgets, figures_of, judge, told)


def figures_of(records: Sequence[Record], budget: str) -> Figures:
    """Return the figures behind the verdict from an audit's records."""
    rows = Rows(records, budget)
    attacked = rows.find("unlearned", "ua", "forget", "uma")
    has_retrained = rows.find("retrained", "ua", "forget", "uma") is not None
    bias_free: dict[str, tuple[float, float, float | None]] = {}
    for metric, split in (("logit_auc", "test"), ("probe_accuracy", "forget_test")):
        values = [rows.find(method, metric, split) for method in ("original", "unlearned", "retrained")]
        before, after, never = (None if record is None else record.value for record in values)
        if before is not None and after is not None:
            bias_free[metric] = (before, after, never)
    return Figures(
        original=rows.rate("original", "ua", "forget"),
        clean=rows.rate("unlearned", "ua", "forget"),
        attacked=rows.rate("unlearned", "ua", "forget", "uma"),
        converged=attacked is not None and attacked.converged is True,
        steered=rows.rate("unlearned", "ua", "retain", "uma"),
        retrained=rows.rate("retrained", "ua", "forget", "uma") if has_retrained else None,
        bias_free=bias_free,
    )


def told(figures: Figures, budget: str) -> Iterator[str]:
    """Yield the figures as lines of text."""
    yield f"UA of the original model on clean forget images   {percent(figures.original)}"
    yield f"UA of the unlearned model, clean                  {percent(figures.clean)}"
    yield f"UA of the unlearned model, UMA at {budget:<8}        {percent(figures.attacked)}"
    yield f"retain images steered into the class (control)    {percent(figures.steered)}"
    if figures.retrained is not None:
        yield f"UA of the retrained model, UMA at {budget:<8}        {percent(figures.retrained)}"
    for name, (before, after, never) in figures.bias_free.items():
        reference = "" if never is None else f", retrained {never:.3f}"
        yield f"{name:<15} original {before:.3f}, unlearned {after:.3f}{reference}"


def _experiment(
    model: Mapping[str, Any], data: str, size: int | None, classes: tuple[int, ...], protocol: str, samples: int
) -> ClassificationExperiment:
    from pydantic import ValidationError

    from rub.config.hyperparameters import first_error

    try:
        return ClassificationExperiment.model_validate(
            {
                "task": "classification",
                "dataset": dataset_of(data, size),
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
