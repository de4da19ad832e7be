"""Frozen specs: what a suite asks for, task by task, validated before anything runs.

A suite is a YAML file: ``name``, ``summary`` and a list of ``experiments``; each experiment names its task, and the
task's own `Experiment` subclass says which further fields it has. Everything here is free of torch.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, TypeVar, cast, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from rub.config.documents import read_yaml, read_yaml_file
from rub.config.hyperparameters import first_error
from rub.errors import RubError, unknown
from rub.registry import CONTROLS, METHODS, METRICS, NAME, PROTOCOLS, TASKS, Entry, load_target, read_protocol, task_of


class Frozen(BaseModel):
    """An immutable spec: unknown fields, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)
    bare_field: ClassVar[str] = ""
    """The field that text stands for where it is written in place of the mapping; "" where it may not."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for name, given in value.items():
                if any(isinstance(item, bool) for item in (given if isinstance(given, list) else [given])):
                    _check_switch(cls.model_fields.get(name), name)
        return {cls.bare_field: value} if cls.bare_field and isinstance(value, str) else value


def _check_switch(field: FieldInfo | None, name: str) -> None:
    """Refuse true and false for a number, where they would pass as 1 and 0."""
    kinds = set[Any]() if field is None else _kinds(field.annotation)
    if kinds & {int, float} and not kinds & {bool, Any}:
        raise ValueError(f"{name}: should be a number, not true or false")


def _kinds(hint: Any) -> set[Any]:
    return {hint}.union(*map(_kinds, (part for part in get_args(hint) if not isinstance(part, str | int))))


def _nameable(name: str) -> str:
    if not name.isprintable() or len(name) > _LONGEST_NAME:
        raise ValueError(f"should be printable characters, {_LONGEST_NAME} at most, which files and tables can hold")
    return name


_DEEPEST, _LONGEST_NAME = 16, 200
Name = Annotated[str, AfterValidator(_nameable)]
"""Text that names something of a user's in records and files."""


class Component(Frozen):
    """A named component with its hyperparameters, written ``{name: uma, steps: 20}`` or just ``uma`` in YAML."""

    model_config = ConfigDict(extra="allow", frozen=True)
    bare_field = "name"

    name: str

    @property
    def parameters(self) -> dict[str, Any]:
        """Hyperparameters given; those left out keep the component's defaults."""
        return dict(self.model_extra or {})


class Protocol(Frozen):
    """A named, versioned set of the choices that decide a number; each task extends it."""

    bare_field = "name"
    name: str
    """Name and version, such as ``rub-paper-1``; with changed fields it shows as ``name*hash``, one's own as
    ``name@hash``."""
    summary: str = ""
    main: str | None = Field(None, exclude_if=lambda main: main is None)  # marks are hashes of dumps, and older
    """The attack that tables, figures and rules read; ``uma``, or else the first one, when left out."""
    attacks: dict[str, Any]
    """Attack id -> what it runs, at which budgets."""

    @property
    def main_attack(self) -> str:
        """Attack that tables, figures and rules read; "" without attacks."""
        return main_among(self.attacks, self.main)

    @model_validator(mode="after")
    def _known_main(self) -> Self:
        if self.main is not None and self.main not in self.attacks:
            raise ValueError(f"main = '{self.main}': should be one of its attacks: {', '.join(self.attacks)}")
        return self


DEFAULT_MAIN = "uma"  # the paper's


def main_among(attacks: Iterable[str], main: str | None = None) -> str:
    """Main attack: the one that a protocol names, else ``uma`` where it is there, else the first; "" without any.

    Example:
        >>> main_among(["noise", "uma"]), main_among(["mine", "noise"]), main_among(["mine", "noise"], "noise")
        ('uma', 'mine', 'noise')
    """
    known = list(attacks)
    return main or (DEFAULT_MAIN if DEFAULT_MAIN in known else next(iter(known), ""))


P = TypeVar("P", bound=Protocol)


