"""Attacks on masked autoencoders: what they find, what they claim, and that neighbours and batches change nothing."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rub.attacks.base import Probes
from rub.attacks.linf import adam_direction
from rub.config.hyperparameters import resolve
from rub.errors import Diverged, RubError
from rub.models.mae.masks import keyed_noise, make_mask
from rub.models.mae.model import MAEConfig, MaskedAutoencoder
from rub.models.weights import freeze
from rub.registry import ATTACKS
from rub.tasks.inpainting.attacks import guide as guides
from rub.tasks.inpainting.attacks.base import AttackContext, Budget, Target, apply_delta
from rub.tasks.inpainting.attacks.harness import make_target, run_attack, score, union
from rub.tasks.inpainting.attacks.noise import noise
from rub.tasks.inpainting.attacks.uma import uma

COUNT, SIDE, PATCH = 24, 16, 4
PATCHES = (SIDE // PATCH) ** 2
IDS = torch.arange(100, 100 + COUNT)
CPU = torch.device("cpu")
CONFIG = MAEConfig(SIDE, PATCH, 3, 64, 2, 2, 32, 1, 2, mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3))
BOUNDED, UNBOUNDED, FREE = Budget("6/255"), Budget("unbounded"), Budget("free")


def network(seed: int) -> MaskedAutoencoder:
    """A random autoencoder whose output depends on its input more than at the usual initialisation."""
    model = MaskedAutoencoder(CONFIG, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.ndim == 2:
                parameter.mul_(1.5)
    return model


def mask_of(ids: Tensor):
    return make_mask(keyed_noise(ids, PATCHES), 0.75)


def context(**changes: object) -> AttackContext:
    made = AttackContext(seed=3, ids=IDS, threshold=0.0, batch_size=16, fast=False)
    return replace(made, **changes)


@pytest.fixture(scope="module")
def images() -> Tensor:
    shape = (COUNT, 3, SIDE, SIDE)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture(scope="module")
def target(images: Tensor) -> Target:
    return make_target(network(1), network(0), images, mask_of(IDS), 16, CPU)


@pytest.fixture(scope="module")
def middle(target, images) -> float:
    """A threshold that some clean images pass, some only attacked."""
    return float(score(target, images, None, 16, CPU).quantile(0.3))


def pixels_removed(mask) -> Tensor:
    """Bool (N, 1, H, W), True where a pixel lies in a masked patch; loops, not the model's rearrangement."""
    out = torch.zeros(len(mask.hidden), 1, SIDE, SIDE, dtype=torch.bool)
    for row, hidden in enumerate(mask.hidden.tolist()):
        for patch in hidden:
            top, left = PATCH * (patch // (SIDE // PATCH)), PATCH * (patch % (SIDE // PATCH))
            out[row, 0, top : top + PATCH, left : left + PATCH] = True
    return out


def full_loss(model: MaskedAutoencoder, x: Tensor, mask, aimed: Tensor) -> Tensor:
    """D (N,) of whole images by the pixels: aimed is (N, C, H, W), the original's full output in pixel space."""
    out = model.unpatchify(model(x, mask)) * torch.tensor(CONFIG.std).view(1, 3, 1, 1)
    out = out + torch.tensor(CONFIG.mean).view(1, 3, 1, 1)
    weight = pixels_removed(mask).float().expand_as(out)
    return ((out - aimed).square() * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3))


def aim_of(model: MaskedAutoencoder, images: Tensor, mask) -> Tensor:
    with torch.no_grad():
        return model.unpatchify(model.denormalise(model(images / 255, mask)))


ALL = [
    (uma, BOUNDED, {"steps": 6}),
    (uma, BOUNDED, {"steps": 3, "restarts": 2}),
    (uma, UNBOUNDED, {"adam_steps": 8, "lr": 0.05}),
    (uma, FREE, {"adam_steps": 4, "restarts": 2, "lr": 0.05}),
    (noise, BOUNDED, {"steps": 5}),
    (noise, BOUNDED, {"steps": 5, "distribution": "uniform"}),
    (noise, UNBOUNDED, {"steps": 5}),
    (noise, FREE, {"steps": 5}),
]


