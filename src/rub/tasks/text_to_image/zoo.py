"""Text-to-image models of a zoo: a diffusers folder of the whole model, and the guidance of what acts while drawing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rub.errors import RubError
from rub.models.diffusion.checkpoints import load_model, load_unlearned, save_pipeline
from rub.models.diffusion.guidance import read_guidance
from rub.models.diffusion.model import Diffusion, frozen
from rub.store.artifacts import Artifact
from rub.tasks.text_to_image.stages import MODEL, weights_of
from rub.zoo.audits import images_of
from rub.zoo.entry import Shelf, ZooModel

GUIDANCE = "guidance.json"


def write(artifact: Artifact, inputs: Mapping[str, Artifact], out: Path, dtype: str) -> dict[str, Any]:
    """Write a whole model, in diffusers' layout; what a method changed alone is put into its original first."""
    file = artifact.file(weights_of(artifact))
    changed = "unlearned.json" in artifact.manifest["files"]
    model = load_unlearned(load_model(inputs["original"].file(MODEL)), file) if changed else load_model(file)
    if model.guidance is not None:
        (out / "guidance").mkdir()
        (out / "guidance" / GUIDANCE).write_text(f"{model.guidance.describe()}\n", encoding="utf-8")
    place = out / "model"
    save_pipeline(model.to(getattr(torch, dtype)), place)
    for part in sorted(place.iterdir()):
        part.rename(out / part.name)
    place.rmdir()
    return {"latent": list(model.latent_shape), "length": int(model.tokenizer.model_max_length)}


def read(folder: Path, model: ZooModel) -> nn.Module:
    """The model, with its guidance, in float32."""
    made = load_model(folder)
    if f"guidance/{GUIDANCE}" in model.files:
        made = frozen(made)
        made.guidance = read_guidance(folder / "guidance" / GUIDANCE)
    return made


@torch.no_grad()
def probe(network: nn.Module, model: ZooModel) -> Tensor:
    """The noise that is predicted in pure noise for an empty prompt, (1, C, H, W)."""
    if not isinstance(network, Diffusion):
        raise RubError(f"{model.name}: no text-to-image model")
    noise = torch.randn(1, *network.latent_shape, generator=torch.Generator().manual_seed(0))
    return network.predict(noise, network.timesteps // 2, network.context([""]))


def audited(folder: Path, model: ZooModel) -> Path:
    """The model's folder, or the guidance that it acts by."""
    guidance = f"guidance/{GUIDANCE}"
    return folder / guidance if guidance in model.files else folder


def unsaid(original: ZooModel, given: Mapping[str, Any]) -> dict[str, Any]:
    """Concept and pictures of an original, as options of an audit."""
    concept = {name: original.forget.get(name) for name in ("name", "prompt")}
    known = {"concept": concept["name"], "prompt": concept["prompt"], **images_of(original, given)}
    return {name: value for name, value in known.items() if value is not None and not given.get(name)}


SHELF = Shelf("", write, read, probe, audited, unsaid)
