"""Audit a diffusion model that someone else unlearned: can the concept be drawn again? In plain words."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rub.audits.base import Rate, Report, Rows, broken, conclude, measure, percent
from rub.config.suite import protocol_of
from rub.errors import RubError
from rub.pipeline.graph_builder import FromFiles
from rub.pipeline.progress import Display
from rub.pipeline.runtime import Runtime
from rub.store.records import Record
from rub.tasks.text_to_image.graph import TextToImageGraph
from rub.tasks.text_to_image.spec import TextToImageExperiment, TextToImageProtocol
from rub.tasks.text_to_image.task import TASK
from rub.tasks.text_to_image.verdict import Figures, judge

CONTROL_ATTACKS = ("random-prefix", "seed-search")


def audit(
    *,
    original: str,
    unlearned: Path,
    retrained: Path | None,
    concept: str,
    prompt: str | None,
    prompts: str | None,
    count: int | None,
    judge_name: str,
    judge_weights: str | None,
    judged_as: str | None,
    retain: tuple[str, ...],
    protocol: str,
    cap: int | None,
    store: Path | None,
    runtime: Runtime,
    display: Display,
    out: Path | None,
    command: str = "",
) -> Report:
    """Measure an unlearned diffusion model against its original and end in a verdict.

    Args:
        original: the model before unlearning: a diffusers folder, a file of RUB's, or a hub id.
        unlearned: a published checkpoint: a UNet or part of one, a text encoder, an adapter, or a whole folder.
        retrained: a model of the same sizes that never saw the concept, if there is one.
        concept: what was to be forgotten, such as ``church``.
        prompt: what it is called in a prompt; its name when None.
        prompts: a CSV file or folder in UnlearnDiffAtk's columns; the shipped prompts when None.
        count: the first so many prompts; all when None.
        judge_name: a name of `rub list judges` that needs no training.
        judge_weights: a model folder or hub id for it.
        judged_as: what the judge calls the concept, where it is not known.
        retain: names of other concepts, for what is left of the model.
        protocol: name of a protocol of this task.
        cap: attack steps; the protocol's own when None.
        store: folder of stages; the user's cache when None.
        runtime: from `rub.api.make_runtime`.
        display: shows progress.
        out: result folder to write, or None.
        command: what the user typed, for "how to reproduce".

    Raises:
        RubError: a missing or wrong checkpoint, prompt file or judge.
    """
    for name, path in (("unlearned", unlearned), ("retrained", retrained)):
        if path is not None and not path.exists():
            raise RubError(f"--{name} {path}: no such file or folder; give a .pt or .safetensors file, or a folder")
    given = {"unlearned": unlearned} | ({} if retrained is None else {"retrained": retrained})
    experiment = _experiment(
        model={"arch": "stable-diffusion", "weights": original},
        concept={"name": concept, "prompt": prompt, "prompts": prompts, "judged_as": _index(judged_as)},
        judge={"name": judge_name, "weights": judge_weights},
        retain=retain,
        protocol=protocol,
        cap=cap,
        count=count,
    )
    graph = TextToImageGraph(experiment, runtime.data_root, FromFiles(given)).graph()
    result = measure(experiment, graph, TASK, store=store, runtime=runtime, display=display, out=out, command=command)
    caps = sorted({str(plan.cap) for plan in experiment.protocol.attacks.values()}, key=int)
    if result.failures:
        return broken(result, caps[-1])
    return conclude(result.records, caps[-1:], figures_of, judge, told)


def figures_of(records: Sequence[Record], budget: str) -> Figures:
    """Return the figures behind the verdict from an audit's records."""
    rows = Rows(records, budget)
    attacks = [name for name in ("uma", "unlearndiffatk") if rows.find("unlearned", "asr_post", "forget", name)]
    if not attacks:
        raise RubError("audit: the protocol has neither uma nor unlearndiffatk")
    best = max(attacks, key=lambda name: rows.rate("unlearned", "asr_post", "forget", name).value)
    row = rows.find("unlearned", "asr_post", "forget", best)
    controls = [
        rows.rate("unlearned", "asr_post", "forget", name)
        for name in CONTROL_ATTACKS
        if rows.find("unlearned", "asr_post", "forget", name) is not None
    ]
    has_retrained = rows.find("retrained", "asr_post", "forget", best) is not None
    return Figures(
        original=rows.rate("original", "asr_pre", "forget"),
        clean=rows.rate("unlearned", "asr_pre", "forget"),
        attacked=rows.rate("unlearned", "asr_post", "forget", best),
        search=max(controls, key=_value) if controls else None,
        settled=row is not None and row.converged is True,
        retrained=rows.rate("retrained", "asr_post", "forget", best) if has_retrained else None,
    )


def told(figures: Figures, budget: str) -> Iterator[str]:
    """Yield the figures as lines of text."""
    yield f"draws the concept: original, clean                {percent(figures.original)}"
    yield f"draws the concept: unlearned, clean               {percent(figures.clean)}"
    yield f"draws the concept: unlearned, {budget:>4} attack steps   {percent(figures.attacked)}"
    if figures.search is not None:
        yield f"by random tokens or other seeds (control)         {percent(figures.search)}"
    if figures.retrained is not None:
        yield f"draws the concept: retrained, same attack         {percent(figures.retrained)}"


def _value(rate: Rate) -> float:
    return rate.value


def _index(text: str | None) -> int | str | None:
    return int(text) if text is not None and text.isdecimal() else text


def _experiment(
    *,
    model: dict[str, Any],
    concept: dict[str, Any],
    judge: dict[str, Any],
    retain: tuple[str, ...],
    protocol: str,
    cap: int | None,
    count: int | None,
) -> TextToImageExperiment:
    from pydantic import ValidationError

    from rub.config.hyperparameters import first_error

    changed: Any = protocol
    try:
        if cap is not None:
            attacks = protocol_of(protocol, "text-to-image", TextToImageProtocol).attacks
            changed = {"name": protocol, "attacks": {name: {"cap": cap} for name in attacks}}
        return TextToImageExperiment.model_validate(
            {
                "task": "text-to-image",
                "model": model,
                "judge": judge,
                "concept": concept,
                "retain": retain,
                "retrains": 0,
                "protocol": changed,
                "evaluation": {"prompts": count},
            }
        )
    except ValidationError as error:
        raise RubError(first_error(error, "audit", TextToImageExperiment.model_fields)) from None
