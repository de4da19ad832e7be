"""Attacks of other libraries, adapted: they find something, stay in their budget, and RUB says what they found."""

import copy
from hashlib import sha256
from types import SimpleNamespace

import foolbox
import pytest
import torch
import torchattacks
from secmlt.adv.evasion.fgsm import FGSM
from secmlt.adv.evasion.pgd import PGD
from torch import nn

import rub
from rub.attacks.foreign import OneAgainstRest
from rub.errors import RubError
from rub.registry import load_plugin, source_hash

IMAGES = torch.randint(0, 256, (24, 3, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4)).eval()


ORIGINAL, UNLEARNED = network(0), network(1)
with torch.no_grad():
    LABELS = ORIGINAL(IMAGES / 255).argmax(1)
    CLEAN = UNLEARNED(IMAGES / 255).argmax(1) == LABELS


def by_hand(model, images, labels, eps):
    x = images.clone().requires_grad_()
    gradient = torch.autograd.grad(nn.functional.cross_entropy(model(x), labels), x)[0]
    return x - eps * gradient.sign()


def far_away(model, images, labels, eps):
    return 1 - images


def of_radius(eps):
    return PGD("linf", eps, num_steps=5, step_size=eps / 2, random_start=False, backend="native")


ATTACKS_OF_OTHERS = {
    "foolbox PGD": lambda: foolbox.attacks.LinfPGD(steps=5, rel_stepsize=0.4),
    "foolbox FGSM": foolbox.attacks.LinfFastGradientAttack,
    "foolbox DeepFool": lambda: foolbox.attacks.LinfDeepFoolAttack(steps=5),
    "torchattacks PGD": lambda: torchattacks.PGD(ORIGINAL, steps=5),
    "torchattacks FGSM": lambda: torchattacks.FGSM(ORIGINAL),
    "torchattacks APGD": lambda: torchattacks.APGD(ORIGINAL, steps=5, loss="dlr"),
    "torchattacks two": lambda: torchattacks.MultiAttack([torchattacks.FGSM(ORIGINAL), torchattacks.PGD(ORIGINAL)]),
    "secml-torch PGD": lambda: of_radius(16 / 255),
    "secml-torch PGD of each radius": lambda: of_radius,
    "secml-torch FGSM": lambda: FGSM("linf", 16 / 255),
    "a callable": lambda: rub.attacks.adapt(by_hand),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS_OF_OTHERS)
def test_an_attack_of_others_recovers_within_its_budget(name):
    attack = ATTACKS_OF_OTHERS[name]()
    before = copy.deepcopy(vars(attack)) if "torchattacks" in name else {}
    result = rub.recover(UNLEARNED, ORIGINAL, IMAGES, LABELS, eps=[4, 16], attack=attack, batch_size=10)
    far = (result.probes.int() - IMAGES.int()).abs().amax(dim=(1, 2, 3, 4))
    assert far[0] <= 4 and far[1] <= 16
    with torch.no_grad():  # the harness says what was found, whatever the library says
        hits = torch.stack([UNLEARNED(probes / 255).argmax(1) == LABELS for probes in result.probes])
    assert torch.equal(result.recovered, hits)
    assert torch.equal(result.clean, CLEAN) and (hits >= CLEAN).all()
    assert hits[1].sum() >= CLEAN.sum() + 3
    assert result[16].evaluations >= len(IMAGES)
    again = rub.recover(UNLEARNED, ORIGINAL, IMAGES, LABELS, eps=[4, 16], attack=attack, batch_size=10)
    assert torch.equal(again.probes, result.probes)
    for key in ("eps", "alpha", "targeted", "attack_mode"):
        assert before.get(key) == getattr(attack, key, None) or not before


def test_what_leaves_the_budget_is_projected_into_it():
    result = rub.recover(UNLEARNED, ORIGINAL, IMAGES, LABELS, eps=[3], attack=rub.attacks.adapt(far_away))
    moved = result.probes[0].int() - IMAGES.int()
    chosen = moved.abs().amax(dim=(1, 2, 3)) > 0  # the others are better where they were
    assert chosen.any() and moved.abs().max() == 3
    assert set(moved[chosen].unique().tolist()) <= {-3, -2, -1, 0, 1, 2, 3}


def test_one_against_the_rest_is_won_where_the_label_is_the_answer():
    with torch.no_grad():
        logits, view = ORIGINAL(IMAGES / 255), OneAgainstRest(ORIGINAL, 2)(IMAGES / 255)
    assert torch.equal(view.argmax(1) == 1, logits.argmax(1) == 2)
    assert torch.equal(view[:, 1], logits[:, 2]) and view.shape == logits.shape


@pytest.mark.parametrize(
    ("attack", "says"),
    [
        (SimpleNamespace(), "should be an attack of foolbox, torchattacks, secmlt, or a callable"),
        (rub.attacks.adapt(lambda model, images, labels, eps: images[:1], name="few"), "attack 'few': wanted floats"),
        (rub.attacks.adapt(lambda model, images, labels, eps: images * torch.nan), "gives images that are not finite"),
        (rub.attacks.adapt(lambda model, images, labels, eps: 1 / 0), "ZeroDivisionError"),
    ],
)
def test_what_is_no_attack_is_refused_in_one_line(attack, says):
    with pytest.raises(RubError) as refused:
        rub.recover(UNLEARNED, ORIGINAL, IMAGES, LABELS, eps=8, attack=attack)
    assert says in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.slow
def test_a_plug_in_registers_an_adapted_attack(tmp_path, write_suite):
    path = tmp_path / "mine.py"
    path.write_text(
        "import foolbox, rub\n"
        "pgd = rub.attacks.adapt(foolbox.attacks.LinfPGD(steps=3), name='their-pgd')\n"
        "rub.attack('their-pgd', task='classification')(pgd)\n",
        encoding="utf-8",
    )
    (entry,) = load_plugin(path)
    assert (entry.name, entry.summary) == ("their-pgd", "LinfProjectedGradientDescentAttack of foolbox, adapted.")
    assert source_hash(entry) == sha256(path.read_bytes()).hexdigest()  # in the stage keys: an edit computes anew
    plan = {"runs": [{"name": "their-pgd"}], "budgets": [32], "splits": ["forget"]}
    suite = rub.load_suite(str(write_suite(tmp_path, protocol={"attacks": {"theirs": plan}})))
    result = rub.run(suite, store=tmp_path / "store", plugins=[path])
    assert not result.failures
    rows = [row for row in result.records if row.attack == "theirs" and row.metric == "ua"]
    assert {row.method for row in rows} == {"original", "retrain", "sham", "zero-row", "ft"}
    assert all(row.n == 8 for row in rows)
