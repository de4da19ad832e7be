"""Looking after a store: what it holds, every kind of damage, what no suite needs; other people's stores."""

import shutil

import pytest

from rub.api import make_runtime
from rub.pipeline.graph import in_order
from rub.store.artifacts import Store
from rub.store.maintenance import damaged, usage


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "flipped byte": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "deleted": lambda path: path.unlink(),
    "link": lambda path: (path.rename(path.with_name("x")), path.symlink_to(path.with_name("x"))),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_of_every_file_is_found_and_named(tiny, copied_store, damage):
    """Every file of every artifact of the run."""
    files = [path for path in sorted(copied_store.rglob("*")) if path.is_file() and path.parent.name != "locks"]
    store = Store(copied_store)
    for path in files:
        aside = shutil.copytree(path.parent, copied_store.parent / "aside")
        DAMAGES[damage](path)
        [(kind, key, why)] = list(damaged(store))
        assert (kind, key) == (path.parent.parent.name, path.parent.name)
        assert path.name == "manifest.json" or path.name in why or "not listed" in why
        shutil.rmtree(path.parent)
        shutil.move(aside, path.parent)
    assert list(damaged(store)) == []
    assert len(files) > 60


@pytest.mark.slow
def test_what_was_damaged_is_computed_again(tiny, copied_store, rub):
    from rub import api, run

    [(_, graph)] = api.plan(tiny.suite, make_runtime(device="cpu"))
    needed = {stage.kind: stage.key for stage in in_order(graph.stages)}  # other tests leave more in this store
    bad = [copied_store / kind / needed[kind] for kind in ("unlearn", "attack", "measure")]
    for place in bad:
        flip(next(path for path in place.iterdir() if path.name != "manifest.json"))
    said = rub("store", "check", "--store", copied_store)
    assert said.code == 1
    assert all(place.name[:12] in said.out for place in bad)
    assert said.out.endswith("3 damaged\n")
    result = run(tiny.suite, store=copied_store, runtime=make_runtime(device="cpu"))
    assert result.counts["done"] == 3
    assert rub("store", "check", "--store", copied_store).code == 0


def test_ls_and_gc(tiny, copied_store, write_suite, rub, tmp_path):
    from rub import api, load_suite

    before = {one.kind: one.count for one in usage(Store(copied_store))}
    listed = rub("store", "ls", "--store", copied_store)
    assert listed.code == 0
    assert "measure-attack" in listed.out
    fewer = write_suite(tmp_path, methods={})
    [(_, graph)] = api.plan(load_suite(str(fewer)), make_runtime(device="cpu"))
    said = rub("store", "gc", fewer, "--store", copied_store)
    assert "would be deleted" in said.out
    assert {one.kind: one.count for one in usage(Store(copied_store))} == before
    rub("store", "gc", fewer, "--store", copied_store, "--yes")
    kept = {key for _, key, _ in Store(copied_store).places()}
    assert kept == {stage.key for stage in in_order(graph.stages)}
    assert rub("store", "check", "--store", copied_store).code == 0


def test_links_and_strange_names_in_a_store_are_passed_over(copied_store, tmp_path, rub):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("x")
    (copied_store / "unlearn" / ("f" * 64)).symlink_to(elsewhere)
    (copied_store / "linked").symlink_to(elsewhere)
    (copied_store / "unlearn" / "..hidden").mkdir()
    (copied_store / "un learn").mkdir()
    assert rub("store", "check", "--store", copied_store).code == 0
    rub("store", "gc", "quick", "--store", copied_store, "--yes")
    assert (elsewhere / "precious").read_text() == "x"


@pytest.mark.slow
def test_states_of_a_running_stage_are_not_freed(copied_store, rub):
    store, key = Store(copied_store), "0" * 64
    store.partial(key).mkdir(parents=True)
    (store.partial(key) / "train-1.state").write_bytes(b"under way")
    with store.try_lock(key) as ours:
        assert ours
        rub("store", "gc", "quick", "--store", copied_store, "--yes")
        assert (store.partial(key) / "train-1.state").exists()
    rub("store", "gc", "quick", "--store", copied_store, "--yes")
    assert not store.partial(key).exists()


@pytest.mark.parametrize("name", ["train", "partial", "locks"])
def test_a_run_does_not_follow_links_out_of_a_store(name, tiny, tmp_path, refused):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / name).symlink_to(tmp_path / "elsewhere")
    command = ["run", tiny.path, "--store", tmp_path / "store", "--device", "cpu", "--checkpoint", "0"]
    refused(*command, says=f"{name} is a link")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_store_that_is_not_there(refused, tmp_path):
    for verb in (("ls",), ("check",), ("gc", "quick")):
        refused("store", *verb, "--store", tmp_path / "nowhere", says="no such folder")
    assert not (tmp_path / "nowhere").exists()
