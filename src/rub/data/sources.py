"""Image data sets by name: embedded digits, standard layouts on disk, any folder or ``.npz``, or the hub."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch

from rub.data import readers
from rub.data.folders import EVERYTHING, Listing, Read, Selection, list_folder, list_imagenet, read_listing
from rub.data.hub import HUB, read_hub, revision
from rub.data.imagenet import imagenet_revision, read_imagenet_hub
from rub.data.samples import Samples
from rub.errors import RubError, unknown
from rub.pipeline.callback import Progress, silent

# Per-channel mean and std in [0, 1] pixel space: of Unlearn-Saliency (its `setup_model_dataset`), whose last row is
# ImageNet's as everywhere else.
NORMALISATION: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tiny-imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
LAYOUTS: Mapping[str, str] = {
    "cifar10": "cifar-10-batches-py",
    "cifar100": "cifar-100-python",
    "tiny-imagenet": "tiny-imagenet-200",
    "imagenet": "imagenet",
}
NAMES = ("digits", *LAYOUTS, "folder", "npz")
WITH_PATH = ("folder", "npz")
SELECTABLE = ("folder", "imagenet")  # those that take a `Selection`
RESIZABLE = ("digits", *SELECTABLE)


@dataclass(frozen=True)
class ImageDataset:
    """A decoded data set.

    Attributes:
        name: as in `NAMES`.
        classes: class names, in the order of the labels.
        train: training samples in official order.
        test: test samples in official order.
        mean: per-channel mean for normalisation, in [0, 1] pixel space.
        std: per-channel standard deviation.
        flip: whether mirroring an image keeps its class.
        skipped: names of the images left out because they cannot be decoded, when that was asked for.
    """

    name: str
    classes: tuple[str, ...]
    train: Samples
    test: Samples
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    skipped: tuple[str, ...] = ()


def load_images(
    name: str,
    root: Path | None,
    *,
    path: Path | None = None,
    size: int | None = None,
    selection: Selection = EVERYTHING,
    offline_seconds: float = 15,
    progress: Progress = silent,
) -> ImageDataset:
    """Read a data set: from its standard layout under `root` when it is there, else from the hub.

    Args:
        name: one of `NAMES`.
        root: folder that holds ``cifar-10-batches-py/`` and the like; None goes to the hub.
        path: the folder or file of ``folder`` and ``npz``.
        size: side in pixels to which images are resized: of a folder and of imagenet, shorter side (bicubic), then
            centre crop; of digits, bilinear.
        selection: which classes and images of ``folder`` and ``imagenet``.
        offline_seconds: after this long without the hub, give up.
        progress: told of the images of a folder or of imagenet as they are decoded.

    Raises:
        RubError: an unknown name, a `size` or `selection` that the data set does not take or lacks, data that is in
            neither place, or a damaged file, which is named.

    Example:
        >>> digits = load_images("digits", None)
        >>> tuple(digits.train.images.shape), len(digits.classes)
        ((1433, 1, 8, 8), 10)
    """
    check(name, path=path, size=size, selection=selection)
    folder = local(name, root)
    if name == "digits":
        read = readers.read_digits(size)
    elif name == "npz":
        read = readers.read_npz(_given(name, path))
    elif name in SELECTABLE:
        read = _selected(name, root, path, size, selection, offline_seconds, progress)
    elif folder is not None:
        read = readers.READERS[name](folder)
    else:
        read = read_hub(name, _where(name, root), offline_seconds)
    mean, std = NORMALISATION.get(name) or statistics(read.train)
    flip = name not in ("digits", "npz")
    return ImageDataset(name, read.classes, read.train, read.test, mean, std, flip, read.skipped)


def check(name: str, *, path: Path | None = None, size: int | None = None, selection: Selection = EVERYTHING) -> None:
    """Refuse a request that does not fit its data set, before anything is read.

    Raises:
        RubError: an unknown name; a path, size or selection that the data set does not take; imagenet without a size;
            classes that are fewer than two or named twice; or no images per class.
    """
    if name not in NAMES:
        raise unknown("dataset", name, NAMES)
    if path is not None and name not in WITH_PATH:
        raise RubError(f"dataset '{name}': dataset.path is for {' and '.join(WITH_PATH)} only; leave it out")
    if size is not None and name not in RESIZABLE:
        raise RubError(f"dataset '{name}': dataset.size resizes {', '.join(RESIZABLE)} only; leave it out")
    if name == "imagenet" and size is None:
        raise RubError("dataset 'imagenet': its images differ in size; give dataset.size, such as size: 224")
    if name not in SELECTABLE and (given := selection.given()):
        raise RubError(f"dataset '{name}': dataset.{next(iter(given))} is for {' and '.join(SELECTABLE)} only")
    names = selection.classes
    if names is not None and (len(names) < 2 or len(set(names)) < len(names)):
        raise RubError(f"dataset.classes: got {len(names)} classes; should name two or more, each once")
    for field in ("per_class", "test_per_class"):
        if (count := getattr(selection, field)) is not None and count < 1:
            raise RubError(f"dataset.{field}: got {count}; should be 1 or more")


def fingerprint(name: str, root: Path | None, *, path: Path | None = None, selection: Selection = EVERYTHING) -> str:
    """Return the SHA-256 over names and bytes of a data set's source files; for the hub, of its revision.

    Of imagenet, and of a folder of which a part is selected, only the selected files count: split, name, size, bytes.

    Raises:
        RubError: as `load_images`, for data that is not there.
    """
    if name not in NAMES:
        raise unknown("dataset", name, NAMES)
    if name == "digits":
        read = readers.read_digits()
        return sha256(read.train.images.numpy().tobytes() + read.test.images.numpy().tobytes()).hexdigest()
    source = _given(name, path) if name in WITH_PATH else local(name, root)
    if source is None and name == "imagenet":
        return sha256(imagenet_revision(selection, _where(name, root), 15).encode()).hexdigest()
    if source is None:
        return sha256(revision(name, _where(name, root)).encode()).hexdigest()
    if name == "imagenet":
        return _digest(_chosen_files(list_imagenet(source, selection)))
    if name == "folder" and selection.partial:
        return _digest(_chosen_files(list_folder(source, selection)))
    files = [source] if source.is_file() else sorted(item for item in source.rglob("*") if item.is_file())
    return _digest((item.relative_to(source).as_posix(), item) for item in files)


def local(name: str, root: Path | None) -> Path | None:
    """Return the folder of a data set's standard layout under `root`, or None."""
    folder = None if root is None or name not in LAYOUTS else root / LAYOUTS[name]
    return folder if folder is not None and folder.is_dir() else None


