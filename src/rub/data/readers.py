"""Readers of digits, of the archives of CIFAR and Tiny ImageNet, of ``.npz`` files and of arrays."""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rub.data.decoding import allocate, decode
from rub.data.folders import TEST_SHARE, image_files
from rub.data.image_file import fitted
from rub.data.memory import samples_of
from rub.data.samples import Samples, concatenate
from rub.data.selection import Read, Selection
from rub.data.unpickle import load_arrays, text
from rub.errors import RubError

MOST_CLASSES = 1 << 16  # a label beyond is no class number, and its count of classes would fill the memory


def read_digits(root: Path | None = None, *, size: int | None = None) -> Read:
    """Scikit-learn's 1,797 digits, 8 x 8, 0..16 scaled to 0..255; every fifth of each class is for testing.

    With `size`, the 8-bit images are resized to size x size by Pillow's bilinear filter (fixed point, so the same bits
    on every machine). They come with the library: `root` is not read.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    if size is not None:
        images = _resized(images, size)
    rank = np.zeros(len(labels), dtype=np.int64)
    for label in range(10):
        places = np.flatnonzero(labels == label)
        rank[places] = np.arange(len(places))
    test = rank % TEST_SHARE == 0
    ids = np.arange(len(labels))
    train = _samples(images[~test], labels[~test], ids[~test])
    return Read(tuple(str(digit) for digit in range(10)), train, _samples(images[test], labels[test], ids[test]))


def digits_fingerprint(root: Path | None, selection: Selection) -> str:
    """SHA-256 of the pixels at their own size."""
    read = read_digits()
    return sha256(read.train.images.numpy().tobytes() + read.test.images.numpy().tobytes()).hexdigest()


def read_cifar10(folder: Path) -> Read:
    """Read ``cifar-10-batches-py/``."""
    names = load_arrays(_present(folder / "batches.meta")).get("label_names", [])
    train = concatenate([_cifar(folder / f"data_batch_{index}", "labels", 10) for index in range(1, 6)])
    test = _cifar(folder / "test_batch", "labels", 10)
    numbered = replace(train, ids=torch.arange(len(train)))
    return Read(_texts(names, 10, folder / "batches.meta"), numbered, test)


def read_cifar100(folder: Path) -> Read:
    """Read ``cifar-100-python/`` with its fine labels."""
    names = load_arrays(_present(folder / "meta")).get("fine_label_names", [])
    train, test = (_cifar(folder / name, "fine_labels", 100) for name in ("train", "test"))
    return Read(_texts(names, 100, folder / "meta"), train, test)


def read_cifar100_coarse(folder: Path) -> Read:
    """Read ``cifar-100-python/`` with its 20 coarse labels, each of five fine ones: CIFAR-20."""
    names = load_arrays(_present(folder / "meta")).get("coarse_label_names", [])
    train, test = (_cifar(folder / name, "coarse_labels", 20) for name in ("train", "test"))
    return Read(_texts(names, 20, folder / "meta"), train, test)


def cifar100_names(folder: Path, selection: Selection) -> dict[int, str]:
    """Names of the training images by both labels, such as ``train/vehicles_2/rocket/17``."""
    meta, parts = load_arrays(_present(folder / "meta")), []
    for kind, count in (("coarse", 20), ("fine", 100)):
        names = _texts(meta.get(f"{kind}_label_names", []), count, folder / "meta")
        parts.append([names[label] for label in _cifar(folder / "train", f"{kind}_labels", count).labels.tolist()])
    return {row: f"train/{coarse}/{fine}/{row}" for row, (coarse, fine) in enumerate(zip(*parts, strict=True))}


def read_tiny_imagenet(folder: Path) -> Read:
    """Read ``tiny-imagenet-200/``: classes in the order of ``wnids.txt``, the 50 val images per class for testing."""
    listing = _present(folder / "wnids.txt")
    wnids = listing.read_text(encoding="utf-8", errors="replace").split()
    if not wnids or any(Path(wnid).name != wnid for wnid in wnids):
        raise RubError(f"{listing}: should list the names of class folders, one per line; copy the file again")
    place = {wnid: index for index, wnid in enumerate(wnids)}
    train = [(item, place[wnid]) for wnid in wnids for item in image_files(folder / "train" / wnid / "images")]
    test = []
    annotations = _present(folder / "val" / "val_annotations.txt")
    for line in annotations.read_text(encoding="utf-8", errors="replace").splitlines():
        name, wnid = (*line.split("\t"), "")[:2]
        if wnid not in place or Path(name).name != name:
            raise RubError(f"{annotations}: '{line[:40]}' names no image of a class of wnids.txt; copy the file again")
        test.append((folder / "val" / "images" / name, place[wnid]))
    if not test:
        raise RubError(f"{annotations}: names no images; copy the file again")
    return Read(tuple(wnids), decode(train, 64).samples, decode(sorted(test), 64).samples)


def read_npz(path: Path, *, size: int | None = None) -> Read:
    """Read x_train, y_train, x_test, y_test from an ``.npz``, see `from_arrays`; pickled arrays are refused.

    With `size`, images are resized as those of folders are: shorter side (bicubic), then centre crop.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = [stored[name] for name in ("x_train", "y_train", "x_test", "y_test")]
    except Exception as error:  # damaged bytes fail in any way: BadZipFile, zlib.error, ValueError, TypeError...
        reason = " ".join(str(error).split())
        raise RubError(f"{path}: not a usable .npz ({reason}); needs x_train, y_train, x_test, y_test") from None
    read = from_arrays(str(path), *arrays)
    return read if size is None else read._replace(train=_fitted(read.train, size), test=_fitted(read.test, size))


