"""Unlearning methods of masked autoencoders against plain-torch loops of their equations, and what each must leave."""

from copy import deepcopy
from dataclasses import dataclass, field
from importlib import import_module

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rub.config.hyperparameters import resolve
from rub.data.samples import Samples, to_unit
from rub.errors import Diverged, RubError
from rub.models.mae.masks import keyed_noise, make_mask
from rub.models.mae.model import MAEConfig, MaskedAutoencoder
from rub.registry import METHODS, card_of
from rub.tasks.inpainting.context import UnlearnContext
from rub.tasks.inpainting.methods._targets import noise_images
from rub.tasks.inpainting.methods.i2i import i2i, i2i_losses
from rub.tasks.inpainting.methods.salun import saliency_mask, salun, swapped_loss, trainable
from rub.training.batches import Augmentation

NAMES = ("i2i", "salun", "max-loss", "retain-label", "noisy-label", "random-encoder")
ENCODER_ONLY = ("i2i", "random-encoder")
FUNCTIONS = {
    name: getattr(import_module(f"rub.tasks.inpainting.methods.{name.replace('-', '_')}"), name.replace("-", "_"))
    for name in NAMES
}
PLAIN = Augmentation(padding=0, flip=False)
SIZE, PATCH, CHANNELS, PATCHES = 8, 2, 2, 16
MEAN, STD = (0.4, 0.6), (0.2, 0.3)
CONFIG = MAEConfig(SIZE, PATCH, CHANNELS, 8, 1, 2, 8, 1, 2, mean=MEAN, std=STD)


@dataclass(frozen=True, kw_only=True)
class Watched(UnlearnContext):
    """Plain gradient descent in place of AdamW, so that steps are linear in the gradient; every mask is noted."""

    adam: bool = False
    seen: list = field(default_factory=list)

    def adamw(self, parameters, lr, weight_decay=0.05, betas=(0.9, 0.95)):
        if self.adam:
            return super().adamw(parameters, lr, weight_decay, betas)
        return torch.optim.SGD([p for _, p in parameters if p.requires_grad], lr=lr)

    def masks(self, count, patches, generator):
        self.seen.append(super().masks(count, patches, generator))
        return self.seen[-1]


def context(seed=3, **changes):
    return Watched(seed=seed, batch_size=6, augmentation=PLAIN, **changes)


def tiny(seed=0):
    model = MaskedAutoencoder(CONFIG, seed)
    with torch.no_grad():  # at its initialisation a model gives nearly the same for every image
        draw = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
    return model


def data(count, seed):
    draw = torch.Generator().manual_seed(seed)
    low = 100 * (seed % 2)
    images = torch.randint(low, low + 156, (count, CHANNELS, SIZE, SIZE), generator=draw, dtype=torch.uint8)
    return Samples(images, torch.full((count,), seed), torch.arange(count))


FORGET, RETAIN = data(5, 1), data(8, 2)


