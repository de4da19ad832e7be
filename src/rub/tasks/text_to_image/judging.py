"""The stage of the judge: what decides whether a picture shows a concept. Free of torch."""

from pathlib import Path
from typing import Any

from rub.config.suite import located
from rub.data.spec import DatasetSpec, num_images
from rub.errors import RubError
from rub.pipeline.graph import Stage
from rub.registry import JUDGES, NETWORKS, resolved
from rub.store.artifacts import file_sha256
from rub.tasks.text_to_image.spec import JudgeSpec

JUDGE_VERSION = 2  # raised when the judge stage's results change
SEED = 3000  # of the judge's training; the models under test use others
FACTS = "judge.json"
IMAGENET = "microsoft/resnet-50"  # UnlearnDiffAtk's
_OURS = ("arch", "stem", "width", "training")  # fields that say how RUB trains its own judge


def judge_stage(
    task: str, judge: JudgeSpec, data: Stage | None, dataset: DatasetSpec | None, data_root: Path | None
) -> Stage:
    """Return the stage that trains the classifier, or takes in a judge that someone else trained.

    Where there is a data set, its real test images say how good the judge is.

    Args:
        task: whose stage it is.
        judge: which judge, with its settings.
        data: the data stage; None without a data set.
        dataset: names the classifier and its held-out share; None likewise.
        data_root: where relative weights may lie.

    Raises:
        RubError: an unknown judge, architecture or setting, a field that the judge does not take, a classifier without
            data, or weights that are not there.
    """
    chosen = resolved(JUDGES.get(judge.name, task), judge.parameters, "judge")
    inputs = {} if data is None else {"data": data}
    if judge.name != "classifier":
        if given := [name for name in _OURS if name in judge.model_fields_set]:
            raise RubError(f"judge.{given[0]}: is for the judge that RUB trains; {judge.name} does not take it")
        name, path = _weights(judge, data_root)
        files = {} if path is None else {"weights": path}
        hashes = {} if path is None else {item.name: file_sha256(item) for item in _files(judge.name, path)}
        if FACTS in hashes:
            raise RubError(f"judge.weights {path}: holds a file {FACTS}, a name that RUB needs; rename it")
        spec: dict[str, Any] = {"judge": chosen, "name": name, "sha256": hashes, "seed": SEED}
        if judge.name == "nudenet":
            from rub.judges.nudenet import release

            spec["package"] = release()  # its code decides which boxes there are
        return Stage(task, "judge", JUDGE_VERSION, f"take in the judge {judge.name}", spec, inputs, files, cost=1000)
    if data is None or dataset is None:
        raise RubError("judge classifier: is trained on the data set, and there is none; name another judge")
    if judge.weights is not None:
        raise RubError("judge.weights: the classifier is trained by RUB; leave them out, or name another judge")
    NETWORKS.get(judge.arch, "classification")
    spec = {
        "judge": chosen,
        "name": f"{dataset.name}-{judge.arch}",
        "model": {"arch": judge.arch, "stem": judge.stem, "width": judge.width},
        "training": judge.training.model_dump(),
        "validation": dataset.validation,
        "seed": SEED,
    }
    cost = 4.5 * judge.training.epochs * num_images(dataset, 9_500)
    return Stage(task, "judge", JUDGE_VERSION, "train the judge", spec, inputs, cost=cost)


def _weights(judge: JudgeSpec, data_root: Path | None) -> tuple[str, Path | None]:
    """Return a judge's name for reports, and where its weights are; None for a plug-in that was given none.

    Raises:
        RubError: nowhere; the ways to provide them are named.
    """
    if judge.name == "nudenet" and judge.weights is None:
        from rub.judges.nudenet import packaged

        return judge.name, packaged()
    weights = judge.weights or (IMAGENET if judge.name == "imagenet" else None)
    if weights is None:
        return judge.name, None
    return Path(weights).name or judge.name, found(weights, data_root, transformers=judge.name == "imagenet")


def found(weights: str, data_root: Path | None, *, transformers: bool = False) -> Path:
    """Return where a judge's weights are: a path, a path below the data root, or the hub's cache.

    Args:
        weights: a path or a hub id.
        data_root: folder of data and weights, or None.
        transformers: whether only the files that transformers reads are wanted.

    Raises:
        RubError: nowhere; the ways to provide them are named.
    """
    if (place := located(weights, data_root)).exists():
        return place
    from rub.models.hub import snapshot

    if not transformers:
        return snapshot(weights, "judge.weights", None)
    path = snapshot(weights, "judge.weights", ("*.json", "*.safetensors"))
    return path if any(path.glob("*.safetensors")) else snapshot(weights, "judge.weights", ("*.json", "*.bin"))


def _files(name: str, path: Path) -> list[Path]:
    """Return the files that a judge is read from, and its artifact keeps: a file, or those that lie in a folder."""
    if path.is_file():
        return [path]
    files = [item for item in sorted(path.iterdir()) if item.is_file() and not item.name.startswith(".")]
    if name != "imagenet":
        return files
    weights = ".safetensors" if any(item.suffix == ".safetensors" for item in files) else ".bin"
    return [item for item in files if item.suffix in (".json", weights)]
