"""Stages that raise, give NaN, hang or eat all memory: their cells fail with the reason, everything else completes."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from types import MappingProxyType, ModuleType

import pytest

from rub import load_suite, run
from rub.api import make_runtime
from rub.pipeline.execution import SMALLEST_BATCH, TimedOut, attempt, out_of_memory, time_limit
from rub.pipeline.graph import Stage
from rub.registry import load_plugin
from rub.store.artifacts import Store

PLUGIN = """
import time

import rub
import torch


@rub.method("raises", task="classification")
def raises(model, forget, retain, context):
    raise KeyError("a mistake of its author")


@rub.method("nan", task="classification")
def nan(model, forget, retain, context):
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    return model


@rub.method("hangs", task="classification")
def hangs(model, forget, retain, context):
    try:
        while True:
            time.sleep(0.01)
    except Exception:
        return model


@rub.method("hog", task="classification")
def hog(model, forget, retain, context):
    held = []
    while True:
        held.append(torch.ones(25_000_000))
"""


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "bad_methods.py"
    path.write_text(PLUGIN)
    return path


@pytest.mark.slow
def test_bad_methods_fail_alone_and_say_why(tiny, plugin, tmp_path):
    names = ["ft", "raises", "nan", "hangs"]
    suite = load_suite(str(tiny.path), methods=names, added=load_plugin(plugin), overrides=["resources.minutes=0.1"])
    result = run(suite, store=tmp_path / "store", runtime=make_runtime(device="cpu"))
    reasons = {name: next(line for line in result.failures if f" {name}," in line) for name in names[1:]}
    assert "KeyError: 'a mistake of its author' (bad_methods.py:10)" in reasons["raises"]
    assert "values that are not finite" in reasons["nan"]
    assert "took longer than its limit of 0.1 minutes" in reasons["hangs"]
    assert len(result.failures) == 3
    bad = {record.method for record in result.records if record.status == "failed"}
    assert bad == set(names[1:])
    good = [record for record in result.records if record.method not in bad]
    assert {record.key for record in good} == {record.key for record in tiny.result.records}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA is Linux's")
def test_a_method_that_eats_all_memory_fails_alone(tiny, plugin, tmp_path):
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "rub.cli.main", "run", tiny.path, "--methods", "ft,hog", "--plugin", plugin, "--store",
        tmp_path / "store", "--out", out, "--max-memory", "3", "--device", "cpu",
    ]  # fmt: skip
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 3, done.stdout + done.stderr
    assert "unlearn hog, seed 0: out of memory, with batches of 8 too" in done.stdout
    assert "1 failed" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


class Picky:
    functions = MappingProxyType({"picky": "rub_picky:picky"})


def picky(stage, inputs, out, runtime):
    """Need less memory with smaller batches."""
    if runtime.batch_size > stage.spec["fits"]:
        raise MemoryError
    (out / "batch.txt").write_text(str(runtime.batch_size))


@pytest.fixture
def picky_stage(monkeypatch):
    module = ModuleType("rub_picky")
    module.picky = picky
    monkeypatch.setitem(sys.modules, "rub_picky", module)
    return lambda fits: Stage("t", "picky", 1, "picky", {"fits": fits})


@pytest.mark.slow
def test_where_memory_runs_out_batches_halve(picky_stage, tmp_path):
    runtime = replace(make_runtime(device="cpu"), batch_size=256)
    outcome = attempt(picky_stage(40), Picky(), {}, Store(tmp_path), runtime)
    assert outcome.status == "done"
    assert outcome.artifact.file("batch.txt").read_text() == "32"
    outcome = attempt(picky_stage(1), Picky(), {}, Store(tmp_path), runtime)
    assert outcome.reason == f"picky: out of memory, with batches of {SMALLEST_BATCH} too"
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


@pytest.mark.slow
def test_models_of_earlier_stages_go_before_batches_halve(picky_stage, tmp_path, monkeypatch):
    runtime = replace(make_runtime(device="cpu"), batch_size=256)
    runtime.cache.get("a model", object)
    monkeypatch.setattr(sys.modules["rub_picky"], "picky", _needs_an_empty_cache)
    outcome = attempt(picky_stage(256), Picky(), {}, Store(tmp_path), runtime)
    assert outcome.artifact.file("batch.txt").read_text() == "256"


def _needs_an_empty_cache(stage, inputs, out, runtime):
    if len(runtime.cache):
        raise MemoryError
    picky(stage, inputs, out, runtime)


def test_what_counts_as_out_of_memory():
    import torch

    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60)
    assert out_of_memory(error.value)
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not out_of_memory(RuntimeError("shapes differ"))


@pytest.mark.slow
def test_a_time_limit_ends_and_leaves_nothing_behind():
    with pytest.raises(TimedOut), time_limit(0.001):
        time.sleep(5)
    with time_limit(0.01):
        pass
    time.sleep(0.7)
