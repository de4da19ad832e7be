"""Classifiers of a zoo: weights in one file, and the network that they are of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from rub.config.hyperparameters import first_error
from rub.data.samples import ImageDataset
from rub.data.selection import Selection
from rub.data.sources import load_images
from rub.data.spec import DatasetSpec, ForgetSpec, forget_set
from rub.data.splits import Splits, load_dataset, split
from rub.errors import RubError
from rub.models.lookup import hyperparameters_in
from rub.models.weights import copy_weights
from rub.store.artifacts import Artifact
from rub.tasks.classification.stages import NETWORK
from rub.tasks.classification.stages import WEIGHTS as STORED
from rub.tasks.classification.witnesses import MOST_CLASSES, claimed_network, refuse_huge
from rub.zoo.entry import WEIGHTS, Shelf, ZooModel

MOST_CHANNELS, LARGEST_SIDE = 64, 1024


def write(artifact: Artifact, inputs: Mapping[str, Artifact], out: Path, dtype: str) -> dict[str, Any]:
    """Write a classifier's weights; its network with the images' channels and side."""
    copy_weights(artifact.file(STORED), out / WEIGHTS, dtype)
    channels, size, _ = load_dataset(inputs["data"]).train.shape
    return {**artifact.json(NETWORK), "channels": channels, "size": size}


def read(folder: Path, model: ZooModel) -> nn.Module:
    """The network with its weights, in eval mode."""
    spec = dict(model.network)
    try:
        channels, size, classes = (int(part) for part in (spec.pop("channels"), spec.pop("size"), len(spec["classes"])))
        arch, mean, std = str(spec["arch"]), spec["mean"], spec["std"]
    except (KeyError, TypeError, ValueError) as error:
        raise RubError(f"{folder}: its network lacks or misstates {error}") from None
    if not (1 <= channels <= MOST_CHANNELS and 1 <= size <= LARGEST_SIDE and 1 <= classes <= MOST_CLASSES):
        raise RubError(f"{folder}: its network is of {classes} classes and images of {channels} x {size} x {size}")
    refuse_huge(hyperparameters_in(spec))
    return claimed_network({**spec, "arch": arch}, classes, channels, size, mean, std, folder / WEIGHTS)


@torch.no_grad()
def probe(network: nn.Module, model: ZooModel) -> Tensor:
    """Logits (2, classes) of a grey image and of noise."""
    shape = (int(model.network["channels"]), int(model.network["size"]), int(model.network["size"]))
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    logits: Tensor = network(torch.stack([torch.full(shape, 0.5), noise]))
    return logits


def splits_of(model: ZooModel, data_root: Path | None) -> tuple[ImageDataset, Splits]:
    """Data of a model, and what was forgotten of it.

    Raises:
        RubError: the data are not there, or the facts do not say which they are.
    """
    try:
        spec = DatasetSpec.model_validate(model.data)
        forget = forget_set(ForgetSpec.model_validate(model.forget), spec, data_root)
    except ValidationError as error:
        raise RubError(f"{model.name}: {first_error(error, 'data', DatasetSpec.model_fields)}") from None
    if spec.path is not None or spec.name in ("folder", "npz"):
        raise RubError(f"{model.name}: its data are a folder of whoever made it")
    dataset = load_images(spec.name, data_root, size=spec.size, selection=Selection.of(spec.model_dump()))
    return dataset, split(dataset, forget.model_dump(), spec.validation)


SHELF = Shelf(WEIGHTS, write, read, probe)
