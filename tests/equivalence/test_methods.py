"""Unlearning methods against independent computations: explicit inverses, autograd by hand, closed forms."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rub.data.samples import Samples, to_unit
from rub.errors import Diverged, RubError
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.classification.controls import drift
from rub.tasks.classification.methods import bad_teacher as bad_teacher_module
from rub.tasks.classification.methods import iu, l2ul
from rub.tasks.classification.methods._steps import l2_step
from rub.tasks.classification.methods.amun import adversarial, amun
from rub.tasks.classification.methods.bad_teacher import bad_teacher, randomised
from rub.tasks.classification.methods.boundary_expand import boundary_expand
from rub.tasks.classification.methods.boundary_shrink import boundary_shrink, nearest_labels
from rub.tasks.classification.methods.cf_k import catastrophic_forgetting_k, last_layers, warm_restarts
from rub.tasks.classification.methods.ct import convolution_transpose, transpose_kernels
from rub.tasks.classification.methods.delete import delete, without_true_class
from rub.tasks.classification.methods.eu_k import exact_unlearning_k
from rub.tasks.classification.methods.fisher import fisher_forgetting, fisher_information
from rub.tasks.classification.methods.ft import fine_tune
from rub.tasks.classification.methods.ga import gradient_ascent
from rub.tasks.classification.methods.jit import just_in_time
from rub.tasks.classification.methods.l1_sparse import l1_sparse, l1_weight
from rub.tasks.classification.methods.msg import msg, redraw, separation_gradients, warm_and_decay
from rub.tasks.classification.methods.neggrad_plus import neggrad_plus
from rub.tasks.classification.methods.rl import random_label, random_labels
from rub.tasks.classification.methods.rurk import around, rurk
from rub.tasks.classification.methods.salun import saliency_mask, salun
from rub.tasks.classification.methods.scrub import decayed_rate, scrub
from rub.tasks.classification.methods.sfron import saliency, sfron
from rub.tasks.classification.methods.ssd import importance, ordered, selective_synaptic_dampening
from rub.tasks.classification.methods.unsir import drawn_of_each, unsir
from rub.training.batches import Augmentation
from rub.training.saliency import MaskedStep, top_mask

CLASSES = 4


class Tiny(nn.Module):
    """Convolution, batch normalisation, linear layer; in the precision of its weights."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(3)
        self.fc = nn.Linear(3 * 4, CLASSES)

    def forward(self, x):
        x = self.bn(self.conv(x.to(self.conv.weight.dtype))).relu()
        return self.fc(F.avg_pool2d(x, 3).flatten(1))


def tiny(dtype=torch.float64, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Tiny().to(dtype)
        model.bn.running_mean += 0.1 * torch.randn(3, dtype=dtype)
        model.bn.running_var += 0.1 * torch.rand(3, dtype=dtype)
    return model


def data(count, seed):
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 2, 6, 6), generator=draw, dtype=torch.uint8)
    return Samples(images, torch.randint(0, CLASSES, (count,), generator=draw), torch.arange(count))


FORGET, RETAIN = data(6, 1), data(14, 2)


def context(batch_size=64, **changes):
    plain = Augmentation(padding=0, flip=False)
    return UnlearnContext(seed=3, num_classes=CLASSES, batch_size=batch_size, augmentation=plain, **changes)


def vector(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def ce(model, samples, reduction="mean"):
    return F.cross_entropy(model(to_unit(samples.images)), samples.labels, reduction=reduction)


def hand_sgd(model, losses, lr, momentum=0.9, weight_decay=5e-4, limit=float("inf")):
    """Apply theta -= lr b, b <- momentum b + grad + weight_decay theta, for each (loss, learning rate factor).

    A gradient above `limit` is shortened to it.
    """
    buffers = [torch.zeros_like(p) for p in model.parameters()]
    for loss, factor in losses:
        found = torch.autograd.grad(loss(model), list(model.parameters()))
        shorter = min(1, limit / sum(g.square().sum() for g in found).sqrt().item())
        with torch.no_grad():
            for p, b, g in zip(model.parameters(), buffers, found, strict=True):
                b.mul_(momentum).add_(shorter * g + weight_decay * p)
                p.sub_(lr * factor * b)
    return model


def assert_same(model, reference, tolerance=1e-6):
    assert (vector(model) - vector(reference)).abs().max() < tolerance
    assert torch.allclose(model.bn.running_mean, reference.bn.running_mean, atol=tolerance)


# --- IU ---------------------------------------------------------------------------------------------------------------


def gradients_by_hand(model, samples):
    model.eval()
    rows = []
    for loss in ce(model, samples, "none"):
        found = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows)


def influence_by_hand(model, forget, retain):
    n_f, n_r = len(forget), len(retain)
    from_forget = gradients_by_hand(model, forget).sum(0) / (n_f + n_r)
    return from_forget - gradients_by_hand(model, retain).sum(0) * n_f / ((n_f + n_r) * n_r)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("damping", [1.0, 1e-3])
