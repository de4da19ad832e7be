"""One generic registry: lazy ``module:attribute`` targets, did-you-mean, entry points and the origin of every entry.

Listing names never imports the modules behind them, so that ``rub list`` answers without loading torch.
"""

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, wraps
from hashlib import sha256
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar, cast

from rub.config.documents import read_yaml, read_yaml_file
from rub.errors import RubError, unknown

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Card:
    """What `rub show` says of a component.

    Attributes:
        paper: authors, title, venue and year, with an arXiv id where there is one.
        equation: the equation it implements, as plain text with its number in the paper.
        upstream: repository and commit that the facts were read from, or "".
        differences: one line per difference from upstream, upstream bugs that are off included.
        version: raised when a change of the code changes results; part of every stage key.
        other_class: of an attack on classifiers, whether it can aim each image at another class than its own.
        budgets: of an attack on classifiers, the kinds of budgets that it can search within: ``linf``, ``l2``,
            ``patch``, ``border``, ``corruption``.
        picture: of an attack on text-to-image, whether it feeds a picture of the concept, or what was made of one: then
            the same attack with pictures of other concepts is measured beside it.
        passes: of a method on diffusion models, the UNet passes that it takes, a backward pass counting as two: called
            with its hyperparameters, and with ``batch``, ``sampler_steps`` and ``shown``, how many pictures of a side
            it is shown. None: it is not known.
    """

    paper: str = ""
    equation: str = ""
    upstream: str = ""
    differences: tuple[str, ...] = ()
    version: int = 1
    other_class: bool = True
    picture: bool = False
    passes: Callable[..., float] | None = None
    budgets: tuple[str, ...] = ("linf",)


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A registered component: its name, task, one-line summary, lazy target and origin."""

    name: str
    task: str
    summary: str
    target: str | T
    origin: str
    card: Card | None = None
    reference: bool = False
    """Of a control: whether it never knew what is forgotten, so that others can be compared with it."""
    untrained: bool = False
    """Of a control: whether it was never trained at all: what a search gets out of it, it makes up."""
    exposed_by: str = ""
    """Of a control that forgot nothing and hides it: the metric that tells it from the retrained model."""
    extra: Any = None
    """What the decorator of its kind says besides: of a judge, where it comes from."""
    always: bool = False
    """Of a control: whether its task makes it for every experiment, in a way of its own."""
    retain_free: bool = False
    """Of a method: whether it takes the forget set alone, so that it works where the other data are gone."""
    needs_training: bool = False
    """Of a method: whether it needs more of the original's training than weights and data, such as stored updates."""
    classes_only: bool = False
    """Of a method of classifiers: whether it forgets whole classes alone, and no other sets of samples."""

    @property
    def marks(self) -> str:
        """What lists say of a method's data, such as ``retain-free``; empty where there is nothing to say."""
        said = {
            "retain-free": self.retain_free, "needs the original's training": self.needs_training,
            "whole classes only": self.classes_only,
        }  # fmt: skip
        return ", ".join(mark for mark, holds in said.items() if holds)

    def load(self) -> T:
        """What the target names, imported or read when it is a string."""
        if not isinstance(self.target, str):
            return self.target
        return cast(T, load_target(self.target))


def load_target(target: str) -> Any:
    """Object that ``module:attribute`` names, or content of the file that ``package:path.yaml`` names.

    Example:
        >>> load_target("math:pi") > 3, load_target("rub.tasks.classification:protocols/rub-paper-1.yaml")["name"]
        (True, 'rub-paper-1')
    """
    module, _, attribute = target.partition(":")
    if attribute.endswith(".yaml"):
        return read_yaml(files(module).joinpath(attribute).read_text(encoding="utf-8"), attribute)
    return getattr(importlib.import_module(module), attribute)


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # of a component, of a row
ANY = "any"  # the task of a component that every task can use


@cache
def builtin() -> Mapping[str, Mapping[str, Mapping[str, tuple[Any, ...]]]]:
    """Table of what ships with RUB: kind -> task -> name -> (``module:attribute``, summary[, what a control is])."""
    table: Mapping[str, Any] = read_yaml(files("rub").joinpath("builtin.yaml").read_text("utf-8"), "builtin.yaml")
    return table


