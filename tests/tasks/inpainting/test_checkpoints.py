"""Checkpoints of masked autoencoders: every published layout is read, and what would mislead is named in one line."""

import json
import os
from argparse import Namespace
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rub.api import make_runtime
from rub.data.samples import Samples
from rub.errors import Diverged, RubError
from rub.models.mae.checkpoints import (
    load_mae,
    looks_normalised,
    refuse_normalised,
    save_mae,
    to_original,
    to_transformers,
)
from rub.models.mae.masks import gather, keyed_noise, make_mask
from rub.models.mae.model import ARCHITECTURES, MAEConfig, MaskedAutoencoder
from rub.tasks.inpainting.stages import _check_outputs

CONFIG = MAEConfig(16, 4, 3, 16, 2, 4, 8, 1, 2)
HEADS = {"heads": 4, "decoder_heads": 2}

# Written by hand from the names of the published files, not from the code under test.
OUTER = {
    "cls_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "patch_embed.proj.weight": "vit.embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "vit.embeddings.patch_embeddings.projection.bias",
    "norm.weight": "vit.layernorm.weight",
    "norm.bias": "vit.layernorm.bias",
    "mask_token": "decoder.mask_token",
    "decoder_pos_embed": "decoder.decoder_pos_embed",
    "decoder_embed.weight": "decoder.decoder_embed.weight",
    "decoder_embed.bias": "decoder.decoder_embed.bias",
    "decoder_norm.weight": "decoder.decoder_norm.weight",
    "decoder_norm.bias": "decoder.decoder_norm.bias",
    "decoder_pred.weight": "decoder.decoder_pred.weight",
    "decoder_pred.bias": "decoder.decoder_pred.bias",
}
INNER = {  # original: (version 4, version 5)
    "norm1": ("layernorm_before", "layernorm_before"),
    "norm2": ("layernorm_after", "layernorm_after"),
    "attn.proj": ("attention.output.dense", "attention.o_proj"),
    "mlp.fc1": ("intermediate.dense", "mlp.fc1"),
    "mlp.fc2": ("output.dense", "mlp.fc2"),
}
SPLIT = {  # version 4, version 5; queries, keys, values
    "v4": ["attention.attention.query", "attention.attention.key", "attention.attention.value"],
    "v5": ["attention.q_proj", "attention.k_proj", "attention.v_proj"],
}
STYLES = {  # encoder layers, decoder layers, inner names
    "v4": ("vit.encoder.layer", "decoder.decoder_layers", "v4"),
    "v5": ("vit.layers", "decoder.decoder_layers", "v5"),
    "bug": ("vit.encoder.layer", "decoder.decoder_encoder.layer", "v4"),
}


def tiny(config=CONFIG, seed=0):
    """A model whose every tensor is random, so that no two could be exchanged unnoticed."""
    model, generator = MaskedAutoencoder(config), torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def hugging_face(model, style):
    """The model's tensors as transformers of this style names them."""
    encoder, decoder, version = STYLES[style]
    state, renamed = dict(model.state_dict()), {}
    for ours, theirs in OUTER.items():
        renamed[theirs] = state.pop(ours)
    for prefix, layers, depth in (
        ("blocks", encoder, model.config.depth),
        ("decoder_blocks", decoder, model.config.decoder_depth),
    ):
        for n in range(depth):
            for leaf in ("weight", "bias"):
                for ours, names in INNER.items():
                    theirs = names[0 if version == "v4" else 1]
                    renamed[f"{layers}.{n}.{theirs}.{leaf}"] = state.pop(f"{prefix}.{n}.{ours}.{leaf}")
                joint = state.pop(f"{prefix}.{n}.attn.qkv.{leaf}")
                width = len(joint) // 3
                for i, theirs in enumerate(SPLIT[version]):
                    renamed[f"{layers}.{n}.{theirs}.{leaf}"] = joint[i * width : (i + 1) * width].clone()
    assert not state
    return renamed


def config_json(config=CONFIG, **changes):
    return {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "hidden_act": "gelu",
        "hidden_size": config.dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": 4 * config.dim,
        "decoder_hidden_size": config.decoder_dim,
        "decoder_num_hidden_layers": config.decoder_depth,
        "decoder_num_attention_heads": config.decoder_heads,
        "decoder_intermediate_size": 4 * config.decoder_dim,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": config.channels,
        "layer_norm_eps": 1e-12,
        "mask_ratio": 0.75,
        "norm_pix_loss": False,
        **changes,
    }