def protocol_of(value: Any, task: str, kind: type[P]) -> P:
    """Protocol that a spec gives: a name, the path of a YAML file, or ``{name: ..., further fields}``.

    The fields are laid over those of the protocol that the name stands for, mappings key by key; ``{only: {...}}``
    replaces a mapping instead. A protocol that ships with RUB keeps its name, and is marked as ``name*hash`` where a
    field was changed; any other is ``name@hash``. A marked name, as in the ``suite.yaml`` of a result, needs the fields
    that give this very mark.

    Raises:
        ValueError: none of these, an unknown name without all fields, or a mark that the fields do not give.
        RubError: a file that cannot be read.
    """
    given = {"name": value} if isinstance(value, str) else value
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise ValueError("should be a protocol name, a YAML file, or a mapping with a name and fields")
    changes = {key: item for key, item in given.items() if key != "name"}
    asked, base, shipped = given["name"], dict[str, Any](), False
    name = re.split("[*@]", asked)[0]
    if asked.lower().endswith((".yaml", ".yml")):
        base = read_protocol(Path(asked))
        name = asked = base["name"]
        if base.get("task", task) != task:
            raise ValueError(f"{given['name']}: a protocol of task '{base['task']}', not of '{task}'")
    elif entry := next((entry for entry in PROTOCOLS.entries(task) if entry.name == name), None):
        base, shipped = dict(entry.load()), entry.origin == "rub"
    base = {key: item for key, item in base.items() if key != "task"}
    wanting = [field for field, info in kind.model_fields.items() if info.is_required() and field not in given]
    if not base and wanting:
        known = [entry.name for entry in PROTOCOLS.entries(task)]
        raise ValueError(f"{unknown('protocol', name, known)}; one of your own needs {', '.join(wanting)}")
    made = _marked(kind, name, _merge(base, changes), base if shipped else None)
    if name != asked != made.name:
        with suppress(ValidationError):  # as dumped: all fields, of which some may replace instead of change
            made = _marked(kind, name, changes, base if shipped else None)
        if made.name != asked:
            raise ValueError(f"its fields make it '{made.name}': to change {name}, write name: {name}")
    return made


def _marked(kind: type[P], name: str, fields: Mapping[str, Any], shipped: Mapping[str, Any] | None) -> P:
    if not NAME.fullmatch(name):
        raise ValueError(f"name = '{name}': should be letters, digits, dots, dashes and underscores, 64 at most")
    made = kind.model_validate({**fields, "name": name})
    if shipped is not None and made == kind.model_validate(shipped):
        return made
    mark = sha256(made.model_dump_json(exclude={"summary"}).encode()).hexdigest()[:6]
    return made.model_copy(update={"name": f"{name}{'@' if shipped is None else '*'}{mark}"})


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Base with the changes laid over it, mappings merged key by key; ``{only: ...}`` stands for what it holds."""
    merged = dict(base)
    for key, value in changes.items():
        inner = merged.get(key)
        if isinstance(value, dict) and set(value) == {"only"}:
            merged[key] = value["only"]
        else:
            merged[key] = _merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def protocols_of(task: str) -> dict[str, Protocol]:
    """Protocols that can be named, as they show: those of RUB, then those of plug-ins."""
    kind = protocol_kind(task)
    found = (protocol_of(entry.name, task, kind) for entry in PROTOCOLS.entries(task))
    return {item.name: item for item in found}


def protocol_kind(task: str) -> type[Protocol]:
    """Class of a task's protocols, as its experiment declares it."""
    return cast("type[Protocol]", task_of(task).experiment.model_fields["protocol"].annotation)


class Seeds(Frozen):
    """How often the random parts are repeated."""

    originals: int = Field(1, ge=1, le=100)
    """Original models, each trained with a seed of its own."""
    unlearn: int = Field(1, ge=1, le=1000)
    """Unlearning seeds of each original: seed s belongs to original s modulo `originals`."""
    doses: int = Field(2, ge=1, le=100)
    """Models trained for each dose."""
    mia: int = Field(1, ge=1, le=1000)
    """Membership-inference seeds for each unlearned model."""
    train: int = Field(0, ge=0, lt=1000)
    """Seed of the first original model, the next has the next one; other roles have seeds of their own from 1000 up."""


class Resources(Frozen):
    """What one stage of an experiment may use. Results do not depend on it, and it is in no key."""

    cpus: float = Field(1, gt=0, le=1024)
    """Cores of one stage, for the Ray engine; as many threads."""
    gpus: float = Field(1, ge=0, le=64)
    """GPUs of one stage where the device is cuda, for the Ray engine; 0.25 lets four stages share one."""
    memory_gb: float = Field(0, ge=0)
    """Main memory that the Ray engine reserves for a stage; 0 reserves none."""
    minutes: float | None = Field(None, gt=0)
    """A stage that takes longer is stopped and fails; no limit when left out."""


