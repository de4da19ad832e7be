"""The diffusers layout of a model: a folder with a subfolder for each part."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch

from rub.errors import RubError
from rub.models.diffusion.files import PARTS, PIPELINE, SCHEDULER
from rub.models.diffusion.layouts import named_normally, normal_state, published
from rub.models.diffusion.model import SCHEDULE, Diffusion
from rub.models.diffusion.parts import Config, Contents, described, noise_schedule
from rub.models.diffusion.tokenizer import write_vocabulary
from rub.models.files import weights_file
from rub.models.weights import read_state

_CLASSES = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "scheduler": ("diffusers", "DDIMScheduler"),
}
_PATCHES = "PatchAutoencoder"  # of RUB's own miniatures; a pipeline of diffusers does not read it
_ABSENT = ("safety_checker", "feature_extractor", "image_encoder")


def save_pipeline(model: Diffusion, folder: Path) -> None:
    """Write a model as ``diffusers.StableDiffusionPipeline.from_pretrained`` reads it, without a safety checker.

    The text encoder goes by its published names and the tokenizer lies there in both forms, so that transformers 4
    and 5 read the folder. A model without an autoencoder has no ``vae``; `rub.models.diffusion.checkpoints.load_model`
    reads it, a pipeline does not. A folder with files in it is refused.
    """
    from diffusers import DDIMScheduler

    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise RubError(f"folder {folder}: holds files already; give an empty or a new one")
    for part in ("unet", "vae"):
        if getattr(model, part) is not None:
            getattr(model, part).save_pretrained(folder / part)
    _write_text_encoder(model, folder / "text_encoder")
    model.tokenizer.save_pretrained(folder / "tokenizer")
    words = described(model.tokenizer)
    write_vocabulary(words["vocabulary"], [(left, right) for left, right in words["merges"]], folder / "tokenizer")
    schedule = {name: value for name, value in model.schedule.items() if name in SCHEDULE}
    DDIMScheduler(**schedule).save_pretrained(folder / "scheduler")
    (folder / PIPELINE).write_text(json.dumps(_index(model), indent=2), encoding="utf-8")


def read_folder(folder: Path) -> Contents:
    """What the model in a diffusers folder consists of; a safety checker is ignored.

    Of the scheduler only the noise schedule is taken. Nothing is downloaded, and no code of the folder is run.
    """
    frame = read_frame(folder)
    present = [part for part in PARTS if frame.configs[part] is not None]
    tensors = {part: named_normally(read_state(weights_file(folder / part)), part, folder / part) for part in present}
    return replace(frame, tensors=tensors)


def read_frame(folder: Path) -> Contents:
    """All of a diffusers folder but its weights, which need not be there: configs, noise schedule, tokenizer."""
    from transformers import CLIPTokenizer

    index = read_json(folder / PIPELINE)
    if "text_encoder_2" in index:
        raise RubError(
            f"checkpoint {folder}: {index.get('_class_name')} has two text encoders (SDXL and its kin), which RUB does"
            " not measure; give Stable Diffusion 1.x or 2.x"
        )
    configs: dict[str, Config | None] = {}
    for part in PARTS:
        listed = index.get(part)
        kind = listed[-1] if isinstance(listed, list) and listed else None  # [library, class]
        if part == "vae" and kind is None:
            configs[part] = None
            continue
        if kind != _CLASSES[part][1] and (part, kind) != ("vae", _PATCHES):
            raise RubError(f"checkpoint {folder}: its {part} is of kind {kind}; should be {_CLASSES[part][1]}")
        configs[part] = read_json(folder / part / "config.json")
    schedule = noise_schedule(read_json(folder / SCHEDULER), folder)
    try:
        tokenizer = described(CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True))
    except Exception as error:  # whatever the library raises on files that it does not expect
        raise RubError(
            f"checkpoint {folder}: its tokenizer cannot be read ({type(error).__name__}); should be a CLIP tokenizer:"
            " vocab.json and merges.txt, or tokenizer.json"
        ) from None
    return Contents(configs, {}, schedule, tokenizer)


def read_json(file: Path) -> dict[str, Any]:
    """JSON object in a file; `RubError` where there is none."""
    if not file.is_file():
        raise RubError(f"checkpoint {file}: no such file; a diffusers folder should have it")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise RubError(f"checkpoint {file}: should hold a JSON object")
    return values


def _write_text_encoder(model: Diffusion, folder: Path) -> None:
    model.text_encoder.config.save_pretrained(folder)
    tensors = published(normal_state(model.text_encoder, "text_encoder"), "text_encoder")
    made = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    safetensors.torch.save_file(made, folder / "model.safetensors", {"format": "pt"})


def _index(model: Diffusion) -> dict[str, Any]:
    import diffusers

    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "requires_safety_checker": False,
        **{name: [None, None] for name in _ABSENT},
        **{name: [None, None] if getattr(model, name, 0) is None else list(kind) for name, kind in _CLASSES.items()},
    }
