"""Data sets from the Hugging Face hub, with a short limit on how long an offline machine is kept waiting."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from http.client import HTTPException
from threading import Event, Thread
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import torch

from rub.data.samples import Samples
from rub.data.selection import EVERYTHING, Read, Selection
from rub.errors import RubError


@dataclass(frozen=True)
class HubDataset:
    """A data set that the hub's library `datasets` downloads whole.

    Attributes:
        id: on the hub.
        image: column of the images.
        label: column of the labels.
        test: split of the test images; those for training are in ``train``.
    """

    id: str
    image: str
    label: str
    test: str

    def read(self, where: str, seconds: float) -> Read:
        """Load the data through `datasets`: from its cache, else over the network; `where` begins its error."""
        loaded = _load(self.id, where, seconds)
        train, test = (_samples(loaded[split], self.image, self.label) for split in ("train", self.test))
        return Read(tuple(loaded["train"].features[self.label].names), train, test)

    def revision(self, where: str, seconds: float, selection: Selection = EVERYTHING) -> str:
        """Hub id and the fingerprints of all splits."""
        loaded = _load(self.id, where, seconds)
        return " ".join([self.id, *(f"{split}={part._fingerprint}" for split, part in sorted(loaded.items()))])


def open_stream(source: str, where: str, seconds: float) -> Any:
    """Open a gated data set for streaming: split name -> rows; nothing but its description is downloaded yet."""
    if not reachable(seconds / 3):
        raise RubError(f"{where} {source} is gated and the hub is not reachable")
    import datasets

    try:
        return datasets.load_dataset(source, streaming=True)
    except Exception as error:
        raise _no_access(source, where, error) from None


def raw_rows(rows: Any, source: str) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a split with their images undecoded: ``{"image": {"path", "bytes"}, "label"}``."""
    import datasets

    try:
        yield from rows.cast_column("image", datasets.Image(decode=False))
    except Exception as error:
        raise RubError(f"{source}: streaming failed ({type(error).__name__}); run the same command again") from None


def stream_revision(source: str, where: str, seconds: float) -> str:
    """Hub id and commit of a streamed data set."""
    from huggingface_hub import HfApi

    open_stream(source, where, seconds)  # a commit is told to everybody; without access, say so before the work starts
    try:
        return f"{source}@{HfApi().dataset_info(source, timeout=seconds).sha}"
    except Exception as error:
        raise _no_access(source, where, error) from None


def _no_access(source: str, where: str, error: Exception) -> RubError:
    return RubError(
        f"{where} {source} is gated or unreachable ({type(error).__name__}): accept its terms on huggingface.co and"
        " log in with 'hf auth login'"
    )


def _load(source: str, where: str, seconds: float) -> Any:
    offline = not reachable(seconds / 3)
    import datasets

    with _cached_only() if offline else nullcontext():
        try:
            return datasets.load_dataset(source)
        except Exception as error:
            state = "is not cached and the hub is not reachable" if offline else f"failed ({type(error).__name__})"
            raise RubError(f"{where} {source} {state}") from None


@contextmanager
def _cached_only() -> Iterator[None]:
    """Make the hub's libraries use their cache alone."""
    import datasets.config
    import huggingface_hub.constants

    modules: tuple[Any, ...] = (huggingface_hub.constants, datasets.config)
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


def reachable(seconds: float) -> bool:
    """Whether the hub answers, through a proxy where one is set; a name look-up that hangs is cut off too."""
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return False
    answered = Event()

    def ask() -> None:
        try:
            with urlopen(Request(ENDPOINT, method="HEAD"), timeout=seconds):  # noqa: S310 - the hub's own address
                answered.set()
        except HTTPError:
            answered.set()
        except (OSError, HTTPException, ValueError):
            return

    asking = Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    return answered.is_set()


def _samples(rows: Any, image: str, label: str) -> Samples:
    pixels = np.stack([np.asarray(picture.convert("RGB")) for picture in rows[image]])
    labels = torch.tensor(list(rows[label]), dtype=torch.int64)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return Samples(images, labels, torch.arange(len(labels)))
