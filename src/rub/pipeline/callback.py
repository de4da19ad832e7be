"""How long work tells what it is doing: a callable that receives steps done, steps in all, and a short note."""

from typing import Protocol


class Progress(Protocol):
    """Called often and cheaply by long work."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Report that `done` of `total` steps are behind us; `note` is a few words such as ``"loss 0.12"``."""


def silent(done: int, total: int, note: str = "") -> None:
    """Report nothing: the default for library use."""
