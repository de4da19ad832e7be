"""What a data set declares: where its files lie, how they are read, and what a suite may ask of it. Free of torch."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from rub.data.selection import Read, Selection
from rub.errors import RubError
from rub.registry import ANY, DATASETS, Entry

if TYPE_CHECKING:
    from rub.data.hub import HubDataset
    from rub.data.imagenet import HubImageNet

F = TypeVar("F", bound=Callable[..., Any])
OPTIONS = ("size", "selection", "progress")
"""Keyword arguments that a reader may have."""


_OPTION_FIELDS = {"size": ("size",), "selection": tuple(field.name for field in fields(Selection)), "progress": ()}


@dataclass(frozen=True)
class DatasetSource:
    """How a named data set is found and read.

    Attributes:
        name: as suites call it.
        read: ``read(place, *, size, selection, progress) -> Read``, with those of the three keyword arguments that the
            data set takes; one without a default must be given. `place` is the folder of the layout, or
            ``dataset.path``, or else the data root (None where there is none).
        layout: folder below the data root that holds its files.
        inside: what the layout should hold, for the message that it is not there.
        by_path: its place is ``dataset.path``, which names it in tables.
        hub: where it is downloaded from when the layout is not there.
        fingerprint: (place, selection) -> SHA-256 of the content; None: of all files of the place, or, where it has
            none, of what the reader gives.
        mean: per-channel mean for normalisation, in [0, 1] pixel space; None: of its training images.
        std: per-channel standard deviation, likewise.
        flip: whether mirroring an image keeps its class.
        images: number of training images, where it is known before they are read; for estimates of cost.
        classes: number of classes, likewise, or how to count those of the place; a forgotten class that does not exist
            is then refused before the run.
        names: class names in the order of the labels, likewise, or how to list those of the place; none where they
            cannot be listed. A concept that is none of them is then refused before the run.
    """

    name: str
    read: Callable[..., Read]
    layout: str | None = None
    inside: str = ""
    by_path: bool = False
    hub: "HubDataset | HubImageNet | None" = None
    fingerprint: Callable[..., str] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    flip: bool = False
    images: int | None = None
    classes: int | Callable[[Path], int] | None = None
    names: Sequence[str] | Callable[[Path], Sequence[str]] = ()

    def __post_init__(self) -> None:
        if strange := sorted(self.takes.keys() - set(OPTIONS)):
            raise RubError(
                f"dataset '{self.name}': its reader asks for '{strange[0]}'; it can take {', '.join(OPTIONS)}"
            )

    @property
    def takes(self) -> Mapping[str, inspect.Parameter]:
        """Keyword arguments of the reader: which of `OPTIONS` the data set takes."""
        arguments = inspect.signature(self.read).parameters
        return {name: it for name, it in arguments.items() if it.kind is inspect.Parameter.KEYWORD_ONLY}

    @property
    def facts(self) -> dict[str, str]:
        """What is declared, in words, for `rub show`.

        Example:
            >>> source_of("cifar10").facts["files"]
            'cifar-10-batches-py/ below the data root, else uoft-cs/cifar10 on the hub'
        """
        layout = f"{self.layout}/{self.inside} below the data root" if self.layout else ""
        hub = f"{self.hub.id} on the hub" if self.hub is not None else ""
        counts = {"training images": self.images, "classes": self.classes}
        values = {
            "files": "dataset.path" if self.by_path else ", else ".join(filter(None, (layout, hub))) or "none",
            "options": ", ".join(name for option in self.takes for name in _OPTION_FIELDS[option]),
            "known": ", ".join(f"{count:,} {what}" for what, count in counts.items() if isinstance(count, int)),
            "mean, std": f"{self.mean}, {self.std}" if self.mean else "of its training images",
            "mirrored": "in training" if self.flip else "never",
        }
        return {name: value for name, value in values.items() if value}

    def place(self, root: Path | None, path: Path | None) -> Path | None:
        """Folder or file that holds the data; None for data from the hub, or made by its reader."""
        if self.by_path:
            if path is None:
                raise RubError(f"dataset '{self.name}': needs dataset.path, the folder or file to read")
            if not path.exists():
                raise RubError(f"dataset '{self.name}': {path} does not exist; dataset.path should be what is read")
            return path
        if self.layout is None:
            return None
        if root is not None and (root / self.layout).exists():
            return root / self.layout
        if self.hub is None:
            raise RubError(self.absent(root))
        return None

    def absent(self, root: Path | None) -> str:
        """What is not under the data root, and how to provide it."""
        folder = f"{self.layout}/{self.inside}"
        place = f"{folder} is not under {root}" if root is not None else "no --data-root is given"
        also = ", and the hub data set" if self.hub is not None else ""
        return f"{self.name}: {place} (put {folder} there and name it with --data-root or RUB_DATA){also}"


def source_of(name: str) -> DatasetSource:
    """Declaration of a data set by name.

    Example:
        >>> source_of("cifar10").layout, source_of("cifar10").images
        ('cifar-10-batches-py', 50000)
    """
    return cast(DatasetSource, DATASETS.get(name, ANY).load())


def dataset(name: str, **declared: Any) -> Callable[[F], F]:
    """Register a data set by its reader, ``def f(place, *, size, selection) -> (x_train, y_train, x_test, y_test)``.

    A fifth item may be the class names. Images are (N, H, W), (N, H, W, C) or (N, C, H, W), uint8 or floats in [0, 1],
    arrays or tensors; labels are class numbers from 0. Without a `layout` the data are identified by what the reader
    gives, so that it runs once more for every plan. A reader may give a `Read` too.

    Args:
        name: as suites call it.
        declared: fields of `DatasetSource`: layout, by_path, mean, std, flip, images, classes, names.
    """

    def register(function: F) -> F:
        @wraps(function)
        def read(place: Path | None, **options: Any) -> Read:
            from rub.data.readers import from_arrays

            where = f"dataset '{name}'"
            try:
                found = function(place, **options)
            except (RubError, MemoryError):
                raise
            except Exception as error:
                raise RubError(f"{where}: {type(error).__name__}: {' '.join(str(error).split())}") from error
            if isinstance(found, Read):
                return found
            if not isinstance(found, tuple) or len(found) not in (4, 5):
                raise RubError(f"{where}: should give (x_train, y_train, x_test, y_test), got {type(found).__name__}")
            return from_arrays(where, *found)

        source = DatasetSource(name, read, **declared)
        summary = (inspect.getdoc(function) or "").split("\n", 1)[0]
        DATASETS.add(Entry(name, ANY, summary, source, function.__module__))
        return function

    return register
