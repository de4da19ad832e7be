"""Attacks on classifiers: what they find, what they claim, and that neighbours and batches change nothing."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rub.attacks import linf as optim
from rub.attacks import search as search_module
from rub.attacks.base import AttackContext, Probes
from rub.config.hyperparameters import resolve
from rub.data.samples import to_unit
from rub.errors import Diverged, RubError
from rub.models.network import build_network
from rub.models.weights import freeze
from rub.pipeline import rng
from rub.registry import ATTACKS
from rub.tasks.classification.attacks import divergences
from rub.tasks.classification.attacks.base import Budget, Target
from rub.tasks.classification.attacks.harness import make_target, rescored, run_attack, run_attacks, union
from rub.tasks.classification.attacks.noise import noise
from rub.tasks.classification.attacks.square import square
from rub.tasks.classification.attacks.uma import uma
from rub.tasks.classification.attacks.uma_apgd import uma_apgd
from rub.tasks.classification.attacks.uma_momentum import uma_momentum
from rub.tasks.classification.attacks.universal import universal

CLASSES, COUNT = 4, 40


class Small(nn.Module):
    """Two convolutions and a linear head, with the features that the contract names."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.fc = nn.Linear(12 * 16, CLASSES)
        with torch.no_grad():
            self.fc.weight.mul_(30)

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x - 0.5)))).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


class NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, *gradients):
        raise AssertionError("a gradient was asked for")


class Blind(Small):
    """Refuses to be differentiated."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(NoBackward.apply(x))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (COUNT, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture(scope="module")
def target(images: Tensor) -> Target:
    """Every label is the unlearned model's second choice (every eighth its first), at distances of all sizes."""
    unlearned, original = Small(0), Small(1)
    ranking = unlearned(to_unit(images)).argsort(1, descending=True)
    labels = torch.where(torch.arange(COUNT) % 8 == 0, ranking[:, 0], ranking[:, 1])
    made = make_target(original, unlearned, images, labels, 16, torch.device("cpu"))
    return replace(made, reference=3.0 * F.one_hot(labels, CLASSES))


def context(**changes: object) -> AttackContext:
    return replace(AttackContext(seed=3, ids=torch.arange(100, 100 + COUNT), batch_size=16, fast=False), **changes)


def recovered(target: Target, images: Tensor) -> Tensor:
    with torch.no_grad():
        return target.model(to_unit(images)).argmax(1) == target.labels