def folder(path, state, *, weights="model.safetensors", inputs=None, **changes):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config_json(**changes)))
    if weights.endswith(".bin"):
        torch.save(state, path / weights)
    elif weights:
        save_file(state, path / weights, {"format": "pt"})
    if inputs is not None:
        (path / "preprocessor_config.json").write_text(json.dumps(inputs))
    return path


def same(model, other):
    mine, theirs = model.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def refused(path, *words, **arguments):
    with pytest.raises(RubError) as caught:
        load_mae(path, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    for word in (path, *words):
        assert str(word) in message, message


# What is read


@pytest.mark.parametrize("wrap", [True, False])
def test_the_original_layout(tmp_path, wrap):
    model = tiny()
    state = model.state_dict()
    content = {"model": state, "epoch": 3, "optimizer": {"state": {0: torch.ones(2)}}, "scaler": {"scale": 1.0}}
    torch.save(content if wrap else state, tmp_path / "mae_visualize_vit_tiny_ganloss.pth")
    loaded = load_mae(tmp_path / "mae_visualize_vit_tiny_ganloss.pth", **HEADS)
    assert same(loaded, model)
    assert loaded.config == CONFIG
    assert loaded.config.eps == 1e-6
    assert not loaded.pos_embed.requires_grad and not loaded.decoder_pos_embed.requires_grad
    x, mask = torch.rand(2, 3, 16, 16), make_mask(torch.rand(2, 16), 0.75)
    assert torch.equal(loaded(x, mask), model(x, mask))


def test_stored_args_do_not_prevent_reading(tmp_path):
    model, path = tiny(), tmp_path / "checkpoint-799.pth"
    args = Namespace(model="mae_vit_base_patch16", norm_pix_loss=False, blr=1e-3, output_dir="./out", seed=0)
    torch.save({"model": model.state_dict(), "epoch": 799, "args": args}, path)
    assert same(load_mae(path, **HEADS), model)
    with pytest.raises(Exception, match=r"argparse\.Namespace"):  # what load_mae allows, it allows for itself alone
        torch.load(path, weights_only=True)


@pytest.mark.parametrize("weights", ["state.pth", "state.safetensors"])
@pytest.mark.parametrize("style", STYLES)
def test_state_dicts_of_transformers(tmp_path, style, weights):
    model, path = tiny(), tmp_path / weights
    state = hugging_face(model, style)
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    loaded = load_mae(path, **HEADS)
    assert same(loaded, model)
    assert loaded.config.eps == 1e-6
    reordered = dict(reversed(state.items()))
    assert to_original(reordered).keys() == model.state_dict().keys()
    assert torch.equal(
        to_original(reordered)["blocks.1.attn.qkv.weight"], model.state_dict()["blocks.1.attn.qkv.weight"]
    )


@pytest.mark.parametrize("weights", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("style", STYLES)
def test_folders_of_transformers(tmp_path, style, weights):
    model = tiny()
    path = folder(tmp_path / "hub", hugging_face(model, style), weights=weights, image_size=[16, 16])
    for given in (path, path / weights):  # the file of the folder is read with its config.json
        loaded = load_mae(given)
        assert same(loaded, model)
        assert loaded.config == replace(CONFIG, eps=1e-12)
        assert loaded.norm.eps == loaded.decoder_blocks[0].norm2.eps == 1e-12


def test_the_folder_tells_its_normalisation(tmp_path):
    state = hugging_face(tiny(), "v4")
    half = {"image_mean": [0.5, 0.4, 0.5], "image_std": [0.5, 0.25, 0.5]}
    loaded = load_mae(folder(tmp_path / "half", state, inputs=half))
    assert loaded.config.mean == (0.5, 0.4, 0.5) and loaded.config.std == (0.5, 0.25, 0.5)
    assert loaded.mean[:3].tolist() == pytest.approx([0.5, 0.4, 0.5])
    assert load_mae(tmp_path / "half", mean=(0.5, 0.4, 0.5), std=(0.5, 0.25, 0.5)).config == loaded.config
    refused(tmp_path / "half", "mean is (0.5, 0.4, 0.5)", "(0, 0, 0)", mean=(0.0, 0, 0), std=(1.0, 1, 1))
    none = load_mae(folder(tmp_path / "none", state, inputs={"do_normalize": False, **half}))
    assert none.config.mean == (0, 0, 0) and none.config.std == (1, 1, 1)


def test_what_the_installed_transformers_saves(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {name: value for name, value in config_json().items() if name not in ("architectures", "model_type")}
    theirs = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**sizes)).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path / "saved")
    own = load_mae(tmp_path / "saved", mean=(0.0,) * 3, std=(1.0,) * 3)
    x, noise = torch.rand(3, 3, 16, 16), torch.rand(3, 16)
    with torch.no_grad():
        assert (own(x, make_mask(noise, 0.75)) - theirs(x, noise=noise).logits).abs().max() <= 1e-6


