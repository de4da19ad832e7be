"""Names that may come from others: as text for a terminal, as a file name, as one that nothing else has yet."""

import itertools
from collections.abc import Container


def printable(text: str) -> str:
    """Text without control characters, which could drive a terminal; records may come from others.

    Example:
        >>> printable("a" + chr(27) + "[2Jb")
        'a?[2Jb'
    """
    return "".join(char if char.isprintable() else " " if char.isspace() else "?" for char in text)


def slug(text: str) -> str:
    """Text fit for a file name on every system: at most 100 lower case letters, digits and dashes.

    Example:
        >>> slug("CIFAR 10/<b>")
        'cifar-10--b'
    """
    name = "".join(char if char.isascii() and char.isalnum() else "-" for char in text.lower())
    return name[:100].strip("-") or "unnamed"


def free_name(name: str, taken: Container[str], mark: str = "-") -> str:
    """Name, numbered where it is taken already.

    Args:
        name: wanted.
        taken: names that are in use.
        mark: stands before the number.

    Example:
        >>> free_name("loss-digits", {"loss-digits"}), free_name("loss-digits", ())
        ('loss-digits-2', 'loss-digits')
    """
    numbered = (f"{name}{mark}{number}" for number in itertools.count(2))
    return next(free for free in itertools.chain([name], numbered) if free not in taken)
