"""From a decoded data set to the splits of a task: validation, forget, retain, test."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rub.data.samples import ImageDataset, Samples
from rub.data.selection import Selection
from rub.data.sources import load_images
from rub.data.spec import check_classes
from rub.errors import RubError
from rub.pipeline.graph import Stage
from rub.pipeline.rng import seeded
from rub.pipeline.runtime import Runtime
from rub.store.artifacts import Artifact

CHUNK = 1024  # images copied at once
_MAPPED: set[Path] = set()  # files for which this process's limit was raised
VALIDATION_SEED = 0  # one split for all experiments: seeds repeat training, never the data


@dataclass(frozen=True)
class Splits:
    """The sample sets of one experiment; training and validation are stratified by class.

    Attributes:
        forget: D_u, the forgotten training samples.
        retain: D_r, the other training samples.
        validation: held out of all training.
        test: all test samples.
        forget_classes: classes forgotten whole; empty where single samples are forgotten.
    """

    forget: Samples
    retain: Samples
    validation: Samples
    test: Samples
    forget_classes: tuple[int, ...]

    @property
    def unseen(self) -> Samples:
        """Test samples of the classes that forgotten ones are of."""
        return self.test.select(torch.isin(self.test.labels, self.forget.labels))


def save_dataset(dataset: ImageDataset, folder: Path) -> None:
    """Write a data set as arrays that can be memory-mapped."""
    for name, samples in (("train", dataset.train), ("test", dataset.test)):
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(samples), *samples.shape)}
        with (folder / f"{name}_images.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, len(samples), CHUNK):
                file.write(samples.take(slice(start, start + CHUNK)).numpy().tobytes())
        np.save(folder / f"{name}_labels.npy", samples.labels.numpy())
        np.save(folder / f"{name}_ids.npy", samples.ids.numpy())
    facts = {
        "classes": list(dataset.classes),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "flip": dataset.flip,
        "skipped": list(dataset.skipped),
    }
    (folder / "meta.json").write_text(json.dumps(facts), encoding="utf-8")


def load_dataset(artifact: Artifact) -> ImageDataset:
    """Open a data artifact written by `save_dataset`."""
    facts = artifact.json("meta.json")
    train, test = (
        Samples(
            mapped(artifact.file(f"{name}_images.npy")),
            torch.from_numpy(np.load(artifact.file(f"{name}_labels.npy"), allow_pickle=False)),
            torch.from_numpy(np.load(artifact.file(f"{name}_ids.npy"), allow_pickle=False)),
        )
        for name in ("train", "test")
    )
    mean, std = tuple(facts["mean"]), tuple(facts["std"])
    skipped = tuple(facts.get("skipped", ()))  # artifacts of 0.1.0 do not have it
    return ImageDataset(tuple(facts["classes"]), train, test, mean, std, facts["flip"], skipped)


def mapped(path: Path) -> Tensor:
    """Array of a file, without reading it: pages come and go as they are used."""
    with suppress(ImportError):  # not on Windows
        import resource

        # The system counts a private mapping as memory of the process, though its pages are the file's own.
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if soft != resource.RLIM_INFINITY and path not in _MAPPED:
            raised = soft + path.stat().st_size
            resource.setrlimit(
                resource.RLIMIT_DATA, (raised if hard == resource.RLIM_INFINITY else min(raised, hard), hard)
            )
            _MAPPED.add(path)
    return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))


def read(stage: Stage, inputs: Mapping[str, Artifact], out: Path, runtime: Runtime) -> None:
    """Stage function: decode the data set once, into arrays that later stages memory-map."""
    spec = stage.spec
    images = load_images(
        spec["name"],
        runtime.data_root,
        path=stage.files.get("path"),
        size=spec["size"],
        selection=Selection.of(spec),
        progress=runtime.progress,
    )
    save_dataset(images, out)


def input_dataset(inputs: Mapping[str, Artifact], runtime: Runtime) -> ImageDataset:
    """Data set among a stage's inputs, opened once per process."""
    return runtime.cache.get(inputs["data"].key, lambda: load_dataset(inputs["data"]))


