"""Specs that tasks on images share: which data, what is forgotten, how a classifier is trained; and the data stage."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from rub.config.suite import Frozen, located
from rub.data.base import source_of
from rub.data.id_files import read_ids
from rub.data.selection import Selection
from rub.errors import RubError
from rub.pipeline.graph import Stage
from rub.registry import DATASETS, source_hash

DATA_VERSION = 1  # raised when the data stage's results change


class DatasetSpec(Frozen):
    """Which images, and how they are split."""

    bare_field = "name"
    name: str
    """A name of `rub list datasets`; ``folder`` and ``npz`` need a path."""
    path: str | None = None
    """As it is, or below the data root."""
    size: int | None = Field(None, ge=4, le=1024)
    """Side in pixels to which images are resized: those of ``folder`` and ``imagenet`` by shorter side (bicubic), then
    centre crop; ``digits`` bilinearly. Needed where images differ in size; the other data sets do not take it."""
    classes: tuple[str, ...] | Literal["i2i"] | None = None
    """Class folders (wnids) to read, in the order of the labels, of ``folder`` and ``imagenet``; ``i2i``: the paper's
    200 ImageNet classes, of which labels 0 to 99 are forgotten and 100 to 199 retained; left out: all."""
    per_class: int | None = Field(None, ge=1)
    """Training images per class, of ``folder`` and ``imagenet``: a fixed subset, those whose ``<class>/<file>`` has the
    smallest SHA-256 (from the hub: the first of its order)."""
    test_per_class: int | None = Field(None, ge=1)
    """Test images per class, likewise."""
    skip_unreadable: bool = False
    """Leave out images of ``folder`` and ``imagenet`` that cannot be decoded, and list them with the data; else the
    first one ends the run with its name."""
    validation: float = Field(0.1, ge=0, lt=1)
    """Fraction of each training class that is never trained on (Unlearn-Saliency holds out 0.1 of CIFAR)."""

    @property
    def title(self) -> str:
        """Name in records and tables: of a folder or file of the user's, its own.

        Example:
            >>> DatasetSpec(name="folder", path="data/imagenette2-64").title, DatasetSpec(name="cifar10").title
            ('imagenette2-64', 'cifar10')
        """
        if self.path is None:
            return self.name
        own = Path(self.path).stem
        others = {"none", *(entry.name for entry in DATASETS.entries())} - {self.name}  # not to be taken for these
        return f"{own} ({self.name})" if own in others else own


class TrainingSpec(Frozen):
    """How the original, the retrained and the shadow models are trained (SGD; Unlearn-Saliency's values by default)."""

    epochs: int = Field(182, ge=1)
    lr: float = Field(0.1, gt=0)
    schedule: Literal["steps", "onecycle", "cosine"] = "steps"
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    batch_size: int = Field(256, ge=2)
    padding: int = Field(4, ge=0, le=32)
    """Zero padding of the random crop; 0 switches it off. Mirroring follows the data set (off for digits)."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"


class ForgetSpec(Frozen):
    """What is to be forgotten: whole classes (jointly), a random fraction of all samples or of classes, or listed ones.

    Example:
        >>> ForgetSpec(classes=(0, 3)).samples, ForgetSpec(classes=(0, 3), fraction=0.5).samples
        (False, True)
        >>> ForgetSpec(fraction=0.1).title, ForgetSpec(ids=(7, 9)).title
        ('10 % of the samples', '2 listed samples')
    """

    classes: tuple[int, ...] | None = None
    """Whole classes; with a fraction, those that it is drawn from."""
    fraction: float | None = Field(None, gt=0, lt=1)
    """Share of the training samples, or of those of `classes`, drawn at random."""
    ids: tuple[int, ...] | None = None
    """Ids of samples, or the path of an .npy, .csv or .txt file of them."""
    seed: int = Field(0, ge=0)
    """Seed of the random fraction."""

    @field_validator("ids", mode="before")
    @classmethod
    def _from_file(cls, value: Any) -> Any:
        return read_ids(Path(value)) if isinstance(value, str | Path) else value

    @model_validator(mode="after")
    def _one_way(self) -> "ForgetSpec":
        given = [name for name in ("classes", "fraction", "ids") if getattr(self, name) is not None]
        if len(given) != 1 and given != ["classes", "fraction"]:
            said = " and ".join(given) or "none"
            raise ValueError(f"give exactly one of classes, fraction and ids, or a fraction of classes, got {said}")
        if self.classes == () or self.ids == ():
            raise ValueError("the forget set is empty")
        return self

    @property
    def samples(self) -> bool:
        """Whether single samples are forgotten, of classes that are kept."""
        return self.fraction is not None or self.ids is not None

    @property
    def title(self) -> str:
        """The forget set in words."""
        if self.ids is not None:
            return f"{len(self.ids)} listed samples"
        classes = (
            ""
            if self.classes is None
            else ("class " if len(self.classes) == 1 else "classes ") + ", ".join(map(str, self.classes))
        )
        return classes if self.fraction is None else f"{100 * self.fraction:g} % of {classes or 'the samples'}"


def check_forget(forget: ForgetSpec, dataset: DatasetSpec, data_root: Path | None) -> None:
    """Refuse, before anything runs, a forget set that cannot be, as far as that is known before images are read."""
    source = source_of(dataset.name)
    known = 200 if dataset.classes == "i2i" else len(dataset.classes or ()) or source.classes
    count = known(located(dataset.path or "", data_root)) if callable(known) else known
    if forget.classes is not None and count:
        check_classes(forget.classes, count, whole=not forget.samples)
    if forget.fraction is not None and source.images and forget.fraction * source.images < 0.5:  # rounds to none
        raise RubError("forget: the forget set is empty; there should be something to forget")


def check_classes(classes: Iterable[int], count: int, *, whole: bool = True) -> None:
    """Raise `RubError` for a class that does not exist among `count`, or when all of them are forgotten whole."""
    chosen = set(classes)
    for label in sorted(chosen):
        if not 0 <= label < count:
            raise RubError(f"forget.classes: class {label} does not exist; the data has classes 0 to {count - 1}")
    if whole and len(chosen) == count:
        raise RubError("forget: the forget set is the whole training set; there should be something to keep")


def num_images(dataset: DatasetSpec, otherwise: int) -> int:
    """Number of training images for estimates of cost, or `otherwise` where it is not known before they are read."""
    return source_of(dataset.name).images or otherwise


def class_names(dataset: DatasetSpec, data_root: Path | None) -> tuple[str, ...]:
    """Class names of a data set in the order of the labels, where they are known before images are read; else ()."""
    from rub.data.imagenet import i2i_wnids

    if dataset.classes is not None:
        return i2i_wnids() if dataset.classes == "i2i" else dataset.classes
    source, path = source_of(dataset.name), located(dataset.path, data_root) if dataset.path is not None else None
    if not callable(source.names):
        return tuple(source.names)
    if path is not None and not path.exists():  # what reads it says so
        return ()
    place = source.place(data_root, path)
    return () if place is None else tuple(source.names(place))


def data_stage(task: str, dataset: DatasetSpec, data_root: Path | None) -> Stage:
    """Stage that decodes the data set once; its key holds the hash of the source files, and of a plug-in's reader."""
    from rub.data.imagenet import i2i_wnids
    from rub.data.sources import check, fingerprint

    path = located(dataset.path, data_root) if dataset.path is not None else None
    classes = i2i_wnids() if dataset.classes == "i2i" else dataset.classes
    selection = Selection(classes, dataset.per_class, dataset.test_per_class, dataset.skip_unreadable)
    name, size = dataset.name, dataset.size
    check(name, path=path, size=size, selection=selection)
    source = source_hash(DATASETS.get(name, task))
    spec = {
        "name": name,
        "size": size,
        "fingerprint": fingerprint(name, data_root, path=path, size=size, selection=selection),
        **selection.given(),  # only what is given, so that data without a selection keeps its key
        **({"source": source} if source else {}),
    }
    files = {"path": path} if path is not None else {}
    return Stage(task, "data", DATA_VERSION, f"read {name}", spec, files=files, cost=1000)
