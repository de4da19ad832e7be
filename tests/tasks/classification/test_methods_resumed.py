"""Unlearning that is killed goes on from the state that it kept, and ends in the same weights."""

import pytest
import torch

from rub.config.hyperparameters import resolve
from rub.errors import RubError
from rub.models.network import build_network
from rub.registry import METHODS
from rub.tasks.classification.context import UnlearnContext

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
    "rurk": {},
    "amun": {"steps": 3},
    "sfron": {"epochs": None, "iterations": 16},
    "cf-k": {},
    "eu-k": {},
    "unsir": {"noise_images": 4, "copies": 2, "noise_steps": 2},
    "jit": {"samples": 2},
    "l2ul": {"copies": 2, "steps": 2},
    "boundary-expand": {},
}


def test_every_method_that_takes_steps_is_here():
    one_pass = {"iu", "iu-exact", "ssd", "fisher"}
    known = {entry.name for entry in METHODS.entries("classification") if entry.origin == "rub"}
    assert known - one_pass == set(SETTINGS)


def test_a_plug_in_may_draw_from_torch_itself(ends_the_same, samples_of):
    def work(context):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(), torch.nn.Linear(192, 4))
        optimizer = context.sgd(model, 0.1)
        for x, y in context.epochs(samples_of(22, 0), 4, {"model": model, "optimizer": optimizer}):
            context.descend(torch.nn.functional.cross_entropy(model(x), y), optimizer)
        return [value.clone() for value in model.state_dict().values()]

    ends_the_same(work, UnlearnContext(seed=3, batch_size=6, num_classes=4), kills=(7, 5))


def test_batches_of_one_image_are_refused(samples_of):
    with pytest.raises(RubError, match="batches of one image"):
        UnlearnContext(seed=0, batch_size=1, num_classes=4).endless(samples_of(3, 0), "any")


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_a_method_ends_the_same(name, ends_the_same, samples_of):
    entry = METHODS.get(name, "classification")
    given = {"epochs": 4, "lr": 1e-3, **SETTINGS[name]}
    parameters = resolve(entry, {key: value for key, value in given.items() if value is not None}, "test")

    def work(context):
        model = build_network("resnet10", num_classes=4, channels=3, stem="cifar", width=2, mean=(0.5,) * 3,
                              std=(0.2,) * 3, seed=0)  # fmt: skip
        changed = entry.load()(model, samples_of(22, 0), samples_of(27, 1), context, **parameters)
        return [value.clone() for value in changed.state_dict().values()]

    ends_the_same(work, UnlearnContext(seed=3, batch_size=6, num_classes=4, forget_classes=(0,)), kills=(7, 5))