Percent = Annotated[float, Field(gt=0, lt=100)]


class Experiment(Frozen):
    """What every task's experiment has in common."""

    task: str
    name: Name = ""
    """Names the experiment inside its suite; empty when the suite has only one of its task."""
    methods: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Method id -> hyperparameters; a plain list in YAML means all defaults."""
    controls: dict[str, dict[str, Any]] = Field(default_factory=dict, exclude_if=lambda controls: not controls)
    """Controls beside those that every experiment of the task has, written as methods are."""
    metrics: tuple[str, ...] = Field((), exclude_if=lambda metrics: not metrics)
    """Metrics of plug-ins, measured for every row; those that ship with RUB always are."""
    doses: tuple[Percent, ...] = Field((), exclude_if=lambda doses: not doses)
    """Percent of the forget set that models are trained on besides the retain set, as a scale of known truth; 0 is the
    retrained model, 100 the original."""
    seeds: Seeds = Seeds()
    paper: str = ""
    """Key into the paper's tables, such as ``table1/cifar10``, where the suite corresponds; else empty."""
    resources: Resources = Resources()
    """What one stage may use, and how long it may take."""
    if TYPE_CHECKING:  # a field of every task's own type, in its own place
        protocol: Any

    @field_validator("methods", "controls", mode="before")
    @classmethod
    def _names_to_mapping(cls, value: Any) -> Any:
        return _names(value)

    @field_validator("doses")
    @classmethod
    def _ordered(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sorted(set(value)))

    @field_validator("protocol", mode="before", check_fields=False)
    @classmethod
    def _protocol(cls, value: Any, info: ValidationInfo) -> Any:
        kind: Any = cls.model_fields["protocol"].annotation
        return protocol_of(value, info.data.get("task", ""), kind)

    def check(self) -> None:
        """Raise `RubError` where a control is named as a method, or fields contradict each other."""
        for entry in CONTROLS.entries(self.task):
            if entry.name in self.methods:
                what = "that always runs; leave it out of 'methods'" if entry.always else "; name it in 'controls'"
                raise RubError(f"method '{entry.name}' is a control {what}".replace(" ;", ";"))
            if entry.always and entry.name in self.controls:
                raise RubError(f"control '{entry.name}' always runs; leave it out of 'controls'")


def _names(value: Any) -> Any:
    # What is neither is left for pydantic to refuse.
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return {name: {} for name in value}
    return {name: {} if given is None else given for name, given in value.items()} if isinstance(value, dict) else value


class Suite(Frozen):
    """A named list of experiments."""

    name: Name
    summary: str = ""
    experiments: tuple[Experiment, ...] = Field(min_length=1)

    @field_validator("experiments")
    @classmethod
    def _told_apart(cls, value: tuple[Experiment, ...]) -> tuple[Experiment, ...]:
        names = [(item.task, item.name) for item in value]
        for task, name in names:
            if names.count((task, name)) > 1:
                raise ValueError(f"{names.count((task, name))} experiments of task '{task}' are named '{name}'")
        return value


def suite_names() -> dict[str, str]:
    """Shipped suites: name -> one-line summary, sorted by name."""
    found = (Path(item.name) for item in files("rub").joinpath("suites").iterdir())
    names = sorted(path.stem for path in found if path.suffix == ".yaml")
    return {name: str(load_target(f"rub:suites/{name}.yaml")["summary"]) for name in names}


def tasks_in(name_or_path: str) -> frozenset[str]:
    """Tasks of a suite's experiments, as it is written."""
    experiments: Any = _read(name_or_path).get("experiments")
    found = (
        [item.get("task") for item in experiments if isinstance(item, dict)] if isinstance(experiments, list) else []
    )
    return frozenset(task for task in found if isinstance(task, str))


def located(path: str | Path, data_root: Path | None) -> Path:
    """Where a path that a spec names lies: as it is, or below the data root; as it is, if it is nowhere."""
    own = Path(path)
    with suppress(RuntimeError):  # a user without a home has no ~
        own = own.expanduser()
    if own.exists() or data_root is None:
        return own
    return data_root / own if (data_root / own).exists() else own


