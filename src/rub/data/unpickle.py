"""Reading CIFAR's pickles without letting them run code, or reach code that trusts them.

Python's own unpickler in Python is used, not the one in C, and arrays are rebuilt here from their bytes, not by numpy's
``__setstate__``: both C functions can be crashed by a damaged file.
"""

import pickle
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rub.errors import RubError

_KINDS = ("u1", "i1", "i4", "i8", "f4", "f8")


class _Forbidden(Exception):
    """A pickle asked for a global that an array does not need."""


class _Kind:
    """Stands for ``numpy.dtype``: plain numbers only."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = text(code), "|"

    def __setstate__(self, state: Any) -> None:
        self.order = text(state[1])

    def array(self, raw: Any, shape: Any, order: str) -> NDArray[Any]:
        # ValueError where these bytes are no array
        kind = self.code.lstrip("|<>=")
        if kind not in _KINDS or self.order not in ("|", "<", ">", "=") or not isinstance(raw, bytes | bytearray):
            raise ValueError("no array of plain numbers")
        dtype = np.dtype(kind) if self.order in ("|", "=") else np.dtype(self.order + kind)
        sizes = tuple(int(side) for side in shape)
        if any(side < 0 for side in sizes):
            raise ValueError("a negative shape")
        return np.frombuffer(bytes(raw), dtype).reshape(sizes, order="F" if order == "F" else "C").copy()


class _Array:
    """Stands for ``numpy.ndarray`` until its state is known."""

    value: NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        shape, kind, fortran, raw = state[-4:]
        self.value = _kind(kind).array(raw, shape, "F" if fortran else "C")


def _from_buffer(raw: Any, kind: Any, shape: Any, order: Any) -> _Array:
    made = _Array()
    made.value = _kind(kind).array(raw, shape, text(order))
    return made


def _encode(given: Any, *_: Any) -> bytes:
    # for _codecs.encode: Python 3 writes Python 2's bytes as Latin text
    return given if isinstance(given, bytes) else text(given).encode("latin1")


def _kind(given: Any) -> _Kind:
    if not isinstance(given, _Kind):
        raise ValueError("an array without a kind of number")
    return given


# What an array of numpy, in a pickle of Python 2 or 3, is rebuilt from; nothing else is ever looked up.
_STANDINS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Kind,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): lambda *_: _Array() for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _ArraysOnly(pickle._Unpickler):  # type: ignore[misc, name-defined, unused-ignore]
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STANDINS:
            raise _Forbidden(f"{module}.{name}")
        return _STANDINS[module, name]


def load_arrays(path: Path) -> dict[str, Any]:
    """Dictionary pickled in a file, with text keys; only numbers, text, lists and arrays are rebuilt.

    Raises:
        RubError: the file is damaged, holds no dictionary, or asks for anything that could run code.
    """
    try:
        loaded = _ArraysOnly(BytesIO(path.read_bytes()), encoding="bytes").load()
    except _Forbidden as error:
        raise RubError(f"{path}: refused: the pickle asks for {error}, which image data does not need") from None
    except Exception as error:
        raise RubError(f"{path}: damaged ({type(error).__name__}); copy the file again") from None
    if not isinstance(loaded, dict):
        raise RubError(f"{path}: holds a {type(loaded).__name__}, not a CIFAR batch")
    return {text(key): value.value if isinstance(value, _Array) else value for key, value in loaded.items()}


def text(value: object) -> str:
    """Text that Python 2 pickled as bytes, or Python 3 as text."""
    return value.decode("latin1") if isinstance(value, bytes) else str(value)
