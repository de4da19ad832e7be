"""Models on disk: bit for bit, in every layout that people publish, and nothing half-read."""

import json
import os
import shutil
from copy import deepcopy

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from rub.errors import Diverged, RubError
from rub.models.diffusion.adapters import attach, merge
from rub.models.diffusion.checkpoints import (
    load_model,
    load_unlearned,
    save_model,
    save_pipeline,
    save_unlearned,
    to_compvis,
)
from rub.models.diffusion.model import SCHEDULE, Diffusion, frozen

TEXTS = ["A photo of the digit seven!", "an  unseen garbage-truck", ""]


def tensors(model):
    """All tensors by name, whatever the version of transformers."""
    state = {f"unet.{name}": value for name, value in model.unet.state_dict().items()}
    state |= {f"text.{name.removeprefix('text_model.')}": v for name, v in model.text_encoder.state_dict().items()}
    state |= {} if model.vae is None else {f"vae.{name}": value for name, value in model.vae.state_dict().items()}
    return state | {"alpha_bar": model.alpha_bar}


def same(one, other):
    one, other = tensors(one), tensors(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def moved(model, *, unet=(), text=False, seed=1):
    """A copy whose tensors with one of these strings in their names (or those of the encoder) are noisy."""
    made, generator = frozen(model), torch.Generator().manual_seed(seed)
    chosen = [v for name, v in made.unet.state_dict().items() if any(part in name for part in unet)]
    chosen += list(made.text_encoder.state_dict().values()) if text else []
    for value in chosen:
        value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return made


def encoder(model, prefix="text_model."):
    """The encoder's state dict under the published names."""
    state = model.text_encoder.state_dict()
    return {prefix + name.removeprefix("text_model."): value.clone() for name, value in state.items()}


def one_line(error):
    return "\n" not in str(error.value) and len(str(error.value)) < 600


# Whole models.


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sd-nano", "sd-latent"])
@pytest.mark.parametrize("way", ["file", "folder"])
def test_a_saved_model_comes_back_bit_for_bit(make_model, tmp_path, arch, way):
    model = make_model(3, arch=arch, channels=3, size=16)
    (save_model if way == "file" else save_pipeline)(model, tmp_path / "m.safetensors")
    before = torch.random.get_rng_state()
    made = load_model(tmp_path / "m.safetensors")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same(made, model)
    assert made.schedule == model.schedule
    assert made.latent_shape == model.latent_shape
    assert not made.training
    assert torch.equal(made.tokenize(TEXTS), model.tokenize(TEXTS))
    with torch.no_grad():
        x = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
        assert torch.equal(made.predict(x, 5, made.context(TEXTS[:1])), model.predict(x, 5, model.context(TEXTS[:1])))


def test_the_file_has_published_names_and_readable_configs(model, tmp_path):
    save_model(model, tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "pt") as opened:
        names, facts = set(opened.keys()), opened.metadata()
    assert "text_encoder.text_model.embeddings.token_embedding.weight" in names
    assert {name.split(".")[0] for name in names} == {"unet", "text_encoder"}
    assert json.loads(facts["unet"])["block_out_channels"] == [16, 32]
    assert json.loads(facts["vae"]) is None
    assert json.loads(facts["schedule"]) == dict(SCHEDULE)
    assert json.loads(facts["tokenizer"])["vocabulary"] == model.tokenizer.get_vocab()
    assert json.loads(facts["tokenizer"])["model_max_length"] == 16


def test_the_same_model_gives_the_same_bytes(model, tmp_path):
    made = set()
    for place in range(6):
        save_model(model, tmp_path / f"{place}.safetensors")
        made.add((tmp_path / f"{place}.safetensors").read_bytes())
    assert len(made) == 1


def test_another_schedule_and_padding_token_are_kept(model, tmp_path):
    """As Stable Diffusion 2, which pads with '!'."""
    from rub.models.diffusion.tokenizer import make_tokenizer, train_vocabulary

    tokenizer = make_tokenizer(*train_vocabulary(["a photo"] * 2, 700), 16)
    tokenizer.add_special_tokens({"pad_token": "!"})
    tokenizer.add_tokens(["<s1>"])
    schedule = {**SCHEDULE, "beta_end": 0.02, "num_train_timesteps": 100}
    other = Diffusion(model.unet, model.text_encoder, None, tokenizer, schedule)
    save_model(other, tmp_path / "m.safetensors")
    made = load_model(tmp_path / "m.safetensors")
    assert made.schedule == schedule
    assert torch.equal(made.alpha_bar, other.alpha_bar)
    assert made.tokenizer.pad_token_id == 0
    prompts = ["a photo! <s1>", "a"]
    assert torch.equal(made.tokenize(prompts), other.tokenize(prompts))


@pytest.fixture
def small(make_model):
    return make_model(5, arch="sd-latent", channels=3, size=32)


@pytest.mark.slow
def test_diffusers_reads_the_folder_and_draws_the_same_picture(small, tmp_path):
    import numpy as np
    from diffusers import StableDiffusionPipeline

    from rub.models.diffusion.sampling import Sampler, initial_latents, sample

    save_pipeline(small, tmp_path / "p")
    pipe = StableDiffusionPipeline.from_pretrained(
        tmp_path / "p", safety_checker=None, requires_safety_checker=False, local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)
    noise = initial_latents(small, torch.tensor([1, 2]))
    prompts, weights = TEXTS[:2], torch.full((2,), 7.5)
    with torch.no_grad():
        contexts = small.context(prompts), small.context([""])
    ours = small.to_images(sample(small, *contexts, noise, weights, Sampler("ddim", 3)))
    theirs = pipe(prompts, num_inference_steps=3, guidance_scale=7.5, latents=noise, output_type="np").images
    theirs = (np.asarray(theirs) * 255).transpose(0, 3, 1, 2)
    assert np.abs(ours.numpy() - theirs).max() <= 1
    assert ours.float().std() > 1  # not an empty picture


def test_the_folder_serves_both_versions_of_transformers(small, tmp_path):
    save_pipeline(small, tmp_path / "p")
    assert {"vocab.json", "merges.txt"} <= {file.name for file in (tmp_path / "p" / "tokenizer").iterdir()}
    names = safetensors.torch.load_file(tmp_path / "p" / "text_encoder" / "model.safetensors")
    assert all(name.startswith("text_model.") for name in names)
    with pytest.raises(RubError, match="holds files already"):
        save_pipeline(small, tmp_path / "p")


@pytest.mark.slow
def test_folders_as_others_publish_them_are_read(small, tmp_path):
    """PNDM, a safety checker, pickled or half-precision weights, vocab.json alone, old names of the VAE's attention."""
    from diffusers import AutoencoderKL

    small.vae = AutoencoderKL.from_config({**small.vae.config, "mid_block_add_attention": True})
    save_pipeline(small, tmp_path / "p")
    folder = tmp_path / "p"
    index = json.loads((folder / "model_index.json").read_text())
    index |= {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", "PNDM"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "set_alpha_to_one", "steps_offset")
    config = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "trained_betas": None, "clip_sample": False}
    config |= {name: SCHEDULE[name] for name in names}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    (folder / "tokenizer" / "tokenizer.json").unlink()

    vae = folder / "vae" / "diffusion_pytorch_model.safetensors"
    renames = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = safetensors.torch.load_file(vae)
    for new, name in renames.items():
        old = {key.replace(f".{new}.", f".{name}."): value for key, value in old.items()}
    assert "decoder.mid_block.attentions.0.query.weight" in old
    torch.save(old, folder / "vae" / "diffusion_pytorch_model.bin")
    vae.unlink()
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    halves = {name: value.half() for name, value in safetensors.torch.load_file(unet).items()}
    safetensors.torch.save_file(halves, unet.with_name("diffusion_pytorch_model.fp16.safetensors"))
    unet.unlink()

    made = load_model(folder)
    small.unet.half().float()
    assert same(made, small)
    assert made.schedule == small.schedule
    assert torch.equal(made.tokenize(TEXTS), small.tokenize(TEXTS))


def edited(name, **changes):
    def edit(folder):
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return edit


FAULTY = {
    "no weights": (lambda p: (p / "unet" / "diffusion_pytorch_model.safetensors").unlink(), "no weights"),
    "no encoder": (lambda p: shutil.rmtree(p / "text_encoder"), "text_encoder/config.json: no such file"),
    "no tokenizer": (lambda p: shutil.rmtree(p / "tokenizer"), "its tokenizer cannot be read"),
    "no index": (lambda p: (p / "model_index.json").unlink(), "no model_index.json"),
    "other sizes": (edited("unet/config.json", block_out_channels=[16, 64]), "misshapen"),
    "impossible sizes": (edited("unet/config.json", norm_num_groups=7), "makes no model"),
    "other kind": (edited("model_index.json", unet=["diffusers", "SD3Transformer2DModel"]), "of kind SD3Transformer"),
    "sample": (edited("scheduler/scheduler_config.json", prediction_type="sample"), "predicts 'sample'; should be"),
    "two encoders": (edited("model_index.json", text_encoder_2=["transformers", "X"]), "has two text encoders"),
    "betas": (edited("scheduler/scheduler_config.json", trained_betas=[0.1]), "trained_betas is set"),
    "schedule": (edited("scheduler/scheduler_config.json", beta_schedule="cubic"), "noise schedule cannot be used"),
    "no JSON": (lambda p: (p / "unet" / "config.json").write_text("[]"), "should hold a JSON object"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTY)
def test_a_faulty_folder_is_named_in_one_line(model, tmp_path, fault):
    save_pipeline(model, tmp_path / "p")
    spoil, said = FAULTY[fault]
    spoil(tmp_path / "p")
    with pytest.raises(RubError, match=said) as error:
        load_model(tmp_path / "p")
    assert one_line(error)
    assert str(tmp_path) in str(error.value)


@pytest.mark.slow
def test_a_tampered_file_is_named_in_one_line(model, tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(model, path)
    state = safetensors.torch.load_file(path)
    with safe_open(path, "pt") as opened:
        facts = opened.metadata()
    wider = json.dumps({**json.loads(facts["unet"]), "cross_attention_dim": 64})
    without = {name: value for name, value in state.items() if "conv_out" not in name}
    cases = [
        (state, {**facts, "unet": wider}, "misshapen"),
        (without, facts, "2 missing .conv_out"),
        ({**state, "extra.weight": torch.zeros(1)}, facts, "unexpected key 'extra.weight'"),
        ({**state, "unet.extra": torch.zeros(1)}, facts, "1 unexpected"),
        ({**state, "unet.conv_out.bias": torch.zeros(1, dtype=torch.int64)}, facts, "floating point"),
        (state, {**facts, "schedule": "[]"}, "its header should hold"),
        (state, {**facts, "tokenizer": "{}"}, "its vocabulary cannot be used"),
        (state, {name: value for name, value in facts.items() if name != "vae"}, "its header should hold"),
        (state, {**facts, "text_encoder": "null"}, "its header should hold"),
        (state, {}, "a state dict alone"),
    ]
    for held, header, said in cases:
        safetensors.torch.save_file(held, path, header)
        with pytest.raises(RubError, match=said) as error:
            load_model(path)
        assert one_line(error)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RubError, match="truncated"):
        load_model(path)
    with pytest.raises(RubError, match="no such file"):
        load_model(tmp_path / "absent.safetensors")


# Unlearned models as they are published.


UNETS = {
    "pt": lambda state: state,
    "prefix": lambda state: {f"unet.{name}": value for name, value in state.items()},
    "parallel": lambda state: {f"module.{name}": value for name, value in state.items()},
    "compiled": lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state},
    "unet": lambda state: {"unet": state},
    "both": lambda state: {"unet": {f"module.{name}": value for name, value in state.items()}},
}


@pytest.mark.slow
@pytest.mark.parametrize("form", UNETS)
def test_a_unet_is_read_in_every_wrapping(model, tmp_path, form):
    made = moved(model, unet=[""])
    torch.save(UNETS[form](made.unet.state_dict()), tmp_path / "esd.pt")
    read = load_unlearned(model, tmp_path / "esd.pt")
    assert same(read, made)
    assert not same(read, model)
    assert not any(parameter.requires_grad for parameter in read.parameters())


@pytest.mark.parametrize("prefix", ["", "unet."])
def test_a_part_of_a_unet_leaves_the_rest_as_it_was(model, tmp_path, prefix):
    made = moved(model, unet=["attn2.to_k"])
    part = {f"{prefix}{name}": value for name, value in made.unet.state_dict().items() if "attn2.to_k" in name}
    safetensors.torch.save_file(part, tmp_path / "uce.safetensors")
    before = deepcopy(tensors(model))
    assert same(load_unlearned(model, tmp_path / "uce.safetensors"), made)
    assert all(torch.equal(before[name], value) for name, value in tensors(model).items())


def test_half_precision_is_read_as_the_originals_precision(model, tmp_path):
    state = {name: value.half() for name, value in moved(model, unet=[""]).unet.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "half.safetensors")
    made = load_unlearned(model, tmp_path / "half.safetensors").unet.state_dict()
    assert all(value.dtype == torch.float32 and torch.equal(value, state[name].float()) for name, value in made.items())


SD_LIKE = {
    "block_out_channels": (8, 16, 16, 16),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "cross_attention_dim": 8,
    "attention_head_dim": 4,
}


@pytest.mark.parametrize("arch", ["sd-nano", "sd-medium", "stable-diffusion"])
def test_compvis_names_are_those_that_diffusers_converts(make_model, arch):
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    unet = UNet2DConditionModel(**SD_LIKE) if arch == "stable-diffusion" else make_model(arch=arch).unet
    state = unet.state_dict()
    theirs = to_compvis(state, unet.config)
    assert len(theirs) == len(state)
    back = convert_ldm_unet_checkpoint(dict(theirs), dict(unet.config))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_stable_diffusions_own_compvis_names_are_met():
    """Names as they stand in sd-v1-4.ckpt."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(**SD_LIKE)
    names = {name.removeprefix("model.diffusion_model.") for name in to_compvis(unet.state_dict(), unet.config)}
    assert {
        "time_embed.2.bias", "input_blocks.0.0.weight", "input_blocks.3.0.op.weight", "out.2.weight",
        "input_blocks.4.0.skip_connection.weight", "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
        "middle_block.1.proj_in.weight", "middle_block.2.out_layers.3.weight", "output_blocks.2.1.conv.weight",
        "output_blocks.5.2.conv.weight", "output_blocks.11.1.proj_out.bias",
    } <= names  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("form", ["prefixed", "bare", "ldm", "part", "wrapped"])
def test_compvis_files_are_read(make_model, tmp_path, form):
    model = make_model(arch="sd-mini")
    made = moved(model, unet=["attn2"] if form == "part" else [""], text=form == "ldm")
    state = to_compvis(made.unet.state_dict(), model.unet.config)
    if form == "bare":
        state = {name.removeprefix("model.diffusion_model."): value for name, value in state.items()}
    if form == "part":
        state = {name: value for name, value in state.items() if "attn2" in name}
    if form == "ldm":
        state |= encoder(made, "cond_stage_model.transformer.text_model.")
        state |= {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(16)[None]}
        state |= {name: torch.ones(4) for name in ("betas", "first_stage_model.encoder.x", "model_ema.decay")}
    torch.save({"state_dict": state} if form == "wrapped" else state, tmp_path / "compvis.pt")
    assert same(load_unlearned(model, tmp_path / "compvis.pt"), made)


def custom(model):
    """UnlearnDiffAtk's CustomTextEncoder names its encoder's modules twice."""
    state = encoder(model, "text_encoder.text_model.")
    for name in list(state):
        inner = name.removeprefix("text_encoder.text_model.")
        state[inner.replace("embeddings.", "embedding.", 1)] = state[name]
    return {**state, "text_encoder.text_model.embeddings.position_ids": torch.arange(16)[None]}


ENCODERS = {
    "transformers 4": encoder,
    "transformers 5": lambda model: encoder(model, ""),
    "whole": lambda model: encoder(model, "text_encoder.text_model."),
    "whole, flat": lambda model: encoder(model, "text_encoder."),
    "parallel": lambda model: encoder(model, "module.text_model."),
    "positions": lambda model: {**encoder(model), "text_model.embeddings.position_ids": torch.arange(16)[None]},
    "custom": custom,
}


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
@pytest.mark.parametrize("form", ENCODERS)
def test_a_text_encoder_is_read_under_the_names_of_every_version(model, tmp_path, form, ending):
    made, path = moved(model, text=True), tmp_path / f"advunlearn.{ending}"
    state = {name: value.clone() for name, value in ENCODERS[form](made).items()}
    torch.save(state, path) if ending == "pt" else safetensors.torch.save_file(state, path)
    read = load_unlearned(model, path)
    assert same(read, made)
    assert not same(read, model)


def test_names_of_the_other_version_of_transformers_are_read(model, tmp_path):
    """Those load nothing at all in torch's lenient way."""
    made, old = moved(model, text=True), next(iter(model.text_encoder.state_dict())).startswith("text_model.")
    state = encoder(made, "" if old else "text_model.")
    with pytest.raises(RuntimeError, match="Missing key"):
        model.text_encoder.load_state_dict(state)
    assert len(model.text_encoder.load_state_dict(state, strict=False).missing_keys) == len(state)
    torch.save(state, tmp_path / "te.pt")
    assert same(load_unlearned(model, tmp_path / "te.pt"), made)


def test_keys_that_a_lenient_loader_would_skip_are_refused(model, tmp_path):
    state = {f"other.{name}": value for name, value in encoder(model).items()}
    assert set(model.text_encoder.load_state_dict(state, strict=False).unexpected_keys) == set(state)  # loads nothing
    torch.save(state, tmp_path / "te.pt")
    with pytest.raises(RubError, match=r"20 keys of no known layout \(other.text_model.embeddings") as error:
        load_unlearned(model, tmp_path / "te.pt")
    assert one_line(error)
    partly = encoder(model)
    del partly["text_model.final_layer_norm.bias"]
    torch.save(partly, tmp_path / "te.pt")
    with pytest.raises(RubError, match=r"1 missing \(final_layer_norm.bias\)"):
        load_unlearned(model, tmp_path / "te.pt")


def test_folders_of_one_part_are_read(model, tmp_path):
    both = moved(model, unet=["attn2"]), moved(model, text=True)
    both[0].unet.save_pretrained(tmp_path / "unet")
    both[1].text_encoder.save_pretrained(tmp_path / "encoder")
    assert same(load_unlearned(model, tmp_path / "unet"), both[0])
    assert same(load_unlearned(model, tmp_path / "encoder"), both[1])
    (tmp_path / "empty").mkdir()
    with pytest.raises(RubError, match="no weights"):
        load_unlearned(model, tmp_path / "empty")


@pytest.mark.slow
def test_whole_models_are_read(model, tmp_path):
    made = moved(model, unet=["attn1"], text=True)
    save_model(made, tmp_path / "m.safetensors")
    save_pipeline(made, tmp_path / "p")
    torch.save(made.state_dict(), tmp_path / "all.pt")
    for name in ("m.safetensors", "p", "all.pt"):
        assert same(load_unlearned(model, tmp_path / name), made)


def test_an_adapter_is_merged(model, tmp_path):
    adapter = trained(model)
    names = {name: value.half() for name, value in adapter.state.items()}
    halved = type(adapter)({name: value.float() for name, value in names.items()}, adapter.metadata)
    safetensors.torch.save_file(names, tmp_path / "spm.safetensors", dict(adapter.metadata))
    made = load_unlearned(model, tmp_path / "spm.safetensors")
    assert same(made, merge(model, halved))
    assert not same(made, model)


def trained(model):
    """An adapter that is not the identity."""
    generator = torch.Generator().manual_seed(0)
    attached = attach(model, 1, generator)
    with torch.no_grad():
        for name, value in attached.named_parameters():
            if name.endswith("up"):
                value.add_(torch.randn(value.shape, generator=generator))
    attached.remove()
    return attached.adapter(["church"])


# Several parts, several files, and low-rank changes of others.


@pytest.mark.parametrize("ending", ["", "_state_dict"])
def test_a_file_with_two_parts_changes_both(model, tmp_path, ending):
    given = moved(model, unet=("conv_in.bias",), text=True)
    state = {"unet": given.unet.state_dict(), f"text_encoder{ending}": encoder(given)}
    torch.save({**state, "optimizer": {"state": {0: torch.zeros(2)}}, "step": 3}, tmp_path / "both.pt")
    assert same(load_unlearned(model, tmp_path / "both.pt"), given)


@pytest.mark.parametrize("kind", ["sharded", "non_ema", "sharded bin"])
def test_weights_in_several_files_and_without_a_running_mean_are_read(model, tmp_path, kind):
    given = moved(model, unet=("conv_in.bias", "conv_out.bias"))
    state = {name: value.contiguous() for name, value in given.unet.state_dict().items()}
    stem, ending = "diffusion_pytorch_model", "bin" if "bin" in kind else "safetensors"
    save = torch.save if "bin" in kind else safetensors.torch.save_file
    if kind == "non_ema":
        save(state, tmp_path / f"{stem}.non_ema.{ending}")
    else:
        halves = [dict(list(state.items())[place::2]) for place in (0, 1)]
        files = [f"{stem}-0000{place}-of-00002.{ending}" for place in (1, 2)]
        for half, file in zip(halves, files, strict=True):
            save(half, tmp_path / file)
        index = {"weight_map": {name: file for half, file in zip(halves, files, strict=True) for name in half}}
        (tmp_path / f"{stem}.{ending}.index.json").write_text(json.dumps(index))
    assert same(load_unlearned(model, tmp_path), given)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"weight_map": {"a": "../secret.bin"}}, "names the file '../secret.bin'"),
        ({"weight_map": {"a": "absent.safetensors"}}, "absent.safetensors, which is not there"),
        ({"weights": {}}, "should be JSON with a weight_map"),
        ([], "should be JSON with a weight_map"),
    ],
)
def test_an_index_that_names_no_files_beside_it_is_refused(model, tmp_path, index, said):
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(RubError, match=said):
        load_unlearned(model, tmp_path)


