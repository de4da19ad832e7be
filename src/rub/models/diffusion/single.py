"""A whole model in one file: CompVis's layout, in which Stable Diffusion 1.x and 2.x were first published.

The file holds tensors alone. Configs, noise schedule and tokenizer come from a diffusers folder of the same model.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from rub.errors import RubError
from rub.models.diffusion import compvis
from rub.models.diffusion.folders import read_frame
from rub.models.diffusion.layouts import Parts, named_normally
from rub.models.diffusion.model import Diffusion
from rub.models.diffusion.parts import Contents, outline, put_together
from rub.models.weights import read_state

_VAE, _CLIP, _OPEN_CLIP = "first_stage_model.", "cond_stage_model.transformer.", "cond_stage_model.model."
_AVERAGE = "model_ema."
# Of training; no part of the model.
_LEFT_OUT = (
    "first_stage_model.loss.",
    "cond_stage_model.logit_scale",
    f"{_AVERAGE}decay",
    f"{_AVERAGE}num_updates",
)
# How files of other models begin, which look alike.
_OTHERS = {
    "conditioner.embedders.": "SDXL (two text encoders)",
    "model.diffusion_model.double_blocks.": "FLUX",
    "double_blocks.": "FLUX",
    "model.diffusion_model.joint_blocks.": "Stable Diffusion 3",
    "text_encoders.": "Stable Diffusion 3",
}
_CLOSE = 1e-3  # of alpha_bar, which files may hold in half precision


def load_single(file: Path, config: Path) -> Diffusion:
    """The model in one file, with the configs and the tokenizer of a diffusers folder.

    Where the file holds a running mean of the UNet beside its weights (``model_ema.``), that is the model: it is what
    people draw with, and what diffusers' folders hold. Methods that train from such a file begin with the weights.
    Weights without a mean were not trained.

    Raises:
        RubError: no such file, code in a pickle, a model of another kind, a part that is not there, a key of no known
            layout, or a noise schedule that is not the folder's.
    """
    state = read_state(file)
    for start, name in _OTHERS.items():
        if any(key.startswith(start) for key in state):
            raise RubError(
                f"checkpoint {file}: is {name}, which RUB does not measure; give Stable Diffusion 1.x or 2.x"
            )
    frame = read_frame(config)
    model = put_together(replace(frame, tensors=_split(state, frame, file)), file)
    said = state.get("alphas_cumprod", model.alpha_bar).float()
    if said.shape != model.alpha_bar.shape or (said - model.alpha_bar).abs().max() > _CLOSE:
        raise RubError(f"checkpoint {file}: another noise schedule than {config} has; give the configs of this model")
    return model


def _split(state: Mapping[str, Tensor], frame: Contents, file: Path) -> Parts:
    given: dict[str, dict[str, Tensor]] = {start: {} for start in (compvis.PREFIX, _VAE, _CLIP, _OPEN_CLIP)}
    unknown = []
    for key, value in state.items():
        start = next((start for start in given if key.startswith(start)), None)
        if start is not None and not key.startswith(_LEFT_OUT):
            given[start][key.removeprefix(start)] = value
        elif "." in key and not key.startswith(_LEFT_OUT):  # without a dot: buffers of the schedule
            unknown.append(key)
    means = {f"{_AVERAGE}diffusion_model{name.replace('.', '')}": name for name in given[compvis.PREFIX]}
    if unknown := [key for key in unknown if key not in means]:
        raise RubError(f"checkpoint {file}: {len(unknown)} keys of no known layout ({', '.join(unknown[:3])})")
    if given[_CLIP] and given[_OPEN_CLIP]:
        raise RubError(f"checkpoint {file}: holds two text encoders ({_CLIP}, {_OPEN_CLIP}); should hold one")
    unet = {name: state.get(mean, given[compvis.PREFIX][name]) for mean, name in means.items()}
    parts = {"unet": unet, "vae": given[_VAE], "text_encoder": given[_CLIP] or given[_OPEN_CLIP]}
    configs = {part: config for part, config in frame.configs.items() if config is not None}
    if absent := [part for part in configs if not parts[part]]:
        missing = " and no ".join(absent)
        raise RubError(f"checkpoint {file}: holds no {missing}; should be a whole model in CompVis's layout")
    if more := [part for part in parts if parts[part] and part not in configs]:
        raise RubError(f"checkpoint {file}: holds a {more[0]}, for which there is no config")
    names = {part: outline(part, config, file) for part, config in configs.items()}
    made = {
        "unet": compvis.from_compvis(parts["unet"], names["unet"], configs["unet"]),
        "vae": compvis.vae_from_compvis(parts["vae"], names.get("vae", {})),
    }
    if twice := [part for part in made if len(made[part]) < len(parts[part])]:
        raise RubError(f"checkpoint {file}: two keys mean the same tensor of its {twice[0]}; keep those of one layout")
    parts |= made
    if given[_OPEN_CLIP]:
        parts["text_encoder"] = compvis.encoder_from_open_clip(parts["text_encoder"], names["text_encoder"])
    return {part: named_normally(parts[part], part, file) for part in configs}
