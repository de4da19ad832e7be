"""What `rub list`, `rub show` and `rub doctor` say: rows, and lines of text (rich markup)."""

import os
import platform
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.markup import escape

from rub.errors import unknown
from rub.registry import ATTACKS, KINDS, METHODS, TASKS, Entry, card_of, hyperparameters

OPTIONAL = {"ray": "the Ray engine", "torchvision": "Inception features", "nudenet": "the nudity judge"}


def listing(what: str, task: str | None) -> list[dict[str, Any]]:
    """Return the rows of `rub list`: methods, attacks, metrics, datasets, models, suites or protocols.

    Raises:
        RubError: an unknown kind or task.
    """
    tasks = [entry.name for entry in TASKS.entries()]
    if task is not None and task not in tasks:
        raise unknown("task", task, tasks)
    if what == "suites":
        from rub.specs import suite_names

        return [{"name": name, "summary": summary} for name, summary in suite_names().items()]
    if what == "protocols":
        from rub.classification.specs import PROTOCOLS

        return [{"name": item.name, "task": "classification", "summary": item.summary} for item in PROTOCOLS.values()]
    if what == "metrics":
        from rub.classification.metrics import METRICS_DECLARED

        return [
            {"name": item.name, "task": "classification", "direction": item.direction, "summary": item.summary}
            for item in METRICS_DECLARED
        ]
    if what not in KINDS:
        raise unknown("list", what, [*KINDS, "metrics", "suites", "protocols"])
    return [
        {
            "name": entry.name,
            "task": entry.task,
            "summary": entry.summary,
            "origin": "" if entry.origin == "rub" else entry.origin,
        }
        for entry in KINDS[what].entries(task)
    ]


def describe(name: str, task: str | None) -> Iterator[str]:
    """Yield the lines about every component of this name.

    Raises:
        RubError: nothing has this name.
    """
    from rub.classification.metrics import METRICS_DECLARED
    from rub.classification.specs import PROTOCOLS
    from rub.specs import suite_names

    entries = [
        (registry.kind, entry)
        for registry in (METHODS, ATTACKS)
        for entry in registry.entries(task)
        if entry.name == name
    ]
    metrics = [metric for metric in METRICS_DECLARED if metric.name == name]
    suites = suite_names()
    if not entries and not metrics and name not in PROTOCOLS and name not in suites:
        known = [entry.name for registry in (METHODS, ATTACKS) for entry in registry.entries(task)]
        raise unknown("component", name, [*known, *(metric.name for metric in METRICS_DECLARED), *PROTOCOLS, *suites])
    for kind, entry in entries:
        yield from _component(kind, entry)
    for metric in metrics:
        yield f"[b]{metric.name}[/b]  metric, classification"
        yield f"  {escape(metric.summary)}"
        yield f"  unit: {metric.unit}; range {metric.low} to {metric.high}; better: {metric.direction}"
    if name in PROTOCOLS:
        yield f"[b]{name}[/b]  protocol, classification"
        yield from (f"  {key}: {escape(str(value))}" for key, value in PROTOCOLS[name].model_dump().items())
    if name in suites:
        yield f"[b]{name}[/b]  suite: {escape(suites[name])}"


def _component(kind: str, entry: Entry[Any]) -> Iterator[str]:
    card = card_of(entry)
    yield f"[b]{entry.name}[/b]  {kind}, {entry.task}: {escape(entry.summary)}"
    for title, text in (("paper", card.paper), ("equation", card.equation), ("upstream", card.upstream)):
        if text:
            yield f"  [b]{title}[/b]  {escape(text)}"
    yield "  [b]hyperparameters[/b]"
    for name, field in hyperparameters(entry.load()).model_fields.items():
        limits = ", ".join(_limit(part) for part in field.metadata)
        hint = field.annotation
        type_name = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
        source = card.defaults.get(name, "")
        default = "required" if field.is_required() else f"= {field.default!r}"
        yield escape(f"    {name}: {type_name}{f' ({limits})' if limits else ''} {default}") + (
            f"  [dim]{escape(source)}[/dim]" if source else ""
        )
    if card.differences:
        yield "  [b]differences from upstream[/b]"
        yield from (f"    - {escape(line)}" for line in card.differences)
    yield f"  [b]defined by[/b]  {escape(entry.origin)}, version {card.version}"


def _limit(constraint: Any) -> str:
    """Return a pydantic constraint as ``>= 0``."""
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "multiple of"}
    found = [f"{sign} {getattr(constraint, name)}" for name, sign in signs.items() if hasattr(constraint, name)]
    return found[0] if found else str(constraint)


def diagnose(data_root: Path | None, store: Path | None) -> Iterator[str]:
    """Yield what this machine can run."""
    import torch

    from rub.api import default_data_root, default_store, free_bytes
    from rub.images.sources import LAYOUTS
    from rub.pipeline.stages import code_version, device_name, library_versions

    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items())
    yield f"[b]rub[/b]      {code_version()}, Python {platform.python_version()}, {versions}"
    yield f"[b]device[/b]   {escape(device_name('cpu'))} threads of {os.cpu_count()}"
    if torch.cuda.is_available():
        yield f"         {escape(device_name('cuda'))}, {torch.cuda.mem_get_info()[1] / 2**30:.0f} GiB"
    else:
        yield "         no CUDA device: suites marked as small are made for this"
    for module, what in OPTIONAL.items():
        yield f"[b]optional[/b] {module}: {'found' if find_spec(module) else 'absent'} ({what})"
    root = data_root if data_root is not None else default_data_root()
    if root is None:
        yield "[b]data[/b]     no --data-root and no RUB_DATA: only digits, and the hub where there is a network"
    else:
        for name, folder in LAYOUTS.items():
            found = (root / folder).is_dir()
            yield f"[b]data[/b]     {name}: {'found' if found else 'absent'} at {escape(str(root / folder))}"
    place = store or default_store()
    yield f"[b]store[/b]    {escape(str(place))}, {free_bytes(place) / 2**30:.1f} GiB free"