TARGETS = {"unet": ["to_q", "to_out.0", "proj_in"], "text_encoder": ["q_proj", "fc1"]}


@pytest.fixture
def lora(model):
    """A model with W + alpha / r B A merged by peft itself, and peft's own state dicts by part."""
    import peft

    changed, states = frozen(model), {}
    for part, targets in TARGETS.items():
        config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=targets)
        wrapped = peft.get_peft_model(deepcopy(getattr(model, part)), config)
        with torch.no_grad():
            for name, value in wrapped.named_parameters():
                if "lora_B" in name:
                    value.normal_(generator=torch.Generator().manual_seed(len(name)))
        states[part] = {name: value.clone() for name, value in peft.get_peft_model_state_dict(wrapped).items()}
        setattr(changed, part, wrapped.merge_and_unload())
    return changed, states


def as_kohya(part, name):
    path, _, side = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
    path = path if part == "unet" or path.startswith("text_model.") else f"text_model.{path}"
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[part]
    return f"{prefix}{path.replace('.', '_')}.lora_{'down' if side == 'A' else 'up'}.weight"


def as_diffusers(part, name):
    return f"{part}.{name.removeprefix('base_model.model.')}"


def as_older_diffusers(part, name):
    return as_diffusers(part, name).replace("lora_A", "lora.down").replace("lora_B", "lora.up")


