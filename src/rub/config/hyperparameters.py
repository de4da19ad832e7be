"""Hyperparameters of components: said once, in the annotation of a keyword-only argument."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Annotated, Any, get_type_hints

from annotated_types import GroupedMetadata
from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, ValidationError, create_model

from rub.errors import RubError, unknown
from rub.registry import Entry, card_of, source_hash


@dataclass(frozen=True)
class Hyper(GroupedMetadata):
    """What a hyperparameter means, where its default is from, and its range: ``Annotated[float, Hyper(...)]``.

    A later one in the same annotation overrides meaning and source, and adds to the range, so that aliases such as
    `Rate` can be made precise: ``Annotated[Rate, Hyper("learning rate of Adam", source="upstream README")]``.

    Attributes:
        doc: its meaning, with units.
        source: where the default is from.
        gt: values are above this.
        ge: at least this.
        lt: below this.
        le: at most this.
        infinite: whether inf is a value; NaN never is where there is a range.

    Example:
        >>> def component(*, lr: Annotated[float, Hyper("learning rate", source="README", gt=0)] = 0.1): ...
        >>> hyperparameters(component)().lr
        0.1
    """

    doc: str = ""
    source: str = ""
    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None
    infinite: bool = False

    def __iter__(self) -> Iterator[Any]:
        yield Field(gt=self.gt, ge=self.ge, lt=self.lt, le=self.le, allow_inf_nan=self.infinite or None)

    @classmethod
    def of(cls, metadata: list[Any]) -> "Hyper":
        """What the annotations of one argument say together."""
        together: dict[str, Any] = {}
        for item in metadata:
            if isinstance(item, cls):
                together |= {name: value for name, value in vars(item).items() if value != getattr(cls, name)}
        return cls(**together)

    @property
    def range(self) -> str:
        """The range as people write it, such as ``> 0`` or ``0 to 1``; "" where any value of the type is allowed."""
        if self.ge is not None and self.le is not None:
            return f"{self.ge} to {self.le}"
        signs = ((">", self.gt), (">=", self.ge), ("<", self.lt), ("<=", self.le))
        return ", ".join(f"{sign} {limit}" for sign, limit in signs if limit is not None)


PositiveInt = Annotated[int, Hyper(ge=1)]
Count = Annotated[int, Hyper(ge=0)]
Fraction = Annotated[float, Hyper(ge=0, le=1)]
Weight = Annotated[float, Hyper(ge=0)]
Positive = Annotated[float, Hyper(gt=0)]
Epochs = Annotated[int, Hyper("passes over the training set", ge=1)]
Iterations = Annotated[int, Hyper("training steps", ge=1)]
Rate = Annotated[float, Hyper("learning rate", gt=0)]
SgdRate = Annotated[Rate, Hyper("learning rate of SGD (momentum .9, weight decay 5e-4)")]
AdamRate = Annotated[Rate, Hyper("learning rate of Adam")]


def hyperparameters(function: Callable[..., Any]) -> type[BaseModel]:
    """Pydantic model of a component's keyword-only arguments: types, defaults and ranges.

    An argument without a default is required.

    Raises:
        RubError: an annotation that cannot be evaluated, or that no YAML value has the type of.
    """
    fields: dict[str, Any] = {}
    known = getattr(function, "__globals__", {})
    config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)
    title = getattr(function, "__name__", "component")
    try:
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                default = ... if parameter.default is inspect.Parameter.empty else parameter.default
                # Only these are evaluated: the others may name types that are imported for type checkers alone.
                holder = SimpleNamespace(__annotations__={name: parameter.annotation})
                hint = get_type_hints(holder, globalns=known, include_extras=True)[name]
                fields[name] = (Any if parameter.annotation is inspect.Parameter.empty else hint, Field(default))
        return create_model(title, __config__=config, **fields)
    except (NameError, TypeError, PydanticUserError) as error:
        reason = str(error).split("\n")[0]
        raise RubError(
            f"{function.__module__}.{title}: a hyperparameter's annotation cannot be used: {reason}"
        ) from None


def resolve(entry: Entry[Any], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """All hyperparameters of a component, defaults included; what does not fit its signature is refused.

    Raises:
        RubError: an unknown name, a wrong type, or a value out of range; `where` says which place in the suite.
    """
    model = hyperparameters(entry.load())
    for name, value in given.items():
        field_ = model.model_fields.get(name)
        if isinstance(value, bool) and field_ is not None and field_.annotation is not bool:  # else it would pass as 1
            raise RubError(f"{where} ({entry.name}): {name} = {value!r}: should not be true or false")
    try:
        return model(**given).model_dump()
    except ValidationError as error:
        raise RubError(first_error(error, f"{where} ({entry.name})", model.model_fields)) from None


def resolved(entry: Entry[Any], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What a stage's spec says of a component: its name, all hyperparameters, its version, a plug-in's hash."""
    return {
        "name": entry.name,
        "parameters": resolve(entry, given, where),
        "version": card_of(entry).version,
        "source": source_hash(entry),
    }


def first_error(error: ValidationError, where: str, known: Mapping[str, Any]) -> str:
    """Pydantic's report in one line: what was given, what was expected, and the nearest known name."""
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{where}: {unknown('field', str(problem['loc'][-1]), known)}"
    said = problem["msg"].removeprefix("Value error, ")
    message = f"{said[:1].lower()}{said[1:]}"
    if problem["type"] == "missing":  # the input is all that surrounds the gap, which helps nobody
        return f"{where}: {place}: {message}"
    given = " ".join(repr(problem["input"]).split())
    return f"{where}: {place} = {given if len(given) <= 80 else given[:77] + '...'}: {message}"
