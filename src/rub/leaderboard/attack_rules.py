"""Rules for what `rub attack --out` writes: attacks beside the default search, and a witness of all they recovered."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rub.data.samples import Samples
from rub.errors import RubError
from rub.leaderboard.rules import LEAST, Candidate, Cell, Reattack, cell_of, sign_test
from rub.pipeline.runtime import Runtime
from rub.reports.grouping import level
from rub.reports.lineage import keys_of, read_stages
from rub.reports.text import printable
from rub.store.records import Record
from rub.tasks.classification.attack_zoo import eligible, search
from rub.tasks.classification.budgets import Budget
from rub.tasks.classification.spec import DEFAULT_SEARCH
from rub.tasks.classification.zoo import splits_of
from rub.training.classifier import predict
from rub.witness.claims import read_claim
from rub.witness.reattack import APART
from rub.zoo.entry import WEIGHTS, ZooModel, read_model
from rub.zoo.lookup import load_folder, models_in, original_of

METRICS = ("ua", "ua_before")


@dataclass(frozen=True)
class Target:
    """A model as the zoo has it: its folder, that of its original, and the images that `rub attack` draws of it."""

    folder: Path
    original: Path
    samples: Samples


def compared(candidate: Candidate) -> Iterator[str]:
    """Where an attack does not stand beside the default search, at the same budgets, on the images of the draw."""
    if odd := {record.metric for record in candidate.found.records} - set(METRICS):
        yield f"a row of {printable(min(odd))[:40]}: an attack's run has {' and '.join(METRICS)}"
    if {record.attack for record in candidate.found.records} == {DEFAULT_SEARCH}:
        yield f"no attack beside {DEFAULT_SEARCH}; give one: rub attack MODELS --plugin my_attack.py --out FOLDER"
    for rows in _models(candidate):
        said = list(_compared(rows))
        yield from said
        if not said:
            try:
                yield from _drawn(candidate, rows, target_of(candidate, rows[0]))
            except RubError as error:
                yield f"{_name(rows[0])}: {error}"


def _compared(rows: Sequence[Record]) -> Iterator[str]:
    name, at = _name(rows[0]), defaultdict(set)
    for row in rows:
        at[row.attack].add(row.budget)
        if Budget.named(row.budget).kind != "linf":
            yield f"{_where(row)}: should be a budget of L-inf, such as 8/255"
        if not row.evaluations:
            yield f"{_where(row)}: does not say how many images it gave to the network"
        if row.n < LEAST:
            yield f"{_where(row)}: of {row.n} images, not of {LEAST} or more"
    if DEFAULT_SEARCH not in at:
        yield f"{name}: no row of {DEFAULT_SEARCH} beside the attack"
    elif other := next((attack for attack, own in at.items() if own != at[DEFAULT_SEARCH]), None):
        yield f"{name}: {printable(other)} at other budgets than {DEFAULT_SEARCH}"


def _drawn(candidate: Candidate, rows: Sequence[Record], target: Target) -> Iterator[str]:
    """Where rows are of other images, or of another model, than they say."""
    stages = read_stages(candidate.folder)
    specs = {key: stage.spec for key, stage in zip(keys_of(stages), stages, strict=True)}
    ids, samples = target.samples.ids.numpy(), target.samples
    before = read_model(target.original).files[WEIGHTS]
    right = (predict(load_folder(target.folder), samples).argmax(1) == samples.labels).numpy()
    for row in rows:
        spec, known = specs.get(row.key, {}), candidate.outcomes.get(cell_of(row), {})
        if (spec.get("weights"), spec.get("images")) != (row.weights_sha256, row.n):
            yield f"{_where(row)}: its stage is of other weights or another number of images"
        elif spec.get("original") != before:
            yield f"{_where(row)}: attacked with another original than the zoo's"
        elif set(known) != set(ids.tolist()):
            yield f"{_where(row)}: of other images than rub attack draws"
        else:
            clean = np.array([known[identity].clean for identity in ids.tolist()])
            if (wrong := int((clean != right).sum())) > APART * row.n:
                yield f"{_where(row)}: its model says otherwise of {wrong} of {row.n} images without an attack"


def shown(candidate: Candidate) -> Iterator[str]:
    """Where witnesses do not show, one for one, what is counted as recovered."""
    claimed: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for path in sorted((candidate.folder / "witnesses").glob("*.json")):
        claim = read_claim(path)
        weights = claim.models["unlearned"].sha256 if "unlearned" in claim.models else ""
        claimed[claim.method, claim.unlearn_seed, claim.attack, claim.budget, weights] += [
            sample.id for sample in claim.samples
        ]
    for row in (row for rows in _models(candidate) for row in rows):
        own = claimed[row.method, row.unlearn_seed, row.attack, row.budget, row.weights_sha256]
        count, known = round((row.value or 0) * row.n), candidate.outcomes.get(cell_of(row), {})
        backed = {identity for identity in own if identity in known and known[identity].recovered}
        if twice := [identity for identity, times in Counter(own).items() if times > 1]:
            yield f"{_where(row)}: image {min(twice)} has two witnesses"
        if len(backed) < count:
            yield f"{_where(row)}: {count} images are counted as recovered, and {len(backed)} have a witness"


def searched_again(candidate: Candidate) -> Iterator[Reattack]:
    """What the default search gives on every model, run again with the seed that it had; of rounding it is the same."""
    runtime = Runtime(device=candidate.sources.device, batch_size=candidate.sources.batch_size)
    for rows in _models(candidate):
        own = [row for row in rows if row.attack == DEFAULT_SEARCH]
        target = target_of(candidate, own[0])
        levels, samples = [int(level(row.budget)) for row in own], target.samples
        found = search(
            load_folder(target.folder), load_folder(target.original), samples, DEFAULT_SEARCH, levels, runtime
        )
        for row, at in zip(own, levels, strict=True):
            known = candidate.outcomes[cell_of(row)]
            said = np.array([known[identity].recovered for identity in samples.ids.tolist()])
            yield sign_test(row, said, np.asarray((found[at].step >= 0).numpy()))


def target_of(candidate: Candidate, row: Record) -> Target:
    """The model of a row in the zoo, and the images that it was attacked on.

    Raises:
        RubError: there is none with its weights, or its original or data are not there.
    """
    sources = candidate.sources
    if (root := sources.zoo) is None:
        raise RubError("its models are checked in a zoo; give it with --zoo")
    models = sources.cache.get(("zoo", root), lambda: list(models_in(root)))
    own = (one for one in models if one[1].files.get(WEIGHTS) == row.weights_sha256 and _about(one[1], row))
    if (found := next(own, None)) is None:
        raise RubError(f"no model of this row with its weights ({row.weights_sha256[:12]}) is in the zoo")
    folder, model = found
    original = original_of(root, model)
    key = ("drawn", original, repr(model.data), repr(model.forget), row.n)
    drawn = sources.cache.get(key, lambda: _draw(model, original, row.n, sources.data_root))
    return Target(folder, original, drawn)


def _draw(model: ZooModel, original: Path, count: int, data_root: Path | None) -> Samples:
    return eligible(load_folder(original), splits_of(model, data_root)[1].forget, count)


def _about(model: ZooModel, row: Record) -> bool:
    said = (row.task, row.dataset, row.experiment, row.model, row.method, row.unlearn_seed)
    return said == (model.task, model.dataset, model.experiment, model.model, model.method, model.seed or 0)


def _models(candidate: Candidate) -> list[list[Record]]:
    """Rates after an attack, model by model."""
    found: dict[Cell, list[Record]] = defaultdict(list)
    for record in candidate.found.records:
        if record.metric == METRICS[0] and record.value is not None:
            found[record.dataset, record.model, record.experiment, record.method, record.unlearn_seed].append(record)
    return list(found.values())


def _name(row: Record) -> str:
    return f"{printable(row.method)[:40]}, seed {row.unlearn_seed}"


def _where(row: Record) -> str:
    return f"{_name(row)}, {printable(row.attack)[:40]} at {printable(row.budget)[:40]}"
