"""Memory that a process frees and asks for again: every step of a network needs as much as the one before."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# of malloc.h: M_MMAP_MAX, so that all comes from the heap, and M_TRIM_THRESHOLD, so that it never shrinks
KEEPING = {-4: 0, -1: -1}


@contextmanager
def retain_freed_memory() -> Iterator[bool]:
    """Let this process keep memory that it frees, where the C library is glibc, and yield whether it does.

    By default, glibc hands large tensors back to the system, which clears their pages when the next step asks for as
    much; `benchmarks/device.py` measures it with and without. What is free when the body ends goes back at once.
    """
    library = _glibc()
    for option, value in KEEPING.items() if library else ():
        library.mallopt(option, value)
    try:
        yield library is not None
    finally:
        return_freed_memory()


def return_freed_memory() -> None:
    """Hand what is free back to the system, where the C library is glibc."""
    if (library := _glibc()) is not None:
        library.malloc_trim(0)


def _glibc() -> Any:
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):  # a system without one that can be asked
        return None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
