"""Our targeted search against torchattacks, foolbox and ART, from the same start: equal to the last bit."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import eagerpy
import foolbox
import numpy as np
import pytest
import torch
import torchattacks
from filelock import FileLock
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from rub.attacks.base import AttackContext
from rub.attacks.linf import sign_step
from rub.attacks.rules import SignDescent
from rub.attacks.search import Schedule
from rub.data.samples import to_unit
from rub.models.weights import freeze
from rub.tasks.classification.attacks import divergences
from rub.tasks.classification.attacks.base import Budget, Target
from rub.tasks.classification.attacks.harness import make_target, run_attack
from rub.tasks.classification.attacks.search import search
from rub.tasks.classification.attacks.uma import uma
from rub.tasks.classification.attacks.uma_apgd import uma_apgd

# ART writes a file into the home folder when it is first imported; two test processes at once would meet there.
with FileLock(Path(tempfile.gettempdir()) / "rub-art-import.lock"):
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

LEVELS, STEPS, ALPHA, CLASSES = 76, 10, 0.05, 10
EPS = LEVELS / 255
SHIFT = 32.0


class Network(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.trunk = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 3, stride=2), nn.ReLU())
        self.fc = nn.Linear(16 * 9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.trunk(x - 0.3).flatten(1))


def fit(seed: int, images: Tensor, labels: Tensor) -> Network:
    network = Network(seed)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return freeze(network)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    images = torch.from_numpy(np.round(data.images * 255 / 16)).to(torch.uint8)[:600, None]
    return images, torch.from_numpy(data.target[:600]).long()


@pytest.fixture(scope="module")
def forgotten(digits) -> tuple[Tensor, Tensor]:
    images, labels = digits
    return images[labels == 3][:32], labels[labels == 3][:32]


@pytest.fixture(scope="module")
def models(digits) -> tuple[Network, Network]:
    """The original, and a shallowly unlearned model: the original with the logit of the 3s held down."""
    images, labels = digits
    original, unlearned = (fit(0, to_unit(images), labels) for _ in range(2))
    unlearned.fc.bias[3] -= SHIFT
    return original, unlearned


@pytest.fixture(scope="module")
def target(models, forgotten) -> Target:
    return make_target(*models, *forgotten, 64, torch.device("cpu"))


@pytest.fixture
def x(forgotten) -> Tensor:
    return to_unit(forgotten[0])


def gradient_of(model: nn.Module, loss: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def gradient(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(loss(model(x)).sum(), x)[0]

    return gradient


def own(x: Tensor, target: Target, name: divergences.Divergence) -> Tensor:
    def loss(logits: Tensor) -> Tensor:
        aim = divergences.Aim(target.labels, target.reference, target.features)
        return divergences.divergence(name, divergences.Outputs(logits, None), aim)

    gradient = gradient_of(target.model, loss)
    moved = x
    for _ in range(STEPS):
        moved = sign_step(moved, gradient(moved), x, ALPHA, EPS)
    return moved


def by_torchattacks(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    attack = torchattacks.PGD(model, eps=EPS, alpha=ALPHA, steps=STEPS, random_start=False)
    attack.set_mode_targeted_by_label(quiet=True)
    return attack(x, y)


def by_foolbox(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    attack = foolbox.attacks.LinfPGD(abs_stepsize=ALPHA, steps=STEPS, random_start=False)
    criterion = foolbox.criteria.TargetedMisclassification(y)
    return attack(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), x, criterion, epsilons=EPS)[1]


def art_classifier(model: nn.Module, x: Tensor) -> PyTorchClassifier:
    return PyTorchClassifier(
        model, loss=nn.CrossEntropyLoss(), input_shape=tuple(x.shape[1:]), nb_classes=CLASSES, clip_values=(0.0, 1.0)
    )


def by_art(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    attack = ProjectedGradientDescentPyTorch(
        art_classifier(model, x),
        eps=EPS,
        eps_step=ALPHA,
        max_iter=STEPS,
        targeted=True,
        num_random_init=0,
        verbose=False,
    )
    return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))


@pytest.mark.slow
@pytest.mark.parametrize("peer", [by_torchattacks, by_foolbox, by_art])
def test_targeted_descent_equals_the_peers(peer, x, target):
    ours = own(x, target, "ce")
    assert (ours - x).abs().max() > 0.2
    assert torch.equal(peer(target.model, x, target.labels), ours)


def test_kl_descent_equals_foolbox_with_that_loss(x, target):
    p0 = F.softmax(target.reference, 1)

    class KL(foolbox.attacks.LinfPGD):
        def get_loss_fn(self, model, labels):
            return lambda z: eagerpy.astensor(F.kl_div(F.log_softmax(model(z).raw, 1), p0, reduction="sum"))

    attack = KL(abs_stepsize=ALPHA, steps=STEPS, random_start=False)
    criterion = foolbox.criteria.TargetedMisclassification(target.labels)
    theirs = attack(foolbox.PyTorchModel(target.model, bounds=(0, 1), device="cpu"), x, criterion, epsilons=EPS)[1]
    assert torch.equal(theirs, own(x, target, "kl"))
    assert not torch.equal(theirs, own(x, target, "ce"))


@pytest.mark.slow
@pytest.mark.parametrize("divergence", ["ce", "kl"])
def test_the_queue_visits_the_same_points(divergence, x, forgotten, target):
    """What `uma` runs is that search: the same iterates, also through refilled batches of 7 (to rounding there)."""
    visited: dict[int, list[Tensor]] = {}

    class Watched(SignDescent):
        def move(self, state, loss, gradient):
            super().move(state, loss, gradient)
            for row, image in zip(state["row"].tolist(), state["x"], strict=True):
                visited.setdefault(row, []).append(image.clone())

    rule = Watched(eps=EPS, step_size=ALPHA)
    wanted = own(x, target, divergence)
    for size in (len(x), 7):
        visited.clear()
        context = AttackContext(seed=0, ids=torch.arange(len(x)), batch_size=size, fast=False)
        search(rule, Schedule(STEPS), target, forgotten[0], Budget(LEVELS), context, divergence=divergence, grid=False)
        last = torch.stack([visited[row][-1] for row in range(len(x))])
        assert all(len(path) == STEPS for path in visited.values())
        assert torch.equal(last, wanted) if size == len(x) else ((last - wanted).abs() > 1e-6).float().mean() < 0.01


def test_uma_recovers_what_the_peers_recover(forgotten, x, target):
    """With the same steps `uma` keeps the best iterate, so it recovers at least the same images, and as 8-bit files."""
    images, labels = forgotten
    context = AttackContext(seed=0, ids=torch.arange(len(images)))
    parameters = {"divergence": "ce", "steps": STEPS, "step_size": ALPHA / EPS}
    for fast in (False, True):
        context = AttackContext(seed=0, ids=torch.arange(len(images)), fast=fast)
        ours = run_attack(uma, parameters, target, images, Budget(LEVELS), context)
        theirs = by_torchattacks(target.model, x, labels)
        hits = target.model(theirs).argmax(1) == labels
        assert 0 < hits.sum() < len(hits)
        assert (hits & (ours.step < 0)).sum() <= 1
        peer_loss = F.cross_entropy(target.model(theirs), labels, reduction="none")
        assert ours.loss.mean() <= peer_loss.mean() + 0.02


def test_adaptive_search_keeps_up_with_arts(forgotten, x, target):
    from art.attacks.evasion import AutoProjectedGradientDescent

    images, labels = forgotten
    attack = AutoProjectedGradientDescent(
        art_classifier(target.model, x), eps=EPS, eps_step=2 * EPS, max_iter=30, targeted=True, nb_random_init=1,
        loss_type=None, verbose=False,
    )  # fmt: skip
    theirs = torch.from_numpy(attack.generate(x.numpy(), labels.numpy()))
    context = AttackContext(seed=0, ids=torch.arange(len(images)), fast=False)
    parameters = {"divergence": "ce", "steps": 30, "grid": False}
    ours = run_attack(uma_apgd, parameters, target, images, Budget(LEVELS), context)
    theirs_hit = (target.model(theirs).argmax(1) == labels).double().mean()
    assert float((ours.step >= 0).double().mean()) >= float(theirs_hit) - 1 / len(images)


L2_EPS, L2_ALPHA = 1.25, 0.3


def l2_by_torchattacks(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    attack = torchattacks.PGDL2(model, eps=L2_EPS, alpha=L2_ALPHA, steps=STEPS, random_start=False)
    attack.set_mode_targeted_by_label(quiet=True)
    return attack(x, y)


def l2_by_foolbox(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    attack = foolbox.attacks.L2PGD(abs_stepsize=L2_ALPHA, steps=STEPS, random_start=False)
    criterion = foolbox.criteria.TargetedMisclassification(y)
    return attack(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), x, criterion, epsilons=L2_EPS)[1]


@pytest.mark.parametrize("peer", [l2_by_torchattacks, l2_by_foolbox])
def test_l2_descent_is_the_peers(peer, x, forgotten, target):
    """The same points to rounding of float32, and with 8-bit images at least the same recoveries."""
    budget = Budget.of("l2:1.25")
    gradient = gradient_of(target.model, lambda logits: divergences.ce(logits, target.labels))
    moved = x
    for _ in range(STEPS):
        moved = budget.region.step(moved, gradient(moved), x, L2_ALPHA)
    theirs = peer(target.model, x, target.labels)
    assert (theirs - x).flatten(1).norm(dim=1).max() > 1.2
    assert torch.allclose(theirs, moved, atol=1e-4)
    context = AttackContext(seed=0, ids=torch.arange(len(x)), fast=False)
    parameters = {"divergence": "ce", "steps": STEPS, "step_size": L2_ALPHA / L2_EPS}
    ours = run_attack(uma, parameters, target, forgotten[0], budget, context)
    hits = target.model(theirs).argmax(1) == target.labels
    assert 0 < hits.sum() < len(hits)
    assert (hits & (ours.step < 0)).sum() <= 1
    peer_loss = F.cross_entropy(target.model(theirs), target.labels, reduction="none")
    assert ours.loss.mean() <= peer_loss.mean() + 0.02


def test_the_gradient_of_kl_at_the_logits(target, x):
    logits = target.model(x).requires_grad_()
    gradient = torch.autograd.grad(divergences.kl(logits, target.reference).sum(), logits)[0]
    wanted = F.softmax(logits.double(), 1) - F.softmax(target.reference.double(), 1)
    assert torch.allclose(gradient.double(), wanted, atol=5e-7)
