"""What the classes of data sets are called in words."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

from rub.config.documents import read_yaml
from rub.errors import RubError, unknown

IMAGENET_LABELS: Mapping[str, int] = {
    "tench": 0,
    "english-springer": 217,
    "cassette-player": 482,
    "chain-saw": 491,
    "church": 497,
    "french-horn": 566,
    "garbage-truck": 569,
    "gas-pump": 571,
    "golf-ball": 574,
    "parachute": 701,
}
"""Imagenette's classes -> label among ImageNet's 1,000 (UnlearnDiffAtk, ``src/tasks/utils/metrics/``)."""


def names_of(classes: Sequence[str]) -> list[tuple[str, ...]]:
    """Names of each class of a data set, in lower case, the main name first.

    Known are the classes of digits, CIFAR-10 and Imagenette (by wnid); any other is called what it is, with ``_`` and
    ``-`` as spaces. A further name that another of the classes has too is left out.

    Example:
        >>> names_of(["n03028079", "hot_air-balloon"])
        [('church', 'chapel', 'cathedral'), ('hot air balloon',)]
    """
    known = _known()
    found = [known.get(name) or (spaced(name),) for name in classes]
    mains = [names[0] for names in found]
    for place, main in enumerate(mains):
        if main in mains[:place]:
            first = classes[mains.index(main)]
            raise RubError(f"classes '{first}' and '{classes[place]}' are both called '{main}' in prompts; rename one")
    often = Counter(name for names in found for name in names)
    return [(names[0], *(name for name in names[1:] if often[name] == 1)) for names in found]


def class_number(asked: int | str, classes: Sequence[str], what: str = "class") -> int:
    """Number of a class of a data set, by number or by name: its own, or one of `names_of`.

    Case does not matter, and dashes and underscores are spaces.

    Args:
        asked: a number, or such as ``garbage-truck``.
        classes: class names in the order of the labels.
        what: what is asked for, in the words of an error.

    Raises:
        RubError: no class is called so, or several are.

    Example:
        >>> class_number("Church", ["n01440764", "n03028079"]), class_number("hot-air_balloon", ["hot air balloon"])
        (1, 0)
    """
    if isinstance(asked, int):
        return asked
    if asked in classes:
        return classes.index(asked)
    known = _known()
    called = [(name, *known.get(name, ())) for name in classes]
    worded = any(char.isalpha() for char in asked)  # a number stands for itself: -1 is not 1
    places = [place for place, names in enumerate(called) if worded and spaced(asked) in map(spaced, names)]
    if not places:
        raise unknown(what, asked, {word for names in called for word in names})
    if len(places) > 1:
        same = ", ".join(f"'{classes[place]}'" for place in places)
        raise RubError(f"{what} '{asked}' could be {same}; give one of these")
    return places[0]


def titled(number: int, classes: Sequence[str]) -> str:
    """Number of a class with its name, and with the word for it where its name is a wnid.

    Example:
        >>> titled(1, ["n01440764", "n03028079"]), titled(3, ["cat"] * 4), titled(0, ["0", "1"])
        ('1 (n03028079, church)', '3 (cat)', '0')
    """
    name = classes[number]
    words = (name, *_known().get(name, ())[:1])
    return str(number) if name == str(number) else f"{number} ({', '.join(dict.fromkeys(words))})"


def _known() -> Mapping[str, tuple[str, ...]]:
    return {name: tuple(names) for group in known_names().values() for name, names in group.items()}


@cache
def known_names() -> Mapping[str, Mapping[str, Sequence[str]]]:
    """Names that RUB knows: data set -> class -> names."""
    text = files("rub.data").joinpath("class_names.yaml").read_text(encoding="utf-8")
    found: Mapping[str, Mapping[str, Sequence[str]]] = read_yaml(text, "class_names.yaml")
    return found


def slug(name: str) -> str:
    """Name with dashes, as files and `IMAGENET_LABELS` have it."""
    return spaced(name).replace(" ", "-")


def spaced(name: str) -> str:
    """Name as it stands in a sentence: lower case, dashes and underscores as spaces.

    Example:
        >>> spaced("garbage-truck")
        'garbage truck'
    """
    return re.sub(r"[-_\s]+", " ", name).strip().lower() or name
