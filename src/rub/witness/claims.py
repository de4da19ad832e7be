"""Witnesses: stored probes that recover, with all that anyone needs to score them again."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError, field_validator

from rub.config.suite import Frozen
from rub.errors import RubError
from rub.pipeline.cache import Cache
from rub.store.artifacts import Store, file_sha256
from rub.store.manifest import changed_files, read_manifest
from rub.store.records import read_records

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA_VERSION = 1
MANIFEST, TENSORS = "witness.json", "witness.safetensors"
LARGEST = 1 << 30  # bytes of a file of probes; a larger one is not read
LARGEST_CLAIM = 1 << 25  # bytes of a claim
HEX = r"^[0-9a-f]{64}$"


class ModelRef(Frozen):
    """Which weights: the stage that made them, their file's SHA-256, and that of the files they were read from."""

    kind: str = Field(pattern=r"^[a-z-]+$")
    key: str = Field(pattern=HEX)
    file: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    sha256: str = Field(pattern=HEX)
    sources: tuple[str, ...] = ()
    """SHA-256 of the foreign checkpoint, where the stage imported one."""


Name = Annotated[str, Field(max_length=300, pattern=r"^[ -~]*$")]  # such as components have


class SampleRef(Frozen):
    """Which sample: its id in the data set, the SHA-256 of its bytes (8-bit pixels), and the value of its probe."""

    id: int = Field(ge=0, lt=1 << 62, strict=True)
    sha256: str = Field(pattern=HEX)
    value: float


class Witness(Frozen):
    """A claim about some probes of one model: ``value <= at_most`` for each, by the task's own forward pass."""

    schema_version: int = Field(SCHEMA_VERSION, ge=1, le=SCHEMA_VERSION)
    task: Name
    method: Name
    unlearn_seed: int = Field(ge=0, lt=1 << 62, strict=True)
    attack: Name
    budget: str = Field(max_length=64)
    split: Name
    claim: str = Field(max_length=2000)
    """What the value is, in words."""
    at_most: float
    models: dict[str, ModelRef]
    data: dict[str, Any]
    """Key of the data stage, and the data set as a spec names it."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """What else the task needs, such as the masks' seed and ratio."""
    samples: tuple[SampleRef, ...] = Field(min_length=1, max_length=100_000)
    tensors_sha256: str = Field(pattern=HEX)

    @field_validator("samples")
    @classmethod
    def _once(cls, samples: tuple[SampleRef, ...]) -> tuple[SampleRef, ...]:
        if len({sample.id for sample in samples}) < len(samples):
            raise ValueError("a sample counts twice")
        return samples


@dataclass(frozen=True)
class Sources:
    """Where a check finds models and data.

    Attributes:
        store: a store that may hold them, or None.
        files: role (``original``, ``unlearned``) -> a checkpoint instead of the store's.
        data_root: folder with the standard data layouts, or None.
        device: where to run.
        batch_size: images per forward pass.
        cache: data and models that several claims are about, read once.
        zoo: folder of published models that may hold them, or None.
    """

    store: Store | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    data_root: Path | None = None
    device: str = "cpu"
    batch_size: int = 256
    cache: Cache = field(default_factory=Cache)
    zoo: Path | None = None


@dataclass(frozen=True)
class Check:
    """What a check of one witness file found.

    Attributes:
        name: of the file, without suffix.
        witness: the claim; None when it could not be read.
        held: number of probes whose claim holds.
        broken: one line for each probe whose claim does not hold, and for each contradiction among a folder's numbers.
        changed: one line for each file of the folder that is not as it was sealed.
        reason: why it could not be checked, or "".
    """

    name: str
    witness: Witness | None = None
    held: int = 0
    broken: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    reason: str = ""