class Registry(Generic[T]):
    """Named components of one kind, keyed by (task, name); the kind is a singular noun, such as ``"method"``."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[tuple[str, str], Entry[T]] = {
            (task, name): Entry(name, task, summary, target, "rub", **{"always": True, **(more[0] if more else {})})
            for task, names in builtin().get(kind, {}).items()
            for name, (target, summary, *more) in names.items()
        }
        self._scanned = False

    def add(self, entry: Entry[T], *, given: bool = False) -> None:
        """Register an entry; a second, different one under the same name is an error, as is an odd name.

        The name of what a caller has `given`, a file's function or a module in memory, may be any.
        """
        if not given and not NAME.fullmatch(entry.name):
            raise RubError(
                f"{self.kind} '{entry.name[:64]}' of {entry.origin}: a name should have 1 to 64 letters from a to z,"
                " digits, dots, dashes and underscores, a letter or digit first"
            )
        key = (entry.task, entry.name)
        present = self._entries.get(key)
        if present is not None and present.origin != entry.origin:
            raise RubError(
                f"{self.kind} '{entry.name}' ({entry.task}) of {entry.origin} is already defined by {present.origin}:"
                " choose another name"
            )
        self._entries[key] = entry

    def get(self, name: str, task: str) -> Entry[T]:
        """Entry of a name; where it is unknown, the error says the nearest ones."""
        self._scan()
        found = self._entries.get((task, name)) or self._entries.get((ANY, name))
        if found is None:
            named = self.kind if task in (name, ANY) else f"{task} {self.kind}"  # a task is its own task
            raise unknown(named, name, [entry.name for entry in self.entries(task if task != name else None)])
        return found

    def loaded(self, name: str, task: str) -> Entry[T]:
        """The entry, as `get`, after its module was imported: with what its decorator says."""
        entry = self.get(name, task)
        entry.load()
        return self.get(name, task)

    def entries(self, task: str | None = None) -> Iterator[Entry[T]]:
        """Entries of one task, or all, in the order of registration."""
        self._scan()
        return (entry for entry in list(self._entries.values()) if task in (None, entry.task) or entry.task == ANY)

    def owns(self, entry: Entry[Any], task: str | None) -> bool:
        """Whether this very entry is registered here, for this task."""
        return entry.task == task and self._entries.get((entry.task, entry.name)) is entry

    def _scan(self) -> None:
        if not self._scanned:
            self._scanned = True
            for point in entry_points(group=f"rub.{self.kind}s"):
                try:
                    point.load()
                except Exception as error:
                    if isinstance(error, RubError):
                        raise
                    raise RubError(
                        f"plug-in {point.name} = {point.value} (entry point {point.group}): {type(error).__name__}:"
                        f" {error}; mend or uninstall its package"
                    ) from error


METHODS: Registry[Callable[..., Any]] = Registry("method")
ATTACKS: Registry[Callable[..., Any]] = Registry("attack")
CONTROLS: Registry[Callable[..., Any]] = Registry("control")
DATASETS: Registry[Any] = Registry("dataset")
NETWORKS: Registry[Any] = Registry("network")
JUDGES: Registry[Any] = Registry("judge")
METRICS: Registry[Any] = Registry("metric")
PROTOCOLS: Registry[Mapping[str, Any]] = Registry("protocol")
TASKS: Registry[Any] = Registry("task")
KINDS: Mapping[str, Registry[Any]] = {
    "tasks": TASKS, "methods": METHODS, "attacks": ATTACKS, "controls": CONTROLS, "metrics": METRICS,
    "datasets": DATASETS, "models": NETWORKS, "judges": JUDGES, "protocols": PROTOCOLS,
}  # fmt: skip


def task_of(name: str) -> Any:
    """The `rub.pipeline.task.Task` of this name.

    Raises:
        RubError: no task has this name; the nearest are named.
    """
    return TASKS.get(name, name).load()


@contextmanager
def scoped() -> Iterator[None]:
    """Take away, at the end of the body, what was registered in it."""
    registries = list(KINDS.values())
    before = [dict(registry._entries) for registry in registries]
    try:
        yield
    finally:
        for registry, entries in zip(registries, before, strict=True):
            for key, now in list(registry._entries.items()):
                if key not in entries:
                    del registry._entries[key]
                elif entries[key].origin != now.origin:  # a component of RUB may have been loaded meanwhile
                    registry._entries[key] = entries[key]


def register(
    registry: Registry[Any],
    name: str,
    task: str,
    card: Card | None = None,
    **facts: Any,
) -> Callable[[F], F]:
    """Decorator that registers a function under a name, with the first line of its docstring as summary.

    The facts are further fields of `Entry`; those of what ships with RUB stand in its table.
    """

    def add(function: F) -> F:
        summary = (inspect.getdoc(function) or "").split("\n", 1)[0]
        module = function.__module__
        origin = "rub" if module.split(".")[0] == "rub" else module
        present = registry._entries.get((task, name))
        if origin == "rub" and present is not None:  # the lazy table named it first; only the card is new
            registry._entries[task, name] = replace(present, target=function, card=card, **facts)
        else:
            registry.add(Entry(name, task, summary, function, origin, card, **facts))
        return function

    return add


def method(
    name: str, *, task: str, card: Card | None = None, retain_free: bool = False, needs_training: bool = False,
    classes_only: bool = False,
) -> Callable[[F], F]:  # fmt: skip
    """Register an unlearning method: ``def f(model, forget, retain, context, *, hyperparameters) -> Module``.

    `model` is a private, trainable copy of the original, changed in place; `forget` and `retain` are the data D_u and
    D_r (`Samples`; for text-to-image `Side`); `context` is the task's `UnlearnContext`, from which alone random
    numbers, batches and steps come. A method raises `Diverged` where its loss is not finite, as `context.descend`
    does: its cells are then marked as failed, and the others go on. Hyperparameters say type, range, meaning and source
    in their annotation, see `rub.config.hyperparameters.Hyper`.

    Args:
        name: its row.
        task: whose models it changes.
        card: what `rub show` says of it.
        retain_free: it takes the forget set alone, and `retain` is not looked at.
        needs_training: it needs more of the original's training than weights and data, such as stored updates.
        classes_only: it forgets whole classes of a classifier and no other sets of samples, which are refused.
    """
    facts = {"retain_free": retain_free, "needs_training": needs_training, "classes_only": classes_only}
    return register(METHODS, name, task, card, **{name: value for name, value in facts.items() if value})


def control(
    name: str, *, task: str, card: Card | None = None, reference: bool = False, untrained: bool = False,
    exposed_by: str = "",
) -> Callable[[F], F]:  # fmt: skip
    """Register a control: a row beside the methods that is no result of unlearning, and shows what a number means.

    It has the signature of `method`, and its model is made as a method's is, once, with unlearning seed 0. The first
    line of its docstring says in reports what it is.

    Args:
        name: its row.
        task: whose models it changes.
        card: what `rub show` says of it.
        reference: it never knew what is forgotten.
        untrained: it was never trained: what a search brings back from it, the search made up.
        exposed_by: it forgot nothing and hides it, and this metric tells: by it, it is nearer to the original than to
            the retrained model.
    """
    facts = {"reference": reference, "untrained": untrained, "exposed_by": exposed_by}
    return register(CONTROLS, name, task, card, **{name: value for name, value in facts.items() if value})


def unlearner(name: str, task: str) -> Entry[Callable[..., Any]]:
    """The control or method of this name: what makes a row's model from the original."""
    control = next((entry for entry in CONTROLS.entries(task) if entry.name == name), None)
    return control or METHODS.get(name, task)


