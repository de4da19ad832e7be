"""The paired contrast: how far an image lies from its own class, and how far the same image lies from another one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from rub.attacks.base import AttackContext
from rub.data.splits import input_dataset, split
from rub.metrics.base import Measured, Outputs, origin_of
from rub.models.network import normalisation
from rub.models.weights import freeze
from rub.pipeline.graph import Stage
from rub.pipeline.runtime import Runtime
from rub.store.artifacts import Artifact
from rub.tasks.classification.attacks.radius import log2_radius, radii
from rub.tasks.classification.metrics import cell, radius_metrics
from rub.tasks.classification.spec import RadiusSpec
from rub.tasks.classification.stages import WEIGHTS, eligible, load_model, wrong_classes


def measure_radius(stage: Stage, inputs: Mapping[str, Artifact], out: Path, runtime: Runtime) -> None:
    """Search the recovery radius of every image towards its own class and towards another one."""
    spec, dataset = stage.spec, input_dataset(inputs, runtime)
    parts, search = split(dataset, spec["forget"], spec["validation"]), RadiusSpec.model_validate(spec["radius"])
    model = freeze(load_model(inputs["unlearned"], dataset)).to(runtime.device)
    facts = origin_of(inputs["unlearned"].sha256(WEIGHTS), inputs["unlearned"])
    setting = f"{len(dataset.classes) - len(parts.forget_classes)} kept classes, {normalised_by(model)}"
    measured = Measured(cell, spec["method"], spec["seed"], {**facts, "setting": setting})
    found: dict[str, NDArray[Any]] = {}
    sets: dict[str, Outputs] = {}
    for name, count in spec["samples"].items():
        samples = eligible(parts, name, count, inputs, dataset, runtime)
        context = AttackContext(ids=samples.ids, batch_size=runtime.batch_size, **runtime.shared())
        others = wrong_classes(model, samples, parts, dataset, runtime)
        own, other = (radii(model, samples.images, labels, search, context) for labels in (samples.labels, others))
        scores = {key: log2_radius(part, search).double().numpy() for key, part in (("own", own), ("other", other))}
        sets[name] = Outputs(samples.ids.numpy(), samples.labels.numpy(), scores=scores, spec=spec)
        found |= {f"{name}_ids": samples.ids.numpy(), f"{name}_other_class": others.numpy()}
        found |= {f"{name}_own": own.numpy(), f"{name}_other": other.numpy()}
    for name, metric in radius_metrics(bool(parts.forget_classes), sets):
        measured.compute(metric, metric.asked(sets.__getitem__, name), split=name)
    np.savez(out / "radii.npz", **found)  # type: ignore[arg-type]  # no array is named allow_pickle
    measured.save(out)


def normalised_by(model: nn.Module) -> str:
    """What a network's inputs are normalised by, in words."""
    mean, std = (", ".join(f"{value:.3g}" for value in part.flatten().tolist()) for part in normalisation(model))
    return f"inputs normalised by mean {mean} and std {std}"
