"""What `rub list`, `rub show` and `rub doctor` say: rows, and lines of text (rich markup)."""

import os
import platform
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel
from rich.markup import escape

from rub.config.documents import write_yaml
from rub.errors import unknown
from rub.registry import DATASETS, KINDS, TASKS, Entry
from rub.reports.cards import described, typed

if TYPE_CHECKING:
    from rub.config.suite import Protocol
    from rub.metrics.base import Metric


def listing(what: str, task: str | None) -> list[dict[str, Any]]:
    """Rows of `rub list`: components of one kind, or suites; ``networks`` are the ``models``."""
    tasks, what = _tasks(task), {"networks": "models"}.get(what, what)
    if what == "suites":
        from rub.config.suite import suite_names

        return [{"name": name, "summary": summary} for name, summary in suite_names().items()]
    if what == "metrics":
        from rub.metrics.base import metrics_of

        return [
            {"name": item.name, "task": name, "direction": item.direction, "summary": item.meaning}
            for name in tasks
            for item in metrics_of(name)
        ]
    if what not in KINDS:
        raise unknown("list", what, [*KINDS, "suites"])
    return [
        {
            "name": _protocol(entry).name if what == "protocols" else entry.name,
            "task": entry.task,
            "summary": entry.summary,
            **({"marks": entry.marks} if what == "methods" else {}),
            "origin": "" if entry.origin == "rub" else entry.origin,
        }
        for entry in KINDS[what].entries(task)
    ]


def describe(name: str, task: str | None) -> Iterator[str]:
    """Lines about every component of this name."""
    from rub.config.suite import suite_names
    from rub.metrics.base import metrics_of

    metrics = [(metric, owner) for owner in _tasks(task) for metric in metrics_of(owner)]
    entries = [(registry, entry) for registry in KINDS.values() for entry in registry.entries(task)]
    suites = suite_names()
    name = name.partition("@")[0]  # the mark of a protocol
    names = {entry.name for _, entry in entries} | {metric.name for metric, _ in metrics} | set(suites)
    if name not in names:
        raise unknown("component", name, names)
    for registry, entry in entries:
        if entry.name == name and registry.kind != "metric":
            yield from _component(registry.kind, entry)
    for metric, owner in metrics:
        if metric.name == name:
            yield from _metric(metric, owner)
    if name in suites:
        yield f"[b]{name}[/b]  suite"
        yield from _indented(files("rub").joinpath("suites", f"{name}.yaml").read_text(encoding="utf-8"))


def _tasks(only: str | None) -> list[str]:
    names = [entry.name for entry in TASKS.entries()]
    if only is not None and only not in names:
        raise unknown("task", only, names)
    return names if only is None else [only]


def _fields(kind: type[BaseModel], depth: int = 2) -> Iterator[str]:
    for name, field in kind.model_fields.items():
        inner = _model_in(field.annotation)
        plain = isinstance(field.default, str | int | float | bool | NoneType) and not field.is_required()
        default = "required" if field.is_required() else f"= {field.default!r}" if plain else ""
        told = "" if inner is not None else f" {typed(field.annotation)}"
        meaning = " ".join((field.description or (inner.__doc__ if inner is not None else None) or "").split())
        yield f"{'  ' * depth}[b]{name}[/b]{escape(f':{told} {default}'.rstrip(': '))}  [dim]{escape(meaning)}[/dim]"
        if inner is not None:
            yield from _fields(inner, depth + 1)


def _model_in(hint: Any) -> type[BaseModel] | None:
    """Class of specs that a field holds, alone or many."""
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return hint
    return next((found for part in get_args(hint) if (found := _model_in(part)) is not None), None)


def _metric(metric: "Metric", task: str) -> Iterator[str]:
    yield f"[b]{metric.name}[/b]  metric, {task}: {escape(metric.meaning)}"
    shown = f"shown as {escape(metric.title)} with {metric.decimals} decimals{', in percent' * metric.percent}"
    yield f"  unit: {metric.stored_unit}; range {metric.low} to {metric.high}; better: {metric.direction}; {shown}"


