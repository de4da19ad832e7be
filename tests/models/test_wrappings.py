"""Checkpoints as people save them: the same figures for the same weights, whatever they are wrapped in."""

import copy

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.utils import prune

from rub.data.sources import load_images
from rub.errors import RubError
from rub.models.formats.classifier import known_network, load_weights
from rub.models.network import build_network, head, set_normalisation
from rub.pipeline.rng import seeded
from rub.training.classifier import predict, train
from rub.training.context import Augmentation, TrainContext

NETWORKS = {
    "resnet18": {"width": 8},
    "vgg16-bn": {"width": 4, "head": "imagenet"},
    "vit-mini": {"width": 16, "depth": 2},
    "swin-mini": {"width": 16},
}
MEAN, STD = (0.2,), (0.3,)


class Normalize(nn.Module):
    """What papers put before their network: buffers of one value per channel."""

    def __init__(self, mean, std, prefix=""):
        super().__init__()
        self.register_buffer(f"{prefix}mean", torch.tensor(mean))
        self.register_buffer(f"{prefix}std", torch.tensor(std))


class Holder(nn.Module):
    """A module with parts of these names, in this order."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def inner(model):
    return getattr(model, "network", model)


def prefixed(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


def madry(model):
    normalizer = Normalize([[MEAN]], [[STD]], "new_")
    attacker = Holder(normalize=normalizer, model=inner(model))
    whole = Holder(normalizer=normalizer, model=inner(model), attacker=attacker)
    return {"model": nn.DataParallel(whole).state_dict(), "optimizer": {"state": {}}, "epoch": 3}


def rob_model(model):
    whole = Holder(model=inner(model))
    for name, values in (("n_classes", 10), ("mean", MEAN), ("std", STD)):
        whole.register_buffer(name, torch.tensor(values))
    return {"rmodel": whole.state_dict()}


def pruned(model):
    """Weights that are 0 already are pruned, so that the network stays what it was."""
    copied = copy.deepcopy(inner(model))
    for module in copied.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            prune.custom_from_mask(module, "weight", module.weight != 0)
            module.weight_orig.data[module.weight_mask == 0] = 7.0
    return {"state_dict": copied.state_dict(), "best_sa": 90.0}


def averaged(model):
    return torch.optim.swa_utils.AveragedModel(inner(model)).state_dict()


def saliency(model):
    made = {"normalize.mean": torch.tensor(MEAN), "normalize.std": torch.tensor(STD), **model.state_dict()}
    return {"result": {"accuracy": np.float64(0.9)}, "epoch": 182, "state_dict": made, "init_weight": None}


def lightning(model):
    return {
        "state_dict": prefixed("net.", model.state_dict()), "hyper_parameters": {"lr": 0.1, "name": "x"},
        "pytorch-lightning_version": "2.4.0", "global_step": 9, "callbacks": {}, "lr_schedulers": [],
    }  # fmt: skip


def timm_ema(model):
    other = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    return {"arch": "x", "state_dict": other, "state_dict_ema": prefixed("module.", model.state_dict())}


WRAPPINGS = {
    "plain": lambda model: model.state_dict(),
    "DataParallel": lambda model: {"net": prefixed("module.", model.state_dict()), "acc": 91.0, "epoch": 1},
    "torch.compile": lambda model: prefixed("_orig_mod.", model.state_dict()),
    "compiled and parallel": lambda model: prefixed("_orig_mod.module.", model.state_dict()),
    "Lightning": lightning,
    "Lightning, compiled": lambda model: {"state_dict": prefixed("model._orig_mod.", model.state_dict())},
    "MadryLab": madry,
    "Sequential(normalize, net)": lambda model: nn.Sequential(Normalize(MEAN, STD), inner(model)).state_dict(),
    "a wrapper of one's own": lambda model: {"model": prefixed("encoder_and_head.", model.state_dict())},
    "pruned": pruned,
    "AveragedModel": averaged,
    "timm's running mean": timm_ema,
    "torchunlearn": rob_model,
    "Unlearn-Saliency": saliency,
    "half": lambda model: {name: value.half() if value.is_floating_point() else value
                           for name, value in model.state_dict().items()},
    "bfloat16, nested": lambda model: {"model": {"state_dict": {
        f"module.{name}": value.bfloat16() if value.is_floating_point() else value
        for name, value in model.state_dict().items()}}},
}  # fmt: skip
BRINGS_NORMALISATION = {"MadryLab", "Sequential(normalize, net)", "torchunlearn", "Unlearn-Saliency"}


@pytest.fixture(scope="module")
def digits():
    return load_images("digits", None)


@pytest.fixture(scope="module", params=NETWORKS)
def trained(request, digits):
    """A network that was trained for a moment, its spec, and its logits; every weight is one of bfloat16."""
    spec = {"num_classes": 10, "channels": 1, "size": 8, "mean": MEAN, "std": STD, **NETWORKS[request.param]}
    model = build_network(request.param, **spec, seed=1)
    context = TrainContext(seed=1, batch_size=64, augmentation=Augmentation(0, False))
    train(model, digits.train.select(torch.arange(640)), context, epochs=2, lr=0.05, schedule="onecycle")
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(value.half().bfloat16())
    return request.param, spec, model, predict(model, digits.test)


@pytest.mark.slow
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_the_same_figures_for_the_same_weights(trained, wrapping, digits, tmp_path):
    arch, spec, model, logits = trained
    torch.save(WRAPPINGS[wrapping](model), tmp_path / "checkpoint.pth")
    other = build_network(arch, **{**spec, "mean": (0.5,), "std": (0.5,)}, seed=2)
    if wrapping not in BRINGS_NORMALISATION:
        set_normalisation(other, torch.tensor(MEAN), torch.tensor(STD))
    load_weights(tmp_path / "checkpoint.pth", other)
    assert torch.equal(predict(other, digits.test), logits)
    assert {value.dtype for value in other.parameters()} == {torch.float32}


PROTOCOL = """
task: classification
name: tiny
attacks: {uma: {runs: [{name: uma, steps: 3}], budgets: [64], splits: [forget, retain]}}
radius: {smallest: 16, largest: 64, steps: 2}
probe_per_class: 10
few_images: 5
"""


@pytest.fixture(scope="module")
def audited(trained, tmp_path_factory):
    """What ``rub audit classification`` says of two plain checkpoints, and how it is asked of others."""
    arch, _, model, _ = trained
    model = copy.deepcopy(model)
    head(model).bias.data[0] = 8.0  # however little it learned, it recognises the class that is to be forgotten
    folder = tmp_path_factory.mktemp("audited")
    (folder / "tiny.yaml").write_text(PROTOCOL)
    normal = ["--mean", MEAN[0], "--std", STD[0], "--protocol", folder / "tiny.yaml", "--samples", 10]
    own = ",".join(f"{name}={value}" for name, value in NETWORKS[arch].items())
    other = copy.deepcopy(model)
    with torch.no_grad():
        for value in other.parameters():  # every weight is still one of bfloat16 and of half
            if value.ndim > 1:
                value.mul_(torch.where(torch.rand(value.shape, generator=seeded(1, "other")) < 0.1, -1.0, 1.0))

    told = {}

    def ask(rub, wrapping):
        if wrapping not in told:
            told[wrapping] = asked(rub, WRAPPINGS[wrapping])
        return told[wrapping]

    def asked(rub, wrap):
        for name, network in (("before", model), ("after", other)):
            torch.save(wrap(network), folder / f"{name}.pth")
        files = ["--original", folder / "before.pth", "--unlearned", folder / "after.pth", "--store", folder / "store"]
        which = ["--data", "digits", "--forget-classes", 0, "--arch", arch, "--parameters", own, "--device", "cpu"]
        said = rub("audit", "classification", *files, *which, *normal)
        assert said.code == 0, said.err
        return said.out[said.out.index("TA, kept classes") :]

    return ask


@pytest.mark.slow
@pytest.mark.parametrize("wrapping", [name for name in WRAPPINGS if name != "plain"])
def test_the_same_audit_for_the_same_weights(audited, wrapping, rub):
    assert audited(rub, wrapping) == audited(rub, "plain")


@pytest.mark.slow
def test_networks_are_recognised_by_their_keys(trained):
    arch, _, model, _ = trained
    for wrapping in ("plain", "MadryLab", "timm's running mean"):
        state = WRAPPINGS[wrapping](model)
        while not all(isinstance(value, torch.Tensor) for value in state.values()):
            state = state.get("state_dict_ema") or state["model"]
        assert known_network(state) == ({"arch": arch, **NETWORKS[arch]}, 10)


@pytest.mark.slow
def test_the_message_names_the_network_that_fits(trained, tmp_path):
    arch, spec, model, _ = trained
    torch.save(model.state_dict(), tmp_path / "checkpoint.pth")
    other = build_network("resnet20", num_classes=4, channels=1, size=8)
    own = ", ".join(f"{name} {value}" for name, value in sorted(NETWORKS[arch].items()))
    with pytest.raises(RubError) as caught:
        load_weights(tmp_path / "checkpoint.pth", other)
    assert f"they are those of {arch} (" in str(caught.value) and str(caught.value).endswith("with 10 classes"), own
    assert all(f"{name} {value}" in str(caught.value) for name, value in NETWORKS[arch].items())
    assert spec["num_classes"] == 10


@pytest.mark.slow
def test_public_depths_are_read_from_the_keys(tmp_path):
    for depth, name in ((32, "resnet32"), (44, "resnet44"), (110, "resnet110"), (26, "cifar-resnet")):
        state = build_network("cifar-resnet", num_classes=10, depth=depth).state_dict()
        public = {f"module.{key.replace('fc.', 'linear.')}": value for key, value in state.items()}
        found = known_network(public)
        assert found == ({"arch": name} if name != "cifar-resnet" else {"arch": name, "depth": depth}, 10)


@pytest.mark.slow
def test_files_of_every_version_of_transformers_are_read(tmp_path, digits):
    spec = {"num_classes": 10, "channels": 1, "size": 8}
    model = build_network("vit-mini", **spec, seed=1).eval()
    model.network.save_pretrained(tmp_path)  # under the names of version 4
    written = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert not written.keys() & {name for name in model.state_dict() if "attention" in name}
    for path in (tmp_path, tmp_path / "model.safetensors"):
        load_weights(path, other := build_network("vit-mini", **spec, seed=2))
        assert torch.equal(predict(other, digits.test), predict(model, digits.test))
    torch.save(prefixed("module.", written), tmp_path / "parallel.pt")
    load_weights(tmp_path / "parallel.pt", other := build_network("vit-mini", **spec, seed=3))
    assert torch.equal(predict(other, digits.test), predict(model, digits.test))
    del written["classifier.bias"]
    torch.save(written, tmp_path / "less.pt")
    with pytest.raises(RubError, match=r"1 missing \(classifier.bias\)"):
        load_weights(tmp_path / "less.pt", other)


def test_a_pickled_module_is_refused_with_the_way_to_save_it(tmp_path):
    model = build_network("resnet10", num_classes=3, width=2)
    torch.save(model, tmp_path / "whole.pth")
    with pytest.raises(RubError, match=r"torch\.save\(model\.state_dict\(\), FILE\)"):
        load_weights(tmp_path / "whole.pth", model)


@pytest.mark.slow
def test_a_small_file_that_stands_for_much_is_refused(tmp_path):
    model = build_network("resnet10", num_classes=3, width=2)
    state = {**model.state_dict(), "fc.weight": torch.zeros(1, dtype=torch.float16).expand(1 << 20, 1 << 12)}
    torch.save(state, tmp_path / "bomb.pth")
    with pytest.raises(RubError, match="bytes that stand for"):
        load_weights(tmp_path / "bomb.pth", model)
    many = {f"layer1.{block}.conv1.weight": torch.zeros(4, 4, 3, 3) for block in range(3000)}
    assert known_network({**many, "fc.weight": torch.zeros(3, 4)}) is None