ALL = [
    (uma, {"steps": 6}),
    (uma, {"steps": 3, "restarts": 2, "grid": False, "divergence": "ce"}),
    (uma_momentum, {"steps": 6, "restarts": 2}),
    (uma_apgd, {"steps": 8, "restarts": 2}),
    (square, {"steps": 12}),
    (noise, {"steps": 6, "distribution": "uniform"}),
    (universal, {"steps": 6}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("attack", "parameters"), ALL, ids=lambda value: getattr(value, "__name__", None))
@pytest.mark.parametrize("fast", [False, True])
def test_what_an_attack_returns_holds(attack, parameters, fast, images, target):
    before = images.clone()
    found = run_attack(attack, parameters, target, images, Budget(6), context(fast=fast))
    assert torch.equal(images, before)
    assert found.inputs.dtype == torch.uint8 and found.inputs.shape == images.shape
    assert (found.inputs.int() - images.int()).abs().max() <= 6
    hit = recovered(target, found.inputs)
    assert torch.equal(found.step >= 0, hit)
    assert hit.sum() > recovered(target, images).sum() or attack is noise
    name = parameters.get("divergence", "kl")
    with torch.no_grad():
        logits = target.model(to_unit(found.inputs))
    p = F.softmax(target.reference.double(), 1)
    wanted = (p * (p.log() - F.log_softmax(logits.double(), 1))).sum(1)
    if name == "ce":
        wanted = -F.log_softmax(logits.double(), 1)[torch.arange(COUNT), target.labels]
    assert torch.allclose(found.loss.double(), wanted, atol=1e-5)
    steps = parameters["steps"] * parameters.get("restarts", 1)
    assert len(found.success_curve) == len(found.loss_curve) == steps + 1
    assert found.success_curve[-1] == pytest.approx(hit.double().mean().item())
    assert all(a <= b + 1e-9 for a, b in zip(found.success_curve, found.success_curve[1:], strict=False))
    assert found.step.max() <= steps
    assert found.evaluations >= COUNT


@pytest.mark.parametrize("attack", [uma, uma_apgd, uma_momentum, noise, square, universal])
def test_without_a_budget_the_clean_images_are_scored(attack, images, target):
    found = run_attack(attack, {}, target, images, Budget(0), context())
    assert torch.equal(found.inputs, images)
    assert found.success_curve == (recovered(target, images).double().mean().item(),)
    assert found.evaluations == COUNT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "parameters"),
    [
        (uma, {"steps": 5, "restarts": 2, "finish_below": math.inf}),
        (uma_apgd, {"steps": 8}),
        (uma_momentum, {"steps": 8, "divergence": "margin"}),
        (square, {"steps": 8, "finish_below": math.inf}),
        (noise, {"steps": 5}),
        (universal, {"steps": 5}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_batches_change_nothing(attack, parameters, images, target):
    sizes = [
        run_attack(attack, parameters, target, images, Budget(4), context(batch_size=size)) for size in (1, 7, 256)
    ]
    for other in sizes[1:]:
        assert torch.equal(other.step, sizes[0].step)
        assert torch.allclose(other.loss, sizes[0].loss, atol=1e-4)
        assert other.success_curve == sizes[0].success_curve
        assert (other.inputs != sizes[0].inputs).float().mean() < 0.02


def test_order_and_neighbours_change_nothing(images, target):
    parameters = {"steps": 4, "restarts": 2}
    full = run_attack(uma, parameters, target, images, Budget(4), context())
    pick = torch.tensor([31, 2, 17])
    part = Target(target.model, target.labels[pick], target.reference[pick], target.features[pick])
    alone = run_attack(uma, parameters, part, images[pick], Budget(4), context(ids=torch.arange(100, 140)[pick]))
    assert torch.allclose(alone.loss, full.loss[pick], atol=1e-5)
    assert torch.equal(alone.step, full.step[pick])


def test_finished_samples_leave(images, target):
    spent = [
        run_attack(uma, {"steps": 10, "finish_below": below}, target, images, Budget(8), context())
        for below in (0.0, 0.2, math.inf)
    ]
    assert spent[0].evaluations == COUNT * 11
    assert spent[0].evaluations > spent[1].evaluations > spent[2].evaluations
    assert torch.equal(spent[0].step, spent[2].step)
    reached = spent[2].step >= 0
    assert spent[2].evaluations == int((torch.where(reached, spent[2].step, 10) + 1).sum())
    assert spent[2].success_curve == spent[0].success_curve
    assert (spent[1].loss[(spent[1].step >= 0) & (spent[1].loss <= 0.2)] > 0).any()


def test_float32_decides_what_is_finished(images, target, monkeypatch):
    """A guide that calls everything recovered must not end a single search."""
    from rub.tasks.classification.attacks import scoring

    class Liar(Small):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.tensor([0, 0, 0, 50.0])

    monkeypatch.setattr(scoring, "frozen_copy", lambda model: freeze(Liar(0)))
    aim = replace(target, labels=torch.full((COUNT,), 3), reference=torch.tensor([[0, 0, 0, 5.0]]).expand(COUNT, -1))
    found = run_attack(uma, {"steps": 4, "finish_below": math.inf}, aim, images, Budget(1), context(fast=True))
    assert torch.equal(found.step >= 0, recovered(aim, found.inputs))
    assert 0 < (found.step < 0).sum() < COUNT
    assert found.evaluations > 2 * 5 * (found.step < 0).sum()  # each false claim cost one look and ended nothing


def test_a_larger_budget_starts_from_the_smaller_one(images, target):
    small = run_attack(uma, {"steps": 5}, target, images, Budget(2), context())
    for attack, parameters in [
        (uma, {"steps": 1, "step_size": 0.01}),
        (universal, {"steps": 2}),
        (square, {"steps": 2}),
    ]:
        large = run_attack(attack, parameters, target, images, Budget(4), context(start=small.inputs))
        assert (recovered(target, large.inputs) | ~recovered(target, small.inputs)).all()
        assert (large.loss <= small.loss + 1e-6)[(small.step >= 0) == (large.step >= 0)].all()


@pytest.mark.slow
@pytest.mark.parametrize("levels", [4, 16])
def test_adaptive_steps_reach_what_fixed_steps_reach(levels, images, target):
    fixed = run_attack(uma, {"steps": 30}, target, images, Budget(levels), context())
    adaptive = run_attack(uma_apgd, {"steps": 30}, target, images, Budget(levels), context())
    assert adaptive.loss.mean() <= fixed.loss.mean() + 1e-4
    assert (adaptive.step >= 0).sum() >= (fixed.step >= 0).sum()


@pytest.mark.parametrize(("attack", "parameters"), [(square, {"steps": 8}), (noise, {"steps": 4})])
def test_black_boxes_take_no_gradients(attack, parameters, images, target):
    blind = Blind(0)
    blind.load_state_dict(target.model.state_dict())
    aim = replace(target, model=freeze(blind))
    found = run_attack(attack, parameters, aim, images, Budget(8), context())
    assert found.loss.mean() < run_attack(attack, {}, aim, images, Budget(0), context()).loss.mean()
    with pytest.raises(AssertionError, match="gradient"):
        run_attack(uma, {"steps": 1}, aim, images, Budget(8), context())


def test_a_search_scores_8_bit_images(images, target):
    """Without the harness too: the loss is that of the returned file; the textbook search looks at floats."""
    for grid in (True, False):
        on_grid: list[bool] = []

        class Watch(Small):
            def forward(self, x: Tensor, on_grid: list[bool] = on_grid) -> Tensor:
                if x.requires_grad:
                    on_grid.append(bool(((x * 255).round() / 255 == x).all()))
                return super().forward(x)

        aim = replace(target, model=freeze(Watch(0)))
        found = uma(aim, images, Budget(5), context(), steps=7, grid=grid)
        with torch.no_grad():
            scored = divergences.kl(target.model(to_unit(found.inputs)), target.reference)
        assert torch.allclose(found.loss, scored, atol=1e-5)
        assert all(on_grid) == grid


@pytest.mark.slow
def test_the_fast_search_finds_what_the_exact_one_finds():
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (30, 3, 16, 16), generator=generator, dtype=torch.uint8)
    model = build_network("resnet10", num_classes=5, width=8, stem="half", mean=(0.5,) * 3, std=(0.25,) * 3)
    model.train()
    for _ in range(3):
        model(to_unit(images))  # gives batch norm statistics to fold
    freeze(model)
    labels = model(to_unit(images)).argsort(1, descending=True)[:, 1]
    made = make_target(model, model, images, labels, 30, torch.device("cpu"))
    aim = replace(made, reference=4.0 * F.one_hot(labels, 5), features=made.features.roll(1, 0))
    for divergence in ("kl", "features-l2"):
        parameters = {"steps": 15, "divergence": divergence}
        both = [
            run_attack(uma, parameters, aim, images, Budget(3), context(ids=torch.arange(30), fast=fast))
            for fast in (False, True)
        ]
        assert abs((both[0].step >= 0).sum() - (both[1].step >= 0).sum()) <= 1
        assert abs(both[0].loss.mean() - both[1].loss.mean()) <= 0.03 * both[0].loss.mean() + 1e-3
        assert torch.equal(both[1].step >= 0, recovered(aim, both[1].inputs))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_universal_delta_is_one(images, target):
    found = universal(target, images, Budget(8), context(), steps=8)
    moved, clean = found.inputs.int(), images.int()
    inside = (moved > 0) & (moved < 255)
    delta = torch.where(inside, moved - clean, 99).amin(0)  # the delta, where some image is not clipped
    assert torch.equal((clean + delta).clamp(0, 255), moved)
    assert found.success_curve[-1] > found.success_curve[0]


def test_square_proposes_squares(images, target):
    seen = []

    class Watch(Small):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((x * 255).round().int())
            return super().forward(x)

    watch = Watch(0)
    watch.load_state_dict(target.model.state_dict())
    images = images.clamp(20, 235)  # far from the range's ends, where nothing is clipped
    square(replace(target, model=freeze(watch)), images, Budget(8), context(batch_size=COUNT), steps=12, fraction=0.3)
    stripes = seen[1] - seen[0]
    assert torch.equal(stripes.abs(), torch.full_like(stripes, 8))
    assert torch.equal(stripes, stripes[:, :, :1].expand_as(stripes))
    changed = (seen[2] != seen[1]).any(1)  # from the accepted stripes to the first square
    rows, columns = changed.any(2).sum(1), changed.any(1).sum(1)
    side = round(math.sqrt(0.3 * 64))
    assert rows.max() <= side and columns.max() <= side


def test_union_keeps_the_best_of_each_sample(images, target):
    runs = [run_attack(uma, {"steps": steps}, target, images, Budget(3), context()) for steps in (2, 6)]
    runs.append(run_attack(noise, {"steps": 3}, target, images, Budget(3), context()))
    merged = union(runs)
    hits = torch.stack([run.step >= 0 for run in runs])
    assert torch.equal(merged.step >= 0, hits.any(0))
    assert torch.equal(recovered(target, merged.inputs), hits.any(0))
    losses = torch.stack([run.loss for run in runs]).masked_fill(~hits & hits.any(0), torch.inf)
    assert torch.equal(merged.loss, losses.amin(0))
    assert len(merged.success_curve) == len(merged.loss_curve) == 2 + 6 + 3 + 1
    assert merged.success_curve[-1] == pytest.approx(hits.any(0).double().mean().item())
    assert merged.evaluations == sum(run.evaluations for run in runs)
    assert torch.equal(merged.step[hits[0]], runs[0].step[hits[0]])


def test_claims_are_checked(images, target):
    def far(target, images, budget, context):
        return fake(images.clone().fill_(0))

    def boastful(target, images, budget, context):
        return fake(images.clone())

    def fake(probes):
        count = len(probes)
        return Probes(probes, torch.zeros(count), torch.zeros(count, dtype=torch.int64), (1.0,), (0.0,), 1, True)

    with pytest.raises(RubError, match=r"attack 'far': a probe lies .*budget is 8/255"):
        run_attack(far, {}, target, images, Budget(8), context())
    found = run_attack(boastful, {}, target, images, Budget(8), context())
    assert torch.equal(found.step >= 0, recovered(target, images))
    assert found.success_curve == (recovered(target, images).double().mean().item(),)
    with pytest.raises(RubError, match="training mode"):
        run_attack(uma, {}, replace(target, model=Small(0).train()), images, Budget(8), context())
    with pytest.raises(RubError, match="start of the search"):
        run_attack(uma, {}, target, images, Budget(8), context(start=255 - images))
    with pytest.raises(RubError, match="features-l2"):
        run_attack(
            uma,
            {"divergence": "features-l2"},
            replace(target, features=torch.empty(COUNT, 0)),
            images,
            Budget(8),
            context(),
        )
    broken = freeze(Small(0))
    broken.fc.bias.data.fill_(math.nan)
    with pytest.raises(Diverged, match="not finite"):
        run_attack(uma, {"steps": 1}, replace(target, model=broken), images, Budget(8), context())


def test_every_divergence_falls(images, target):
    for name in ("kl", "ce", "margin", "logits-l2", "features-l2"):
        clean = run_attack(uma, {"divergence": name}, target, images, Budget(0), context())
        found = run_attack(uma, {"divergence": name, "steps": 8}, target, images, Budget(8), context())
        same = (clean.step >= 0) == (found.step >= 0)
        assert (found.loss <= clean.loss + 1e-6)[same].all()
        assert found.loss.mean() < clean.loss.mean()


def test_divergences_are_their_equations():
    z, r = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.randn(6, 5) * 2
    y = torch.tensor([0, 1, 2, 3, 4, 0])
    a, b = z.double().numpy(), r.double().numpy()
    p, q = (np.exp(v) / np.exp(v).sum(1, keepdims=True) for v in (b, a))
    assert np.allclose(divergences.kl(z, r), (p * np.log(p / q)).sum(1), atol=1e-6)
    assert np.allclose(divergences.ce(z, y), -np.log(q[range(6), y]), atol=1e-6)
    others = np.array([max(v for j, v in enumerate(row) if j != k) - row[k] for row, k in zip(a, y, strict=True)])
    assert np.allclose(divergences.margin(z, y), others, atol=1e-6)
    assert np.allclose(divergences.distance(z, r), np.sqrt(((a - b) ** 2).sum(1)), atol=1e-5)
    leaf = r.clone().requires_grad_()
    divergences.distance(leaf, r).sum().backward()
    assert torch.equal(leaf.grad, torch.zeros_like(r))


def test_hyperparameters_are_typed_and_ranged():
    entry = ATTACKS.get("uma", "classification")
    assert resolve(entry, {"finish_below": math.inf}, "x")["finish_below"] == math.inf
    assert resolve(entry, {}, "x")["step_size"] is None
    for bad in ({"steps": 0}, {"step_size": 0.0}, {"divergence": "l7"}, {"restarts": 0}, {"finish_below": math.nan}):
        with pytest.raises(RubError):
            resolve(entry, bad, "x")


def test_keyed_noise_is_splitmix64_and_uniform():
    def splitmix(z: int) -> int:
        mask = 2**64 - 1
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    golden, mask, ids = 0x9E3779B97F4A7C15, 2**64 - 1, [5, 0, 12345678901]
    from hashlib import sha256

    key = int.from_bytes(sha256(b"9:start").digest()[:8], "big")
    got = rng.keyed_uniform(9, "start", torch.tensor(ids), 2, 3)
    for row, identity in enumerate(ids):
        state = splitmix((splitmix((identity * golden + key) & mask) + 2 * golden) & mask)
        wanted = [(splitmix((state + j * golden) & mask) >> 40) / 2**24 for j in (1, 2, 3)]
        assert got[row].tolist() == wanted
    many = rng.keyed_uniform(0, "start", torch.arange(200), 0, 500)
    assert abs(many.mean() - 0.5) < 0.005 and abs(many.std() - 1 / math.sqrt(12)) < 0.005
    assert abs(np.corrcoef(many.numpy())[np.triu_indices(200, 1)]).mean() < 0.05
    histogram = torch.histc(many, 10, 0, 1) / many.numel()
    assert (histogram - 0.1).abs().max() < 0.004


def test_checkpoints_follow_the_recursion():
    for steps in (10, 100, 537):
        p = [0.0, 0.22]
        while p[-1] + max(p[-1] - p[-2] - 0.03, 0.06) <= 1 + 1e-9:
            p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
        assert list(optim.review_steps(steps)) == list(dict.fromkeys(math.ceil(v * steps - 1e-6) for v in p))


def test_convergence_needs_both_signs():
    falling, flat = [5.0, 4.0, 3.0, 2.0, 1.0], [5.0, 1.0, 1.0, 1.0, 1.0]
    rising, done = [0.0, 0.1, 0.2, 0.3, 0.4], [0.0, 1.0, 1.0, 1.0, 1.0]
    each = range(5)
    assert not optim.has_converged(rising, falling, each)
    assert optim.has_converged(done, falling, each) and optim.has_converged(rising, flat, each)
    every = range(101)
    assert not optim.has_converged([0.0] * 101, [50 - step / 4 for step in every], every), "still on its way"
    assert optim.has_converged([0.0] * 101, [max(50 - step, 20) for step in every], every), "at rest, nothing recovered"


def test_a_search_that_rests_between_two_moves_has_not_converged():
    moves = [0] * 20 + [1] * 20 + [2] * 20 + [3] * 10 + [4] * 31  # after steps 20, 40, 60 and 70
    successes, losses = [move / 10 for move in moves], [10.0 - move for move in moves]
    assert not optim.has_converged(successes, losses, moves), "each move still recovers a tenth"
    assert optim.has_converged(successes, losses, range(101)), "by steps it seems to rest"
    found = [min(move, 2) / 10 for move in moves], [10.0 - min(move, 2) for move in moves]
    assert optim.has_converged(*found, moves), "the last moves brought nothing"
    assert not optim.has_converged([0.5, 0.5], [1.0, 1.0], [0, 1]), "one move says nothing"
    assert optim.has_converged([1.0, 1.0], [1.0, 1.0], [0, 1]), "nothing was left to gain"


@pytest.mark.parametrize("fast", [False, True])
def test_moves_are_counted_on_stored_images(fast, images, target):
    """At 1/255 the textbook step of 2.5 eps / 100 changes no 8-bit image before step 20."""
    moves: list[list[float]] = []

    class Watch(search_module.BestSoFar):
        def probes(self, evaluations):
            moves.append((self._moved / self._searched.clamp_min(1)).cumsum(0).tolist())
            return super().probes(evaluations)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_module, "BestSoFar", Watch)
        for grid in (True, False):
            uma(target, images, Budget(1), context(fast=fast), steps=100, grid=grid)
        made = uma(target, images, Budget(1), context(fast=fast), steps=19, step_size=0.025)
    for counted in moves[:2]:
        assert counted[:20] == [0.0] * 20 and counted[21] > 0
    assert not made.converged, "it never moved"