def test_woodfisher_is_the_explicit_inverse(monkeypatch, rows, damping):
    monkeypatch.setattr(iu, "block_rows", lambda _: rows)
    model = tiny()
    g = gradients_by_hand(model, RETAIN)
    v = torch.randn(g.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    fisher = damping * torch.eye(g.shape[1], dtype=torch.float64) + g.T @ g / len(g)
    expected = torch.linalg.solve(fisher, v)
    found = iu.woodfisher(model, RETAIN, context(), v, damping)
    assert torch.allclose(found, expected, rtol=1e-8, atol=1e-9)


def test_iu_exact_step_by_hand():
    model, ctx = tiny(), context(batch_size=4)
    start = vector(model)
    v = influence_by_hand(model, FORGET, RETAIN)
    chosen = RETAIN.select(torch.randperm(len(RETAIN), generator=ctx.generator("fisher"))[:9])
    g = gradients_by_hand(model, chosen)
    k = torch.linalg.inv(0.1 * torch.eye(len(v), dtype=v.dtype) + g.T @ g / 9) @ v
    moved = iu.exact_influence_unlearning(model, FORGET, RETAIN, ctx, alpha=3.0, damping=0.1, samples=9)
    assert torch.allclose(vector(moved), start + 3 * k, atol=1e-6)
    assert (vector(moved) - start).abs().max() > 1e-3


def published(v, rows, n):
    """The recurrence of Unlearn-Sparse as its equation reads, in numpy: at most N + 2 rows."""
    k, o = np.array(v), np.array(rows[0])
    for g in rows[1 : n + 2]:
        s = o @ g
        k, o = k - (k @ g) / (n + s) * o, o - s / (n + s) * o
    return k


@pytest.mark.parametrize("n", [3, 1000])
def test_iu_step_is_that_of_the_published_code(monkeypatch, n):
    monkeypatch.setattr(iu, "block_rows", lambda _: 4)
    model, ctx = tiny(), context(batch_size=4)
    start, v = vector(model), influence_by_hand(model, FORGET, RETAIN)
    order = torch.randperm(len(RETAIN), generator=ctx.generator("fisher"))
    g = gradients_by_hand(model, RETAIN.select(order))
    expected = torch.from_numpy(published(v.numpy(), g.numpy(), n))
    step = vector(iu.influence_unlearning(model, FORGET, RETAIN, ctx, alpha=2.0, samples=n)) - start
    assert torch.allclose(step, 2 * expected, atol=1e-9)
    assert F.cosine_similarity(step, expected, dim=0) > 1 - 1e-9
    assert F.cosine_similarity(expected - v, g[0], dim=0).abs() > 1 - 1e-9, "it moves along one gradient only"


def test_iu_goes_where_v_points_and_iu_exact_does_not():
    model, ctx = tiny(), context()
    with torch.no_grad():
        model.fc.weight *= 5  # gradients as large as those of a network that errs
    v = influence_by_hand(model, FORGET, RETAIN)
    near = iu.recurrence(model, RETAIN, ctx, v, 1000)
    exact = iu.woodfisher(model, RETAIN, ctx, v, 1.0)
    assert F.cosine_similarity(near, v, dim=0) > 0.999
    assert F.cosine_similarity(exact, v, dim=0) < 0.95


@pytest.mark.parametrize("method", [iu.influence_unlearning, iu.exact_influence_unlearning])
def test_iu_with_alpha_zero_is_the_identity(method):
    model = tiny(torch.float32)
    start = deepcopy(model.state_dict())
    moved = method(model, FORGET, RETAIN, context(), alpha=0.0)
    assert all(torch.equal(start[name], value) for name, value in moved.state_dict().items())


@pytest.mark.parametrize(
    ("method", "name"), [(iu.influence_unlearning, "iu"), (iu.exact_influence_unlearning, "iu-exact")]
)
def test_iu_refuses_infinite_weights(method, name):
    with pytest.raises(Diverged, match=f"{name}: parameter"):
        method(tiny(torch.float32), FORGET, RETAIN, context(), alpha=1e300)


# --- RL and SalUn -----------------------------------------------------------------------------------------------------


def test_random_labels_cover_all_classes_uniformly():
    true = torch.arange(200).repeat(50)
    drawn = random_labels(true, 200, torch.Generator().manual_seed(0), exclude_true=False)
    assert set(drawn.tolist()) == set(range(200))
    assert 10 < (drawn == true).sum() < 100  # 50 expected of 10000
    wrong = random_labels(true, 200, torch.Generator().manual_seed(0), exclude_true=True)
    assert set(wrong.tolist()) == set(range(200))
    assert not (wrong == true).any()


@pytest.mark.parametrize("mixing", ["sequential", "mixed"])
def test_rl_by_hand_with_fresh_labels_each_epoch(mixing):
    model, reference, ctx = tiny(), tiny(), context()
    draw = ctx.generator("labels")
    losses = []
    for _ in range(2):
        images, labels = to_unit(FORGET.images), torch.randint(0, CLASSES, (6,), generator=draw)
        if mixing == "mixed":
            images, labels = torch.cat([images, to_unit(RETAIN.images)]), torch.cat([labels, RETAIN.labels])
        losses.append((lambda m, x=images, y=labels: F.cross_entropy(m(x), y), 1))
        if mixing == "sequential":
            losses.append((lambda m: ce(m, RETAIN), 1))
    hand_sgd(reference.train(), losses, 0.1)
    assert_same(random_label(model, FORGET, RETAIN, ctx, lr=0.1, epochs=2, mixing=mixing), reference)


@pytest.mark.parametrize("k", [0.1, 0.5, 1.0])
def test_saliency_mask_is_the_global_quantile_of_the_summed_gradient(k):
    model = tiny()
    ctx = context(batch_size=4)
    total = 0
    for x, y in ctx.batches(FORGET, ctx.generator("saliency")):
        found = torch.autograd.grad(F.cross_entropy(model.eval()(x), y), list(model.parameters()))
        total = total + torch.cat([g.flatten() for g in found])
    mask = torch.cat([m.flatten() for m in saliency_mask(model, FORGET, ctx, k).values()])
    keep = round(k * len(total))
    assert mask.sum() == keep
    assert abs(mask.double().mean() - k) <= 0.5 / len(mask)
    threshold = total.abs().sort(descending=True).values[keep - 1]
    assert torch.equal(mask, total.abs() >= threshold - 1e-7)


def test_top_mask_breaks_ties_by_position():
    mask = top_mask({"a": torch.zeros(3), "b": torch.zeros(3)}, 0.5)
    assert mask["a"].all()
    assert not mask["b"].any()


def test_salun_leaves_masked_weights_exactly_and_moves_the_others():
    model, ctx = tiny(torch.float32), context(batch_size=4)
    start, mask = vector(model), saliency_mask(deepcopy(model), FORGET, ctx, 0.5)
    moved = vector(salun(model, FORGET, RETAIN, ctx, k=0.5, lr=0.05, epochs=3))
    keep = torch.cat([m.flatten() for m in mask.values()])
    assert torch.equal(moved[~keep], start[~keep])
    assert (moved[keep] != start[keep]).all()


def test_salun_steps_by_hand():
    model, reference, ctx = tiny(), tiny(), context()
    mask = torch.cat([m.flatten() for m in saliency_mask(deepcopy(model), FORGET, ctx, 0.5).values()])
    labels = torch.randint(0, CLASSES, (6,), generator=ctx.generator("labels"))
    start, reference = vector(model), reference.train()
    relabelled = Samples(FORGET.images, labels, FORGET.ids)
    theta, buffer = start.clone(), torch.zeros_like(start)
    for samples in (relabelled, RETAIN):
        nn.utils.vector_to_parameters(theta, reference.parameters())
        found = torch.autograd.grad(ce(reference, samples), list(reference.parameters()))
        gradient = torch.cat([g.flatten() for g in found]) * mask + 5e-4 * theta
        buffer = (0.9 * buffer + gradient) * mask
        theta = torch.where(mask, theta - 0.1 * buffer, start)
    moved = salun(model, FORGET, RETAIN, ctx, k=0.5, lr=0.1, epochs=1)
    assert torch.allclose(vector(moved), theta, atol=1e-6)


@pytest.mark.parametrize("mixing", ["sequential", "mixed"])
def test_salun_with_k_one_is_rl_bit_for_bit(mixing):
    ctx = UnlearnContext(seed=7, num_classes=CLASSES, batch_size=4, augmentation=Augmentation(padding=1))
    choices = {"lr": 0.05, "epochs": 2, "mixing": mixing}
    one = random_label(tiny(torch.float32), FORGET, RETAIN, ctx, **choices).state_dict()
    two = salun(tiny(torch.float32), FORGET, RETAIN, ctx, k=1.0, **choices).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_masked_step_clears_adam_state():
    weight = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.1)
    step = MaskedStep({"w": weight}, {"w": torch.tensor([True, False])})
    for _ in range(3):
        weight.grad = torch.ones(2)
        step(optimizer)
    assert weight[1] == 1
    assert weight[0] < 0.9
    assert optimizer.state[weight]["exp_avg"][1] == 0