def close(one, other):
    mine, yours = tensors(one), tensors(other)
    assert mine.keys() == yours.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, yours[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("form", [as_kohya, as_diffusers, as_older_diffusers])
def test_a_lora_of_both_parts_is_merged_as_peft_merges_it(model, tmp_path, lora, form):
    given, states = lora
    state = {form(part, name): value for part, own in states.items() for name, value in own.items()}
    facts = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 6, "text_encoder.lora_alpha": 6})}
    if form is as_kohya:
        names = [name.removesuffix(".lora_up.weight") for name in state if name.endswith("lora_up.weight")]
        state, facts = state | {f"{name}.alpha": torch.tensor(6.0) for name in names}, {}
    safetensors.torch.save_file(state, tmp_path / "lora.safetensors", facts)
    close(load_unlearned(model, tmp_path / "lora.safetensors"), given)


@pytest.mark.slow
@pytest.mark.parametrize("part", TARGETS)
def test_a_folder_of_peft_is_merged(model, tmp_path, lora, part):
    given, states = lora
    safetensors.torch.save_file(states[part], tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 6, "r": 2}))
    wanted = frozen(model)
    setattr(wanted, part, getattr(given, part))
    close(load_unlearned(model, tmp_path), wanted)


@pytest.mark.parametrize("flag", ["use_rslora", "use_dora"])
def test_a_lora_with_another_scale_is_refused(model, tmp_path, flag):
    state = {f"base_model.model.conv_in.lora_{side}.weight": torch.ones(1, 1, 1, 1) for side in "AB"}
    safetensors.torch.save_file(state, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 6, "r": 1, flag: True}))
    with pytest.raises(RubError, match=f"{flag} is set") as error:
        load_unlearned(model, tmp_path)
    assert one_line(error)


