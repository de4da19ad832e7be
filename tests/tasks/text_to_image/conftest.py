"""Diffusion models of few weights, untrained: enough for equations, formats and contracts; one of them in the shape of
Stable Diffusion 1.4, with all that its folder has.
"""

import json
import re
from itertools import product
from pathlib import Path

import pytest

WORDS = [
    "a photo of the digit seven", "a photo of the digit eight", "a drawing of the digit one on paper",
    "a photo of a church", "a church in the snow", "a photo of a chapel", "a photo of a garbage truck",
]  # fmt: skip


def nano(seed=0, *, arch="sd-nano", channels=1, size=8, length=16):
    """Build a fresh model."""
    from rub.models.diffusion.mini import build_mini
    from rub.models.diffusion.tokenizer import make_tokenizer, train_vocabulary

    tokenizer = make_tokenizer(*train_vocabulary(WORDS * 2, 700), length)
    return build_mini(arch, channels=channels, size=size, tokenizer=tokenizer, seed=seed)


@pytest.fixture
def model():
    """A fresh, trainable model of 8 x 8 grey pixels without an autoencoder."""
    return nano()


@pytest.fixture
def make_model():
    """The builder itself, for other seeds and sizes."""
    return nano


@pytest.fixture(scope="session")
def image_classifier(tmp_path_factory):
    """A tiny image classifier in transformers' format that knows two of the concepts."""
    folder = tmp_path_factory.mktemp("judge")
    import torch
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification, MobileNetV2ImageProcessor

    labels = {0: "tench, Tinca tinca", 1: "church, church building", 2: "parachute, chute"}
    config = MobileNetV2Config(image_size=32, depth_multiplier=0.35, id2label=labels)
    with torch.random.fork_rng():
        torch.manual_seed(2)  # untrained, it says one class of some pictures and another of others
        MobileNetV2ForImageClassification(config).save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    try:
        MobileNetV2ImageProcessor(**size).save_pretrained(folder)
    except ImportError:  # of its fast variant, which needs torchvision
        (folder / "preprocessor_config.json").write_text(
            json.dumps({"image_processor_type": "MobileNetV2ImageProcessor", "do_resize": True, "do_rescale": True,
                        "do_normalize": True, "do_center_crop": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
                        **size}), encoding="utf-8",
        )  # fmt: skip
    return folder