def name_of(value: object) -> str | None:
    return getattr(value, "__name__", None) or (str(value) if isinstance(value, Budget) else None)


@pytest.mark.slow
@pytest.mark.parametrize(("attack", "budget", "parameters"), ALL, ids=name_of)
@pytest.mark.parametrize("fast", [False, True])
def test_what_an_attack_returns_holds(attack, budget, parameters, fast, images, target, middle):
    before = images.clone()
    found = run_attack(attack, parameters, target, images, budget, context(fast=fast, threshold=middle))
    assert torch.equal(images, before)
    assert found.inputs.shape == images.shape
    assert found.inputs.dtype == (torch.float16 if budget == FREE else torch.int16)
    assert not found.inputs.masked_select(pixels_removed(target.mask)).any()
    x = apply_delta(images, found.inputs)
    if budget != FREE:
        moved = images.int() + found.inputs.int()
        assert moved.min() >= 0 and moved.max() <= 255
        assert torch.equal(x, moved.float() / 255)
    if budget == BOUNDED:
        assert found.inputs.abs().max() <= 6
        assert (x - images / 255).abs().max() <= budget.eps + 1e-6
    with torch.no_grad():
        aimed = aim_of(network(1), images, target.mask)
        wanted, clean = (full_loss(target.model, part, target.mask, aimed) for part in (x, images / 255))
    assert torch.allclose(found.loss, wanted, rtol=1e-4) and torch.allclose(found.start, clean, rtol=1e-4)
    assert (found.loss <= found.start).all() and found.loss.mean() < found.start.mean()
    assert torch.equal(found.step >= 0, found.loss <= middle)
    assert torch.equal(found.step == 0, found.start <= middle)
    steps = (parameters.get("steps") or parameters["adam_steps"]) * parameters.get("restarts", 1)
    assert len(found.success_curve) == len(found.loss_curve) == steps + 1 and found.step.max() <= steps
    for step, value in enumerate(found.success_curve):
        assert value == pytest.approx(float(((found.step >= 0) & (found.step <= step)).double().mean()))
    assert found.loss_curve[-1] == pytest.approx(float(found.loss.mean()), rel=1e-5)
    assert found.loss_curve[0] <= float(found.start.mean()) + 1e-7
    assert all(a >= b - 1e-9 for a, b in zip(found.loss_curve, found.loss_curve[1:], strict=False))
    assert found.evaluations >= COUNT * (steps + 1)
    assert all(parameter.grad is None for parameter in target.model.parameters())


def test_without_a_budget_the_clean_images_are_scored(images, target, middle):
    found = run_attack(uma, {}, target, images, Budget.parse(0), context(threshold=middle))
    assert found.inputs.dtype == torch.int16 and not found.inputs.any()
    assert torch.equal(found.loss, found.start)
    assert found.evaluations == COUNT and len(found.loss_curve) == 1
    assert found.success_curve == (float((found.start <= middle).double().mean()),)


@pytest.mark.parametrize("budget", [BOUNDED, UNBOUNDED, FREE], ids=str)
def test_the_original_against_itself_starts_at_nought(budget, images):
    own = make_target(network(0), network(0), images, mask_of(IDS), COUNT, CPU)
    found = run_attack(uma, {"steps": 2, "adam_steps": 2}, own, images, budget, context(batch_size=COUNT))
    assert torch.equal(found.start, torch.zeros(COUNT)) and torch.equal(found.loss, found.start)
    assert torch.equal(found.step, torch.zeros(COUNT, dtype=torch.int64))
    assert not found.inputs.any()
    assert set(found.success_curve) == {1.0} and set(found.loss_curve) == {0.0}
    assert found.evaluations == COUNT  # finished before the first step


def test_only_visible_patches_have_a_gradient(images, target):
    x = (images / 255).requires_grad_()
    aimed = aim_of(network(1), images, target.mask)
    (gradient,) = torch.autograd.grad(full_loss(target.model, x, target.mask, aimed).sum(), x)
    removed = pixels_removed(target.mask).expand_as(x)
    assert not gradient[removed].any()
    assert (gradient[~removed] != 0).all()