def load_suite(
    name_or_path: str,
    *,
    overrides: Sequence[str] = (),
    task: str | None = None,
    methods: Sequence[str] | None = None,
    seeds: int | None = None,
    added: Sequence[Entry[Any]] = (),
) -> Suite:
    """Read a suite by name or path, apply the overrides, and validate all of it.

    Args:
        name_or_path: a name from `suite_names`, or a path to a YAML file.
        overrides: ``path=value`` strings as given to ``--set``; the path is inside an experiment
            (``training.epochs=3``), optionally after a task name (``classification.training.epochs=3``).
        task: keep only the experiments of this task.
        methods: keep only these methods, with the suite's hyperparameters, or defaults if the suite lacks them, and of
            its rows of published checkpoints those of these names; of a suite of several tasks, the experiments whose
            task has one of them.
        seeds: number of unlearning seeds instead of the suite's.
        added: components of plug-ins; their controls and metrics join every experiment of their task, their methods too
            unless `methods` is given.

    Raises:
        RubError: no such suite, invalid YAML, or a field that is unknown, of a wrong type or out of range.
    """
    raw = _read(name_or_path)
    experiments = raw.get("experiments")
    if not isinstance(experiments, list) or not all(isinstance(item, dict) for item in experiments):
        raise RubError(
            f"suite {name_or_path}: 'experiments' should be a list of mappings, got {type(experiments).__name__}"
        )
    _check_addressed(overrides, name_or_path, [item.get("task") for item in experiments])
    if task is not None:
        experiments = [item for item in experiments if item.get("task") == task]
        if not experiments:
            raise RubError(f"suite {name_or_path}: no experiment of task '{task}'")
    if methods is not None:
        _check_named(methods, experiments)
        experiments = [item for item in experiments if _known_of(item, methods)] or experiments
    for item in experiments:
        _apply(item, overrides)
        own = [entry.name for entry in added if CONTROLS.owns(entry, item.get("task")) and not entry.always]
        if own and isinstance(named := _names(item.get("controls", {})), dict):
            item["controls"] = {name: {} for name in own} | named
        further = [entry.name for entry in added if METRICS.owns(entry, item.get("task"))]
        if further and isinstance(asked := item.get("metrics", []), list):
            item["metrics"] = list(dict.fromkeys([*asked, *further]))
        present = _names(item.get("methods", {}))
        if isinstance(present, dict):  # what has another type is refused below, with its place
            new = [entry.name for entry in added if METHODS.owns(entry, item.get("task"))]
            rows = _published(item)
            left = [name for name in methods or () if name not in rows]
            wanted = [*present, *new] if methods is None else _known_of(item, left) or left
            item["methods"] = {name: present.get(name, {}) for name in wanted}
            if rows and methods is not None:
                item["checkpoints"] = {name: rows[name] for name in methods if name in rows}
        if seeds is not None and isinstance(item.get("seeds", {}), dict):
            item["seeds"] = {**item.get("seeds", {}), "unlearn": seeds}
        if isinstance(protocol := item.get("protocol"), str) and protocol.lower().endswith((".yaml", ".yml")):
            item["protocol"] = str(located(protocol, Path(name_or_path).parent))
    where = f"suite {name_or_path}"
    parsed = tuple(_experiment(item, f"{where}, experiments[{index}]") for index, item in enumerate(experiments))
    try:
        return Suite.model_validate({**raw, "experiments": parsed})
    except ValidationError as error:
        raise RubError(first_error(error, where, Suite.model_fields)) from None


def _check_addressed(overrides: Sequence[str], suite: str, present: Sequence[Any]) -> None:
    """Raise `RubError` for an override of a task that a suite has no experiment of."""
    for override in overrides:
        task = override.partition("=")[0].split(".")[0]
        if task not in present and any(task == entry.name for entry in TASKS.entries()):
            raise RubError(f"--set {override}: suite {suite} has no {task} experiment to set it in")


def _check_named(methods: Sequence[str], experiments: Sequence[Mapping[str, Any]]) -> None:
    """Raise `RubError` for a name that is no method of a suite's tasks, and no row of its checkpoints."""
    tasks = [item.get("task") for item in experiments]
    known = dict.fromkeys(entry.name for task in tasks for entry in METHODS.entries(task))
    known |= dict.fromkeys(row for item in experiments for row in _published(item))
    always = {entry.name for task in tasks for entry in CONTROLS.entries(task) if entry.always}
    for name in methods:
        if name in always:
            raise RubError(f"--methods {name}: a control that always runs; leave it out")
        if name not in known:
            raise RubError(f"--methods: {unknown('method', name, known)}")


