"""Galleries: what both models make of some images, before and after the search, as one PNG per row and set of images.

Every pixel of a tile becomes a square of whole pixels, so that nothing is smoothed over; large pictures, such as those
of Stable Diffusion, are shrunk by a whole factor.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from rub.errors import RubError
from rub.reports.figure_file import FigureFile, plain
from rub.reports.grouping import Group, is_control
from rub.reports.task_report import reports_of
from rub.reports.text import free_name, printable, slug

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 150
_SIDE = 112  # least pixels across a tile
_LARGE = 256  # most pixels across a tile
_GAP, _LEFT, _HEAD, _LINE = 6, 62, 44, 17  # pixels: between tiles, for ids, for the title, per line of column titles
_DIGIT = 8  # pixels of a digit of an id
_SPLITS = {"forget": "forget images", "retain": "kept images"}


@dataclass(frozen=True)
class Tiles:
    """What a gallery shows.

    Attributes:
        tiles: uint8 (n images, k columns, H, W, 3), grey images repeated.
        columns: k titles.
        ids: n sample ids.
    """

    tiles: NDArray[np.uint8]
    columns: tuple[str, ...]
    ids: tuple[int, ...]


def draw_galleries(galleries: Iterable[Mapping[str, Any]], folder: Path) -> list[FigureFile]:
    """Draw every gallery into a folder, as PNG, ordered by task.

    Args:
        galleries: one mapping per picture, with the fields of `Group`, ``method``, ``unlearn_seed``, ``split`` and
            ``path``, an ``.npz`` for `read_tiles`.
        folder: is made when it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows, drawn = list(galleries), list[FigureFile]()
    for task, reporting in reports_of(row["task"] for row in rows).items():
        for row in (row for row in rows if row["task"] == task):
            tiles = read_tiles(Path(row["path"]))
            method, split, data = str(row["method"]), str(row["split"]), row["experiment"] or row["dataset"]
            name = free_name("-".join(("gallery", slug(method), slug(split), slug(data))), {one.name for one in drawn})
            shown = f"[{method}]" if is_control(method, task) else method
            images = f"{_SPLITS.get(split, split)} ({data}, {row['model']})"
            title = printable(f"{shown}, seed {row['unlearn_seed']}: {images}")
            gallery_figure(tiles, title).savefig(folder / f"{name}.png", dpi=_DPI)
            caption = f"{title}. Columns: {', '.join(map(printable, tiles.columns))}. {reporting.captions['gallery']}"
            drawn.append(FigureFile(Group.of(row), name, caption, vector=False))
    return drawn


def read_tiles(path: Path) -> Tiles:
    """Read a gallery: ``tiles`` uint8 (n, k, H, W, C) with C 1 or 3, ``columns`` (k names), ``ids`` (n).

    Raises:
        RubError: the file cannot be read, or its arrays do not fit together.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            tiles, columns, ids = data["tiles"], data["columns"], data["ids"]
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise RubError(f"gallery {path}: cannot be read ({error}); should hold tiles, columns and ids") from None
    whole = tiles.ndim == 5 and tiles.dtype == np.uint8 and tiles.size and tiles.shape[-1] in (1, 3)
    if not whole or (len(ids), len(columns)) != tiles.shape[:2]:
        raise RubError(
            f"gallery {path}: tiles {tiles.dtype} {tiles.shape}, {len(columns)} columns, {len(ids)} ids;"
            " should be uint8 (ids, columns, height, width, 1 or 3)"
        )
    coloured = np.repeat(tiles, 3, axis=-1) if tiles.shape[-1] == 1 else tiles
    return Tiles(coloured, tuple(str(name) for name in columns), tuple(int(number) for number in ids))


def gallery_figure(tiles: Tiles, title: str) -> "Figure":
    """Figure of a gallery: a row per image, a column per tile, pixels enlarged or shrunk by a whole factor."""
    from matplotlib.figure import Figure

    shown = _shrunk(tiles.tiles)
    count, across, height, width, _ = shown.shape
    scale = max(1, -(-_SIDE // width))
    high, wide = height * scale, width * scale
    heads = [textwrap.wrap(printable(name), max(wide // 9, 8)) or [""] for name in tiles.columns]
    left = max(_LEFT, _DIGIT * (1 + max(len(str(number)) for number in tiles.ids)) + 2 * _GAP)
    whole_width = left + across * (wide + _GAP)
    lines = textwrap.wrap(title, max((whole_width - 2 * _GAP) // 11, 20)) or [""]
    top = _HEAD + 22 * (len(lines) - 1) + _LINE * max(map(len, heads))
    whole_height = top + count * (high + _GAP)
    # A canvas is cut to whole pixels: the half one keeps rounding from taking one away.
    figure = Figure(figsize=((whole_width + 0.5) / _DPI, (whole_height + 0.5) / _DPI), dpi=_DPI, facecolor="white")

    def write(x: float, y: float, lines: Sequence[str], size: float, **where: Any) -> None:
        text = "\n".join(map(plain, lines))
        figure.text(x / whole_width, 1 - y / whole_height, text, fontsize=size, **where)

    write(_GAP, _GAP, lines, 8, va="top", linespacing=1.2)
    for column, head in enumerate(heads):
        x = left + column * (wide + _GAP)
        write(x + wide / 2, top - 5, head, 6.5, ha="center", va="bottom", linespacing=1.1)
        for row in range(count):
            y = top + row * (high + _GAP)
            picture = shown[row, column].repeat(scale, axis=0).repeat(scale, axis=1)
            figure.figimage(picture, x, whole_height - y - high, origin="upper")
    for row, number in enumerate(tiles.ids):
        write(left - _GAP, top + row * (high + _GAP) + high / 2, [f"#{number}"], 6, ha="right", va="center")
    return figure


def _shrunk(tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Tiles at most `_LARGE` pixels wide; pixels at the edges that fill no whole square are cut off."""
    factor = -(-tiles.shape[3] // _LARGE)
    if factor == 1:
        return tiles
    height, width = (side // factor for side in tiles.shape[2:4])
    cut = tiles[:, :, : height * factor, : width * factor]
    squares = cut.reshape(*tiles.shape[:2], height, factor, width, factor, 3)
    shrunk: NDArray[np.uint8] = squares.mean(axis=(3, 5)).round().astype(np.uint8)
    return shrunk
