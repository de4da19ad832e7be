"""Unlearning that is killed goes on from the state that it kept, and ends in the same weights."""

import pytest
import torch

from rub.images.samples import Samples
from rub.inpainting.context import UnlearnContext
from rub.inpainting.mae import MAEConfig, MaskedAutoencoder
from rub.registry import METHODS, resolve

MAE = MAEConfig(image_size=8, patch_size=2, channels=3, dim=16, depth=1, heads=2, decoder_dim=16, decoder_depth=1,
                decoder_heads=2)  # fmt: skip
SETTINGS = {
    "i2i": {},
    "salun": {"target": "noise-image"},
    "max-loss": {},
    "retain-label": {},
    "noisy-label": {},
    "random-encoder": {},
}


def samples(count, seed):
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 8, 8), generator=draw, dtype=torch.uint8)
    return Samples(images, torch.zeros(count, dtype=torch.int64), torch.arange(count))


def test_every_method_is_here():
    assert {entry.name for entry in METHODS.entries("inpainting") if entry.origin == "rub"} == set(SETTINGS)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_method_ends_the_same(name, ends_the_same):
    entry = METHODS.get(name, "inpainting")
    parameters = resolve(entry, {"epochs": 3, "lr": 1e-3, **SETTINGS[name]}, "test")

    def work(context):
        changed = entry.load()(MaskedAutoencoder(MAE, 0), samples(11, 0), samples(17, 1), context, **parameters)
        return [value.clone() for value in changed.state_dict().values()]

    ends_the_same(work, UnlearnContext(seed=3, batch_size=7), kills=(7, 5))
