"""Files of weights that are none, or not plain real numbers: one line that says what is wrong."""

import gzip
import io
import json
import os
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from rub.errors import RubError
from rub.models.diffusion.layouts import named_beside, refuse_families
from rub.models.formats.classifier import load_weights
from rub.models.network import build_network
from rub.models.weights import read_checkpoint, read_state, save_weights


def small(seed=1):
    return build_network("resnet18", num_classes=4, width=4, mean=(0.5,), std=(0.25,), seed=seed)


def changed(change):
    state = dict(small().state_dict())
    state["fc.weight"] = change(state["fc.weight"])
    return state


def quantised(value):
    return torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)


def ended(state, end):
    made = io.BytesIO()
    torch.save(state, made)
    return made.getvalue() + end


def tensors_of(state):
    return safetensors.torch.save({name: value.contiguous() for name, value in state.items()})


def packed(state):
    made = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(ended(state, b""))) as before,
        zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as after,
    ):
        for part in before.infolist():
            after.writestr(part.filename, before.read(part))
    return made.getvalue()


def scripted(state):
    made = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), made)
    return made.getvalue()


KINDS = {
    "int8": (lambda value: value.to(torch.int8), "torch.int8; should be floating point"),
    "uint8": (lambda value: value.to(torch.uint8), "torch.uint8; should be floating point"),
    "int64": (torch.Tensor.long, "torch.int64; should be floating point"),
    "bool": (torch.Tensor.bool, "torch.bool; should be floating point"),
    "complex": (lambda value: value.to(torch.complex64), "complex (torch.complex64)"),
    "meta": (lambda value: value.to("meta"), "meta tensor"),
    "sparse": (torch.Tensor.to_sparse, "sparse"),
    "csr": (torch.Tensor.to_sparse_csr, "sparse"),
    "quantised": (quantised, "quantised (torch.qint8)"),
    "nan": (lambda value: value * float("nan"), "not finite"),
    "inf": (lambda value: value + float("inf"), "not finite"),
    "half inf": (lambda value: (value + float("inf")).half(), "not finite"),
    "nan of 8 bits": (lambda value: (value * float("nan")).to(torch.float8_e4m3fn), "not finite"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_only_plain_real_and_finite_tensors_are_weights(tmp_path, kind):
    change, words = KINDS[kind]
    torch.save(changed(change), tmp_path / "w.pth")
    with pytest.raises(RubError) as error:
        load_weights(tmp_path / "w.pth", small(2))
    assert words in str(error.value)
    assert "fc.weight" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan"), float("inf")])
def test_a_normalisation_divides_by_what_is_above_zero(tmp_path, std):
    state = {"normalize.mean": torch.zeros(3), "normalize.std": torch.full((3,), std), **small().state_dict()}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(RubError, match=r"std should be above 0|not finite"):
        load_weights(tmp_path / "w.pth", small(2))


def test_a_variance_is_not_negative(tmp_path):
    state = small().state_dict()
    state["bn1.running_var"] -= 5
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(RubError, match=r"bn1\.running_var is negative"):
        load_weights(tmp_path / "w.pth", small(2))


FILES = {
    "safetensors.pth": (tensors_of, "a safetensors file; its name should end"),
    "torch.safetensors": (lambda state: ended(state, b""), "a file of torch.save; its name should end"),
    "trail.safetensors": (lambda state: tensors_of(state) + b"more", "4 bytes after its end"),
    "trail.pth": (lambda state: ended(state, b"more"), "4 bytes after its end"),
    "padded.pth": (lambda state: ended(state, bytes(1000)), "1000 bytes after its end"),
    "packed.pth": (packed, "is compressed, which torch.save never does"),
    "gzip.pth": (lambda state: gzip.compress(ended(state, b"")), "a gzip file"),
    "w.pth.gz": (lambda state: gzip.compress(ended(state, b"")), "a gzip file"),
    "w.h5": (lambda state: b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file"),
    "w.npy": (lambda state: b"\x93NUMPY" + bytes(99), "a NumPy array"),
    "w.gguf": (lambda state: b"GGUF" + bytes(99), "a GGUF file"),
    "w.pth.zst": (lambda state: b"\x28\xb5\x2f\xfd" + ended(state, b""), "a Zstandard file"),
    "page.pth": (lambda state: b"\n<!DOCTYPE html><html>404</html>", "a web page"),
    "page.safetensors": (lambda state: b"<html><body>Sign in</body></html>", "a web page"),
    "script.pt": (scripted, "a TorchScript program"),
    "w.7z": (lambda state: b"7z\xbc\xaf\x27\x1c" + bytes(99), "a 7z archive"),
    "lfs.pth": (lambda state: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
    "lfs.safetensors": (lambda state: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FILES)
def test_the_message_says_what_the_file_is(tmp_path, name):
    make, words = FILES[name]
    (tmp_path / name).write_bytes(make(small().state_dict()))
    with pytest.raises(RubError) as error:
        read_state(tmp_path / name)
    assert words in str(error.value)
    assert "truncated" not in str(error.value)


def listed(header, data=bytes(16), length=None):
    """A safetensors file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def four(dtype="F32", shape=(4,), ends=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(ends)}


HEADERS = {
    "a length of 2^62": listed(b"{}", length=1 << 62),
    "2^40 elements": listed({"w": four(shape=(1 << 40,))}),
    "2^62 times 4 bytes": listed({"w": four(shape=(1 << 62,))}),
    "a negative shape": listed({"w": four(shape=(-4,))}),
    "overlapping": listed({"a": four(), "b": four()}),
    "a hole": listed({"w": four(shape=(2,), ends=(8, 16))}),
    "ends before it begins": listed({"w": four(ends=(16, 0))}),
    "no such type": listed({"w": four("F128")}),
    "four bits": listed({"w": four("F4", ends=(0, 2))}, bytes(2)),
    "complex": listed({"w": four("C64", (2,))}),
    "100,000 lists": listed(b"[" * 100_000),
    "100,000 mappings": listed(b'{"w":' * 100_000),
    "no mapping": listed(b"[1]"),
    "no text": listed(b"{\xff}"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_that_promise_what_is_not_there(tmp_path, case):
    (tmp_path / "w.safetensors").write_bytes(HEADERS[case])
    with pytest.raises(RubError) as error:
        load_weights(tmp_path / "w.safetensors", small())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "device", "loop", "folder"])
def test_what_is_no_file_is_not_read(tmp_path, kind, ending):
    path = tmp_path / f"w.{ending}"
    make = {"pipe": lambda: os.mkfifo(path), "device": lambda: path.symlink_to("/dev/zero"),
            "loop": lambda: path.symlink_to(path), "folder": path.mkdir}  # fmt: skip
    make[kind]()
    with pytest.raises(RubError, match="no such file"):
        read_state(path)


class Options(dict):
    """Settings as Lightning's AttributeDict keeps them."""


BESIDE = {
    "plain settings": ({"lr": 0.1, "name": "x", "sizes": (1, 2)}, True),
    "sizes and devices": ({"size": torch.Size([1, 2]), "device": torch.device("cpu"), "dtype": torch.float32}, True),
    "numbers of NumPy": ({"best": np.float64(0.5), "epoch": np.int64(3)}, True),
    "counts": (Counter("abc"), True),
    "a mapping of one's own": (Options(lr=0.1), False),
    "an array": ({"history": np.zeros(3)}, False),
    "a path": ({"folder": Path("x")}, False),
    "a default": (defaultdict(list), False),
}


@pytest.mark.parametrize("case", BESIDE)
def test_what_lies_beside_the_weights_is_read_or_named(tmp_path, case):
    beside, plain = BESIDE[case]
    model, other = small(), small(2)
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": beside}, tmp_path / "w.pth")
    if plain:
        load_weights(tmp_path / "w.pth", other)
        assert torch.equal(model.fc.weight, other.fc.weight)
        return
    with pytest.raises(RubError, match="holds pickled objects besides tensors") as error:
        load_weights(tmp_path / "w.pth", other)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [4, 5])
def test_pickles_above_torchs_own_protocol_say_so(tmp_path, protocol):
    torch.save(small().state_dict(), tmp_path / "w.pth", pickle_protocol=protocol)
    with pytest.raises(RubError, match="pickle protocol above torch's 2"):
        load_weights(tmp_path / "w.pth", small(2))


LAYOUTS = {
    "of 8 bits": lambda value: value.to(torch.float8_e4m3fn),
    "of 16 bits": torch.Tensor.bfloat16,
    "of 64 bits": torch.Tensor.double,
    "with gradients": lambda value: value.clone().requires_grad_(),
    "a parameter": torch.nn.Parameter,
    "transposed": lambda value: value.T.contiguous().T,
    "expanded": lambda value: value[:1].expand_as(value),
    "negated lazily": torch._neg_view,
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_other_layouts_and_precisions_are_read_right(tmp_path, case):
    state = changed(LAYOUTS[case])
    torch.save(state, tmp_path / "w.pth")
    load_weights(tmp_path / "w.pth", model := small(2))
    assert torch.equal(model.fc.weight, state["fc.weight"].detach().resolve_neg().float())


@pytest.mark.parametrize(
    ("made", "asked", "right"),
    [
        ({"stem": "imagenet", "width": 8}, {"stem": "cifar", "width": 8}, "stem imagenet, width 8"),
        ({"stem": "imagenet", "width": 8}, {"stem": "half", "width": 8}, "stem imagenet, width 8"),
        ({"stem": "cifar", "width": 8}, {"stem": "imagenet", "width": 8}, "width 8"),
        ({"stem": "cifar", "width": 8}, {"stem": "cifar", "width": 4}, "width 8"),
        ({"stem": "cifar", "width": 8, "num_classes": 11}, {"stem": "cifar", "width": 8}, "with 11 classes"),
    ],
)
def test_the_message_names_stem_width_and_classes_that_would_be_right(tmp_path, made, asked, right):
    common = {"num_classes": 4, "mean": (0.5,) * 3, "std": (0.25,) * 3, "channels": 3}
    torch.save(build_network("resnet18", **{**common, **made}).state_dict(), tmp_path / "w.pth")
    with pytest.raises(RubError) as error:
        load_weights(tmp_path / "w.pth", build_network("resnet18", **{**common, **asked}))
    assert "they are those of resnet18" in str(error.value) and right in str(error.value)


@pytest.mark.parametrize("name", ["W.SAFETENSORS", "w.Safetensors", "W.PTH", "w.PT"])
def test_endings_are_read_in_any_case(tmp_path, name):
    model, other = small(), small(2)
    if "safetensors" in name.lower():
        save_weights(model, tmp_path / name)
    else:
        torch.save(model.state_dict(), tmp_path / name)
    load_weights(tmp_path / name, other)
    assert torch.equal(model.fc.weight, other.fc.weight)


def test_a_message_fits_a_screen(tmp_path):
    torch.save({**small().state_dict(), "k" * 200_000: torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(RubError) as error:
        load_weights(tmp_path / "w.pth", small(2))
    assert len(str(error.value)) < 1700
    assert len(str(RubError("x" * 100_000))) < 1700


@pytest.mark.parametrize(
    ("key", "family"),
    [
        ("double_blocks.0.img_attn.qkv.weight", "Flux"),
        ("model.diffusion_model.double_blocks.0.img_mlp.0.bias", "Flux"),
        ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "Flux"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.proj.bias", "Stable Diffusion 3"),
        ("transformer_blocks.0.attn.add_q_proj.weight", "Stable Diffusion 3"),
        ("conditioner.embedders.1.model.ln_final.bias", "Stable Diffusion XL"),
        ("model.diffusion_model.label_emb.0.0.weight", "Stable Diffusion XL"),
        ("add_embedding.linear_1.weight", "Stable Diffusion XL"),
        ("unet.add_embedding.linear_1.weight", "Stable Diffusion XL"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha", "Stable Diffusion XL"),
    ],
)
def test_models_of_other_families_are_named(key, family):
    with pytest.raises(RubError, match=family):
        refuse_families(["time_embedding.linear_1.weight", key], Path("w.safetensors"))
    refuse_families(["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"], Path("w.safetensors"))


def test_lists_in_themselves_beside_the_weights_end(tmp_path):
    """A pickle of some hundred bytes that stands for 2^200 lists, and one that holds itself."""
    laughs = [1]
    for _ in range(200):
        laughs = [laughs, laughs]
    torch.save({"state_dict": {"w": torch.zeros(1)}, "args": laughs}, tmp_path / "w.pth")
    beside = read_checkpoint(tmp_path / "w.pth")[1]
    assert named_beside(beside, tmp_path) == {}
    itself = []
    itself.append(itself)
    assert named_beside({"args": itself}, tmp_path) == {}


@pytest.mark.parametrize("first", [b"\x80\x02", b"PK", b"\x1f\x8b", b"BZ"])
def test_a_header_may_have_the_length_that_another_kind_of_file_begins_with(tmp_path, first):
    """The first eight bytes of a safetensors file are the length of its header, which is padded with blanks here."""
    path, length = tmp_path / "a.safetensors", int.from_bytes(first.ljust(8, b"\0"), "little")
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(length.to_bytes(8, "little") + header.ljust(length) + b"\0\0\x80\x3f")
    assert read_state(path)["w"].tolist() == [1.0]