def test_to_transformers_names_what_version_5_has():
    model = tiny()
    ours, theirs = to_transformers(model.state_dict()), hugging_face(model, "v5")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    back = to_original(ours)
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[name], value) for name, value in model.state_dict().items())
    assert all(to_original(back)[name] is back[name] for name in back)
    assert to_transformers({"head.weight": torch.ones(1)}).keys() == {"head.weight"}


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_and_parallel_prefixes_become_plain_float32(tmp_path, kind):
    model, path = tiny(), tmp_path / "w.pth"
    torch.save({f"module.{name}": value.to(kind) for name, value in model.state_dict().items()}, path)
    loaded = load_mae(path, **HEADS)
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, model.state_dict()[name].to(kind).float())


# Sizes


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        MAEConfig(12, 3, 1, 12, 3, 3, 16, 2, 4, mlp_ratio=2.7, eps=1e-5, mean=(0.25,), std=(0.1,)),
        MAEConfig(8, 4, 2, 8, 1, 1, 4, 0, 1, mlp_ratio=5 / 3, mean=(0.1, 0.9), std=(1 / 3, 2 / 3)),
    ],
)
def test_what_rub_saves_needs_no_arguments(tmp_path, config):
    model, path = tiny(config), tmp_path / "mae.safetensors"
    save_mae(model, path)
    loaded = load_mae(path)
    assert same(loaded, model)
    assert loaded.config == config
    assert load_mae(path, heads=config.heads, mean=config.mean, std=config.std).config == config
    assert load_file(path).keys() == model.state_dict().keys()
    save_mae(loaded, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    refused(path, "heads is", "but the arguments say 7", heads=7)


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "heads"), [(768, 12), (1024, 16), (1280, 16)])
def test_heads_of_published_widths_are_known(tmp_path, dim, heads):
    path = tmp_path / "mae_visualize_vit.pth"
    torch.save({"model": MaskedAutoencoder(MAEConfig(32, 16, 3, dim, 1, heads, 512, 1, 16)).state_dict()}, path)
    config = load_mae(path).config
    assert (config.heads, config.decoder_heads, config.depth, config.decoder_depth) == (heads, 16, 1, 1)
    assert (config.image_size, config.patch_size, config.channels, config.mlp_ratio) == (32, 16, 3, 4.0)


@pytest.mark.parametrize("name", ["mae-mini", "mae-small"])
def test_heads_of_rubs_own_sizes_are_known(tmp_path, name):
    config = MAEConfig(32, 4, 3, *ARCHITECTURES[name][2:])
    torch.save(MaskedAutoencoder(config).state_dict(), tmp_path / "w.pth")
    assert load_mae(tmp_path / "w.pth").config == config


@pytest.mark.parametrize("depth", [3, 5])
def test_heads_that_nothing_tells_are_asked_for(tmp_path, depth):
    unknown, path = MAEConfig(16, 4, 3, 64, depth, 8, 48, 2, 4), tmp_path / "w.pth"  # mae-mini's widths, not its depth
    torch.save(MaskedAutoencoder(unknown).state_dict(), path)
    refused(path, "give heads", "dim = 64")
    refused(path, "give decoder_heads", "decoder_dim = 48", heads=8)
    assert load_mae(path, heads=8, decoder_heads=4).config == unknown
    for wrong in (0, -8, 2.0, True):
        refused(path, f"heads = {wrong}", heads=wrong, decoder_heads=4)
    with pytest.raises(RubError, match="multiple of 4 and of its 7 heads"):
        load_mae(path, heads=7, decoder_heads=4)


