"""Memory that a process frees and asks for again: every step of a network needs as much as the one before."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# of malloc.h: M_MMAP_MAX, so that all comes from the heap, and M_TRIM_THRESHOLD, so that it never shrinks
KEEPING = {-4: 0, -1: -1}


@contextmanager
def retain_freed_memory() -> Iterator[bool]:
    """Let this process keep memory that it frees, where the C library is glibc, and yield whether it does.

    By default, glibc hands large tensors back to the system, which clears their pages when the next step asks for as
    much; `benchmarks/device.py` measures it with and without. What is free when the body ends goes back at once.

    Example:
        >>> with retain_freed_memory() as kept:
        ...     isinstance(kept, bool)
        True
    """
    try:
        library = ctypes.CDLL(None)
        mallopt, trim = library.mallopt, library.malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, or none that can be asked
        yield False
        return
    for option, value in KEEPING.items():
        mallopt(option, value)
    try:
        yield True
    finally:
        trim(0)