# --- methods whose single step has a one-line loss --------------------------------------------------------------------


def l1(model):
    return sum(p.abs().sum() for p in model.parameters())


STEPS = [
    (fine_tune, {}, lambda m: ce(m, RETAIN), 5e-4),
    (gradient_ascent, {}, lambda m: -ce(m, FORGET), 5e-4),
    (neggrad_plus, {"alpha": 0.7}, lambda m: 0.7 * ce(m, RETAIN) - 0.3 * ce(m, FORGET), 0.0),
    (l1_sparse, {"alpha": 0.01}, lambda m: ce(m, RETAIN) + 0.01 * l1(m), 5e-4),
]


@pytest.mark.parametrize(("method", "choices", "loss", "decay"), STEPS, ids=[row[0].__name__ for row in STEPS])
def test_one_step_equals_autograd_by_hand(method, choices, loss, decay):
    model, reference = tiny(), hand_sgd(tiny().train(), [(loss, 1)], 0.1, weight_decay=decay)
    assert_same(method(model, FORGET, RETAIN, context(), lr=0.1, epochs=1, **choices), reference)


def test_neggrad_cycles_the_forget_set():
    model = tiny(torch.float32)
    start = vector(model)
    neggrad_plus(model, FORGET.select([0, 1]), RETAIN, context(batch_size=2), lr=0.01, epochs=2)
    assert model.bn.num_batches_tracked == 2 * 2 * 7
    assert not torch.equal(vector(model), start)
    with pytest.raises(RubError, match="hold some"):
        neggrad_plus(model, FORGET.select(torch.arange(0)), RETAIN, context())


def test_ascent_that_blows_up_is_reported():
    with pytest.raises(Diverged, match="loss became"):
        gradient_ascent(tiny(torch.float32), FORGET, RETAIN, context(batch_size=2), lr=1e30, epochs=5)


def test_l1_schedule():
    assert [l1_weight(0.2, t, 10, 4) for t in range(10)] == pytest.approx(
        [0.2, 0.2 * 5 / 6, 0.2 * 4 / 6, 0.1, 0.2 * 2 / 6, 0.2 / 6, 0, 0, 0, 0]
    )
    assert [l1_weight(0.2, t, 3, 3) for t in range(3)] == [0, 0, 0]


def test_l1_fades_in_training():
    model, reference = tiny(), tiny().train()
    losses = [(lambda m, a=a: ce(m, RETAIN) + a * l1(m), 1) for a in (0.02, 0.01, 0.0)]
    hand_sgd(reference, losses, 0.1)
    assert_same(l1_sparse(model, FORGET, RETAIN, context(), alpha=0.02, lr=0.1, epochs=3, no_l1_epochs=1), reference)


# --- distillation -----------------------------------------------------------------------------------------------------


def kl(teacher, student):
    return (teacher * (teacher.log() - student.log())).sum(1).mean()


def test_scrub_by_hand():
    model, reference, teacher, temperature = tiny(), tiny().train(), tiny().eval(), 4.0

    def divergence(logits, samples):
        p = (teacher(to_unit(samples.images)).detach() / temperature).softmax(1)
        return temperature**2 * kl(p, (logits / temperature).softmax(1))

    def up(m):
        return -divergence(m(to_unit(FORGET.images)), FORGET)

    def down(m):
        logits = m(to_unit(RETAIN.images))
        return 0.9 * F.cross_entropy(logits, RETAIN.labels) + 0.3 * divergence(logits, RETAIN)

    hand_sgd(reference, [(up, 1), (down, 1), (down, 0.1)], 0.01)
    choices = {"gamma": 0.9, "alpha": 0.3, "temperature": temperature, "decay_epochs": (1,)}
    assert_same(scrub(model, FORGET, RETAIN, context(), lr=0.01, epochs=2, msteps=1, **choices), reference)


def test_scrub_rates():
    rates = [decayed_rate(1.0, epoch, (3, 5, 9), 0.1) for epoch in range(11)]
    assert rates == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01, 0.001, 0.001])