def npz_names(path: Path) -> tuple[str, ...]:
    """What the classes of an ``.npz`` are called: their numbers, by its training labels; none if unreadable."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return tuple(map(str, range(min(int(stored["y_train"].max()) + 1, MOST_CLASSES))))
    except Exception:  # damaged bytes fail in any way; the reader says how
        return ()


def from_arrays(
    where: str, x_train: Any, y_train: Any, x_test: Any, y_test: Any, classes: Sequence[str] | None = None
) -> Read:
    """Data set of arrays or tensors: images (N, H, W), (N, H, W, C) or (N, C, H, W), and class numbers (N,).

    Images are uint8 or floats in [0, 1]; without names, classes are called by their numbers.

    Example:
        >>> grey = np.zeros((2, 8, 8), dtype=np.uint8)
        >>> from_arrays("grey", grey, [0, 1], grey, [0, 1]).train.shape
        (1, 8, 8)
    """
    parts = []
    for name, given, numbers in (("train", x_train, y_train), ("test", x_test, y_test)):
        images, labels = np.asarray(given), np.asarray(numbers).reshape(-1)
        images = images[:, None] if images.ndim == 3 else images
        if images.ndim == 4 and images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3):
            images = images.transpose(0, 3, 1, 2)
        part = samples_of(np.ascontiguousarray(images), labels, name=f"{where}: x_{name}")
        if part.shape[0] not in (1, 3):
            raise RubError(f"{where}: x_{name} should have 1 or 3 channels, got the shape {np.shape(given)}")
        if not 0 <= part.labels.min() <= part.labels.max() < MOST_CLASSES:
            raise RubError(f"{where}: y_{name} should be class numbers from 0 below {MOST_CLASSES}")
        parts.append(part)
    if parts[0].shape != parts[1].shape:
        raise RubError(f"{where}: x_train and x_test should hold images of one shape")
    count = int(max(part.labels.max() for part in parts)) + 1
    names = tuple(str(name) for name in (range(count) if classes is None else classes))
    if len(names) < count:
        raise RubError(f"{where}: names {len(names)} classes, but a label is {count - 1}; should name each class")
    return Read(names, parts[0], parts[1])


def _fitted(samples: Samples, size: int) -> Samples:
    from PIL import Image

    images = allocate((len(samples), samples.shape[0], size, size))
    for row, target in enumerate(images):
        pixels = samples.take([row])[0].permute(1, 2, 0).numpy()
        made = np.asarray(fitted(Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels), size))
        target[:] = made if made.ndim == 2 else made.transpose(2, 0, 1)
    return Samples(torch.from_numpy(images), samples.labels, samples.ids)


def _resized(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    from PIL import Image

    resized = np.empty((len(images), 1, size, size), dtype=np.uint8)
    for target, image in zip(resized, images, strict=True):
        target[0] = np.asarray(Image.fromarray(image[0]).resize((size, size), Image.Resampling.BILINEAR))
    return resized


def _samples(images: NDArray[np.uint8], labels: NDArray[np.int64], ids: NDArray[np.int64]) -> Samples:
    return Samples(
        torch.from_numpy(np.ascontiguousarray(images)),
        torch.from_numpy(labels.astype(np.int64)),
        torch.from_numpy(ids.astype(np.int64)),
    )


def _present(path: Path) -> Path:
    if not path.is_file():
        raise RubError(f"{path}: missing; copy the whole folder {path.parent.name}/ again")
    return path


def _cifar(path: Path, key: str, classes: int) -> Samples:
    batch = load_arrays(_present(path))
    pixels, labels = batch.get("data"), batch.get(key)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3072,):
        found = getattr(pixels, "shape", type(pixels).__name__)
        raise RubError(f"{path}: 'data' should be uint8 (N, 3072), got {found}; copy the file again")
    if (
        not isinstance(labels, list)
        or len(labels) != len(pixels)
        or not all(isinstance(label, int) and 0 <= label < classes for label in labels)
    ):
        raise RubError(f"{path}: '{key}' should list {len(pixels)} numbers below {classes}; copy the file again")
    return _samples(pixels.reshape(-1, 3, 32, 32), np.array(labels), np.arange(len(labels)))


def _texts(names: object, count: int, path: Path) -> tuple[str, ...]:
    if not isinstance(names, list) or len(names) != count:
        raise RubError(f"{path}: should list {count} class names; copy the file again")
    return tuple(text(name) for name in names)
