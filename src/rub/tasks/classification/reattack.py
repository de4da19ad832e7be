"""The attack of a result folder run again on a few images: what a witness cannot show is that a low number is low."""

from collections.abc import Collection, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import nn

from rub.attacks.base import AttackContext
from rub.config.hyperparameters import first_error, resolved
from rub.config.suite import Protocol
from rub.data.samples import ImageDataset
from rub.data.splits import load_dataset
from rub.errors import RubError
from rub.models.lookup import hyperparameters_in
from rub.pipeline.rng import seeded
from rub.pipeline.runtime import Runtime
from rub.registry import ATTACKS
from rub.reports.lineage import StageFacts, keys_of
from rub.store.artifacts import Artifact, Store, file_sha256
from rub.store.records import Record
from rub.tasks.classification.attacks.base import Budget
from rub.tasks.classification.attacks.harness import make_target, run_attacks
from rub.tasks.classification.spec import ModelSpec
from rub.tasks.classification.stages import WEIGHTS, load_model, set_normalisation
from rub.tasks.classification.witnesses import claimed_network, refuse_huge
from rub.tasks.classification.zoo import splits_of
from rub.training.classifier import predict
from rub.witness.claims import Sources
from rub.witness.images import claimed_dataset
from rub.zoo.entry import read_model
from rub.zoo.lookup import by_weights, load_folder, original_of

_MODELS = ("unlearn", "train", "import", "initialise")
_Models = tuple[nn.Module, nn.Module, ImageDataset]


def reattack(
    record: Record,
    ids: NDArray[np.int64],
    clean: NDArray[np.bool_],
    probe: str,
    protocol: Protocol,
    seal: str,
    sources: Sources,
    originals: Collection[str],
    stages: Sequence[StageFacts] = (),
) -> NDArray[np.bool_]:
    """Which images, bool (N,), the protocol's search recovers from a row's weights, with seeds of the checker's own.

    Args:
        record: UA on forget images after the main attack; of its budgets all up to this one are searched, the largest
            last, as a run does.
        ids: of N of its images, int64.
        clean: bool (N,), whether the folder says that they are recognised without the attack.
        probe: of any of its samples, which names the search, and that its models and data.
        protocol: of the record.
        seal: what seeds are drawn from; whoever seals a folder anew changes it.
        sources: the store with weights and data, or a zoo or files with the weights.
        originals: SHA-256 of the weights of the records' originals.
        stages: of the folder, which name the files that weights were read from.

    Raises:
        RubError: neither has all parts, or its models are others than those that the folder is about.
    """
    models = _of_store(record, probe, sources.store)
    if models is None:
        models = _of_zoo(record, sources, originals)
    if models is None:
        models = _of_files(probe, stages, sources)
    if models is None:
        raise RubError(
            "its search is not in the store; give the store of the run with --store, or its models with --zoo, or with"
            " --original and --unlearned where files were audited"
        )
    plan, largest = protocol.attacks[record.attack], int(record.budget.partition("/")[0])
    runs = [resolved(ATTACKS.get(run.name, "classification"), run.parameters, record.attack) for run in plan.runs]
    functions = [(ATTACKS.get(run["name"], "classification").load(), run["parameters"]) for run in runs]
    original, unlearned, dataset, device = *models, torch.device(sources.device)
    samples = dataset.train.of_ids(torch.from_numpy(np.array(ids)))
    said = predict(unlearned, samples, batch_size=sources.batch_size).argmax(1) == samples.labels
    wrong = int((said.numpy() != clean).sum())
    if wrong > 0.05 * len(clean):  # another device may round one or two otherwise
        raise RubError(f"its model says otherwise than the folder of {wrong} of {len(clean)} images without an attack")
    target = make_target(original, unlearned, samples.images, samples.labels, sources.batch_size, device)
    runtime = Runtime(device=sources.device, batch_size=sources.batch_size)
    seed = int.from_bytes(sha256(f"{seal}/{record.key}".encode()).digest()[:4], "big")
    start = None
    for level in sorted(budget for budget in plan.budgets if 0 < budget <= largest):
        if level < largest and not plan.warm_start:
            continue
        context = AttackContext(
            seed=seed, ids=samples.ids, batch_size=sources.batch_size, start=start, **runtime.shared()
        )
        found = run_attacks(functions, target, samples.images, Budget(level), context)
        start = found.inputs
    return np.asarray(found.step.numpy() >= 0)


def drawn(ids: Sequence[int], count: int, seal: str) -> NDArray[np.int64]:
    """At most so many of these images, int64, drawn by a folder's seal.

    Example:
        >>> drawn([7, 3, 5], 2, "a").tolist() == drawn([5, 3, 7], 2, "a").tolist()
        True
    """
    known = np.sort(np.asarray(ids, np.int64))
    number = int.from_bytes(sha256(seal.encode()).digest()[:4], "big")
    order = torch.randperm(len(known), generator=seeded(number, "reattack")).numpy()
    return np.sort(known[order[:count]])


def _of_store(record: Record, probe: str, store: Store | None) -> "_Models | None":
    """Original, unlearned model and data of the stages that made a row; None where its search is not there."""
    searched = store.find("attack", probe.partition(":")[0]) if store is not None else None
    if store is None or searched is None:
        return None
    parts: Mapping[str, str] = searched.manifest["inputs"]
    made = {role: _model(store, parts.get(role, "")) for role in ("original", "unlearned")}
    if made["unlearned"].sha256(WEIGHTS) != record.weights_sha256:
        raise RubError("the store's model has other weights than the record names")
    data = store.find("data", parts.get("data", ""))
    if data is None:
        raise RubError("its data is not in the store")
    dataset = load_dataset(data)
    return load_model(made["original"], dataset), load_model(made["unlearned"], dataset), dataset


def _of_zoo(record: Record, sources: Sources, originals: Collection[str]) -> "_Models | None":
    """The same of published models; None where the zoo has not the weights that the record names."""
    found = None if sources.zoo is None else by_weights(sources.zoo, record.weights_sha256)
    if sources.zoo is None or found is None:
        return None
    file, model = found
    before = original_of(sources.zoo, model)
    if read_model(before).files.get(file.name) not in originals:
        raise RubError("the zoo's original has other weights than the records' original")
    dataset, _ = splits_of(model, sources.data_root)
    return load_folder(before), load_folder(file.parent), dataset


def _of_files(probe: str, stages: Sequence[StageFacts], sources: Sources) -> "_Models | None":
    """The same of files that are given, by the SHA-256 that the key of the search stands for; None without them."""
    searched = dict(zip(keys_of(stages), stages, strict=True)).get(probe.partition(":")[0])
    parts = {} if searched is None else {role: stages[number] for role, number in searched.inputs.items()}
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


def _model(store: Store, key: str) -> Artifact:
    found: Any = next((one for kind in _MODELS if (one := store.find(kind, key)) is not None), None)
    if found is None:
        raise RubError("its model is not in the store; give the store of the run with --store")
    made: Artifact = found
    return made