# Files that must not load.


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("rub-was-here",)


def first_of(model, pattern):
    return next(name for name in model.unet.state_dict() if pattern in name)


WRONG = {
    "peft": (lambda m: {"base_model.model.x.lora_A.weight": torch.zeros(1, 2)}, "lora_unet_x should have both"),
    "text lora": (lambda m: {"lora_te_x.lora_down.weight": torch.zeros(1, 2)}, "lora_te_x should have both"),
    "no text": (
        lambda m: {f"lora_te_x.lora_{side}.weight": torch.zeros(1, 1) for side in ("up", "down")},
        "the text encoder has no Linear or Conv2d",
    ),
    "dora": (
        lambda m: {"unet.x.lora_A.weight": torch.zeros(1, 2), "unet.x.lora_magnitude_vector": torch.zeros(2)},
        "another kind .lora_magnitude_vector",
    ),
    "beside": (lambda m: {"unet": m.unet.state_dict(), "refiner": m.unet.state_dict()}, "tensors under 'refiner' too"),
    "loha": (lambda m: {"lora_unet_x.hada_w1_a": torch.zeros(1, 2)}, "keys of another kind .lora_unet_x.hada_w1_a"),
    "other module": (
        lambda m: {f"lora_unet_x.lora_{side}.weight": torch.zeros(1, 1) for side in ("up", "down")},
        "no Linear or Conv2d 'x'",
    ),
    "half a pair": (lambda m: {"lora_unet_conv_in.lora_up.weight": torch.zeros(16, 1, 1, 1)}, "should have both"),
    "other width": (
        lambda m: {
            "lora_unet_conv_in.lora_up.weight": torch.zeros(16, 1, 1, 1),
            "lora_unet_conv_in.lora_down.weight": torch.zeros(1, 4, 3, 3),
        },
        r"shape \(16, 4, 3, 3\), but the model has \(16, 1, 3, 3\)",
    ),
    "unfit pair": (
        lambda m: {
            "lora_unet_conv_in.lora_up.weight": torch.zeros(16, 2, 1, 1),
            "lora_unet_conv_in.lora_down.weight": torch.zeros(1, 1, 3, 3),
        },
        "do not fit together",
    ),
    "classifier": (lambda m: {"layer1.0.conv1.weight": torch.zeros(4)}, "1 keys of no known layout .layer1"),
    "extra": (lambda m: {"conv_in.bias": torch.zeros(16), "conv_in.scale": torch.ones(1)}, "1 unexpected .conv_in.sc"),
    "misshapen": (lambda m: {"conv_in.weight": torch.zeros(320, 4, 3, 3)}, r"misshapen .conv_in.weight \(320, 4, 3, 3"),
    "integers": (lambda m: {"conv_in.bias": torch.zeros(16, dtype=torch.int8)}, "conv_in.bias is of type torch.int8"),
    "compvis": (lambda m: {"model.diffusion_model.input_blocks.9.0.x": torch.zeros(1)}, "1 unexpected .input_blocks.9"),
    "twice": (lambda m: {**encoder(m), **encoder(m, "")}, "two keys mean the same tensor"),
    "twice, compvis": (
        lambda m: {**to_compvis(m.unet.state_dict(), m.unet.config), "conv_in.bias": torch.zeros(16)},
        "two keys mean the same tensor",
    ),
    "autoencoder": (lambda m: {"vae.encoder.x": torch.zeros(1)}, "holds a vae, which the original does not have"),
    "nothing": (lambda m: {"unet": {}}, "no state dict inside"),
    "no tensors": (lambda m: {"lr": 0.1}, "no state dict inside"),
    "code": (lambda m: {"conv_in.bias": Malicious()}, "could run code"),
}


