"""Data sets from the Hugging Face hub, with a short limit on how long an offline machine is kept waiting."""

import os
import socket
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch

from rub.errors import RubError
from rub.images.samples import Samples

# name -> (hub id, image column, label column, test split)
HUB: Mapping[str, tuple[str, str, str, str]] = {
    "cifar10": ("uoft-cs/cifar10", "img", "label", "test"),
    "cifar100": ("uoft-cs/cifar100", "img", "fine_label", "test"),
    "tiny-imagenet": ("zh-plus/tiny-imagenet", "image", "label", "valid"),
}


def read_hub(name: str, where: str, seconds: float) -> tuple[tuple[str, ...], Samples, Samples]:
    """Load a data set through `datasets`: from its cache, else over the network.

    Args:
        name: a key of `HUB`.
        where: begins the error message: what was looked for on disk, and how to provide it.
        seconds: how long to wait for the hub in all.

    Raises:
        RubError: it is not cached and the hub is not reachable; both ways to provide the data are named.
    """
    source, image, label, test = HUB[name]
    loaded = _load(source, where, seconds)
    classes = tuple(loaded["train"].features[label].names)
    return classes, _samples(loaded["train"], image, label), _samples(loaded[test], image, label)


def revision(name: str, where: str, seconds: float = 15) -> str:
    """Return what identifies the hub data set's content: its id and the fingerprints of its splits."""
    source = HUB[name][0]
    loaded = _load(source, where, seconds)
    return " ".join([source, *(f"{split}={part._fingerprint}" for split, part in sorted(loaded.items()))])


def _load(source: str, where: str, seconds: float) -> Any:
    offline = not _reachable(seconds / 3)
    before = os.environ.get("HF_HUB_OFFLINE")
    if offline:  # only what is cached: nothing is asked of a network that is not there
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    import datasets
    import datasets.config
    import huggingface_hub.constants

    if offline:
        huggingface_hub.constants.HF_HUB_OFFLINE = True
        datasets.config.HF_HUB_OFFLINE = True
    try:
        return datasets.load_dataset(source)
    except Exception as error:
        state = "is not cached and the hub is not reachable" if offline else f"failed ({type(error).__name__})"
        raise RubError(f"{where} {source} {state}") from None
    finally:
        if offline and before is None:
            del os.environ["HF_HUB_OFFLINE"], os.environ["HF_DATASETS_OFFLINE"]


def _reachable(seconds: float) -> bool:
    """Return whether the hub's host takes a connection; a name look-up that hangs is cut off as well."""
    from concurrent.futures import ThreadPoolExecutor

    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return False
    address = urlparse(ENDPOINT)
    port = address.port or (443 if address.scheme == "https" else 80)

    def connect() -> bool:
        try:
            with socket.create_connection((address.hostname or "", port), timeout=seconds):
                return True
        except OSError:
            return False

    pool = ThreadPoolExecutor(1)
    answer = pool.submit(connect)
    deadline = time.monotonic() + seconds
    while not answer.done() and time.monotonic() < deadline:
        time.sleep(0.01)
    pool.shutdown(wait=False)
    return answer.done() and answer.result()


def _samples(rows: Any, image: str, label: str) -> Samples:
    pixels = np.stack([np.asarray(picture.convert("RGB")) for picture in rows[image]])
    labels = torch.tensor(rows[label], dtype=torch.int64)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return Samples(images, labels, torch.arange(len(labels)))
