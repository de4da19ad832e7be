"""The errors that RUB shows to its user: one line that says what, where, and what would be right."""

from collections.abc import Iterable
from difflib import get_close_matches

_SCREEN = 1600  # characters of a message
_LONGEST, _MOST = 60, 40  # characters of a name, and names, that an error shows


class RubError(Exception):
    """A request that cannot be carried out as it stands (exit code 2); the message is one line, and fits a screen."""

    def __init__(self, message: str = "") -> None:
        if len(message) > _SCREEN:
            message = f"{message[: _SCREEN - 310]} ... {message[-300:]}"
        super().__init__(message)


class Diverged(Exception):
    """Numbers stopped being finite inside a stage; its cells are marked failed with this reason."""


class OutOfMemory(Exception):
    """Memory ran out while a stage held `batch` of a runtime's batch size; `held` says what that was, in its words."""

    def __init__(self, held: str, batch: int) -> None:
        super().__init__(held)
        self.batch = batch


class NothingToMeasure(Exception):
    """No sample is left that a measurement could be of; its cells are marked failed with this reason."""


def unknown(what: str, asked: str, known: Iterable[str]) -> RubError:
    """Build the error for a name that does not exist, with the nearest names that do.

    Args:
        what: the kind of thing asked for, such as ``"method"``.
        asked: the name received.
        known: every name that would have been right.

    Example:
        >>> str(unknown("method", "saluun", ["salun", "ft"]))
        "unknown method 'saluun': did you mean 'salun'? known: ft, salun"
    """
    names = sorted(known)
    near = get_close_matches(asked[:_LONGEST], names, n=1, cutoff=0.5)
    hint = f"did you mean '{_short(near[0])}'? " if near else ""
    shown = ", ".join(map(_short, names[:_MOST])) + (f" and {len(names) - _MOST} more" if len(names) > _MOST else "")
    return RubError(f"unknown {what} '{_short(asked)}': {hint}known: {shown or 'none'}")


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."


def first_line(error: BaseException) -> str:
    r"""First line of an error's message; its kind where it says nothing.

    Example:
        >>> first_line(ValueError("no such\nthing")), first_line(MemoryError())
        ('no such', 'MemoryError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]
