"""Class folders of images: which of their files are wanted, and reading them."""

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np

from rub.config.documents import check_plain
from rub.data.decoding import Listed, decode, notes_of
from rub.data.selection import EVERYTHING, Read, Selection
from rub.errors import RubError
from rub.pipeline.callback import Progress, silent

SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff",
    ".avif", ".jp2", ".heic", ".heif",
}  # fmt: skip
"""Endings of pictures; what Pillow cannot read of them is refused by name, not passed over."""
LEFT = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information", "__pycache__"}
"""Folders that programs leave among others, beside those whose names begin with a dot."""
HELD = ("test", "val", "validation", "valid")  # folder of the images beside train/ that are not trained on
SAID = 1 << 32  # bytes between two messages that files are still being looked through
TEST_SHARE = 5  # one image in five is a test image where the source has no split of its own
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """The files of a data set in official order: by label, then by name.

    Attributes:
        folder: the data set's folder.
        classes: class names, in the order of the labels.
        train: (file, label) of the training images.
        test: (file, label) of the test images.
        bases: the folders that hold those of the classes.
    """

    folder: Path
    classes: tuple[str, ...]
    train: Listed
    test: Listed
    bases: tuple[Path, ...] = ()

    def name(self, path: Path) -> str:
        """File name relative to the data set's folder."""
        return path.relative_to(self.folder).as_posix()

    @cached_property
    def files(self) -> Mapping[int, str]:
        """Sample id -> file name; ids are those of `sample_id`, or, where another file has that, the next free one."""
        found: dict[int, str] = {}
        for name in sorted(self.name(path) for path, _ in (*self.train, *self.test)):
            number = sample_id(name)
            while number in found:
                number += 1
            found[number] = name
        return found

    def elsewhere(self) -> Mapping[str, list[str]]:
        """Where images lie that are not read, in words -> their names."""
        beside = [item for place in {self.folder, *self.bases} for item in place.iterdir() if _is_image(item)]
        inside = (base / name for base in self.bases for name in self.classes)
        deeper = [item for place in inside for below in _folders(place) for item in _images_below(place / below)]
        parts = _folders(self.folder) - {base.name for base in self.bases} if self.folder not in self.bases else ()
        unused = [item for part in parts for item in _images_below(self.folder / part)]
        found = {"in a folder below that of a class": deeper, "beside the folders of classes": beside,
                 f"beside {' and '.join(base.name for base in self.bases)}": unused}  # fmt: skip
        return {f"not read, {where}": sorted(map(self.name, items)) for where, items in found.items() if items}


def read_folder(
    folder: Path, *, size: int | None = None, selection: Selection = EVERYTHING, progress: Progress = silent
) -> Read:
    """Read any image folder, see `list_folder`."""
    return read_listing(list_folder(folder, selection), size, selection.skip_unreadable, progress)


def read_imagenet(folder: Path, *, size: int, selection: Selection = EVERYTHING, progress: Progress = silent) -> Read:
    """Read ``train/<wnid>/*`` and ``val/<wnid>/*``."""
    return read_listing(list_imagenet(folder, selection), size, selection.skip_unreadable, progress)


def folder_fingerprint(folder: Path, selection: Selection) -> str:
    """SHA-256 of the selected files of an image folder: split, name, size, bytes."""
    return _listing_digest(list_folder(folder, selection))


def imagenet_fingerprint(folder: Path, selection: Selection) -> str:
    """SHA-256 of the selected files: split, name, size, bytes."""
    return _listing_digest(list_imagenet(folder, selection))


def folder_names(folder: Path, selection: Selection) -> Mapping[int, str]:
    """Names of the training images of an image folder."""
    return _train_names(list_folder(folder, selection))


def imagenet_names(folder: Path, selection: Selection) -> Mapping[int, str]:
    """Names of the training images below ``train/``."""
    return _train_names(list_imagenet(folder, selection))


def _train_names(listing: Listing) -> Mapping[int, str]:
    trained = {listing.name(path) for path, _ in listing.train}
    return {number: name for number, name in listing.files.items() if name in trained}


