"""Unlearning that is killed goes on from the state that it kept; every method looks at the retain set."""

import pytest
import torch

from rub.config.hyperparameters import resolve
from rub.models.mae.model import MAEConfig, MaskedAutoencoder
from rub.registry import METHODS
from rub.tasks.inpainting.context import UnlearnContext

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


def test_every_method_is_here():
    assert {entry.name for entry in METHODS.entries("inpainting") if entry.origin == "rub"} == set(SETTINGS)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_a_method_ends_the_same(name, ends_the_same, samples_of):
    entry = METHODS.get(name, "inpainting")
    parameters = resolve(entry, {"epochs": 3, "lr": 1e-3, **SETTINGS[name]}, "test")

    def work(context):
        changed = entry.load()(MaskedAutoencoder(MAE, 0), samples_of(11, 0), samples_of(17, 1), context, **parameters)
        return [value.clone() for value in changed.state_dict().values()]

    ends_the_same(work, UnlearnContext(seed=3, batch_size=7), kills=(7, 5))


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_a_method_is_retain_free_or_looks_at_the_retain_set(name, samples_of):
    entry = METHODS.get(name, "inpainting")
    parameters = resolve(entry, {"epochs": 1, "lr": 1e-3, **SETTINGS[name]}, "test")
    context = UnlearnContext(seed=3, batch_size=7)
    usual, turned = (
        entry.load()(MaskedAutoencoder(MAE, 0), samples_of(11, 0), samples_of(17, seed), context, **parameters)
        for seed in (1, 2)
    )
    same = all(torch.equal(*pair) for pair in zip(usual.parameters(), turned.parameters(), strict=True))
    assert same == entry.retain_free
