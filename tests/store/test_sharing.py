"""One store for many: users of a group, nodes without a lock manager, processes that die, users who may only read."""

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rub.api import make_runtime, run
from rub.errors import RubError
from rub.store import artifacts
from rub.store.artifacts import Store, machine
from rub.store.maintenance import left_behind

KEY, OTHER = "a" * 64, "b" * 64
ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
needs_users = pytest.mark.skipif(not ROOT or shutil.which("setpriv") is None, reason="only root can be other users")
USERS = (12345, 12346)


def fill(out):
    (out / "rows.json").write_text("[1]", encoding="utf-8")


def modes(root):
    return {str(path.relative_to(root)): stat.S_IMODE(path.stat().st_mode) for path in root.rglob("*")}


@pytest.mark.parametrize("mode", [0o2770, 0o755, 0o700])
def test_everything_in_a_store_has_the_mode_of_its_folder(tmp_path, mode):
    root = tmp_path / "store"
    root.mkdir()
    root.chmod(mode)
    store, before = Store(root), os.umask(0o077)
    try:
        store.write("unlearn", KEY, {}, fill)
        with store.try_lock(KEY) as ours:
            assert ours
            assert modes(root)[f"locks/{KEY}.lease"] == mode & 0o644
    finally:
        os.umask(before)
    found = modes(root)
    assert {found[name] for name in ("unlearn", f"unlearn/{KEY}", "locks")} == {mode}
    assert {found[f"unlearn/{KEY}/{name}"] for name in ("manifest.json", "rows.json")} == {mode & 0o666}


def test_who_comes_second_takes_what_the_first_made(tmp_path):
    def late(out):
        first.append(Store(tmp_path).write("unlearn", KEY, {"by": "the first"}, fill))
        fill(out)

    first = []
    store = Store(tmp_path)
    made = store.write("unlearn", KEY, {"by": "the second"}, late)
    assert made.manifest == first[0].manifest
    assert store.find("unlearn", KEY).manifest["by"] == "the first"
    assert [path.name for path in (tmp_path / "unlearn").iterdir()] == [KEY]


def test_what_is_damaged_meanwhile_is_replaced(tmp_path):
    def late(out):
        artifact = Store(tmp_path).write("unlearn", KEY, {"by": "the first"}, fill)
        artifact.file("rows.json").write_text("[2]", encoding="utf-8")
        fill(out)

    made = Store(tmp_path).write("unlearn", KEY, {"by": "the second"}, late)
    assert made.manifest["by"] == "the second"
    assert Store(tmp_path).find("unlearn", KEY).json("rows.json") == [1]


def test_only_what_a_dead_process_left_is_deleted(tmp_path):
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    names = {
        "dead": f".new-{KEY[:12]}-{machine()}-{int(gone.stdout)}-{'0' * 32}",
        "alive": f".new-{KEY[:12]}-{machine()}-{os.getpid()}-{'0' * 32}",
        "elsewhere": f".new-{KEY[:12]}-{'0' * 12}-{int(gone.stdout)}-{'0' * 32}",
        "another stage's": f".new-{OTHER[:12]}-{machine()}-{int(gone.stdout)}-{'0' * 32}",
    }
    places = {who: tmp_path / "unlearn" / name for who, name in names.items()}
    for place in places.values():
        place.mkdir(parents=True)
        (place / "half.bin").write_bytes(b"half")
    store = Store(tmp_path)
    assert [place for place, size in left_behind(store) if size == 4] == sorted(
        [places["dead"], places["another stage's"]]
    )
    store.write("unlearn", KEY, {}, fill)
    assert [who for who, place in places.items() if not place.exists()] == ["dead"]
    long_ago = time.time() - 25 * 3600
    for place in (places["elsewhere"] / "half.bin", places["elsewhere"]):
        os.utime(place, (long_ago, long_ago))
    assert {place for place, _ in left_behind(store)} == {places["elsewhere"], places["another stage's"]}


def test_what_a_long_stage_has_not_filled_yet_is_left_alone(tmp_path):
    """Its folder is made when it starts; its lease says that it lives."""
    store = Store(tmp_path)
    place = tmp_path / "unlearn" / f".new-{KEY[:12]}-{'0' * 12}-1-{'0' * 32}"
    place.mkdir(parents=True)
    partial = store.partial(KEY) / "train-1.state.abc.new"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"half")
    long_ago = time.time() - 25 * 3600
    with store.try_lock(KEY):
        for item in (place, partial):
            os.utime(item, (long_ago, long_ago))
        assert list(left_behind(store)) == []
    assert {item for item, _ in left_behind(store)} == {place, partial}
    lease = tmp_path / "locks" / f"{OTHER}.lease"
    lease.touch()
    os.utime(lease, (long_ago, long_ago))
    assert lease in {item for item, _ in left_behind(store)}


