"""The paired contrast: how far an image lies from its own class, and how far the same image lies from another one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from rub.attacks.base import AttackContext
from rub.data.splits import input_dataset, split
from rub.metrics.base import Measured, origin_of
from rub.models.weights import freeze
from rub.pipeline.graph import Stage
from rub.pipeline.runtime import Runtime
from rub.store.artifacts import Artifact
from rub.tasks.classification.attacks.base import other_classes
from rub.tasks.classification.attacks.radius import log2_radius, radii
from rub.tasks.classification.metrics import cell
from rub.tasks.classification.spec import RadiusSpec
from rub.tasks.classification.stages import WEIGHTS, eligible, load_model
from rub.training.classifier import predict


def measure_radius(stage: Stage, inputs: Mapping[str, Artifact], out: Path, runtime: Runtime) -> None:
    """Search the recovery radius of every image towards its own class and towards another one; see `Contrast`."""
    spec, dataset = stage.spec, input_dataset(inputs, runtime)
    parts, search = split(dataset, spec["forget"], spec["validation"]), RadiusSpec.model_validate(spec["radius"])
    model = freeze(load_model(inputs["unlearned"], dataset)).to(runtime.device)
    kept = [label for label in range(len(dataset.classes)) if label not in parts.forget_classes]
    facts = origin_of(inputs["unlearned"].sha256(WEIGHTS), inputs["unlearned"])
    setting = f"{len(kept)} kept classes, {normalisation(model)}"
    measured = Measured(cell, spec["method"], spec["seed"], {**facts, "setting": setting})
    found: dict[str, NDArray[Any]] = {}
    for name, count in spec["samples"].items():
        samples = eligible(parts, name, count, inputs["original"], dataset, runtime)
        said = predict(model, samples, batch_size=runtime.batch_size, device=runtime.device).argmax(1)
        context = AttackContext(ids=samples.ids, batch_size=runtime.batch_size, **runtime.shared())
        others = other_classes(samples, said, kept)
        own, other = (radii(model, samples.images, labels, search, context) for labels in (samples.labels, others))
        contrast = Contrast(*(log2_radius(part, search).double().numpy() for part in (own, other)))
        for metric, values in contrast.metrics().items():
            measured.mean(metric, values, samples.ids.numpy(), split=name)
        for metric, hits in contrast.shares(search.largest).items():
            measured.share(metric, hits, split=name)
        found |= {f"{name}_ids": samples.ids.numpy(), f"{name}_other_class": others.numpy()}
        found |= {f"{name}_own": own.numpy(), f"{name}_other": other.numpy()}
    np.savez(out / "radii.npz", **found)  # type: ignore[arg-type]  # no array is named allow_pickle
    measured.save(out, values=measured.values)


def normalisation(model: nn.Module) -> str:
    """What a network's inputs are normalised by, in words."""
    values = (getattr(model, name).flatten().tolist() for name in ("mean", "std"))
    mean, std = (", ".join(f"{value:.3g}" for value in part) for part in values)
    return f"inputs normalised by mean {mean} and std {std}"


@dataclass(frozen=True)
class Contrast:
    """Binary logarithms of radii in 1/255 of N images, towards their own class and towards another one.

    Selectivity is their difference, log2(other / own): above 0 the own class is nearer than an arbitrary one. The image
    is held fixed and the class is changed, so what makes an image easy or hard to change cancels.

    Example:
        >>> near = Contrast(np.array([0.0, 1.0]), np.array([2.0, 2.0]))
        >>> {name: values.tolist() for name, values in near.metrics().items()}
        {'own_radius': [0.0, 1.0], 'other_radius': [2.0, 2.0], 'selectivity': [2.0, 1.0]}
    """

    own: NDArray[np.float64]
    other: NDArray[np.float64]

    def metrics(self) -> dict[str, NDArray[np.float64]]:
        """Metric id -> its value for each image."""
        return {"own_radius": self.own, "other_radius": self.other, "selectivity": self.other - self.own}

    def shares(self, largest: float) -> dict[str, NDArray[np.bool_]]:
        """Metric id -> bool (N,): which images reach their own class, and which another one.

        The own class counts where it is reached within the change that takes 9 of 10 images to another class, and no
        more than `largest`, in 1/255.

        Example:
            >>> dead = Contrast(np.array([6.0, 6.0]), np.array([2.0, 3.0]))
            >>> {name: hits.tolist() for name, hits in dead.shares(32).items()}
            {'own_reached': [False, False], 'other_reached': [True, True]}
        """
        most = min(float(np.quantile(self.other, 0.9)), float(np.log2(largest)))
        return {"own_reached": self.own <= most, "other_reached": self.other <= np.log2(largest)}