def test_delete_target_is_the_renormalised_rest():
    logits = torch.randn(5, CLASSES, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 0])
    expected = logits.softmax(1)
    expected[torch.arange(5), labels] = 0
    expected /= expected.sum(1, keepdim=True)
    assert torch.allclose(without_true_class(logits, labels).softmax(1), expected, atol=1e-6)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_delete_by_hand(mode):
    model, reference, teacher = tiny(), tiny().train(mode == "train"), tiny().eval()
    target = teacher(to_unit(FORGET.images)).detach().softmax(1)
    target[torch.arange(6), FORGET.labels] = 0
    target /= target.sum(1, keepdim=True)

    def loss(m):
        return (torch.special.xlogy(target, target) - target * m(to_unit(FORGET.images)).log_softmax(1)).sum(1).mean()

    hand_sgd(reference, [(loss, 1), (loss, 1)], 0.1, weight_decay=0)
    assert_same(delete(model, FORGET, RETAIN, context(), lr=0.1, epochs=2, batch_norm=mode), reference)


def test_bad_teacher_by_hand(monkeypatch):
    model, reference, good, bad = tiny(), tiny().train(), tiny().eval(), tiny(seed=9).eval()
    monkeypatch.setattr(bad_teacher_module, "randomised", lambda *_: deepcopy(bad))
    moved = bad_teacher(model, FORGET, RETAIN, context(), lr=0.01, epochs=1, retain_fraction=1.0, temperature=2.0)
    x = torch.cat([to_unit(FORGET.images), to_unit(RETAIN.images)])
    target = torch.cat([bad(x[:6]), good(x[6:])]).detach() / 2
    found = torch.autograd.grad(kl(target.softmax(1), (reference(x) / 2).softmax(1)), list(reference.parameters()))
    with torch.no_grad():  # Adam's first step: theta - lr g / (|g| + eps)
        for p, g in zip(reference.parameters(), found, strict=True):
            p.sub_(0.01 * g / (g.abs() + 1e-8))
    strong = torch.cat([g.flatten() for g in found]).abs() > 1e-5  # below, rounding of g decides the sign
    assert strong.sum() > 0.8 * len(strong)
    assert torch.allclose(vector(moved)[strong], vector(reference)[strong], atol=1e-4)


def test_bad_teacher_uses_the_stated_share_of_retain():
    seen = []

    class Watched(UnlearnContext):
        def epochs(self, samples, epochs, changing=None):
            seen.append(samples)
            return super().epochs(samples, epochs, changing)

    ctx = Watched(seed=0, num_classes=CLASSES, augmentation=Augmentation(0, False))
    bad_teacher(tiny(torch.float32), FORGET, RETAIN, ctx, retain_fraction=0.5)
    assert seen[0].labels.tolist() == [1] * 6 + [0] * 7
    assert torch.equal(seen[0].images[:6], FORGET.images)


def test_random_teacher_keeps_no_trained_weight():
    model = tiny(torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(3)
    state = torch.random.get_rng_state()
    fresh, again = randomised(model, 1), randomised(model, 1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(vector(fresh), vector(again))
    assert (vector(fresh) != vector(model)).all()
    assert torch.equal(fresh.bn.running_mean, torch.zeros(3))

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    with pytest.raises(RubError, match="reset_parameters"):
        randomised(Own(), 0)


# --- methods that train on the forget set alone -----------------------------------------------------------------------


def stats(model):
    return torch.cat([model.bn.running_mean, model.bn.running_var])


FORGET_ONLY = {
    gradient_ascent: lambda m: -ce(m, FORGET),
    boundary_shrink: lambda m: F.cross_entropy(
        m(to_unit(FORGET.images)),
        nearest_labels(tiny().eval().requires_grad_(False), to_unit(FORGET.images), FORGET.labels, 0.1, context()),
    ),
}


@pytest.mark.parametrize("method", FORGET_ONLY, ids=lambda method: method.__name__)
def test_in_eval_mode_batch_normalisation_stays_the_originals_while_weights_move(method):
    model, reference = tiny(), tiny().train()
    reference.bn.eval()
    decay = 5e-4 if method is gradient_ascent else 0
    hand_sgd(reference, [(FORGET_ONLY[method], 1)] * 2, 0.1, weight_decay=decay)
    moved = method(model, FORGET, RETAIN, context(), lr=0.1, epochs=2, batch_norm="eval")
    assert_same(moved, reference)
    assert torch.equal(stats(moved), stats(tiny()))
    assert moved.training and not moved.bn.training


@pytest.mark.parametrize("method", [*FORGET_ONLY, delete, boundary_expand], ids=lambda method: method.__name__)
def test_by_default_batch_normalisation_drifts_as_the_control_of_that_name_without_a_step(method):
    drifted = drift(tiny(), FORGET, RETAIN, context(batch_size=4), passes=3)
    still = method(tiny(), FORGET, RETAIN, context(batch_size=4), lr=1e-12, epochs=3)
    assert torch.allclose(stats(still), stats(drifted), atol=1e-7)
    assert (stats(drifted) - stats(tiny())).abs().max() > 0.01


# --- edits of weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [(), (1,)])
def test_ssd_by_hand(classes):
    model = tiny()
    ctx = replace(context(batch_size=3), forget_classes=classes)

    def by_hand(samples, stream):
        order = torch.randperm(len(samples), generator=ctx.generator(stream)).tolist()
        if classes:
            order.sort(key=lambda place: samples.labels[place].item())
        batches, total = [order[start : start + 5] for start in range(0, len(order), 5)], 0
        for batch in batches:
            found = torch.autograd.grad(ce(model.eval(), samples.select(batch)), list(model.parameters()))
            total = total + torch.cat([g.flatten() for g in found]) ** 2
        return total / len(batches)

    both = Samples(*(torch.cat([getattr(FORGET, n), getattr(RETAIN, n)]) for n in ("images", "labels", "ids")))
    of_forget, of_all, expected = by_hand(FORGET, "forget set"), by_hand(both, "all data"), vector(model).tolist()
    found = importance(model, both, ctx, "all data", 5)
    assert torch.allclose(torch.cat([f.flatten() for f in found.values()]), of_all, atol=1e-7)
    dampened = 0
    for i, (f, a) in enumerate(zip(of_forget.tolist(), of_all.tolist(), strict=True)):
        if f > 2.0 * a:
            expected[i] *= min(0.5 * a / f, 1)
            dampened += 1
    assert 0 < dampened < len(expected)
    moved = selective_synaptic_dampening(model, FORGET, RETAIN, ctx, alpha=2.0, lambda_=0.5, batch_size=5)
    assert torch.allclose(vector(moved), torch.tensor(expected, dtype=torch.float64), atol=1e-6)


def test_ssd_does_not_depend_on_the_batches_of_the_training():
    one, two = (selective_synaptic_dampening(tiny(), FORGET, RETAIN, context(size), alpha=2.0) for size in (2, 256))
    assert torch.equal(vector(one), vector(two))
    assert not torch.equal(vector(one), vector(tiny()))


def test_ssd_takes_one_class_after_another_where_whole_classes_are_forgotten():
    ctx = replace(context(), forget_classes=(1,))
    for seed in (0, 1):
        labels = ordered(RETAIN, replace(ctx, seed=seed), "all data").labels.tolist()
        assert labels == sorted(labels)
    assert ordered(RETAIN, context(), "all data").labels.tolist() != sorted(RETAIN.labels.tolist())


def test_boundary_labels_on_a_linear_model():
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, CLASSES))
    with torch.random.fork_rng():
        torch.manual_seed(4)
        nn.init.normal_(model[1].weight)
    x, y = to_unit(RETAIN.images), RETAIN.labels
    slope = (model(x).softmax(1) - F.one_hot(y, CLASSES)) @ model[1].weight  # grad of CE of a linear model
    point = ((x + 0.1 * slope.sign().view_as(x)).clamp(0, 1) * 255).round() / 255
    expected = model(point).argmax(1)
    found = nearest_labels(model.requires_grad_(False), x, y, 0.1, context())
    assert torch.equal(found, expected)
    assert (found != model(x).argmax(1)).any()


