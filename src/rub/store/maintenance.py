"""Looking after a store: what is in it, whether it is whole, and what no suite needs."""

import time
from collections.abc import Container, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rub.store.artifacts import PARTIAL, STATE_SUFFIX, Store, abandoned, damaged_files, read_manifest, whole_state

DAY = 24 * 3600


@dataclass(frozen=True)
class KindUsage:
    """Number and bytes of what a store holds of one kind of stage; ``partial`` are states of stages under way."""

    kind: str
    count: int
    size: int


def usage(store: Store) -> list[KindUsage]:
    """What a store holds, by kind, the largest first."""
    sizes: dict[str, list[int]] = {}
    for kind, _, place in store.places():
        sizes.setdefault(kind, []).append(size_of(place))
    if under_way := [size_of(place) for _, place in store.partials()]:
        sizes[PARTIAL] = under_way
    kept = [KindUsage(kind, len(found), sum(found)) for kind, found in sizes.items()]
    return sorted(kept, key=lambda one: -one.size)


def damaged(store: Store) -> Iterator[tuple[str, str, str]]:
    """Yield kind, key and what is wrong of each artifact that is not as it was written; nothing is moved or deleted."""
    for kind, key, place in store.places():
        manifest = read_manifest(place)
        if manifest is None or manifest.get("key") != key:
            yield kind, key, "its manifest is missing or was changed"
        elif bad := damaged_files(place, manifest):
            yield kind, key, f"missing, changed or not listed: {', '.join(bad)}"
    for key, place in store.partials():
        states = sorted(place.glob(f"*{STATE_SUFFIX}"))
        if bad := [item.name for item in states if item.exists() and not whole_state(item)]:
            yield PARTIAL, key, f"changed: {', '.join(bad)}; the stage would start again"


def unneeded(store: Store, needed: Container[str]) -> Iterator[tuple[str, str, int]]:
    """Yield kind, key and bytes of each artifact whose key is not among those needed, and of states nobody needs."""
    finished = set()
    for kind, key, place in store.places():
        finished.add(key)
        if key not in needed:
            yield kind, key, size_of(place)
    for key, place in store.partials():
        if key not in needed or key in finished:
            yield PARTIAL, key, size_of(place)


def left_behind(store: Store) -> Iterator[tuple[Path, int]]:
    """Yield place and bytes of what processes that were killed left: of this machine, or untouched for a day.

    Folders of artifacts, states that were being written, and leases. Of another machine only the age of what its
    process touches, the lease among them, says that it is gone.
    """
    for place in store.unfinished():
        with suppress(FileNotFoundError):
            newest = max(item.lstat().st_mtime for item in (place, *place.iterdir()))
            key = place.name.split("-")[1]
            old = time.time() - newest > DAY and store.leased(key) > DAY  # a stage fills its folder when it ends
            if abandoned(place) or old:
                yield place, size_of(place)
    for folder, pattern in ((store.root / "locks", "*"), *((place, "*.new") for _, place in store.partials())):
        for item in folder.glob(pattern) if folder.is_dir() else ():
            with suppress(OSError):
                if time.time() - item.lstat().st_mtime > DAY and store.leased(place_key(item)) > DAY:
                    yield item, item.lstat().st_size


def place_key(item: Path) -> str:
    """Key of the stage that a file of ``locks/`` or of ``partial/KEY/`` belongs to."""
    return item.parent.name if item.suffix == ".new" else item.name.split(".")[0]


def size_of(place: Path) -> int:
    """Bytes of the files in a folder; 0 where there is none. A run may be changing it meanwhile."""
    total = 0
    with suppress(FileNotFoundError, NotADirectoryError):
        for item in place.iterdir():
            with suppress(FileNotFoundError):
                total += item.lstat().st_size
    return total