def statistics(samples: Samples) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return per-channel mean and standard deviation of the images in [0, 1], computed in float64."""
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


def _selected(
    name: str,
    root: Path | None,
    path: Path | None,
    size: int | None,
    selection: Selection,
    seconds: float,
    progress: Progress,
) -> Read:
    """Read the class folders of ``folder`` or ``imagenet``, or the hub's imagenet."""
    if name == "folder":
        listing = list_folder(_given(name, path), selection)
    elif (folder := local(name, root)) is not None:
        listing = list_imagenet(folder, selection)
    else:
        assert size is not None  # `check`
        return read_imagenet_hub(selection, size, _where(name, root), seconds, progress)
    return read_listing(listing, size, selection.skip_unreadable, progress)


def _chosen_files(listing: Listing) -> Iterable[tuple[str, Path]]:
    for split, listed in (("train", listing.train), ("test", listing.test)):
        for item, _ in listed:
            yield f"{split}\0{listing.name(item)}\0{item.stat().st_size}", item


def _digest(files: Iterable[tuple[str, Path]]) -> str:
    """Return the SHA-256 over (what names a file, NUL, its bytes) of each file."""
    digest = sha256()
    try:
        for name, item in files:
            digest.update(name.encode() + b"\0")
            with item.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    except OSError as error:
        raise RubError(f"{error.filename}: cannot be read ({error.strerror}); check the file and its rights") from None
    return digest.hexdigest()


def _given(name: str, path: Path | None) -> Path:
    if path is None:
        raise RubError(f"dataset '{name}': needs dataset.path, the image folder or .npz file to read")
    if not path.exists():
        raise RubError(f"dataset '{name}': {path} does not exist; dataset.path should be an image folder or .npz file")
    return path


def _where(name: str, root: Path | None) -> str:
    layout = "imagenet/{train,val}/<wnid>/" if name == "imagenet" else f"{LAYOUTS[name]}/"
    place = f"{layout} is not under {root}" if root is not None else "no --data-root is given"
    return f"{name}: {place} (put {layout} there and name it with --data-root or RUB_DATA), and the hub data set"


__all__ = [
    "HUB",
    "LAYOUTS",
    "NAMES",
    "ImageDataset",
    "Selection",
    "check",
    "fingerprint",
    "load_images",
    "local",
    "statistics",
]
