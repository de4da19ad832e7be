"""Audits of networks of every kind, from the command line: recognised, wrapped, of one's own, of a folder."""

import json

import pytest
import torch

from rub.data.sources import load_images
from rub.errors import RubError
from rub.models.network import build_network, head
from rub.tasks.classification.witnesses import refuse_huge
from rub.training.context import TrainContext

pytestmark = pytest.mark.slow

PROTOCOL = """
task: classification
name: tiny
attacks:
  uma:
    runs: [{name: uma, steps: 3}]
    budgets: [64]
    splits: [forget]
radius: {smallest: 16, largest: 64, steps: 2}
probe_per_class: 10
few_images: 5
"""
NETWORKS = {"resnet18": {"width": 4}, "vgg16-bn": {"width": 4}, "vit-mini": {"width": 16}, "swin-mini": {"width": 16}}
SHAPE = {"num_classes": 10, "channels": 1, "size": 8}


@pytest.fixture(scope="module")
def digits():
    return load_images("digits", None)


@pytest.fixture(scope="module")
def make(digits):
    """Train a network on digits for a moment, with Adam: transformers need it."""

    def made(arch, epochs, mean=None, std=None, **parameters):
        mean, std = mean or digits.mean, std or digits.std
        model = build_network(arch, **SHAPE, mean=mean, std=std, **parameters, seed=1)
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        context, generator = TrainContext(seed=1, batch_size=64), torch.Generator().manual_seed(0)
        for _ in range(epochs):
            for x, y in context.batches(digits.train, generator, augment=False):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
        return model.eval()

    return made


def figures(said):
    assert said.code == 0, said.err
    return said.out[said.out.index("TA, kept classes") :]


@pytest.fixture
def audit(rub, tmp_path):
    """Audit two checkpoints of digits, quickly."""
    (tmp_path / "tiny.yaml").write_text(PROTOCOL)
    quick = ["--data", "digits", "--forget-classes", 0, "--protocol", tmp_path / "tiny.yaml", "--samples", 10]

    def call(original, unlearned, *other):
        files = ["--original", original, "--unlearned", unlearned, "--store", tmp_path / "store"]
        return ["audit", "classification", *files, *other, *quick, "--device", "cpu"]

    return call


@pytest.mark.parametrize("arch", NETWORKS)
def test_the_same_audit_of_the_same_weights(arch, make, rub, audit, tmp_path):
    model = make(arch, 4 if arch == "resnet18" else 1, **NETWORKS[arch])
    if arch != "resnet18":
        head(model).bias.data[0] = 8.0  # however little it learned, it recognises the class that is to be forgotten
    state = model.state_dict()
    other = {name: value + 0.02 * value.std() if value.ndim > 1 else value for name, value in state.items()}
    torch.save(state, tmp_path / "before.pt")
    torch.save(other, tmp_path / "after.pt")
    torch.save({"state_dict": {f"model._orig_mod.{name}": value for name, value in state.items()}}, tmp_path / "b.ckpt")
    torch.save({"net": {f"module.{name}": value for name, value in other.items()}}, tmp_path / "a.pth")
    own = [part for name, value in NETWORKS[arch].items() for part in (f"--{name}", value)]
    named = figures(rub(*audit(tmp_path / "before.pt", tmp_path / "after.pt", "--arch", arch, *own)))
    assert named == figures(rub(*audit(tmp_path / "b.ckpt", tmp_path / "a.pth")))
    assert arch != "resnet18" or "hardly more than by chance" not in named


def test_a_network_of_ones_own(rub, refused, audit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_net.py").write_text(
        "from torch import nn\nimport rub\n@rub.network('mine', task='classification')\n"
        "def build(num_classes, channels, size, *, width: int = 8):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size**2, width), nn.ReLU(),"
        " nn.Linear(width, num_classes))\n"
    )
    model = build_network("my_net.py:build", **SHAPE, width=12)
    model.network[-1].bias.data[0] = 9.0  # all images are of class 0: the forgotten one is recognised, others are not
    torch.save(model.state_dict(), "before.pt")
    own = ["--network", "my_net.py:build", "--parameters", "width=12"]
    said = figures(rub(*audit("before.pt", "before.pt", *own, "--out", "results")))
    assert "hardly more than by chance" in said and "give --mean and --std" in said
    assert "10 held" in rub("verify", "results", "--store", "store", "--plugin", "my_net.py").out
    refused(*audit("before.pt", "before.pt", *own, "--arch", "resnet18"), says="give one of them")
    refused(*audit("before.pt", "before.pt", *own[:3], "width"), says="head=small,depth=3")
    refused(*audit("before.pt", "before.pt", *own[:3], "size=1"), says="size")
    refused(*audit("before.pt", "before.pt"), says="keys of no known network; give --arch or --network")


def test_a_folder_of_transformers_and_its_witnesses(make, rub, audit, tmp_path):
    model = make("vit-mini", 4, mean=(0.3,), std=(0.4,), width=16, patch=2)
    folder = tmp_path / "hub" / "vit"
    model.network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.3], "image_std": [0.4]}))
    torch.save(model.state_dict(), tmp_path / "after.pt")
    figures(rub(*audit(folder, tmp_path / "after.pt", "--out", tmp_path / "results")))
    path = next((tmp_path / "results" / "witnesses").glob("*unlearned*.json"))
    claim = json.loads(path.read_text())
    assert claim["settings"]["model"]["arch"] == "hf:vit"
    assert claim["settings"]["model"]["mean"] == pytest.approx([0.3])
    folder.rename(tmp_path / "gone")  # a claim says all that is needed
    check = rub("verify", tmp_path / "results", "--store", tmp_path / "store")
    assert check.code == 0 and "witnesses held, 0 not held, 0 files could not be checked" in check.out
    with pytest.raises(RubError, match="more than any network"):
        refuse_huge({"config": {"depths": [2, 10**9]}})
    with pytest.raises(RubError, match="more than any network"):
        refuse_huge({"config": {"hidden_size": 10**9}})