def test_another_image_size_is_refused_with_both(tmp_path):
    torch.save(tiny().state_dict(), path := tmp_path / "w.pth")
    assert load_mae(path, image_size=16, **HEADS).config.image_size == 16
    refused(path, "image_size is 16", "the arguments say 32", image_size=32, **HEADS)
    wrong = folder(tmp_path / "wrong", hugging_face(tiny(), "v4"), image_size=32)
    refused(wrong, "image_size is 16", "its config says 32")


def test_a_normalisation_is_asked_for_where_imagenets_does_not_fit(tmp_path):
    grey = replace(CONFIG, channels=1, mean=(0.5,), std=(0.5,))
    torch.save(tiny(grey).state_dict(), path := tmp_path / "w.pth")
    refused(path, "1 channels", "mean", **HEADS)
    refused(path, "both", mean=(0.5,), **HEADS)
    refused(path, "std = (0.0,)", mean=(0.5,), std=(0.0,), **HEADS)
    assert load_mae(path, mean=(0.5,), std=(0.5,), **HEADS).config == grey


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": 32}, ("dim is 16", "says 32")),
        ({"num_hidden_layers": 3}, ("depth is 2", "says 3")),
        ({"num_attention_heads": "4"}, ("heads = 4",)),
        ({"num_attention_heads": 10**400}, ("heads = 1000",)),
        ({"layer_norm_eps": -1.0}, ("eps = -1.0",)),
        ({"layer_norm_eps": float("nan")}, ("eps = nan",)),
        ({"image_size": [16, 24]}, ("image_size = (16, 24)",)),
        ({"hidden_act": "relu"}, ("'relu'", "'gelu'")),
        ({"model_type": "vit"}, ("'vit'", "'vit_mae'")),
    ],
)
def test_a_config_that_is_not_the_models(tmp_path, changes, words):
    refused(folder(tmp_path / "hub", hugging_face(tiny(), "v4"), **changes), *words)


def test_folders_that_lack_something(tmp_path):
    refused(folder(tmp_path / "none", {}, weights=""), "no weights; should hold one of")
    path = folder(tmp_path / "plain", hugging_face(tiny(), "v4"))
    (path / "config.json").write_text("{" * 5)
    refused(path, "config.json is no JSON object")
    (path / "config.json").write_text("[" * 100_000)
    refused(path, "config.json is no JSON object")
    (path / "config.json").unlink()
    refused(path, "config.json")


# What is refused