def files_below(place: Path) -> Iterable[tuple[str, Path]]:
    """Name and path of a file, or of all files of a folder, sorted by path."""
    files = [place] if place.is_file() else sorted(item for item in place.rglob("*") if item.is_file())
    return ((item.relative_to(place).as_posix(), item) for item in files)


def digest(files: Iterable[tuple[str, Path]]) -> str:
    """SHA-256 over (what names a file, NUL, its bytes) of each file."""
    found, read = sha256(), 0
    try:
        for name, item in files:
            check_plain(item)
            found.update(name.encode() + b"\0")
            with item.open("rb") as stream:
                while block := stream.read(1 << 20):
                    found.update(block)
                    read += len(block)
                    if read % SAID < len(block):
                        _LOG.info("%.1f GB of data looked through for changes, now at %s", read / 1e9, item)
    except OSError as error:
        raise RubError(f"{error.filename}: cannot be read ({error.strerror}); check the file and its rights") from None
    return found.hexdigest()


def list_folder(folder: Path, selection: Selection = EVERYTHING) -> Listing:
    """List an image folder: ``train/<class>/*`` with one of `HELD`, or ``<class>/*`` split by file name.

    ``Train`` is ``train``. What programs leave is not looked at: names that begin with a dot, and those of `LEFT`.

    Raises:
        RubError: no class folders, other classes in test than in train, or a class without images.
    """
    if not folder.is_dir():
        raise RubError(f"{folder}: not a folder; should hold <class>/* or train/<class>/*")
    parts = {name.lower(): folder / name for name in sorted(_folders(folder))}
    base = parts.get("train", folder)
    held = next((parts[name] for name in HELD if base != folder and name in parts), None)
    return _listing(folder, base, held, selection)


def class_folders(folder: Path) -> tuple[str, ...]:
    """Classes of an image folder."""
    return list_folder(folder).classes


def imagenet_classes(folder: Path) -> tuple[str, ...]:
    """Classes of ``train/``."""
    return list_imagenet(folder).classes


def sample_id(name: str) -> int:
    """Id of the sample in a file, by its name below the data set's folder: the first 48 bits of its SHA-256.

    Another file does not change it, and JSON and JavaScript hold it whole.

    Example:
        >>> sample_id("train/ant/3.jpg")
        255460237966849
    """
    return int.from_bytes(sha256(name.encode()).digest()[:6], "big")


def list_imagenet(folder: Path, selection: Selection = EVERYTHING) -> Listing:
    """List ``train/<wnid>/*`` for training and ``val/<wnid>/*`` for testing."""
    for name in ("train", "val"):
        if not (folder / name).is_dir():
            raise RubError(f"{folder / name}: missing; should hold one folder <wnid>/ of images for each class")
    return _listing(folder, folder / "train", folder / "val", selection)


def read_listing(listing: Listing, size: int | None, skip: bool = False, progress: Progress = silent) -> Read:
    """Decode all images of a listing.

    Args:
        listing: which files.
        size: side in pixels to which images are resized, see `read_image`; None for images that have one size.
        skip: leave out images that cannot be decoded, and name them in `Read.skipped`.
        progress: told of the images decoded.

    Raises:
        RubError: an unreadable image without `skip`, a class of which no image is readable, or images of different
            sizes without `size`.
    """
    parts, lost, remarks = [], [], dict(listing.elsewhere())
    ids = {name: number for number, name in listing.files.items()}
    for listed, use in ((listing.train, "training"), (listing.test, "test")):
        numbers = np.array([ids[listing.name(path)] for path, _ in listed], dtype=np.int64)
        samples, skipped, done = decode(
            listed, size, skip, lambda made, total, note="", use=use: progress(made, total, use), numbers
        )
        if gone := {label for _, label in listed} - set(samples.labels.tolist()):
            raise RubError(
                f"{listing.folder}: no {use} image of class '{listing.classes[min(gone)]}' is readable; copy them again"
            )
        parts.append(samples)
        lost += [listing.name(path) for path in skipped]
        for remark, paths in done.items():
            remarks.setdefault(remark, []).extend(map(listing.name, paths))
    return Read(listing.classes, parts[0], parts[1], tuple(lost), notes_of(remarks), listing.files)


