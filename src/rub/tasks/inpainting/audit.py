"""Audit two autoencoders that RUB did not make, and say in plain words whether the completions can be brought back."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rub.audits.base import Report, Rows, broken, conclude, dataset_of, existing, measure, percent
from rub.errors import RubError
from rub.pipeline.graph_builder import FromFiles
from rub.pipeline.progress import Display
from rub.pipeline.runtime import Runtime
from rub.store.records import Record
from rub.tasks.inpainting.graph import InpaintingGraph, named
from rub.tasks.inpainting.spec import InpaintingExperiment
from rub.tasks.inpainting.task import TASK
from rub.tasks.inpainting.verdict import Figures, judge


def audit(
    *,
    original: Path,
    unlearned: Path,
    retrained: Path | None,
    model: Mapping[str, Any],
    sizes: Mapping[str, Any],
    data: str,
    size: int | None,
    forget_classes: tuple[int, ...],
    protocol: str,
    samples: int,
    judge_epochs: int,
    store: Path | None,
    runtime: Runtime,
    display: Display,
    out: Path | None,
    command: str = "",
) -> Report:
    """Measure an unlearned autoencoder against its original and end in a verdict.

    Args:
        original: checkpoint before unlearning, in any format of `load_mae`.
        unlearned: checkpoint after unlearning, of the same sizes.
        retrained: checkpoint trained without the forget set, if there is one.
        model: arch (or ``foreign``) and mask_ratio.
        sizes: heads, decoder_heads, mean and std, where the files do not tell.
        data: a data set name, or the path of an image folder or ``.npz`` file.
        size: side in pixels for images of a folder and of digits.
        forget_classes: the forgotten classes, jointly.
        protocol: name of a protocol of this task; its ``uma`` plan is run.
        samples: images of F, and of R; half as many are steered.
        judge_epochs: passes over the data to train the classifier that FID and IS look through.
        store: folder of stages; the user's cache when None.
        runtime: from `rub.api.make_runtime`.
        display: shows progress.
        out: result folder to write, or None.
        command: what the user typed, for "how to reproduce".

    Raises:
        RubError: a missing or wrong checkpoint, class or data set.
    """
    given = existing(
        {"original": original, "unlearned": unlearned, "retrained": retrained},
        "a checkpoint (.safetensors, .pth) or a transformers folder",
        folders=True,
    )
    experiment = _experiment(model, data, size, forget_classes, protocol, samples, judge_epochs)
    graph = InpaintingGraph(experiment, runtime.data_root, FromFiles(given, sizes)).graph()
    result = measure(
        experiment, graph, TASK, store=store, runtime=runtime, display=display, out=out,
        command=command,
    )  # fmt: skip
    budgets = [named(budget) for budget in experiment.protocol.attacks["uma"].budgets]
    if result.failures:
        return broken(result, budgets[-1])
    return conclude(result.records, budgets, figures_of, judge, told)


def figures_of(records: Sequence[Record], budget: str) -> Figures:
    """Return the figures behind the verdict from an audit's records."""
    rows = Rows(records, budget)
    before, after = (rows.find(method, "mse_input", "forget") for method in ("original", "unlearned"))
    attacked = rows.find("unlearned", "recovered", "forget", "uma")
    has_retrained = rows.find("retrained", "recovered", "forget", "uma") is not None
    if before is None or after is None or before.value is None or after.value is None:
        raise RubError("audit: the clean models were not measured")
    return Figures(
        original=before.value,
        unlearned=after.value,
        clean=rows.rate("unlearned", "recovered", "forget"),
        attacked=rows.rate("unlearned", "recovered", "forget", "uma"),
        converged=attacked is not None and attacked.converged is True,
        steered=rows.rate("unlearned", "recovered", "steered", "uma"),
        retrained=rows.rate("retrained", "recovered", "forget", "uma") if has_retrained else None,
    )


def told(figures: Figures, budget: str) -> Iterator[str]:
    """Yield the figures as lines of text."""
    yield f"error to the true forget images: original {figures.original:.4f}, unlearned {figures.unlearned:.4f}"
    yield f"completed as the original did, clean              {percent(figures.clean)}"
    yield f"completed as the original did, UMA at {budget:<9}   {percent(figures.attacked)}"
    yield f"steered to unrelated images (control)             {percent(figures.steered)}"
    if figures.retrained is not None:
        yield f"of the retrained model, UMA at {budget:<9}          {percent(figures.retrained)}"


def _experiment(
    model: Mapping[str, Any],
    data: str,
    size: int | None,
    classes: tuple[int, ...],
    protocol: str,
    samples: int,
    judge_epochs: int,
) -> InpaintingExperiment:
    from pydantic import ValidationError

    from rub.config.hyperparameters import first_error

    try:
        return InpaintingExperiment.model_validate(
            {
                "task": "inpainting",
                "dataset": dataset_of(data, size),
                "model": {**model, "weights": "given"},
                "judge": {"stem": "half", "width": 16, "training": {"epochs": judge_epochs, "schedule": "onecycle"}},
                "forget": {"classes": classes},
                "retrains": 0,
                "protocol": protocol,
                "evaluation": {"samples": samples, "steered_samples": max(samples // 2, 5)},
            }
        )
    except ValidationError as error:
        raise RubError(first_error(error, "audit", InpaintingExperiment.model_fields)) from None
