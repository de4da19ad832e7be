"""Unlearning that is killed goes on from the state that it kept; the marked methods do not look at the retain side."""

import pytest
import torch

from rub.config.hyperparameters import resolve
from rub.models.diffusion.adapters import Adapter
from rub.models.diffusion.sampling import Sampler
from rub.registry import METHODS
from rub.tasks.text_to_image.context import Side, UnlearnContext

NAMES = ("church", "a photo of a church", "an old church")
OTHERS = ("a garbage truck", "the digit seven", "a drawing of the digit one")
SETTINGS = {
    "esd-x": {},
    "esd-u": {"drawn_by": "model"},
    "fmn": {"template": "a photo of {}"},
    "spm": {"rank": 2},
    "salun": {"mask_batches": 1},
    "erasediff": {"inner_steps": 2, "every": 4},
    "scissorhands": {"prune_batches": 1},
    "concept-ablation": {"pictures": 5, "prior_weight": 0.5},
    "advunlearn": {"warmup": 2, "attack_every": 3, "attack_steps": 2, "k": 2, "retain_batch": 2},
}


def side(prompts, seed):
    latents = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return Side(prompts, latents, tuple(prompts[i % 3] for i in range(5)))


def weights(result):
    return list((result.state if isinstance(result, Adapter) else result.state_dict()).values())


def test_every_method_that_takes_steps_is_here():
    no_steps = {"uce", "rece", "sld", "negative-prompt"}
    known = {entry.name for entry in METHODS.entries("text-to-image") if entry.origin == "rub"}
    assert known - no_steps == set(SETTINGS)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_a_method_ends_the_same(name, make_model, ends_the_same):
    entry = METHODS.get(name, "text-to-image")
    parameters = resolve(entry, {"iterations": 12, "lr": 1e-3, **SETTINGS[name]}, "test")

    def work(context):
        return weights(entry.load()(make_model(), side(NAMES, 0), side(OTHERS, 1), context, **parameters))

    context = UnlearnContext(seed=3, batch_size=2, sampler=Sampler("ddim", 3), anchor="a photo")
    ends_the_same(work, context, kills=(5, 4))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SETTINGS, "uce", "rece"])
def test_a_method_is_retain_free_or_looks_at_the_retain_side(name, make_model):
    entry = METHODS.get(name, "text-to-image")
    parameters = resolve(entry, {"iterations": 4, **SETTINGS[name]} if name in SETTINGS else {}, "test")
    context = UnlearnContext(seed=3, batch_size=2, sampler=Sampler("ddim", 3), anchor="a photo")
    usual, turned = (
        weights(entry.load()(make_model(), side(NAMES, 0), side(kept, seed), context, **parameters))
        for kept, seed in ((OTHERS, 1), (("a drawing", *OTHERS[1:]), 2))
    )
    same = all(torch.equal(*pair) for pair in zip(usual, turned, strict=True))
    assert same == entry.retain_free
