"""ImageNet-1k: the paper's 200 classes, and reading a few images of each class from the hub."""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from io import BytesIO
from typing import Any, cast

import numpy as np

from rub.data import hub
from rub.data.decoding import allocate, compact, notes_of
from rub.data.image_file import Unreadable, read_image, without_warnings
from rub.data.samples import Samples
from rub.data.selection import Read, Selection
from rub.errors import RubError
from rub.pipeline.callback import Progress, silent

HUB_ID = "ILSVRC/imagenet-1k"
VAL_PER_CLASS = 50  # images of each class in ImageNet's validation set
WNID = re.compile(r"n\d{8}")


@cache
def i2i_classes() -> Mapping[str, int]:
    """The 200 classes of Li et al. (ICLR 2024), which the paper uses: wnid -> place among the 1,000 sorted wnids.

    Source: ``datacsv/img_r_folder_dict.yaml`` of jpmorganchase/i2i_mage, branch i2i, commit ae25285.

    Example:
        >>> i2i_classes()["n01443537"]
        1
    """
    text = files("rub.data").joinpath("i2i_classes.csv").read_text(encoding="utf-8")
    return {row["wnid"]: int(row["imagenet_index"]) for row in csv.DictReader(text.splitlines())}


def i2i_wnids() -> tuple[str, ...]:
    """The wnids of `i2i_classes` in order: labels 0..99 are forgotten, 100..199 retained."""
    return tuple(i2i_classes())


class HubImageNet:
    """ImageNet as the hub streams it: of each class the first images are kept, until every class has its share.

    The order is the hub's own, which is fixed; so is the subset, but it is not the one that a folder gives. Images are
    resized as `read_image` does. Samples are ordered by class; an id is label * share + rank.
    """

    id = HUB_ID

    def read(self, where: str, seconds: float, *, size: int, selection: Selection, progress: Progress = silent) -> Read:
        """Stream the classes of a selection; `where` begins the message that there is no access."""
        wnids = _streamed(selection)
        splits = hub.open_stream(HUB_ID, where, seconds)
        shares = {"train": cast(int, selection.per_class), "validation": selection.test_per_class or VAL_PER_CLASS}
        parts: list[Samples] = []
        lost: list[str] = []
        remarks: dict[str, list[str]] = {}
        for split, share in shares.items():
            rows = hub.raw_rows(splits[split], HUB_ID)
            wanted = _wanted(rows, wnids)
            with without_warnings():
                samples, skipped = _fill(wanted, wnids, share, size, selection.skip_unreadable, progress, remarks)
            parts.append(samples)
            lost += [f"{split}/{name}" for name in skipped]
        return Read(wnids, parts[0], parts[1], tuple(lost), notes_of(remarks))

    def revision(self, where: str, seconds: float, selection: Selection) -> str:
        """Hub id and commit."""
        _streamed(selection)
        return hub.stream_revision(HUB_ID, where, seconds)


def _streamed(selection: Selection) -> tuple[str, ...]:
    # all of it would be 150 GB, and the label numbers of other classes are not known here
    if selection.per_class is None:
        raise RubError("dataset.per_class: needed to read imagenet from the hub; give one, such as per_class: 120")
    strangers = [name for name in selection.classes or ("all",) if name not in i2i_classes()]
    if selection.classes is None or strangers:
        raise RubError(
            f"dataset.classes: '{strangers[0]}' cannot be read from the hub, only the 200 classes of i2i; give some of"
            " these, or 'i2i', or put imagenet/{train,val}/<wnid>/ under --data-root"
        )
    return selection.classes


def _wanted(rows: Iterable[Mapping[str, Any]], wnids: tuple[str, ...]) -> Iterator[tuple[int, str, bytes]]:
    """Yield (label, name, bytes) of the rows whose class is wanted; the hub's labels follow the sorted wnids."""
    labels = {i2i_classes()[wnid]: label for label, wnid in enumerate(wnids)}
    for number, row in enumerate(rows):
        if (label := labels.get(row["label"])) is None:
            continue
        name = row["image"]["path"] or f"row {number}"
        if (found := WNID.findall(name)) and found[-1] != wnids[label]:
            raise RubError(f"{HUB_ID}: {name} is labelled {row['label']}, which should be {wnids[label]}")
        yield label, name, row["image"]["bytes"] or b""


def _fill(
    rows: Iterable[tuple[int, str, bytes]],
    wnids: tuple[str, ...],
    share: int,
    size: int,
    skip: bool,
    progress: Progress,
    remarks: dict[str, list[str]],
) -> tuple[Samples, list[str]]:
    total = len(wnids) * share
    images = allocate((total, 3, size, size))
    good, seen = np.zeros(total, dtype=bool), np.zeros(len(wnids), dtype=np.int64)
    skipped = []
    for label, name, content in rows:
        if seen[label] == share:
            continue
        place = label * share + seen[label]
        seen[label] += 1
        try:
            pixels, done = read_image(BytesIO(content), size, f"{HUB_ID}: {name}")
        except Unreadable:
            if not skip:
                raise
            skipped.append(name)
        else:
            images[place], good[place] = pixels.transpose(2, 0, 1), True
            for remark in done:
                remarks.setdefault(remark, []).append(name)
        progress(int(seen.sum()), total, "from the hub")
        if seen.sum() == total:
            break
    labels = np.repeat(np.arange(len(wnids)), share)
    if len(gone := np.setdiff1d(labels, labels[good])):
        raise RubError(f"{HUB_ID}: no readable image for {len(gone)} of {len(wnids)} classes, such as {wnids[gone[0]]}")
    return compact(images, labels, good), skipped