def test_gc_deletes_what_was_never_finished(tiny, copied_store, rub):
    left = copied_store / "unlearn" / f".new-{KEY[:12]}-{'0' * 12}-1-{'0' * 32}"
    left.mkdir()
    os.utime(left, (0, 0))
    assert "1 that were never finished" in rub("store", "gc", tiny.path, "--store", copied_store).out
    assert left.exists()
    rub("store", "gc", tiny.path, "--store", copied_store, "--yes")
    assert not left.exists()


HOLD = """
    import sys, time
    from pathlib import Path
    import socket
    socket.gethostname = lambda: "far"
    import filelock._identity as identity
    identity.host_name = lambda: "far"
    import filelock._marker as marker
    marker.host_name = lambda: "far"
    from rub.store import artifacts
    artifacts.LEASE_SECONDS = float(sys.argv[2])
    with artifacts.Store(Path(sys.argv[1])).try_lock(sys.argv[3]) as ours:
        print(ours, flush=True)
        time.sleep(600)
"""


@pytest.mark.parametrize("exchanges", [True, False], ids=["local disk", "network file system"])
def test_the_lease_of_a_node_that_died_is_taken_after_its_time(tmp_path, monkeypatch, exchanges):
    import filelock._soft
    import filelock._util

    monkeypatch.setattr(artifacts, "LEASE_SECONDS", 0.6)
    if not exchanges:  # NFS and SMB cannot
        for module in (filelock._soft, filelock._util):
            monkeypatch.setattr(module, "exchange_names", lambda *names: False)
    store = Store(tmp_path)
    held = [sys.executable, "-c", textwrap.dedent(HOLD), str(tmp_path), "0.6", KEY]
    with subprocess.Popen(held, stdout=subprocess.PIPE) as far:
        assert far.stdout.readline() == b"True\n"
        assert store.holder(KEY) == f"process {far.pid} on far"
        until = time.monotonic() + 1.5
        while time.monotonic() < until:  # it is touched while its process lives
            with store.try_lock(KEY) as ours:
                assert not ours
            time.sleep(0.05)
        far.kill()
    taken = False
    while not taken:
        with store.try_lock(KEY) as taken:
            time.sleep(0.05)
    assert store.holder(KEY) == "another process"


def test_a_node_that_was_asleep_loses_nothing(tmp_path, monkeypatch):
    """Two hold one lease: both compute, one artifact stays."""
    monkeypatch.setattr(Store, "try_lock", lambda self, key: contextlib.nullcontext(True))
    made, both = [], threading.Barrier(2, timeout=30)

    def compute():
        def slow(out):
            both.wait()
            fill(out)

        with Store(tmp_path).try_lock(KEY) as ours:
            assert ours
            made.append(Store(tmp_path).write("unlearn", KEY, {}, slow))

    crew = [threading.Thread(target=compute) for _ in range(2)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join(30)
    assert len(made) == 2
    assert made[0].manifest == made[1].manifest
    assert [path.name for path in (tmp_path / "unlearn").iterdir()] == [KEY]


SHIM = """
    #include <errno.h>
    int flock(int descriptor, int operation) { errno = NUMBER; return RESULT; }
    int lockf(int descriptor, int operation, long size) { errno = NUMBER; return RESULT; }
"""
LOCKS = {"no-op": ("0", "0"), "ENOLCK": ("ENOLCK", "-1")}


def shim(folder, number, result):
    """A library that replaces the system's locks, for LD_PRELOAD."""
    source = folder / "shim.c"
    source.write_text(textwrap.dedent(SHIM).replace("NUMBER", number).replace("RESULT", result), encoding="utf-8")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "shim.so", source], check=True)
    return folder / "shim.so"


