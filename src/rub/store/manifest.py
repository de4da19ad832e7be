"""The seal of a result folder: a manifest of every file's SHA-256, sealed itself, so that any changed byte is found.

It shows that nothing changed since the folder was written. It does not show who wrote it: whoever changes a file can
seal the folder again, which is why `rub verify` scores witnesses anew.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from rub.errors import RubError
from rub.store.artifacts import file_sha256, seal

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
OWN = (
    "records.parquet", "records.json", "samples.parquet", "values.parquet", "curves.json", "suite.yaml", "stages.json",
    "galleries.json", "hyperparameters.json", "verdict.json", "verdict.html", "verdict.txt", "submission.json",
    "tables", "figures", "witnesses", "report",
)  # fmt: skip
"""Files and folders that RUB writes into a result folder; what else lies there is not its own, and never read."""
LATER = ("values.parquet",)
"""Of these, what folders hold that were sealed before it was sealed too: there it is not read."""
LARGEST = 1 << 26  # bytes of a manifest; a larger one is not read


def seal_folder(folder: Path, facts: Mapping[str, Any]) -> Path:
    """Write ``manifest.json``: the SHA-256 of every file of a result folder, and facts about how it was made."""
    files = {name: file_sha256(folder / name) for name in _files(folder)}
    manifest = {"schema_version": SCHEMA_VERSION, **facts, "files": files}
    place = folder / MANIFEST
    place.write_text(_text({**manifest, "seal": seal(manifest)}), encoding="utf-8")
    return place


def read_manifest(folder: Path) -> dict[str, Any]:
    """Manifest of a result folder; it may come from anyone.

    Raises:
        RubError: it is absent, of a newer RUB, or not as it was written.
    """
    place = folder / MANIFEST
    if place.is_symlink() or not place.is_file() or place.stat().st_size > LARGEST:
        raise RubError(f"{folder}: has no {MANIFEST}, so nothing says whether a file was changed")
    try:
        text = place.read_text(encoding="utf-8")
        manifest = json.loads(text)
        newer = isinstance(manifest, dict) and manifest.get("schema_version", 0) > SCHEMA_VERSION
        whole = isinstance(manifest, dict) and manifest.get("seal") == seal(manifest) and text == _text(manifest)
        whole = whole and isinstance(manifest["files"], dict)
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        newer = whole = False
    if newer:
        raise RubError(f"{place}: of a newer RUB (schema {manifest['schema_version']}); update RUB to read it")
    if not whole:
        raise RubError(f"{place}: changed since it was sealed")
    return cast("dict[str, Any]", manifest)


def changed_files(folder: Path) -> list[str]:
    """One line for each file that is missing, changed, a link, or not in the manifest; none where all is whole.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp())
        >>> _ = (place / "records.json").write_text("[]")
        >>> _ = seal_folder(place, {})
        >>> changed_files(place)
        []
        >>> _ = (place / "records.json").write_text("{}")
        >>> changed_files(place)
        ['records.json: changed since the folder was sealed']
    """
    listed: dict[str, str] = read_manifest(folder)["files"]
    present = set(_files(folder)) - (set(LATER) - set(listed))
    lines = dict.fromkeys(set(listed) - present, "missing")
    lines |= dict.fromkeys(present - set(listed), "not in the manifest")
    for name in present & set(listed):
        if (folder / name).is_symlink():
            lines[name] = "a link"
        elif file_sha256(folder / name) != listed[name]:
            lines[name] = "changed since the folder was sealed"
    return [f"{name}: {lines[name]}" for name in sorted(lines)]


def _files(folder: Path) -> Iterator[str]:
    for own in OWN:
        top = folder / own
        below = sorted(top.rglob("*")) if top.is_dir() and not top.is_symlink() else []
        for place in (top, *below):
            if place.is_symlink() or place.is_file():
                yield place.relative_to(folder).as_posix()


def _text(manifest: Mapping[str, Any]) -> str:
    return json.dumps(manifest, indent=1, sort_keys=True) + "\n"