def test_boundary_shrink_by_hand():
    model, reference, original = tiny(), tiny().train(), tiny().eval().requires_grad_(False)
    labels = nearest_labels(original, to_unit(FORGET.images), FORGET.labels, 0.3, context())
    relabelled = Samples(FORGET.images, labels, FORGET.ids)
    losses = [(lambda m: ce(m, relabelled), 1), (lambda m: ce(m, relabelled), 1)]
    hand_sgd(reference, losses, 0.1, weight_decay=0)
    assert_same(boundary_shrink(model, FORGET, RETAIN, context(), lr=0.1, epochs=2, bound=0.3), reference)


def test_msg_redraws_exactly_the_smallest_and_damps_the_rest():
    model, ctx = tiny(), context()
    subset = RETAIN.select(torch.randperm(14, generator=ctx.generator("separation"))[:6])
    (expected,) = torch.autograd.grad(ce(model.eval(), subset) - ce(model, FORGET), [model.conv.weight])
    gradient = separation_gradients(model, FORGET, RETAIN, ctx)["conv"]
    assert torch.allclose(gradient, expected, atol=1e-6)
    layer = deepcopy(model.conv)
    drawn = redraw(layer, gradient, 0.3, ctx.generator("redraw"))
    count = round(0.3 * 54)
    assert drawn.sum() == count
    assert gradient[drawn].abs().max() < gradient[~drawn].abs().min()
    assert torch.equal(layer.weight[~drawn], model.conv.weight[~drawn])
    assert (layer.weight[drawn] != model.conv.weight[drawn]).all()

    reference = deepcopy(model).train()
    reference.conv.load_state_dict(layer.state_dict())
    scale = {"conv.weight": torch.where(drawn, 1.0, 0.1).double()}
    names, parameters = zip(*reference.named_parameters(), strict=True)
    found = torch.autograd.grad(ce(reference, RETAIN), list(parameters))
    with torch.no_grad():
        for name, p, g in zip(names, parameters, found, strict=True):
            p.sub_(0.1 * (g * scale.get(name, 1.0) + 5e-4 * p))
    assert_same(msg(model, FORGET, RETAIN, ctx, lr=0.1, epochs=1), reference)


def test_msg_rates():
    assert [warm_and_decay(e, 5) for e in range(5)] == pytest.approx([1 / 3, 2 / 3, 1, 2 / 3, 1 / 3])
    assert [warm_and_decay(e, 1) for e in range(1)] == [1]


def test_redraw_has_kaiming_fan_out_scale():
    layer = nn.Conv2d(40, 50, 3)
    redraw(layer, torch.zeros_like(layer.weight), 1.0, torch.Generator().manual_seed(0))
    assert layer.weight.std().item() == pytest.approx((2 / (50 * 9)) ** 0.5, rel=0.05)


def test_ct_transposes_kernels():
    model, original = tiny(), tiny()
    transpose_kernels(model)
    x = to_unit(RETAIN.images).double()
    assert torch.allclose(model.conv(x), original.conv(x.transpose(2, 3)).transpose(2, 3))
    assert not torch.allclose(model.conv(x), original.conv(x))
    with pytest.raises(RubError, match="1x3 kernel"):
        transpose_kernels(nn.Sequential(nn.Conv2d(1, 1, (1, 3))))
    with pytest.raises(RubError, match="no Conv2d"):
        transpose_kernels(nn.Linear(2, 2))


def test_ct_fine_tunes_on_a_cosine():
    model, reference = tiny(), tiny().train()
    transpose_kernels(reference)
    hand_sgd(reference, [(lambda m: ce(m, RETAIN), factor) for factor in (1, 0.75, 0.25)], 0.1)
    assert_same(convolution_transpose(model, FORGET, RETAIN, context(), lr=0.1, epochs=3), reference)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_boundary_expand_by_hand(mode):
    ctx, reference = context(), tiny().train(mode == "train")
    row = nn.Parameter(nn.init.xavier_normal_(torch.empty(1, 12), generator=ctx.generator("extra")).double())
    bias = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.row, self.bias = reference, row, bias

        def forward(self, x):
            features = F.avg_pool2d(reference.bn(reference.conv(x.double())).relu(), 3).flatten(1)
            return torch.cat([reference.fc(features), features @ row.T + bias], 1)

    losses = [(lambda m: F.cross_entropy(m(to_unit(FORGET.images)), torch.full((6,), CLASSES)), 1)] * 3
    hand_sgd(Wide(), losses, 0.1, weight_decay=0)
    moved = boundary_expand(tiny(), FORGET, RETAIN, ctx, lr=0.1, epochs=3, batch_norm=mode)
    assert_same(moved, reference)
    assert moved.fc.out_features == CLASSES
    with pytest.raises(RubError, match="no linear last layer"):
        boundary_expand(nn.Sequential(nn.Flatten()), FORGET, RETAIN, ctx)