def test_the_reference_is_the_originals_output(images, target):
    assert torch.allclose(target.reference, network(1).reconstruct(images / 255, target.mask), atol=1e-6)
    assert not target.reference.requires_grad and not target.model.training
    assert not any(parameter.requires_grad for parameter in target.model.parameters())
    others = images.flip(0)
    steered = make_target(network(1), network(0), images, target.mask, 7, CPU, targets=others)
    assert torch.allclose(steered.reference, network(1).reconstruct(others / 255, target.mask), atol=1e-6)


@pytest.mark.slow
def test_batches_change_nothing(images, target, middle):
    for attack, budget, parameters in [
        (uma, BOUNDED, {"steps": 5, "restarts": 2}),
        (uma, UNBOUNDED, {"adam_steps": 5, "finish_below": math.inf}),
        (noise, BOUNDED, {"steps": 4}),
    ]:
        runs = [
            run_attack(attack, parameters, target, images, budget, context(batch_size=size, threshold=middle))
            for size in (1, 7, 256)
        ]
        for other in runs[1:]:
            assert torch.equal(other.step, runs[0].step)
            assert torch.allclose(other.loss, runs[0].loss, rtol=1e-3)
            assert other.success_curve == runs[0].success_curve
            assert (other.inputs != runs[0].inputs).float().mean() < 0.01


@pytest.mark.parametrize("budget", [BOUNDED, UNBOUNDED], ids=str)
def test_order_and_neighbours_change_nothing(budget, images, target):
    parameters = {"steps": 4, "adam_steps": 4, "restarts": 2}
    full = run_attack(uma, parameters, target, images, budget, context())
    pick = torch.tensor([21, 2, 17])
    part = Target(target.model, target.mask.select(pick), target.reference[pick])
    alone = run_attack(uma, parameters, part, images[pick], budget, context(ids=IDS[pick]))
    assert torch.allclose(alone.loss, full.loss[pick], rtol=1e-3)
    assert (alone.inputs != full.inputs[pick]).float().mean() < 0.01


def test_a_bounded_search_is_textbook_pgd_on_whole_images(images, target):
    eps, steps = 6 / 255, 9
    aimed, clean = aim_of(network(1), images, target.mask), images / 255
    x, best, lowest = clean.clone(), images.clone(), torch.full((COUNT,), torch.inf)
    for step in range(steps + 1):
        shown = ((x * 255).round() / 255).requires_grad_()
        loss = full_loss(target.model, shown, target.mask, aimed)
        win = loss.detach() < lowest
        best[win], lowest[win] = (shown.detach()[win] * 255).round().to(torch.uint8), loss.detach()[win]
        if step < steps:
            (gradient,) = torch.autograd.grad(loss.sum(), shown)
            x = (clean + (x - 2.5 * eps / steps * gradient.sign() - clean).clamp(-eps, eps)).clamp(0, 1)
    found = run_attack(uma, {"steps": steps}, target, images, BOUNDED, context())
    assert torch.allclose(found.loss, lowest, rtol=1e-3)
    assert (found.inputs != best.int() - images.int()).float().mean() < 0.002
    assert lowest.mean() < 0.95 * found.start.mean()


