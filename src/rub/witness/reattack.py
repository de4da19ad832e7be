"""A row of a result folder attacked again: what a task is asked, and how its models and data are found.

Witnesses show that an input recovers; that no other does they cannot show. Whoever has the weights runs the search
again.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rub.config.hyperparameters import resolved
from rub.config.suite import Protocol
from rub.errors import RubError
from rub.pipeline.rng import seeded
from rub.pipeline.runtime import Runtime
from rub.registry import ATTACKS, task_of
from rub.reports.lineage import StageFacts, keys_of
from rub.store.artifacts import Artifact
from rub.store.records import Record
from rub.witness.claims import Sources
from rub.zoo.entry import read_model
from rub.zoo.lookup import by_weights, original_of

Bools = NDArray[np.bool_]
APART = 0.05  # share of samples of which another device may say otherwise: it rounds one or two
NOWHERE = "its search is not in the store; give the store of the run with --store"


@dataclass(frozen=True)
class ReattackRequest:
    """Some samples of a row whose search is to be run again; what is said of them may come from anyone.

    Attributes:
        record: a rate of forget samples after the main attack.
        ids: of N of its samples, int64.
        clean: bool (N,), whether the folder says that they are recovered without the attack.
        probe: of any of its samples, which names the search, and that its models and data.
        protocol: of the record.
        seal: what seeds are drawn from; whoever seals a folder anew changes it.
        originals: SHA-256 of the weights of the records' originals.
        stages: of the folder, ``stages.json``.
        sources: the store with models and data, or a zoo with the models.
    """

    record: Record
    ids: NDArray[np.int64]
    clean: Bools
    probe: str
    protocol: Protocol
    seal: str
    originals: Collection[str]
    stages: Sequence[StageFacts]
    sources: Sources

    @property
    def seed(self) -> int:
        """Seed of the search: the checker's own, which nobody knows before the folder is sealed."""
        return int.from_bytes(sha256(f"{self.seal}/{self.record.key}".encode()).digest()[:4], "big")

    @property
    def search(self) -> str:
        """Key of the stage that searched."""
        return self.probe.partition(":")[0]

    @property
    def runs(self) -> list[dict[str, Any]]:
        """The protocol's searches of the record's attack, as the spec of a stage has them."""
        record, plan = self.record, self.protocol.attacks[self.record.attack]
        return [resolved(ATTACKS.get(run.name, record.task), run.parameters, record.attack) for run in plan.runs]

    @property
    def runtime(self) -> Runtime:
        """Where the search runs."""
        given = self.sources
        return Runtime(given.device, given.batch_size, given.data_root, cache=given.cache)

    @property
    def read(self) -> Mapping[str, StageFacts]:
        """What the search read, by role, as ``stages.json`` says; empty where it says nothing of it."""
        row = dict(zip(keys_of(self.stages), self.stages, strict=True)).get(self.search)
        return {} if row is None else {role: self.stages[number] for role, number in row.inputs.items()}

    def rows(self, known: Tensor) -> Tensor:
        """Where its samples stand among these ids, int64 (M,): int64 (N,).

        Raises:
            RubError: one does not.
        """
        places = {identity: row for row, identity in enumerate(known.tolist())}
        if missing := [identity for identity in self.ids.tolist() if identity not in places]:
            raise RubError(f"its sample {missing[0]} is not among those of its search: other data, or other samples")
        return torch.tensor([places[identity] for identity in self.ids.tolist()])

    def compare(self, clean: Bools) -> None:
        """Compare what the model does without the attack, bool (N,), with what the folder says.

        Raises:
            RubError: it is another model.
        """
        if (wrong := int((clean != self.clean).sum())) > APART * len(clean):
            raise RubError(
                f"its model says otherwise than the folder of {wrong} of {len(clean)} samples without an attack"
            )


ReattackFunction = Callable[[ReattackRequest], Bools]
"""Which of the samples, bool (N,), the protocol's search recovers; `RubError` where it cannot be run."""


def drawn(ids: Sequence[int], count: int, seal: str) -> NDArray[np.int64]:
    """At most so many of these samples, int64, drawn by a folder's seal.

    Example:
        >>> drawn([7, 3, 5], 2, "a").tolist() == drawn([5, 3, 7], 2, "a").tolist()
        True
    """
    known = np.sort(np.asarray(ids, np.int64))
    number = int.from_bytes(sha256(seal.encode()).digest()[:4], "big")
    order = torch.randperm(len(known), generator=seeded(number, "reattack")).numpy()
    return np.sort(known[order[:count]])


def stored(request: ReattackRequest, weights: Callable[[Artifact], str]) -> tuple[Artifact, dict[str, Artifact]] | None:
    """The search behind a row and, by role, what it read; None where the store has not the search.

    Args:
        request: the row.
        weights: from the artifact of a model to the name of its file of weights.

    Raises:
        RubError: something that it read is not in the store, or a model has other weights than the records name.
    """
    store = request.sources.store
    search = None if store is None else store.find("attack", request.search)
    if store is None or search is None:
        return None
    found: dict[str, Artifact] = {}
    kinds = task_of(request.record.task).functions
    for role, key in search.manifest["inputs"].items():
        made = next((one for kind in kinds if (one := store.find(kind, key)) is not None), None)
        if made is not None:
            found[role] = made
        elif role != "warm":  # a search at a smaller budget, which is run again too
            raise RubError(f"its {role} is not in the store; give the store of the run with --store")
    for role, named in (("unlearned", {request.record.weights_sha256}), ("original", set(request.originals))):
        if role in found and found[role].sha256(weights(found[role])) not in named:
            raise RubError(f"the store's {role} model has other weights than the records name")
    return search, found


def published(request: ReattackRequest) -> tuple[Path, Path] | None:
    """Folders of a row's original and unlearned model in the zoo; None where it has not the weights of the record.

    Raises:
        RubError: their original is not there, or another one than the records'.
    """
    zoo = request.sources.zoo
    found = None if zoo is None else by_weights(zoo, request.record.weights_sha256)
    if zoo is None or found is None:
        return None
    file, model = found
    original = original_of(zoo, model)
    if read_model(original).files.get(file.name) not in request.originals:
        raise RubError("the zoo's original has other weights than the records' original")
    return original, file.parent
