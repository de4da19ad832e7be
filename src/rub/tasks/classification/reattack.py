"""The attack of a result folder run again on a few images: what a witness cannot show is that a low number is low."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import nn

from rub.attacks.base import AttackContext
from rub.config.hyperparameters import first_error
from rub.data.samples import ImageDataset
from rub.data.splits import load_dataset
from rub.errors import RubError
from rub.models.lookup import hyperparameters_in
from rub.registry import ATTACKS
from rub.store.artifacts import file_sha256
from rub.tasks.classification.attacks.base import Budget
from rub.tasks.classification.attacks.harness import make_target, run_attacks
from rub.tasks.classification.spec import ModelSpec
from rub.tasks.classification.stages import WEIGHTS, load_model, set_normalisation
from rub.tasks.classification.witnesses import claimed_network, refuse_huge
from rub.tasks.classification.zoo import splits_of
from rub.training.classifier import predict
from rub.witness.images import claimed_dataset
from rub.witness.reattack import NOWHERE, Bools, ReattackRequest, published, stored
from rub.zoo.entry import read_model
from rub.zoo.lookup import load_folder

_Models = tuple[nn.Module, nn.Module, ImageDataset]


def reattack(request: ReattackRequest) -> Bools:
    """Which images, bool (N,), the protocol's search recovers from a row's weights, with seeds of the checker's own.

    Of the protocol's budgets those that the record's starts from are searched before it, as a run does.

    Raises:
        RubError: neither store, zoo nor files have all parts, or the models are others than those of the folder.
    """
    models = _of_store(request) or _of_zoo(request) or _of_files(request)
    if models is None:
        files = "with --original and --unlearned where files were audited"
        raise RubError(f"{NOWHERE}, or its models with --zoo, or {files}")
    record, runtime = request.record, request.runtime
    plan = request.protocol.attacks[record.attack]
    budgets = {budget.name: budget for budget in map(Budget.of, plan.budgets) if budget.size}
    if record.budget not in budgets:
        raise RubError(f"its protocol has no budget {record.budget}: {', '.join(budgets)}")
    largest = budgets[record.budget]
    smaller = [budget for budget in budgets.values() if largest.contains(budget)] if plan.warm_start else []
    functions = [(ATTACKS.get(run["name"], "classification").load(), run["parameters"]) for run in request.runs]
    original, unlearned, dataset = models
    samples = dataset.train.select(request.rows(dataset.train.ids))
    said = predict(unlearned, samples, batch_size=runtime.batch_size).argmax(1) == samples.labels
    request.compare(said.numpy())
    device = torch.device(runtime.device)
    target = make_target(original, unlearned, samples.images, samples.labels, runtime.batch_size, device)
    start = None
    for budget in (*smaller, largest):
        context = AttackContext(
            seed=request.seed, ids=samples.ids, batch_size=runtime.batch_size, start=start, **runtime.shared()
        )
        found = run_attacks(functions, target, samples.images, budget, context)
        start = found.inputs
    return np.asarray(found.step.numpy() >= 0)


def _of_store(request: ReattackRequest) -> _Models | None:
    """Original, unlearned model and data of the stages that made a row; None where its search is not there."""
    found = stored(request, lambda model: WEIGHTS)
    if found is None:
        return None
    _, inputs = found
    dataset = load_dataset(inputs["data"])
    return load_model(inputs["original"], dataset), load_model(inputs["unlearned"], dataset), dataset


def _of_zoo(request: ReattackRequest) -> _Models | None:
    """The same of published models; None where the zoo has not the weights that the record names."""
    found = published(request)
    if found is None:
        return None
    original, unlearned = found
    dataset, _ = splits_of(read_model(unlearned), request.sources.data_root)
    return load_folder(original), load_folder(unlearned), dataset


def _of_files(request: ReattackRequest) -> _Models | None:
    """The same of files that are given, by the SHA-256 that the key of the search stands for; None without them."""
    parts, sources = request.read, request.sources
    if not {"data", "original", "unlearned"} <= parts.keys():
        return None
    files = {file_sha256(path): path for path in sources.files.values()}
    found = [(parts[role].spec, files.get(str(parts[role].spec.get("sha256")))) for role in ("original", "unlearned")]
    if any(file is None for _, file in found):
        return None
    dataset = claimed_dataset(parts["data"].spec, sources)
    original, unlearned = (_read(spec, dataset, file) for spec, file in found if file is not None)
    return original, unlearned, dataset


def _read(spec: Mapping[str, Any], dataset: ImageDataset, file: Path) -> nn.Module:
    given, (channels, size, _) = spec.get("model"), dataset.train.shape
    try:
        model = ModelSpec.model_validate(given).model_dump()
    except ValidationError as error:
        raise RubError(first_error(error, "its network", ModelSpec.model_fields)) from None
    refuse_huge(hyperparameters_in(model))
    mean, std = model["mean"] or dataset.mean, model["std"] or dataset.std
    network = claimed_network(model, len(dataset.classes), channels, size, mean, std, file)
    set_normalisation(network, model)
    return network