# --- methods that look around the forget images -----------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0.1, 1e3])
def test_rurk_by_hand(limit):
    ctx, losses = context(), []
    forgotten, draw = ctx.endless(FORGET, "forget"), ctx.generator("around")
    for _ in range(2):
        x, y = next(forgotten)
        near = [(x + 0.2 * torch.randn(x.shape, generator=draw)).clamp(0, 1) for _ in range(3)]

        def loss(m, x=x, y=y, near=near):
            kept, known, again = ce(m, RETAIN), F.cross_entropy(m(x), y), m(torch.cat(near))
            return kept - 0.3 * known - 0.5 * F.cross_entropy(again, torch.cat([y, y, y]))

        losses.append((loss, 1))
    reference = hand_sgd(tiny().train(), losses, 0.1, limit=limit)
    moved = rurk(tiny(), FORGET, RETAIN, ctx, lr=0.1, tau=0.2, lambda_f=0.3, lambda_a=0.5, v=3, clip=limit)
    assert_same(moved, reference)


def test_rurk_searches_the_whole_ball_for_the_forgotten_label():
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 2)).train()
    x, y, ctx = to_unit(FORGET.images), FORGET.labels % 2, context()
    found = around(model, x, y, 0.03, "pgd", 9, ctx.generator("around"), ctx)
    towards = (model[1].weight[y] - model[1].weight[1 - y]).view_as(x).sign()  # of two classes, everywhere the same
    assert torch.allclose(found, (x + 0.03 * towards).clamp(0, 1))
    assert model.training and all(p.grad is None for p in model.parameters())


def nearest_by_hand(model, x, y, eps, steps):
    """Upstream's search for one image: a point that is not called y, and what it is called."""
    point = x
    while True:
        for _ in range(steps):
            leaf = point.clone().requires_grad_()
            logits = model(leaf[None])
            if (said := logits.argmax().item()) != y:
                return point, said
            (g,) = torch.autograd.grad(F.cross_entropy(logits, y[None]), leaf)
            moved = point + eps / 10 * g / g.norm() - x
            point = (x + moved * min(1, eps / moved.norm().item())).clamp(0, 1)
        eps *= 2


def test_amun_finds_the_examples_of_the_published_search():
    model, x = tiny().eval(), to_unit(RETAIN.images)
    with torch.no_grad():
        y = model(x).argmax(1)
        y[0] = (y[0] + 1) % CLASSES  # one that is wrong already stays where it is
    points, said = adversarial(model, x, y, context(), 0.04, 5)
    expected, labels = zip(*(nearest_by_hand(model, *one, 0.04, 5) for one in zip(x, y, strict=True)), strict=True)
    assert torch.allclose(points, torch.stack(expected), atol=1e-4)
    assert said.tolist() == list(labels)
    assert (said != y).all() and torch.equal(points[0], x[0])


def test_amun_gives_an_image_up_that_has_no_adversarial_example():
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, CLASSES)).requires_grad_(False)
    model[1].weight.zero_()
    model[1].bias.copy_(torch.tensor([0.0, 5.0, 0.0, 0.0]))
    x, y = to_unit(FORGET.images), torch.ones(6, dtype=torch.long)
    points, said = adversarial(model, x, y, context(), 0.04, 2)
    assert torch.equal(points, x) and torch.equal(said, y)


@pytest.mark.parametrize("forget_too", [True, False])
def test_amun_trains_on_them_beside_the_images(forget_too):
    model, original, ctx = tiny(), tiny().eval().requires_grad_(False), context()
    points, said = adversarial(original, to_unit(FORGET.images), FORGET.labels, ctx, 0.04, 50)
    sets = [RETAIN, FORGET] if forget_too else [RETAIN]
    x = torch.cat([*(to_unit(one.images) for one in sets), points])
    y = torch.cat([*(one.labels for one in sets), said])
    losses = [(lambda m: F.cross_entropy(m(x), y), factor) for factor in (1, 1, 0.1)]
    reference = hand_sgd(tiny().train(), losses, 0.1)
    moved = amun(model, FORGET, RETAIN, ctx, lr=0.1, epochs=3, decay_every=2, forget_too=forget_too)
    assert_same(moved, reference)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_jit_by_hand(mode):
    ctx, reference = context(), tiny().train(mode == "train")
    (x, _), draw = next(ctx.endless(FORGET, "batches")), ctx.generator("noise")
    noise = [torch.randn(x.shape, generator=draw) for _ in range(3)]

    def loss(m):
        here, total = m(x), 0
        for xi in noise:
            near = (x + 0.3 * xi).clamp(x.min(), x.max())
            rises = (here - m(near).detach()).square().sum(1).sqrt() / (near - x).square().sum((1, 2, 3)).sqrt()
            total = total + rises.sum() / 3
        return total

    hand_sgd(reference, [(loss, 1)], 0.01, momentum=0, weight_decay=0)
    moved = just_in_time(tiny(), FORGET, RETAIN, ctx, lr=0.01, sigma=0.3, samples=3, batch_norm=mode)
    assert_same(moved, reference)
    assert torch.equal(stats(moved), stats(tiny())) == (mode == "eval")


def test_jit_measures_where_images_are_normalised():
    class Scaled(nn.Module):
        def __init__(self, inner, std):
            super().__init__()
            self.inner = inner
            self.register_buffer("mean", torch.full((1, 1, 1, 1), 0.25))
            self.register_buffer("std", torch.full((1, 1, 1, 1), std))

        def forward(self, x):
            return self.inner(x)

    one = just_in_time(Scaled(tiny(), 1.0), FORGET, RETAIN, context(), lr=0.01, sigma=0.1)
    half = just_in_time(Scaled(tiny(), 0.5), FORGET, RETAIN, context(), lr=0.02, sigma=0.2)  # the same noise in pixels
    assert torch.allclose(vector(one), vector(half), atol=1e-6)