def state(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


# --- plain-torch versions ---------------------------------------------------------------------------------------------


def patches_by_hand(x):
    """Cut normalised images into patches with plain slices: (N, L, P) in (row, column, channel) order."""
    x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    cut = [x[:, :, r : r + PATCH, c : c + PATCH] for r in range(0, SIZE, PATCH) for c in range(0, SIZE, PATCH)]
    return torch.stack([part.permute(0, 2, 3, 1).flatten(1) for part in cut], 1)


def masked_error(model, x, target, mask):
    """MSE on the masked patches between the full prediction and target patches (N, L, P)."""
    return ((model(x, mask) - target)[mask.removed] ** 2).mean()


def draw_mask(count, generator):
    noise = torch.rand(count, PATCHES, generator=generator)
    mask = make_mask(noise, 0.75)
    assert torch.equal(mask.removed, noise.argsort(1).argsort(1) >= 4)
    return mask


def draw_noise(x_f, x_r, generator):
    pixels = torch.cat([x_f.flatten(), x_r.flatten()])
    return (torch.randn(x_f.shape, generator=generator) * pixels.std() + pixels.mean()).clamp(0, 1)


def i2i_by_hand(model, original, x_f, x_r, masks, noises):
    mask = draw_mask(len(x_f) + len(x_r), masks)
    m_f, m_r = mask.select(slice(0, len(x_f))), mask.select(slice(len(x_f), None))
    held = (model.encode(x_r, m_r) - original.encode(x_r, m_r)) ** 2
    moved = (model.encode(x_f, m_f) - original.encode(draw_noise(x_f, x_r, noises), m_f)) ** 2
    return held.mean() + 0.5 * moved.mean()


def random_encoder_by_hand(model, original, x_f, x_r, masks, noises):
    x = torch.cat([x_f, x_r])
    mask = draw_mask(len(x), masks)
    g, z = original.encode(x, mask), model.encode(x, mask)
    error = (z - g) ** 2
    gauss = torch.randn(len(x_f), *g.shape[1:], generator=noises) * g.std() + g.mean()
    return error[len(x_f) :].mean() + 0.5 * ((z[: len(x_f)] - gauss) ** 2).mean()


def full_by_hand(target):
    """The methods that train the full model: MAE loss on R, and the error to some target on F."""

    def loss(model, original, x_f, x_r, masks, noises):
        m_f = draw_mask(len(x_f), masks)
        keep = masked_error(model, x_r, patches_by_hand(x_r), draw_mask(len(x_r), masks))
        if target == "own":
            own = masked_error(model, x_f, patches_by_hand(x_f), m_f)
            return keep - 0.5 * own
        if target == "output":
            wanted = model(x_r, m_f).detach()
        else:
            wanted = patches_by_hand(x_r if target == "retain" else draw_noise(x_f, x_r, noises))
        return keep + 0.5 * masked_error(model, x_f, wanted, m_f)

    return loss


def rate_by_hand(step, total, lr, warmup):
    rising = round(warmup * total)
    if step < rising:
        return lr * (step + 1) / rising
    return lr * 0.5 * (1 + np.cos(np.pi * (step - rising) / (total - rising)))


def train_by_hand(model, loss, rates, epochs, clip, moves=None):
    """Gradient descent with a clipped gradient, the same batches and random streams."""
    original, ctx = deepcopy(model), context()
    masks, noises = ctx.generator("masks"), ctx.generator("noise")
    parameters = [p for p in model.parameters() if p.requires_grad]
    for step, x_f, x_r in ctx.pairs(FORGET, RETAIN, epochs):
        found = torch.autograd.grad(loss(model, original, x_f, x_r, masks, noises), parameters, allow_unused=True)
        found = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        norm = torch.sqrt(sum((g**2).sum() for g in found))
        with torch.no_grad():
            for i, (p, g) in enumerate(zip(parameters, found, strict=True)):
                free = 1.0 if moves is None else moves[i]
                p.sub_(rates[step] * g * min(1.0, clip / float(norm)) * free)
    return model


BY_HAND = {
    "i2i": (i2i_by_hand, {"alpha": 0.5}),
    "random-encoder": (random_encoder_by_hand, {"alpha": 0.5}),
    "max-loss": (full_by_hand("own"), {"alpha": 0.5, "cap": None}),
    "retain-label": (full_by_hand("retain"), {"alpha": 0.5}),
    "noisy-label": (full_by_hand("noise"), {"alpha": 0.5}),
}


@pytest.mark.slow
@pytest.mark.parametrize("clip", [1e6, 0.5])
@pytest.mark.parametrize("name", BY_HAND)
def test_steps_are_those_of_the_equation(name, clip):
    loss, options = BY_HAND[name]
    epochs, lr, warmup = 2, 0.05, 0.5
    total = context().steps(FORGET, RETAIN, epochs)
    rates = [rate_by_hand(step, total, lr, warmup) for step in range(total)]
    assert total == 6
    expected = state(train_by_hand(tiny(), loss, rates, epochs, clip))
    model = tiny()
    FUNCTIONS[name](model, FORGET, RETAIN, context(), epochs=epochs, lr=lr, warmup=warmup, clip=clip, **options)
    moved = max((value - state(tiny())[key]).abs().max().item() for key, value in expected.items())
    assert moved > 1e-3
    for key, value in state(model).items():
        assert torch.allclose(value, expected[key], atol=2e-5), key


@pytest.mark.parametrize(
    ("target", "kind"), [("swapped-output", "output"), ("retain-image", "retain"), ("noise-image", "noise")]
)
def test_salun_steps_are_those_of_the_equation(target, kind):
    model = tiny()
    named = trainable(model)
    masks = context().masks(len(FORGET), PATCHES, context().generator("saliency"))
    total = {name: torch.zeros_like(p) for name, p in named.items()}
    for i in range(len(FORGET)):
        x = to_unit(FORGET.images[i : i + 1])
        error = masked_error(model, x, patches_by_hand(x), masks.select(slice(i, i + 1)))
        for name, gradient in zip(named, torch.autograd.grad(error, list(named.values())), strict=True):
            total[name] += gradient
    scores = torch.cat([value.flatten() for value in total.values()]).abs()
    threshold = scores.sort(descending=True).values[round(0.3 * len(scores)) - 1]
    moves = [(value.abs() >= threshold).float() for value in total.values()]

    def loss(*given):
        return 2 * full_by_hand(kind)(*given)  # beta = 2 and a forget term of weight 1

    expected = state(train_by_hand(tiny(), loss, [0.05] * 6, 2, 0.5, moves))
    salun(model, FORGET, RETAIN, context(), target=target, k=0.3, retain_weight=2.0, lr=0.05, epochs=2, clip=0.5)
    for key, value in state(model).items():
        assert torch.allclose(value, expected[key], atol=2e-5), key


def test_max_loss_stops_at_its_cap():
    quiet, loud, ascent = (tiny() for _ in range(3))
    FUNCTIONS["max-loss"](quiet, FORGET, RETAIN, context(), cap=1e-6, alpha=0.5, epochs=1)
    FUNCTIONS["max-loss"](loud, FORGET, RETAIN, context(), cap=1e-6, alpha=0.0, epochs=1)
    FUNCTIONS["max-loss"](ascent, FORGET, RETAIN, context(), cap=None, alpha=0.5, epochs=1)
    assert all(torch.equal(a, b) for a, b in zip(quiet.parameters(), loud.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(quiet.parameters(), ascent.parameters(), strict=True))


# --- I2I --------------------------------------------------------------------------------------------------------------


def i2i_case():
    x_f, x_r = to_unit(FORGET.images[:4]), to_unit(RETAIN.images[:4])
    noise = torch.rand(x_f.shape, generator=torch.Generator().manual_seed(1))
    mask = make_mask(keyed_noise(torch.arange(8), PATCHES), 0.75)
    return x_f, x_r, noise, mask


def test_i2i_starts_with_no_retain_loss():
    held, moved = i2i_losses(tiny(), tiny(), *i2i_case())
    assert held.item() == 0.0
    assert moved.item() > 1e-3


def test_i2i_terms_are_subset_means_and_those_of_the_released_code():
    x_f, x_r, noise, mask = i2i_case()
    student, original = tiny(1), tiny(0)
    held, moved = i2i_losses(student, original, x_f, x_r, noise, mask)
    m_f, m_r = mask.select(slice(0, 4)), mask.select(slice(4, 8))
    assert held.item() == pytest.approx(F.mse_loss(student.encode(x_r, m_r), original.encode(x_r, m_r)).item())
    assert moved.item() == pytest.approx(F.mse_loss(student.encode(x_f, m_f), original.encode(noise, m_f)).item())
    y = torch.tensor([-1.0] * 4 + [1.0] * 4)
    z = student.encode(torch.cat([x_f, x_r]), mask)
    for sign, target, ours in (
        (1, original.encode(torch.cat([x_f, x_r]), mask), held),
        (-1, original.encode(torch.cat([noise, noise]), mask), moved),
    ):
        released = ((1 + sign * y) * ((z - target) ** 2).mean((1, 2))).mean()
        assert ours.item() == pytest.approx(released.item())


def test_i2i_without_alpha_and_decay_does_not_move():
    model = tiny()
    i2i(model, FORGET, RETAIN, context(adam=True), alpha=0.0, weight_decay=0.0, lr=0.1, epochs=2)
    assert all(torch.equal(value, tiny().state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ENCODER_ONLY)
def test_only_the_encoder_moves(name):
    model, before = tiny(), tiny().state_dict()
    FUNCTIONS[name](model, FORGET, RETAIN, context(adam=True), epochs=2)
    for key, value in model.state_dict().items():
        if key.startswith(("decoder", "mask_token")) or key == "pos_embed":
            assert torch.equal(value, before[key]), key
        else:
            assert not torch.equal(value, before[key]), key


def test_alpha_and_the_targets_never_change_the_masks():
    seen = []
    for options in ({"alpha": 0.1}, {"alpha": 1.0}, {"noise": "uniform"}, {"noise": "constant"}, {"lr": 0.5}):
        ctx = context()
        i2i(tiny(), FORGET, RETAIN, ctx, epochs=1, **options)
        seen.append(torch.stack([mask.keep for mask in ctx.seen]))
    swapped = FORGET, data(8, 4)  # other retain images: the masks belong to places, not to subsets
    ctx = context()
    i2i(tiny(), *swapped, ctx, epochs=1)
    seen.append(torch.stack([mask.keep for mask in ctx.seen]))
    assert all(torch.equal(first, seen[0]) for first in seen)


def test_noise_images():
    batch = 0.25 + 0.1 * torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(1)
    normal = noise_images(batch, 32, "normal", draw)
    assert normal.shape == (32, 3, 16, 16)
    assert normal.mean().item() == pytest.approx(batch.mean().item(), abs=1e-3)
    assert normal.std().item() == pytest.approx(batch.std().item(), rel=0.02)
    wide = noise_images(batch * 3 - 0.5, 32, "normal", draw)
    assert (wide.min(), wide.max()) >= (0, 0)
    assert wide.max() <= 1
    uniform = noise_images(batch, 32, "uniform", draw)
    assert uniform.std().item() == pytest.approx(12**-0.5, rel=0.02)
    assert noise_images(batch, 2, "constant", draw).unique().item() == pytest.approx(batch.mean().item())


# --- SalUn ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0.0, 0.1, 0.5, 1.0])
def test_salun_keeps_exactly_the_fraction_and_freezes_the_rest(k):
    model, before = tiny(), tiny().state_dict()
    masks = saliency_mask(model, FORGET, context(), k)
    assert set(masks) == {name for name, _ in model.named_parameters()} - {"pos_embed", "decoder_pos_embed"}
    ranked = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == round(k * ranked)
    salun(model, FORGET, RETAIN, context(adam=True), k=k, epochs=2, weight_decay=0.5)
    after = dict(model.named_parameters())
    for key, mask in masks.items():
        assert torch.equal(after[key][~mask], before[key][~mask]), key
        if mask.any():
            assert not torch.equal(after[key][mask], before[key][mask]), key
    for key in ("pos_embed", "decoder_pos_embed"):
        assert torch.equal(after[key], before[key])


def test_saliency_does_not_depend_on_the_batch_size():
    sizes = [
        saliency_mask(tiny(), FORGET, UnlearnContext(seed=3, batch_size=size, augmentation=PLAIN), 0.5)
        for size in (1, 2, 5)
    ]
    for name, mask in sizes[0].items():
        for other in sizes[1:]:
            assert (mask != other[name]).float().mean() < 0.01, name


def test_swapped_loss_is_zero_on_itself_and_detached_from_its_target():
    model, x = tiny(), to_unit(RETAIN.images[:3])
    mask = make_mask(keyed_noise(torch.arange(3), PATCHES), 0.75)
    assert swapped_loss(model, x, x, mask).item() == 0.0
    found = torch.autograd.grad(swapped_loss(model, x, x, mask), list(trainable(model).values()))
    assert all(gradient.abs().max() == 0 for gradient in found)


# --- every method -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_repeats_itself_reports_and_leaves_the_rest_alone(name):
    done, runs = [], []
    data_before = deepcopy((FORGET, RETAIN))
    for seed in (3, 3, 4):
        model = tiny()
        outside = torch.random.get_rng_state()
        ctx = context(seed, adam=True, progress=lambda step, total, note="": done.append((step, total)))
        assert FUNCTIONS[name](model, FORGET, RETAIN, ctx, epochs=1) is model
        assert torch.equal(torch.random.get_rng_state(), outside), "it must draw from its context only"
        runs.append(model.state_dict())
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])
    assert any(not torch.equal(runs[0][key], runs[2][key]) for key in runs[0])
    assert runs[0].keys() == tiny().state_dict().keys()
    assert done[-1] == (3, 3)
    for now, then in zip((FORGET, RETAIN), data_before, strict=True):
        assert torch.equal(now.images, then.images)


@pytest.mark.parametrize("name", NAMES)
def test_hyperparameters_and_card(name):
    entry = METHODS.get(name, "inpainting")
    card = card_of(entry)
    assert card.paper
    assert card.equation
    assert card.upstream
    assert card.differences
    with pytest.raises(RubError, match="unknown field 'learning_rate'"):
        resolve(entry, {"learning_rate": 1}, "suite")


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("i2i", {"alpha": -1}),
        ("i2i", {"noise": "pink"}),
        ("i2i", {"warmup": 1.5}),
        ("salun", {"k": 2}),
        ("salun", {"target": "other"}),
        ("max-loss", {"cap": 0}),
        ("retain-label", {"epochs": 0}),
        ("noisy-label", {"clip": 0}),
        ("random-encoder", {"lr": 0}),
    ],
)
def test_values_out_of_range_are_refused(name, given):
    with pytest.raises(RubError, match=next(iter(given))):
        resolve(METHODS.get(name, "inpainting"), given, "suite")
    assert resolve(METHODS.get("max-loss", "inpainting"), {"cap": None}, "suite")["cap"] is None


