"""The stage of the judge: what decides whether a picture shows a concept. Free of torch."""

from pathlib import Path
from typing import Any

from rub.errors import RubError
from rub.images.specs import DatasetSpec
from rub.pipeline.plan import Stage
from rub.registry import JUDGES, MODELS, resolved
from rub.store.artifacts import file_sha256
from rub.text_to_image.specs import JudgeSpec

JUDGE_VERSION = 1  # raised when the judge stage's results change
SEED = 3000  # of the judge's training; the models under test use others
_KNOWN = {"digits": 1433, "cifar10": 50_000, "cifar100": 50_000}  # training images, for the cost


def judge_stage(
    task: str, judge: JudgeSpec, data: Stage | None, dataset: DatasetSpec | None, data_root: Path | None
) -> Stage:
    """Return the stage that trains the classifier, or takes in a judge that someone else trained.

    Args:
        task: whose stage it is.
        judge: which judge, with its settings.
        data: the data stage; None without a data set.
        dataset: names the classifier and its held-out share; None likewise.
        data_root: where relative weights may lie.

    Raises:
        RubError: an unknown judge, architecture or setting, a classifier without data, or weights that are not there.
    """
    chosen = resolved(JUDGES.get(judge.name, task), judge.parameters, "judge")
    if judge.name != "classifier":
        files = {} if judge.weights is None else {"weights": found(judge.weights, data_root)}
        hashes = {name: _hashes(path) for name, path in files.items()}
        spec: dict[str, Any] = {"judge": chosen, "name": judge.weights or judge.name, "sha256": hashes}
        return Stage(task, "judge", JUDGE_VERSION, f"take in the judge {judge.name}", spec, files=files, cost=100)
    if data is None or dataset is None:
        raise RubError("judge classifier: is trained on the data set, and there is none; name another judge")
    MODELS.get(judge.arch, "classification")
    spec = {
        "judge": chosen,
        "name": f"{dataset.name}-{judge.arch}",
        "model": {"arch": judge.arch, "stem": judge.stem, "width": judge.width},
        "training": judge.training.model_dump(),
        "validation": dataset.validation,
        "seed": SEED,
    }
    cost = 4.5 * judge.training.epochs * _KNOWN.get(dataset.name, 9_500)
    return Stage(task, "judge", JUDGE_VERSION, "train the judge", spec, {"data": data}, cost=cost)


def found(weights: str, data_root: Path | None) -> Path:
    """Return where a judge's weights are: a path, a path below the data root, or the hub's cache.

    Raises:
        RubError: nowhere; the ways to provide them are named.
    """
    places = [Path(weights), *([data_root / weights] if data_root is not None else [])]
    if (place := next((item for item in places if item.exists()), None)) is not None:
        return place
    from rub.text_to_image.hub import snapshot

    return snapshot(weights, "judge.weights", None)


def _hashes(path: Path) -> dict[str, str]:
    """Return the SHA-256 of every file that a judge is read from."""
    if path.is_file():
        return {path.name: file_sha256(path)}
    return {item.name: file_sha256(item) for item in sorted(path.iterdir()) if item.is_file()}
