"""Classifiers of a zoo: weights in one file, and the network that they are of."""

import json
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
from rub.models import hf, timm
from rub.models.lookup import UNSAID, claimed_arch, hyperparameters_in
from rub.models.network import Normalised
from rub.models.weights import copy_weights
from rub.store.artifacts import Artifact
from rub.tasks.classification.stages import NETWORK, load_model
from rub.tasks.classification.stages import WEIGHTS as STORED
from rub.tasks.classification.witnesses import MOST_CLASSES, claimed_network, refuse_huge
from rub.zoo.audits import forgotten_classes_of, images_of
from rub.zoo.entry import WEIGHTS, Shelf, ZooModel

MOST_CHANNELS, LARGEST_SIDE = 64, 1024
_ELSEWHERE = {"stem", "width", "channels", "size"}  # hyperparameters that have an option of an audit, or none


def write(artifact: Artifact, inputs: Mapping[str, Artifact], out: Path, dtype: str) -> dict[str, Any]:
    """Write a classifier's weights; its network with the images' channels and side is returned.

    What transformers or timm need to read it is written beside the weights where the architecture is theirs.
    """
    copy_weights(artifact.file(STORED), out / WEIGHTS, dtype)
    dataset, facts = load_dataset(inputs["data"]), artifact.json(NETWORK)
    channels, size, _ = dataset.train.shape
    model = load_model(artifact, dataset)
    if isinstance(model, Normalised):  # transformers and timm read their own architectures
        classes, mean, std = [*map(str, facts["classes"])], model.mean.flatten().tolist(), model.std.flatten().tolist()
        for library in (hf, timm):
            for name, content in library.described(model.network, classes, mean, std).items():
                (out / name).write_text(f"{json.dumps(content, indent=1)}\n", encoding="utf-8")
    return {**facts, "channels": channels, "size": size}


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


def audited(folder: Path, model: ZooModel) -> Path:
    """The model's folder."""
    return folder


def unsaid(original: ZooModel, given: Mapping[str, Any]) -> dict[str, Any]:
    """Network, normalisation, images and forgotten classes of an original, as options of an audit."""
    known = images_of(original, given) | forgotten_classes_of(original, given)
    network = original.network
    if given.get("arch") or given.get("network"):
        return known
    own = {name: value for name, value in hyperparameters_in(network).items() if name not in _ELSEWHERE}
    known |= {"arch": claimed_arch(network), "parameters": ",".join(f"{name}={value}" for name, value in own.items())}
    if given.get("stem", UNSAID["stem"]) == UNSAID["stem"] and network.get("stem") is not None:
        known["stem"] = network["stem"]
    facts = ((name, network.get(name)) for name in ("width", "mean", "std") if not given.get(name))
    return known | {name: value for name, value in facts if value is not None}


SHELF = Shelf(WEIGHTS, write, read, probe, audited, unsaid)