@pytest.mark.parametrize("budget", [UNBOUNDED, FREE], ids=str)
def test_an_unbounded_search_is_torchs_adam(budget, images, target):
    row, steps, lr = 5, 12, 0.03
    part = Target(target.model, target.mask.select([row]), target.reference[row : row + 1])
    model, mask = part.model, part.mask
    clean = model.patchify(images[row : row + 1] / 255)[0, mask.keep[0]][None]
    x = clean.clone().requires_grad_()
    optimiser = torch.optim.Adam([x], lr)
    lowest = math.inf
    for step in range(steps + 1):
        rounded = (x * 255).round() / 255 if budget == UNBOUNDED else clean + (x - clean).half().float()
        shown = x + (rounded - x).detach()
        predicted = model.denormalise(model.decode_hidden(model.encode_patches(model.normalise(shown), mask), mask))
        lowest = min(lowest, F.mse_loss(predicted, part.reference).item())
        if step < steps:
            optimiser.zero_grad()
            (predicted - part.reference).square().sum().backward()
            optimiser.step()
            if budget == UNBOUNDED:
                x.data.clamp_(0, 1)
    parameters = {"adam_steps": steps, "lr": lr}
    found = run_attack(uma, parameters, part, images[row : row + 1], budget, context(ids=IDS[:1]))
    assert found.loss.item() == pytest.approx(lowest, rel=1e-3)
    assert found.loss.item() < 0.7 * found.start.item()


def test_adam_keeps_one_clock_per_sample():
    gradients = torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(0))
    leaf = torch.zeros(5, requires_grad=True)
    optimiser = torch.optim.Adam([leaf], 1.0)
    moments, total = (torch.zeros(2, 5), torch.zeros(2, 5)), torch.zeros(2, 5)
    fresh = None
    for step, gradient in enumerate(gradients):
        leaf.grad = gradient[0].clone()
        optimiser.step()
        direction, moments = adam_direction(gradient, moments, torch.tensor([step + 1, 1]))
        moments[0][1], moments[1][1] = 0, 0  # the second sample starts again at every step
        total -= direction
        fresh = direction[1]
    assert torch.allclose(total[0], leaf.detach(), atol=1e-5)
    assert torch.allclose(fresh, gradients[-1, 1].sign(), atol=1e-4)


def test_noise_is_what_it_says(images, target):
    drawn = []

    class Watch(MaskedAutoencoder):
        def encode_patches(self, visible: Tensor, mask) -> Tensor:
            drawn.append((self.denormalise(visible) * 255).round().int())
            return super().encode_patches(visible, mask)

    watch = freeze(Watch(CONFIG))
    watch.load_state_dict(target.model.state_dict())
    inner = images.clamp(20, 235)
    aim = replace(target, model=watch)
    noise(aim, inner, BOUNDED, context(batch_size=COUNT), steps=3)
    corners = [part - drawn[0] for part in drawn[1:]]
    assert len(corners) == 3 and all(torch.equal(part.abs(), torch.full_like(part, 6)) for part in corners)
    assert abs(torch.stack(corners).float().mean()) < 0.3 and not torch.equal(corners[0], corners[1])
    drawn.clear()
    noise(aim, inner, UNBOUNDED, context(batch_size=COUNT), steps=1)
    assert drawn[1].min() <= 2 and drawn[1].max() >= 253 and abs(drawn[1].float().mean() - 127.5) < 3


@pytest.mark.slow
def test_a_search_beats_noise_of_as_many_looks(images, target):
    for budget in (BOUNDED, UNBOUNDED):
        parameters = {"steps": 15, "adam_steps": 15, "lr": 0.05}
        found = run_attack(uma, parameters, target, images, budget, context())
        control = run_attack(noise, {"steps": 15}, target, images, budget, context())
        assert (found.loss < control.loss).all()


