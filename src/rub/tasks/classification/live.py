"""Audits of classifiers in memory: the stages that measure checkpoints, on a store that lasts as long as the audit."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from torch import nn

from rub.audits.base import Report, run_audit
from rub.data.base import DatasetSource, Read
from rub.data.memory import samples_of
from rub.data.samples import Samples, concatenate
from rub.errors import RubError
from rub.models.live import Live, device_of, live_copy
from rub.models.weights import save_weights
from rub.pipeline.graph_builder import FromFiles
from rub.pipeline.progress import Display
from rub.pipeline.runtime import Runtime
from rub.registry import ANY, DATASETS, NETWORKS, Entry, scoped
from rub.tasks.classification.audit import experiment_of
from rub.tasks.classification.recover import check_batch_size, check_labels

DATASET = "in-memory"


def audit(
    *,
    original: nn.Module,
    unlearned: nn.Module,
    retrained: nn.Module | None = None,
    forget: Any,
    retain: Any,
    test: Any,
    protocol: str | Mapping[str, Any] = "rub-audit-1",
    samples: int = 256,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    display: Display | None = None,
) -> Report:
    """Measure an unlearned classifier in memory against its original, and end in a verdict.

    It measures what ``rub audit classification`` measures of the same models saved as checkpoints. The modules are
    copied and stay as they are.

    Args:
        original: f, before unlearning: any module of images (N, C, H, W) in [0, 1] to logits; it normalises inside.
        unlearned: f_u, with the same classes; its architecture may differ.
        retrained: a model that never saw the forget set, if there is one.
        forget: training images of the forgotten classes, as a pair (images, labels), a `Dataset` or a `DataLoader`;
            images are uint8, or floats in [0, 1].
        retain: training images of the other classes, likewise.
        test: images that no model saw, of all classes.
        protocol: a classification protocol: its name, its file, or its fields.
        samples: forget images to attack; half as many for the controls.
        batch_size: images per forward pass; does not change results beyond rounding.
        device: where to compute; None: where `unlearned` is.
        display: shows progress; silent when None.

    Raises:
        RubError: models or images that cannot be used, or a forget set that is not all of its classes.
    """
    sets = {"forget": forget, "retain": retain, "test": test}
    parts = {name: samples_of(images, name=name) for name, images in sets.items()}
    forgotten = _forgotten(**parts)
    place = device_of(unlearned, device)
    check_batch_size(batch_size)
    given = {"original": original, "unlearned": unlearned, "retrained": retrained}
    with torch.inference_mode(False):
        lives = {
            role: live_copy(model, role, parts["forget"].images, place)
            for role, model in given.items()
            if model is not None
        }
    for role, live in lives.items():
        for name, images in parts.items():
            check_labels(images.labels, live.classes, lives["original"].classes, role, name)
    experiment = experiment_of(
        {"name": DATASET, "validation": 0.0}, {"arch": _arch("original"), "mean": (0.0,), "std": (1.0,)}, forgotten,
        protocol, samples,
    )  # fmt: skip
    with scoped(), TemporaryDirectory() as folder, torch.inference_mode(False):
        _register(lives, _as_read(parts, lives["original"].classes))
        weights = {role: Path(folder) / f"{role}.safetensors" for role in lives}
        for role, live in lives.items():
            try:
                save_weights(live, weights[role])
            except (AttributeError, RuntimeError) as error:  # of a quantized module, say
                raise RubError(f"{role}: its state dict is not of tensors ({error}); give a plain module") from error
        files = FromFiles(weights, {role: {"arch": _arch(role)} for role in lives})
        return run_audit(
            experiment, files, store=Path(folder) / "store", runtime=Runtime(device=str(place), batch_size=batch_size),
            display=display or Display(Console(), quiet=True),
        )  # fmt: skip


def _forgotten(forget: Samples, retain: Samples, test: Samples) -> tuple[int, ...]:
    """The classes of the forget set, which no retained image has."""
    classes = tuple(sorted(set(forget.labels.tolist())))
    if shared := set(classes) & set(retain.labels.tolist()):
        raise RubError(
            f"forget and retain both have class {min(shared)}; an audit is about whole classes: for single images use"
            " rub.recover"
        )
    for name, images in (("retain", retain), ("test", test)):
        if images.shape != forget.shape:
            raise RubError(f"{name}: images {images.shape}; should be {forget.shape}, as those of forget")
    unseen = torch.isin(test.labels, torch.tensor(classes))
    if not unseen.any() or unseen.all():
        raise RubError("test: should have images of forgotten classes and of retained ones")
    return classes


def _as_read(parts: Mapping[str, Samples], classes: int) -> Read:
    """The images as a data set's reader gives them: training images in the order of their ids, if these differ."""
    train = concatenate([parts["forget"], parts["retain"]])
    distinct = len(set(train.ids.tolist())) == len(train)
    train = train.select(train.ids.argsort()) if distinct else replace(train, ids=torch.arange(len(train)))
    return Read(tuple(map(str, range(classes))), train, parts["test"])


def _register(lives: Mapping[str, Live], images: Read) -> None:
    """Let stages find the images, and a builder of each model, by name."""

    def read(place: Path | None) -> Read:
        return images

    def builder(live: Live) -> Callable[..., nn.Module]:
        def build(num_classes: int, channels: int, size: int) -> nn.Module:
            return copy.deepcopy(live)

        return build

    DATASETS.add(Entry(DATASET, ANY, "", DatasetSource(DATASET, read, images=len(images.train)), "rub"))
    for role, live in lives.items():
        NETWORKS.add(Entry(_arch(role), "classification", "", builder(live), "rub"))


def _arch(role: str) -> str:
    return f"the {role} module"
