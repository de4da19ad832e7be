"""Names that may come from others: as text for a terminal, as a file name, as one that nothing else has yet."""

import itertools
import re
import unicodedata
from collections.abc import Container, Mapping
from typing import Any

_PLACE = re.compile(
    r"(?<![\w./~:\\-])(?:file://)?(?:~[\w.-]*|\.\.|[A-Za-z]:)?[/\\](?:[^\s\"'(){}\[\],;=<>|/\\]+[/\\]+)*[^\s\"'(){}\[\],;=<>|/\\]*"
    r"|(?<=[a-z]:)/(?!/)(?:[^\s\"'(){}\[\],;=<>|/\\]+/+)*[^\s\"'(){}\[\],;=<>|/\\]*"
)
_ALIKE = {"LATIN", "CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE", "COPTIC", "LISU", "FULLWIDTH", "MATHEMATICAL"}


def printable(text: str) -> str:
    """Text without control characters, which could drive a terminal; records may come from others.

    Example:
        >>> printable("a" + chr(27) + "[2Jb")
        'a?[2Jb'
    """
    return "".join(char if char.isprintable() else " " if char.isspace() else "?" for char in text)


def mixed_letters(text: str) -> bool:
    """Whether a word has letters of several alphabets, some of which look alike; a name of others may pose as ours.

    Example:
        >>> mixed_letters("s" + chr(0x430) + "lun"), mixed_letters("données"), mixed_letters("цифры-28 px")
        (True, False, False)
    """
    words = ({unicodedata.name(char, "").partition(" ")[0] for char in word} for word in re.findall(r"\w+", text))
    return any(len(alphabets & _ALIKE) > 1 for alphabets in words)


def without_places(text: str) -> str:
    """Text in which each absolute path, or one from a home folder or above this one, is its last part alone.

    Example:
        >>> without_places("read /home/me/a.pth, hf:/data/vit, ../b.npz and https://example.org/c")
        'read a.pth, hf:vit, b.npz and https://example.org/c'
    """
    if text.startswith(("/", "~/", "../")) and "://" not in text:  # a path alone, which may hold spaces
        return text.rstrip("/").rpartition("/")[2]
    return _PLACE.sub(lambda found: re.split(r"[/\\]", found[0].rstrip("/\\"))[-1] or found[0], text)


def placeless(value: Any) -> Any:
    """Plain data in which every text is as of `without_places`."""
    if isinstance(value, str):
        return without_places(value)
    if isinstance(value, Mapping):
        return {placeless(key): placeless(item) for key, item in value.items()}
    return [placeless(item) for item in value] if isinstance(value, list | tuple) else value


def told(settings: Mapping[str, Any]) -> str:
    """Settings in one line, without those that are None.

    Example:
        >>> told({"epochs": 2, "lr": 0.01, "seed": None})
        'epochs 2, lr 0.01'
    """
    return printable(", ".join(f"{name} {value}" for name, value in settings.items() if value is not None))


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
