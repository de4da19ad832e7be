"""Witnesses of recovered images: the 8-bit perturbation, and the check that classifies the probe again."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from rub.config.hyperparameters import first_error
from rub.data.samples import Samples
from rub.errors import RubError
from rub.models.formats.classifier import load_weights
from rub.models.lookup import claimed_arch, hyperparameters_in
from rub.models.network import build_network
from rub.pipeline.graph import Stage
from rub.reports.text import printable
from rub.store.artifacts import Artifact
from rub.tasks.classification.budgets import Budget
from rub.tasks.classification.spec import ModelSpec
from rub.tasks.classification.stages import NETWORK, WEIGHTS
from rub.training.classifier import predict
from rub.witness.claims import Sources, Witness, model_file, write_witness
from rub.witness.images import claimed_images, data_reference, image_sha256, model_reference
from rub.zoo.lookup import by_weights

CLAIM = "largest other logit minus that of the image's own class, of f_u(x + delta): below 0, it is recognised"
SLACK = 1e-3  # of a logit: float32 sums differ between machines by far less
SPARE = 1 << 20  # bytes: a file in half precision has half the size, and a small one is no matter
MOST_CLASSES = 100_000  # a claim of more would only fill the checker's memory
LARGEST, DEEPEST = 1 << 16, 512  # numbers in the config of a claim's network, and of its layers


def save_witnesses(
    stage: Stage,
    inputs: Mapping[str, Artifact],
    samples: Samples,
    probes: Tensor,
    logits: Tensor,
    clean: NDArray[np.bool_],
    out: Path,
) -> None:
    """Write the recovered forget images as witnesses: those that needed the search first, then the surest.

    The samples have the labels that the search aimed at; `logits` are of the probes, and `clean` says which images are
    recognised without a search. Nothing is written where nothing was recovered.
    """
    spec, facts = stage.spec, inputs["unlearned"].json(NETWORK)
    about = {
        **{name: spec[name] for name in ("method", "attack", "budget")},
        "unlearn_seed": spec["seed"],
        "models": {"unlearned": model_reference(inputs["unlearned"], WEIGHTS)},
        "data": data_reference(inputs["data"], "train"),
        "settings": network_settings(facts),
    }
    hit = (logits.argmax(1) == samples.labels).numpy()
    write_recovered(about, samples, probes, hit, gap(logits, samples.labels), clean, out, spec["witnesses"])


def write_recovered(
    about: Mapping[str, Any],
    samples: Samples,
    probes: Tensor,
    hit: NDArray[np.bool_],
    value: Tensor,
    clean: NDArray[np.bool_],
    out: Path,
    most: int | None = None,
) -> bool:
    """Write the recovered forget images of one row as its witnesses; False where there are none.

    Args:
        about: fields of the claim: method, seed, attack, budget, models, data and settings.
        samples: N images with the labels that the search aimed at.
        probes: uint8 (N, C, H, W).
        hit: bool (N,), which were recovered.
        value: of each probe, `gap` (N,); the lowest come first.
        clean: bool (N,), which images are recognised without a search; they come last.
        out: folder of the two files.
        most: so many at most; None: all.
    """
    order = np.lexsort((value.numpy(), clean, ~hit))[: int(hit.sum())][:most]
    rows = torch.from_numpy(order)
    if not len(rows):
        return False
    chosen = samples.select(rows)
    witness = {
        "task": "classification",
        **about,
        "split": "forget",
        "claim": CLAIM,
        "at_most": 0.0,
        "samples": [
            {"id": int(identity), "sha256": image_sha256(image), "value": float(value[row])}
            for identity, image, row in zip(chosen.ids, chosen.images, rows, strict=True)
        ],
    }
    delta = probes[rows].to(torch.int16) - chosen.images.to(torch.int16)
    small = int(delta.abs().max()) <= torch.iinfo(torch.int8).max
    tensors = {"delta": delta.to(torch.int8) if small else delta, "labels": chosen.labels}
    write_witness(witness, tensors, out)
    return True


def network_settings(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a claim says of its network: all that builds it, with the number of its classes."""
    return {
        "model": {name: value for name, value in facts.items() if name != "classes"},
        "classes": len(facts["classes"]),
    }


def verify(witness: Witness, tensors: Mapping[str, Tensor], sources: Sources) -> tuple[int, list[str]]:
    """How many claims hold, and a line for each that does not: the probes are classified again, by forward passes only.

    Raises:
        RubError: the model or the data are not there, or the claim is not one of this task.
    """
    samples, budget = claimed_images(witness, sources), Budget.named(witness.budget)
    if witness.at_most != 0:
        raise RubError(f"the claim allows {witness.at_most:g}; of this task every claim is at most 0")
    delta, labels, images = tensors.get("delta"), tensors.get("labels"), samples.images
    whole = delta is not None and delta.shape == images.shape
    if delta is None or labels is None or not whole or labels.shape != samples.labels.shape:
        raise RubError(f"the claim's delta and labels do not fit {len(samples)} images of its data")
    if delta.dtype not in (torch.int8, torch.int16) or labels.dtype != torch.int64:
        raise RubError(
            f"the claim's delta and labels should be int8 or int16, and int64; not {delta.dtype}, {labels.dtype}"
        )
    path = model_file(witness, "unlearned", sources)
    model = sources.cache.get(("network", path, repr(witness.settings)), lambda: _network(witness, path, samples)).to(
        sources.device
    )
    _check_network(witness, sources)
    probes = images.to(torch.int16) + delta.to(torch.int16)
    budget.check(*images.shape[2:])
    within = budget.holds(probes, images, samples.ids)
    logits = predict(model, probes.clamp(0, 255).to(torch.uint8), batch_size=sources.batch_size, device=sources.device)
    broken = list(_broken(witness, samples, labels, within, probes, logits))
    return len(samples) - len(broken), broken


