"""What a method's or an attack's own file says of it, as plain values for the terminal and for pages."""

from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from rub.registry import Entry, card_of, hyperparameters


@dataclass(frozen=True)
class Described:
    """What is said of a method or an attack.

    Attributes:
        name: its id.
        kind: ``method`` or ``attack``.
        task: whose it is.
        summary: one line.
        paper: where it was published.
        equation: what it computes.
        upstream: repository and commit.
        parameters: name, type with limits and default, and where the default is from.
        differences: from upstream, one line each.
        origin: the package or file that defines it.
        version: of its results.
    """

    name: str
    kind: str
    task: str
    summary: str
    paper: str
    equation: str
    upstream: str
    parameters: tuple[tuple[str, str, str], ...]
    differences: tuple[str, ...]
    origin: str
    version: str


def described(kind: str, entry: Entry[Any]) -> Described:
    """Return what a method's or an attack's file says of it, with its hyperparameters."""
    card = card_of(entry)
    parameters = []
    for name, field in hyperparameters(entry.load()).model_fields.items():
        limits = ", ".join(_limit(part) for part in field.metadata)
        default = "required" if field.is_required() else f"= {field.default!r}"
        text = f"{_type(field.annotation)}{f' ({limits})' if limits else ''} {default}"
        parameters.append((name, text, card.defaults.get(name, "")))
    facts = (card.paper, card.equation, card.upstream, tuple(parameters), tuple(card.differences))
    return Described(entry.name, kind, entry.task, entry.summary, *facts, entry.origin, str(card.version))


def _type(hint: Any) -> str:
    """Return a type as people write it, such as ``float | None``."""
    if get_origin(hint) in (Union, UnionType):
        return " | ".join(_type(part) for part in get_args(hint))
    if get_origin(hint) is Annotated:
        return _type(get_args(hint)[0])
    if hint is NoneType:
        return "None"
    return hint.__name__ if type(hint) is type else str(hint).replace("typing.", "")


def _limit(constraint: Any) -> str:
    """Return a pydantic constraint as ``>= 0``."""
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "multiple of"}
    found = [f"{sign} {getattr(constraint, name)}" for name, sign in signs.items() if hasattr(constraint, name)]
    return found[0] if found else str(constraint)
