"""A tiny image-to-image suite on digits, run once: the whole graph in seconds."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

TINY = {
    "name": "tiny-i2i",
    "summary": "a run of a few seconds, for the tests",
    "experiments": [
        {
            "task": "inpainting",
            "dataset": {"name": "digits", "size": 16, "validation": 0},
            "model": {"arch": "mae-mini", "patch_size": 4, "mask_ratio": 0.5},
            "training": {"epochs": 4, "lr": 0.004, "batch_size": 64, "padding": 0},
            "judge": {
                "arch": "resnet10", "stem": "half", "width": 4,
                "training": {"epochs": 1, "lr": 0.1, "schedule": "onecycle", "batch_size": 64, "padding": 0},
            },
            "forget": {"classes": [0, 1, 2]},
            "doses": [30],
            "seeds": {"doses": 1},
            "evaluation": {"samples": 12, "steered_samples": 6, "gallery": 2},
            "protocol": {
                "name": "rub-paper-2",
                "is_splits": 2,
                "recovered_below": 0.0014,
                "attacks": {
                    "uma": {
                        "runs": [{"name": "uma", "steps": 3, "adam_steps": 4, "lr": 0.1}],
                        "budgets": [8, "unbounded", "free"],
                        "splits": ["forget", "retain", "steered"],
                    },
                    "noise": {"runs": [{"name": "noise", "steps": 2}], "budgets": [8], "splits": ["forget", "retain"]},
                },
            },
            "methods": {"i2i": {"epochs": 1}, "salun": {"epochs": 1, "lr": 0.004}},
        }
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Ran:
    """The suite's path, its store, its result folder and what the run gave."""

    path: Path
    store: Path
    out: Path
    result: object


@pytest.fixture(scope="session")
def tiny_i2i(tmp_path_factory):
    """The tiny image-to-image suite, run once; copy what you damage."""
    from rub import load_suite, run
    from rub.api import make_runtime

    folder = tmp_path_factory.mktemp("tiny-i2i")
    path = folder / "tiny-i2i.yaml"
    path.write_text(yaml.safe_dump(TINY, sort_keys=False), encoding="utf-8")
    result = run(load_suite(str(path)), store=folder / "store", out=folder / "out", runtime=make_runtime(device="cpu"))
    return Ran(path, folder / "store", folder / "out", result)
