"""Budgets of every kind: their names, their projections, what the harness and the check of witnesses let through."""

import json
from fractions import Fraction

import foolbox
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from rub.attacks import adapt
from rub.attacks.base import AttackContext
from rub.attacks.corruptions import CORRUPTIONS, corrupted
from rub.attacks.regions import L2, Border, Linf, Patch
from rub.data.samples import to_unit
from rub.errors import RubError
from rub.models.weights import freeze
from rub.registry import ATTACKS, card_of
from rub.reports.grouping import budgets_of
from rub.store.artifacts import file_sha256
from rub.tasks.classification.attacks.base import Target
from rub.tasks.classification.attacks.corruptions import corruptions
from rub.tasks.classification.attacks.harness import run_attack
from rub.tasks.classification.attacks.noise import noise
from rub.tasks.classification.attacks.uma import uma
from rub.tasks.classification.attacks.uma_apgd import uma_apgd
from rub.tasks.classification.attacks.uma_momentum import uma_momentum
from rub.tasks.classification.attacks.universal import universal
from rub.tasks.classification.budgets import Budget
from rub.tasks.classification.spec import AttackSpec

NAMES = ["8/255", "border:2", "corruption:3", "l2:0.5", "l2:1.25", "patch:3", "patch:3@0x4"]
COUNT, CLASSES = 24, 4
IDS = torch.arange(50, 50 + COUNT)


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (COUNT, 3, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture(scope="module")
def target(images):
    """Every label is the model's second choice."""
    torch.manual_seed(0)
    model = freeze(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 144, CLASSES)))
    labels = model(to_unit(images)).argsort(1, descending=True)[:, 1]
    return Target(model, labels, 3.0 * F.one_hot(labels, CLASSES), torch.zeros(COUNT, 0))


def context(**changes):
    return AttackContext(seed=3, ids=IDS, batch_size=8, fast=False, **changes)


def recovered(target, probes):
    with torch.no_grad():
        return target.model(to_unit(probes)).argmax(1) == target.labels


def test_a_budget_has_one_name():
    assert [Budget.named(name).name for name in NAMES] == NAMES
    assert [Budget.of(Budget.named(name).given).name for name in NAMES] == NAMES
    assert Budget.of("8") == Budget(8) and Budget(8).eps == 8 / 255 and Budget(8).levels == 8
    assert Budget.of("l2:0.50") == Budget(Fraction(1, 2), "l2") and Budget.of("l2:0.5").eps == 0.5
    given = AttackSpec(runs=({"name": "uma"},), budgets=("patch:3", "l2:1.0", 16, "l2:0.5", 4, "l2:1"))
    assert given.budgets == (4, 16, "l2:0.5", "l2:1", "patch:3")


@pytest.mark.parametrize(
    "bad",
    ["l2:0", "l2:-1", "l2:1e9", "l2:nan", "l2:", "l1:2", "patch:0", "patch:3@1", "patch:3@1,2", "patch:99999",
     "border:0", "corruption:6", "corruption:0", "8/255", "256", "l2:٣", "patch:3@0x4\n", "none", "9" * 5000, "../x"],
)  # fmt: skip
def test_no_budget_in_one_line(bad):
    with pytest.raises(RubError) as told:
        Budget.of(bad)
    assert "\n" not in str(told.value) and len(str(told.value)) < 220
    with pytest.raises(ValueError, match=r"budget|eps"):
        AttackSpec(runs=({"name": "uma"},), budgets=(bad,))


def test_the_l2_projection_is_the_nearest_point_of_the_ball():
    generator = torch.Generator().manual_seed(1)
    clean, x = (torch.rand(20, 3, 5, 5, generator=generator) for _ in range(2))
    found = L2(Fraction("1.3")).near(x - clean).numpy()
    for delta, near in zip((x - clean).numpy(), found, strict=True):
        length = np.sqrt((delta.astype(np.float64) ** 2).sum())
        assert np.allclose(near, delta * min(1, 1.3 / length), atol=1e-6)
    inside = L2(Fraction("1.3")).confine(x, clean)
    assert ((inside - clean).flatten(1).norm(dim=1) <= 1.3 + 1e-5).all() and inside.min() >= 0 and inside.max() <= 1


