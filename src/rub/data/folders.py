"""Class folders of images: which of their files are wanted, and reading them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from rub.data.decoding import Listed, decode
from rub.data.samples import Samples
from rub.errors import RubError
from rub.pipeline.callback import Progress, silent

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".ppm", ".tif", ".tiff"}
TEST_SHARE = 5  # one image in five is a test image where the source has no split of its own


class Read(NamedTuple):
    """What a reader returns: class names in the order of the labels, training and test samples, names left out."""

    classes: tuple[str, ...]
    train: Samples
    test: Samples
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Selection:
    """Which images of class folders are read.

    Attributes:
        classes: folder names (wnids) in the order of the labels; None reads all, sorted by name.
        per_class: training images per class: those whose ``<class>/<file>`` has the smallest SHA-256; None: all.
        test_per_class: likewise for test images.
        skip_unreadable: leave out, and list, images that cannot be decoded; they are not replaced by others.

    Example:
        >>> Selection(("n01443537", "n01484850"), per_class=120).given()
        {'classes': ['n01443537', 'n01484850'], 'per_class': 120}
    """

    classes: tuple[str, ...] | None = None
    per_class: int | None = None
    test_per_class: int | None = None
    skip_unreadable: bool = False

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "Selection":
        """Return the selection that `given` wrote into a mapping, whatever else is in it."""
        classes = facts.get("classes")
        return cls(
            None if classes is None else tuple(classes),
            facts.get("per_class"),
            facts.get("test_per_class"),
            facts.get("skip_unreadable", False),
        )

    def given(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, as JSON values."""
        changed = {name: value for name, value in asdict(self).items() if value is not None and value is not False}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}

    @property
    def partial(self) -> bool:
        """Whether files are left out before any is opened."""
        return any(value is not None for value in (self.classes, self.per_class, self.test_per_class))


EVERYTHING = Selection()


@dataclass(frozen=True)
class Listing:
    """The files of a data set in official order: by label, then by name.

    Attributes:
        folder: the data set's folder.
        classes: class names, in the order of the labels.
        train: (file, label) of the training images.
        test: (file, label) of the test images.
    """

    folder: Path
    classes: tuple[str, ...]
    train: Listed
    test: Listed

    def name(self, path: Path) -> str:
        """Return a file's name relative to the data set's folder."""
        return path.relative_to(self.folder).as_posix()


def list_folder(folder: Path, selection: Selection = EVERYTHING) -> Listing:
    """List an image folder: ``train/<class>/*`` with ``test/`` or ``val/``, or ``<class>/*`` split by file name.

    Raises:
        RubError: no class folders, other classes in test than in train, or a class without images.
    """
    if not folder.is_dir():
        raise RubError(f"{folder}: not a folder; should hold <class>/* or train/<class>/*")
    base = folder / "train" if (folder / "train").is_dir() else folder
    held = next((folder / name for name in ("test", "val") if base != folder and (folder / name).is_dir()), None)
    return _listing(folder, base, held, selection)


def list_imagenet(folder: Path, selection: Selection = EVERYTHING) -> Listing:
    """List ``train/<wnid>/*`` for training and ``val/<wnid>/*`` for testing.

    Raises:
        RubError: a missing folder, or a class without images.
    """
    for name in ("train", "val"):
        if not (folder / name).is_dir():
            raise RubError(f"{folder / name}: missing; should hold one folder <wnid>/ of images for each class")
    return _listing(folder, folder / "train", folder / "val", selection)


def read_listing(listing: Listing, size: int | None, skip: bool = False, progress: Progress = silent) -> Read:
    """Decode all images of a listing.

    Args:
        listing: which files.
        size: side in pixels to which images are resized, see `picture`; None for images that have one size.
        skip: leave out images that cannot be decoded, and name them in `Read.skipped`.
        progress: told of the images decoded.

    Raises:
        RubError: an unreadable image without `skip`, a class of which no image is readable, or images of different
            sizes without `size`.
    """
    parts, lost = [], []
    for listed, use in ((listing.train, "training"), (listing.test, "test")):
        samples, skipped = decode(listed, size, skip, lambda done, total, note="", use=use: progress(done, total, use))
        if gone := {label for _, label in listed} - set(samples.labels.tolist()):
            raise RubError(
                f"{listing.folder}: no {use} image of class '{listing.classes[min(gone)]}' is readable; copy them again"
            )
        parts.append(samples)
        lost += [listing.name(path) for path in skipped]
    return Read(listing.classes, parts[0], parts[1], tuple(lost))


def pictures(folder: Path) -> list[Path]:
    """Return the image files of a folder, sorted by name.

    Raises:
        RubError: the folder is missing or holds no images.
    """
    if not folder.is_dir():
        raise RubError(f"{folder}: missing; every class should have its folder of images")
    found = sorted(item for item in folder.iterdir() if item.suffix.lower() in SUFFIXES)
    if not found:
        raise RubError(f"{folder}: no images; every class should hold some")
    return found


def _listing(folder: Path, base: Path, held: Path | None, selection: Selection) -> Listing:
    classes = _classes(folder, base, held, selection)
    train = {name: pictures(base / name) for name in classes}
    if held is not None:
        test = {name: pictures(held / name) for name in classes}
    else:
        shares = {name: (_by_hash(items, base), _share(len(items))) for name, items in train.items()}
        test = {name: items[:count] for name, (items, count) in shares.items()}
        train = {name: items[count:] for name, (items, count) in shares.items()}
    train = {name: _fewest(items, selection.per_class, base) for name, items in train.items()}
    test = {name: _fewest(items, selection.test_per_class, held or base) for name, items in test.items()}
    listing = Listing(folder, classes, _labelled(train, classes), _labelled(test, classes))
    if not listing.train or not listing.test:
        use = "testing" if listing.train else "training"
        raise RubError(f"{folder}: no images for {use}; each class should hold some")
    return listing


def _classes(folder: Path, base: Path, held: Path | None, selection: Selection) -> tuple[str, ...]:
    present = sorted(item.name for item in base.iterdir() if item.is_dir())
    if selection.classes is not None:
        if absent := [name for name in selection.classes if name not in present]:
            raise RubError(
                f"{base}: lacks {len(absent)} of the {len(selection.classes)} class folders that dataset.classes names,"
                f" such as '{absent[0]}'; each should be there"
            )
        return selection.classes
    if len(present) < 2:
        raise RubError(f"{folder}: found {len(present)} class folders; should hold <class>/* or train/<class>/*")
    if held is not None and (more := sorted({item.name for item in held.iterdir() if item.is_dir()} - set(present))):
        raise RubError(f"{held / more[0]}: no such class in {base}; both should hold the same classes")
    return tuple(present)


def _labelled(files: Mapping[str, Sequence[Path]], classes: Sequence[str]) -> Listed:
    return [(item, label) for label, name in enumerate(classes) for item in sorted(files[name])]


def _share(count: int) -> int:
    return max(1, round(count / TEST_SHARE)) if count > 1 else 0


def _fewest(items: list[Path], count: int | None, base: Path) -> list[Path]:
    return items if count is None else _by_hash(items, base)[:count]


def _by_hash(items: Sequence[Path], base: Path) -> list[Path]:
    """Sort files by the SHA-256 of ``<class>/<file>``: an added file then moves at most one other."""
    return sorted(items, key=lambda item: sha256(item.relative_to(base).as_posix().encode()).digest())