# Stable Diffusion 1.4's own configs, with fewer channels: UNet 320, 640, 1280, 1280 wide, 8 heads, 64 latents a side;
# autoencoder 128, 256, 512, 512 wide; text encoder 768 wide, 12 layers, 12 heads.
UNET = {
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.2.2", "act_fn": "silu", "attention_head_dim": 8,
    "block_out_channels": [32, 32, 64, 64], "center_input_sample": False, "cross_attention_dim": 32,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "downsample_padding": 1,
    "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1,
    "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4, "sample_size": 8,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}  # fmt: skip
VAE = {
    "_class_name": "AutoencoderKL", "_diffusers_version": "0.2.2", "act_fn": "silu",
    "block_out_channels": [32, 32, 64, 64], "down_block_types": ["DownEncoderBlock2D"] * 4, "in_channels": 3,
    "latent_channels": 4, "layers_per_block": 2, "out_channels": 3, "sample_size": 64,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
TEXT_ENCODER = {
    "architectures": ["CLIPTextModel"], "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2,
    "hidden_act": "quick_gelu", "hidden_size": 32, "initializer_factor": 1.0, "initializer_range": 0.02,
    "intermediate_size": 64, "layer_norm_eps": 1e-05, "max_position_embeddings": 77, "model_type": "clip_text_model",
    "num_attention_heads": 4, "num_hidden_layers": 2, "pad_token_id": 1, "torch_dtype": "float32",
    "transformers_version": "4.22.0.dev0", "vocab_size": 49408,
}  # fmt: skip
SCHEDULER = {
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.7.0.dev0", "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False,
    "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None, "clip_sample": False,
}  # fmt: skip
INDEX = {
    "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.2.2",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "PNDMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}  # fmt: skip
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def vocabulary_of_clips_size():
    """49,408 tokens: those of the prompts' words, and pairs of letters that no text is likely to have."""
    from rub.models.diffusion.tokenizer import BOS, EOS, train_vocabulary
    from rub.tasks.text_to_image.captions import vocabulary_texts

    tokens, merges = train_vocabulary(vocabulary_texts([("church", "chapel"), ("tench",)]), 2000)
    made = [token for token in tokens if token not in (BOS, EOS)]
    known = set(made)
    letters = made[:256]
    for left, right in product(letters, letters):
        if len(made) == 49406:
            break
        if left + right not in known:
            made.append(left + right)
            merges.append((left, right))
    return {token: place for place, token in enumerate([*made, BOS, EOS])}, merges


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory):
    """A folder as CompVis/stable-diffusion-v1-4 has it, with random weights: what the hub gives, but for the sizes."""
    import safetensors.torch
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from rub.models.diffusion.tokenizer import BOS, EOS, write_vocabulary

    folder = Path(tmp_path_factory.mktemp("sd-v1-4"))
    configs = {"unet": UNET, "vae": VAE, "text_encoder": TEXT_ENCODER}
    for name in (*configs, "scheduler", "tokenizer", "safety_checker", "feature_extractor"):
        (folder / name).mkdir()
    for name, config in configs.items():
        (folder / name / "config.json").write_text(json.dumps(config))
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    (folder / "safety_checker" / "config.json").write_text(
        json.dumps({"architectures": ["StableDiffusionSafetyChecker"]})
    )
    (folder / "safety_checker" / "pytorch_model.bin").write_bytes(b"not read")
    (folder / "feature_extractor" / "preprocessor_config.json").write_text("{}")
    write_vocabulary(*vocabulary_of_clips_size(), folder / "tokenizer")
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": EOS}
    own = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True, **special}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(own))
    (folder / "tokenizer" / "special_tokens_map.json").write_text(json.dumps(special))

    torch.manual_seed(0)
    unet, vae = UNet2DConditionModel.from_config(UNET), AutoencoderKL.from_config(VAE)
    encoder = CLIPTextModel(CLIPTextConfig(**{name: value for name, value in TEXT_ENCODER.items() if name[0] != "_"}))
    states = {"unet": unet.state_dict(), "vae": {}, "text_encoder": {}}
    for name, value in vae.state_dict().items():
        stem, _, leaf = name.rpartition(".")
        new = next((end for end in OLD_ATTENTION if ".attentions." in stem and stem.endswith(f".{end}")), "")
        states["vae"][f"{stem.removesuffix(new)}{OLD_ATTENTION.get(new, '')}.{leaf}"] = value
    for name, value in encoder.state_dict().items():
        states["text_encoder"][f"text_model.{name.removeprefix('text_model.')}"] = value
    states["text_encoder"]["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    files = dict.fromkeys(("unet", "vae"), "diffusion_pytorch_model") | {"text_encoder": "model"}
    for part, state in states.items():
        made = {name: value.contiguous() for name, value in state.items()}
        safetensors.torch.save_file(made, folder / part / f"{files[part]}.safetensors", {"format": "pt"})
    return folder


LDM_VAE = [
    ("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2"),
    ("mid_block.attentions.0", "mid.attn_1"), ("conv_norm_out", "norm_out"), ("conv_shortcut", "nin_shortcut"),
    (".resnets.", ".block."), (".downsamplers.0.", ".downsample."), (".upsamplers.0.", ".upsample."),
    ("down_blocks", "down"), ("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"),
    ("to_out.0", "proj_out"),
]  # fmt: skip


@pytest.fixture(scope="session")
def sd_model(sd_folder):
    """The model of that folder."""
    from rub.models.diffusion.checkpoints import load_model

    return load_model(sd_folder)


@pytest.fixture(scope="session")
def sd_ldm(sd_model):
    """Its tensors as CompVis's sd-v1-4.ckpt names them."""
    import torch

    from rub.models.diffusion.checkpoints import to_compvis

    state = to_compvis(sd_model.unet.state_dict(), sd_model.unet.config)
    for name, value in sd_model.vae.state_dict().items():
        inner = re.sub(r"up_blocks\.(\d)", lambda found: f"up.{3 - int(found[1])}", name)
        for new, old in LDM_VAE:
            inner = inner.replace(new, old)
        matrix = ".attn_1." in inner and value.ndim == 2
        state[f"first_stage_model.{inner}"] = (value[:, :, None, None] if matrix else value).contiguous()
    text = "cond_stage_model.transformer.text_model."
    for name, value in sd_model.text_encoder.state_dict().items():
        state[text + name.removeprefix("text_model.")] = value
    state |= {f"{text}embeddings.position_ids": torch.arange(77)[None], "alphas_cumprod": sd_model.alpha_bar.clone()}
    return {**state, "betas": torch.ones(1000), "model_ema.decay": torch.ones(())}
