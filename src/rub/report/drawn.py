"""A figure that was drawn: what the page needs to know of it, and a file name of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

from rub.report.grouping import Group, printable


@dataclass(frozen=True)
class Drawn:
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


def free_name(name: str, drawn: Sequence[Drawn]) -> str:
    """Return the name, numbered when one of these figures has it already.

    Example:
        >>> group = Group("classification", "quick", "", "digits", "resnet10", "rub-quick-1")
        >>> free_name("loss-digits", [Drawn(group, "loss-digits", "")])
        'loss-digits-2'
    """
    taken = {one.name for one in drawn}
    number, free = 1, name
    while free in taken:
        number, free = number + 1, f"{name}-{number + 1}"
    return free


def plain(text: str) -> str:
    r"""Return text as matplotlib shows it: names may come from others, and hold what would be read as a formula.

    Example:
        >>> plain("a$b$")
        'a\\$b\\$'
    """
    return printable(text).replace("$", r"\$")