@pytest.mark.parametrize("eps", ["0.05", "0.3", "1", "4"])
def test_l2_is_stored_inside_the_ball_and_near_its_edge(eps):
    """Against a slow one: fractions of one image sorted, all above one threshold rounded up, as many as fit."""
    ball = L2(Fraction(eps))
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (30, 3, 8, 8), generator=generator, dtype=torch.uint8)
    clean = to_unit(images)
    x = ball.confine(clean + ball.draw(torch.rand(clean.shape, generator=generator)), clean)
    stored = ball.stored(x, clean)
    delta = stored.to(torch.int64) - images.to(torch.int64)
    squares, limit = delta.square().flatten(1).sum(1), int((255 * Fraction(eps)) ** 2)
    assert (squares <= limit).all() and ball.holds(delta).all()
    assert ((delta - 255 * (x - clean)).abs() < 1 + 1e-3).all(), "each goes to one of its two neighbours"
    for own, moved in zip((255 * (x - clean)).abs().flatten(1).double().numpy(), delta.flatten(1).numpy(), strict=True):
        whole, part = np.floor(own), own - np.floor(own)
        best = max(
            ((whole + (part >= threshold)) ** 2).sum()
            for threshold in [*np.sort(part[part >= 0.5]), 1.0]
            if ((whole + (part >= threshold)) ** 2).sum() <= limit
        )
        assert (moved**2).sum() >= 0.97 * best - 2


def test_the_exact_limit_of_l2_is_kept():
    five = torch.zeros(2, 1, 2, 2, dtype=torch.int16)
    five[0, 0, 0] = torch.tensor([3, 4])
    five[1, 0, 0] = torch.tensor([5, 1])
    assert L2(Fraction(5, 255)).holds(five).tolist() == [True, False]
    assert L2(Fraction(5, 255)).stored(five.clamp(min=0) / 255, torch.zeros(2, 1, 2, 2))[0].sum() == 7


def test_masks_are_where_they_are_said_to_be():
    assert Patch(2, (1, 3)).mask(4, 6).nonzero().tolist() == [[1, 3], [1, 4], [2, 3], [2, 4]]
    assert Patch(2).mask(6, 6).nonzero().tolist() == [[2, 2], [2, 3], [3, 2], [3, 3]]
    assert Border(1).mask(4, 4).int().tolist() == [[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]]
    clean, x = torch.full((1, 2, 4, 6), 0.5), torch.rand(1, 2, 4, 6) * 3 - 1
    mask = Patch(2, (1, 3)).mask(4, 6)
    found = Patch(2, (1, 3)).confine(x, clean)
    assert torch.equal(found[..., ~mask], clean[..., ~mask]) and torch.allclose(
        found[..., mask], x[..., mask].clamp(0, 1)
    )


def test_the_steepest_step_gains_most():
    """Of random steps of length 1 in each norm, none goes further along the gradient."""
    generator = torch.Generator().manual_seed(3)
    gradient = torch.randn(1, 1, 4, 4, generator=generator)
    for region, norm in ((Linf(0.1), torch.inf), (L2(Fraction(1)), 2)):
        others = torch.randn(500, 1, 4, 4, generator=generator)
        others = others / others.flatten(1).norm(norm, dim=1)[:, None, None, None]
        step = region.steepest(gradient)
        assert step.flatten().norm(norm) == pytest.approx(1)
        assert (step * gradient).sum() > (others * gradient).flatten(1).sum(1).max()
    assert torch.equal(L2(Fraction(1)).steepest(torch.zeros(2, 1, 2, 2)), torch.zeros(2, 1, 2, 2))


SEARCHES = [
    (uma, {"steps": 8, "restarts": 2}), (uma_momentum, {"steps": 8}), (uma_apgd, {"steps": 8}),
    (universal, {"steps": 8}), (noise, {"steps": 4, "distribution": "uniform"}), (noise, {"steps": 4}),
]  # fmt: skip