def test_l2ul_searches_towards_a_label_in_the_ball():
    model, x, ctx = tiny().eval().requires_grad_(False), to_unit(FORGET.images), context()
    wrong = (FORGET.labels + 1) % CLASSES
    found = l2ul.targeted(model, x, wrong, ctx, ctx.generator("a"), 1.5, 0.2, 7)
    away = torch.rand(x.shape, generator=ctx.generator("a")) - x
    for image, start, label, point in zip(x, away, wrong, found, strict=True):
        now = (image + 1.5 * start / start.norm()).clamp(0, 1)
        for _ in range(7):
            leaf = now.clone().requires_grad_()
            (g,) = torch.autograd.grad(F.cross_entropy(model(leaf[None]), label[None]), leaf)
            moved = now - 0.2 * g / g.norm() - image
            now = (image + moved * min(1, 1.5 / moved.norm().item())).clamp(0, 1)
        assert torch.allclose(point, now, atol=1e-4)
    assert (found - x).flatten(1).norm(dim=1).max() <= 1.5 + 1e-5


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_l2ul_by_hand(mode):
    ctx, start, original = context(), tiny(), tiny().eval().requires_grad_(False)
    draw = ctx.generator("adversarial")
    points, wrong = [], []
    for _ in range(2):
        wrong.append(random_labels(FORGET.labels, CLASSES, draw, exclude_true=True))
        points.append(l2ul.targeted(original, to_unit(FORGET.images), wrong[-1], ctx, draw, 1.0, 0.1, 3))
    found = torch.autograd.grad(
        start.train()(to_unit(FORGET.images)).square().sum(1).sqrt().sum(), list(start.parameters())
    )
    least, most = [g.abs().min() for g in found], [g.abs().max() for g in found]
    kept = [1 - (g.abs() - low) / (high - low) for g, low, high in zip(found, least, most, strict=True)]
    begun = [p.detach().clone() for p in tiny().parameters()]

    def loss(m):
        known = F.cross_entropy(m(to_unit(FORGET.images)), FORGET.labels)
        other = F.cross_entropy(m(torch.cat(points)), torch.cat(wrong))
        near = sum((w * (p - b) ** 2).sum() for w, p, b in zip(kept, m.parameters(), begun, strict=True))
        return -known * 6 / 18 + other * 12 / 18 + 0.7 * near / 2

    reference = hand_sgd(tiny().train(mode == "train"), [(loss, 1), (loss, 1)], 0.05, weight_decay=1e-4)
    choices = {"copies": 2, "lam": 0.7, "eps": 1.0, "step": 0.1, "steps": 3, "batch_norm": mode}
    moved = l2ul.learning_to_unlearn(tiny(), FORGET, RETAIN, ctx, lr=0.05, epochs=2, **choices)
    assert_same(moved, reference)


def test_l2ul_ends_when_no_forget_image_is_right():
    model = tiny()
    with torch.no_grad():
        unknown = (model.eval()(to_unit(FORGET.images)).argmax(1) + 1) % CLASSES
    forget = Samples(FORGET.images, unknown, FORGET.ids)
    moved = l2ul.learning_to_unlearn(model, forget, RETAIN, context(4), lr=1e-9, copies=2, steps=1, batch_norm="eval")
    assert (vector(moved) - vector(tiny())).abs().max() < 1e-8, "one step of the 300 that are left"


def test_l2ul_takes_a_forget_set_that_leaves_one_image_over():
    model = nn.Sequential(nn.Conv2d(2, 3, 6), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, CLASSES))
    forget = data(5, 1)  # one value for each channel: batch normalisation refuses a batch of one
    moved = l2ul.learning_to_unlearn(model, forget, RETAIN, context(4), epochs=1, copies=1, steps=1, forget_batch=4)
    assert torch.isfinite(vector(moved)).all()


def test_l2_steps_stay_in_the_ball_and_in_the_pixel_range():
    draw = torch.Generator().manual_seed(0)
    x, way = torch.rand(2, 5, 1, 3, 3, generator=draw).unbind()
    far = l2_step(x, way - 0.5, 3.0, x, 0.4)
    assert ((far - x).flatten(1).norm(dim=1) <= 0.4 + 1e-6).all()
    assert far.min() >= 0 and far.max() <= 1
    assert torch.allclose(l2_step(x, way - 0.5, 0.0, x, 0.4), x)


# --- SFRon, Fisher forgetting, the last k layers, UNSIR ---------------------------------------------------------------


def test_sfron_by_hand():
    ctx, reference, alpha, steps = context(), tiny(), 3.0, 5
    squares = []
    for samples in (FORGET, RETAIN):
        found = torch.autograd.grad(ce(reference.eval(), samples), list(reference.parameters()))
        squares.append([g**2 for g in found])
    masks = [(f + 1e-15) / (r + 1e-15) >= 0.5 for f, r in zip(*squares, strict=True)]
    assert all(
        torch.equal(*pair) for pair in zip(saliency(tiny(), FORGET, RETAIN, ctx, 0.5).values(), masks, strict=True)
    )
    assert 0.1 < torch.cat([m.flatten() for m in masks]).double().mean() < 0.9
    reference.train()
    buffers = [torch.zeros_like(p) for p in reference.parameters()]

    def descend(found, rate):
        with torch.no_grad():
            for p, b, g in zip(reference.parameters(), buffers, found, strict=True):
                b.mul_(0.9).add_(g + 5e-4 * p)
                p.sub_(rate * b)

    for step in range(steps):
        fall = 0.5 * (1 + np.cos(np.pi * step / steps))
        if step % 2 == 0:
            losses = ce(reference, FORGET, "none")
            weights = losses.detach() ** -0.7
            ascent = -alpha * fall * (weights * losses).sum() / weights.sum()
            found = [
                g * m for g, m in zip(torch.autograd.grad(ascent, list(reference.parameters())), masks, strict=True)
            ]
            norm = sum(g.square().sum() for g in found).sqrt()
            descend([g * min(1, 0.2 / norm) for g in found], 0.05 * fall)
        descend(torch.autograd.grad(ce(reference, RETAIN), list(reference.parameters())), 0.05 * fall)
    choices = {"forget_every": 2, "alpha": alpha, "lam": 0.7, "gamma": 0.5, "clip": 0.2}
    assert_same(sfron(tiny(), FORGET, RETAIN, ctx, lr=0.05, iterations=steps, **choices), reference)


