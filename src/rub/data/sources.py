"""Image data sets by name: checked, identified by their content, and read from disk or from the hub."""

from hashlib import sha256
from inspect import Parameter
from pathlib import Path
from typing import Any

import torch

from rub.config.documents import check_plain
from rub.data.base import DatasetSource, source_of
from rub.data.folders import digest, files_below
from rub.data.samples import ImageDataset, Samples
from rub.data.selection import EVERYTHING, Selection
from rub.errors import RubError
from rub.pipeline.callback import Progress, silent
from rub.registry import DATASETS

HUB_SECONDS = 15.0  # how long a machine without the hub is kept waiting
DECODING = 2  # raised when what is made of the files of class folders changes: those of data sets with a selection


def load_images(
    name: str,
    root: Path | None,
    *,
    path: Path | None = None,
    size: int | None = None,
    selection: Selection = EVERYTHING,
    offline_seconds: float = HUB_SECONDS,
    progress: Progress = silent,
) -> ImageDataset:
    """Read a data set: from its standard layout under `root` when it is there, else from the hub.

    Args:
        name: a name of `rub list datasets`.
        root: folder that holds ``cifar-10-batches-py/`` and the like; None goes to the hub.
        path: the folder or file of data sets that have a path, such as ``folder`` and ``npz``.
        size: side in pixels to which images are resized: of a folder and of imagenet, shorter side (bicubic), then
            centre crop; of digits, bilinear.
        selection: which classes and images of class folders.
        offline_seconds: after this long without the hub, give up.
        progress: told of the images as they are decoded.

    Raises:
        RubError: an unknown name, a `size` or `selection` that the data set does not take or lacks, data that is in
            neither place, or a damaged file, which is named.

    Example:
        >>> digits = load_images("digits", None)
        >>> tuple(digits.train.images.shape), len(digits.classes)
        ((1433, 1, 8, 8), 10)
    """
    check(name, path=path, size=size, selection=selection)
    source = source_of(name)
    place = source.place(root, path)
    options = _taken(source, size=size, selection=selection, progress=progress)
    if place is None and source.hub is not None:
        read = source.hub.read(source.absent(root), offline_seconds, **options)
    else:
        read = source.read(place or root, **options)
    mean, std = (source.mean, source.std) if source.mean and source.std else statistics(read.train)
    return ImageDataset(
        read.classes, read.train, read.test, mean, std, source.flip, read.skipped, read.notes, read.files
    )


def check(name: str, *, path: Path | None = None, size: int | None = None, selection: Selection = EVERYTHING) -> None:
    """Refuse a request that does not fit its data set, before anything is read."""
    source = source_of(name)
    if path is not None:
        check_plain(path)
    if path is not None and not source.by_path:
        raise RubError(f"dataset '{name}': dataset.path is for {_which('path')} only; leave it out")
    if size is not None and "size" not in source.takes:
        raise RubError(f"dataset '{name}': dataset.size resizes {_which('size')} only; leave it out")
    if size is None and "size" in source.takes and source.takes["size"].default is Parameter.empty:
        raise RubError(f"dataset '{name}': its images differ in size; give dataset.size, such as size: 224")
    if (given := selection.given()) and "selection" not in source.takes:
        raise RubError(f"dataset '{name}': dataset.{next(iter(given))} is for {_which('selection')} only; leave it out")
    names = selection.classes
    if names is not None and (len(names) < 2 or len(set(names)) < len(names)):
        raise RubError(f"dataset.classes: got {len(names)} classes; should name two or more, each once")
    for field in ("per_class", "test_per_class"):
        if (count := getattr(selection, field)) is not None and count < 1:
            raise RubError(f"dataset.{field}: got {count}; should be 1 or more")


def fingerprint(
    name: str,
    root: Path | None,
    *,
    path: Path | None = None,
    size: int | None = None,
    selection: Selection = EVERYTHING,
) -> str:
    """SHA-256 over names and bytes of a data set's source files; for the hub, of its revision.

    Of class folders only the images that are read count: split, name, size, bytes, and `DECODING`. Of data without
    files, what the reader gives counts.
    """
    source = source_of(name)
    content = _content(source, source.place(root, path), root, size, selection)
    return sha256(f"{DECODING} {content}".encode()).hexdigest() if "selection" in source.takes else content


def _content(
    source: DatasetSource, place: Path | None, root: Path | None, size: int | None, selection: Selection
) -> str:
    if place is None and source.hub is not None:
        return sha256(source.hub.revision(source.absent(root), HUB_SECONDS, selection).encode()).hexdigest()
    if source.fingerprint is not None:
        return source.fingerprint(place, selection)
    if place is not None:
        return digest(files_below(place))
    read = source.read(root, **_taken(source, size=size, selection=selection, progress=silent))
    content = sha256(repr(read.classes).encode())
    for samples in (read.train, read.test):
        content.update(samples.images.numpy().tobytes() + samples.labels.numpy().tobytes())
    return content.hexdigest()


def statistics(samples: Samples) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and standard deviation of the images in [0, 1], computed in float64."""
    channels = samples.shape[0]
    sums, squares = torch.zeros(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    for start in range(0, len(samples), 1024):
        x = samples.images[start : start + 1024].double() / 255
        sums += x.sum(dim=(0, 2, 3))
        squares += (x * x).sum(dim=(0, 2, 3))
    count = samples.images.numel() / channels
    mean = sums / count
    std = (squares / count - mean**2).clamp_min(1e-6).sqrt()
    return tuple(round(value, 6) for value in mean.tolist()), tuple(round(value, 6) for value in std.tolist())


def _taken(source: DatasetSource, **options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in source.takes}


def _which(option: str) -> str:
    """Names of the data sets that take an option, as a list in words."""
    sources = [source_of(entry.name) for entry in DATASETS.entries()]
    names = [it.name for it in sources if (it.by_path if option == "path" else option in it.takes)]
    return ", ".join(names[:-1]) + " and " + names[-1]
