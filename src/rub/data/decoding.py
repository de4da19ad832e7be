"""From image files to one 8-bit array."""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile, gettempdir

import numpy as np
import torch
from numpy.typing import NDArray

from rub.data.samples import Samples
from rub.errors import RubError
from rub.pipeline.callback import Progress, silent

BLOCK = 512  # images between two reports of progress
LARGE = 2**30  # bytes of images that are not held in memory

Listed = Sequence[tuple[Path, int]]  # (file, label)


class Unreadable(RubError):
    """An image that cannot be decoded; skipped where the user asked for that."""


def decode(
    listed: Listed, size: int | None, skip: bool = False, progress: Progress = silent
) -> tuple[Samples, list[Path]]:
    """Decode files into one array, (N, 3, size, size); also the files that were skipped.

    An id is a file's place in the list, and a skipped file keeps its own.
    """
    height, width = (size, size) if size is not None else _first_shape(listed, skip)
    images = allocate((len(listed), 3, height, width))

    def put(index: int) -> bool:
        path = listed[index][0]
        try:
            pixels = read_image(path, size)
        except Unreadable:
            if skip:
                return False
            raise
        if pixels.shape[:2] != (height, width):
            raise RubError(
                f"{path}: {pixels.shape[1]} x {pixels.shape[0]} pixels, but {listed[0][0].name} has"
                f" {width} x {height}: set dataset.size to resize all images"
            )
        images[index] = pixels.transpose(2, 0, 1)
        return True

    good: list[bool] = []
    with ThreadPoolExecutor() as pool:  # Pillow decodes and resizes outside Python's lock
        for start in range(0, len(listed), BLOCK):
            good += pool.map(put, range(start, min(start + BLOCK, len(listed))))
            progress(len(good), len(listed))
    labels = np.array([label for _, label in listed])
    return compact(images, labels, np.array(good)), [
        path for (path, _), fine in zip(listed, good, strict=True) if not fine
    ]


def allocate(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Array to fill: in memory, or, where it is large, in a file that goes with it."""
    size = math.prod(shape)
    if size <= LARGE:
        return np.empty(shape, dtype=np.uint8)
    with TemporaryFile(prefix="rub-images-") as file:
        try:
            file.truncate(size)
            if hasattr(os, "posix_fallocate"):  # else a disk that fills up later would end the process
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            need = f"{size / 1e9:.1f} GB of images"
            raise RubError(
                f"{gettempdir()}: no room for {need} ({error.strerror}); set TMPDIR to a larger disk"
            ) from None
        return np.memmap(file, np.uint8, "r+", shape=shape)


def compact(images: NDArray[np.uint8], labels: NDArray[np.int64], good: NDArray[np.bool_]) -> Samples:
    """Samples of the rows that are good, with their places as ids; they move up inside `images`, without a copy."""
    places = np.flatnonzero(good)
    for target, place in enumerate(places):
        if target != place:
            images[target] = images[place]
    return Samples(
        torch.from_numpy(images[: len(places)]),
        torch.from_numpy(labels[places].astype(np.int64)),
        torch.from_numpy(places.astype(np.int64)),
    )


def read_image(source: Path | BytesIO, size: int | None, name: str = "") -> NDArray[np.uint8]:
    """Image as uint8 (H, W, 3).

    With `size`, the shorter side is resized to it (bicubic, antialiased) and the centre cut out: Pillow's
    ``ImageOps.fit``, which does both in one step.

    Raises:
        Unreadable: what is there is not an image, or a damaged one.
        RubError: the file system does not give the file.
    """
    from PIL import Image, ImageOps

    where = source if isinstance(source, Path) else name
    try:
        with Image.open(source) as opened:
            image = opened.convert("RGB")
            if size is not None and image.size != (size, size):
                image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
            return np.asarray(image)
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes fail in any way: OSError, SyntaxError, struct.error, EOFError...
        if isinstance(error, OSError) and error.errno is not None:  # the disk's fault; Pillow's own have no number
            raise RubError(f"{where}: cannot be opened ({error.strerror}); check the file and its rights") from None
        reason = f"not a readable image ({type(error).__name__})"
        raise Unreadable(f"{where}: {reason}; remove it or copy it again") from None


def _first_shape(listed: Listed, skip: bool) -> tuple[int, int]:
    for path, _ in listed:
        try:
            height, width, _ = read_image(path, None).shape
            return height, width
        except Unreadable:
            if not skip:
                raise
    raise RubError(f"{listed[0][0].parent}: none of the {len(listed)} images is readable; copy them again")
