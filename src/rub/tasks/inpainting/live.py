"""Audits of masked autoencoders in memory: saved for as long as the audit lasts, and measured as checkpoints."""

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
from rub.models.live import device_of
from rub.models.mae.checkpoints import save_mae
from rub.models.mae.model import MaskedAutoencoder
from rub.pipeline.progress import Display
from rub.pipeline.runtime import Runtime
from rub.registry import scoped
from rub.tasks.inpainting.audit import InpaintingAudit


def audit(
    *,
    original: nn.Module,
    unlearned: nn.Module,
    retrained: nn.Module | None = None,
    forget: Images,
    retain: Images,
    test: Images,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    display: Display | None = None,
    **fields: Any,
) -> Report:
    """Measure an unlearned masked autoencoder in memory against its original, and end in a verdict.

    Args:
        original: before unlearning: a `rub.models.mae.model.MaskedAutoencoder`, or a ``ViTMAEForPreTraining`` of
            transformers.
        unlearned: after it, likewise.
        retrained: one that never saw the forget set, if there is one.
        forget: training images of the forgotten classes, as a pair (images, labels), a `Dataset` or a `DataLoader`;
            images are uint8, or floats in [0, 1]. Masks belong to the ids that `rub.data.samples.Samples` have.
        retain: training images of the other classes, likewise.
        test: images that no model saw, of all classes.
        batch_size: images per forward pass; does not change results beyond rounding.
        device: where to compute; None: where `unlearned` is.
        display: shows progress; silent when None.
        fields: further fields of `InpaintingAudit`: ``protocol``, ``samples``, ``mask_ratio``, ``mean``, ``std``, ...

    Raises:
        RubError: models, images or fields that cannot be used.
    """
    data = live_data(forget, retain, test)
    if data.forget_ids:
        raise RubError("forget and retain both have images of one class; masked autoencoders forget whole classes")
    given = {"original": original, "unlearned": unlearned, "retrained": retrained}
    place = device_of(unlearned, device)
    with scoped(), TemporaryDirectory() as folder, torch.inference_mode(False):
        register(data, int(data.labels.max()) + 1)
        files = {role: saved(model, role, Path(folder)) for role, model in given.items() if model is not None}
        request = InpaintingAudit(**files, data=DATASET, forget_classes=data.forget_classes, **fields)
        return run_audit(
            request.experiment(), request.models(), store=Path(folder) / "store",
            runtime=Runtime(device=str(place), batch_size=batch_size),
            display=display or Display(Console(), quiet=True),
        )  # fmt: skip


def saved(model: Any, role: str, folder: Path) -> Path:
    """File or folder of a model, as audits read it."""
    path = folder / role
    if isinstance(model, MaskedAutoencoder):
        save_mae(model, path.with_suffix(".safetensors"))
        return path.with_suffix(".safetensors")
    if callable(save := getattr(model, "save_pretrained", None)):
        save(path)
        return path
    name = type(model).__name__
    raise RubError(f"{role}: got {name}; should be a MaskedAutoencoder, or a ViTMAEForPreTraining of transformers")
