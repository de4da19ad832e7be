"""What people are told of the images behind a result: forgotten classes by name, what was left out or changed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rub.config.suite import Experiment, Frozen
from rub.data.class_names import class_number, titled
from rub.store.artifacts import Artifact

META, FILES = "meta.json", "files.json"
"""Files of a data artifact: facts about it, and sample id -> name of the sample's file where samples are files."""
SHOWN = 10  # images left out that a console lists


class DataFacts(Frozen):
    """What is told of the data of one experiment, as ``manifest.json`` of a result folder has it."""

    task: str
    experiment: str
    forgotten: tuple[str, ...] = ()
    """Forgotten classes, each with its number and name."""
    skipped: tuple[str, ...] = ()
    """Images that were left out because they cannot be read."""
    notes: tuple[str, ...] = ()
    """What was done to some images, such as scaling 16 bits to 8."""

    def lines(self) -> Iterator[str]:
        """The same for a console.

        Example:
            >>> list(DataFacts(task="", experiment="", forgotten=("0 (cat)",), skipped=("cat/3.png",)).lines())
            ['forgotten: class 0 (cat)', 'left out, cannot be read: 1 image: cat/3.png']
        """
        if self.forgotten:
            yield f"forgotten: {'classes' if len(self.forgotten) > 1 else 'class'} {', '.join(self.forgotten)}"
        if count := len(self.skipped):
            more = f" and {count - SHOWN} more" if count > SHOWN else ""
            listed = ", ".join(self.skipped[:SHOWN])
            yield f"left out, cannot be read: {count} image{'s' if count > 1 else ''}: {listed}{more}"
        yield from self.notes


def facts_of(artifact: Artifact, experiment: Experiment) -> DataFacts:
    """Facts about a data artifact and an experiment's forget set."""
    meta = artifact.json(META)
    forget = getattr(experiment, "forget", None)
    numbers = sorted({class_number(one, meta["classes"]) for one in getattr(forget, "classes", None) or ()})
    return DataFacts(
        task=experiment.task,
        experiment=experiment.name,
        forgotten=tuple(titled(number, meta["classes"]) for number in numbers),
        skipped=tuple(meta.get("skipped", ())),
        notes=tuple(meta.get("notes", ())),
    )


def placed(rows: Sequence[Mapping[str, Any]], artifact: Artifact) -> list[dict[str, Any]]:
    """Rows of samples with the name of each one's class, and of its file where samples are files.

    The rows have ``sample_id`` and ``label``; those without a label are not of images, and stay as they are.
    """
    classes = dict(enumerate(artifact.json(META)["classes"]))
    files = artifact.json(FILES) if FILES in artifact.manifest["files"] else {}
    return [
        {**row, "class": classes.get(row["label"], ""), "file": files.get(str(row["sample_id"]), "")} if "label" in row
        else dict(row)
        for row in rows
    ]  # fmt: skip