@pytest.mark.slow
@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_fit_is_refused_in_one_line(model, tmp_path, monkeypatch, wrong):
    monkeypatch.chdir(tmp_path)
    make, said = WRONG[wrong]
    torch.save(make(model), tmp_path / "wrong.pt")
    with pytest.raises(RubError, match=said) as error:
        load_unlearned(model, tmp_path / "wrong.pt")
    assert one_line(error)
    assert str(tmp_path / "wrong.pt") in str(error.value)
    assert not (tmp_path / "rub-was-here").exists()


def test_damaged_and_missing_files_are_refused(model, tmp_path):
    for name in ("a.pt", "a.safetensors"):
        (tmp_path / name).write_bytes(b"\x00" * 100)
        with pytest.raises(RubError, match="truncated"):
            load_unlearned(model, tmp_path / name)
        with pytest.raises(RubError, match="no such file"):
            load_unlearned(model, tmp_path / f"x{name}")


@pytest.mark.slow
def test_other_architectures_and_vocabularies_are_refused(model, make_model, tmp_path):
    from rub.models.diffusion.tokenizer import make_tokenizer

    for arch, said in (("sd-mini", "misshapen|missing"), ("sd-latent", "vae")):
        save_model(make_model(arch=arch, channels=1), tmp_path / "m.safetensors")
        with pytest.raises(RubError, match=said) as error:
            load_unlearned(model, tmp_path / "m.safetensors")
        assert one_line(error)
    torch.save(make_model(arch="sd-mini").unet.state_dict(), tmp_path / "u.pt")
    with pytest.raises(RubError, match="should be of the original's architecture"):
        load_unlearned(model, tmp_path / "u.pt")
    vocabulary = model.tokenizer.get_vocab()
    vocabulary["!"], vocabulary["?"] = vocabulary["?"], vocabulary["!"]
    other = Diffusion(model.unet, model.text_encoder, None, make_tokenizer(vocabulary, [], 16))
    save_model(other, tmp_path / "m.safetensors")
    with pytest.raises(RubError, match="vocabulary"):
        load_unlearned(model, tmp_path / "m.safetensors")


