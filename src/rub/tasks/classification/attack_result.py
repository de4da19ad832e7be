"""The result folder of attacks on models of a zoo: records, samples, curves, and every recovered probe as a witness."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from rub.config.hyperparameters import resolved
from rub.data.samples import Samples
from rub.data.spec import ForgetSpec
from rub.errors import RubError
from rub.metrics.base import Measured, direction_of
from rub.pipeline.graph import Stage
from rub.pipeline.runtime import Runtime, code_version, device_name, library_versions
from rub.registry import ATTACKS
from rub.reports.lineage import facts_of
from rub.reports.result_folder import Result, write_result
from rub.store.artifacts import canonical
from rub.store.records import Record
from rub.tasks.classification.attack_zoo import Attacked, Row, row_of
from rub.tasks.classification.budgets import Budget
from rub.tasks.classification.metrics import cell
from rub.tasks.classification.recover import Recovery
from rub.tasks.classification.spec import ATTACK_PROTOCOL, ATTACK_SUITE
from rub.tasks.classification.witnesses import gap, network_settings, write_recovered
from rub.training.classifier import predict
from rub.zoo.entry import WEIGHTS, ZooModel

_OUTSIDE = ("channels", "size")  # of a published network: its images'


def save_attacks(attacked: Iterable[Attacked], out: Path, command: str, runtime: Runtime) -> list[Row]:
    """Write what attacks gave on models as a sealed result folder, and return the rows.

    Raises:
        RubError: two models of one row, or a folder that cannot be written.
    """
    rows: list[Row] = []
    results: list[Result] = []
    seen: set[tuple[Any, ...]] = set()
    with TemporaryDirectory(prefix="rub-attack-") as place:
        for one in attacked:
            model = one.model
            row = (model.dataset, model.model, model.experiment, model.method, model.seed or 0)
            if row in seen:
                raise RubError(f"{model.name}: another model of this row was attacked before; give one of them")
            seen.add(row)
            rows.append(row_of(one))
            results += _results(one, Path(place), runtime)
        write_result(_joined(results), out, command)
    return rows


def _joined(results: Iterable[Result]) -> Result:
    found = list(results)
    return Result(
        tuple(record for one in found for record in one.records),
        samples=tuple(row for one in found for row in one.samples),
        curves=tuple(row for one in found for row in one.curves),
        witnesses=tuple(pair for one in found for pair in one.witnesses),
        suite={"name": ATTACK_SUITE, "summary": "attacks on models of a zoo", "experiments": []},
        stages=tuple(row for one in found for row in one.stages),
    )


def _results(attacked: Attacked, place: Path, runtime: Runtime) -> Iterator[Result]:
    """What each attack gave at each budget; the folders of its witnesses lie in `place`."""
    for name, recovery in attacked.found.items():
        for level in recovery.eps:
            at = {"attack": name, "budget": Budget(level).name}
            stage = _stage(attacked, recovery, at)
            folder = place / stage.key
            folder.mkdir()
            experiment = f"{attacked.model.dataset}-{attacked.model.model}-{attacked.model.experiment}"
            shown = _write_witnesses(attacked, recovery, level, at, folder, runtime)
            yield Result(
                tuple(_records(attacked, recovery, level, at, stage.key, runtime)),
                samples=tuple(_samples(attacked.model, recovery, level, at, stage.key)),
                curves=(_curve(attacked.model, recovery, level, at),),
                witnesses=((experiment, folder),) if shown else (),
                stages=tuple(facts_of([stage])),
            )


def _stage(attacked: Attacked, recovery: Recovery, at: Mapping[str, str]) -> Stage:
    """What decides the numbers of an attack at a budget; its hash is the key of their records, no step of a run."""
    model, levels = attacked.model, [Budget(level).name for level in recovery.eps]
    spec = {
        **at,
        "method": model.method,
        "seed": model.seed or 0,
        "weights": model.files[WEIGHTS],
        "original": attacked.original,
        "run": resolved(ATTACKS.get(at["attack"], model.task), {}, "rub attack"),
        "budgets": levels[: levels.index(at["budget"]) + 1],
        "images": len(recovery),
        "data": model.data,
        "forget": model.forget,
    }
    return Stage(model.task, "attack-model", 1, f"attack {model.name}: {at['attack']} {at['budget']}", spec)


def _records(
    attacked: Attacked, recovery: Recovery, level: int, at: Mapping[str, str], key: str, runtime: Runtime
) -> Iterator[Record]:
    model, found = attacked.model, recovery[level]
    searched = {"converged": found.converged, "evaluations": found.evaluations}
    measured = Measured(cell, model.method, model.seed or 0, {"weights_sha256": model.files[WEIGHTS], **searched})
    measured.share("ua", np.asarray((found.step >= 0).numpy()), **at)
    measured.share("ua_before", np.asarray(recovery.clean.numpy()), **at)
    made = {
        "key": key,
        "original": model.original,
        "device": device_name(runtime.device),
        "code_version": code_version(),
        "library_versions": library_versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    common = _common(model)
    for row in measured.rows:
        better = direction_of(row["direction"], common["scenario"])
        yield Record.model_validate({**common, **made, **row, "direction": better})


def _samples(
    model: ZooModel, recovery: Recovery, level: int, at: Mapping[str, str], key: str
) -> Iterator[dict[str, Any]]:
    shared = {**_common(model), **_searched(model, at), "original": model.original}
    rows = (row for row in recovery.rows() if row["eps"] == level)
    for number, row in enumerate(rows):
        yield {
            **shared,
            "sample_id": row["id"],
            **{name: row[name] for name in ("label", "clean", "recovered", "step", "linf")},
            "distance": round(row["distance"], 6),
            "probe": f"{key}:{number}",
        }


def _curve(model: ZooModel, recovery: Recovery, level: int, at: Mapping[str, str]) -> dict[str, Any]:
    found, names = recovery[level], ("success_curve", "loss_curve", "evaluations", "converged")
    return {**_common(model), **_searched(model, at), **{name: getattr(found, name) for name in names}}


def _common(model: ZooModel) -> dict[str, str]:
    scenario = "samples" if ForgetSpec.model_validate(model.forget).samples else ""
    names = {"task": model.task, "suite": ATTACK_SUITE, "experiment": model.experiment, "protocol": ATTACK_PROTOCOL}
    return {**names, "scenario": scenario, "dataset": model.dataset, "model": model.model}


def _searched(model: ZooModel, at: Mapping[str, str]) -> dict[str, Any]:
    return {"method": model.method, "unlearn_seed": model.seed or 0, **at, "split": "forget"}


def _write_witnesses(
    attacked: Attacked, recovery: Recovery, level: int, at: Mapping[str, str], folder: Path, runtime: Runtime
) -> bool:
    model, found = attacked.model, recovery[level]
    samples = Samples(recovery.images, recovery.labels, recovery.ids)
    probes = Samples(found.inputs, recovery.labels, recovery.ids)
    unlearned = attacked.unlearned.to(runtime.device)
    logits = predict(unlearned, probes, batch_size=runtime.batch_size, device=runtime.device)
    weights = model.files[WEIGHTS]
    data = {"key": sha256(canonical(model.data)).hexdigest(), "images": "train", "spec": model.data}
    about = {
        **at,
        "method": model.method,
        "unlearn_seed": model.seed or 0,
        "models": {"unlearned": {"kind": "zoo", "key": model.key or weights, "file": WEIGHTS, "sha256": weights}},
        "data": data,
        "settings": network_settings({name: value for name, value in model.network.items() if name not in _OUTSIDE}),
    }
    hit, clean = (np.asarray(part.numpy()) for part in (found.step >= 0, recovery.clean))
    return write_recovered(about, samples, found.inputs, hit, gap(logits, recovery.labels), clean, folder)