def write_witness(witness: Mapping[str, Any], tensors: Mapping[str, "Tensor"], folder: Path) -> None:
    """Write the probes and, with their hash (``tensors_sha256`` of `Witness`), the claim about them into a folder."""
    import safetensors.torch

    kept = {name: tensor.contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(kept, folder / TENSORS)
    claim = Witness.model_validate({**witness, "tensors_sha256": file_sha256(folder / TENSORS)})
    (folder / MANIFEST).write_text(claim.model_dump_json(indent=1), encoding="utf-8")


def file_stem(witness: Witness, experiment: str = "") -> str:
    """Name under which a result folder keeps a witness of one of its experiments."""
    attack = (witness.attack, witness.budget, witness.split)
    parts = map(str, (witness.task, experiment, witness.method, witness.unlearn_seed, *attack))
    return re.sub(r"[^A-Za-z0-9]+", "-", "-".join(parts)).strip("-").lower()


def witness_files(folder: Path) -> Sequence[Path]:
    """Claims in a result folder, or in its ``witnesses/``, sorted by name."""
    place = folder / "witnesses" if (folder / "witnesses").is_dir() else folder
    found = sorted(item for item in place.glob("*.json") if item.with_suffix(".safetensors").exists())
    if not found:
        raise RubError(f"{folder}: no witnesses here; give a folder written by rub run --out")
    return found


def read_witness(path: Path) -> tuple[Witness, dict[str, "Tensor"]]:
    """Claim and its probes; both may come from anyone and are not trusted.

    Raises:
        RubError: a link, a file that is too large, damaged or no witness, or probes that are not those of the claim.
    """
    import safetensors.torch

    witness, tensors = read_claim(path), path.with_suffix(".safetensors")
    _check_file(tensors)
    if file_sha256(tensors) != witness.tensors_sha256:
        raise RubError(f"{tensors.name}: not the probes that the claim names (another SHA-256)")
    try:
        return witness, safetensors.torch.load_file(tensors)
    except Exception as error:  # damaged bytes make the reader fail in any way
        raise RubError(f"{tensors.name}: cannot be read ({type(error).__name__})") from None


def read_claim(path: Path) -> Witness:
    """Claim without its probes; it may come from anyone and is not trusted."""
    _check_file(path, LARGEST_CLAIM)
    try:
        return Witness.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        raise RubError(f"{path.name}: no witness: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RubError(f"{path.name}: cannot be read ({type(error).__name__})") from None


def _check_file(path: Path, largest: int = LARGEST) -> None:
    if path.is_symlink() or not path.is_file() or path.stat().st_size > largest:
        raise RubError(f"{path.name}: a link, or no file of at most {largest >> 20} MiB")


def _rows(folder: Path) -> set[tuple[Any, ...]]:
    return {
        (row.task, row.method, row.unlearn_seed, row.attack, row.budget, row.weights_sha256)
        for row in read_records(folder)
    }


def _row(witness: Witness) -> Iterator[tuple[Any, ...]]:
    unlearned = witness.models.get("unlearned")
    for weights in () if unlearned is None else (unlearned.sha256, *unlearned.sources):
        yield witness.task, witness.method, witness.unlearn_seed, witness.attack, witness.budget, weights


def _drawn(folder: Path, paths: Sequence[Path], count: int) -> list[Path]:
    seal = str(read_manifest(folder)["seal"])
    return sorted(sorted(paths, key=lambda path: sha256(f"{seal}/{path.name}".encode()).digest())[:count])


def _changed(folder: Path) -> list[str]:
    try:
        return changed_files(folder)
    except RubError as error:
        return [str(error)]


def _contradictions(folder: Path) -> tuple[str, ...]:
    from rub.reports.folders import contradictions_in

    try:
        return tuple(contradictions_in(folder))
    except RubError as error:
        return (str(error),)


def model_file(witness: Witness, role: str, sources: Sources) -> Path:
    """Weights of a role: a file that was given for any role, the store's or a zoo's, by the claim's SHA-256."""
    wanted = witness.models.get(role)
    if wanted is None:
        raise RubError(f"the claim names no {role} model")
    known = (wanted.sha256, *wanted.sources)
    if (given := next((path for path in sources.files.values() if _sha256(path, sources) in known), None)) is not None:
        return given  # of an audit, the row of the original claims its own model, and so does that of the retrained
    if (given := sources.files.get(role)) is not None:
        raise RubError(f"{given.name}: other weights than the {role} model of the claim (another SHA-256)")
    artifact = sources.store.find(wanted.kind, wanted.key) if sources.store is not None else None
    if artifact is None:
        from rub.zoo.lookup import by_weights

        found = None if sources.zoo is None else by_weights(sources.zoo, wanted.sha256)
        if found is None:
            place = "store" if sources.zoo is None else "store, nor in the zoo"
            raise RubError(f"the {role} model is not in the {place}; give its weights with --{role}")
        return found[0]
    if artifact.manifest["files"].get(wanted.file) != wanted.sha256:
        raise RubError(f"the store's {role} model has other weights than the claim is about (another SHA-256)")
    return artifact.file(wanted.file)


def _sha256(path: Path, sources: Sources) -> str:
    return sources.cache.get(("sha256", path), lambda: file_sha256(path))


def checks(folder: Path, sources: Sources, sample: int | None = None) -> Iterator[Check]:
    """What every witness of a folder turns out to be, by forward passes of its task.

    With `sample`, only that many files are scored, drawn by the folder's own seal. A result folder is compared with its
    manifest first: its changed files come as one check of their own, and files of witnesses among them are not scored.
    """
    from rub.registry import load_target, task_of

    paths = witness_files(folder)
    sealed = any((folder / name).is_file() for name in ("records.parquet", "records.json"))
    changed = _changed(folder) if sealed else []
    odd = _contradictions(folder) if sealed and not changed else ()
    rows = _rows(folder) if sealed and not changed else None
    if changed or odd:
        yield Check("the folder", broken=odd, changed=tuple(changed))
    for path in paths if sample is None else _drawn(folder, paths, sample):
        if any(line.startswith(f"witnesses/{path.stem}.") for line in changed):
            continue
        try:
            witness, tensors = read_witness(path)
            if rows is not None and not rows & set(_row(witness)):
                raise RubError("no record of this folder is about its method, seed, attack, budget and weights")
            task = task_of(witness.task)
            if not task.verify:
                raise RubError(f"task {witness.task}: its witnesses cannot be checked by this version")
            held, broken = load_target(task.verify)(witness, tensors, sources)
        except RubError as error:
            yield Check(path.stem, reason=str(error))
        except (RuntimeError, MemoryError) as error:  # a claim that asks for more than there is
            yield Check(path.stem, reason=f"cannot be scored ({type(error).__name__}: {str(error)[:100]})")
        else:
            yield Check(path.stem, witness, held, tuple(broken))
