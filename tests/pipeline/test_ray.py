"""The Ray engine gives the inline engine's results, also where a node does not see the store."""

import json
from pathlib import Path

import pytest

from rub import load_suite, run
from rub.api import make_runtime
from rub.pipeline.progress import Display
from rub.pipeline.ray import cluster, pack, run_ray, unpack
from rub.store.artifacts import Store
from rub.store.records import identity

pytestmark = pytest.mark.slow

ray = pytest.importorskip("ray", reason="Ray is not installed; pip install 'rub-bench[ray]'")


@pytest.fixture(scope="module")
def local():
    with cluster(None, 2):
        yield


def quiet():
    from rich.console import Console

    return Display(Console(), quiet=True)


def test_records_equal_those_of_the_inline_engine(tiny, tmp_path, local):
    result = run(tiny.suite, store=tmp_path / "store", runtime=make_runtime(device="cpu"), engine="ray")
    assert [identity(record) for record in result.records] == [identity(record) for record in tiny.result.records]
    assert result.samples == tiny.result.samples
    assert result.counts["done"] == tiny.result.counts["done"]
    for artifact in (tmp_path / "store").glob("*/*/manifest.json"):
        twin = tiny.store / artifact.relative_to(tmp_path / "store")
        files = json.loads(artifact.read_text())["files"]
        if artifact.parent.parent.name not in ("measure", "measure-attack", "gap"):  # their rows hold seconds
            assert files == json.loads(twin.read_text())["files"]


def test_where_the_store_is_not_seen_artifacts_travel(tiny, tmp_path, local):
    from rub.api import plan
    from rub.registry import TASKS

    [(_, graph)] = plan(tiny.suite, make_runtime(device="cpu"))
    store = Store(tmp_path / "store")
    tasks = {"classification": TASKS.get("classification", "classification").load()}
    outcomes = run_ray(graph.stages, tasks, store, make_runtime(device="cpu"), quiet(), {}, shared=False)
    assert {outcome.status for outcome in outcomes.values()} == {"done"}
    for key, outcome in outcomes.items():
        assert outcome.artifact is not None
        other = Store(tiny.store).find(outcome.artifact.manifest["kind"], key)
        assert set(outcome.artifact.manifest["files"]) == set(other.manifest["files"])


def test_parcels_keep_an_artifact_as_it_is(tiny, tmp_path):
    path = next(tiny.store.glob("train/*"))
    artifact = Store(tiny.store).find("train", path.name)
    copy = unpack(pack(artifact), Store(tmp_path / "other"))
    assert dict(copy.manifest) == dict(artifact.manifest)


def test_failures_limits_and_wrong_requests_are_told_as_inline(tiny, write_suite, tmp_path, local):
    path = write_suite(tmp_path, methods={"ft": {"lr": 1e30}})
    suite = load_suite(str(path))
    result = run(suite, store=tmp_path / "store", runtime=make_runtime(device="cpu"), engine="ray")
    inline = run(suite, store=tmp_path / "inline", runtime=make_runtime(device="cpu"))
    assert result.failures == inline.failures != ()
    assert result.counts == inline.counts


def test_plug_ins_travel_with_the_work(tiny, tmp_path, local):
    from rub.registry import load_plugin

    plugin = Path(tmp_path / "mine.py")
    plugin.write_text(
        "import rub\n\n\n@rub.method('mine', task='classification')\n"
        "def mine(model, forget, retain, context, *, scale: float = 0.5):\n"
        "    for parameter in model.parameters():\n        parameter.data.mul_(scale)\n    return model\n"
    )
    suite = load_suite(str(tiny.path), methods=["mine"], added=load_plugin(plugin))
    result = run(suite, store=tmp_path / "s", runtime=make_runtime(device="cpu"), engine="ray", plugins=[plugin])
    assert not result.failures
    assert any(record.method == "mine" and record.value is not None for record in result.records)
