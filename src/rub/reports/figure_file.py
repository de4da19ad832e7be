"""A figure that was drawn: what the page needs to know of it, and a file name of its own."""

from dataclasses import dataclass

from rub.reports.grouping import Group
from rub.reports.text import printable


@dataclass(frozen=True)
class FigureFile:
    """A figure in the folder ``figures/``: a `vector` one has an SVG beside the PNG; the name has no suffix."""

    group: Group
    name: str
    caption: str
    vector: bool = True


def plain(text: str) -> str:
    r"""Text as matplotlib shows it: names may come from others, and hold what would be read as a formula.

    Example:
        >>> plain("a$b$")
        'a\\$b\\$'
    """
    return printable(text).replace("$", r"\$")
