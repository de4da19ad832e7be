"""A figure that was drawn: what the page needs to know of it, and a file name of its own."""

from dataclasses import dataclass

from rub.reports.grouping import Group
from rub.reports.text import printable


@dataclass(frozen=True)
class FigureFile:
    """A figure in the folder ``figures/``.

    Attributes:
        group: whose figure it is.
        name: file name without its suffix.
        caption: what it shows.
        vector: whether there is an SVG beside the PNG.
    """

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
