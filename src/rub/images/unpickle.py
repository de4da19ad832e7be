"""Reading CIFAR's pickles without letting them run code."""

import io
import pickle
from pathlib import Path
from typing import Any

from rub.errors import RubError

# What an array of numpy, in a pickle of Python 2 or 3, is rebuilt from; nothing else is ever looked up.
_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
}


class _Forbidden(Exception):
    """A pickle asked for a global that an array does not need."""


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise _Forbidden(f"{module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def load_arrays(path: Path) -> dict[str, Any]:
    """Return the dictionary pickled in a file, with text keys; only numbers, text, lists and arrays are rebuilt.

    Raises:
        RubError: the file is damaged, holds no dictionary, or asks for anything that could run code.
    """
    try:
        loaded = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except _Forbidden as error:
        raise RubError(f"{path}: refused: the pickle asks for {error}, which image data does not need") from None
    except Exception as error:
        raise RubError(f"{path}: damaged ({type(error).__name__}); copy the file again") from None
    if not isinstance(loaded, dict):
        raise RubError(f"{path}: holds a {type(loaded).__name__}, not a CIFAR batch")
    return {text(key): value for key, value in loaded.items()}


def text(value: object) -> str:
    """Return what Python 2 pickled as bytes, and Python 3 as text, as text."""
    return value.decode("latin1") if isinstance(value, bytes) else str(value)
