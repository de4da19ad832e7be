"""One image file as 8-bit RGB: what is scaled, turned and laid on a background, and within which memory."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from threading import Condition
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rub.config.documents import check_plain
from rub.errors import RubError

if TYPE_CHECKING:
    from PIL.Image import Image

BACKGROUND = (255, 255, 255)  # what transparent pixels are laid on: white
ROOM = 2**31  # bytes that images being decoded take at one time; the largest that Pillow opens fits in alone
PER_PIXEL = 12  # bytes: Pillow holds four, and an image at most three times
REDUCED = 2**25  # pixels above which a JPEG that is resized is decoded at a half, a quarter or an eighth
SPARE = 3  # times the size asked for that such a JPEG still has at least, so that its resize is as good
ROWS = 256  # rows whose values are scaled at once

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "PPM", "TIFF", "AVIF", "JPEG2000")
"""What is decoded, whatever a name ends in: for PostScript, Pillow would start a program."""

FRAMES = "holds several pictures, of which the first is read"
TURNED = "turned as its EXIF says"
LAID = "transparent in part, laid on white"
SCALED = "more than 8 bits, scaled to 8"


class Unreadable(RubError):
    """An image that cannot be decoded; skipped where the user asked for that."""


class Picture(NamedTuple):
    """A decoded image, uint8 (H, W, 3), and what was done to it: of `FRAMES`, `TURNED`, `LAID`, `SCALED`."""

    pixels: NDArray[np.uint8]
    remarks: tuple[str, ...]


class Room:
    """Bytes of memory that threads share: who needs more than is free waits; more than all of it counts as all."""

    def __init__(self, size: int = ROOM) -> None:
        self.size = self.left = size
        self.freed = Condition()

    @contextmanager
    def of(self, wanted: int) -> Iterator[None]:
        """Hold so many bytes for the body."""
        held = min(wanted, self.size)
        with self.freed:
            self.freed.wait_for(lambda: self.left >= held)
            self.left -= held
        try:
            yield
        finally:
            with self.freed:
                self.left += held
                self.freed.notify_all()


def read_image(source: Path | BytesIO, size: int | None, name: str = "", room: Room | None = None) -> Picture:
    """First picture of an image file as 8-bit RGB.

    16-bit values v become round(v / 257), and floats in [0, 1] round(255 v); the picture is turned as its EXIF says,
    and transparent pixels are laid on `BACKGROUND`. With `size`, the shorter side is then resized to it (bicubic,
    antialiased) and the centre cut out, see `fitted`; a JPEG of more than `REDUCED` pixels is decoded at a half, a
    quarter or an eighth of its size for that.

    Args:
        source: a file, or its bytes.
        size: side in pixels, or None.
        name: of the image in messages, where its bytes are given.
        room: shared by the threads that decode.

    Raises:
        Unreadable: what is there is not an image, a damaged one, or one of more pixels than Pillow opens (179 million).
        RubError: the file system does not give the file, or its values have no declared range.
    """
    from PIL import Image

    where = source if isinstance(source, Path) else name
    if isinstance(source, Path):
        check_plain(source)
    try:
        with Image.open(source, formats=_formats()) as opened:
            if size is not None and opened.width * opened.height > REDUCED:
                opened.draft(None, (SPARE * size, SPARE * size))
            with (room or Room()).of(PER_PIXEL * opened.width * opened.height):
                return _picture(opened, size, str(where))
    except (MemoryError, RubError):
        raise
    except Image.DecompressionBombError:
        most = f"{2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
        raise Unreadable(f"{where}: more than {most}, the most that is decoded; make it smaller") from None
    except Exception as error:  # damaged bytes fail in any way: OSError, SyntaxError, struct.error, EOFError...
        if isinstance(error, OSError) and error.errno is not None:  # the disk's fault; Pillow's own have no number
            raise RubError(f"{where}: cannot be opened ({error.strerror}); check the file and its rights") from None
        reason = f"not a readable image ({type(error).__name__})"
        raise Unreadable(f"{where}: {reason}; remove it, copy it again or save it as PNG") from None


@cache
def _formats() -> list[str]:
    """Those of `FORMATS` that this Pillow was built with."""
    from PIL import Image

    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


@contextmanager
def without_warnings() -> Iterator[None]:
    """Keep Pillow from warning of each image that is large, but not too large, or whose EXIF is damaged."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", "Corrupt EXIF data")
        yield