def _protocol(entry: Entry[Any]) -> "Protocol":
    from rub.config.suite import protocol_kind, protocol_of

    return protocol_of(entry.name, entry.task, protocol_kind(entry.task))


def _indented(text: str) -> Iterator[str]:
    return (f"  {escape(line)}" for line in text.splitlines())


def _component(kind: str, entry: Entry[Any]) -> Iterator[str]:
    if kind == "protocol":
        made = _protocol(entry)
        yield f"[b]{made.name}[/b]  protocol, {entry.task}"
        yield from _indented(write_yaml(made.model_dump(mode="json"), width=76))
        return
    yield f"[b]{entry.name}[/b]  {kind}, {entry.task}: {escape(entry.summary)}"
    if kind == "task":
        yield "  [b]fields of an experiment[/b]"
        yield from _fields(entry.load().experiment)
    if kind == "dataset":
        yield from (f"  [b]{name}[/b]  {escape(value)}" for name, value in entry.load().facts.items())
    shown = ("method", "control", "attack", "judge", *(["network"] if entry.task == "classification" else []))
    if kind not in shown:
        return
    found = described(entry)
    card = found.card
    facts = {"retain-free": entry.retain_free, "needs the original's training": entry.needs_training}
    data = {title: "yes" if fact else "no" for title, fact in facts.items() if kind == "method"}
    within = {"budgets": ", ".join(card.budgets)} if (kind, entry.task) == ("attack", "classification") else {}
    told = {"paper": card.paper, "equation": card.equation, "upstream": card.upstream, **data, **within}
    for title, text in told.items():
        if text:
            yield f"  [b]{title}[/b]  {escape(text)}"
    if found.parameters:
        yield "  [b]hyperparameters[/b]"
    for parameter in found.parameters:
        yield escape(f"    {parameter}  {parameter.meaning}".rstrip())
        if parameter.source:
            yield f"      [dim]default: {escape(parameter.source)}[/dim]"
    if not card.other_class:
        yield "  cannot aim at another class: no paired control"
    if card.picture:
        yield "  feeds a picture: pictures of other concepts stand beside it"
    if card.differences:
        yield "  [b]differences from upstream[/b]"
        yield from (f"    - {escape(line)}" for line in card.differences)
    yield f"  [b]defined by[/b]  {escape(found.origin)}, version {card.version}"


def diagnose(data_root: Path | None, store: Path | None) -> Iterator[str]:
    """What this machine can run, line by line."""
    import torch

    from rub.api import default_data_root, default_store, free_bytes
    from rub.data.base import source_of
    from rub.pipeline.runtime import code_version, device_name, library_versions

    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items())
    yield f"[b]rub[/b]      {code_version()}, Python {platform.python_version()}, {versions}"
    yield f"[b]device[/b]   {escape(device_name('cpu'))} threads of {os.cpu_count()}"
    if torch.cuda.is_available():
        yield f"         {escape(device_name('cuda'))}, {torch.cuda.mem_get_info()[1] / 2**30:.0f} GiB"
    else:
        yield "         no CUDA device: suites marked as small are made for this"
    root = data_root if data_root is not None else default_data_root()
    if root is None:
        yield "[b]data[/b]     no --data-root and no RUB_DATA: only digits, and the hub where there is a network"
    else:
        for source in (source_of(entry.name) for entry in DATASETS.entries()):
            if source.layout is not None:
                place = root / source.layout
                state = "found" if place.exists() else "absent"
                yield f"[b]data[/b]     {source.name}: {state} at {escape(str(place))}"
    place = store or default_store()
    yield f"[b]store[/b]    {escape(str(place))}, {free_bytes(place) / 2**30:.1f} GiB free"
