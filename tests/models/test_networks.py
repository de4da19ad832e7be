"""Networks of every kind: what the interface says of them, and that methods, attacks and metrics work on each."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import rub as package
from rub.attacks.base import AttackContext
from rub.config.hyperparameters import resolve
from rub.data.samples import to_unit
from rub.errors import RubError
from rub.metrics.accuracy import probe_accuracy
from rub.models.lookup import claimed_arch, network_spec
from rub.models.network import Normalised, build_network, frozen_copy, head, outputs, with_float32_head
from rub.registry import ATTACKS, METHODS, load_plugin
from rub.tasks.classification.attacks.base import Budget
from rub.tasks.classification.attacks.harness import make_target, run_attack
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.classification.controls import sham
from rub.training.classifier import look, predict

NETWORKS = {
    "resnet18": {"width": 4},
    "resnet32": {"width": 4},
    "vgg16-bn": {"width": 4},
    "vit-mini": {"width": 16, "depth": 1, "patch": 4},
    "swin-mini": {"width": 16, "patch": 2},
}
SHAPE = {"num_classes": 4, "channels": 3, "size": 8}
PLUGIN = """
import torch
from torch import nn
import rub

class Net(nn.Module):
    def __init__(self, inputs, width, num_classes):
        super().__init__()
        self.head = nn.Linear(width, num_classes)
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.ReLU())
        self.head_name = "head"

    def forward(self, x):
        return self.head(self.trunk(x))

@rub.network("my-mlp", task="classification")
def build(num_classes, channels, size, *, width: int = 8):
    \"\"\"A perceptron with one hidden layer.\"\"\"
    return Net(channels * size * size, width, num_classes)

def wrong(num_classes, channels):
    return None
