"""What witnesses about images share: which weights, which images, and how both are found again and compared."""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from rub.config.hyperparameters import first_error
from rub.data.base import source_of
from rub.data.samples import Samples
from rub.data.selection import Selection
from rub.data.sources import load_images
from rub.data.spec import DatasetSpec
from rub.data.splits import load_dataset
from rub.errors import RubError
from rub.store.artifacts import Artifact
from rub.witness.claims import Sources, Witness

LARGEST_SIDE = 256


def model_reference(artifact: Artifact, file: str) -> dict[str, Any]:
    """The file of a stage's output that a claim is about, and the foreign checkpoint that it was read from."""
    given = artifact.manifest["spec"].get("sha256", {}) if artifact.manifest["kind"] == "import" else {}
    sources = [given] if isinstance(given, str) else sorted(given.values())
    return {
        "kind": artifact.manifest["kind"],
        "key": artifact.key,
        "file": file,
        "sha256": artifact.sha256(file),
        "sources": sources,
    }


def data_reference(artifact: Artifact, images: str) -> dict[str, Any]:
    """The data that a claim is about, its ``train`` or ``test`` images; a path is nobody else's, and left out."""
    spec = {name: value for name, value in artifact.manifest["spec"].items() if name not in ("fingerprint", "source")}
    return {"key": artifact.key, "images": images, "spec": spec}


def image_sha256(image: Tensor) -> str:
    """SHA-256 of an image's uint8 pixels (C, H, W)."""
    return sha256(image.contiguous().numpy().tobytes()).hexdigest()


def claimed_images(witness: Witness, sources: Sources) -> Samples:
    """Images of a claim, out of the store's data or the data root, after comparing their SHA-256."""
    images = "test" if witness.data.get("images") == "test" else "train"
    key = str(witness.data.get("key", ""))
    pool, place = sources.cache.get(("images", key, images), lambda: _numbered(_pool(witness, key, images, sources)))
    missing = [sample.id for sample in witness.samples if sample.id not in place]
    if missing:
        raise RubError(f"the data has no {images} image {missing[0]}: another data set, or another version of it")
    samples = pool.select([place[sample.id] for sample in witness.samples])
    for image, sample in zip(samples.images, witness.samples, strict=True):
        if image_sha256(image) != sample.sha256:
            raise RubError(f"image {sample.id} is not the one of the claim (another SHA-256): another data set?")
    return samples


def _numbered(pool: Samples) -> tuple[Samples, dict[int, int]]:
    return pool, {identity: row for row, identity in enumerate(pool.ids.tolist())}


def _pool(witness: Witness, key: str, images: str, sources: Sources) -> Samples:
    artifact = sources.store.find("data", key) if sources.store is not None else None
    if artifact is not None:
        dataset = load_dataset(artifact)
        return dataset.test if images == "test" else dataset.train
    spec = _dataset(witness.data.get("spec"))
    if spec.size is not None and spec.size > LARGEST_SIDE:
        raise RubError(f"the claim asks for images of {spec.size} px; at most {LARGEST_SIDE} are made for a check")
    selection = Selection.of(spec.model_dump(exclude_defaults=True))
    by_path = source_of(spec.name).by_path
    path = sources.data_root if by_path else None
    if by_path and path is None:
        raise RubError(f"the claim is about a {spec.name} of images: give its place with --data-root")
    loaded = load_images(spec.name, sources.data_root, path=path, size=spec.size, selection=selection)
    return loaded.test if images == "test" else loaded.train


def _dataset(given: Any) -> DatasetSpec:
    fields: Mapping[str, Any] = given if isinstance(given, dict) else {}
    try:
        return DatasetSpec.model_validate({name: value for name, value in fields.items() if name != "path"})
    except ValidationError as error:
        raise RubError(first_error(error, "the claim's data set", DatasetSpec.model_fields)) from None
