"""The default search is at least as strong as auto-attack's APGD-CE and APGD-T together, towards the same class."""

import sys
from pathlib import Path

import foolbox
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from rub.attacks.base import AttackContext
from rub.data.samples import Samples, to_unit
from rub.models.network import build_network
from rub.models.weights import freeze
from rub.tasks.classification.attacks.base import Budget
from rub.tasks.classification.attacks.harness import make_target, run_attacks
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.classification.methods.rl import random_label
from rub.training.batches import Augmentation
from rub.training.classifier import train

FORGOTTEN, COUNT, LEVELS = 3, 60, (1, 2, 4, 8)


@pytest.fixture(scope="module")
def peer():
    """The benchmark's APGD, which shares no code with RUB."""
    folder = str(Path(__file__).parents[3] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        import against_autoattack
    finally:
        sys.path.remove(folder)
    return against_autoattack


@pytest.fixture(scope="module")
def attacked():
    """A digits network after a moment of RL: images of low contrast, so that small budgets reach some and not all."""
    digits = load_digits()
    levels = torch.from_numpy(np.round(116 + 24 * digits.images / 16)).to(torch.uint8)[:, None]
    samples = Samples(levels, torch.from_numpy(digits.target).long(), torch.arange(len(levels)))
    shared = {"num_classes": 10, "batch_size": 64, "augmentation": Augmentation(0, flip=False)}
    original = build_network("resnet10", num_classes=10, channels=1, size=8, width=8, mean=(0.48,), std=(0.04,))
    train(original, samples, UnlearnContext(seed=0, **shared), epochs=4, lr=0.1)
    forgotten = samples.labels == FORGOTTEN
    forget, retain = samples.select(forgotten), samples.select(~forgotten)
    unlearned = build_network("resnet10", num_classes=10, channels=1, size=8, width=8, mean=(0.48,), std=(0.04,))
    unlearned.load_state_dict(original.state_dict())
    context = UnlearnContext(seed=0, forget_classes=(FORGOTTEN,), **shared)
    random_label(unlearned, forget, retain, context, lr=0.02, epochs=2, exclude_true=True)
    images = forget.images[:COUNT]
    labels = torch.full((len(images),), FORGOTTEN)
    return images, make_target(freeze(original), freeze(unlearned), images, labels, 64, torch.device("cpu"))


def reference(peer, images, target, level):
    x = to_unit(images)
    first, second = target.model(x).topk(2, 1).indices.T
    said = torch.where(first == target.labels, second, first)
    losses = (peer.cross_entropy, peer.logits_ratio)
    return [peer.apgd(target.model, x, said, target.labels, level / 255, loss) for loss in losses]


@pytest.mark.slow
def test_the_default_search_recovers_what_autoattack_recovers(peer, attacked):
    images, target = attacked
    context = AttackContext(ids=torch.arange(len(images)), batch_size=64)
    shares = []
    for level in LEVELS:
        ce, t = reference(peer, images, target, level)
        floats, rounded = (float((a | b).double().mean()) for a, b in ((ce.floats, t.floats), (ce.rounded, t.rounded)))
        found = run_attacks(peer.default_runs(), target, images, Budget(level), context)
        own = float((found.step >= 0).double().mean())
        assert own >= max(floats, rounded) - 0.01, (level, own, floats, rounded)
        shares.append(own)
    assert shares == sorted(shares)
    assert sum(0.05 < share < 0.98 for share in shares) >= 2, shares


@pytest.mark.slow
def test_the_peer_is_no_weaker_than_a_plain_search(peer, attacked):
    images, target = attacked
    x = to_unit(images)
    plain = foolbox.attacks.LinfPGD(steps=40, rel_stepsize=0.1, random_start=False)
    model = foolbox.PyTorchModel(target.model, bounds=(0, 1), device="cpu")
    for level in (2, 4):
        criterion = foolbox.criteria.TargetedMisclassification(target.labels)
        probes = plain(model, x, criterion, epsilons=level / 255)[1]
        assert (probes - x).abs().max() <= level / 255 + 1e-6
        plainly = target.model(probes).argmax(1) == target.labels
        ce, _ = reference(peer, images, target, level)
        assert ce.floats.sum() >= plainly.sum() - 1


def test_the_peers_losses_are_their_equations(peer):
    logits = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    said, wanted = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([5, 0, 1, 2, 3])
    rows = logits.double().numpy()
    for row, ratio, likelihood, y, t in zip(
        rows, peer.logits_ratio(logits, said, wanted), peer.cross_entropy(logits, said, wanted), said, wanted,
        strict=True,
    ):  # fmt: skip
        a, _, c, d, *_ = sorted(row, reverse=True)
        assert ratio == pytest.approx(-(row[y] - row[t]) / (a - (c + d) / 2), rel=1e-5)
        assert likelihood == pytest.approx(F.log_softmax(torch.tensor(row), 0)[t].item(), rel=1e-5)
