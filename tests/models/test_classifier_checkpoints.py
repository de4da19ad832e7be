"""Checkpoints: what was saved comes back, foreign styles are understood, and wrong files are named in one line."""

import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from rub.errors import RubError
from rub.models.formats.classifier import IMAGENET_MEAN, IMAGENET_STD, load_weights
from rub.models.network import build_network
from rub.models.weights import read_state, save_weights

C10 = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}


def small(arch="resnet18", seed=1, **changes):
    return build_network(arch, **{"num_classes": 4, "width": 4, **C10, "seed": seed, **changes})


def same(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def refused(path, model, *words):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RubError) as caught:
        load_weights(path, model)
    message = str(caught.value)
    assert "\n" not in message
    for word in (path, *words):
        assert str(word) in message, message
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return message


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "resnet20"])
def test_round_trip(tmp_path, arch):
    model, other = small(arch), small(arch, seed=2)
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    save_weights(model, tmp_path / "weights.safetensors")
    load_weights(tmp_path / "weights.safetensors", other)
    assert same(model, other)
    from safetensors import safe_open

    with safe_open(tmp_path / "weights.safetensors", "pt") as stored:
        assert set(stored.keys()) == set(model.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("wrap", ["state_dict", "model", "net", "model_state_dict", None])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_torch_files_in_their_wrappers(tmp_path, wrap, prefix):
    model, other = small(), small(seed=2)
    state = OrderedDict((prefix + name, value) for name, value in model.state_dict().items())
    torch.save(state if wrap is None else {"epoch": 3, wrap: state, "best": 0.5}, tmp_path / "c.pth")
    load_weights(tmp_path / "c.pth", other)
    assert same(model, other)
    torch.save({"model": {"state_dict": state}}, tmp_path / "nested.pt")
    load_weights(tmp_path / "nested.pt", third := small(seed=3))
    assert same(model, third)


@pytest.mark.parametrize("arch", ["resnet18", "resnet20"])
def test_unlearn_saliency_carries_its_normalisation(tmp_path, arch):
    model, other = small(arch), small(arch, seed=2, mean=(0.5,), std=(0.25,))
    state = {"normalize.mean": torch.tensor(C10["mean"]), "normalize.std": torch.tensor(C10["std"])}
    state |= model.state_dict()
    content = {"result": {"accuracy": 0.9}, "epoch": 182, "state_dict": state, "best_sa": 94.1, "init_weight": None}
    torch.save(content, tmp_path / "0model_SA_best.pth.tar")
    load_weights(tmp_path / "0model_SA_best.pth.tar", other)
    assert same(model, other)
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(model.eval()(x), other.eval()(x))  # the normalisation came along


def akamaster(model, prefix="module."):
    state = {name.replace("fc.", "linear."): value for name, value in model.state_dict().items()}
    return {prefix + name: value for name, value in state.items() if "num_batches_tracked" not in name}


def test_the_public_cifar_resnets(tmp_path):
    model, other = small("resnet20"), small("resnet20", seed=2)
    torch.save({"best_prec1": 91.7, "state_dict": akamaster(model)}, tmp_path / "resnet20.th")
    load_weights(tmp_path / "resnet20.th", other)
    assert same(model, other)
    assert other.mean.flatten().tolist() == pytest.approx(IMAGENET_MEAN)
    assert other.std.flatten().tolist() == pytest.approx(IMAGENET_STD)
    torch.save(akamaster(model, prefix=""), tmp_path / "own.th")  # not that style: the normalisation stays ours
    load_weights(tmp_path / "own.th", third := small("resnet20", seed=3))
    assert third.mean.flatten().tolist() == pytest.approx(C10["mean"])


def test_shortcuts_by_another_name_keep_the_models_normalisation(tmp_path):
    model, other = small("resnet50"), small("resnet50", seed=2)
    names = {name: name.replace("fc.", "linear.").replace("downsample", "shortcut") for name in model.state_dict()}
    assert any("shortcut" in name for name in names.values())
    torch.save({"net": {f"module.{names[n]}": v for n, v in model.state_dict().items()}}, tmp_path / "ckpt.pth")
    load_weights(tmp_path / "ckpt.pth", other)
    assert same(model, other)
    assert other.mean.flatten().tolist() == pytest.approx(C10["mean"])


def test_a_normalisation_for_other_channels_is_refused(tmp_path):
    model = small(channels=1, mean=(0.5,), std=(0.5,))
    path = tmp_path / "c.pt"
    torch.save({"normalize.mean": torch.rand(3), "normalize.std": torch.rand(3), **model.state_dict()}, path)
    refused(path, model, "3 channels")


def test_models_of_another_class_load_their_own_keys(tmp_path):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)

    model, other = Own(), Own()
    torch.save(model.state_dict(), tmp_path / "own.pt")
    load_weights(tmp_path / "own.pt", other)
    assert same(model, other)


