"""Specs that tasks on images share: which data, what is forgotten, how a classifier is trained; and the data stage."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from rub.config.documents import check_plain
from rub.config.suite import Frozen, located
from rub.data.base import source_of
from rub.data.class_names import class_number
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
    """Side in pixels to which images are resized: those of ``folder``, ``npz`` and ``imagenet`` by shorter side
    (bicubic), then centre crop; ``digits`` bilinearly. Needed where images differ in size; the other data sets do not
    take it."""
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

    classes: tuple[int | str, ...] | None = None
    """Whole classes by number or name; with a fraction, those that it is drawn from."""
    fraction: float | None = Field(None, gt=0, lt=1)
    """Share of the training samples, or of those of `classes`, drawn at random."""
    ids: tuple[int, ...] | None = None
    """Ids of samples, or the path of an .npy, .csv or .txt file of them."""
    files: tuple[str, ...] | None = Field(None, exclude_if=lambda files: files is None)
    """Training samples by patterns of their names, such as ``train/church/*_0*.jpg``; of cifar100 and cifar100-coarse,
    whose images have names such as ``train/vehicles_2/rocket/17``, ``train/*/rocket/*`` is a subclass."""
    seed: int = Field(0, ge=0)
    """Seed of the random fraction."""

    @field_validator("ids", mode="before")
    @classmethod
    def _from_file(cls, value: Any) -> Any:
        return read_ids(Path(value)) if isinstance(value, str | Path) else value

    @field_validator("classes", "ids")
    @classmethod
    def _each_once(cls, chosen: tuple[int | str, ...] | None) -> tuple[int | str, ...] | None:
        """In order, each once: one forget set has one key. Names are put in order when their numbers are known."""
        if chosen is None or any(isinstance(one, str) for one in chosen):
            return chosen
        return tuple(sorted(set(chosen)))

    @model_validator(mode="after")
    def _one_way(self) -> "ForgetSpec":
        given = [name for name in ("classes", "fraction", "ids", "files") if getattr(self, name) is not None]
        if len(given) != 1 and given != ["classes", "fraction"]:
            said = " and ".join(given) or "none"
            ways = "classes, fraction, ids and files, or a fraction of classes"
            raise ValueError(f"give exactly one of {ways}, got {said}")
        if () in (self.classes, self.ids, self.files):
            raise ValueError("the forget set is empty")
        return self

    @property
    def samples(self) -> bool:
        """Whether single samples are forgotten, of classes that are kept."""
        return self.classes is None or self.fraction is not None

    @property
    def title(self) -> str:
        """The forget set in words."""
        if self.ids is not None or self.files is not None:
            return f"{len(self.ids)} listed samples" if self.ids else f"samples like {', '.join(self.files or ())}"
        classes = (
            ""
            if self.classes is None
            else ("class " if len(self.classes) == 1 else "classes ") + ", ".join(map(str, self.classes))
        )
        return classes if self.fraction is None else f"{100 * self.fraction:g} % of {classes or 'the samples'}"


def forget_set(forget: ForgetSpec, dataset: DatasetSpec, data_root: Path | None) -> ForgetSpec:
    """A forget set by numbers: of its classes, or of the samples that its files are; refused where it cannot be.

    It is refused as far as that is known before the run. Where the names of classes are not declared, and one is asked
    for by name, the images are read for them.
    """
    source, known = source_of(dataset.name), known_classes(dataset, data_root)
    if any(isinstance(one, str) for one in forget.classes or ()):
        if known is None or isinstance(known, int):
            known = _read_classes(dataset, data_root)
        numbers = [class_number(one, known, "forgotten class") for one in forget.classes or ()]
        forget = forget.model_copy(update={"classes": tuple(sorted(set(numbers)))})
    elif known is not None and not isinstance(known, int):
        _check_meant(forget.classes or (), known)
    if forget.files is not None:
        ids = _matching(forget.files, dataset, data_root)
        forget = forget.model_copy(update={"files": None, "ids": ids})
    count = known if known is None or isinstance(known, int) else len(known)
    if forget.classes is not None and count:
        check_classes(forget.classes, count, whole=not forget.samples)  # type: ignore[arg-type]
    if forget.fraction is not None and source.images and forget.fraction * source.images < 0.5:  # rounds to none
        raise RubError("forget: the forget set is empty; there should be something to forget")
    return forget


def _check_meant(labels: Iterable[int | str], names: Sequence[str]) -> None:
    """Refuse a number that is the label of one class and the name of another: folders 1, 10, 2 have labels 0, 1, 2."""
    for label in labels:
        name = str(label)
        if isinstance(label, int) and 0 <= label < len(names) and name in names and names[label] != name:
            raise RubError(
                f"forget.classes: {label} is the label of class '{names[label]}', and class '{name}' has the label"
                f' {names.index(name)}; give a name in quotes, "{names[label]}" or "{name}"'
            )


def _matching(patterns: Sequence[str], dataset: DatasetSpec, data_root: Path | None) -> tuple[int, ...]:
    source = source_of(dataset.name)
    place = source.place(data_root, _place(dataset, data_root))
    if source.named is None or place is None:
        lacks = "has no files with names" if source.named is None else "is not on disk, where its names are read"
        raise RubError(f"forget.files: data set '{dataset.name}' {lacks}; give ids")
    names = source.named(place, _selection(dataset))
    found = dict[int, None]()
    for pattern in patterns:
        own = [number for number, name in names.items() if fnmatchcase(name, pattern)]
        if not own:
            example = next(iter(names.values()), "none")
            raise RubError(f"forget.files: no training image is called like '{pattern}'; the first is {example}")
        found |= dict.fromkeys(own)
    return tuple(sorted(found))


def known_classes(dataset: DatasetSpec, data_root: Path | None) -> int | Sequence[str] | None:
    """Classes of a data set, by name or number, as far as they are known before its images are read."""
    if dataset.classes is not None:
        return _chosen(dataset)
    source = source_of(dataset.name)
    if not callable(source.classes):
        return source.classes
    path = _place(dataset, data_root)
    if path is not None and not path.exists():  # what reads it says so
        return None
    if path is not None:
        check_plain(path)
    place = source.place(data_root, path)
    return None if place is None else source.classes(place)


def _read_classes(dataset: DatasetSpec, data_root: Path | None) -> tuple[str, ...]:
    from rub.data.sources import load_images

    path = _place(dataset, data_root)
    return load_images(dataset.name, data_root, path=path, size=dataset.size, selection=_selection(dataset)).classes


def _place(dataset: DatasetSpec, data_root: Path | None) -> Path | None:
    return located(dataset.path, data_root) if dataset.path is not None else None


def _chosen(dataset: DatasetSpec) -> tuple[str, ...] | None:
    from rub.data.imagenet import i2i_wnids

    return i2i_wnids() if dataset.classes == "i2i" else dataset.classes


def _selection(dataset: DatasetSpec) -> Selection:
    return Selection(_chosen(dataset), dataset.per_class, dataset.test_per_class, dataset.skip_unreadable)


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


def data_stage(task: str, dataset: DatasetSpec, data_root: Path | None) -> Stage:
    """Stage that decodes the data set once; its key holds the hash of the source files, and of a plug-in's reader."""
    from rub.data.sources import check, fingerprint

    path, selection = _place(dataset, data_root), _selection(dataset)
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
