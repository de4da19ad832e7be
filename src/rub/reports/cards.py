"""What a component's own file says of it, as plain values for the terminal and for pages."""

from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from rub.config.hyperparameters import Hyper, hyperparameters
from rub.registry import Card, Entry, card_of


@dataclass(frozen=True)
class Parameter:
    """A hyperparameter: ``lr: float (> 0) = 0.1``, its meaning, and where the default is from."""

    name: str
    type: str
    range: str
    default: str
    meaning: str
    source: str

    def __str__(self) -> str:
        """Name, type, range and default in one line."""
        limits = f" ({self.range})" if self.range else ""
        return f"{self.name}: {self.type}{limits}" + (f" = {self.default}" if self.default else ", required")


@dataclass(frozen=True)
class Described:
    """What is said of a component; its origin is the package or file that defines it, the marks those of a method."""

    summary: str
    card: Card
    parameters: tuple[Parameter, ...]
    origin: str
    marks: str


def described(entry: Entry[Any]) -> Described:
    """What a component's file says of it, with its hyperparameters."""
    parameters = []
    for name, field in hyperparameters(entry.load()).model_fields.items():
        said = Hyper.of(field.metadata)
        default = "" if field.is_required() else repr(field.default)
        parameters.append(Parameter(name, typed(field.annotation), said.range, default, said.doc, said.source))
    return Described(entry.summary, card_of(entry), tuple(parameters), entry.origin, entry.marks)


def typed(hint: Any) -> str:
    """A type as people write it, such as ``float | None``."""
    if get_origin(hint) in (Union, UnionType):
        return " | ".join(typed(part) for part in get_args(hint))
    if get_origin(hint) is Annotated:
        return typed(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return " | ".join(map(str, get_args(hint)))
    if hint is NoneType:
        return "None"
    return hint.__name__ if type(hint) is type else str(hint).replace("typing.", "")
