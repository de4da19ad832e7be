"""Models by hub id: from the hub's cache, or downloaded where there is a network; never a hang."""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rub.errors import RubError

SECONDS = 5  # a hub that does not answer in this time is not there
_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?(?::([\w./ -]+))?")
Wanted = Callable[[Collection[str], str], Sequence[str]] | Sequence[str] | None
WAYS = "give a folder on disk (also below --data-root), or run once with a network to fill the hub's cache"


@dataclass(frozen=True)
class HubName:
    """A model on the hub.

    Attributes:
        id: ``owner/name``.
        revision: branch, tag or commit; None: the main branch.
        place: folder or file in it; "" all of it.
        where: which option or field named it, for errors.
    """

    id: str
    revision: str | None = None
    place: str = ""
    where: str = "model.weights"

    @classmethod
    def parse(cls, text: str, where: str) -> Self:
        """``owner/name[@revision][:place]``.

        Raises:
            RubError: no such form.

        Example:
            >>> HubName.parse("OPTML-Group/AdvUnlearn@main:church_unlearned", "--unlearned").place
            'church_unlearned'
        """
        found = _NAME.fullmatch(text)
        if found is None or text.startswith((".", "/", "~")) or ".." in text:
            hint = "no hub id (owner/name, owner/name@revision, owner/name:subfolder)"
            raise RubError(f"{where} {text}: no such file or folder, and {hint}; {WAYS}")
        return cls(found[1], found[2], (found[3] or "").strip("/"), where)

    def __str__(self) -> str:
        return self.id + (f"@{self.revision}" if self.revision else "") + (f":{self.place}" if self.place else "")


def snapshot(
    name: HubName,
    *,
    wanted: Wanted = None,
    lacks: Callable[[Path], str] = lambda place: "",
) -> Path:
    """Folder of a hub model, or the file or folder in it that was named; what the cache does not have is downloaded.

    Args:
        name: which.
        wanted: patterns of files; or a function from the names of all files, and what those of the place begin with,
            to those that are needed; None: all files.
        lacks: the first needed file that a place has not; "" where it is whole. A cache that holds a part is completed.

    Raises:
        RubError: not there, and the hub cannot be reached, or has no such files.
    """
    from huggingface_hub import HfApi, snapshot_download

    from rub.data.hub import reachable

    given: dict[str, Any] = {"repo_id": name.id, "revision": name.revision}
    fixed = None if wanted is None or callable(wanted) else list(wanted)
    reason = "not in the hub's cache"
    try:
        place = Path(str(snapshot_download(**given, allow_patterns=fixed, local_files_only=True)), name.place)
        if place.exists() and not (absent := lacks(place)):
            return place
        reason = f"the hub's cache has not all of it ({absent if place.exists() else name.place} is missing)"
    except Exception:  # whatever the library raises where nothing is cached
        reason = "not in the hub's cache"
    if not reachable(SECONDS):  # asked first: a download waits for a silent hub without end
        raise RubError(f"{name.where} {name}: {reason}, and the hub cannot be reached; {WAYS}")
    try:
        patterns = fixed
        if callable(wanted):
            names = HfApi().list_repo_files(**given)
            inner = [file for file in names if file == name.place or file.startswith(f"{name.place}/")]
            whole = name.place in names
            patterns = [name.place] if whole else list(wanted(inner or names, f"{name.place}/" if name.place else ""))
        place = Path(str(snapshot_download(**given, allow_patterns=patterns)), name.place)
    except Exception as error:
        failed = f"fetching it failed ({type(error).__name__})"
        raise RubError(f"{name.where} {name}: {reason}, and {failed}; {WAYS}") from None
    if not place.exists() or (absent := lacks(place)):
        raise RubError(f"{name.where} {name}: the hub has no {absent if place.exists() else name.place} there")
    return place
