"""From image files to one 8-bit array."""

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from rub.data.image_file import Room, Unreadable, read_image, without_warnings
from rub.data.samples import Samples
from rub.errors import RubError
from rub.pipeline.callback import Progress, silent

BLOCK = 512  # images between two reports of progress
LARGE = 2**30  # bytes of images that are not held in memory

Listed = Sequence[tuple[Path, int]]  # (file, label)


class Decoded(NamedTuple):
    """Samples of files, the files that were skipped, and remark -> the files that `read_image` made it of."""

    samples: Samples
    skipped: list[Path]
    remarks: dict[str, list[Path]]


def decode(
    listed: Listed,
    size: int | None,
    skip: bool = False,
    progress: Progress = silent,
    ids: NDArray[np.int64] | None = None,
) -> Decoded:
    """Decode files into one array, (N, 3, size, size).

    Without ids, an id is a file's place in the list; a skipped file keeps its own.
    """
    room, remarks = Room(), dict[str, list[Path]]()

    def put(index: int) -> tuple[str, ...] | None:
        path = listed[index][0]
        try:
            pixels, done = read_image(path, size, room=room)
        except Unreadable:
            if skip:
                return None
            raise
        if pixels.shape[:2] != (height, width):
            raise RubError(
                f"{path}: {pixels.shape[1]} x {pixels.shape[0]} pixels, but {listed[0][0].name} has"
                f" {width} x {height}: set dataset.size to resize all images"
            )
        images[index] = pixels.transpose(2, 0, 1)
        return done

    made: list[tuple[str, ...] | None] = []
    with without_warnings(), ThreadPoolExecutor() as pool:  # Pillow decodes and resizes outside Python's lock
        height, width = (size, size) if size is not None else _first_shape(listed, skip)
        images = allocate((len(listed), 3, height, width))
        for start in range(0, len(listed), BLOCK):
            made += pool.map(put, range(start, min(start + BLOCK, len(listed))))
            progress(len(made), len(listed))
    for (path, _), done in zip(listed, made, strict=True):
        for remark in done or ():
            remarks.setdefault(remark, []).append(path)
    labels, good = np.array([label for _, label in listed]), np.array([done is not None for done in made])
    skipped = [path for (path, _), fine in zip(listed, good, strict=True) if not fine]
    return Decoded(compact(images, labels, good, ids), skipped, remarks)


def notes_of(remarks: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """What was done to which images, in words.

    Example:
        >>> notes_of({"turned as its EXIF says": ["ant/3.jpg", "bee/1.jpg"]})
        ('turned as its EXIF says: 2 images, such as ant/3.jpg',)
    """
    return tuple(
        f"{remark}: {len(names)} image{'s' if len(names) > 1 else ''}, such as {names[0]}"
        for remark, names in sorted(remarks.items())
    )


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


def compact(
    images: NDArray[np.uint8], labels: NDArray[np.int64], good: NDArray[np.bool_], ids: NDArray[np.int64] | None = None
) -> Samples:
    """Samples of the rows that are good; they move up inside `images`, without a copy. Without ids, by their places."""
    places = np.flatnonzero(good)
    for target, place in enumerate(places):
        if target != place:
            images[target] = images[place]
    return Samples(
        torch.from_numpy(images[: len(places)]),
        torch.from_numpy(labels[places].astype(np.int64)),
        torch.from_numpy((places if ids is None else ids[places]).astype(np.int64)),
    )


def _first_shape(listed: Listed, skip: bool) -> tuple[int, int]:
    for path, _ in listed:
        try:
            height, width, _ = read_image(path, None).pixels.shape
            return height, width
        except Unreadable:
            if not skip:
                raise
    raise RubError(f"{listed[0][0].parent}: none of the {len(listed)} images is readable; copy them again")