@pytest.mark.parametrize("name", ["l2:1", "patch:5", "patch:4@0x0", "border:2"])
@pytest.mark.parametrize(("attack", "parameters"), SEARCHES, ids=lambda value: getattr(value, "__name__", None))
def test_searches_stay_inside_and_find_something(attack, parameters, name, images, target):
    budget = Budget.of(name)
    found = run_attack(attack, parameters, target, images, budget, context())
    delta = found.inputs.to(torch.int64) - images.to(torch.int64)
    if budget.kind == "l2":
        assert (delta.square().flatten(1).sum(1) <= 255**2).all()
    else:
        assert (delta[..., ~budget.region.mask(12, 12)] == 0).all()
    assert (delta != 0).any()
    assert torch.equal(found.step >= 0, recovered(target, found.inputs))
    clean = run_attack(attack, {}, target, images, Budget(0), context())
    assert found.loss.mean() < clean.loss.mean()
    if attack is not noise and attack is not universal:
        drawn = run_attack(noise, {"steps": 4}, target, images, budget, context())
        assert found.loss.mean() < drawn.loss.mean(), "a gradient is worth more than chance"


def test_batches_change_nothing_in_l2(images, target):
    parameters = {"steps": 5, "restarts": 2}
    one, all_ = (
        run_attack(uma, parameters, target, images, Budget.of("l2:0.5"), AttackContext(
            seed=3, ids=IDS, batch_size=size, fast=False))
        for size in (1, 256)
    )  # fmt: skip
    assert torch.equal(one.step, all_.step) and torch.allclose(one.loss, all_.loss, atol=1e-4)


def test_an_l2_attack_of_another_library_stays_inside(images, target):
    budget = Budget.of("l2:1")
    peer = adapt(foolbox.attacks.L2PGD(steps=8))
    found = run_attack(peer, {}, target, images, budget, context())
    assert budget.holds(found.inputs, images, IDS).all() and (found.step > 0).any()
    assert torch.equal(found.step >= 0, recovered(target, found.inputs))


def test_attacks_say_what_they_cannot_do(images, target):
    for entry in ATTACKS.entries("classification"):
        kinds = card_of(entry).budgets
        assert set(kinds) <= {"linf", "l2", "patch", "border", "corruption"}
    assert card_of(ATTACKS.get("square", "classification")).budgets == ("linf",)
    with pytest.raises(RubError, match="cannot search within 8/255"):
        run_attack(corruptions, {}, target, images, Budget(8), context())
    with pytest.raises(RubError, match="cannot be searched"):
        run_attack(uma, {}, target, images, Budget.of("corruption:3"), context())


@pytest.mark.parametrize("name", ["l2:0.1", "patch:4", "border:1", "corruption:2"])
def test_the_harness_refuses_probes_outside(name, images, target):
    def far(target, images, budget, context):
        probes = images.clone()
        probes[2, 0, 1, 1] = 255 - probes[2, 0, 1, 1]
        return probes

    images = images.clone()
    images[2, 0, 1, 1] = 10
    with pytest.raises(RubError, match=f"a probe is not within; the budget is {name}"):
        run_attack(far, {}, target, images, Budget.of(name), context())
    for unfit in ("patch:12", "patch:4@9x0", "border:6"):
        with pytest.raises(RubError, match=f"{unfit}: does not fit into images of 12 x 12 px"):
            run_attack(uma, {}, target, images, Budget.of(unfit), context())


def test_a_warm_start_is_of_the_same_kind():
    names = ["4/255", "8/255", "l2:0.5", "l2:1", "patch:2", "patch:4", "patch:4@0x0", "corruption:1", "corruption:2"]
    budgets = [Budget.named(name) for name in names]
    pairs = {(large.name, small.name) for large in budgets for small in budgets if large.contains(small)}
    assert pairs == {("8/255", "4/255"), ("l2:1", "l2:0.5"), ("patch:4", "patch:2")}


def test_corruptions_are_each_images_own(images):
    for name in CORRUPTIONS:
        full = corrupted(name, images, IDS, 3)
        assert full.dtype == torch.uint8 and full.shape == images.shape
        assert (full != images).flatten(1).any(1).all(), name
        part = corrupted(name, images[[7, 3]], IDS[[7, 3]], 3)
        assert (part.int() - full[[7, 3]].int()).abs().max() <= 1, name
        grey = corrupted(name, images[:4, :1], IDS[:4], 5)
        assert grey.shape == (4, 1, 12, 12)