def fitted(image: "Image", size: int) -> "Image":
    """Image whose shorter side is `size`, with the centre cut out: ``ImageOps.fit``, which does both in one step."""
    from PIL import Image, ImageOps

    return image if image.size == (size, size) else ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)


def _picture(opened: Any, size: int | None, where: str) -> Picture:
    # the second picture of an MPO is the same one for the other eye, or a preview
    several = getattr(opened, "is_animated", False) and opened.format != "MPO"
    opened.load()
    wide = opened.mode == "F" or opened.mode.startswith("I")
    image, laid = _opaque(_eight_bits(opened, where) if wide else opened)
    turn = _turn(opened)
    image = image if turn is None else image.transpose(turn)
    image = image if size is None else fitted(image, size)
    done = {FRAMES: several, TURNED: turn is not None, LAID: laid, SCALED: wide}
    return Picture(np.asarray(image), tuple(remark for remark, applies in done.items() if applies))


def _opaque(image: "Image") -> "tuple[Image, bool]":
    """Image as RGB, and whether some of it was transparent."""
    from PIL import Image

    if not image.has_transparency_data:
        return image.convert("RGB"), False
    image = image.convert("RGBA")
    alpha = image.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return image.convert("RGB"), False
    canvas = Image.new("RGB", image.size, BACKGROUND)
    canvas.paste(image, mask=alpha)
    return canvas, True


def _eight_bits(image: "Image", where: str) -> "Image":
    """Grey image of 8 bits for one of 16-bit values or of floats in [0, 1]."""
    from PIL import ExifTags, Image

    values, floats, tags = np.asarray(image), image.mode == "F", getattr(image, "tag_v2", {})  # tags of a TIFF
    bits = min(tags.get(ExifTags.Base.BitsPerSample, (16,))[0], 16)  # some have 12
    low, high, most = values.min(), values.max(), 1 if floats else 2**bits - 1
    if not 0 <= low <= high <= most:  # so that NaN is refused
        kind = "floats should be in [0, 1]" if floats else "whole numbers of more than 8 bits should be 0 to 65535"
        raise RubError(f"{where}: values from {low:.6g} to {high:.6g}; {kind}: save it with its values scaled")
    scale = (lambda part: np.rint(255 * part)) if floats else lambda part: (255 * part + most // 2) // most
    scaled = _by_rows(values, scale)
    white_is_zero = tags.get(ExifTags.Base.PhotometricInterpretation) == 0
    grey = Image.fromarray(255 - scaled if white_is_zero else scaled)
    if (hidden := image.info.get("transparency")) is None:
        return grey
    return Image.merge("LA", (grey, Image.fromarray(_by_rows(values, lambda part: 255 * (part != hidden)))))


def _by_rows(values: NDArray[Any], function: Callable[[NDArray[Any]], NDArray[Any]]) -> NDArray[np.uint8]:
    result = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), ROWS):
        rows = values[start : start + ROWS]
        result[start : start + ROWS] = function(rows.astype(np.float64 if rows.dtype.kind == "f" else np.int64))
    return result


def _turn(image: "Image") -> Any:
    """How an image has to be transposed to stand upright, ``Image.Transpose``; None where it does.

    ``ImageOps.exif_transpose`` writes the EXIF anew, and fails where a camera left it damaged.
    """
    from PIL import ExifTags, Image

    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as viewers do: of damaged EXIF, no orientation is known
        return None
    turns = Image.Transpose
    return {
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_270,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_90,
    }.get(orientation)