# What a method made.


KEPT = {
    "attention": ({"unet": ["attn2"]}, "unet.safetensors", "partial-unet"),
    "unet": ({"unet": [""]}, "unet.safetensors", "unet"),
    "encoder": ({"text": True}, "text_encoder.safetensors", "text-encoder"),
    "both": ({"unet": ["attn2"], "text": True}, "model.safetensors", "model"),
    "nothing": ({}, "unet.safetensors", "unet"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", KEPT)
def test_what_changed_is_kept_in_the_smallest_format(model, tmp_path, case):
    changes, file, kind = KEPT[case]
    made = moved(model, **changes)
    path = save_unlearned(model, made, tmp_path)
    assert path == tmp_path / file
    assert [entry.name for entry in tmp_path.iterdir()] == [file]
    with safe_open(path, "pt") as opened:
        names = set(opened.keys())
        assert opened.metadata()["rub_kind"] == kind
    if case == "attention":
        assert names == {name for name in model.unet.state_dict() if "attn2" in name}
    if case == "encoder":
        assert names == set(encoder(model))
    assert same(load_unlearned(model, path), made)


def test_an_adapter_is_kept_as_one(model, tmp_path):
    adapter = trained(model)
    path = save_unlearned(model, adapter, tmp_path)
    assert path.name == "adapter.safetensors"
    with safe_open(path, "pt") as opened:
        facts = opened.metadata()
    assert facts["rub_kind"] == "adapter"
    assert (facts["prompts"], facts["rank"], facts["alpha"]) == ("church", "1", "1.0")
    assert same(load_unlearned(model, path), merge(model, adapter))


def test_weights_that_are_not_finite_diverged(model, tmp_path):
    for part in ("unet", "text_encoder"):
        made = frozen(model)
        next(iter(getattr(made, part).state_dict().values())).view(-1)[0] = float("nan")
        with pytest.raises(Diverged, match="1 of"):
            save_unlearned(model, made, tmp_path)
    adapter = trained(model)
    next(iter(adapter.state.values())).view(-1)[0] = float("inf")
    with pytest.raises(Diverged, match="not finite"):
        save_unlearned(model, adapter, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_method_that_returns_something_else_is_told(model, make_model, tmp_path):
    with pytest.raises(RubError, match="returned NoneType; should be the model or an Adapter"):
        save_unlearned(model, None, tmp_path)
    with pytest.raises(RubError, match="should be of the original's architecture"):
        save_unlearned(model, make_model(arch="sd-mini"), tmp_path)
