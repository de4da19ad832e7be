"""Which judge a suite asks for, where judges come from, and the stage that makes one. Free of torch."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field

from rub.config.hyperparameters import resolved
from rub.config.suite import Component, located
from rub.data.spec import DatasetSpec, TrainingSpec
from rub.errors import RubError
from rub.models.lookup import network_spec
from rub.pipeline.graph import Stage
from rub.registry import JUDGES, Card, register
from rub.store.artifacts import file_sha256

if TYPE_CHECKING:
    from rub.data.samples import ImageDataset
    from rub.pipeline.runtime import Runtime

F = TypeVar("F", bound=Callable[..., Any])
SEED = 3000  # of the judge's training; the models under test use others
FACTS = "judge.json"
TRAINING_FIELDS = ("arch", "stem", "width", "training")  # of judges that RUB trains


class JudgeSpec(Component):
    """What looks at generated images: a name of `rub list judges`, with its settings."""

    name: str = "classifier"
    weights: str | None = None
    """A model folder or file, for judges that RUB does not train."""
    arch: str = "resnet10"
    """Of a trained classifier, a name of `rub list models --task classification`."""
    stem: Literal["cifar", "imagenet", "half"] = "cifar"
    width: int | None = Field(None, ge=1, le=1024)
    training: TrainingSpec = TrainingSpec(epochs=20, lr=0.1, schedule="onecycle")
    """Of the classifier, on all classes, the forgotten ones included: it judges, it does not unlearn."""


def find_weights(weights: str | None, data_root: Path | None) -> Path | None:
    """Weights that a suite names: a path, a path below the data root, or a hub id; None where it names none."""
    return None if weights is None else path_or_snapshot(weights, data_root)


def path_or_snapshot(weights: str, data_root: Path | None, **needed: Any) -> Path:
    """Path of weights on disk, else of a hub model in the hub's cache; `needed` as for `rub.models.hub.snapshot`."""
    if (place := located(weights, data_root)).exists():
        return place
    from rub.models.hub import HubName, snapshot

    return snapshot(HubName.parse(weights, "judge.weights"), **needed)


def all_files(folder: Path) -> list[Path]:
    """Files that lie in a folder."""
    return [item for item in sorted(folder.iterdir()) if item.is_file() and not item.name.startswith(".")]


@dataclass(frozen=True)
class JudgeSource:
    """Where a judge comes from: RUB trains it on the suite's data, or it is read from files.

    Attributes:
        train: (spec of the stage, data set, folder, runtime) -> facts: trains the judge, writes its files into the
            folder, and says what to know of it; None for judges that are read.
        weights: path or hub id where the suite names none; "" for none.
        find: (weights, data root) -> where they are; None for a judge that needs none.
        files: those of a folder that are read, and copied into the artifact.
        kept_as: name of the one weight file in the artifact, whatever it was called; "" keeps names.
        package: distribution whose version decides results.
        title: in the stage's label.
        labels: path of the weights -> what the judge calls its classes, read without the network, so that a concept
            which it does not know is refused before the run; none where that cannot be told.
    """

    train: "Callable[[Mapping[str, Any], ImageDataset, Path, Runtime], dict[str, Any]] | None" = None
    weights: str = ""
    find: Callable[[str | None, Path | None], Path | None] = find_weights
    files: Callable[[Path], Iterable[Path]] = all_files
    kept_as: str = ""
    package: str = ""
    title: str = ""
    labels: Callable[[Path], Sequence[str]] = lambda weights: ()


def judge(name: str, *, task: str, card: Card | None = None, source: JudgeSource | None = None) -> Callable[[F], F]:
    """Register a judge of generated images: ``def f(files, context, *, settings) -> Judge``.

    `files` are its weights, a file or a folder, or None; `context` is a `rub.judges.base.JudgeContext`: name, batch
    size, device, and what was measured of it. Settings as hyperparameters of `rub.method`. `Argmax` of that module is a
    judge for any classifier.

    Args:
        name: as suites call it.
        task: ``inpainting``, where it gives features and logits for IS, FID and KID; or ``text-to-image``, where it
            also says which images show a concept.
        card: what `rub show` says of it.
        source: where it comes from; read from ``judge.weights``, all files of a folder, when left out.
    """
    return register(JUDGES, name, task, card, extra=source)


def source_of(name: str, task: str) -> JudgeSource:
    """Where the judge of this name comes from."""
    found: JudgeSource = JUDGES.loaded(name, task).extra or JudgeSource()
    return found


def judge_stage(
    task: str,
    judge: JudgeSpec,
    data: Stage | None,
    dataset: DatasetSpec | None,
    data_root: Path | None,
    *,
    version: int,
    images: float,
    measured: bool,
) -> Stage:
    """Stage that trains the judge on so many images, or takes in one that someone else trained.

    With `measured`, the data set's test images say how good one is that someone else trained.
    """
    chosen = resolved(JUDGES.get(judge.name, task), judge.parameters, "judge")
    source = source_of(judge.name, task)
    # Two judges of RUB have no settings: they were in keys before there were others.
    spec: dict[str, Any] = {"judge": chosen} if chosen["parameters"] or chosen["source"] else {}
    if source.train is not None:
        if data is None or dataset is None:
            raise RubError(f"judge {judge.name}: is trained on the data set, and there is none; name another judge")
        if judge.weights is not None:
            raise RubError(f"judge.weights: the {judge.name} is trained by RUB; leave them out, or name another judge")
        spec |= {
            "name": f"{dataset.name}-{judge.arch}",
            "model": network_spec({"arch": judge.arch, "stem": judge.stem, "width": judge.width}),
            "training": judge.training.model_dump(),
            "validation": dataset.validation,
            "seed": SEED,
        }
        cost = 3.0 * judge.training.epochs * images
        return Stage(task, "judge", version, "train the judge", spec, {"data": data}, cost=cost)
    if given := [name for name in TRAINING_FIELDS if name in judge.model_fields_set]:
        raise RubError(f"judge.{given[0]}: is for the judge that RUB trains; {judge.name} does not take it")
    weights = judge.weights or source.weights or None
    path = source.find(weights, data_root)
    spec |= _identity(judge.name, weights, path, source)
    if measured:
        spec["seed"] = SEED
    if source.package:
        spec["package"] = release(source.package)
    return Stage(
        task,
        "judge",
        version,
        f"take in {source.title or f'the judge {judge.name}'}",
        spec,
        {"data": data} if measured and data is not None else {},
        files={} if path is None else {"weights": path},
        cost=1000,
    )


def _identity(name: str, weights: str | None, path: Path | None, source: JudgeSource) -> dict[str, Any]:
    """Name of a judge in reports, and the SHA-256 of what it is read from."""
    if source.kept_as and path is not None:
        return {"name": name, "sha256": file_sha256(path)}
    files = [] if path is None else [path] if path.is_file() else source.files(path)
    hashes = {item.name: file_sha256(item) for item in files}
    if FACTS in hashes:
        raise RubError(f"judge.weights {path}: holds a file {FACTS}, a name that RUB needs; rename it")
    return {"name": (weights and Path(weights).name) or name, "sha256": hashes}


def release(package: str) -> str:
    """Version of an installed distribution.

    Example:
        >>> release("no-such-distribution")
        'of unknown version'
    """
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "of unknown version"
