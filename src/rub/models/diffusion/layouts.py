"""Names of the weights that people publish: UNets, text encoders of every version of transformers, autoencoders.

Inside RUB a part's tensors go by one normal form: diffusers' names for UNet and autoencoder, and for the text encoder
those of transformers 5.6 and later (``embeddings.token_embedding.weight``). Files hold the text encoder under the
published names of all checkpoints, ``text_model.embeddings...``, which every version of transformers reads.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rub.errors import RubError
from rub.models.diffusion import compvis
from rub.models.diffusion.files import PARTS
from rub.models.diffusion.model import Diffusion

Parts = dict[str, dict[str, Tensor]]
"""Part (``unet``, ``text_encoder``, ``vae``) -> its tensors in the normal form."""

_UNET = {"conv_in", "time_embedding", "down_blocks", "mid_block", "up_blocks", "conv_norm_out", "conv_out"}
_ENCODER = {"embeddings", "encoder", "final_layer_norm"}
_REPEATED = {"embedding", *_ENCODER}  # UnlearnDiffAtk's CustomTextEncoder names its encoder's modules twice
_WRAPPERS = ("module.", "_orig_mod.", "unet.")
_BESIDE = ("first_stage_model.", "model_ema.")  # of a whole latent diffusion model
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_ATTENTION = re.compile(r"(.*\.attentions\.\d+\.)(query|key|value|proj_attn)\.(weight|bias)")
_TRAINING = re.compile(r"optimi[sz]er|scheduler|scaler|callback|loops|rng")
_FORMS = (
    "a UNet or a part of one (diffusers' or CompVis names), a text encoder (text_model....), an adapter (SPM; LoRA of"
    " kohya, peft or diffusers), or a diffusers folder"
)


def normal_state(module: nn.Module, part: str) -> dict[str, Tensor]:
    """Tensors of a part in the normal form."""
    return _normal(module.state_dict(), part)


def named_normally(state: Mapping[str, Tensor], part: str, path: Path) -> dict[str, Tensor]:
    """State dict of a part, as its published files hold it, in the normal form; no two keys may mean one tensor."""
    made = _normal(state, part)
    if len(made) < sum(not _dropped(name, part) for name in state):
        raise _doubled(part, path)
    return made


def fill(module: nn.Module, part: str, given: Mapping[str, Tensor]) -> None:
    """Copy tensors in the normal form into a part; those that are not given stay what they are."""
    own = module.state_dict()
    module.load_state_dict({name: given.get(_rename(name, part), value) for name, value in own.items()})


def published(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Tensors in the normal form under the names that files hold: ``text_model.`` in front for the encoder."""
    return {f"text_model.{name}" if part == "text_encoder" else name: value for name, value in state.items()}


def split(state: Mapping[str, Tensor], original: Diffusion, path: Path) -> Parts:
    """Tensors of a published state dict by part, in the normal form; every key is accounted for.

    Of a whole latent diffusion model in CompVis names, the autoencoder, the running mean of the UNet and the buffers
    of the noise schedule are left out: no method changes them. Of UnlearnDiffAtk's CustomTextEncoder, which repeats
    modules, the keys below ``text_encoder.`` are taken. The original gives the UNet's config.

    Raises:
        RubError: a key of no known layout, or two keys that mean the same tensor.
    """
    refuse_families(state, path)
    found: Parts = {}
    unknown = []
    for key, name in _counting(state).items():
        part, inner = _part(name)
        if not part:
            unknown.append(key)
        elif inner in found.setdefault(part, {}):
            raise _doubled(inner, path)
        else:
            found[part][inner] = state[key]
    if unknown or not found:
        first = ", ".join((unknown or list(state))[:3])
        raise RubError(f"checkpoint {path}: {len(unknown)} keys of no known layout ({first}); should be {_FORMS}")
    if (old := found.pop("compvis", None)) is not None:
        made = compvis.from_compvis(old, original.unet.state_dict(), original.unet.config)
        if len(made) < len(old) or made.keys() & found.get("unet", {}).keys():
            raise _doubled(next(iter(made)), path)
        found.setdefault("unet", {}).update(made)
    return {part: named_normally(tensors, part, path) for part, tensors in found.items()}