def test_an_encoder_alone(tmp_path):
    model = tiny()
    encoder = {name: v for name, v in model.state_dict().items() if not name.startswith(("decoder", "mask_token"))}
    words = ("decoder is missing", "mae_visualize_vit_")
    torch.save({"model": encoder}, tmp_path / "mae_pretrain_vit_base.pth")
    refused(tmp_path / "mae_pretrain_vit_base.pth", *words, **HEADS)
    save_file({**encoder, "head.weight": torch.ones(2, 16)}, tmp_path / "timm.safetensors")
    refused(tmp_path / "timm.safetensors", *words)
    vit = {name: v for name, v in hugging_face(model, "v4").items() if name.startswith("vit.")}
    torch.save(vit, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", *words)
    torch.save({name.removeprefix("vit."): v for name, v in vit.items()}, tmp_path / "b.pth")
    refused(tmp_path / "b.pth", *words)


def test_keys_are_accounted_for(tmp_path):
    model, path = tiny(), tmp_path / "w.pth"

    def broken(state, *words):
        torch.save(state, path)
        refused(path, *words, **HEADS)

    state = model.state_dict()
    broken({n: v for n, v in state.items() if n != "blocks.1.mlp.fc2.bias"}, "1 missing (blocks.1.mlp.fc2.bias)")
    broken({**state, "head.bias": torch.ones(2)}, "1 unexpected (head.bias)")
    broken({**state, "decoder_pred.bias": torch.ones(2)}, "decoder_pred.bias (2,) (the model has (48,))")
    broken(
        {**state, "blocks.7.norm1.bias": torch.ones(16)}, "blocks.2.norm1.weight", "unexpected (blocks.7.norm1.bias)"
    )
    broken({**state, f"blocks.{'9' * 5000}.norm1.bias"[:300]: torch.ones(1)}, "unexpected")
    broken({n: v for n, v in state.items() if n != "pos_embed"}, "pos_embed is missing")
    broken({**state, "pos_embed": torch.ones(1, 16, 16)}, "15 patches", "square")
    broken({**state, "pos_embed": torch.ones(())}, "pos_embed has the shape ()")
    broken({**state, "patch_embed.proj.weight": torch.ones(16, 3, 4, 2)}, "4 x 2")
    broken({**state, "norm.bias": torch.ones(16, dtype=torch.int64)}, "norm.bias is of type torch.int64")
    broken({"fc.weight": torch.ones(2, 2)}, "no masked autoencoder", "patch_embed.proj.weight is missing")
    other = hugging_face(model, "v4")
    key = "vit.encoder.layer.0.attention.attention.key.bias"
    broken({n: v for n, v in other.items() if n != key}, "missing (blocks.0.attn.qkv.bias)", "blocks.0.attn.q.bias")
    broken({**other, "norm.weight": torch.ones(16)}, "two keys mean norm.weight")
    broken({**other, "blocks.0.attn.qkv.bias": torch.ones(48)}, "unexpected (blocks.0.attn.k.bias")
    broken({**other, **hugging_face(model, "bug")}, "two keys mean decoder_blocks.0.")
    broken({**other, key: torch.ones(3)}, "blocks.0.attn.k.bias")


@pytest.mark.parametrize(
    "change",
    [
        {"heads": 3},
        {"heads": -4},
        {"heads": True},
        {"heads": None},
        {"heads": 10**400},
        {"depth": 10**9},
        {"image_size": 32},
        {"mlp_ratio": 1e300},
        {"mlp_ratio": 3.0},
        {"eps": "1e-6"},
        {"mean": 0.5},
        {"mean": [0.5]},
        {"std": [0.0, 1.0, 1.0]},
        {"std": ["a", "b", "c"]},
        {"dim": [16]},
        {"more": 1},
    ],
)
def test_a_header_of_our_own_is_not_trusted(tmp_path, change):
    path = tmp_path / "w.safetensors"
    save_file(tiny().state_dict(), path, {"rub_mae": json.dumps({**asdict(CONFIG), **change})})
    with pytest.raises(RubError) as caught:
        load_mae(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "3", "{}", "[" * 100_000, '{"heads": ' + "9" * 5000 + "}"])
def test_a_header_that_is_no_config(tmp_path, text):
    save_file(tiny().state_dict(), path := tmp_path / "w.safetensors", {"rub_mae": text})
    refused(path, "rub_mae")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("keep", [0, 8, 300, -100])
def test_truncated_files(tmp_path, name, keep):
    model, path = tiny(), tmp_path / name
    save_mae(model, path) if name == "w.safetensors" else torch.save({"model": model.state_dict()}, path)
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, "truncated")
    refused(tmp_path / "absent.pth", "no such file")


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    proof, path = tmp_path / "proof", tmp_path / "evil.pth"

    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(proof),)

    for args in (Hostile(), Namespace(norm_pix_loss=Hostile())):
        torch.save({"model": tiny().state_dict(), "args": args}, path)
        refused(path, "could run code")
    assert not proof.exists()


# Normalised targets


@pytest.mark.parametrize("args", [Namespace(norm_pix_loss=True), {"norm_pix_loss": True}])
def test_normalised_by_its_stored_args(tmp_path, args):
    torch.save({"model": tiny().state_dict(), "args": args}, tmp_path / "checkpoint-1.pth")
    refused(tmp_path / "checkpoint-1.pth", "norm_pix_loss", "stored args", "mae_visualize_vit_", **HEADS)


def test_normalised_by_config_or_name(tmp_path):
    refused(folder(tmp_path / "hub", hugging_face(tiny(), "v4"), norm_pix_loss=True), "config.json: norm_pix_loss")
    path = tmp_path / "mae_pretrain_vit_base_full.pth"
    torch.save({"model": tiny().state_dict()}, path)
    refused(path, "mae_pretrain_vit_*_full", "leak", **HEADS)
    torch.save({"model": tiny().state_dict(), "args": {"norm_pix_loss": torch.ones(2)}}, tmp_path / "odd.pth")
    assert load_mae(tmp_path / "odd.pth", **HEADS)


