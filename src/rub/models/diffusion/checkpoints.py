"""Checkpoints of text-to-image models: whole ones, and what a method changed, in the formats that people publish.

Formats of whole models: RUB's own, one safetensors file with everything in it; diffusers folders; and one file in
CompVis's layout, with the configs of such a folder. Formats of unlearned models: a UNet's state dict or a part of it,
under diffusers' or CompVis names; a text encoder's, under the names of any version of transformers; an SPM adapter; or
a whole model.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from rub.errors import Diverged, RubError
from rub.models.diffusion.adapters import Adapter, is_adapter, kohya_names, merge
from rub.models.diffusion.compvis import to_compvis
from rub.models.diffusion.files import KIND, PARTS, PIPELINE, header
from rub.models.diffusion.folders import read_folder, read_json, save_pipeline
from rub.models.diffusion.guidance import read_guidance
from rub.models.diffusion.layouts import (
    Parts,
    fill,
    named_beside,
    named_normally,
    normal_state,
    published,
    split,
)
from rub.models.diffusion.model import Diffusion, frozen
from rub.models.diffusion.parts import Contents, check_tensors, described, put_together, taken_apart
from rub.models.diffusion.single import load_single
from rub.models.files import weights_file
from rub.models.weights import freeze, read_checkpoint, read_state

__all__ = ["load_model", "load_unlearned", "save_model", "save_pipeline", "save_unlearned", "to_compvis"]

_HINT = "should be of the original's architecture"


def save_model(model: Diffusion, path: Path) -> None:
    """Write everything into one safetensors file.

    Keys are ``unet.``, ``text_encoder.text_model.`` and ``vae.`` plus the names that diffusers and published text
    encoders use, whatever the version of transformers. The metadata hold, as JSON, the configs (``unet``,
    ``text_encoder``, ``vae`` or null), ``schedule`` and ``tokenizer`` (vocabulary, merges, lengths, special tokens).
    """
    contents = taken_apart(model)
    tensors = {
        f"{part}.{name}": value
        for part, state in contents.tensors.items()
        for name, value in published(state, part).items()
    }
    facts = {**{part: contents.configs[part] for part in PARTS}, "schedule": contents.schedule}
    facts["tokenizer"] = contents.tokenizer
    _write(tensors, path, "model", {name: json.dumps(value) for name, value in facts.items()})


def load_model(path: Path, config: Path | None = None) -> Diffusion:
    """Whole model, in float32, on the CPU, in eval mode: every key is accounted for.

    Nothing is downloaded, and no code in a file is run.

    Args:
        path: a file of `save_model`, or a diffusers folder (``model_index.json``); its safety checker is ignored, and
            of its scheduler only the noise schedule is used. With `config`, a file in CompVis's layout.
        config: a diffusers folder, with weights or without, that has configs and tokenizer of such a file's model.

    Raises:
        RubError: no such file, a part of a model, damaged, code in a pickle, or tensors that are not those of the
            configs.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from rub.models.diffusion.mini import build_mini
        >>> from rub.models.diffusion.tokenizer import make_tokenizer, train_vocabulary
        >>> words = make_tokenizer(*train_vocabulary(["a photo"], 520), 8)
        >>> model = build_mini("sd-nano", channels=1, size=8, tokenizer=words, seed=0)
        >>> with TemporaryDirectory() as folder:
        ...     save_model(model, Path(folder, "model.safetensors"))
        ...     load_model(Path(folder, "model.safetensors")).latent_shape
        (1, 8, 8)
    """
    path = Path(path)
    if path.is_dir() and not _is_pipeline(path):
        raise RubError(
            f"folder {path}: no {PIPELINE}; give a diffusers folder of a whole model, or a file of save_model"
        )
    if config is not None:
        return load_single(path, config)
    return put_together(read_folder(path) if _is_pipeline(path) else _read_file(path), path)


def load_unlearned(original: Diffusion, path: Path) -> Diffusion:
    """Frozen copy of the original with a published unlearned checkpoint applied; the keys tell its format.

    It is a file (safetensors, or torch's), a folder with one part's weights, a diffusers folder, a file of ours, or
    a JSON file that names a guidance (`rub.models.diffusion.guidance.read_guidance`).

    A UNet may be there in part, as ESD and UCE publish: the rest stays the original's. Of a text encoder every tensor
    has to be there. A file may hold several parts, each under its name. Adapters are merged with multiplier 1. Whole
    models are taken as they are.

    Raises:
        RubError: no such file, damaged, code in a pickle, keys of no known layout, or another architecture than the
            original's.
    """
    path = Path(path)
    if path.suffix == ".json":
        guided = frozen(original)
        guided.guidance = read_guidance(path)
        return guided
    if _is_pipeline(path) or header(path).get(KIND) == "model":
        whole = load_model(path)
        _check_alike(whole, original, path)
        return freeze(whole.to(original.device))
    state, beside = read_checkpoint(weights_file(path))
    state |= named_beside(beside, path)
    if is_adapter(state):
        try:
            return merge(original, Adapter(kohya_names(state, original, _ranks(path))))
        except RubError as error:
            raise RubError(f"checkpoint {path}: {error}") from None
    made = frozen(original)
    for part, given in split(state, original, path).items():
        _apply(made, part, given, path)
    return made


def save_unlearned(original: Diffusion, made: "Diffusion | Adapter", folder: Path) -> Path:
    """Write what a method changed, in the smallest published format that holds it, and return the file's path.

    The file is ``unet.safetensors`` (the changed tensors; all where nothing changed), ``text_encoder.safetensors``,
    ``adapter.safetensors``, ``model.safetensors``, or ``guidance.json`` of a model with a guidance; `load_unlearned`
    makes the same model of it, bit for bit.

    Raises:
        Diverged: a weight is not finite.
        RubError: the method returned something else, a model of another architecture, or guidance on changed weights.
    """
    if isinstance(made, Adapter):
        _refuse_infinite(made.state)
        return _write(made.state, folder / "adapter.safetensors", "adapter", made.metadata)
    if not isinstance(made, Diffusion):
        raise RubError(f"method: returned {type(made).__name__}; should be the model or an Adapter")
    _check_alike(made, original, folder)
    changed = {part: _changed(original, made, part) for part in _present(original)}
    parts = {part for part, tensors in changed.items() if tensors}
    if made.guidance is not None:
        if parts:
            raise RubError(f"method: guidance '{made.guidance.name}' on changed weights; should be one or the other")
        (folder / "guidance.json").write_text(made.guidance.describe() + "\n", encoding="utf-8")
        return folder / "guidance.json"
    same = made.tokenizer is original.tokenizer or described(made.tokenizer) == described(original.tokenizer)
    if not same or made.schedule != original.schedule or len(parts) > 1 or "vae" in parts:
        save_model(made, folder / "model.safetensors")
        return folder / "model.safetensors"
    if parts == {"text_encoder"}:
        whole = published(normal_state(made.text_encoder, "text_encoder"), "text_encoder")
        return _write(whole, folder / "text_encoder.safetensors", "text-encoder", {})
    whole = normal_state(made.unet, "unet")
    unet = changed["unet"] or whole
    return _write(unet, folder / "unet.safetensors", "unet" if len(unet) == len(whole) else "partial-unet", {})


def _ranks(path: Path) -> Mapping[str, Any]:
    """What a LoRA file says of itself: peft's ``adapter_config.json`` beside it, or diffusers' metadata in it."""
    beside = (path if path.is_dir() else path.parent) / "adapter_config.json"
    if beside.is_file():
        return read_json(beside)
    try:
        found = json.loads(header(weights_file(path)).get("lora_adapter_metadata", "{}"))
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


def _read_file(path: Path) -> Contents:
    state, facts = read_state(path), header(path)
    if facts.get(KIND) != "model":
        kind = f"a file of kind '{facts[KIND]}'" if KIND in facts else "a state dict alone"
        raise RubError(
            f"checkpoint {path}: not a whole model but {kind}; give a file of save_model, a diffusers folder, or with a"
            " file in CompVis's layout the folder that has its configs"
        )
    names = (*PARTS, "schedule", "tokenizer")
    try:
        values = {name: json.loads(facts[name]) for name in names}
    except (KeyError, ValueError):
        values = {}
    if not all(isinstance(value, dict) or name == "vae" for name, value in values.items()) or not values:
        raise RubError(f"checkpoint {path}: its header should hold {', '.join(names)} as JSON; write it anew")
    parts: Parts = {}
    for name, value in state.items():
        part, _, inner = name.partition(".")
        if part not in PARTS or values[part] is None:
            raise RubError(f"checkpoint {path}: unexpected key '{name}'; should be in one of {', '.join(PARTS)}")
        parts.setdefault(part, {})[inner] = value
    tensors = {part: named_normally(given, part, path) for part, given in parts.items()}
    return Contents({part: values[part] for part in PARTS}, tensors, values["schedule"], values["tokenizer"])


def _apply(made: Diffusion, part: str, given: Mapping[str, Tensor], path: Path) -> None:
    module = getattr(made, part)
    if module is None:
        raise RubError(f"checkpoint {path}: holds a {part}, which the original does not have")
    own = normal_state(module, part)
    check_tensors({**own, **given} if part == "unet" else given, own, path, _HINT)
    fill(module, part, given)


def _check_alike(made: Diffusion, original: Diffusion, path: Path) -> None:
    if _present(made) != _present(original):
        raise RubError(f"checkpoint {path}: has {_present(made)}, but the original has {_present(original)}")
    for part in _present(original):
        check_tensors(normal_state(getattr(made, part), part), normal_state(getattr(original, part), part), path, _HINT)
    if made.tokenizer is not original.tokenizer and made.tokenizer.get_vocab() != original.tokenizer.get_vocab():
        raise RubError(f"checkpoint {path}: its vocabulary is not the original's; should be the same tokens and ids")


def _present(model: Diffusion) -> list[str]:
    return [part for part in PARTS if getattr(model, part) is not None]


def _changed(original: Diffusion, made: Diffusion, part: str) -> dict[str, Tensor]:
    before, after = normal_state(getattr(original, part), part), normal_state(getattr(made, part), part)
    _refuse_infinite(after)
    return {name: value for name, value in after.items() if not torch.equal(value.to(before[name]), before[name])}


def _refuse_infinite(state: Mapping[str, Tensor]) -> None:
    if odd := [name for name, value in state.items() if not value.isfinite().all()]:
        raise Diverged(f"{len(odd)} of {len(state)} weights are not finite, {odd[0]} among them")


def _is_pipeline(path: Path) -> bool:
    return (path / PIPELINE).is_file()


def _write(tensors: Mapping[str, Tensor], path: Path, kind: str, facts: Mapping[str, str]) -> Path:
    made = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    safetensors.torch.save_file(made, path, {**facts, "format": "pt", KIND: kind})
    _sort_metadata(path)
    return path


def _sort_metadata(path: Path) -> None:
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= size  # the same characters in another order
        file.seek(8)
        file.write(text.ljust(size))
