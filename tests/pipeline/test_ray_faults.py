"""Ray's workers and nodes die, hang and are not there: the run goes on, or ends in one line."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from rub.api import make_runtime
from rub.config.suite import Resources
from rub.errors import RubError
from rub.pipeline.execution import Outcome
from rub.pipeline.graph import Stage
from rub.pipeline.progress import Display
from rub.pipeline.ray import cluster, run_ray
from rub.store.artifacts import Store

pytestmark = pytest.mark.slow

pytest.importorskip("ray", reason="Ray is not installed; pip install 'rub-bench[ray]'")

STAGES = """
import json, os, time
from pathlib import Path


class Task:
    functions = {"slow": "rub_ray_stages:slow"}


def slow(stage, inputs, out, runtime):
    marks = Path(stage.spec["marks"])
    (marks / f"{stage.spec['number']}-{os.getpid()}-{time.monotonic_ns()}").touch()
    while stage.spec["gate"] and not Path(stage.spec["gate"]).exists():
        time.sleep(0.02)
    time.sleep(stage.spec["seconds"])
    (out / "value.json").write_text(json.dumps(stage.spec["number"]))
"""


@pytest.fixture
def importable(tmp_path, monkeypatch):
    """Put the stage functions of these tests where workers, which inherit the path, find them."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "rub_ray_stages.py").write_text(STAGES)
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "lib"), os.environ.get("PYTHONPATH", "")]))
    (tmp_path / "marks").mkdir()
    yield tmp_path
    sys.modules.pop("rub_ray_stages", None)


def quiet():
    from rich.console import Console

    return Display(Console(), quiet=True)


def slow(number, folder, seconds=1.0, gate=""):
    """Return a stage that waits, with a gate until it is opened, then for so many seconds."""
    spec = {"number": number, "marks": str(folder), "seconds": seconds, "gate": str(gate)}
    return Stage("t", "slow", 1, f"slow {number}", spec)


def alive(process):
    """Return whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def tasks():
    import rub_ray_stages

    return {"t": rub_ray_stages.Task()}


def test_a_dead_worker_is_replaced_and_its_stage_repeated(importable, record_property):
    stages = [slow(number, importable / "marks") for number in range(4)]

    def kill():
        deadline = time.monotonic() + 60
        while not (begun := sorted((importable / "marks").iterdir())) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(int(begun[0].name.split("-")[1]), signal.SIGKILL)

    with cluster(None, 2):
        killer = threading.Thread(target=kill)
        killer.start()
        outcomes = run_ray(stages, tasks(), Store(importable / "store"), make_runtime(device="cpu"), quiet(), {})
        killer.join()
    assert [outcome.reason for outcome in outcomes.values() if outcome.status != "done"] == []
    repeated = len(list((importable / "marks").iterdir())) - len(stages)
    record_property("stages repeated after a killed worker", repeated)
    assert repeated == 1


def test_a_dead_node_loses_only_what_it_was_running(importable, record_property):
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        second = nodes.add_node(num_cpus=1)
        nodes.wait_for_nodes()

        def kill():
            deadline = time.monotonic() + 60
            while len(list((importable / "marks").iterdir())) < 2 and time.monotonic() < deadline:
                time.sleep(0.05)
            workers = [int(mark.name.split("-")[1]) for mark in (importable / "marks").iterdir()]
            nodes.remove_node(second, allow_graceful=False)
            while all(map(alive, workers)) and time.monotonic() < deadline:  # a worker outlives its node for a moment
                time.sleep(0.05)
            (importable / "gate").touch()

        stages = [slow(number, importable / "marks", 0.2, importable / "gate") for number in range(4)]
        with cluster(nodes.address, 1):
            killer = threading.Thread(target=kill)
            killer.start()
            store = Store(importable / "store")
            outcomes = run_ray(stages, tasks(), store, make_runtime(device="cpu"), quiet(), {})
            killer.join()
        assert [outcome.reason for outcome in outcomes.values() if outcome.status != "done"] == []
        repeated = len(list((importable / "marks").iterdir())) - len(stages)
        record_property("stages repeated after a killed node", repeated)
        assert 1 <= repeated <= 2
    finally:
        nodes.shutdown()


def test_time_limits_end_a_stage_in_a_worker(importable):
    late, soon = slow(0, importable / "marks", 60), slow(1, importable / "marks", 0.1)
    limits = {stage.key: Resources(minutes=0.03) for stage in (late, soon)}
    with cluster(None, 2):
        store = Store(importable / "store")
        outcomes = run_ray([late, soon], tasks(), store, make_runtime(device="cpu"), quiet(), limits)
    assert outcomes[late.key] == Outcome("failed", reason="slow 0: took longer than its limit of 0.03 minutes")
    assert outcomes[soon.key].status == "done"


def test_an_address_where_no_ray_is_ends_in_one_line():
    with pytest.raises(RubError, match="no Ray cluster answers"), cluster("127.0.0.1:1", 1):
        pass