@pytest.mark.slow
def test_another_architecture_names_keys_and_counts(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(small("resnet18"), path)
    message = refused(path, small("resnet34"), "missing", "layer1.2.conv1.weight", "...")
    expected, present = set(small("resnet34").state_dict()), set(small("resnet18").state_dict())
    missing = [name for name in expected - present if "num_batches_tracked" not in name]
    assert f"{len(missing)} missing" in message
    refused(path, small("resnet10"), "48 unexpected", "layer1.1.bn1.bias")
    refused(path, small("resnet18", num_classes=7), "2 misshapen", "fc.weight (4, 32)", "(7, 32)")
    refused(path, small("resnet18", stem="imagenet"), "1 misshapen", "conv1.weight")
    message = refused(path, small("resnet20"), "missing", "unexpected")
    assert len(message) < 600


@pytest.mark.slow
def test_one_missing_key_is_enough(tmp_path):
    model, path = small(), tmp_path / "c.pt"
    state = model.state_dict()
    del state["layer3.0.bn1.running_var"]
    torch.save(state, path)
    refused(path, model, "1 missing", "layer3.0.bn1.running_var")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "legacy.pth"])
@pytest.mark.parametrize("keep", [0, 1, 8, 300, 3000, -100])
def test_truncated_files(tmp_path, name, keep):
    model, path = small(), tmp_path / name
    if name == "w.safetensors":
        save_weights(model, path)
    else:
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=name == "w.pt")
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, model, "truncated")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_files_that_are_no_checkpoint(tmp_path):
    model = small()
    refused(tmp_path / "absent.pt", model, "no such file")
    refused(tmp_path, model, "no weights", "model.safetensors")
    for name in ("text.pt", "text.safetensors"):
        (tmp_path / name).write_text("<html>404 not found</html>" * 40)
        refused(tmp_path / name, model, "no checkpoint")
    (tmp_path / "lie.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    refused(tmp_path / "lie.safetensors", model)
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(tmp_path / "zip.pt", model)
    for value in ([1, 2], {"epoch": 3}, {}, torch.rand(3), {"state_dict": {}}):
        torch.save(value, tmp_path / "odd.pt")
        refused(tmp_path / "odd.pt", model, "state_dict")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_an_archive_of_several_parts_is_no_checkpoint(tmp_path):
    """Its end says that there are two parts; found by the soak's mutated checkpoints."""
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 2)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0, 0, 0, 0, 0)
    (tmp_path / "weights.pt").write_bytes(b"\x80\x02garbage" * 20 + locator + end)
    with pytest.raises(RubError, match="no checkpoint at all"):
        read_state(tmp_path / "weights.pt")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("style", [2, 4, 5, "torch", "wrapped"])