"""


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    return build_network(request.param, **SHAPE, **NETWORKS[request.param], seed=3)


def context(**changes):
    return UnlearnContext(seed=0, num_classes=4, forget_classes=(0,), batch_size=8, **changes)


def parts(samples_of):
    samples = samples_of(24)
    return samples.select(samples.labels == 0), samples.select(samples.labels != 0)


def copied(network):
    from copy import deepcopy

    return deepcopy(network).train()


def test_logits_are_the_heads_of_the_features(network):
    x = torch.rand(3, 3, 8, 8)
    network.eval()
    with torch.no_grad():
        logits, features = outputs(network, x)
        assert torch.equal(logits, network(x))
        torch.testing.assert_close(head(network)(features), logits)
        torch.testing.assert_close(frozen_copy(network)(x), logits, rtol=1e-4, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            lower = with_float32_head(frozen_copy(network))(x)
    assert lower.dtype == torch.float32
    torch.testing.assert_close(lower, logits, rtol=0.1, atol=0.1)
    assert not network._forward_pre_hooks and not head(network)._forward_pre_hooks


def test_the_state_dict_is_that_of_the_network_inside(network):
    names = set(network.state_dict())
    assert not any(name.startswith("network.") or name in ("mean", "std") for name in names)
    other = build_network("resnet18", **SHAPE, width=4, seed=4) if hasattr(network, "fc") else None
    assert other is None or isinstance(other.mean, torch.Tensor)
    network.load_state_dict(network.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["ssd", "iu", "iu-exact", "ct", "salun", "msg", "ft", "boundary-shrink", "boundary-expand", "scrub", "cf-k"]
)
def test_methods_work_or_say_why_not(network, name, samples_of):
    entry = METHODS.get(name, "classification")
    quick = {"epochs": 1, "samples": 6, "damping": 10.0 if name == "iu-exact" else 0.5}
    known = resolve(entry, {}, name)
    given = resolve(entry, {key: value for key, value in quick.items() if key in known}, name)
    forget, retain = parts(samples_of)
    model = entry.load()(copied(network), forget, retain, context(), **given)
    after = predict(model, forget)
    assert after.shape == (len(forget), 4) and torch.isfinite(after).all()
    assert not torch.equal(after, predict(network, forget))


def test_convolution_methods_need_convolutions(samples_of):
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    for name in ("ct", "msg"):
        with pytest.raises(RubError, match=f"{name}: Sequential has no Conv2d"):
            METHODS.get(name, "classification").load()(model, *parts(samples_of), context())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uma", "uma-apgd", "universal", "square", "noise"])
def test_attacks_work(network, name, samples_of):
    samples = samples_of(6)
    target = make_target(copied(network), copied(network), samples.images, samples.labels, 4, torch.device("cpu"))
    attack = ATTACKS.get(name, "classification").load()
    for divergence in ("kl", "features-l2") if name == "uma" else ("kl",):
        given = {"divergence": divergence} if name == "uma" else {}
        asked = AttackContext(seed=0, ids=samples.ids, batch_size=4)
        found = run_attack(attack, {"steps": 2, **given}, target, samples.images, Budget(8), asked)
        assert found.inputs.shape == samples.images.shape
        assert torch.equal(found.step >= 0, target.model(to_unit(found.inputs)).argmax(1) == samples.labels)


def test_sham_and_the_linear_probe_work(network, samples_of):
    forget, retain = parts(samples_of)
    before = predict(network, retain)
    after = predict(sham(copied(network), forget, retain, context()), retain)
    torch.testing.assert_close(
        before - after, torch.tensor([50.0, 0, 0, 0]).expand(len(retain), 4), rtol=1e-3, atol=1e-3
    )
    samples = samples_of(40)
    features = look(network, samples).features.numpy()
    labels = samples.labels.numpy()
    assert 0 <= probe_accuracy(features, labels, features, samples.labels, (0,), seed=0, per_class=10, total=40) <= 1


def test_images_are_resized_to_what_a_network_needs(tmp_path):
    config = {
        "model_type": "vit", "image_size": 12, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 16, "id2label": {"0": "cat"}, "dtype": "float16",
        "_attn_implementation": "someone/kernels", "auto_map": {"AutoModel": "code.Evil"},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    processor = {"image_mean": [0.4] * 3, "image_std": [0.2] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    model = build_network(f"hf:{tmp_path}", **SHAPE)
    assert model.size == 12 and model(torch.rand(2, 3, 8, 8)).shape == (2, 4)
    assert model(torch.rand(2, 3, 24, 24)).dtype == torch.float32
    spec = network_spec({"arch": f"hf:{tmp_path}", "stem": "cifar", "width": None, "mean": None, "std": None})
    assert spec["arch"] == f"hf:{tmp_path.name}" and spec["config"] == config
    assert spec["mean"] == [0.4] * 3 and spec["std"] == [0.2] * 3
    built = build_network(spec["arch"], **SHAPE, config=spec["config"])  # reads nothing
    assert built.state_dict().keys() == model.state_dict().keys()
    with pytest.raises(RubError, match="owner/name"):
        network_spec({"arch": "hf:no-such-folder", "mean": None, "std": None})


def test_a_conv_net_of_transformers():
    config = {"model_type": "convnext", "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 2}
    model = build_network("hf:convnext", **SHAPE, config=config)
    assert outputs(model, torch.rand(2, 3, 8, 8)).features.shape == (2, 16)


def test_timm_networks():
    timm = pytest.importorskip("timm", reason="timm is an extra, and needs a torchvision of this torch")
    model = build_network("timm:vit_tiny_patch16_224", **SHAPE)
    assert isinstance(model, Normalised) and model.size == 224
    assert outputs(model, torch.rand(2, 3, 8, 8)).features.shape == (2, 192)
    assert timm.__version__


def test_networks_are_listed_without_torch():
    code = (
        "import json, sys; from rub.cli.inspect import listing; rows = listing('networks', 'classification');"
        "print(json.dumps([sorted({'torch', 'timm', 'transformers'} & set(sys.modules)), rows]))"
    )
    loaded, rows = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    summaries = {row["name"]: row["summary"] for row in rows}
    assert loaded == [] and "pip install 'rub-bench[timm]'" in summaries["timm:*"]
    assert {"resnet110", "cifar-resnet", "vgg16-bn", "vit-mini", "swin-mini", "hf:*"} <= summaries.keys()


def test_timm_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("rub.models.lookup.find_spec", lambda name: None)
    with pytest.raises(RubError, match=r"pip install 'rub-bench\[timm\]'"):
        build_network("timm:vit_tiny_patch16_224", **SHAPE)


def test_networks_of_ones_own(tmp_path, samples_of):
    file = tmp_path / "my_net.py"
    file.write_text(PLUGIN)
    [entry] = load_plugin(file)
    assert (entry.name, entry.summary) == ("my-mlp", "A perceptron with one hidden layer.")
    spec = {"arch": "my-mlp", "stem": "cifar", "width": 12, "mean": None, "std": None}
    made = network_spec(spec)
    assert len(made["source"]) == 64 and {**spec, "source": made["source"]} == made
    with pytest.raises(RubError, match="depth"):
        network_spec({**spec, "depth": 3})
    model = build_network("my-mlp", **SHAPE, width=12)
    assert outputs(model, torch.rand(2, 3, 8, 8)).features.shape == (2, 12)
    same = build_network(f"{file}:build", **SHAPE, width=12)
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in model.state_dict().items())
    for place, says in ((f"{file}:wrong", "should be def build"), (f"{file}:absent", "no function 'absent'")):
        with pytest.raises(RubError, match=says):
            network_spec({**spec, "arch": place})
    assert claimed_arch(made) == "my-mlp"
    with pytest.raises(RubError, match="another one here"):
        claimed_arch({**made, "source": "0" * 64})


def test_claims_load_no_code(tmp_path):
    file = tmp_path / "evil.py"
    file.write_text("raise SystemExit('ran')")
    with pytest.raises(RubError, match="is code"):
        claimed_arch({"arch": f"{file}:build", "source": "0" * 64})
    with pytest.raises(RubError, match="lacks its config"):
        claimed_arch({"arch": f"hf:{tmp_path}"})


def test_what_is_no_network_is_refused():
    @package.network("odd", task="classification")
    def odd(num_classes, channels, size, *, kind: str = "none"):
        if kind == "crash":
            raise ValueError("not today")
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * size**2, 7)) if kind == "wide" else None

    for kind, says in (("none", "NoneType"), ("crash", "not today"), ("wide", "gives 7 values, not 4 classes")):
        with pytest.raises(RubError, match=says):
            build_network("odd", **SHAPE, kind=kind)
    with pytest.raises(RubError, match="should be def build"):
        package.network("odder", task="classification")(lambda *, num_classes: None)
    with pytest.raises(RubError, match="only classification takes networks"):
        package.network("oddest", task="inpainting")


def test_a_network_without_a_linear_layer_has_its_logits_as_features():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(outputs(model, x).features, model(x))
    model.head_name = "0"
    assert outputs(model, x).features.shape == (2, 3)
    model.head_name = "9"
    with pytest.raises(RubError, match="no layer '9'"):
        outputs(model, x)
