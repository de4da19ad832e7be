"""A model as data: configs, tensors, noise schedule and vocabulary, whatever they are written in and read from."""

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from rub.errors import RubError
from rub.models.diffusion.files import PARTS
from rub.models.diffusion.layouts import Parts, fill, normal_state
from rub.models.diffusion.model import SCHEDULE, Diffusion
from rub.models.diffusion.tokenizer import make_tokenizer
from rub.models.weights import check_keys

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

Config = Mapping[str, Any]

SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
# Where a text encoder's weights came from and in which precision: nothing that the model consists of.
_ORIGIN = ("architectures", "dtype", "torch_dtype", "transformers_version")


@dataclass(frozen=True)
class Contents:
    """What a `Diffusion` consists of: by part, the config (None where it is not there) and normal tensors, and more.

    The tensors are in the normal form of `rub.models.diffusion.layouts`, the tokenizer is as `described` gives it.
    """

    configs: Mapping[str, Config | None]
    tensors: Parts
    schedule: Config
    tokenizer: Config


def taken_apart(model: Diffusion) -> Contents:
    """What a model consists of; the tensors are the model's own."""
    modules = {part: getattr(model, part) for part in PARTS}
    configs = {part: None if module is None else _config(part, module) for part, module in modules.items()}
    tensors = {part: normal_state(module, part) for part, module in modules.items() if module is not None}
    return Contents(configs, tensors, dict(model.schedule), described(model.tokenizer))


def put_together(contents: Contents, path: Path) -> Diffusion:
    """Model in float32 on the CPU, in eval mode; errors name `path`, where its contents were read.

    Raises:
        RubError: a config that makes no model, tensors that are not exactly those of the configs, parts that do not
            fit together, or a noise schedule or vocabulary that cannot be used.
    """
    modules = {part: _module(part, contents, path) for part in PARTS}
    try:
        tokenizer = rebuilt(contents.tokenizer)
    except Exception as error:  # whatever the tokenizer libraries raise on values that they do not expect
        raise RubError(f"checkpoint {path}: its vocabulary cannot be used: {_first(error)}") from None
    try:
        model = Diffusion(modules["unet"], modules["text_encoder"], modules["vae"], tokenizer, contents.schedule)
    except RubError as error:
        raise RubError(f"checkpoint {path}: {error}") from None
    except Exception as error:
        raise RubError(f"checkpoint {path}: its noise schedule cannot be used: {_first(error)}") from None
    return model.eval()


def noise_schedule(config: Config, path: Path) -> dict[str, Any]:
    """Noise schedule of a scheduler of any kind (PNDM, DDIM, LMS...) of plain betas, and what DDIM needs besides."""
    needed = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
    if missing := [name for name in needed if name not in config]:
        raise RubError(f"checkpoint {path}: its scheduler's config should have {', '.join(missing)}")
    if odd := [name for name in ("trained_betas", "rescale_betas_zero_snr") if config.get(name)]:
        raise RubError(f"checkpoint {path}: its scheduler's {odd[0]} is set, which is not supported; should be null")
    return {name: config.get(name, value) for name, value in SCHEDULE.items()}


def described(tokenizer: "CLIPTokenizer") -> dict[str, Any]:
    """Tokenizer as JSON values: vocabulary, merges, ``model_max_length``, special tokens, added tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    with tempfile.TemporaryDirectory() as folder:  # files are what every version of transformers writes
        (tokenizer.save_vocabulary if backend is None else backend.model.save)(folder)
        vocabulary = json.loads(Path(folder, "vocab.json").read_text(encoding="utf-8"))
        lines = Path(folder, "merges.txt").read_text(encoding="utf-8").split("\n")
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda row: row[1])
    return {
        "vocabulary": vocabulary,
        "merges": [line.split(" ") for line in lines if line and not line.startswith("#version")],
        "model_max_length": int(tokenizer.model_max_length),
        "special": {name: str(token) for name in SPECIAL if (token := getattr(tokenizer, name)) is not None},
        "added": [token for token, _ in tokens if token not in vocabulary],
    }


def rebuilt(description: Config) -> "CLIPTokenizer":
    """Tokenizer of a description, as `described` gives it."""
    merges = [(left, right) for left, right in description["merges"]]
    tokenizer = make_tokenizer(dict(description["vocabulary"]), merges, int(description["model_max_length"]))
    special = {name: token for name, token in description["special"].items() if name in SPECIAL}
    if any(getattr(tokenizer, name) != token for name, token in special.items()):
        tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(list(description["added"]))
    return tokenizer


def outline(part: str, config: Config, path: Path) -> dict[str, Tensor]:
    """Tensors of a part as its config asks for them, in the normal form, without values."""
    try:
        with torch.device("meta"):  # a file of another architecture costs no memory
            return normal_state(_BUILDERS[part](config), part)
    except Exception as error:  # whatever the libraries raise on values that they do not expect
        raise RubError(f"checkpoint {path}: the config of its {part} makes no model: {_first(error)}") from None


def check_tensors(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path, hint: str) -> None:
    """Raise `RubError` unless a state dict has exactly these keys and shapes, as floating-point numbers."""
    check_keys(state, own, path, hint)
    if odd := [name for name, value in state.items() if not value.is_floating_point()]:
        raise RubError(f"checkpoint {path}: {odd[0]} is of type {state[odd[0]].dtype}; should be floating point")


def _module(part: str, contents: Contents, path: Path) -> nn.Module | None:
    config, state = contents.configs.get(part), contents.tensors.get(part, {})
    if config is None:
        if part != "vae":
            raise RubError(f"checkpoint {path}: has no {part}; should be a whole model")
        return None
    check_tensors(state, outline(part, config, path), path, "its tensors should be those of its config")
    with torch.random.fork_rng(devices=[]):  # the libraries draw initial weights, which are then replaced
        module = _BUILDERS[part](config).float()
    fill(module, part, state)
    return module


def _unet(config: Config) -> nn.Module:
    from diffusers import UNet2DConditionModel

    return cast(nn.Module, UNet2DConditionModel.from_config(dict(config)))


def _vae(config: Config) -> nn.Module:
    from diffusers import AutoencoderKL

    from rub.models.diffusion.patches import PatchAutoencoder

    kind = PatchAutoencoder if "patch" in config else AutoencoderKL
    return cast(nn.Module, kind.from_config(dict(config)))


def _text_encoder(config: Config) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    kept = {name: value for name, value in config.items() if name not in _ORIGIN}
    return cast(nn.Module, CLIPTextModel(CLIPTextConfig(**kept)))


_BUILDERS: Mapping[str, Callable[[Config], nn.Module]] = {"unet": _unet, "text_encoder": _text_encoder, "vae": _vae}


def _config(part: str, module: Any) -> Config:
    text = module.config.to_json_string(use_diff=False) if part == "text_encoder" else module.to_json_string()
    return {name: value for name, value in json.loads(text).items() if name[0] != "_" and name not in _ORIGIN}


def _first(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
