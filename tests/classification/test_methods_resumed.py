"""Unlearning that is killed goes on from the state that it kept, and ends in the same weights."""

import pytest
import torch

from rub.classification.context import UnlearnContext
from rub.images.networks import build_network
from rub.images.samples import Samples
from rub.registry import METHODS, resolve

SETTINGS = {
    "ft": {},
    "rl": {},
    "l1-sparse": {},
    "salun": {"mixing": "mixed"},
    "ga": {},
    "neggrad-plus": {},
    "scrub": {"msteps": 2},
    "bad-teacher": {"retain_fraction": 0.5},
    "boundary-shrink": {},
    "delete": {},
    "msg": {},
    "ct": {},
}


def samples(count, seed):
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 8, 8), generator=draw, dtype=torch.uint8)
    return Samples(images, torch.randint(0, 4, (count,), generator=draw), torch.arange(count))


def test_every_method_that_takes_steps_is_here():
    one_pass = {"iu", "ssd", "sham"}
    known = {entry.name for entry in METHODS.entries("classification") if entry.origin == "rub"}
    assert known - one_pass == set(SETTINGS)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_method_ends_the_same(name, ends_the_same):
    entry = METHODS.get(name, "classification")
    parameters = resolve(entry, {"epochs": 4, "lr": 1e-3, **SETTINGS[name]}, "test")

    def work(context):
        model = build_network("resnet10", num_classes=4, channels=3, stem="cifar", width=2, mean=(0.5,) * 3,
                              std=(0.2,) * 3, seed=0)  # fmt: skip
        changed = entry.load()(model, samples(22, 0), samples(27, 1), context, **parameters)
        return [value.clone() for value in changed.state_dict().values()]

    ends_the_same(work, UnlearnContext(seed=3, batch_size=6, num_classes=4), kills=(7, 5))
