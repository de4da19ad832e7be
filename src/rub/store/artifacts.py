"""A content-addressed store of stage outputs: atomic, checksummed, shared between processes, nodes and users.

An artifact is a directory ``<kind>/<key>/`` with its files and a ``manifest.json``. It is written under a temporary
name, synced, checksummed and renamed into place, so that a crash leaves either nothing or a whole artifact. What a
stage that is under way would go on from lies in ``partial/<key>/`` (see `rub.pipeline.checkpointing`).

Who computes a stage holds a lease: a file that says who, and that is touched while the process lives. No operating
system's lock is needed, which network file systems may lack. A lease saves work and protects nothing: should two
processes hold one, both compute, one of the two equal artifacts stays, and neither touches the other's files.
"""

import errno
import json
import math
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import LeaseSettingsMismatch, SoftFileLease, Timeout

from rub.errors import RubError

MANIFEST = "manifest.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_KEY = re.compile(r"[0-9a-f]{64}")
PARTIAL = "partial"
STATE_HEAD, STATE_SUFFIX = 64, ".state"  # a state file begins with the SHA-256 of the rest, as hex
_NO_KINDS = ("locks", "damaged", PARTIAL)
_UNFINISHED = re.compile(r"\.new-[0-9a-f]{12}-(?P<machine>[0-9a-f]{12})-(?P<process>\d+)-[0-9a-f]{32}")
_DENIED = (errno.EACCES, errno.EROFS, errno.EPERM)
_BROKEN = (*_DENIED, errno.EIO, errno.ESTALE, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of the store's own files
LEASE_SECONDS = 60.0  # for which a lease is not touched before others take it; all of one store must agree


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
        self._awaited: dict[str, _Awaited] = {}
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
        with _read_errors(self.root):
            if not path.is_dir():
                return None
            manifest = read_manifest(path)
            whole = manifest is not None and manifest.get("key") == key and not damaged_files(path, manifest)
        if manifest is None or not whole:
            self._set_aside(path)
            return None
        return self._verified.setdefault(key, Artifact(path, manifest))

    def has(self, kind: str, key: str) -> bool:
        """Whether the artifact is there, without reading its files (for plans)."""
        with _read_errors(self.root):
            return (self.place(kind, key) / MANIFEST).is_file()

    def places(self) -> Iterator[tuple[str, str, Path]]:
        """Yield kind, key and folder of what lies where artifacts do; links and other names are passed over."""
        for kind in self._kinds():
            for item in _listed(self.root, kind):
                if item.is_dir() and not item.is_symlink() and _KEY.fullmatch(item.name):
                    yield kind.name, item.name, item

    def leased(self, key: str) -> float:
        """Seconds since the lease of a key, or of one that begins so, was touched; infinite where there is none."""
        folder = self.root / "locks"
        ages = [math.inf]
        for file in folder.glob(f"{key}*.lease") if folder.is_dir() else ():
            with suppress(OSError):
                ages.append(time.time() - file.lstat().st_mtime)
        return min(ages)

    def unfinished(self) -> Iterator[Path]:
        """Yield the folders of artifacts that are being written, or were when their process was killed."""
        for kind in self._kinds():
            yield from (item for item in _listed(self.root, kind) if _UNFINISHED.fullmatch(item.name))

    def remove(self, kind: str, key: str) -> None:
        """Delete an artifact: first renamed, so that a crash leaves nothing half."""
        path = self.place(kind, key)
        with _disk_errors(self.root):
            gone = self._temporary(path)
            path.replace(gone / key)
            shutil.rmtree(gone, ignore_errors=True)
        self._verified.pop(key, None)

    def write(self, kind: str, key: str, facts: Mapping[str, Any], fill: Callable[[Path], None]) -> Artifact:
        """Run `fill` on an empty temporary folder, then checksum, sync and rename it into place, or leave nothing.

        Where another process has put the same artifact there meanwhile, that one stays and is returned.
        """
        path = self.place(kind, key)
        with _disk_errors(self.root):
            make_folder(path.parent, self.root)
            for left in path.parent.glob(f".new-{key[:12]}-*"):
                if abandoned(left):
                    shutil.rmtree(left, ignore_errors=True)
            temporary = self._temporary(path)
        try:
            with _disk_errors(self.root):
                fill(temporary)
                names = sorted(item.name for item in temporary.iterdir())
                hashes = {name: file_sha256(temporary / name) for name in names}
                manifest = {"kind": kind, "key": key, **facts, "files": hashes}
                manifest["seal"] = seal(manifest)
                (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
                for name in [*names, MANIFEST]:
                    share(temporary / name, self.root)
                    _sync(temporary / name)
                _sync(temporary)
            return self._put(temporary, path, Artifact(path, manifest))
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

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
        """Hold the lease of a key, or give False where another process holds it.

        A process of this machine that died holds none; one of another machine for `LEASE_SECONDS` more.
        """
        awaited = self._awaited.pop(key, None) or _Awaited(self._lease(key))
        try:
            with _disk_errors(self.root, _BROKEN):
                make_folder(Path(awaited.lease.lock_file).parent, self.root)
                awaited.lease.acquire(timeout=0)
        except (Timeout, LeaseSettingsMismatch):
            if awaited.unchanged() > 2 * LEASE_SECONDS:  # its holder is gone, and its file could not be exchanged
                awaited.lease.force_break()
            self._awaited[key] = awaited
            yield False
            return
        try:
            yield True
        finally:
            awaited.lease.release()

    def holder(self, key: str) -> str:
        """Who holds the lease of a key, such as ``process 4711 on node7``; "another process" where nothing says it."""
        owner = self._lease(key).owner
        host = "" if owner is None else "".join(char for char in owner.hostname[:80] if char.isprintable())
        return "another process" if owner is None else f"process {owner.pid} on {host}"

    def _lease(self, key: str) -> SoftFileLease:
        place = self._inside("locks") / f"{key}.lease"
        return SoftFileLease(place, lease_duration=LEASE_SECONDS, mode=0o644 & self.root.stat().st_mode)

    def _put(self, temporary: Path, path: Path, made: Artifact) -> Artifact:
        for _ in range(2):
            try:
                with _disk_errors(self.root, _BROKEN):
                    temporary.replace(path)
                    _sync(path.parent)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                if (found := self.find(str(made.manifest["kind"]), made.key)) is not None:
                    return found  # another process was first; what was damaged there is set aside now
            else:
                return self._verified.setdefault(made.key, made)
        raise RubError(f"store {self.root}: {path.relative_to(self.root)} comes back damaged; is the disk well?")

    def _temporary(self, path: Path) -> Path:
        made = path.parent / f".new-{path.name[:12]}-{machine()}-{os.getpid()}-{uuid4().hex}"
        make_folder(made, self.root)
        return made

    def _kinds(self) -> Iterator[Path]:
        for kind in _listed(self.root, self.root):
            if kind.is_dir() and not kind.is_symlink() and kind.name not in _NO_KINDS and _NAME.fullmatch(kind.name):
                yield kind

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
            make_folder(aside, self.root)
            target = aside / f"{path.name[:12]}-{uuid4().hex}"
            make_folder(target, self.root)
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
    """Manifest, or None where it is missing, no manifest, or changed since it was sealed.

    Raises:
        PermissionError: this user may not read it.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        whole = isinstance(manifest, dict) and manifest.get("seal") == seal(manifest)
    except PermissionError:
        raise
    except (OSError, ValueError, RecursionError):
        return None
    return manifest if whole else None


def make_folder(path: Path, like: Path) -> None:
    """Make a folder and those above it, unless they are there, with the mode and group of another, such as a store's.

    So a group can share a store, as with git's ``core.sharedRepository``.
    """
    if not path.is_dir():
        make_folder(path.parent, like)
        path.mkdir(exist_ok=True)
        share(path, like)


def share(path: Path, like: Path) -> None:
    """Give a file or folder the mode (files: but for execution) and group of a folder, as far as the system lets."""
    wanted, own = like.stat(), path.stat()
    with suppress(OSError):  # a group that we are not in
        if own.st_gid != wanted.st_gid:
            os.chown(path, -1, wanted.st_gid)
    with suppress(OSError):  # a file system that has no modes
        path.chmod(stat.S_IMODE(wanted.st_mode) & (0o7777 if stat.S_ISDIR(own.st_mode) else 0o666))


@cache
def machine() -> str:
    """This machine as 12 hex digits: another after a restart, and in each container, whose processes are not seen."""
    known = [socket.gethostname()]
    with suppress(OSError):  # only Linux has these
        known.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        known.append(str(Path("/proc/self/ns/pid").readlink()))
    return sha256("\n".join(known).encode()).hexdigest()[:12]


def abandoned(path: Path) -> bool:
    """Whether a process of this machine was writing this folder of an artifact and was killed."""
    made = _UNFINISHED.fullmatch(path.name)
    if made is None or made["machine"] != machine():
        return False
    try:
        os.kill(int(made["process"]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # it lives, and is another user's
        pass
    return False


@dataclass
class _Awaited:
    # A lease that another process holds: its file as it was last seen, and since when.
    lease: SoftFileLease
    seen: tuple[int, int] | None = None
    since: float = 0.0

    def unchanged(self) -> float:
        try:
            found = os.lstat(self.lease.lock_file)
            now = (found.st_ino, found.st_mtime_ns)
        except OSError:
            now = None
        if now is None or now != self.seen:
            self.seen, self.since = now, time.monotonic()
        return time.monotonic() - self.since


def _listed(root: Path, folder: Path) -> list[Path]:
    with _read_errors(root):
        return sorted(folder.iterdir())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _read_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        at = Path(os.fsdecode(error.filename or root))
        shown = at.relative_to(root) if at.is_relative_to(root) else at
        raise RubError(
            f"store {root}: {shown} cannot be read ({error.strerror}); ask its owner, or give another with --store"
        ) from None


@contextmanager
def _disk_errors(root: Path, told: tuple[int, ...] = _DENIED) -> Iterator[None]:
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
        if isinstance(error, OSError) and error.errno in told:
            if error.filename is not None and not Path(error.filename).is_relative_to(root):
                raise  # what cannot be touched is an input of the stage
            raise RubError(f"store {root}: cannot be written ({error.strerror}); give another with --store") from error
        raise


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return re.search(r"\d+ requested and \d+ written|No space left on device", str(error)) is not None