@pytest.mark.parametrize("name", NAMES)
def test_infinite_losses_are_named(name):
    model = tiny()
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight[0, 0] = float("inf")
    with pytest.raises(Diverged, match="the loss became"):
        FUNCTIONS[name](model, FORGET, RETAIN, context(adam=True), epochs=1)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_keeps_weights_in_float32(name):
    model = tiny()
    FUNCTIONS[name](model, FORGET, RETAIN, context(adam=True, precision="bfloat16"), epochs=1)
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in model.parameters())


# --- forgetting on digits ---------------------------------------------------------------------------------------------

RUNS = {
    "i2i": {},
    "salun": {},
    "salun retain-image": {"target": "retain-image"},
    "salun noise-image": {"target": "noise-image", "retain_weight": 2.0},
    "max-loss": {},
    "retain-label": {},
    "noisy-label": {},
    "random-encoder": {"alpha": 2.0},
}


@pytest.fixture(scope="module")
def digits():
    """A masked autoencoder trained for seconds on digits 0, 1, 4 at 32 px; digit 1 is to be forgotten."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    chosen = np.isin(loaded.target, (0, 1, 4))
    small = torch.tensor(loaded.images[chosen], dtype=torch.float32)[:, None] * (255 / 16)
    images = F.interpolate(small, size=32, mode="bilinear").round().to(torch.uint8)
    samples = Samples(images, torch.tensor(loaded.target[chosen]), torch.arange(len(images)))
    x = to_unit(images)
    config = MAEConfig(32, 8, 1, 48, 2, 4, 32, 1, 4, mean=(x.mean().item(),), std=(x.std().item(),))
    model = MaskedAutoencoder(config)
    ctx = UnlearnContext(seed=0, batch_size=64, mask_ratio=0.5, augmentation=PLAIN)
    optimizer, masks = ctx.adamw(model.named_parameters(), 4e-3), ctx.generator("masks")
    for x, _ in ctx.epochs(samples.select(torch.arange(400)), 40):
        ctx.descend(model.loss(x, ctx.masks(len(x), 16, masks)), optimizer)
    train, test = samples.select(torch.arange(400)), samples.select(torch.arange(400, len(samples)))
    return model, ctx, [part.select(part.labels == 1) for part in (train, test)], train.select(train.labels != 1)


@torch.no_grad()
def reconstruction_error(model, samples):
    mask = make_mask(keyed_noise(samples.ids, 16), 0.5)
    return model.loss(to_unit(samples.images), mask).item()


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_it_forgets_more_on_forget_than_on_retain(run, digits):
    original, ctx, (forget, unseen), retain = digits
    model = deepcopy(original)
    FUNCTIONS[run.split()[0]](model, forget, retain, ctx, lr=3e-3, **RUNS[run])
    on_forget, on_unseen, on_retain = (
        reconstruction_error(model, part) / reconstruction_error(original, part) for part in (forget, unseen, retain)
    )
    assert on_forget > 1.3
    assert on_unseen > 1.3
    assert on_retain < 1.25
