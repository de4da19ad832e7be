"""Masked autoencoders of a zoo: one file of weights, whose header has their sizes."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rub.errors import RubError
from rub.models.mae.checkpoints import load_mae
from rub.models.mae.masks import keyed_noise, make_mask
from rub.models.mae.model import MaskedAutoencoder
from rub.models.weights import copy_weights
from rub.store.artifacts import Artifact
from rub.tasks.inpainting.stages import WEIGHTS as STORED
from rub.zoo.audits import forgotten_classes_of, images_of
from rub.zoo.entry import Shelf, ZooModel

WEIGHTS = "mae.safetensors"  # not `model.safetensors`, which transformers would take for its own


def write(artifact: Artifact, inputs: Mapping[str, Artifact], out: Path, dtype: str) -> dict[str, Any]:
    """Write an autoencoder's weights."""
    file = artifact.file(STORED)
    copy_weights(file, out / WEIGHTS, dtype)
    return asdict(load_mae(file).config)


def read(folder: Path, model: ZooModel) -> nn.Module:
    """The autoencoder, in eval mode."""
    return load_mae(folder / WEIGHTS).eval()


@torch.no_grad()
def probe(network: nn.Module, model: ZooModel) -> Tensor:
    """Patches that are filled in for a grey image of which half is masked."""
    if not isinstance(network, MaskedAutoencoder):
        raise RubError(f"{model.name}: no masked autoencoder")
    config = network.config
    images = torch.full((1, config.channels, config.image_size, config.image_size), 0.5)
    mask = make_mask(keyed_noise(torch.tensor([0]), config.patches, 0), 0.5)
    made: Tensor = network(images, mask)
    return made


def audited(folder: Path, model: ZooModel) -> Path:
    """The model's file of weights."""
    return folder / WEIGHTS


def unsaid(original: ZooModel, given: Mapping[str, Any]) -> dict[str, Any]:
    """Images and forgotten classes of an original, as options of an audit; the file's header says its sizes."""
    return images_of(original, given) | forgotten_classes_of(original, given)


SHELF = Shelf(WEIGHTS, write, read, probe, audited, unsaid)
