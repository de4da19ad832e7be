"""One table over every unlearning method of classification: it runs, is finite, repeats itself, and has a full card."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from rub.config.hyperparameters import resolve
from rub.data.samples import Samples
from rub.errors import RubError
from rub.registry import card_of, unlearner
from rub.tasks.classification.context import UnlearnContext
from rub.training.batches import Augmentation

# method id -> hyperparameters under which three classes of noise and one epoch show an effect
TABLE = {
    "ft": {"epochs": 1},
    "rl": {"epochs": 1},
    "iu": {"samples": 10},
    "iu-exact": {"samples": 10},
    "l1-sparse": {"epochs": 1},
    "salun": {"epochs": 1},
    "ga": {"epochs": 1},
    "neggrad-plus": {"epochs": 1},
    "scrub": {"epochs": 1},
    "bad-teacher": {"epochs": 1},
    "ssd": {"alpha": 1.0},
    "boundary-shrink": {"epochs": 1, "lr": 0.01},
    "delete": {"epochs": 1},
    "msg": {"epochs": 1},
    "ct": {"epochs": 1},
    "rurk": {"epochs": 1},
    "amun": {"epochs": 1, "steps": 5},
    "sfron": {"iterations": 4, "alpha": 1},
    "fisher": {},
    "cf-k": {"epochs": 1, "k": 1},
    "eu-k": {"epochs": 1, "k": 1},
    "unsir": {"noise_images": 4, "copies": 2, "noise_steps": 3},
    "jit": {"samples": 2, "lr": 0.01},
    "l2ul": {"epochs": 1, "copies": 2, "steps": 2},
    "boundary-expand": {"epochs": 1, "lr": 0.01},
    "sham": {},
    "zero-row": {},
    "gauge": {},
    "drift": {},
}
CONTROLS = {"sham", "zero-row", "gauge", "drift"}
DRAWN = {
    "ft", "rl", "l1-sparse", "salun", "neggrad-plus", "scrub", "bad-teacher", "msg", "ct", "rurk", "amun", "sfron",
    "fisher", "cf-k", "eu-k", "unsir", "jit", "l2ul", "boundary-expand",
}  # fmt: skip


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(4))
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        return self.fc(self.body(x).flatten(1))


def entry_of(name):
    entry = unlearner(name, "classification")
    entry.load()
    return unlearner(name, "classification")


def case():
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (45, 1, 8, 8), generator=draw, dtype=torch.uint8)
    samples = Samples(images, torch.arange(45) % 3, torch.arange(45))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Small()
    return model, samples.select(samples.labels == 0), samples.select(samples.labels != 0)


def unlearn(name, seed=0, retain=None, **context):
    entry = entry_of(name)
    model, forget, kept = case()
    retain = kept if retain is None else retain
    ctx = UnlearnContext(
        seed=seed, num_classes=3, forget_classes=(0,), batch_size=8, augmentation=Augmentation(padding=1), **context
    )
    return entry.load()(model, forget, retain, ctx, **resolve(entry, TABLE[name], "suite")).state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_it_runs_repeats_itself_and_changes_the_model(name):
    original, outside = case()[0].state_dict(), torch.random.get_rng_state()
    first, second = unlearn(name), unlearn(name)
    assert torch.equal(torch.random.get_rng_state(), outside), "it must draw from its context only"
    assert first.keys() == original.keys()
    assert all(torch.isfinite(value).all() for value in first.values())
    assert all(torch.equal(first[key], second[key]) for key in first)
    counted = [key for key in original if ("running" in key) == (name == "drift")]
    assert any(not torch.equal(first[key], original[key]) for key in counted)


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_the_seed_matters(name):
    one, two = unlearn(name, seed=0), unlearn(name, seed=1)
    assert any(not torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("name", TABLE)
def test_bfloat16_keeps_float32_weights(name):
    found = unlearn(name, precision="bfloat16")
    assert all(torch.isfinite(value).all() for value in found.values())
    assert all(value.dtype in (torch.float32, torch.int64) for value in found.values())


@pytest.mark.parametrize("name", TABLE)
def test_it_reports_progress_up_to_the_end(name):
    seen = []
    unlearn(name, progress=lambda done, total, note="": seen.append((done, total)))
    assert name in CONTROLS - {"drift"} or seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize("name", TABLE)
def test_data_is_left_alone(name):
    entry = entry_of(name)
    model, forget, retain = case()
    before = deepcopy((forget, retain))
    entry.load()(
        model, forget, retain, UnlearnContext(seed=0, num_classes=3, forget_classes=(0,), batch_size=8), **TABLE[name]
    )
    for now, then in zip((forget, retain), before, strict=True):
        assert torch.equal(now.images, then.images)
        assert torch.equal(now.labels, then.labels)


@pytest.mark.parametrize("name", sorted(TABLE.keys() - CONTROLS))
def test_a_method_is_retain_free_or_looks_at_the_retain_set(name):
    _, _, retain = case()
    usual = unlearn(name)
    turned = unlearn(name, retain=replace(retain, stored=255 - retain.stored))
    same = all(torch.equal(usual[key], turned[key]) for key in usual)
    assert same == entry_of(name).retain_free


@pytest.mark.parametrize("name", TABLE)
def test_hyperparameters_and_card(name):
    entry = entry_of(name)
    card = card_of(entry)
    assert card.paper
    assert card.equation
    assert card.differences
    assert bool(card.upstream) == (name not in CONTROLS)
    with pytest.raises(RubError, match="unknown field 'learning_rate'"):
        resolve(entry, {"learning_rate": 1}, "suite")


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("ft", {"lr": 0}),
        ("ft", {"epochs": 0}),
        ("ft", {"lr": float("nan")}),
        ("rl", {"mixing": "both"}),
        ("salun", {"k": 1.5}),
        ("neggrad-plus", {"alpha": -0.1}),
        ("iu", {"samples": 0}),
        ("iu-exact", {"damping": 0}),
        ("ga", {"batch_norm": "frozen"}),
        ("zero-row", {"bias": 1}),
        ("drift", {"passes": 0}),
        ("scrub", {"temperature": 0}),
        ("sham", {"shift": 1}),
        ("rurk", {"search": "fgsm"}),
        ("rurk", {"tau": -0.1}),
        ("amun", {"eps": 0}),
        ("amun", {"decay_every": 0}),
        ("sfron", {"forget_every": 0}),
        ("sfron", {"clip": 0}),
        ("fisher", {"last_layer": "keep"}),
        ("fisher", {"alpha": -1e-6}),
        ("cf-k", {"k": 0}),
        ("eu-k", {"min_lr": -1}),
        ("unsir", {"noise_images": 0}),
        ("jit", {"sigma": 0}),
        ("l2ul", {"copies": 0}),
        ("boundary-expand", {"batch_norm": "frozen"}),
    ],
)
def test_values_out_of_range_are_refused(name, given):
    with pytest.raises(RubError, match=next(iter(given))):
        resolve(entry_of(name), given, "suite")