def guidance(name: str, *, card: Card | None = None) -> Callable[[F], F]:
    """Register a method of text-to-image that acts when pictures are drawn: ``def f(concept, anchor, *, hyper...)``.

    It returns a `rub.models.diffusion.guidance.Guidance`, which the sampler and every search ask; the weights stay the
    original's. `concept` and `anchor` are prompts.
    """

    def add(factory: F) -> F:
        @wraps(factory)
        def guided(model: Any, forget: Any, retain: Any, context: Any, **hyperparameters: Any) -> Any:
            from rub.models.diffusion.guidance import guided_by

            model.guidance = guided_by(name, forget.prompts[0], context.anchor, hyperparameters)
            return model

        guided.guidance = factory  # type: ignore[attr-defined]
        return register(METHODS, name, "text-to-image", card, retain_free=True)(cast(F, guided))

    return add


def attack(name: str, *, task: str, card: Card | None = None) -> Callable[[F], F]:
    """Register an attack: ``def f(target, images, budget, context, *, hyperparameters) -> Probes``.

    `target` is the task's `Target`: the frozen unlearned model, and what the original makes of the clean inputs;
    `images` are those inputs, uint8 (N, C, H, W), or `prompts`; `budget` says how far a probe may go; `context` is the
    task's `AttackContext`: seed, ids, batch size, device. An attack only searches: the harness clips, rounds, checks
    the budget and decides in float32 what was recovered. Hyperparameters as for `method`.
    """
    return register(ATTACKS, name, task, card)


