"""What is known of an experiment's concept once the data is there: its class, its names, the retained ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rub.data.class_names import class_number, names_of, spaced
from rub.data.splits import input_dataset
from rub.errors import RubError
from rub.judges.spec import source_of
from rub.pipeline.runtime import Runtime
from rub.store.artifacts import Artifact


@dataclass(frozen=True)
class ResolvedConcept:
    """A concept and what it stands beside.

    Attributes:
        name: of the concept.
        prompt: what it is called in a prompt.
        anchor: the prompt that methods may map it to.
        label: its class in the data set; None without one.
        judged_as: what the judge calls it: an index, or a label of the judge's own.
        names: of every class of the data set; () without one.
        retained_names: one for each retained concept; the floor, which no model saw, is none of them.
        retained_classes: their classes in the data set; () without one.
        retained_judged: what the judge calls each of them.
    """

    name: str
    prompt: str
    anchor: str
    label: int | None
    judged_as: int | str
    names: tuple[tuple[str, ...], ...]
    retained_names: tuple[str, ...]
    retained_classes: tuple[int, ...]
    retained_judged: tuple[int | str, ...]


def resolve_concept(concept: Mapping[str, Any], inputs: Mapping[str, Artifact], runtime: Runtime) -> ResolvedConcept:
    """What is known of a concept.

    It comes as `ConceptSpec.model_dump()` with ``judge``, the judge's name, and ``retain``, the names of retained
    concepts where there is no data.
    """
    name, given = concept["name"], concept["judged_as"]
    if "data" not in inputs:
        kept = [item for item in concept["retain"] if item not in (name, concept.get("floor"))]
        prompt, heard = concept["prompt"] or spaced(name), tuple(map(spaced, kept))
        own = spaced(name) if given is None else given
        return ResolvedConcept(name, prompt, concept["anchor"], None, own, (), heard, (), heard)
    classes = input_dataset(inputs, runtime).classes
    names = tuple(tuple(found) for found in names_of(classes))
    label = class_number(name, classes, "concept") if concept["label"] is None else concept["label"]
    if label >= len(classes):
        raise RubError(f"concept.label: class {label} does not exist; the data has classes 0 to {len(classes) - 1}")
    never = {label} | ({class_number(floor, classes, "concept")} if (floor := concept.get("floor")) else set())
    others = tuple(place for place in range(len(classes)) if place not in never)
    own = source_of(concept["judge"], "text-to-image").train is not None  # its labels are the classes of the data
    calls: tuple[int | str, ...] = tuple(place if own else found[0] for place, found in enumerate(names))
    return ResolvedConcept(
        name,
        concept["prompt"] or names[label][0],
        concept["anchor"],
        label,
        calls[label] if given is None else given,
        names,
        tuple(names[place][0] for place in others),
        others,
        tuple(calls[place] for place in others),
    )