def test_code_in_a_checkpoint_does_not_run(tmp_path, style):
    model, path, proof = small(), tmp_path / "evil.pt", tmp_path / "proof"

    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(proof),)

    if isinstance(style, int):
        path.write_bytes(pickle.dumps(Hostile(), protocol=style))
    else:
        torch.save(Hostile() if style == "torch" else {"state_dict": model.state_dict(), "args": Hostile()}, path)
    refused(path, model, "could run code", "state_dict", "safetensors")
    assert not proof.exists()


def test_a_whole_pickled_model_is_refused(tmp_path):
    model = small()
    torch.save(model, tmp_path / "whole.pt")
    refused(tmp_path / "whole.pt", model, "could run code")


def test_numpy_scalars_beside_the_weights_are_read(tmp_path):
    model, other = small(), small(seed=2)
    # Unlearn-Saliency saves its evaluation so, with what SVC_MIA returns: means over numpy arrays
    result = {"accuracy": {"retain": 99.1}, "SVC_MIA": {"confidence": np.float64(0.3), "n": np.int64(7)}}
    for name, legacy in (("unlearned.pth.tar", False), ("legacy.pth.tar", True)):
        content = {"state_dict": model.state_dict(), "evaluation_result": result}
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=not legacy)
        load_weights(tmp_path / name, other)
        assert same(model, other)
    raw = (tmp_path / "legacy.pth.tar").read_bytes()
    assert b"numpy._core.multiarray" in raw or b"numpy.core.multiarray" in raw
    (tmp_path / "numpy1.pth.tar").write_bytes(raw.replace(b"numpy._core.", b"numpy.core."))
    load_weights(tmp_path / "numpy1.pth.tar", third := small(seed=3))
    assert same(model, third)
    with pytest.raises(pickle.UnpicklingError):  # what load_weights allows, it allows for itself alone
        torch.load(tmp_path / "unlearned.pth.tar", weights_only=True)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_legacy_files_and_other_protocols_run_nothing(tmp_path):
    model, proof = small(), tmp_path / "proof"

    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(proof),)

    content = {"state_dict": model.state_dict(), "args": Hostile()}
    for name, options in (
        ("legacy.pt", {"_use_new_zipfile_serialization": False}),
        ("protocol4.pt", {"pickle_protocol": 4}),
        ("both.pt", {"pickle_protocol": 4, "_use_new_zipfile_serialization": False}),
    ):
        torch.save(content, tmp_path / name, **options)
        refused(tmp_path / name, model, "could run code")
    (tmp_path / "arrays.pt").write_bytes(pickle.dumps({"w": np.array([Hostile()], dtype=object)}, protocol=2))
    refused(tmp_path / "arrays.pt", model, "could run code")
    assert not proof.exists()
    torch.save(model.state_dict(), tmp_path / "harmless.pt", pickle_protocol=4)  # torch itself does not read it
    refused(tmp_path / "harmless.pt", model, "pickle protocol above torch's 2", "safetensors")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path, kind):
    model, other = small(), small(seed=2)
    state = {name: value.to(kind) if value.is_floating_point() else value for name, value in model.state_dict().items()}
    torch.save(state, tmp_path / "half.pt")
    load_weights(tmp_path / "half.pt", other)
    assert {p.dtype for p in other.parameters()} == {torch.float32}
    assert all(torch.equal(value, state[name].to(value.dtype)) for name, value in other.state_dict().items())


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model, other = small(), small(seed=2)
    with torch.no_grad():
        model.fc.bias[1] = float("nan")
    save_weights(model, tmp_path / "nan.safetensors")
    refused(tmp_path / "nan.safetensors", other, "fc.bias", "not finite")


def test_counts_of_batches_keep_the_models_own_when_absent(tmp_path):
    model, other = small(), small(seed=2)
    other.bn1.num_batches_tracked.fill_(5)
    torch.save({n: v for n, v in model.state_dict().items() if "num_batches" not in n}, tmp_path / "old.pth")
    load_weights(tmp_path / "old.pth", other)
    assert other.bn1.num_batches_tracked == 5
    assert torch.equal(other.bn1.running_var, model.bn1.running_var)