def image_files(folder: Path) -> list[Path]:
    """Image files of a folder, sorted by name."""
    if not folder.is_dir():
        raise RubError(f"{folder}: missing; every class should have its folder of images")
    found = sorted(item for item in folder.iterdir() if _is_image(item))
    if not found:
        raise RubError(f"{folder}: no images; every class should hold some")
    for item in found:
        _check_name(item)
    return found


def _is_image(item: Path) -> bool:
    return item.suffix.lower() in SUFFIXES and not _hidden(item)


def _images_below(place: Path) -> Iterator[Path]:
    return (item for item in place.rglob("*") if _is_image(item) and item.is_file())


def _check_name(path: Path) -> None:
    """File systems take bytes that are no text, and results name files and classes."""
    if _NO_TEXT.search(path.name):
        raise RubError(f"{path.parent}: the name {ascii(path.name)[:80]} is no text; rename it")


def _listing_digest(listing: Listing) -> str:
    return digest(
        (f"{split}\0{listing.name(item)}\0{item.stat().st_size}", item)
        for split, listed in (("train", listing.train), ("test", listing.test))
        for item, _ in listed
    )


def _listing(folder: Path, base: Path, held: Path | None, selection: Selection) -> Listing:
    classes = _classes(folder, base, held, selection)
    train = {name: image_files(base / name) for name in classes}
    if held is not None:
        test = {name: image_files(held / name) for name in classes}
    else:
        test = {}
        for name, items in train.items():
            count = max(1, round(len(items) / TEST_SHARE)) if len(items) > 1 else 0
            ordered = _by_hash(items, base)
            test[name], train[name] = ordered[:count], ordered[count:]
    train = {name: _fewest(items, selection.per_class, base) for name, items in train.items()}
    test = {name: _fewest(items, selection.test_per_class, held or base) for name, items in test.items()}
    bases = (base,) if held is None else (base, held)
    listing = Listing(folder, classes, _labelled(train, classes), _labelled(test, classes), bases)
    if not listing.train or not listing.test:
        use = "testing" if listing.train else "training"
        raise RubError(f"{folder}: no images for {use}; each class should hold some")
    return listing


def _classes(folder: Path, base: Path, held: Path | None, selection: Selection) -> tuple[str, ...]:
    present = sorted(_folders(base))
    for name in present:
        _check_name(base / name)
    if selection.classes is not None:
        if absent := [name for name in selection.classes if name not in present]:
            raise RubError(
                f"{base}: lacks {len(absent)} of the {len(selection.classes)} class folders that dataset.classes names,"
                f" such as '{absent[0]}'; each should be there"
            )
        return selection.classes
    if len(present) < 2:
        raise RubError(f"{folder}: found {len(present)} class folders; should hold <class>/* or train/<class>/*")
    if held is not None and (more := sorted(_folders(held) - set(present))):
        raise RubError(f"{held / more[0]}: no such class in {base}; both should hold the same classes")
    return tuple(present)


def _folders(place: Path) -> set[str]:
    with os.scandir(place) as items:
        return {item.name for item in items if item.is_dir() and not _hidden(item)}


def _hidden(item: Path | os.DirEntry[str]) -> bool:
    """Whether a program left it there for itself: ``.ipynb_checkpoints``, ``._0.png``, ``__MACOSX``."""
    return item.name.startswith(".") or item.name.lower() in LEFT


def _labelled(files: Mapping[str, Sequence[Path]], classes: Sequence[str]) -> Listed:
    return [(item, label) for label, name in enumerate(classes) for item in sorted(files[name])]


def _fewest(items: list[Path], count: int | None, base: Path) -> list[Path]:
    return items if count is None else _by_hash(items, base)[:count]


def _by_hash(items: Sequence[Path], base: Path) -> list[Path]:
    """Sort files by the SHA-256 of ``<class>/<file>``: an added file then moves at most one other."""
    return sorted(items, key=lambda item: sha256(item.relative_to(base).as_posix().encode()).digest())
