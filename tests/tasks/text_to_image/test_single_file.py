"""A whole model in one file of CompVis's layout, against diffusers' own converters and the folder of the same model."""

import json
import pickle
import re
import shutil
import sys
from types import ModuleType

import pytest
import safetensors.torch
import torch

from rub.errors import RubError
from rub.models.diffusion.checkpoints import load_model, load_unlearned, save_model
from rub.pipeline.graph import in_order
from rub.tasks.text_to_image.audit import TextToImageAudit
from rub.tasks.text_to_image.task import TASK

pytestmark = pytest.mark.slow

OPEN_CLIP = [
    ("encoder.layers.", "transformer.resblocks."), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"),
    ("self_attn.out_proj", "attn.out_proj"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
    ("final_layer_norm", "ln_final"), ("embeddings.token_embedding", "token_embedding"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
]  # fmt: skip


def renamed(name, pairs):
    for new, old in pairs:
        name = name.replace(new, old)
    return name


def encoder(model):
    return {name.removeprefix("text_model."): value for name, value in model.text_encoder.state_dict().items()}


def open_clip(state, layers):
    """The encoder's tensors under OpenCLIP's names, with one layer more than the model has, as SD 2.x publishes it."""
    made, joined = {}, {}
    for name, value in state.items():
        if match := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)", name):
            joined.setdefault((match[1], match[3]), {})[match[2]] = value
        else:
            made[renamed(name, OPEN_CLIP)] = value
    for (layer, kind), parts in joined.items():
        made[f"transformer.resblocks.{layer}.attn.in_proj_{kind}"] = torch.cat([parts[part] for part in "qkv"])
    extra = {
        name.replace(".0.", f".{layers}.", 1): torch.randn_like(value)
        for name, value in made.items() if name.startswith("transformer.resblocks.0.")
    }  # fmt: skip
    made |= extra | {"text_projection": torch.randn(32, 32), "logit_scale": torch.tensor(4.6)}
    return {f"cond_stage_model.model.{name}": value.contiguous() for name, value in made.items()}


def same(one, other):
    sides = [
        {**made.unet.state_dict(), **made.vae.state_dict(), **encoder(made), "alpha": made.alpha_bar}
        for made in (one, other)
    ]
    return sides[0].keys() == sides[1].keys() and all(torch.equal(sides[0][name], sides[1][name]) for name in sides[0])


def without(state, *starts):
    return {name: value for name, value in state.items() if not name.startswith(starts)}


def test_a_file_holds_what_diffusers_converts_it_to(sd_model, sd_ldm):
    """So that the file which these tests write is one that others would read."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    unet = convert_ldm_unet_checkpoint(dict(sd_ldm), dict(sd_model.unet.config))
    vae = convert_ldm_vae_checkpoint(dict(sd_ldm), dict(sd_model.vae.config))
    for made, module in ((unet, sd_model.unet), (vae, sd_model.vae)):
        own = module.state_dict()
        assert made.keys() == own.keys() and all(torch.equal(made[name], own[name]) for name in own)


@pytest.mark.parametrize("form", ["model.safetensors", "model.ckpt", "half.safetensors"])
def test_a_file_with_the_configs_of_its_folder_is_that_model(sd_model, sd_ldm, sd_folder, tmp_path, form):
    state = {name: value.half() for name, value in sd_ldm.items()} if form.startswith("half") else sd_ldm
    path = tmp_path / form
    if form.endswith("ckpt"):
        torch.save({"state_dict": state, "epoch": 3, "global_step": 7, "optimizer_states": []}, path)
    else:
        safetensors.torch.save_file(state, path)
    made = load_model(path, sd_folder)
    assert not made.training
    assert made.tokenize(["an old church"]).tolist() == sd_model.tokenize(["an old church"]).tolist()
    if not form.startswith("half"):
        assert same(made, sd_model)
        return
    assert all(value.dtype == torch.float32 for value in made.state_dict().values())
    name = "down_blocks.0.resnets.0.conv1.weight"
    assert torch.equal(made.unet.state_dict()[name], sd_model.unet.state_dict()[name].half().float())


def test_the_running_mean_goes_before_the_weights(sd_model, sd_ldm, sd_folder, tmp_path):
    start = "model.diffusion_model."
    means = {
        f"model_ema.diffusion_model{name.removeprefix(start).replace('.', '')}": value
        for name, value in sd_ldm.items() if name.startswith(start)
    }  # fmt: skip
    noisy = {name: value + 1 if name.startswith(start) else value for name, value in sd_ldm.items()}
    safetensors.torch.save_file(noisy | means, tmp_path / "full-ema.safetensors")
    assert same(load_model(tmp_path / "full-ema.safetensors", sd_folder), sd_model)


def test_open_clips_encoder_of_stable_diffusion_2(sd_model, sd_ldm, sd_folder, tmp_path):
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    own = encoder(sd_model)
    state = without(sd_ldm, "cond_stage_model.") | open_clip(own, 2)
    converted = convert_open_clip_checkpoint(sd_model.text_encoder, dict(state))
    kept = {name.removeprefix("text_model."): value for name, value in converted.items()}
    assert all(torch.equal(kept[name], value) for name, value in own.items() if name in kept)
    assert len(own.keys() - kept.keys()) <= 1, "position ids at most"
    safetensors.torch.save_file(state, tmp_path / "v2-1.safetensors")
    assert same(load_model(tmp_path / "v2-1.safetensors", sd_folder), sd_model)


@pytest.fixture
def lightning(monkeypatch):
    """Lightning's class, as pickles name it; only the one who writes the file has it."""
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.callbacks.model_checkpoint"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))

    class ModelCheckpoint:
        pass

    ModelCheckpoint.__module__, ModelCheckpoint.__qualname__ = name, "ModelCheckpoint"
    sys.modules[name].ModelCheckpoint = ModelCheckpoint
    return ModelCheckpoint


class Runs:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return eval, (f"open({str(self.marker)!r}, 'w').close()",)


def test_lightnings_own_file_is_read_and_code_in_one_does_not_run(sd_ldm, sd_folder, tmp_path, lightning, monkeypatch):
    path = tmp_path / "sd-v1-4.ckpt"
    torch.save({"state_dict": sd_ldm, "callbacks": {lightning: {"best_model_path": ""}}}, path)
    monkeypatch.undo()
    load_model(path, sd_folder)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    torch.save({"state_dict": sd_ldm, "callbacks": {"x": Runs(tmp_path / "ran")}}, path)
    with pytest.raises(RubError, match="could run code and are not loaded"):
        load_model(path, sd_folder)
    assert not (tmp_path / "ran").exists()


FAULTS = {
    "no encoder": (lambda state: without(state, "cond_stage_model."), "holds no text_encoder; should be a whole"),
    "no vae": (lambda state: without(state, "first_stage_model."), "holds no vae"),
    "unet alone": (lambda state: without(state, "first_", "cond_"), "holds no text_encoder and no vae"),
    "less": (lambda state: without(state, "first_stage_model.quant_conv.bias"), "1 missing .quant_conv.bias"),
    "stray": (lambda state: {**state, "embedding_manager.x": torch.ones(1)}, "1 keys of no known layout .embedding_m"),
    "mean": (lambda state: {**state, "model_ema.diffusion_modelx": torch.ones(1)}, "no known layout .model_ema.diff"),
    "two layouts": (
        lambda state: {**state, "first_stage_model.encoder.conv_norm_out.bias": torch.ones(64)},
        "two keys mean the same tensor of its vae",
    ),
    "two encoders": (
        lambda state: {**state, "cond_stage_model.model.ln_final.bias": torch.ones(32)}, "holds two text encoders",
    ),
    "more": (lambda state: {**state, "first_stage_model.x": torch.ones(1)}, "1 unexpected"),
    "schedule": (lambda state: {**state, "alphas_cumprod": torch.ones(1000)}, "another noise schedule than"),
    "sdxl": (lambda state: {**state, "conditioner.embedders.0.x": torch.ones(1)}, "is SDXL .two text encoders."),
    "sd3": (lambda state: {"model.diffusion_model.joint_blocks.0.x": torch.ones(1)}, "is Stable Diffusion 3"),
    "flux": (lambda state: {"double_blocks.0.x": torch.ones(1)}, "is FLUX"),
    "joined": (
        lambda state: without(state, "cond_") | {"cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias":
                                                 torch.ones(4)}, "missing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_is_named_in_one_line(sd_ldm, sd_folder, tmp_path, fault):
    change, said = FAULTS[fault]
    safetensors.torch.save_file(change(sd_ldm), tmp_path / "model.safetensors")
    with pytest.raises(RubError, match=said) as error:
        load_model(tmp_path / "model.safetensors", sd_folder)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


# Plans and audits.


@pytest.fixture
def original(sd_ldm, tmp_path, image_classifier, monkeypatch):
    """The file, and the graph of an audit of it with some config."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = tmp_path / "sd-v1-4.safetensors"
    safetensors.torch.save_file(sd_ldm, path)

    def plan(config, weights=path):
        request = TextToImageAudit(
            original=str(weights), config=config and str(config), unlearned=path, concept="church",
            judge_weights=str(image_classifier),
        )  # fmt: skip
        graph = TASK.graph(request.experiment(), None, request.models()).graph()
        return next(stage for stage in in_order(graph.stages) if stage.label == "import the original")

    return plan


def test_the_key_is_made_of_the_file_and_of_the_configs_alone(original, sd_folder, tmp_path):
    frame = tmp_path / "frame"
    shutil.copytree(sd_folder, frame, ignore=shutil.ignore_patterns("*.safetensors", "*.bin", "safety_checker"))
    before = original(sd_folder)
    assert original(frame).key == before.key
    config = json.loads((frame / "unet" / "config.json").read_text())
    (frame / "unet" / "config.json").write_text(json.dumps({**config, "freq_shift": 1}))
    assert original(frame).key != before.key


def test_what_a_plan_refuses(original, sd_folder, tmp_path, sd_model):
    for config, weights, said in (
        (None, None, "model.weights .*sd-v1-4.safetensors: tensors alone; name the folder or hub id"),
        (sd_folder, sd_folder, "model.config .*: is for weights in one file"),
        (tmp_path / "sd-v1-4.safetensors", None, "is a file; should be a diffusers folder"),
        (tmp_path, None, "has no model_index.json; should be a diffusers folder, with weights or without"),
        ("no/where", None, "model.config no/where: not in the hub's cache"),
        (None, tmp_path / "no.ckpt", "no.ckpt: no such file or folder"),
    ):
        with pytest.raises(RubError, match=said) as error:
            original(config, **({} if weights is None else {"weights": weights}))
        assert "\n" not in str(error.value)
    save_model(sd_model, tmp_path / "own.safetensors")
    assert original(None, tmp_path / "own.safetensors").spec["sha256"].keys() == {"own.safetensors"}


def test_a_file_is_an_unlearned_model_too(sd_model, sd_ldm, tmp_path):
    changed = {name: value + 0.1 if "attn2" in name else value for name, value in sd_ldm.items()}
    safetensors.torch.save_file(changed, tmp_path / "esd.safetensors")
    made = load_unlearned(sd_model, tmp_path / "esd.safetensors")
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    assert torch.equal(made.unet.state_dict()[name], sd_model.unet.state_dict()[name] + 0.1)