def test_corruptions_follow_their_equations():
    """Strengths of CIFAR-10-C at 32 px, on flat and known images."""
    flat = torch.full((60, 3, 32, 32), 128, dtype=torch.uint8)
    ids = torch.arange(60)
    unit = 128 / 255
    for severity, sigma in ((1, 0.04), (5, 0.10)):
        made = corrupted("gaussian-noise", flat, ids, severity).double() / 255
        assert made.std() == pytest.approx(sigma, rel=0.02) and made.mean() == pytest.approx(unit, abs=0.004)
    assert (corrupted("shot-noise", flat, ids, 3).double() / 255).std() == pytest.approx((unit / 100) ** 0.5, rel=0.02)
    salted = corrupted("impulse-noise", flat, ids, 4)
    assert ((salted == 0) | (salted == 255)).double().mean() == pytest.approx(0.05, rel=0.05)
    for name in ("gaussian-blur", "defocus-blur", "motion-blur", "zoom-blur", "contrast", "pixelate", "elastic"):
        assert (corrupted(name, flat, ids, 5).int() - 128).abs().max() <= 1, f"{name} changes no flat image"

    torch.manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    x = images.double() / 255
    mean = x.mean((2, 3), keepdim=True)
    assert (corrupted("contrast", images, ids[:4], 3) / 255 - (mean + 0.4 * (x - mean))).abs().max() <= 1.01 / 255
    import colorsys

    for name, change in (
        ("brightness", lambda h, s, v: (h, s, min(v + 0.2, 1))),
        ("saturate", lambda h, s, v: (h, min(2.0 * s + 0.1, 1), v)),
    ):
        wanted = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in x[0].flatten(1).T.tolist()]
        made = corrupted(name, images[:1], ids[:1], 4)[0].flatten(1).T / 255
        assert (made - torch.tensor(wanted)).abs().max() <= 1.01 / 255, name
    spike = torch.zeros(1, 1, 33, 33, dtype=torch.uint8)
    spike[..., 16, 16] = 255
    for name in ("gaussian-blur", "defocus-blur", "motion-blur"):
        spread = corrupted(name, spike, ids[:1], 5)
        assert 1 < (spread > 0).sum() < 120 and spread.double().sum() == pytest.approx(255, abs=25), name
    moved = corrupted("motion-blur", spike, ids[:1], 5)[0, 0].nonzero().double() - 16
    assert (moved[:, 1] <= 1).all() and moved[:, 0].abs().max() <= moved[:, 1].abs().max() + 1, "along one direction"


def test_the_best_corruption_counts(images, target):
    found = run_attack(corruptions, {}, target, images, Budget.of("corruption:5"), context())
    each = torch.stack([recovered(target, corrupted(name, images, IDS, 5)) for name in CORRUPTIONS])
    assert torch.equal(found.step >= 0, each.any(0) | recovered(target, images))
    assert 0 < (found.step >= 0).sum() < COUNT
    first = torch.where(each.any(0), each.int().argmax(0) + 1, -1)
    assert torch.equal(found.step, torch.where(recovered(target, images), 0, first))
    assert found.success_curve[-1] == pytest.approx((found.step >= 0).double().mean().item())
    assert len(found.success_curve) == len(CORRUPTIONS) + 1


DIGITS = {"name": "digits", "size": 16}
EVERY = [32, "l2:2", "patch:3", "border:1"]


@pytest.fixture(scope="module")
def kinds(write_suite, tmp_path_factory):
    """The tiny suite with a budget of every kind: its result folder and its store."""
    from rub import load_suite, run
    from rub.api import make_runtime
    from rub.reports.result_folder import write_result

    folder = tmp_path_factory.mktemp("kinds")
    attacks = {
        "uma": {"runs": [{"name": "uma-momentum", "steps": 6}], "budgets": EVERY, "warm_start": True},
        "corruptions": {"runs": ["corruptions"], "budgets": ["corruption:5"]},
    }
    path = write_suite(folder, protocol={"attacks": attacks}, evaluation={"shadows": False})
    store, out = folder / "store", folder / "out"
    result = run(load_suite(str(path)), store=store, runtime=make_runtime(device="cpu"))
    assert not result.failures
    write_result(result, out, "rub run")
    return out, store, result