def started(*words, user=None, **environment):
    """`rub` in a process of its own, as a user who has neither a home nor an entry in passwd where one is given."""
    as_user = ["setpriv", "--reuid", str(user), "--regid", "4242", "--clear-groups"] if user else []
    known = {name: value for name, value in os.environ.items() if name != "HOME"} if user else dict(os.environ)
    return subprocess.Popen(
        [*as_user, sys.executable, "-c", "from rub.cli.main import main; main()", *map(str, words)],
        env={**known, "OMP_NUM_THREADS": "1", "COLUMNS": "300", "TERM": "dumb", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
    )


def ended(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.fixture
def open_path(tmp_path):
    """A folder that every user reaches, and Python with it."""
    for place in (tmp_path, *tmp_path.parents):
        with contextlib.suppress(PermissionError):
            if place != Path("/tmp") and place != Path("/"):
                place.chmod(place.stat().st_mode | 0o755)
    if ROOT:
        code, _, _ = ended(started("--help", user=USERS[0]))
        if code != 0:
            pytest.skip("other users cannot start this Python")
    return tmp_path


def numbers(out):
    """What a run measured, without when, where and how fast."""
    columns = (
        "method",
        "model",
        "attack",
        "budget",
        "metric",
        "split",
        "unlearn_seed",
        "value",
        "n",
        "key",
        "weights_sha256",
    )
    rows = pq.read_table(out / "records.parquet", columns=list(columns)).to_pylist()
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


@pytest.mark.slow
@needs_users
@pytest.mark.skipif(shutil.which("cc") is None, reason="no compiler for the shim")
@pytest.mark.parametrize("locks", LOCKS)
def test_two_users_and_no_lock_manager(tiny, tiny_out, open_path, locks):
    """Both end, their numbers are equal to those of one user alone, and nothing is lost or damaged."""
    store = open_path / "store"
    store.mkdir()
    os.chown(store, -1, 4242)
    store.chmod(0o2775)
    suite = Path(shutil.copy(tiny.path, open_path / "tiny.yaml"))
    suite.chmod(0o644)
    preload = str(shim(open_path, *LOCKS[locks]))
    outs = [open_path / f"out-{user}" for user in USERS]
    for user, out in zip(USERS, outs, strict=True):
        out.mkdir()
        os.chown(out, user, 4242)
    crew = [
        started("run", suite, "--store", store, "--out", out, user=user, LD_PRELOAD=preload)
        for user, out in zip(USERS, outs, strict=True)
    ]
    for code, out, err in map(ended, crew):
        assert code == 0, out + err
    assert numbers(outs[0]) == numbers(outs[1]) == numbers(tiny_out)
    assert list(Store(store).unfinished()) == []
    owners = {path.stat().st_uid for path in store.rglob("manifest.json")}
    assert owners == set(USERS), "they shared the work"
    assert ended(started("store", "check", "--store", store, user=USERS[0]))[0] == 0


@pytest.mark.slow
@needs_users
def test_a_second_user_reads_and_is_told_where_they_may_not_write(tiny, open_path):
    store = open_path / "store"
    shutil.copytree(tiny.store, store)
    suite = Path(shutil.copy(tiny.path, open_path / "tiny.yaml"))
    suite.chmod(0o644)
    for place in (store, *store.rglob("*")):
        place.chmod(0o755 if place.is_dir() else 0o644)
    code, out, err = ended(started("plan", suite, "--store", store, user=USERS[0]))
    assert (code, err) == (0, ""), "the whole store can be read"
    code, out, err = ended(started("run", suite, "--store", store, "--set", "training.lr=0.2", user=USERS[0]))
    assert code == 2
    assert "cannot be written (Permission denied); give another with --store" in err
    assert len(err.splitlines()) == 1
    place = next(iter((store / "unlearn").iterdir()))
    place.chmod(0o700)
    for words in (("plan", suite), ("run", suite), ("store", "ls"), ("store", "check")):
        code, out, err = ended(started(*words, "--store", store, user=USERS[0]))
        assert code == 2, (words, out, err)
        assert f"unlearn/{place.name}" in err
        assert "Permission denied" in err
        assert len(err.splitlines()) == 1
    assert place.is_dir(), "what cannot be read is not set aside"


@needs_users
def test_a_user_without_a_home_is_told_to_name_a_store(tiny, open_path):
    suite = Path(shutil.copy(tiny.path, open_path / "tiny.yaml"))
    suite.chmod(0o644)
    code, _, err = ended(started("plan", suite, user=USERS[0]))
    assert code == 2
    assert err == "rub: store: this user has no home folder for it; give one with --store or RUB_STORE\n"
    assert ended(started("plan", suite, "--store", open_path / "none", user=USERS[0]))[0] == 2
    (open_path / "theirs").mkdir()
    os.chown(open_path / "theirs", USERS[0], -1)
    assert ended(started("plan", suite, "--store", open_path / "theirs", user=USERS[0]))[0] == 0


def test_a_store_that_cannot_be_reached_is_one_line(tmp_path, monkeypatch):
    def refused(*args, **kwargs):
        raise OSError(5, "Input/output error", str(tmp_path / "locks"))

    monkeypatch.setattr(artifacts.SoftFileLease, "acquire", refused)
    with pytest.raises(RubError, match=r"cannot be written \(Input/output error\)"), Store(tmp_path).try_lock(KEY):
        pass


@pytest.mark.slow
def test_a_run_goes_on_where_a_stopped_process_holds_a_stage(tiny, copied_store, monkeypatch):
    """A process that is stopped touches its lease no longer: after a while others do its work."""
    monkeypatch.setattr(artifacts, "LEASE_SECONDS", 0.6)
    kind, key, place = next(item for item in Store(copied_store).places() if item[0] == "unlearn")
    shutil.rmtree(place)
    held = [sys.executable, "-c", textwrap.dedent(HOLD), str(copied_store), "0.6", key]
    with subprocess.Popen(held, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"True\n"
        other.send_signal(signal.SIGSTOP)
        result = run(tiny.suite, store=copied_store, runtime=make_runtime(device="cpu"))
        other.send_signal(signal.SIGKILL)
    assert result.counts["done"] == 1
    assert (copied_store / kind / key / "manifest.json").is_file()