def gap(logits: Tensor, labels: Tensor) -> Tensor:
    """Largest other logit of (N, C) minus the labelled class's: negative where the class is recognised.

    Example:
        >>> gap(torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([1]))
        tensor([-1.])
    """
    column = labels[:, None]
    return logits.scatter(1, column, -torch.inf).amax(1) - logits.gather(1, column)[:, 0]


def _broken(
    witness: Witness, samples: Samples, labels: Tensor, within: Tensor, probes: Tensor, logits: Tensor
) -> Iterator[str]:
    value = gap(logits, samples.labels)
    for row, identity in enumerate(samples.ids.tolist()):
        if labels[row] != samples.labels[row]:
            yield f"image {identity}: claimed as class {int(labels[row])}; the data says {int(samples.labels[row])}"
        elif not within[row]:
            yield f"image {identity}: its probe is outside the budget {witness.budget}"
        elif not 0 <= int(probes[row].min()) <= int(probes[row].max()) <= 255:
            yield f"image {identity}: its probe is no image: pixels outside 0 to 255"
        elif not value[row] <= SLACK:
            yield f"image {identity}: not recognised, another class leads by {float(value[row]):.3f}"


def _check_network(witness: Witness, sources: Sources) -> None:
    """Make sure that the claim's network, its normalisation above all, is as the store, or the zoo, says."""
    named = witness.models.get("unlearned")
    if named is None:
        return
    found = None if sources.store is None else sources.store.find(named.kind, named.key)
    where, own = "store", None
    if found is not None and NETWORK in found.manifest["files"]:
        own = found.json(NETWORK)
    elif sources.zoo is not None and (published := by_weights(sources.zoo, named.sha256)) is not None:
        where, own = "zoo", {n: v for n, v in published[1].network.items() if n not in ("channels", "size")}
    if own is None:
        return
    claimed = witness.settings.get("model")
    facts = {name: value for name, value in own.items() if name != "classes"}
    if not isinstance(claimed, dict) or witness.settings.get("classes") != len(own.get("classes") or ()):
        raise RubError(f"the claim's network is not the {where}'s: another number of classes")
    if wrong := sorted(name for name in {*facts, *claimed} if facts.get(name) != claimed.get(name)):
        raise RubError(f"the claim's network is not the {where}'s: another {printable(str(wrong[0]))[:40]}")


def _network(witness: Witness, path: Path, samples: Samples) -> nn.Module:
    classes = witness.settings.get("classes")
    if type(classes) is not int or not 1 <= classes <= MOST_CLASSES:
        raise RubError("the claim does not say how many classes its network has")
    try:
        spec = ModelSpec.model_validate(witness.settings.get("model", {}))
    except ValidationError as error:
        raise RubError(first_error(error, "the claim's network", ModelSpec.model_fields)) from None
    mean, std = spec.mean, spec.std
    if mean is None or std is None:
        raise RubError("the claim's network lacks its normalisation")
    if int(samples.labels.max()) >= classes:
        raise RubError(f"the claim's network has {classes} classes; its images have more")

    channels, size, _ = samples.shape
    refuse_huge(spec.model_extra or {})
    return claimed_network(spec.model_dump(), classes, channels, size, mean, std, path)


def claimed_network(
    spec: Mapping[str, Any], classes: int, channels: int, size: int, mean: Any, std: Any, path: Path
) -> nn.Module:
    """Network that someone says a file of weights is of, in eval mode: never code, nor much larger than the file.

    Raises:
        RubError: code, another architecture, or a network of far more parameters.
    """
    arch = claimed_arch(spec)

    def build() -> nn.Module:
        return build_network(
            arch, num_classes=classes, channels=channels, size=size, mean=mean, std=std, **hyperparameters_in(spec)
        )

    with torch.device("meta"):  # nothing is allocated
        asked = sum(parameter.numel() for parameter in build().parameters())
    if asked * 4 > 2 * path.stat().st_size + SPARE:
        raise RubError(f"the claim's network has {asked} parameters, far more than its weights' file")
    model = build()
    load_weights(path, model)
    return model.eval()


def refuse_huge(values: Any, name: str = "") -> None:
    """Raise `RubError` for a hyperparameter of a network that is larger than any network's."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            refuse_huge(value, str(key))
    elif isinstance(values, list | tuple):
        for value in values:
            refuse_huge(value, name)
    elif isinstance(values, int) and values > (DEEPEST if re.search("layer|depth|block", name) else LARGEST):
        raise RubError(f"the claim's network has {name} = {values}, more than any network")