@pytest.mark.slow
def test_without_a_bound_a_trained_model_recovers_what_a_bounded_search_cannot():
    """The unlearned model maps the encoder's tokens elsewhere; visible patches can make up for it, 1/255 cannot."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(200, 3, 3, 3, generator=generator)
    pictures = (F.interpolate(coarse, size=SIDE, mode="bilinear") * 255).to(torch.uint8)
    original = MaskedAutoencoder(CONFIG)
    trainable = [parameter for parameter in original.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trainable, 2e-3)
    for _ in range(80):
        x = pictures[torch.randint(0, 200, (64,), generator=generator)] / 255
        optimiser.zero_grad()
        original.loss(x, make_mask(torch.rand(64, PATCHES, generator=generator), 0.75)).backward()
        optimiser.step()
    unlearned = MaskedAutoencoder(CONFIG)
    unlearned.load_state_dict(original.state_dict())
    with torch.no_grad():
        for name, parameter in unlearned.encoder_parameters():
            if name.startswith("blocks") and parameter.ndim == 2:
                parameter.add_(0.5 * parameter.std() * torch.randn(parameter.shape, generator=generator))
    made = make_target(original, unlearned, pictures[:COUNT], mask_of(IDS), COUNT, CPU)
    start = score(made, pictures[:COUNT], None, COUNT, CPU)
    setting = context(threshold=float(start.min()) / 4)
    small = run_attack(uma, {"steps": 20}, made, pictures[:COUNT], Budget.parse(1), setting)
    large = run_attack(uma, {"adam_steps": 80}, made, pictures[:COUNT], UNBOUNDED, setting)
    assert small.success_curve[-1] == 0
    assert large.success_curve[-1] > 0.9
    random = run_attack(noise, {"steps": 20}, made, pictures[:COUNT], UNBOUNDED, setting)
    assert random.success_curve[-1] == 0


def test_finished_samples_leave(images, target, middle):
    full, early = (
        run_attack(uma, {"steps": 8, "finish_below": below}, target, images, BOUNDED, context(threshold=middle))
        for below in (0.0, math.inf)
    )
    assert full.evaluations == COUNT * 9
    assert torch.equal(full.step, early.step) and full.success_curve == early.success_curve
    assert early.evaluations == int((torch.where(early.step >= 0, early.step, 8) + 1).sum())
    assert (early.step > 0).any() and (early.step < 0).sum() < COUNT
    strict = middle / 2
    between = run_attack(uma, {"steps": 8, "finish_below": strict}, target, images, BOUNDED, context(threshold=middle))
    assert early.evaluations < between.evaluations <= full.evaluations


@pytest.mark.parametrize("budget", [Budget("6/255"), UNBOUNDED, FREE], ids=str)
def test_a_larger_budget_starts_from_the_smaller_one(budget, images, target):
    small = run_attack(uma, {"steps": 8}, target, images, Budget("4/255"), context())
    large = run_attack(uma, {"steps": 1, "adam_steps": 1}, target, images, budget, context(start=small.inputs))
    slack = 1e-3 if budget == FREE else 1e-6  # a float16 delta is not the 8-bit one
    assert (large.loss <= small.loss * (1 + slack)).all()
    assert torch.allclose(large.start, small.start, rtol=1e-5)
    assert large.loss_curve[0] == pytest.approx(float(small.loss.mean()), rel=1e-3)


def test_restarts_begin_at_random_points_of_the_ball(images, target):
    one, three = (run_attack(uma, {"steps": 4, "restarts": n}, target, images, BOUNDED, context()) for n in (1, 3))
    assert (three.loss <= one.loss + 1e-7).all() and (three.loss < one.loss).any()
    other = run_attack(uma, {"steps": 4, "restarts": 3}, target, images, BOUNDED, context(seed=4))
    assert (other.inputs != three.inputs).any()


def test_the_bfloat16_guide_agrees_with_float32(images, target, monkeypatch):
    monkeypatch.setattr(guides, "_pays", lambda *_: True)  # also where the processor would not gain from it
    model, mask = target.model, target.mask
    visible = model.patchify(images / 255).gather(1, mask.keep[..., None].expand(-1, -1, PATCH**2 * 3))
    half = guides.Guide(model, context(fast=True))
    exact = guides.Guide(model, context())
    assert exact.is_exact and not half.is_exact
    ours, wanted = (guide(visible, mask, target.reference, gradient=True) for guide in (half, exact))
    assert torch.allclose(ours.loss, wanted.loss, rtol=0.02) and not torch.equal(ours.loss, wanted.loss)
    alike = F.cosine_similarity(ours.gradient.flatten(1), wanted.gradient.flatten(1))
    assert alike.min() > 0.99
    assert torch.equal(half.exact(visible, mask, target.reference), exact.exact(visible, mask, target.reference))
    assert next(iter(model.blocks)).attn.qkv.weight.dtype == torch.float32
    again = guides.Guide(model, context())(visible, mask, target.reference, gradient=False)
    assert torch.equal(again.loss, wanted.loss) and again.gradient is None


def test_float32_decides_what_is_finished(images, target, middle, monkeypatch):
    """A guide that calls everything recovered must not end a single search."""

    def praise(self, visible, mask, reference, *, gradient):
        said = guides.Guide.exact(self, visible, mask, reference)
        return guides.Score(0 * said, torch.ones_like(visible) if gradient else None)

    monkeypatch.setattr(guides, "_pays", lambda model, device: True)
    monkeypatch.setattr(guides.Guide, "__call__", praise)
    setting = context(fast=True, threshold=middle)
    found = run_attack(uma, {"steps": 3, "finish_below": math.inf}, target, images, Budget("1/255"), setting)
    assert torch.equal(found.step >= 0, score(target, images, found.inputs, 16, CPU) <= middle)
    assert 0 < (found.step < 0).sum() < COUNT
    assert found.evaluations > 2 * 4 * (found.step < 0).sum()  # each false claim cost one look and ended nothing


def fake(delta: Tensor, **changes: object) -> Probes:
    zeros = torch.zeros(COUNT)
    return replace(Probes(delta, zeros, zeros.long(), (1.0, 1.0), (0.0, 0.0), 1, True), **changes)


def bad_probes(images: Tensor, target: Target) -> list[tuple[Budget, Probes, str]]:
    removed = pixels_removed(target.mask).expand_as(images)
    blank = torch.zeros(images.shape, dtype=torch.int16)
    room = torch.where(images.int() < 128, 7, -7).to(torch.int16).masked_fill(removed, 0)
    outside = torch.where(images.int() < 128, -200, 200).to(torch.int16).masked_fill(removed, 0)
    infinite = blank.half().masked_fill(~removed, torch.inf)
    return [
        (BOUNDED, fake((blank + 1).masked_fill(~removed, 0)), "masked patches"),
        (FREE, fake((blank.half() + 1e-4).masked_fill(~removed, 0)), "masked patches"),
        (BOUNDED, fake(room), "lies 7/255 .* budget is 6/255"),
        (UNBOUNDED, fake(outside), "outside 0 to 255"),
        (BOUNDED, fake(blank.float()), "wanted a delta torch.int16"),
        (FREE, fake(blank), "wanted a delta torch.float16"),
        (BOUNDED, fake(blank[:, :1]), "wanted a delta"),
        (FREE, fake(infinite), "not finite"),
        (BOUNDED, fake(blank, step=torch.zeros(COUNT)), "wanted steps"),
        (BOUNDED, fake(blank, loss_curve=(1.0, math.nan)), "finite loss"),
        (BOUNDED, fake(blank, loss_curve=()), "finite loss"),
    ]


@pytest.mark.parametrize("case", range(11))
def test_a_dishonest_attack_is_refused(case, images, target):
    budget, probes, message = bad_probes(images, target)[case]

    def plugin(target, images, budget, context):
        return probes

    with pytest.raises(RubError, match=f"attack 'plugin'.*{message}"):
        run_attack(plugin, {}, target, images, budget, context())


def test_a_boast_is_corrected(images, target, middle):
    def boastful(target, images, budget, context):
        return fake(torch.zeros(images.shape, dtype=torch.int16), step=torch.full((COUNT,), 9))

    found = run_attack(boastful, {}, target, images, BOUNDED, context(threshold=middle))
    clean = score(target, images, None, 16, CPU)
    assert torch.allclose(found.loss, clean) and torch.allclose(found.start, clean)
    assert torch.equal(found.step, torch.where(clean <= middle, 0, -1))
    rate = float((clean <= middle).double().mean())
    assert found.success_curve == (rate, rate)
    assert found.loss_curve[-1] == pytest.approx(float(clean.mean()))


def test_requests_that_cannot_be_carried_out(images, target):
    for changes, message in [
        ({"model": network(0).train()}, "training mode"),
        ({"reference": target.reference[:3]}, "with 24, 3 and 24"),
    ]:
        with pytest.raises(RubError, match=message):
            run_attack(uma, {}, replace(target, **changes), images, BOUNDED, context())
    with pytest.raises(RubError, match="uint8"):
        run_attack(uma, {}, target, images / 255, BOUNDED, context())
    far = torch.where(images.int() < 128, 99, -99).to(torch.int16)
    far = far.masked_fill(pixels_removed(target.mask), 0)
    with pytest.raises(RubError, match="start of the search"):
        run_attack(uma, {}, target, images, BOUNDED, context(start=far))
    with pytest.raises(RubError, match="same number and shape"):
        make_target(network(0), network(0), images, target.mask.select([0]), 4, CPU)
    with pytest.raises(RubError, match="should agree"):
        other = MaskedAutoencoder(replace(CONFIG, patch_size=8))
        make_target(network(0), other, images, target.mask, 4, CPU)


def test_models_that_diverged(images, target):
    broken = network(0)
    broken.decoder_pred.bias.data.fill_(math.nan)
    with pytest.raises(Diverged, match="not finite on 24 images"):
        run_attack(uma, {"steps": 1}, replace(target, model=freeze(broken)), images, BOUNDED, context())
    with pytest.raises(Diverged, match="original"):
        make_target(broken, network(0), images, target.mask, 4, CPU)


def test_union_keeps_the_best_of_each_sample(images, target, middle):
    setting = context(threshold=middle)
    runs = [run_attack(uma, {"steps": 2, "step_size": 0.01}, target, images, BOUNDED, setting)]
    runs.append(run_attack(uma, {"steps": 6}, target, images, BOUNDED, setting))
    runs.append(run_attack(noise, {"steps": 3}, target, images, BOUNDED, setting))
    merged = union(runs)
    assert torch.equal(merged.loss, torch.stack([run.loss for run in runs]).amin(0))
    assert torch.allclose(score(target, images, merged.inputs, 16, CPU), merged.loss, rtol=1e-5)
    assert torch.equal(merged.step >= 0, merged.loss <= middle)
    assert len(merged.success_curve) == len(merged.loss_curve) == 2 + 6 + 3 + 1
    assert merged.loss_curve[-1] == pytest.approx(float(merged.loss.mean()))
    assert merged.evaluations == sum(run.evaluations for run in runs)
    first = runs[0].step >= 0
    assert torch.equal(merged.step[first], runs[0].step[first])
    second = ~first & (runs[1].step >= 0)
    assert second.any() and torch.equal(merged.step[second], runs[1].step[second] + 2)


def test_budgets():
    assert Budget.parse("8/255") == Budget.parse(8) == Budget("8/255")
    assert (Budget.parse(8).levels, Budget.parse(8).eps) == (8, 8 / 255)
    assert Budget.parse(0) == Budget.parse("0/255") == Budget("none") and Budget("none").eps == 0
    flags = [(budget.bounded, budget.gridded, budget.eps is None) for budget in (BOUNDED, UNBOUNDED, FREE)]
    assert flags == [(True, True, False), (False, True, True), (False, False, True)]
    for wrong in ("8", "300/255", -1, "08/255", "unbound"):
        with pytest.raises(RubError, match="budget"):
            Budget.parse(wrong)


def test_deltas_apply_exactly():
    levels = torch.arange(256).to(torch.uint8)
    delta = (255 - 2 * torch.arange(256)).to(torch.int16)
    assert torch.equal(apply_delta(levels, delta), levels.flip(0).float() / 255)
    assert torch.equal(apply_delta(levels, torch.full((256,), 0.5).half()), levels.float() / 255 + 0.5)


def test_hyperparameters_are_typed():
    for name in ("uma", "noise"):
        entry = ATTACKS.get(name, "inpainting")
        assert resolve(entry, {"finish_below": math.inf}, "x")["finish_below"] == math.inf
        for bad in ({"steps": 0}, {"finish_below": math.nan}, {"lr": 0.0} if name == "uma" else {"distribution": "x"}):
            with pytest.raises(RubError):
                resolve(entry, bad, "x")