SHAPE = ("num_classes", "channels", "size")
"""What the builder of a network is given besides its hyperparameters."""


def network(name: str, *, task: str, card: Card | None = None) -> Callable[[F], F]:
    """Register a builder of networks: ``def f(num_classes, channels, size, *, hyperparameters) -> nn.Module``.

    The module gives raw logits of normalised images (N, channels, size, size); see `rub.models.network`.
    """
    if task in ("inpainting", "text-to-image"):
        raise RubError(f"network '{name}': only classification takes networks of one's own, not {task}")

    def add(function: F) -> F:
        check_builder(name, function)
        return register(NETWORKS, name, task, card)(function)

    return add


def check_builder(name: str, function: Callable[..., Any]) -> None:
    """Refuse a builder of networks that cannot be called as one."""
    parameters = inspect.signature(function).parameters if callable(function) else {}
    named = [parameters[key].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for key in SHAPE if key in parameters]
    if named != [True] * len(SHAPE):
        raise RubError(f"network '{name}': should be def build({', '.join(SHAPE)}, *, hyperparameters)")


def protocol(name: str, *, task: str, **fields: Any) -> None:
    """Register a protocol: a name for the choices behind a number, such as ``attacks={"mine": {...}}``.

    It shows as ``name@hash``, the hash of all choices; the fields are those of the task's protocol class, as in YAML.
    """
    module = sys._getframe(1).f_globals["__name__"]
    PROTOCOLS.add(Entry(name, task, str(fields.get("summary", "")), {"name": name, **fields}, module))


_ROWS = {  # that every graph makes
    "original": "the model before unlearning.",
    "retrain": "trained without the forget set from the start; what 'forgotten' looks like.",
    "retrained": "a model that an audit was given as trained without the forget set.",
}


def task(value: T, *, summary: str) -> T:
    """Register a task, a `rub.pipeline.task.Task`, with the controls that its graph makes; return it.

    The summary is its line in ``rub list tasks``.
    """
    made: Any = value
    module = sys._getframe(1).f_globals["__name__"]
    TASKS.add(Entry(made.name, made.name, summary, made, module))
    for name, meaning in {**_ROWS, **made.controls}.items():
        reference = name in ("retrain", "retrained")
        CONTROLS.add(Entry(name, made.name, meaning, made.graph, module, reference=reference, always=True))
    return value


def read_protocol(path: Path) -> dict[str, Any]:
    """Fields of a protocol's YAML file, its task and name among them; the task's own class validates them."""
    fields = read_yaml_file(path, f"protocol {path}")
    if not isinstance(fields, dict) or not isinstance(fields.get("name"), str):
        raise RubError(f"protocol {path}: should be a mapping with task, name and attacks")
    return fields


