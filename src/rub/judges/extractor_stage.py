"""The stage of the judge: what looks at generated images for IS, FID and KID. Free of torch."""

from pathlib import Path
from typing import Any

from rub.data.spec import DatasetSpec, JudgeSpec
from rub.errors import RubError
from rub.pipeline.graph import Stage
from rub.registry import NETWORKS
from rub.store.artifacts import file_sha256

JUDGE_VERSION = 1  # raised when the judge stage's results change
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"  # as torch-fidelity publishes it
SEED = 3000  # of the judge's training; the models under test use others


def judge_stage(
    task: str, judge: JudgeSpec, data: Stage, dataset: DatasetSpec, data_root: Path | None, size: int
) -> Stage:
    """Return the stage that trains the classifier, or takes in Inception's weights.

    Args:
        task: whose stage it is.
        judge: which judge.
        data: the data stage.
        dataset: names the classifier and its held-out share.
        data_root: where a relative weight file may lie.
        size: training images, for the cost.

    Raises:
        RubError: an unknown architecture, or no weight file.
    """
    if judge.name == "inception":
        path = _weights(judge, data_root)
        spec: dict[str, Any] = {"name": "inception", "sha256": file_sha256(path)}
        return Stage(task, "judge", JUDGE_VERSION, "take in Inception", spec, files={"weights": path}, cost=1000)
    NETWORKS.get(judge.arch, "classification")
    spec = {
        "name": f"{dataset.name}-{judge.arch}",
        "model": {"arch": judge.arch, "stem": judge.stem, "width": judge.width},
        "training": judge.training.model_dump(),
        "validation": dataset.validation,
        "seed": SEED,
    }
    cost = 3.0 * judge.training.epochs * size
    return Stage(task, "judge", JUDGE_VERSION, "train the judge", spec, {"data": data}, cost=cost)


def _weights(judge: JudgeSpec, data_root: Path | None) -> Path:
    if judge.weights is not None:
        places = [Path(judge.weights), *([data_root / judge.weights] if data_root is not None else [])]
    else:
        import torch.hub

        hub = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
        places = [*([data_root / INCEPTION_FILE] if data_root is not None else []), hub]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        looked = " or ".join(str(place) for place in places)
        raise RubError(f"judge: Inception's weights are not at {looked}; give judge.weights, or judge.name: classifier")
    return found
