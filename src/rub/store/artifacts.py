"""A content-addressed store of stage outputs: atomic, checksummed, locked per key.

An artifact is a directory ``<kind>/<key>/`` with its files and a ``manifest.json``. It is written under a temporary
name, synced, checksummed and renamed into place, so that a crash leaves either nothing or a whole artifact. What a
stage that is under way would go on from lies in ``partial/<key>/`` (see `rub.pipeline.checkpointing`).
"""

import errno
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rub.errors import RubError

MANIFEST = "manifest.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_KEY = re.compile(r"[0-9a-f]{64}")
PARTIAL = "partial"
STATE_HEAD, STATE_SUFFIX = 64, ".state"  # a state file begins with the SHA-256 of the rest, as hex
_NO_KINDS = ("locks", "damaged", PARTIAL)


def canonical(value: Any) -> bytes:
    """Canonical JSON of a spec: sorted keys, no spaces; what keys are hashes of. Infinity is a value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


def whole_state(path: Path) -> bool:
    """Whether a state file is as it was written."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):  # a pipe would never end
            return False
        with path.open("rb", buffering=0) as stream:
            return stream.read(STATE_HEAD) == file_digest(stream, "sha256").hexdigest().encode()
    except OSError:
        return False


@dataclass(frozen=True)
class Artifact:
    """A whole, verified stage output: its directory, and its manifest.

    The manifest says kind, key, spec, inputs, files (name -> SHA-256), seconds, device, created, versions and seal.
    """

    path: Path
    manifest: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Stage key, 64 hex digits."""
        return str(self.manifest["key"])

    def file(self, name: str) -> Path:
        """Path of one of its files; `KeyError` if the manifest does not list it."""
        self.manifest["files"][name]
        return self.path / name

    def json(self, name: str) -> Any:
        """One of its JSON files, parsed."""
        return json.loads(self.file(name).read_text(encoding="utf-8"))

    def sha256(self, name: str) -> str:
        """SHA-256 of one of its files, from the manifest."""
        return str(self.manifest["files"][name])


class Store:
    """A directory of artifacts, made where it is not there, and safe to share between processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._verified: dict[str, Artifact] = {}
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RubError(f"store {root}: cannot be created ({error.strerror}); give another with --store") from None

    def place(self, kind: str, key: str) -> Path:
        """Path of the artifact of a kind and key; names and links that could leave the store are refused."""
        if not _NAME.fullmatch(kind) or not _KEY.fullmatch(key):
            raise RubError(f"store: '{kind}/{key}' is not a stage kind and a key of 64 hex digits")
        return self._inside(kind, key)

    def find(self, kind: str, key: str) -> Artifact | None:
        """The artifact if it is there and whole, verifying every checksum once per process.

        An artifact that is damaged is moved aside to ``damaged/``, so that the stage runs again.
        """
        if (known := self._verified.get(key)) is not None:
            return known
        path = self.place(kind, key)
        if not path.is_dir():
            return None
        manifest = read_manifest(path)
        if manifest is None or manifest.get("key") != key or damaged_files(path, manifest):
            self._set_aside(path)
            return None
        return self._verified.setdefault(key, Artifact(path, manifest))

    def has(self, kind: str, key: str) -> bool:
        """Whether the artifact is there, without reading its files (for plans)."""
        return (self.place(kind, key) / MANIFEST).is_file()

    def places(self) -> Iterator[tuple[str, str, Path]]:
        """Yield kind, key and folder of what lies where artifacts do; links and other names are passed over."""
        for kind in sorted(self.root.iterdir()):
            if kind.is_symlink() or not kind.is_dir() or kind.name in _NO_KINDS or not _NAME.fullmatch(kind.name):
                continue
            for item in sorted(kind.iterdir()):
                if item.is_dir() and not item.is_symlink() and _KEY.fullmatch(item.name):
                    yield kind.name, item.name, item

    def remove(self, kind: str, key: str) -> None:
        """Delete an artifact: first renamed, so that a crash leaves nothing half."""
        path = self.place(kind, key)
        with _disk_errors(self.root):
            gone = Path(tempfile.mkdtemp(prefix=f".{key[:12]}-", dir=path.parent))
            path.replace(gone / key)
            shutil.rmtree(gone, ignore_errors=True)
        self._verified.pop(key, None)

    def write(self, kind: str, key: str, facts: Mapping[str, Any], fill: Callable[[Path], None]) -> Artifact:
        """Run `fill` on an empty temporary folder, then checksum, sync and rename it into place, or leave nothing."""
        path = self.place(kind, key)
        with _disk_errors(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
            for left in path.parent.glob(f".{key[:12]}-*"):  # of a process that was killed: this key's lock is ours
                shutil.rmtree(left, ignore_errors=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{key[:12]}-", dir=path.parent))
        try:
            with _disk_errors(self.root):
                fill(temporary)
                names = sorted(item.name for item in temporary.iterdir())
                hashes = {name: file_sha256(temporary / name) for name in names}
                manifest = {"kind": kind, "key": key, **facts, "files": hashes}
                manifest["seal"] = seal(manifest)
                (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
                for name in [*names, MANIFEST]:
                    _sync(temporary / name)
                _sync(temporary)
                temporary.replace(path)
                _sync(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._verified[key] = Artifact(path, manifest)
        return self._verified[key]

    def partial(self, key: str) -> Path:
        """Folder for the states of a stage that is under way; it need not be there."""
        return self.place(PARTIAL, key)

    def partials(self) -> Iterator[tuple[str, Path]]:
        """Yield key and folder of the states of stages that are under way, or were when their run was killed."""
        folder = self.root / PARTIAL
        for item in sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else ():
            if item.is_dir() and not item.is_symlink() and _KEY.fullmatch(item.name):
                yield item.name, item

    def forget_partial(self, key: str) -> None:
        """Delete the states of a stage that has ended; the caller holds its lock."""
        shutil.rmtree(self.partial(key), ignore_errors=True)

    @contextmanager
    def try_lock(self, key: str) -> Iterator[bool]:
        """Hold the lock of a key, or give False where another process holds it; a dead process holds none."""
        folder = self._inside("locks")
        lock = FileLock(folder / f"{key}.lock")
        try:
            with _disk_errors(self.root):
                folder.mkdir(exist_ok=True)
                lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _inside(self, *names: str) -> Path:
        path = self.root
        for name in names:
            path = path / name
            if path.is_symlink():  # RUB makes none: it could lead out of the store
                shown = path.relative_to(self.root)
                raise RubError(f"store {self.root}: {shown} is a link; a store has none: remove it")
        return path

    def _set_aside(self, path: Path) -> None:
        aside = self._inside("damaged")
        with _disk_errors(self.root), suppress(FileNotFoundError):  # another process may have just done the same
            aside.mkdir(exist_ok=True)
            target = Path(tempfile.mkdtemp(prefix=f"{path.name[:12]}-", dir=aside))
            path.replace(target / path.name)


def damaged_files(path: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Names of files that are missing, changed, or that the manifest does not list."""
    listed = manifest.get("files")
    if not isinstance(listed, dict):
        return [MANIFEST]
    present = {item.name for item in path.iterdir() if not item.is_symlink() and item.is_file()} - {MANIFEST}
    bad = set(listed) ^ present
    bad |= {name for name in set(listed) & present if file_sha256(path / name) != listed[name]}
    return sorted(bad)


def seal(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of all of a manifest but its own ``seal``."""
    return sha256(canonical({name: value for name, value in manifest.items() if name != "seal"})).hexdigest()


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Manifest, or None where it is missing, no manifest, or changed since it was sealed."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        whole = isinstance(manifest, dict) and manifest.get("seal") == seal(manifest)
    except (OSError, ValueError, RecursionError):
        return None
    return manifest if whole else None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _disk_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except RubError:
        raise
    except Exception as error:
        if _is_full(error):
            free = shutil.disk_usage(root).free // 2**20
            raise RubError(
                f"store {root}: the disk is full ({free} MiB free); free some space or give another with --store;"
                " finished stages are kept"
            ) from error
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            if error.filename is not None and not Path(error.filename).is_relative_to(root):
                raise  # what cannot be touched is an input of the stage
            raise RubError(f"store {root}: cannot be written ({error.strerror}); give another with --store") from error
        raise


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return re.search(r"\d+ requested and \d+ written|No space left on device", str(error)) is not None