def card_of(entry: Entry[Any]) -> Card:
    """The component's card, importing its module when needed; an empty card where none is given."""
    entry.load()
    for registry in KINDS.values():
        if (found := registry._entries.get((entry.task, entry.name))) is not None and found.card is not None:
            return found.card
    return Card()


def source_hash(entry: Entry[Any]) -> str:
    """SHA-256 of the file that defines a component, or "" for those of RUB, which carry version numbers.

    It enters the stage keys, so that an edit of a plug-in recomputes its results. Of one that is defined in a notebook
    it is that of its own source, without what it calls.

    Raises:
        RubError: it was typed where no source is kept, as with ``python -c``.
    """
    if entry.origin == "rub":
        return ""
    module = sys.modules[entry.origin]
    if getattr(module, "__file__", None):
        source = inspect.getsourcefile(module)
        return "" if source is None else sha256(Path(source).read_bytes()).hexdigest()
    try:
        return sha256(inspect.getsource(cast(Any, entry.load())).encode()).hexdigest()
    except (OSError, TypeError):
        raise RubError(f"{entry.name}: its source is not kept here; define it in a file or a notebook") from None


_DECORATORS = (
    "@rub.method, @rub.guidance, @rub.control, @rub.attack, @rub.network, @rub.dataset, @rub.metric, @rub.judge"
    " or rub.task"
)


def load_plugin(path: Path) -> list[Entry[Any]]:
    """Run a plug-in, a Python file or the folder of a package, so that its decorators register; what it registered."""
    if not (path.is_file() or (path / "__init__.py").is_file()):
        raise RubError(f"--plugin {path}: no such file; give a Python file that uses {_DECORATORS}")
    name = _module_name(path)
    if path.suffix.lower() in (".yaml", ".yml"):
        fields = read_protocol(path)
        summary = str(fields.get("summary", ""))
        PROTOCOLS.add(Entry(fields["name"], str(fields.get("task", "")), summary, fields, name))
    else:
        import_file(path, "--plugin")
    entries = (entry for registry in KINDS.values() for entry in registry.entries())
    found = [entry for entry in entries if f"{entry.origin}.".startswith(f"{name}.")]
    if not found:
        raise RubError(f"--plugin {path}: registers nothing; decorate a function with {_DECORATORS}")
    tasks = {entry.name for entry in TASKS.entries()}
    for entry in found:
        if entry.task not in (ANY, *tasks):
            raise RubError(f"--plugin {path}: {entry.name}: {unknown('task', entry.task, tasks)}")
    return found


def load_component(registry: Registry[Any], place: str, task: str) -> Entry[Any]:
    """Register what ``FILE.py:name`` names, under that very name, and return its entry."""
    file, _, attribute = place.rpartition(":")
    module = import_file(Path(file), registry.kind)
    function = getattr(module, attribute, None)
    if not callable(function):
        raise RubError(f"{registry.kind} {place}: {file} defines no function '{attribute}'")
    summary = (inspect.getdoc(function) or "").split("\n", 1)[0]
    entry = Entry(place, task, summary, function, module.__name__)
    registry.add(entry, given=True)
    return entry


def import_file(path: Path, what: str) -> ModuleType:
    """Import a Python file, or the folder of a package, once for each content; `what` is its part in errors."""
    folder = [str(path)] if path.is_dir() else None
    file = path / "__init__.py" if folder else path
    if not file.is_file():
        raise RubError(f"{what} {path}: no such file; give a Python file")
    name = _module_name(path)
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=folder)
        if spec is None or spec.loader is None:
            raise RubError(f"{what} {path}: not a Python file; its name should end in .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            if isinstance(error, RubError):
                raise
            raise RubError(f"{what} {path}: {type(error).__name__}: {error}") from error
    return sys.modules[name]


def _module_name(path: Path) -> str:
    content = b"".join(file.read_bytes() for file in (sorted(path.glob("*.py")) if path.is_dir() else [path]))
    return f"rub_plugin_{path.stem}_{sha256(content).hexdigest()[:8]}"
