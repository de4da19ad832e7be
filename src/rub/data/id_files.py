"""Lists of sample ids that users bring: ``.npy``, ``.csv`` or ``.txt``."""

import csv
from pathlib import Path

import numpy as np

from rub.config.documents import check_plain, is_number
from rub.errors import RubError

COLUMNS = ("sample_id", "id", "index")  # of a table with a header, the first of these that it has
_LARGEST = 64 << 20  # bytes


def read_ids(path: Path) -> tuple[int, ...]:
    r"""Sample ids of a file, each once, in its order.

    A ``.npy`` holds integers (N,); a ``.txt`` one id a line, or several with spaces or commas between them, or one file
    name a line, below the data set's folder; a ``.csv`` the same, or a table with a header, of which the column
    ``sample_id``, ``id`` or ``index`` counts.

    Raises:
        RubError: no such file, another kind of file, or what is no list of whole numbers from 0.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "forget.csv"
        ...     _ = path.write_text("file,sample_id\na.png,7\nb.png,9\n")
        ...     read_ids(path)
        (7, 9)
    """
    check_plain(path)
    try:
        if path.stat().st_size > _LARGEST:
            raise RubError(f"{path}: more than {_LARGEST >> 20} MiB; a list of sample ids is smaller")
        found = _array(path) if path.suffix == ".npy" else _text(path)
    except OSError as error:
        raise RubError(f"{path}: cannot be read ({error.strerror}); give an .npy, .csv or .txt file of ids") from None
    except (ValueError, TypeError, csv.Error):
        raise RubError(f"{path}: no list of sample ids; an .npy, .csv or .txt file should hold whole numbers") from None
    if any(not 0 <= number < 1 << 62 for number in found):
        raise RubError(f"{path}: sample ids are whole numbers from 0 up")
    return tuple(dict.fromkeys(found))


def _array(path: Path) -> list[int]:
    values = np.load(path, allow_pickle=False)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ValueError("not integers (N,)")
    return [int(value) for value in values]


def _text(path: Path) -> list[int]:
    if path.suffix not in (".csv", ".txt"):
        raise ValueError("another kind of file")
    lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    header = [name.strip() for name in lines[0].split(",")] if lines else []
    column = next((name for name in COLUMNS if name in header), None)
    if column is not None:
        return [_number(row[column]) for row in csv.DictReader(lines[1:], fieldnames=header)]
    try:
        return [_number(word) for line in lines for word in line.replace(",", " ").split()]
    except ValueError:
        from rub.data.folders import SUFFIXES, sample_id

        if all(Path(line.strip()).suffix.lower() in SUFFIXES for line in lines):
            return [sample_id(line.strip()) for line in lines]
        raise


def _number(word: str | None) -> int:  # None: a row that is too short
    if word is None or not is_number(word.strip().removeprefix("-")):
        raise ValueError(f"{word!r} is no whole number")
    return int(word)
