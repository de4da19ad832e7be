"""Classifiers of a zoo: weights in one file, and the network that they are of."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rub.data.splits import load_dataset
from rub.errors import RubError
from rub.models.formats.classifier import load_weights
from rub.models.lookup import claimed_arch, hyperparameters_in
from rub.models.network import build_network
from rub.store.artifacts import Artifact
from rub.tasks.classification.stages import NETWORK
from rub.tasks.classification.stages import WEIGHTS as STORED
from rub.zoo.entry import WEIGHTS, Shelf, ZooModel


def write(artifact: Artifact, inputs: Mapping[str, Artifact], out: Path, dtype: str) -> dict[str, Any]:
    """Write a classifier's weights; its network with the images' channels and side."""
    file = artifact.file(STORED)
    if dtype == "float32":
        shutil.copyfile(file, out / WEIGHTS)  # the very bytes that were measured
    else:
        kind: torch.dtype = getattr(torch, dtype)
        made = {name: value.to(kind) if value.is_floating_point() else value for name, value in load_file(file).items()}
        save_file(made, out / WEIGHTS)
    channels, size, _ = load_dataset(inputs["data"]).train.shape
    return {**artifact.json(NETWORK), "channels": channels, "size": size}


def read(folder: Path, model: ZooModel) -> nn.Module:
    """The network with its weights, in eval mode."""
    spec = dict(model.network)
    try:
        channels, size, classes = int(spec.pop("channels")), int(spec.pop("size")), len(spec["classes"])
        made = build_network(
            claimed_arch(spec), num_classes=classes, channels=channels, size=size, mean=spec["mean"], std=spec["std"],
            **hyperparameters_in(spec),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise RubError(f"{folder}: its network lacks or misstates {error}") from None
    load_weights(folder / WEIGHTS, made)
    return made.eval()


@torch.no_grad()
def probe(network: nn.Module, model: ZooModel) -> Tensor:
    """Logits (2, classes) of a grey image and of noise."""
    shape = (int(model.network["channels"]), int(model.network["size"]), int(model.network["size"]))
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    logits: Tensor = network(torch.stack([torch.full(shape, 0.5), noise]))
    return logits


SHELF = Shelf(write, read, probe)
