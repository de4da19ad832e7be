"""What the leaderboard's rules are made of: an entry of some kind, a rule, and what one found."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from rub.audits.base import AUDIT_SUITE
from rub.audits.verdict_file import JSON
from rub.errors import RubError
from rub.reports.folders import EXTERNAL, ResultFolder, contradictions_in, read_folder
from rub.reports.samples import CELL, cells_of, tables_in
from rub.reports.text import printable
from rub.store.records import Record
from rub.tasks.classification.spec import ATTACK_PROTOCOL
from rub.witness.claims import Sources

Kind = Literal["run", "external models", "attack"]
KINDS: Sequence[Kind] = get_args(Kind)
LEAST = 10  # samples behind a number after the attack
SAMPLED = 24  # files of witnesses that are scored
RECOVERABLE = 0.5  # share that the search must bring back from the original, or it is too weak to judge others

Cell = tuple[Any, ...]


class Outcome(NamedTuple):
    """What ``samples.parquet`` says of one image: recognised without the attack, and with it."""

    clean: bool
    recovered: bool


@dataclass(frozen=True)
class Candidate:
    """A result folder that somebody wants to add: of a run, of an audit of published models, or of an attack's run."""

    folder: Path
    found: ResultFolder
    sources: Sources
    """Where models and data are, to score its witnesses again."""
    contradictions: Sequence[str] = ()
    """One line for each thing in it that something else in it contradicts."""

    @classmethod
    def read(cls, folder: Path, sources: Sources) -> Self:
        """A folder of anyone, whole and unchanged.

        Raises:
            RubError: it is not, or cannot be read.
        """
        found = read_folder(folder, consistent=False)
        return cls(folder, found, sources, tuple(contradictions_in(folder)))

    @property
    def kind(self) -> Kind:
        """Which of them, as the folder itself says."""
        if {record.protocol for record in self.found.records} == {ATTACK_PROTOCOL}:
            return "attack"
        audited = self.found.suite.get("name") == AUDIT_SUITE or (self.folder / JSON).is_file()
        return EXTERNAL if audited else "run"

    @cached_property
    def outcomes(self) -> Mapping[Cell, Mapping[int, Outcome]]:
        """`cell_of` a search -> id of each of its images -> what it gave; of images alone."""
        told, _ = tables_in(self.folder)
        found: dict[Cell, dict[int, Outcome]] = {}
        if told is None or "clean" not in told.column_names:
            return found
        for cell, rows in cells_of(told):
            own = told.take(rows)
            columns = (own[name].to_pylist() for name in ("sample_id", "clean", "recovered"))
            found[cell] = {identity: Outcome(clean, hit) for identity, clean, hit in zip(*columns, strict=True)}
        return found


def cell_of(record: Record) -> Cell:
    """Which search a record is of, as ``samples.parquet`` has it."""
    return tuple(getattr(record, name) for name in CELL)


@dataclass(frozen=True)
class Rule:
    """One rule, what it asks for, the kinds of entries that it is for, and what breaks it, one line each."""

    name: str
    asks: str
    problems: Callable[[Candidate], Iterable[str]]
    kinds: Collection[Kind] = KINDS

    def check(self, candidate: Candidate) -> "RuleCheck":
        """What breaks it; that it cannot be looked at does too."""
        try:
            return RuleCheck(self.name, self.asks, tuple(self.problems(candidate)))
        except RubError as error:
            return RuleCheck(self.name, self.asks, (str(error),))


@dataclass(frozen=True)
class RuleCheck:
    """One rule, what it asks for, and one line for each thing that breaks it; none where it is kept."""

    name: str
    asks: str
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reattack:
    """What attacking a method again gave, a row of ``submission.json``.

    Attributes:
        task: its task.
        experiment: its experiment.
        method: the method.
        seed: of its seeds the one that the folder's seal draws; of an attack's run, that of the model.
        budget: of the attack; "" where it was not run.
        images: how many of its images were attacked again.
        claimed: how many of these the folder calls recovered.
        found: how many were recovered.
        more: images that were recovered though the folder says that they are not.
        p: of a sign test that no more are recovered than was claimed.
        reason: why it was not attacked again, or "".
    """

    task: str
    experiment: str
    method: str
    seed: int
    budget: str = ""
    images: int = 0
    claimed: int = 0
    found: int = 0
    more: int = 0
    p: float = 1.0
    reason: str = ""


def sign_test(record: Record, said: NDArray[np.bool_], found: NDArray[np.bool_]) -> Reattack:
    """What attacking a row again gave on N images: bool (N,) said to be recovered, and (N,) found to be."""
    more, fewer = int((found & ~said).sum()), int((said & ~found).sum())
    p = float(binomtest(more, more + fewer, alternative="greater").pvalue) if more else 1.0
    where = (record.task, record.experiment, printable(record.method), record.unlearn_seed or 0, record.budget)
    return Reattack(*where, len(said), int(said.sum()), int(found.sum()), more, p)