def test_a_suite_runs_with_every_kind(kinds):
    out, _, result = kinds
    assert budgets_of(result.records) == ["32/255", "border:1", "corruption:5", "l2:2", "patch:3"]
    assert budgets_of(result.records, "uma") == ["32/255", "border:1", "l2:2", "patch:3"]
    shares = {
        (record.metric, record.budget): record.value
        for record in result.records
        if record.method == "ft" and record.split == "forget" and record.metric in ("ua", "ua_before")
    }
    for name in budgets_of(result.records):
        assert shares["ua", name] >= shares["ua_before", name], name
    assert shares["ua", "32/255"] > shares["ua_before", "32/255"]
    tables = {path.name for path in (out / "tables").iterdir()}
    assert not any(":" in name for name in tables) and any("attacks-l2-2" in name for name in tables)


def forged(out, folder, name, change):
    """A claim about a budget, changed, with a hash that fits again."""
    path = next(
        path for path in sorted((out / "witnesses").glob("*.json")) if json.loads(path.read_text())["budget"] == name
    )
    claim, tensors = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
    change(claim, tensors)
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "forged.safetensors")
    claim["tensors_sha256"] = file_sha256(folder / "forged.safetensors")
    (folder / "forged.json").write_text(json.dumps(claim))
    return folder


def test_true_witnesses_hold_and_forged_ones_do_not(kinds, rub, tmp_path):
    out, store, _ = kinds
    said = rub("verify", out, "--store", store, "--device", "cpu")
    assert said.code == 0 and " 0 not held, 0 files could not be checked" in said.out, said.out
    claimed = {json.loads(path.read_text())["budget"] for path in (out / "witnesses").glob("*.json")}
    assert claimed == {"32/255", "border:1", "corruption:5", "l2:2", "patch:3"}

    def moved(claim, tensors):
        delta = tensors["delta"] = tensors["delta"].to(torch.int16)
        middle = delta.shape[-1] // 2
        delta[0, 0, :, middle] += 250 * (1 - 2 * (delta[0, 0, :, middle] > 0).short())
        delta[0, 0, 1, 0] += 250

    for name in sorted(claimed):
        (tmp_path / name.replace("/", "-")).mkdir()
        said = rub("verify", forged(out, tmp_path / name.replace("/", "-"), name, moved), "--store", store)
        assert said.code == 1 and f"outside the budget {name}" in " ".join(said.out.split()), (name, said.out)


@pytest.mark.parametrize(
    "hostile", ["l2:999999999999", "patch:9999", "9999/255", "l2:0.5\n", "corruption:9", "8", "x" * 999]
)
def test_hostile_budgets_are_refused_in_one_line(kinds, rub, tmp_path, hostile):
    out, store, _ = kinds
    place = forged(out, tmp_path, "l2:2", lambda claim, tensors: claim.update(budget=hostile))
    said = rub("verify", place, "--store", store)
    assert said.code == 3 and ("budget" in said.out or "eps" in said.out)


def test_plans_refuse_what_an_attack_cannot_do(write_suite, rub, tmp_path):
    for number, (run, budget, says) in enumerate((
        ("square", "l2:1", "attacks.mine: square cannot search within l2:1; it can within linf"),
        ("uma", "corruption:2", "uma cannot search within corruption:2"),
        ("corruptions", 8, "corruptions cannot search within 8/255; it can within corruption"),
        ("uma", "l3:1", "budget 'l3:1': should be a whole number"),
        ("uma", "patch:16", "patch:16: does not fit into images of 16 x 16 px"),
    )):  # fmt: skip
        attacks = {"mine": {"runs": [run], "budgets": [budget]}}
        (tmp_path / str(number)).mkdir()
        said = rub("plan", write_suite(tmp_path / str(number), protocol={"attacks": attacks}, dataset=DIGITS))
        assert said.code == 2 and says in " ".join((said.out + said.err).split()), said.out + said.err
