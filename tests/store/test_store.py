"""The store: whole artifacts or none, every kind of damage noticed, one computation for all who ask."""

import errno
import inspect
import json
import subprocess
import sys
import threading
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from rub.errors import RubError
from rub.store import artifacts
from rub.store.artifacts import MANIFEST, Store, canonical, file_sha256

KEY = sha256(b"a stage").hexdigest()
OTHER = sha256(b"another stage").hexdigest()
FACTS = {"spec": {"lr": 0.1, "classes": [0, 3]}, "seconds": 1.25, "inputs": {"data": OTHER}}


def fill(out):
    (out / "weights.bin").write_bytes(bytes(range(256)) * 40)
    (out / "rows.json").write_text('[{"value": 0.5}]', encoding="utf-8")
    (out / "empty").write_bytes(b"")


def whole(root, key=KEY):
    return Store(root).write("unlearn", key, FACTS, fill)


def everything_in(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_an_artifact_comes_back_as_it_was_written(tmp_path):
    written = whole(tmp_path)
    found = Store(tmp_path).find("unlearn", KEY)
    assert found == written
    assert found.key == KEY
    assert found.json("rows.json") == [{"value": 0.5}]
    assert found.file("weights.bin").read_bytes() == bytes(range(256)) * 40
    assert found.manifest["spec"] == FACTS["spec"]
    for name in ("weights.bin", "rows.json", "empty"):
        assert found.sha256(name) == sha256((found.path / name).read_bytes()).hexdigest()
    with pytest.raises(KeyError):
        found.file("nothing")
    assert everything_in(tmp_path) == sorted(
        [
            "unlearn",
            f"unlearn/{KEY}",
            *(f"unlearn/{KEY}/{name}" for name in (MANIFEST, "empty", "rows.json", "weights.bin")),
        ]
    )


def test_what_is_not_there_is_not_found(tmp_path):
    store = Store(tmp_path)
    assert store.find("unlearn", KEY) is None
    assert not store.has("unlearn", KEY)
    whole(tmp_path)
    assert store.has("unlearn", KEY)
    assert store.find("train", KEY) is None
    assert store.find("unlearn", OTHER) is None


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(bytes(content))


def link(path):
    path.replace(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


DAMAGE = {
    "flip": flip,
    "truncate": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "delete": lambda path: path.unlink(),
    "append": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "directory": lambda path: (path.unlink(), path.mkdir()),
    "link": link,
}
NO_DAMAGE = {("empty", "flip"), ("empty", "truncate"), ("empty", "empty"), (MANIFEST, "link")}
CASES = [
    (name, damage)
    for name in ("weights.bin", "rows.json", "empty", MANIFEST)
    for damage in DAMAGE
    if (name, damage) not in NO_DAMAGE
]


@pytest.mark.parametrize(("name", "damage"), CASES)
def test_damage_is_noticed_set_aside_and_made_good(tmp_path, name, damage):
    root = tmp_path / "store"
    path = whole(root).path
    DAMAGE[damage](path / name)
    store = Store(root)
    assert store.find("unlearn", KEY) is None
    assert not path.exists()
    [aside] = (root / "damaged").glob(f"*/{KEY}")
    assert aside.is_dir()
    store.write("unlearn", KEY, FACTS, fill)
    assert Store(root).find("unlearn", KEY) is not None


def test_no_flipped_bit_of_a_manifest_changes_what_is_read(tmp_path):
    path = whole(tmp_path).path / MANIFEST
    content = path.read_bytes()
    said = {name: value for name, value in json.loads(content).items() if name != "seal"}
    for place in range(0, len(content), 2):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place // 2 % 8
        path.write_bytes(bytes(damaged))
        read = artifacts.read_manifest(path.parent)
        if read is not None:  # the damage hit the name of the seal, and nothing else
            assert {name: value for name, value in read.items() if name in said} == said


def test_a_file_too_many_is_damage(tmp_path):
    (whole(tmp_path).path / "stranger").write_text("x", encoding="utf-8")
    assert Store(tmp_path).find("unlearn", KEY) is None


def test_an_artifact_under_a_wrong_key_is_damage(tmp_path):
    path = whole(tmp_path).path
    path.rename(path.parent / OTHER)
    assert Store(tmp_path).find("unlearn", OTHER) is None


def test_checksums_are_verified_once_per_process(tmp_path, monkeypatch):
    whole(tmp_path)
    store, asked = Store(tmp_path), []
    real = artifacts.file_sha256
    monkeypatch.setattr(artifacts, "file_sha256", lambda path: (asked.append(path), real(path))[1])
    assert store.find("unlearn", KEY) is store.find("unlearn", KEY)
    assert len(asked) == 3


@pytest.mark.parametrize("kind", ["", ".", "..", "a/b", "../../etc", ".hidden", "a b", "a\n", "ä"])
def test_kinds_that_could_leave_the_store_are_refused(tmp_path, kind):
    for ask in (Store(tmp_path).place, Store(tmp_path).find, Store(tmp_path).has):
        with pytest.raises(RubError, match="is not a stage kind and a key"):
            ask(kind, KEY)


@pytest.mark.parametrize(
    "key", ["", "..", KEY[:-1], KEY + "0", KEY.upper(), "../" + KEY[3:], KEY[:-1] + "\n", "g" * 64]
)
def test_keys_that_are_none_are_refused(tmp_path, key):
    with pytest.raises(RubError, match="is not a stage kind and a key"):
        Store(tmp_path).write("unlearn", key, FACTS, fill)
    assert everything_in(tmp_path) == []


FULL = {
    "errno": lambda: OSError(errno.ENOSPC, "No space left on device"),
    "quota": lambda: OSError(errno.EDQUOT, "Disk quota exceeded"),
    "numpy": lambda: OSError("1000000 requested and 32752 written"),
    "safetensors": lambda: SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
}


@pytest.mark.parametrize("name", FULL)
def test_a_full_disk_leaves_nothing_and_says_so(tmp_path, name):
    before = whole(tmp_path)

    def half(out):
        (out / "half.bin").write_bytes(b"x" * 1000)
        raise FULL[name]()

    with pytest.raises(RubError, match=r"the disk is full \(\d+ MiB free\).*--store.*finished stages are kept"):
        Store(tmp_path).write("unlearn", OTHER, FACTS, half)
    assert [path.name for path in (tmp_path / "unlearn").iterdir()] == [KEY]
    assert Store(tmp_path).find("unlearn", KEY) == before


@pytest.mark.parametrize("name", ["array.npy", "arrays.npz", "text.txt"])
def test_a_device_that_is_full_gives_the_same_error(tmp_path, name):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")

    def write(out):
        (out / name).symlink_to("/dev/full")
        if name == "text.txt":
            (out / name).write_text("x" * 10**5, encoding="utf-8")
        else:
            (np.save if name.endswith("npy") else np.savez)(out / name, np.zeros(10**5))

    with pytest.raises(RubError, match="the disk is full"):
        Store(tmp_path).write("unlearn", KEY, FACTS, write)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_whatever_stops_a_stage_leaves_nothing(tmp_path, error):
    def half(out):
        (out / "half.bin").write_bytes(b"x")
        raise error("stop")

    with pytest.raises(error):
        Store(tmp_path).write("unlearn", KEY, FACTS, half)
    assert everything_in(tmp_path) == ["unlearn"]


def test_a_store_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(RubError, match="cannot be created"):
        Store(tmp_path / "file")
    with pytest.raises(RubError, match="cannot be created"):
        Store(tmp_path / "file" / "below")


def test_a_store_that_cannot_be_written_is_told_from_an_input_that_cannot_be_read(tmp_path):
    def refuse(path):
        def write(out):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        return write

    store = Store(tmp_path / "store")
    with pytest.raises(RubError, match="cannot be written"):
        store.write("unlearn", KEY, FACTS, refuse(tmp_path / "store" / "unlearn"))
    with pytest.raises(PermissionError):
        store.write("unlearn", KEY, FACTS, refuse(tmp_path / "data" / "batch_1"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_canonical_json_ignores_the_order_of_fields_and_nothing_else(value):
    backwards = dict(reversed(list(value.items())))
    assert canonical(value) == canonical(backwards)
    assert json.loads(canonical(value)) == value
    assert canonical({**value, "one more": 1}) != canonical({**value, "one more": 2})


def test_infinity_is_a_value_of_its_own():
    forms = {canonical({"norm": value}) for value in (float("inf"), float("-inf"), 1e308, None)}
    assert len(forms) == 4
    assert json.loads(canonical(float("inf"))) == float("inf")


def test_file_hashes_are_sha256(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(np.random.default_rng(0).bytes(3 * 2**20 + 17))
    assert file_sha256(path) == sha256(path.read_bytes()).hexdigest()


def test_a_lock_is_for_one_at_a_time(tmp_path):
    first, second = Store(tmp_path), Store(tmp_path)
    with first.try_lock(KEY) as ours:
        assert ours
        with second.try_lock(KEY) as theirs, second.try_lock(OTHER) as free:
            assert not theirs
            assert free
    with second.try_lock(KEY) as ours:
        assert ours


def test_a_lock_is_given_back_after_an_error(tmp_path):
    with pytest.raises(ValueError, match="stop"), Store(tmp_path).try_lock(KEY):
        raise ValueError("stop")
    with Store(tmp_path).try_lock(KEY) as ours:
        assert ours


def share(root, log, seconds=0.05):
    """Make twelve artifacts, each under its lock, and log each one made."""
    store = Store(root)
    pending = [sha256(str(index).encode()).hexdigest() for index in range(12)]

    def slow(out):
        time.sleep(seconds)
        fill(out)

    while pending:
        for key in list(pending):
            with store.try_lock(key) as ours:
                if ours and store.find("unlearn", key) is None:
                    store.write("unlearn", key, FACTS, slow)
                    with log.open("a", encoding="utf-8") as stream:
                        stream.write(f"{key}\n")
                if store.find("unlearn", key) is not None:
                    pending.remove(key)
        time.sleep(0.005)


def made(log):
    return sorted(log.read_text(encoding="utf-8").split())


def test_threads_on_one_store_make_each_artifact_once(tmp_path):
    log = tmp_path / "log"
    crew = [threading.Thread(target=share, args=(tmp_path / "store", log, 0.01)) for _ in range(4)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join(60)
    assert made(log) == sorted(sha256(str(index).encode()).hexdigest() for index in range(12))


@pytest.mark.slow
def test_processes_on_one_store_make_each_artifact_once(tmp_path):
    log = tmp_path / "log"
    code = (
        "import sys, time, types; from pathlib import Path; from hashlib import sha256\n"
        "from rub.store.artifacts import Store\n"
        "root, log = map(Path, sys.argv[1:])\n"
        f"FACTS = {FACTS!r}\n"
    )
    code += f"{inspect.getsource(fill)}\n{inspect.getsource(share)}\nshare(root, log)\n"
    crew = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "store"), str(log)]) for _ in range(3)]
    assert [process.wait(60) for process in crew] == [0, 0, 0]
    assert made(log) == sorted(sha256(str(index).encode()).hexdigest() for index in range(12))


def test_a_killed_process_leaves_no_lock_and_no_artifact(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from rub.store.artifacts import Store\n"
        "store = Store(Path(sys.argv[1]))\n"
        "def fill(out):\n"
        "    (out / 'half').write_text('x'); print('begun', flush=True); time.sleep(60)\n"
        f"with store.try_lock('{KEY}'):\n"
        f"    store.write('unlearn', '{KEY}', {{}}, fill)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"begun\n"
        store = Store(tmp_path)
        with store.try_lock(KEY) as ours:
            assert not ours
        process.kill()
    assert store.find("unlearn", KEY) is None
    with store.try_lock(KEY) as ours:
        assert ours
        store.write("unlearn", KEY, FACTS, fill)
    assert Store(tmp_path).find("unlearn", KEY) is not None


def test_weights_survive_the_store(tmp_path):
    from safetensors.torch import load_file, save_file

    tensors = {"a": torch.randn(7, 3, generator=torch.Generator().manual_seed(0)), "b": torch.arange(4)}
    artifact = Store(tmp_path).write("train", KEY, {}, lambda out: save_file(tensors, out / "w.safetensors"))
    loaded = load_file(Store(tmp_path).find("train", KEY).file("w.safetensors"))
    assert artifact.manifest["files"].keys() == {"w.safetensors"}
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_a_manifest_without_its_seal_is_damage(tmp_path):
    path = whole(tmp_path).path / MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8"))
    del manifest["seal"]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    assert Store(tmp_path).find("unlearn", KEY) is None