def fisher_by_hand(model, samples):
    total = [torch.zeros_like(p) for p in model.parameters()]
    for logits in model.eval()(to_unit(samples.images)):
        for label in range(CLASSES):
            found = torch.autograd.grad(-logits.log_softmax(0)[label], list(model.parameters()), retain_graph=True)
            share = logits.softmax(0)[label].detach() / len(samples)
            total = [t + share * g**2 for t, g in zip(total, found, strict=True)]
    return total


@pytest.mark.parametrize("last_layer", ["erase", "noise"])
@pytest.mark.parametrize("classes", [(), (1, 3)])
def test_fisher_forgetting_by_hand(last_layer, classes):
    ctx, model = replace(context(batch_size=5), forget_classes=classes), tiny()
    fisher, draw, expected = fisher_by_hand(model, RETAIN), ctx.generator("noise"), {}
    measured = fisher_information(tiny(), RETAIN, ctx).values()
    assert all(torch.allclose(*pair, rtol=1e-6) for pair in zip(measured, fisher, strict=True))
    for (name, p), f in zip(model.named_parameters(), fisher, strict=True):
        last, mean = name.startswith("fc"), p.detach().clone()
        spread = torch.minimum(1 / (f + 1e-8), torch.tensor(100.0 if last else 1000.0))
        if p.ndim > 1:
            spread = spread.mean(1, keepdim=True).expand(p.shape).clone()
        spread = 1e-4 * spread
        if last and last_layer == "erase":
            mean[list(classes)], spread[list(classes)] = 0, 1e-4
        spread = spread * (10 if last or p.ndim == 1 else 1)
        expected[name] = mean + spread.sqrt() * torch.randn(p.shape, generator=draw)
    moved = fisher_forgetting(tiny(), FORGET, RETAIN, ctx, alpha=1e-4, last_layer=last_layer)
    assert all(torch.allclose(p, expected[name], atol=1e-6) for name, p in moved.named_parameters())
    assert torch.equal(stats(moved), stats(tiny()))


def test_fisher_forgetting_may_look_at_fewer_images():
    one, two = (fisher_forgetting(tiny(), FORGET, RETAIN, context(), samples=count) for count in (3, None))
    assert not torch.equal(vector(one), vector(two))


def test_the_last_layers_are_counted_from_the_end():
    model = tiny()
    assert last_layers(model, 1, "cf-k") == [model.fc]
    assert last_layers(model, 2, "cf-k") == [model.conv, model.bn, model.fc]
    with pytest.raises(RubError, match=r"eu-k: k = 3, but Tiny has 2 layers"):
        last_layers(model, 3, "eu-k")


def test_warm_restarts_are_torchs():
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=1, T_mult=2, eta_min=0.005)
    for epoch in range(20):
        assert warm_restarts(0.1, 0.005, epoch) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("method", [catastrophic_forgetting_k, exact_unlearning_k])
@pytest.mark.parametrize("k", [1, 2])
def test_training_the_last_k_layers_by_hand(method, k):
    ctx, reference = context(), tiny().train()
    if method is exact_unlearning_k:
        draw = ctx.generator("redraw")
        for layer in [reference.conv, reference.fc][-k:]:
            fresh = torch.empty(layer.weight.shape, dtype=torch.float64)
            layer.weight.data = nn.init.kaiming_normal_(fresh, generator=draw)
        reference.fc.bias.data.zero_()

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.trained = reference.fc if k == 1 else reference

    losses = [(lambda m: ce(reference, RETAIN), factor) for factor in (1, 1, (0.1 + 1) / 2)]
    hand_sgd(Last(), losses, 0.1, weight_decay=5e-5, limit=0.3)
    moved = method(tiny(), FORGET, RETAIN, ctx, k=k, lr=0.1, min_lr=0.01, epochs=3, clip=0.3)
    assert_same(moved, reference)
    assert torch.equal(moved.conv.weight, tiny().conv.weight) == (k == 1)
    assert all(p.requires_grad for p in moved.parameters())


def test_unsir_by_hand():
    ctx, original, reference = replace(context(), forget_classes=(1, 2)), tiny().eval(), tiny().train()
    labels = torch.tensor([1] * 3 + [2] * 3)
    noise = torch.randn(6, 2, 6, 6, generator=ctx.generator("noise")).requires_grad_()
    optimizer = torch.optim.Adam([noise], lr=0.1)
    for _ in range(4):
        loss = -F.cross_entropy(original(noise), labels) + 0.1 * noise.square().sum((1, 2, 3)).mean()
        (noise.grad,) = torch.autograd.grad(loss, noise)
        optimizer.step()
    steps = [
        (torch.cat([to_unit(RETAIN.images), *[noise.detach()] * 2]), torch.cat([RETAIN.labels, labels, labels]), 0.02),
        (to_unit(RETAIN.images), RETAIN.labels, 0.01),
    ]
    strong = []
    for x, y, lr in steps:  # Adam's first step: theta - lr g / (|g| + eps)
        found = torch.autograd.grad(F.cross_entropy(reference(x), y), list(reference.parameters()))
        strong.append(torch.cat([g.flatten() for g in found]).abs() > 1e-4)
        with torch.no_grad():
            for p, g in zip(reference.parameters(), found, strict=True):
                p.sub_(lr * g / (g.abs() + 1e-8))
    choices = {"lr": 0.02, "repair_lr": 0.01, "noise_images": 3, "copies": 2, "noise_steps": 4}
    moved = unsir(tiny(), FORGET, RETAIN, ctx, **choices)
    both = strong[0] & strong[1]  # below, rounding of g decides the sign
    assert both.double().mean() > 0.7
    assert torch.allclose(vector(moved)[both], vector(reference)[both], atol=1e-4)


def test_unsir_needs_forgotten_classes_and_takes_so_many_of_each():
    with pytest.raises(RubError, match="unsir needs forgotten classes"):
        unsir(tiny(), FORGET, RETAIN, context())
    part = drawn_of_each(RETAIN, 2, context())
    assert (
        part.labels.bincount(minlength=CLASSES).tolist()
        == RETAIN.labels.bincount(minlength=CLASSES).clamp(max=2).tolist()
    )
    assert len(set(part.ids.tolist())) == len(part)