def test_a_search_that_loses_what_was_known_has_not_converged(images, target):
    def blank(target, images, budget, context):
        return images.clone()

    known = run_attack(uma, {"steps": 5}, target, images, Budget(4), context())
    assert (known.step > 0).any()
    again = run_attack(blank, {}, target, images, Budget(8), context(start=known.inputs))
    assert not again.converged and torch.equal(again.step >= 0, known.step >= 0)


def test_a_run_searches_what_no_run_before_it_recovered(images, target):
    budget, first = Budget(3), (uma_momentum, {"divergence": "kl", "steps": 3, "finish_below": math.inf})
    second = (uma_momentum, {"divergence": "margin", "steps": 4, "finish_below": math.inf})
    alone = run_attack(*first, target, images, budget, context())
    seen = []

    def watched(target, images, budget, context, **parameters):
        seen.extend(context.ids.tolist())
        return second[0](target, images, budget, context, **parameters)

    both = run_attacks([first, (watched, second[1])], target, images, budget, context())
    assert seen == context().ids[alone.step < 0].tolist() and 0 < len(seen) < COUNT
    hit = recovered(target, both.inputs)
    assert torch.equal(both.step >= 0, hit) and (hit | (alone.step < 0)).all()
    assert torch.allclose(both.loss, divergences.kl(target.model(to_unit(both.inputs)), target.reference), atol=1e-5)
    assert len(both.success_curve) == 3 + 4 + 1 and both.success_curve[-1] == pytest.approx(hit.double().mean().item())
    full = run_attacks([first, (uma, {"steps": 2})], target, images, budget, context())
    assert torch.equal(
        full.step >= 0, union([alone, run_attack(uma, {"steps": 2}, target, images, budget, context())]).step >= 0
    )


def test_rescored_probes_are_on_the_scale_of_kl():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval().requires_grad_(False)
    images = torch.randint(0, 256, (5, 3, 2, 2), dtype=torch.uint8)
    reference = torch.randn(5, 3)
    target = Target(model, torch.zeros(5, dtype=torch.int64), reference, torch.zeros(5, 0))
    found = Probes(images, torch.full((5,), -7.0), torch.zeros(5, dtype=torch.int64), (1.0,), (0.0,), 5, True)
    p = reference.softmax(1)
    wanted = (p * (p.log() - model(images / 255).log_softmax(1))).sum(1)
    scored = rescored(found, target, AttackContext(seed=0, ids=torch.arange(5), batch_size=2))
    assert torch.allclose(scored.loss, wanted, atol=1e-6)
    assert torch.equal(scored.inputs, images)
