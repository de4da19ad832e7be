"""What many tests share: a tiny suite on digits, its finished run, and the command line in this process."""

import copy
import shutil
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rub import registry
from rub.pipeline.checkpointing import Checkpointer

TINY = {
    "name": "tiny",
    "summary": "a run of a few seconds, for the tests",
    "experiments": [
        {
            "task": "classification",
            "dataset": "digits",
            "model": {"arch": "resnet10", "stem": "cifar", "width": 2},
            "training": {"epochs": 1, "lr": 0.1, "schedule": "onecycle", "batch_size": 64, "padding": 1},
            "forget": {"classes": [0]},
            "evaluation": {"attack_samples": 8, "control_samples": 4, "retain_samples": 200},
            "protocol": {
                "name": "rub-paper-1",
                "shadows_per_seed": 2,
                "probe_per_class": 10,
                "attacks": {
                    "uma": {"runs": [{"name": "uma", "steps": 3}], "budgets": [32], "splits": ["forget", "retain"]},
                    "noise": {"runs": [{"name": "noise", "steps": 2}], "budgets": [0]},
                },
            },
            "methods": {"ft": {"epochs": 1}},
        }
    ],
}


@dataclass(frozen=True)
class Tiny:
    """The tiny suite's finished run: the suite, the YAML file it is in, its store and what it gave."""

    suite: Any
    path: Path
    store: Path
    result: Any


@dataclass(frozen=True)
class Said:
    """What a command of the command line gave: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def write_suite():
    """Write a copy of the tiny suite with changed experiment fields, merged key by key, and return its path."""

    def merge(base: dict[str, Any], changes: dict[str, Any]) -> None:
        for key, value in changes.items():
            if isinstance(value, dict) and isinstance(base.get(key), dict):
                merge(base[key], value)
            else:
                base[key] = value

    def write(folder: Path, **changes: Any) -> Path:
        suite = copy.deepcopy(TINY)
        merge(suite["experiments"][0], changes)
        path = folder / "tiny.yaml"
        path.write_text(yaml.safe_dump(suite, sort_keys=False), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, write_suite):
    """The tiny suite, run once; its store is shared, so copy it before damaging it."""
    from rub import load_suite, run
    from rub.api import make_runtime

    folder = tmp_path_factory.mktemp("tiny")
    path = write_suite(folder)
    suite = load_suite(str(path))
    store = folder / "store"
    return Tiny(suite, path, store, run(suite, store=store, runtime=make_runtime(device="cpu")))


@pytest.fixture(scope="session")
def tiny_out(tiny, tmp_path_factory):
    """The result folder of the tiny run."""
    from rub.reports.result_folder import write_result

    out = tmp_path_factory.mktemp("tiny-out")
    write_result(tiny.result, tiny.suite, out, f"rub run {tiny.path}")
    return out


@pytest.fixture
def copied_store(tiny, tmp_path):
    """A copy of the tiny run's store, to be damaged freely."""
    return Path(shutil.copytree(tiny.store, tmp_path / "copied-store"))


@pytest.fixture(autouse=True)
def _private_registries():
    """Take away what plug-ins registered when the test is over."""
    modules = set(sys.modules)
    with registry.scoped():
        yield
    for name in set(sys.modules) - modules:
        if name.startswith("rub_plugin_"):
            del sys.modules[name]


@pytest.fixture
def rub(monkeypatch, capsys, tmp_path):
    """Run the command line in this process, 80 columns wide, away from the user's store and data."""
    from rub.cli.main import main

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("RUB_STORE", str(tmp_path / "default-store"))
    monkeypatch.delenv("RUB_DATA", raising=False)
    handler = signal.getsignal(signal.SIGTERM)

    def call(*arguments: Any) -> Said:
        monkeypatch.setattr(sys, "argv", ["rub", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        return Said(int(stop.value.code or 0), said.out, said.err)

    yield call
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def refused(rub):
    """Run a command that should be refused: exit code 2, one line on standard error, every word of it as expected."""

    def call(*arguments: Any, says: tuple[str, ...] | str) -> str:
        said = rub(*arguments)
        assert said.code == 2, said
        assert said.err.startswith("rub: "), said.err
        assert said.err.count("\n") == 1, said.err
        assert said.err.endswith("\n"), said.err
        assert "Traceback" not in said.out + said.err
        for words in (says,) if isinstance(says, str) else says:
            assert words in said.err, said.err
        return said.err

    return call


@pytest.fixture(scope="session")
def samples_of():
    """Return so many random images of 8 x 8 pixels in four classes."""
    from rub.data.samples import Samples

    def make(count, seed=0):
        draw = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 256, (count, 3, 8, 8), generator=draw, dtype=torch.uint8)
        return Samples(images, torch.randint(0, 4, (count,), generator=draw), torch.arange(count))

    return make


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


class Rarely(Checkpointer):
    """Keeps every third state, so that a kill loses steps."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked = 0

    def due(self) -> bool:
        self.asked += 1
        return self.asked % 3 == 0


@pytest.fixture
def ends_the_same(tmp_path):
    """Check that `work(context)` gives the same tensors undisturbed, and killed after so many reports of progress."""

    def run(work, context, at=None, checkpointer=None):
        told = []

        def progress(done, total, note=""):
            told.append(done)
            if len(told) == at:
                raise Killed

        return work(replace(context, progress=progress, checkpointer=checkpointer or Checkpointer())), len(told)

    def check(work, context, kills):
        undisturbed, steps = run(work, context)
        for at in kills:
            with pytest.raises(Killed):
                run(work, context, at, Rarely(tmp_path / "states"))
            assert any((tmp_path / "states").iterdir())
        resumed, left = run(work, context, checkpointer=Rarely(tmp_path / "states"))
        # Each run but the first goes on from states at most three steps before the end of each of its two parts.
        assert left < steps and sum(kills) + left <= steps + 6 * len(kills)
        for one, other in zip(undisturbed, resumed, strict=True):
            assert torch.equal(one, other)

    return check