def _known_of(item: Mapping[str, Any], methods: Sequence[str]) -> list[str]:
    known = {entry.name for entry in METHODS.entries(item.get("task"))} | _published(item).keys()
    return [name for name in methods if name in known]


def _published(item: Mapping[str, Any]) -> Mapping[str, Any]:
    # rows of checkpoints that others made; of what is no mapping, which is refused with its place, none
    return rows if isinstance(rows := item.get("checkpoints"), dict) else {}


def _read(name_or_path: str) -> dict[str, Any]:
    path, shipped = Path(name_or_path), files("rub").joinpath("suites", f"{name_or_path}.yaml")
    if re.fullmatch(r"[a-z0-9-]+", name_or_path) and shipped.is_file():
        raw = read_yaml(shipped.read_text(encoding="utf-8"), f"suite {name_or_path}")
    elif path.suffix.lower() in {".yaml", ".yml"}:
        raw = read_yaml_file(path, f"suite {path}", f"; give a YAML file or one of: {', '.join(suite_names())}")
    else:
        raise unknown("suite", name_or_path, suite_names())
    if not isinstance(raw, dict):
        raise RubError(f"suite {name_or_path}: should be a mapping with name and experiments, got {type(raw).__name__}")
    return raw


def _experiment(item: Mapping[str, Any], where: str) -> Experiment:
    name, tasks = item.get("task"), [entry.name for entry in TASKS.entries()]
    if not isinstance(name, str):
        raise RubError(f"{where}: 'task' is missing; one of: {', '.join(tasks)}")
    if name not in tasks:
        raise RubError(f"{where}: {unknown('task', name, tasks)}")
    kind: type[Experiment] = task_of(name).experiment
    try:
        return kind.model_validate(dict(item))
    except ValidationError as error:
        raise RubError(first_error(error, where, _fields_at(kind, error))) from None


def _fields_at(kind: type[BaseModel], error: ValidationError) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = kind.model_fields
    for part in error.errors()[0]["loc"][:-1]:
        annotation = getattr(fields.get(str(part)), "annotation", None)
        fields = getattr(annotation, "model_fields", {})
    return fields


def _apply(item: dict[str, Any], overrides: Sequence[str]) -> None:
    for override in overrides:
        path, separator, text = override.partition("=")
        if not separator or not path:
            raise RubError(f"--set {override}: should be path=value, such as training.epochs=3")
        parts = path.split(".")
        tasks = {entry.name for entry in TASKS.entries()}
        if parts[0] in tasks:
            if parts[0] != item.get("task"):
                continue
            parts = parts[1:]
        if len(parts) > _DEEPEST:
            raise RubError(f"--set {override[:60]}...: a path of {len(parts)} parts; at most {_DEEPEST} are read")
        value = read_yaml(text, f"--set {override[:200]}: the value is")
        place: Any = item
        for depth, part in enumerate(parts[:-1]):
            if place.get(part) is None:
                place[part] = {}
            elif isinstance(place[part], list):
                place[part] = {str(name): {} for name in place[part]}
            elif isinstance(place[part], str) and (bare := _bare_field(item.get("task"), parts[: depth + 1])):
                place[part] = {bare: place[part]}
            place = place[part]
            if not isinstance(place, dict):
                raise RubError(f"--set {override}: '{part}' holds a single value; nothing can be set inside it")
        if not parts:
            raise RubError(f"--set {override}: a path inside the experiment is missing after the task name")
        place[parts[-1]] = value


def _bare_field(task: Any, path: Sequence[str]) -> str:
    """What text stands for at a path inside an experiment; "" where it is no mapping's."""
    kinds: list[Any] = [entry.load().experiment for entry in TASKS.entries() if entry.name == task]
    for part in path:
        fields = [getattr(kind, "model_fields", {}).get(part) for kind in kinds]
        hints = [field.annotation for field in fields if field is not None]
        kinds = [kind for hint in hints for kind in (hint, *get_args(hint))]
    return next((kind.bare_field for kind in kinds if isinstance(kind, type) and issubclass(kind, Frozen)), "")
