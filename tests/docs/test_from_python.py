"""The Python of the README and of examples/ runs as it is printed."""

import re
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from rub.tasks.classification import live

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


SMALL = {
    "name": "small",
    "radius": {"smallest": 4, "largest": 64, "steps": 2},
    "attacks": {
        "uma": {
            "runs": [{"name": "uma", "steps": 2}],
            "budgets": [16],
            "splits": ["forget", "forget_test", "other"],
        }
    },
}


def test_the_first_python_of_the_readme(capsys, monkeypatch):
    monkeypatch.setitem(
        live.audit.__kwdefaults__, "protocol", SMALL
    )  # the printed call takes the default, which is long
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    torch.manual_seed(0)
    original, unlearned = (nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, 4)) for _ in range(2))
    images, labels = torch.rand(40, 3, 4, 4), torch.arange(40) % 4
    gone = labels == 0
    given = {
        "original": original, "unlearned": unlearned, "images": images, "labels": labels,
        "forget": (images[gone], labels[gone]), "retain": TensorDataset(images[~gone], labels[~gone]),
        "test": TensorDataset(images, labels),
    }  # fmt: skip
    exec(blocks[0], given)
    said = capsys.readouterr().out
    assert "Recovery of 40 images by uma" in said and "Verdict: " in said
    assert given["result"].recovered.shape == (3, 40) and given["report"].records


def test_the_example_of_two_models_in_memory(capsys):
    main = runpy.run_path(str(ROOT / "examples" / "in_memory.py"))["main"]
    main(epochs=1, steps=2, samples=10, protocol=SMALL)
    said = capsys.readouterr().out
    assert said.count("Recovery of 10 images by uma") == 2 and "Verdict: " in said
