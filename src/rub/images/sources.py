"""Image data sets by name: embedded digits, standard layouts on disk, any folder or ``.npz``, or the hub."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch

from rub.errors import RubError, unknown
from rub.images import readers
from rub.images.hub import HUB, read_hub, revision
from rub.images.samples import Samples

# Per-channel mean and std of Unlearn-Saliency (its `setup_model_dataset`), in [0, 1] pixel space.
NORMALISATION: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tiny-imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
LAYOUTS: Mapping[str, str] = {
    "cifar10": "cifar-10-batches-py",
    "cifar100": "cifar-100-python",
    "tiny-imagenet": "tiny-imagenet-200",
}
NAMES = ("digits", *LAYOUTS, "folder", "npz")


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
    """

    name: str
    classes: tuple[str, ...]
    train: Samples
    test: Samples
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool


def load_images(
    name: str,
    root: Path | None,
    *,
    path: Path | None = None,
    size: int | None = None,
    offline_seconds: float = 15,
) -> ImageDataset:
    """Read a data set: from its standard layout under `root` when it is there, else from the hub.

    Args:
        name: one of `NAMES`.
        root: folder that holds ``cifar-10-batches-py/`` and the like; None goes to the hub.
        path: the folder or file of ``folder`` and ``npz``.
        size: side in pixels to which images of a folder are resized (shorter side, then centre crop).
        offline_seconds: after this long without the hub, give up.

    Raises:
        RubError: an unknown name, data that is in neither place, a damaged file, which is named, or a `size` for
            what is not a folder.

    Example:
        >>> digits = load_images("digits", None)
        >>> tuple(digits.train.images.shape), len(digits.classes)
        ((1433, 1, 8, 8), 10)
    """
    if name not in NAMES:
        raise unknown("dataset", name, NAMES)
    if size is not None and name != "folder":
        raise RubError(f"dataset '{name}': dataset.size resizes image folders only; leave it out")
    if name == "digits":
        classes, train, test = readers.read_digits()
    elif name == "npz":
        classes, train, test = readers.read_npz(_given(name, path))
    elif name == "folder":
        classes, train, test = readers.read_folder(_given(name, path), size)
    elif (folder := local(name, root)) is not None:
        classes, train, test = readers.READERS[name](folder)
    else:
        classes, train, test = read_hub(name, _where(name, root), offline_seconds)
    mean, std = NORMALISATION.get(name) or statistics(train)
    return ImageDataset(name, classes, train, test, mean, std, flip=name not in ("digits", "npz"))


def fingerprint(name: str, root: Path | None, *, path: Path | None = None) -> str:
    """Return the SHA-256 over names and bytes of a data set's source files; for the hub, of its revision.

    Raises:
        RubError: as `load_images`, for data that is not there.
    """
    if name not in NAMES:
        raise unknown("dataset", name, NAMES)
    if name == "digits":
        _, train, test = readers.read_digits()
        return sha256(train.images.numpy().tobytes() + test.images.numpy().tobytes()).hexdigest()
    source = _given(name, path) if name in ("folder", "npz") else local(name, root)
    if source is None:
        return sha256(revision(name, _where(name, root)).encode()).hexdigest()
    files = [source] if source.is_file() else sorted(item for item in source.rglob("*") if item.is_file())
    digest = sha256()
    for item in files:
        digest.update(item.relative_to(source).as_posix().encode() + b"\0")
        with item.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def local(name: str, root: Path | None) -> Path | None:
    """Return the folder of a data set's standard layout under `root`, or None."""
    folder = None if root is None or name not in LAYOUTS else root / LAYOUTS[name]
    return folder if folder is not None and folder.is_dir() else None


def statistics(samples: Samples) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return per-channel mean and standard deviation of the images in [0, 1], computed in float64."""
    channels = samples.images.shape[1]
    sums, squares = torch.zeros(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    for start in range(0, len(samples), 1024):
        x = samples.images[start : start + 1024].double() / 255
        sums += x.sum(dim=(0, 2, 3))
        squares += (x * x).sum(dim=(0, 2, 3))
    count = samples.images.numel() / channels
    mean = sums / count
    std = (squares / count - mean**2).clamp_min(1e-6).sqrt()
    return tuple(round(value, 6) for value in mean.tolist()), tuple(round(value, 6) for value in std.tolist())


def _given(name: str, path: Path | None) -> Path:
    if path is None:
        raise RubError(f"dataset '{name}': needs dataset.path, the image folder or .npz file to read")
    if not path.exists():
        raise RubError(f"dataset '{name}': {path} does not exist; dataset.path should be an image folder or .npz file")
    return path


def _where(name: str, root: Path | None) -> str:
    place = f"{LAYOUTS[name]}/ is not under {root}" if root is not None else "no --data-root is given"
    return (
        f"{name}: {place} (put {LAYOUTS[name]}/ there and name it with --data-root or RUB_DATA), and the hub data set"
    )


__all__ = ["HUB", "LAYOUTS", "NAMES", "ImageDataset", "fingerprint", "load_images", "local", "statistics"]
