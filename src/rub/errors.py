"""The errors that RUB shows to its user: one line that says what, where, and what would be right."""

from collections.abc import Iterable
from difflib import get_close_matches


class RubError(Exception):
    """A request that cannot be carried out as it stands (exit code 2); the message is one line."""


class Diverged(Exception):
    """Numbers stopped being finite inside a stage; its cells are marked failed with this reason."""


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
    near = get_close_matches(asked, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return RubError(f"unknown {what} '{asked}': {hint}known: {', '.join(names) or 'none'}")
