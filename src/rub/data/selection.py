"""What a reader of images is asked for and what it gives. Free of torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from rub.data.samples import Samples


class Read(NamedTuple):
    """What a reader gives.

    Attributes:
        classes: names, in the order of the labels.
        train: training samples.
        test: test samples.
        skipped: names of images left out.
        notes: what was done to some images, one line each.
        files: sample id -> name of its file, where samples are files.
    """

    classes: tuple[str, ...]
    train: "Samples"
    test: "Samples"
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    files: Mapping[int, str] = MappingProxyType({})


@dataclass(frozen=True)
class Selection:
    """Which images of class folders are read.

    Attributes:
        classes: folder names (wnids) in the order of the labels; None reads all, sorted by name.
        per_class: training images per class: those whose ``<class>/<file>`` has the smallest SHA-256; None: all.
        test_per_class: likewise for test images.
        skip_unreadable: leave out, and list, images that cannot be decoded; they are not replaced by others.

    Example:
        >>> Selection(("n01443537", "n01484850"), per_class=120).given()
        {'classes': ['n01443537', 'n01484850'], 'per_class': 120}
    """

    classes: tuple[str, ...] | None = None
    per_class: int | None = None
    test_per_class: int | None = None
    skip_unreadable: bool = False

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "Selection":
        """Selection that `given` wrote into a mapping, whatever else is in it."""
        given = [facts.get(field.name, field.default) for field in fields(cls)]
        values: list[Any] = [tuple(value) if isinstance(value, list) else value for value in given]
        return cls(*values)

    def given(self) -> dict[str, Any]:
        """Fields that differ from their defaults, as JSON values."""
        changed = {name: value for name, value in asdict(self).items() if value is not None and value is not False}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}


EVERYTHING = Selection()
