"""Class folders of images: which of their files are wanted, and reading them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from rub.data.decoding import Listed, decode
from rub.data.selection import EVERYTHING, Read, Selection
from rub.errors import RubError
from rub.pipeline.callback import Progress, silent

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".ppm", ".tif", ".tiff"}
TEST_SHARE = 5  # one image in five is a test image where the source has no split of its own


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
        """File name relative to the data set's folder."""
        return path.relative_to(self.folder).as_posix()


def read_folder(
    folder: Path, *, size: int | None = None, selection: Selection = EVERYTHING, progress: Progress = silent
) -> Read:
    """Read any image folder, see `list_folder`."""
    return read_listing(list_folder(folder, selection), size, selection.skip_unreadable, progress)


def read_imagenet(folder: Path, *, size: int, selection: Selection = EVERYTHING, progress: Progress = silent) -> Read:
    """Read ``train/<wnid>/*`` and ``val/<wnid>/*``."""
    return read_listing(list_imagenet(folder, selection), size, selection.skip_unreadable, progress)


def folder_fingerprint(folder: Path, selection: Selection) -> str:
    """SHA-256 of all files of an image folder, or, where a part is selected, of the selected ones."""
    return _listing_digest(list_folder(folder, selection)) if selection.partial else digest(files_below(folder))


def imagenet_fingerprint(folder: Path, selection: Selection) -> str:
    """SHA-256 of the selected files: split, name, size, bytes."""
    return _listing_digest(list_imagenet(folder, selection))


def files_below(place: Path) -> Iterable[tuple[str, Path]]:
    """Name and path of a file, or of all files of a folder, sorted by path."""
    files = [place] if place.is_file() else sorted(item for item in place.rglob("*") if item.is_file())
    return ((item.relative_to(place).as_posix(), item) for item in files)


def digest(files: Iterable[tuple[str, Path]]) -> str:
    """SHA-256 over (what names a file, NUL, its bytes) of each file."""
    found = sha256()
    try:
        for name, item in files:
            found.update(name.encode() + b"\0")
            with item.open("rb") as stream:
                while block := stream.read(1 << 20):
                    found.update(block)
    except OSError as error:
        raise RubError(f"{error.filename}: cannot be read ({error.strerror}); check the file and its rights") from None
    return found.hexdigest()


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


def num_class_folders(folder: Path) -> int:
    """Number of classes of an image folder."""
    return len(class_folders(folder))


def class_folders(folder: Path) -> tuple[str, ...]:
    """Names of the classes of an image folder, in the order of the labels."""
    return list_folder(folder).classes


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


def image_files(folder: Path) -> list[Path]:
    """Image files of a folder, sorted by name."""
    if not folder.is_dir():
        raise RubError(f"{folder}: missing; every class should have its folder of images")
    found = sorted(item for item in folder.iterdir() if item.suffix.lower() in SUFFIXES)
    if not found:
        raise RubError(f"{folder}: no images; every class should hold some")
    return found


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


def _fewest(items: list[Path], count: int | None, base: Path) -> list[Path]:
    return items if count is None else _by_hash(items, base)[:count]


def _by_hash(items: Sequence[Path], base: Path) -> list[Path]:
    """Sort files by the SHA-256 of ``<class>/<file>``: an added file then moves at most one other."""
    return sorted(items, key=lambda item: sha256(item.relative_to(base).as_posix().encode()).digest())
