"""What no change of the code may change by accident: the identity of every stage, and what searches write.

``stages.json`` has, for each experiment of each suite and each kind of stage, how many there are and one SHA-256 over
key, label, cost and cells of all of them. ``artifacts.json`` has the SHA-256 of what every attack of `quick` writes, on
one processor. Where a change is meant, ``RUB_GOLDEN=DIR pytest tests/golden`` writes new files there, with a list of
all stages to compare.
"""

import json
import os
from collections import defaultdict
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from rich.console import Console

from rub import api, load_suite
from rub.config.suite import suite_names
from rub.judges.inception import INCEPTION_FILE
from rub.pipeline.graph import in_order
from rub.pipeline.inline import run_inline
from rub.pipeline.progress import Display
from rub.pipeline.runtime import device_name, library_versions
from rub.registry import TASKS
from rub.store.artifacts import Store

HERE = Path(__file__).parent
WANTED = os.environ.get("RUB_GOLDEN")
# quick, less of it: every attack and budget, on models that were trained for a moment
QUICK = {
    "classification": (["ft"], ["training.epochs=1", "evaluation.attack_samples=24", "evaluation.control_samples=8"]),
    "inpainting": (["i2i"], ["training.epochs=4", "evaluation.samples=24", "evaluation.steered_samples=8"]),
    "text-to-image": (["esd-x"], ["training.steps=60", "evaluation.prompts=4"]),
}


def digest(value):
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def compare(name, found):
    """Compare with a golden file or, where that was asked for, write a new one."""
    if WANTED:
        (Path(WANTED) / name).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return
    known = json.loads((HERE / name).read_text(encoding="utf-8"))
    differing = sorted(key for key in known.keys() | found.keys() if known.get(key) != found.get(key))
    assert not differing, f"not as in {name}: {differing[:5]}"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A data root whose data sets are known by name alone, with files in place of published weights."""
    monkeypatch.setattr("rub.data.sources.fingerprint", lambda name, root, **_: f"fingerprint of {name}")
    (tmp_path / INCEPTION_FILE).write_bytes(b"inception")
    (tmp_path / "mae_visualize_vit_large.pth").write_bytes(b"mae")
    (tmp_path / "nudenet.onnx").write_bytes(b"nudenet")
    monkeypatch.setattr("rub.judges.nudenet.packaged", lambda: tmp_path / "nudenet.onnx")
    for folder in ("CompVis/stable-diffusion-v1-4", "microsoft/resnet-50"):
        (tmp_path / folder).mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            (tmp_path / folder / name).write_text(folder)
    for experiment in load_suite("table3-stable-diffusion").experiments:
        for one in experiment.checkpoints.values():
            (tmp_path / one.weights).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / one.weights).write_text(one.weights)
    return tmp_path


def test_every_stage_of_every_suite_is_what_it_was(files):
    found, listed = {}, []
    for suite in suite_names():
        for experiment, graph in api.plan(load_suite(suite), api.make_runtime(data_root=files, device="cpu")):
            kinds = defaultdict(list)
            for stage in in_order(graph.stages):
                kinds[stage.kind].append([stage.key, stage.label, stage.cost, [dict(cell) for cell in stage.cells]])
            for kind, stages in kinds.items():
                place = " ".join(filter(None, (suite, experiment.task, experiment.name, kind)))
                found[place] = [len(stages), digest(stages)]
                listed += [
                    f"{place}: {key[:16]} {digest([cost, cells])[:8]} {text}" for key, text, cost, cells in stages
                ]
    if WANTED:
        (Path(WANTED) / "stages.txt").write_text("\n".join(listed) + "\n", encoding="utf-8")
    compare("stages.json", found)


@pytest.mark.slow
def test_the_searches_of_quick_write_the_same_bytes(tmp_path):
    known = json.loads((HERE / "artifacts.json").read_text(encoding="utf-8"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        machine = {"device": device_name.__wrapped__("cpu"), "libraries": library_versions()}
        if not WANTED and known["machine"] != machine:
            pytest.skip(f"recorded on {known['machine']}, this is {machine}: sums may differ in their last bits")
        runtime, store, found = api.make_runtime(device="cpu"), Store(tmp_path), {}
        for task, (methods, overrides) in QUICK.items():
            [(_, graph)] = api.plan(load_suite("quick", task=task, methods=methods, overrides=overrides), runtime)
            attacks = [stage for stage in in_order(graph.stages) if stage.kind == "attack"]
            tasks = {task: TASKS.get(task, task).load()}
            outcomes = run_inline(attacks, tasks, store, runtime, Display(Console(), quiet=True))
            assert {outcomes[stage.key].status for stage in attacks} == {"done"}
            for stage in attacks:
                content = store.find(stage.kind, stage.key).manifest["files"]
                found[f"{task}: {stage.label}"] = digest(content)
    finally:
        torch.set_num_threads(threads)
    compare("artifacts.json", {"machine": machine, **found})
