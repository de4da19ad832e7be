"""What witnesses about images share: which weights, which images, and how both are found again and compared."""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from rub.config.hyperparameters import first_error
from rub.data.base import source_of
from rub.data.samples import ImageDataset, Samples, concatenate
from rub.data.selection import Selection
from rub.data.sources import load_images
from rub.data.spec import DatasetSpec
from rub.data.splits import load_dataset
from rub.errors import RubError
from rub.store.artifacts import Artifact
from rub.witness.claims import Sources, Witness

LARGEST_SIDE = 256
_STAGE = ("fingerprint", "source")  # what a stage's spec says of its data besides
_OWN = (*_STAGE, "path")  # what nobody else has, or needs


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
    spec = {name: value for name, value in artifact.manifest["spec"].items() if name not in _STAGE}
    return {"key": artifact.key, "images": images, "spec": spec}


def image_sha256(image: Tensor) -> str:
    """SHA-256 of an image's uint8 pixels (C, H, W)."""
    return sha256(image.contiguous().numpy().tobytes()).hexdigest()


def claimed_images(witness: Witness, sources: Sources) -> Samples:
    """Images of a claim, out of the store's data or the data root, after comparing their SHA-256.

    Both parts of the data are looked at, the claim's own first: of a folder that has no test images of its own, an
    added file may have moved an image from one to the other.
    """
    images = "test" if witness.data.get("images") == "test" else "train"
    key = str(witness.data.get("key", ""))
    pools = sources.cache.get(("images", key, images), lambda: _numbered(witness, key, images, sources))
    found = []
    for sample in witness.samples:
        known = [(pool, place[sample.id]) for pool, place in pools if sample.id in place]
        if not known:
            raise RubError(f"the data has no {images} image {sample.id}: another data set, or another version of it")
        same = [(pool, row) for pool, row in known if image_sha256(pool.take([row])[0]) == sample.sha256]
        if not same:
            raise RubError(f"image {sample.id} is not the one of the claim (another SHA-256): another data set?")
        found.append(same[0])
    own = pools[0][0]
    if all(pool is own for pool, _ in found):
        return own.select([row for _, row in found])
    return concatenate([pool.select([row]) for pool, row in found])


def _numbered(witness: Witness, key: str, images: str, sources: Sources) -> list[tuple[Samples, dict[int, int]]]:
    dataset = _claimed_data(witness, key, sources)
    pools = [dataset.test, dataset.train] if images == "test" else [dataset.train, dataset.test]
    return [(pool, {identity: row for row, identity in enumerate(pool.ids.tolist())}) for pool in pools]


def _claimed_data(witness: Witness, key: str, sources: Sources) -> ImageDataset:
    artifact = sources.store.find("data", key) if sources.store is not None else None
    return load_dataset(artifact) if artifact is not None else claimed_dataset(witness.data.get("spec"), sources)


def claimed_dataset(given: Any, sources: Sources) -> ImageDataset:
    """The images that a specification of anyone names.

    Raises:
        RubError: it is none, asks for too large images, or its data are not there.
    """
    spec = _dataset(given)
    if spec.size is not None and spec.size > LARGEST_SIDE:
        raise RubError(f"the claim asks for images of {spec.size} px; at most {LARGEST_SIDE} are made for a check")
    selection = Selection.of(spec.model_dump(exclude_defaults=True))
    by_path = source_of(spec.name).by_path
    path = sources.data_root if by_path else None
    if by_path and path is None:
        raise RubError(f"the claim is about a {spec.name} of images: give its place with --data-root")
    return load_images(spec.name, sources.data_root, path=path, size=spec.size, selection=selection)


def _dataset(given: Any) -> DatasetSpec:
    fields: Mapping[str, Any] = given if isinstance(given, dict) else {}
    known = {name: value for name, value in fields.items() if name not in _OWN}
    try:
        return DatasetSpec.model_validate(known)
    except ValidationError as error:
        raise RubError(first_error(error, "the claim's data set", DatasetSpec.model_fields)) from None
