"""What many tests share: a tiny suite on digits, its finished run, and the command line in this process."""

import copy
import importlib.util
import shutil
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from rub import registry
from rub.pipeline.checkpointing import Checkpointer
from rub.store.records import Record

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
def benchmark_script():
    """A function that imports a script of ``benchmarks/``, which is no package."""

    def load(name: str) -> ModuleType:
        path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"rub_{name}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


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
    write_result(tiny.result, out, f"rub run {tiny.path}")
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


# Synthetic records with numbers whose intervals are worked out by hand in the tests of reports.
HOSTILE = "<script>alert(1)</script>|_%"
COMMON = {
    "task": "classification", "suite": "demo", "experiment": "", "protocol": "rub-paper-1", "dataset": "cifar10",
    "model": "resnet10-w8", "n": 100, "device": "cpu test", "key": "k", "code_version": "0.1.0+abc",
    "library_versions": {"numpy": "2.0"}, "created": "2026-01-01T00:00:00+00:00",
}  # fmt: skip
TA = {"original": [0.95], "retrain": [0.94, 0.95, 0.96], "sham": [0.95], "ft": [0.90, 0.92, 0.94]}
UA16 = {
    "original": [1.0], "retrain": [0.0, 0.0, 0.0], "sham": [0.0], "ft": [1.0, 1.0, 1.0], "rl": [0.20, 0.22, 0.24],
    "salun": [0.25, 0.27, 0.29], "neggrad-plus": [0.0, 0.0, 0.0], HOSTILE: [0.6, 0.6, 0.6],
}  # fmt: skip


def row(method, metric, value, *, split="forget", attack="none", budget="none", seed=0, mia=None, **more):
    from rub.tasks.classification.metrics import cell

    fields = {"method": method, "metric": metric, "value": value, "split": split, "attack": attack, "budget": budget}
    fields |= {
        "unlearn_seed": seed,
        "mia_seed": mia,
        "direction": cell(method, seed, metric)["direction"],
    }
    return Record.model_validate({**COMMON, **fields, **more})


def rows_of(method, seed, ta, ua16):
    """Return the rows of one model: clean, and attacked at two budgets."""
    yield row(method, "ta", ta, split="test", seed=seed, n=900)
    for metric, split in (
        ("ta_all", "test"), ("ra", "retain"), ("ua", "forget"), ("ua_test", "forget_test"), ("log_odds_auc", "test"),
        ("transplant", "forget_test"), ("probe_accuracy", "forget_test"),
        ("mia_svc", "forget"), ("mia_rmia", "forget"), ("mia_lira", "forget"),
    ):  # fmt: skip
        yield row(method, metric, 0.5, split=split, seed=seed)
    for budget, ua in (("8/255", ua16 / 2), ("16/255", ua16)):
        at = {"attack": "uma", "budget": budget, "seed": seed, "converged": method != "salun"}
        yield row(method, "ua", ua, **at)
        yield row(method, "ua_test", ua, split="forget_test", **at)
        yield row(method, "ua", 0.1, split="retain", **at)
        yield row(method, "residual_knowledge", ua, **at)
        yield from (row(method, "mia_shadow", 0.1 + 0.2 * seed + 0.1 * mia, mia=mia, **at) for mia in range(2))
    yield row(method, "ua", ua16 / 4, attack="noise", budget="16/255", seed=seed, converged=True)
    yield from (row(method, "mia_shadow", 0.3, mia=mia, seed=seed) for mia in range(2))


@pytest.fixture(scope="session")
def make_row():
    return row


@pytest.fixture(scope="session")
def hostile():
    return HOSTILE


@pytest.fixture(scope="session")
def records():
    """3 unlearning x 2 MIA seeds, controls, five methods; ga failed in all seeds, rl in its last."""
    made = [
        record
        for method, values in UA16.items()
        for seed, ua16 in enumerate(values)
        for record in rows_of(method, seed, TA.get(method, [0.9] * 3)[seed], ua16)
    ]
    lost = {"value": None, "status": "failed", "n": 0}
    failed = [
        record.model_copy(
            update={**lost, "method": "ga", "reason": f"unlearn ga, seed {record.unlearn_seed}: diverged"}
        )
        for record in made
        if record.method == "ft"
    ]
    partly = [
        record.model_copy(update={**lost, "reason": "unlearn rl, seed 2: out of memory"})
        if (record.method, record.unlearn_seed, record.metric) == ("rl", 2, "ta")
        else record
        for record in made
    ]
    return partly + failed


@pytest.fixture(scope="session")
def curves(records):
    """Return one search per attacked (method, seed, attack, budget, images): it recovers more with every step."""
    found = []
    for record in records:
        if record.metric in ("ua", "ua_test") and record.attack != "none" and record.value is not None:
            share = [record.value * k / 10 for k in range(11)]
            names = ("task", "suite", "experiment", "protocol", "dataset", "model", "method", "unlearn_seed")
            fields = {name: getattr(record, name) for name in (*names, "attack", "budget", "split", "converged")}
            loss = [2.0 - 0.1 * k for k in range(11)]
            found.append({**fields, "success_curve": share, "loss_curve": loss, "evaluations": 1000})
    return found