def named_beside(beside: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """State dicts that lie in a file beside the one that was taken out of it, each key with its part's name in front.

    What training leaves (optimizer, scheduler...) is nothing of the model.

    Raises:
        RubError: tensors under another name, which would be left out in silence.
    """
    made: dict[str, Tensor] = {}
    for name, value in beside.items():
        if not _has_tensors(value) or _TRAINING.search(name):
            continue
        part, flat = name.removesuffix("_state_dict"), isinstance(value, Mapping)
        if part not in PARTS or not flat or not all(isinstance(tensor, Tensor) for tensor in value.values()):
            raise RubError(f"checkpoint {path}: holds tensors under '{name}' too; should be under {', '.join(PARTS)}")
        made |= {f"{part}.{key}": tensor for key, tensor in value.items()}
    return made


def _has_tensors(value: Any) -> bool:
    waiting, seen = [value], set[int]()
    while waiting:  # a pickle's lists may hold each other, and themselves
        one = waiting.pop()
        if isinstance(one, Tensor):
            return True
        if isinstance(one, Mapping | list | tuple) and id(one) not in seen:
            seen.add(id(one))
            waiting += one.values() if isinstance(one, Mapping) else one
    return False


_FAMILIES = {
    "Flux": re.compile(r"(.*[._])?(double_blocks|single_blocks|single_transformer_blocks)[._].*"),
    "Stable Diffusion 3": re.compile(r"(.*\.)?joint_blocks\..*|(.*\.)?transformer_blocks\.\d+\.attn\.add_q_proj\..*"),
    "Stable Diffusion XL": re.compile(
        r"conditioner\.embedders\..*|(.*\.)?add_embedding\..*|(.*\.)?label_emb\..*|text_encoder_2\..*|lora_te2_.*"
    ),
}


def refuse_families(names: Iterable[str], path: Path) -> None:
    """Raise `RubError` for keys of models that RUB does not measure, by their names."""
    for name in names:
        for family, pattern in _FAMILIES.items():
            if pattern.fullmatch(name):
                raise RubError(
                    f"checkpoint {path}: keys of {family} ({name[:80]}), which RUB does not measure; give one of Stable"
                    " Diffusion 1.x or 2.x"
                )


def _counting(state: Mapping[str, Tensor]) -> dict[str, str]:
    names = {key: _unwrapped(key) for key in state}
    whole = any(name.startswith(compvis.PREFIX) for name in names.values())
    repeated = any(name.startswith("text_encoder.") for name in names.values())
    return {
        key: name
        for key, name in names.items()
        if not (whole and ("." not in name or name.startswith(_BESIDE)))
        and not (repeated and name.split(".")[0] in _REPEATED)
    }


def _doubled(what: str, path: Path) -> RubError:
    return RubError(f"checkpoint {path}: two keys mean the same tensor ({what}); keep those of one layout")


def _part(name: str) -> tuple[str, str]:
    for prefix, part in (("text_encoder.", "text_encoder"), ("cond_stage_model.transformer.", "text_encoder")):
        if name.startswith(prefix):
            return part, name.removeprefix(prefix)
    root = name.split(".", maxsplit=1)[0]
    if root == "vae":
        return "vae", name.removeprefix("vae.")
    if name.startswith(compvis.PREFIX) or root in compvis.ROOTS:
        return "compvis", name
    if root == "text_model" or root in _ENCODER:
        return "text_encoder", name
    return ("unet" if root in _UNET else ""), name


def _unwrapped(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.split(".", 1)[1]
    return name


def _normal(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {_rename(name, part): value for name, value in state.items() if not _dropped(name, part)}


def _dropped(name: str, part: str) -> bool:
    return part == "text_encoder" and name.endswith("embeddings.position_ids")


def _rename(name: str, part: str) -> str:
    if part == "text_encoder":
        return name.removeprefix("text_model.")
    if part == "vae" and (match := _ATTENTION.fullmatch(name)):  # diffusers before 0.12, and Stable Diffusion 1.4
        return f"{match[1]}{_OLD_ATTENTION[match[2]]}.{match[3]}"
    return name