def scenes(count, seed=0):
    """Smooth images of many contrasts and brightnesses, uint8 (count, 3, 16, 16)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 3, 3, generator=generator) - 0.5
    smooth = nn.functional.interpolate(coarse, size=16, mode="bicubic", align_corners=True)
    contrast = torch.rand(count, 1, 1, 1, generator=generator) * 1.2
    return (
        ((smooth * contrast + 0.2 + 0.6 * torch.rand(count, 1, 1, 1, generator=generator)) * 255).clamp(0, 255).byte()
    )


def scaled(model, x):
    """The targets of norm_pix_loss, as the paper writes them."""
    patches = model.normalise(model.patchify(x))
    mean = patches.sum(-1, keepdim=True) / patches.shape[-1]
    variance = (patches - mean).square().sum(-1, keepdim=True) / (patches.shape[-1] - 1)
    return (patches - mean) / (variance + 1e-6) ** 0.5


def trained(images, normalised):
    model = MaskedAutoencoder(replace(CONFIG, dim=32, decoder_dim=32, mean=(0.5,) * 3, std=(0.25,) * 3))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    x, generator = images.float() / 255, torch.Generator().manual_seed(0)
    for _ in range(150):
        mask = make_mask(torch.rand(len(x), 16, generator=generator), 0.75)
        target = scaled(model, x) if normalised else model.normalise(model.patchify(x))
        loss = (gather(model(x, mask), mask.hidden) - gather(target, mask.hidden)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.mark.slow
@pytest.mark.parametrize("normalised", [True, False])
def test_a_trained_model_shows_its_targets(normalised, tmp_path):
    images = scenes(96)
    model = trained(images[:64], normalised)
    fresh = images[64:]
    assert looks_normalised(model, fresh, keyed_noise(torch.arange(32), 16)) is normalised
    if not normalised:
        return refuse_normalised(model, images, tmp_path)
    with pytest.raises(RubError, match="per-patch-normalised") as caught:
        refuse_normalised(model, images, tmp_path)
    assert str(tmp_path) in str(caught.value) and "64 images" in str(caught.value)


class Oracle(MaskedAutoencoder):
    """Predicts a function of the truth."""

    def __init__(self, function):
        super().__init__(CONFIG)
        self.function = function

    def forward(self, x, mask):
        truth = self.function(self, x)
        return truth + 0.5 * truth.std() * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("function", "normalised"),
    [
        (scaled, True),
        (lambda model, x: 0.3 * scaled(model, x), True),
        (lambda model, x: model.normalise(model.patchify(x)), False),
        (lambda model, x: 0.6 * model.normalise(model.patchify(x)), False),
        (lambda model, x: torch.zeros_like(model.patchify(x)), False),
        (lambda model, x: torch.full_like(model.patchify(x), 0.2), False),
        (lambda model, x: torch.randn(model.patchify(x).shape), False),
        (lambda model, x: -scaled(model, x), False),
    ],
)
def test_what_explains_the_targets(function, normalised):
    images, noise = scenes(70, seed=1), keyed_noise(torch.arange(70), 16)
    assert looks_normalised(Oracle(function), images, noise) is normalised


def test_untrained_models_and_flat_images_are_not_called_normalised():
    noise = keyed_noise(torch.arange(40), 16)
    for seed in range(3):
        assert not looks_normalised(MaskedAutoencoder(CONFIG, seed), scenes(40), noise)
        assert not looks_normalised(MaskedAutoencoder(CONFIG, seed), torch.full((40, 3, 16, 16), 7).byte(), noise)


def test_a_model_whose_reconstructions_are_not_finite_is_told_once():
    """Its weights are: so every stage that looks at it would fail in turn."""
    model = MaskedAutoencoder(CONFIG, 0)
    shown = Samples(
        torch.full((5, 3, 16, 16), 100, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64), torch.arange(5)
    )
    runtime = make_runtime(device="cpu")
    _check_outputs(model, shown, runtime)
    with torch.no_grad():
        model.decoder_pred.weight.fill_(3e38)
    with pytest.raises(Diverged, match="the reconstructions of 5 of 5 images are not finite"):
        _check_outputs(model, shown, runtime)
