"""Audits of models in memory: their images as a data set that lasts as long as the audit."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from rub.data.base import DatasetSource
from rub.data.memory import Images, samples_of
from rub.data.samples import Samples, concatenate
from rub.data.selection import Read
from rub.errors import RubError
from rub.registry import ANY, DATASETS, Entry

DATASET = "in-memory"


@dataclass(frozen=True)
class LiveData:
    """The images of an audit.

    Attributes:
        train: forgotten and retained training images, in the order of their ids.
        test: images that no model saw.
        forget_classes: the classes of the forgotten ones where no retained one has them; else empty.
        forget_ids: ids of the forgotten ones where retained ones are of the same classes; else empty.
    """

    train: Samples
    test: Samples
    forget_classes: tuple[int, ...]
    forget_ids: tuple[int, ...] = ()

    @property
    def labels(self) -> Tensor:
        """Labels of all images, int64."""
        return torch.cat([self.train.labels, self.test.labels])


def live_data(forget: Images, retain: Images, test: Images) -> LiveData:
    """The images of an audit; training images keep their ids where no two are the same, else they are numbered."""
    sets = {"forget": forget, "retain": retain, "test": test}
    forgotten, retained, unseen = (samples_of(images, name=name) for name, images in sets.items())
    classes = tuple(sorted(set(forgotten.labels.tolist())))
    single = bool(set(classes) & set(retained.labels.tolist()))
    if single and forgotten.shape == retained.shape:
        known = {image.numpy().tobytes() for image in forgotten.images}
        both = sum(image.numpy().tobytes() in known for image in retained.images)
        if 2 * both > len(forgotten):  # a few images are twice in many data sets
            raise RubError(f"retain: holds {both} of the {len(forgotten)} forgotten images; should hold the others")
    for name, images in (("retain", retained), ("test", unseen)):
        if images.shape != forgotten.shape:
            raise RubError(f"{name}: images {images.shape}; should be {forgotten.shape}, as those of forget")
    of_forgotten = torch.isin(unseen.labels, torch.tensor(classes))
    if not of_forgotten.any() or (of_forgotten.all() and not single):
        raise RubError("test: should have images of forgotten classes and of retained ones")
    train = concatenate([forgotten, retained])
    if len(set(train.ids.tolist())) < len(train):
        train = replace(train, ids=torch.arange(len(train)))
    chosen = tuple(train.ids[: len(forgotten)].tolist()) if single else ()
    return LiveData(train.select(train.ids.argsort()), unseen, () if single else classes, chosen)


def register(data: LiveData, classes: int) -> None:
    """Register the images as the data set `DATASET`, in the body of `rub.registry.scoped`."""
    images = Read(tuple(map(str, range(classes))), data.train, data.test)

    def read(place: Path | None) -> Read:
        return images

    DATASETS.add(Entry(DATASET, ANY, "", DatasetSource(DATASET, read, images=len(data.train)), "rub"))