def trainable(dataset: ImageDataset, validation: float) -> Samples:
    """Training samples that are not held out."""
    return dataset.train.select((~held_out(dataset.train.labels, validation)).nonzero()[:, 0])


def held_out(labels: Tensor, fraction: float) -> Tensor:
    """Mask, bool (N,), of a stratified share of each class, the same for every experiment.

    Raises:
        RubError: a share above 0 that is less than half an image of every class.
    """
    mask = torch.zeros(len(labels), dtype=torch.bool)
    generator = seeded(VALIDATION_SEED, "validation")
    for label in sorted(set(labels.tolist())):
        places = (labels == label).nonzero()[:, 0]
        order = torch.randperm(len(places), generator=generator)
        mask[places[order[: round(fraction * len(places))]]] = True
    if fraction and not mask.any():
        raise RubError(f"dataset.validation = {fraction:g}: holds out no image of any class; give more, or 0")
    return mask


def split(dataset: ImageDataset, forget: Mapping[str, Any], validation: float) -> Splits:
    """Splits for a forget spec (`ForgetSpec.model_dump()`)."""
    outside = held_out(dataset.train.labels, validation)
    train = dataset.train.select((~outside).nonzero()[:, 0])
    classes: tuple[int, ...] = ()
    within = torch.ones(len(train), dtype=torch.bool)
    if forget["classes"] is not None:
        check_classes(forget["classes"], len(dataset.classes), whole=forget["fraction"] is None)
        within = torch.isin(train.labels, torch.tensor(forget["classes"]))
    if forget["fraction"] is not None:
        places = within.nonzero()[:, 0]
        order = torch.randperm(len(places), generator=seeded(forget["seed"], "forget"))
        chosen = torch.zeros(len(train), dtype=torch.bool)
        chosen[places[order[: round(forget["fraction"] * len(places))]]] = True
    elif forget["classes"] is not None:
        classes, chosen = tuple(forget["classes"]), within
    else:
        wanted = torch.tensor(forget["ids"])
        strangers = wanted[~torch.isin(wanted, train.ids)]
        if len(strangers):
            raise RubError(f"forget.ids: {len(strangers)} ids are not training samples, such as {strangers[0].item()}")
        chosen = torch.isin(train.ids, wanted)
    if not chosen.any() or chosen.all():
        what = "is empty" if not chosen.any() else "is the whole training set"
        raise RubError(f"forget: the forget set {what}; there should be something to forget and something to keep")
    return Splits(
        train.select(chosen.nonzero()[:, 0]),
        train.select((~chosen).nonzero()[:, 0]),
        dataset.train.select(outside.nonzero()[:, 0]),
        dataset.test,
        classes,
    )


def training_set(dataset: ImageDataset, which: Mapping[str, Any], validation: float) -> Samples:
    """What a model is trained on: ``all`` of the training data, the ``retain`` set, or that and a ``dose``.

    A dose of p percent holds at least one image, and all of any smaller dose of the same seed.
    """
    if which["kind"] == "all":
        return trainable(dataset, validation)
    parts = split(dataset, which["forget"], validation)
    if which["kind"] == "retain":
        return parts.retain
    count = max(round(which["percent"] / 100 * len(parts.forget)), 1)
    order = torch.randperm(len(parts.forget), generator=seeded(which["seed"], "dose"))
    given = torch.isin(dataset.train.ids, torch.cat([parts.retain.ids, parts.forget.ids[order[:count]]]))
    return dataset.train.select(given.nonzero()[:, 0])


def subset(samples: Samples, count: int | None, stream: str) -> Samples:
    """Fixed random subset of at most `count` samples, in order of their place; all when None."""
    if count is None or count >= len(samples):
        return samples
    order = torch.randperm(len(samples), generator=seeded(0, stream))[:count]
    return samples.select(order.sort().values)
