"""Audits of classifiers in memory: the stages that measure checkpoints, on a store that lasts as long as the audit."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from torch import nn

from rub.audits.base import Report, run_audit
from rub.audits.live import DATASET, live_data, register
from rub.data.memory import Images
from rub.errors import RubError
from rub.models.live import Live, device_of, live_copy
from rub.models.weights import save_weights
from rub.pipeline.graph_builder import FromFiles
from rub.pipeline.progress import Display
from rub.pipeline.runtime import Runtime
from rub.registry import NETWORKS, Entry, scoped
from rub.tasks.classification.audit import experiment_of
from rub.tasks.classification.recover import check_batch_size, check_labels


def audit(
    *,
    original: nn.Module,
    unlearned: nn.Module,
    retrained: nn.Module | None = None,
    forget: Images,
    retain: Images,
    test: Images,
    protocol: str | Mapping[str, Any] = "rub-audit-2",
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
        forget: forgotten training images, as a pair (images, labels), a `Dataset` or a `DataLoader`; images are uint8,
            or floats in [0, 1]. Where retained ones are of the same classes, single images were forgotten.
        retain: the other training images, likewise.
        test: images that no model saw, of all classes.
        protocol: a classification protocol: its name, its file, or its fields.
        samples: forget images to attack; half as many for the controls.
        batch_size: images per forward pass; does not change results beyond rounding.
        device: where to compute; None: where `unlearned` is.
        display: shows progress; silent when None.

    Raises:
        RubError: models or images that cannot be used.
    """
    data = live_data(forget, retain, test)
    place = device_of(unlearned, device)
    check_batch_size(batch_size)
    given = {"original": original, "unlearned": unlearned, "retrained": retrained}
    with torch.inference_mode(False):
        lives = {
            role: live_copy(model, role, data.test.images, place) for role, model in given.items() if model is not None
        }
    classes = lives["original"].classes
    for role, live in lives.items():
        check_labels(data.labels, live.classes, classes, role)
    experiment = experiment_of(
        {"name": DATASET, "validation": 0.0}, {"arch": _arch("original"), "mean": (0.0,), "std": (1.0,)},
        {"ids": data.forget_ids} if data.forget_ids else {"classes": data.forget_classes}, protocol, samples,
    )  # fmt: skip
    with scoped(), TemporaryDirectory() as folder, torch.inference_mode(False):
        register(data, classes)
        weights = {role: Path(folder) / f"{role}.safetensors" for role in lives}
        for role, live in lives.items():
            NETWORKS.add(Entry(_arch(role), "classification", "", _builder(live), "rub"), given=True)
            try:
                save_weights(live, weights[role])
            except (AttributeError, RuntimeError) as error:  # of a quantized module, say
                raise RubError(f"{role}: its state dict is not of tensors ({error}); give a plain module") from error
        files = FromFiles(weights, {role: {"arch": _arch(role)} for role in lives})
        return run_audit(
            experiment, files, store=Path(folder) / "store", runtime=Runtime(device=str(place), batch_size=batch_size),
            display=display or Display(Console(), quiet=True),
        )  # fmt: skip


def _builder(live: Live) -> Callable[..., nn.Module]:
    def build(num_classes: int, channels: int, size: int) -> nn.Module:
        return copy.deepcopy(live)

    return build


def _arch(role: str) -> str:
    return f"the {role} module"
