"""One model of a zoo: the facts in its ``config.json``, and whether its files are as these say. Free of torch."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from rub.config.hyperparameters import first_error
from rub.config.suite import Frozen
from rub.errors import RubError
from rub.registry import TASKS, load_target
from rub.reports.text import printable, slug
from rub.store.artifacts import Artifact, file_sha256

if TYPE_CHECKING:
    from torch import nn

CONFIG, FACTS = "config.json", "rub"
WEIGHTS = "model.safetensors"
LARGEST = 1 << 20  # bytes of a config
DTYPES = ("float32", "float16", "bfloat16")
_FILE = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]{0,60}/){0,3}[A-Za-z0-9_][A-Za-z0-9_.-]{0,60}\.(safetensors|json|txt)")
_BESIDE = ("README.md", CONFIG, "witnesses")  # what a folder holds that is not part of the model
_CODE = frozenset({".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".py", ".npy"})  # what loading could run


class ZooModel(Frozen):
    """What is known of a model: the object ``rub`` in ``config.json``; further fields are left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Literal[1] = 1
    task: str
    dataset: str
    """As records name it."""
    model: str
    """Name of the network, likewise."""
    method: str
    """Row: an unlearning method, ``original``, ``retrain``, another control, or ``dose-5`` (percent)."""
    seed: int | None = Field(None, ge=0, lt=1 << 62)
    original: int = Field(0, ge=0)
    """Number of the original model that it belongs to."""
    network: dict[str, Any]
    """What the task builds it from."""
    data: dict[str, Any] = Field(default_factory=dict)
    """Specification of the data set, as an experiment has it, without a path."""
    forget: dict[str, Any] = Field(default_factory=dict)
    hyperparameters: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    """Of the original model."""
    suite: str = ""
    experiment: str = ""
    protocol: str = ""
    key: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    """Key of the stage that made it."""
    measured: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    """SHA-256 of the weights that were measured, as records have it; another one than of its file where that is of
    another type."""
    attacked: dict[str, float] = Field(default_factory=dict, max_length=64)
    """Budget -> what the task's robustness metric was after the protocol's main attack, such as UA at ``8/255``."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    code_version: str = ""
    files: dict[str, str] = Field(min_length=1, max_length=200)
    """File -> SHA-256, of every file that is read."""

    @property
    def name(self) -> str:
        """Its name in a zoo, such as ``zoo/cifar10/resnet10-w16/salun/0``."""
        return "/".join(("zoo", self.place))

    @property
    def place(self) -> str:
        """Its folder in a zoo."""
        number = "" if self.original == 0 else f"original-{self.original}-"
        data = "-".join(filter(None, (self.dataset, self.experiment)))
        return "/".join((slug(data), slug(self.model), slug(self.method), f"{number}{self.seed or 0}"))


@dataclass(frozen=True)
class Shelf:
    """How models of a task are published and read again.

    Attributes:
        weights: name of the file of weights, in float32 the bytes that were measured; "" where there are several.
        write: from a model's artifact, those of the stage that made it by role, a folder and a dtype: writes its files
            there, and returns what it is built from.
        read: from its folder and facts to the module in eval mode, in float32, on the CPU.
        probe: a small batch that the module takes, to see that it gives finite numbers.
        audited: from a model's folder and facts to the file or folder of it that an audit reads.
        unsaid: from an original's facts and an audit's options to the options that need not be given.
    """

    weights: str
    write: Callable[[Artifact, Mapping[str, Artifact], Path, str], dict[str, Any]]
    read: Callable[[Path, ZooModel], "nn.Module"]
    probe: Callable[["nn.Module", ZooModel], Any]
    audited: Callable[[Path, ZooModel], Path]
    unsaid: Callable[[ZooModel, Mapping[str, Any]], dict[str, Any]]


def shelf_of(task: str) -> Shelf:
    """How models of a task are kept.

    Raises:
        RubError: an unknown task, or one whose models have no zoo.
    """
    target = TASKS.get(task, task).load().zoo
    if not target:
        raise RubError(f"task {task}: its models have no zoo")
    shelf: Shelf = load_target(target)
    return shelf


def is_zoo_model(folder: Path) -> bool:
    """Whether a folder is one of a zoo's models: its config has an object ``rub``."""
    try:
        return FACTS in _config(folder)
    except RubError:
        return False


def read_model(folder: Path) -> ZooModel:
    """Facts of a model.

    Raises:
        RubError: no such folder, no config, or facts that are none.
    """
    facts = _config(folder).get(FACTS)
    if not isinstance(facts, dict):
        raise RubError(f"{folder}: its {CONFIG} has no object '{FACTS}'; give a folder written by rub publish")
    try:
        return ZooModel.model_validate(facts)
    except ValidationError as error:
        raise RubError(printable(f"{folder / CONFIG}: {first_error(error, FACTS, ZooModel.model_fields)}")) from None


def faults(folder: Path, model: ZooModel) -> Iterator[str]:
    """One line for each of a model's files that is not the one that its facts name; none where it can be read."""
    for name, sha256 in model.files.items():
        file = folder / name
        if not _FILE.fullmatch(name):
            yield f"the file '{printable(name)[:80]}' should be a plain name of safetensors, JSON or text"
        elif _leads_out(file, folder):
            yield f"{name} is a link"
        elif not file.is_file():
            yield f"{name} is missing"
        elif file_sha256(file) != sha256:
            yield f"{name} has another SHA-256 than its {CONFIG} names"
    wanted = shelf_of(model.task).weights
    if wanted and wanted not in model.files:
        yield f"its {CONFIG} does not name {wanted}"
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.suffix.lower() in _CODE:
            yield f"{printable(name)} could run code when it is loaded: a zoo has none"
        elif not (name.startswith(".") or name.split("/")[0] in _BESIDE or name in model.files or file.is_dir()):
            yield f"{printable(name)} is not among the files that its {CONFIG} names"


def _leads_out(file: Path, folder: Path) -> bool:
    """Whether a file is, or lies behind, a link; those of the Hub's cache to its own blobs are none."""
    if not any(part.is_symlink() for part in (file, *file.parents) if part.is_relative_to(folder) and part != folder):
        return False
    blobs = next((part / "blobs" for part in folder.parents if part.name.startswith("models--")), None)
    return blobs is None or not file.resolve().is_relative_to(blobs.resolve())


def checked(folder: Path) -> ZooModel:
    """Facts of a model, all of whose files are those that they name.

    Raises:
        RubError: the first thing that is wrong.
    """
    model = read_model(folder)
    if found := next(faults(folder, model), None):
        raise RubError(f"{folder}: {found}")
    return model


def _config(folder: Path) -> dict[str, Any]:
    place = folder / CONFIG
    if _leads_out(place, folder) or not place.is_file():
        raise RubError(f"{folder}: no {CONFIG} here; give a folder written by rub publish")
    try:
        if place.stat().st_size > LARGEST:
            raise ValueError
        found = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise RubError(f"{place}: should be a JSON object of at most {LARGEST >> 20} MiB") from None
    if not isinstance(found, dict):
        raise RubError(f"{place}: should be a JSON object")
    return found
