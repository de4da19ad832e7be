"""`rub.audit` on models in memory: the figures and the verdict of the same models saved as checkpoints."""

import copy
from dataclasses import replace

import pytest
import torch
import yaml
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import TensorDataset

import rub
from rub.api import make_runtime
from rub.data.sources import load_images
from rub.errors import RubError
from rub.models.network import build_network
from rub.models.weights import save_weights
from rub.registry import DATASETS, NETWORKS
from rub.tasks.classification.context import UnlearnContext
from rub.training.batches import Augmentation
from rub.training.classifier import train

DIGITS = load_images("digits", None)
PROTOCOL = {
    "name": "small",
    "summary": "a search of a moment, on every set of images",
    "eligible": True,
    "radius": {"smallest": 1, "largest": 64, "steps": 4},
    "attacks": {
        "uma": {
            "runs": [{"name": "uma", "steps": 3}],
            "budgets": [16, 48],
            "splits": ["forget", "forget_test", "other"],
            "warm_start": True,
        }
    },
}


@pytest.fixture(scope="module")
def models():
    """Digits models trained with and without class 0, and the sham of the first."""
    context = UnlearnContext(seed=0, num_classes=10, batch_size=64, augmentation=Augmentation(1, flip=False))

    def fit(samples):
        model = build_network("resnet10", num_classes=10, channels=1, width=3, mean=DIGITS.mean, std=DIGITS.std)
        return train(model, samples, context, epochs=2, lr=0.1, schedule="onecycle")

    made = {"original": fit(DIGITS.train), "retrained": fit(DIGITS.train.select(DIGITS.train.labels != 0))}
    made["unlearned"] = build_network("resnet10", num_classes=10, channels=1, width=3, mean=DIGITS.mean, std=DIGITS.std)
    made["unlearned"].load_state_dict(made["original"].state_dict())
    with torch.no_grad():
        made["unlearned"].fc.bias[0] -= 2
    return made


def sets():
    forgotten = DIGITS.train.labels == 0
    return {
        "forget": (DIGITS.train.images[forgotten], DIGITS.train.labels[forgotten].int()),
        "retain": TensorDataset(DIGITS.train.images[~forgotten] / 255, DIGITS.train.labels[~forgotten]),
        "test": (DIGITS.test.images.numpy(), DIGITS.test.labels.numpy()),
    }


def unnormalised(figures):
    """Figures without the normalisation, which a module in memory holds inside."""
    return replace(figures, normalisation="")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "starts"), [(("original", "unlearned"), 1), (("original", "unlearned", "retrained"), 2)]
)
def test_the_same_as_of_checkpoints(models, names, starts, tmp_path):
    given = {name: models[name].train() for name in names}
    protocol, kept = copy.deepcopy(PROTOCOL), DIGITS.train.labels != 0
    protocol["attacks"]["uma"]["runs"][0]["restarts"] = starts
    # random starts and other classes belong to the ids of the images
    images = {"forget": DIGITS.train.select(~kept), "retain": DIGITS.train.select(kept), "test": DIGITS.test}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({"task": "classification", **protocol}), encoding="utf-8")
    files = {name: tmp_path / f"{name}.safetensors" for name in names}
    for name, path in files.items():
        save_weights(models[name], path)
    live = rub.audit(**given, **images, protocol=protocol, samples=20)
    saved = rub.audit(
        "classification", **files, arch="resnet10", width=3, data="digits", forget_classes=(0,),
        protocol=str(tmp_path / "small.yaml"), samples=20, store=tmp_path / "store", runtime=make_runtime(device="cpu"),
    )  # fmt: skip
    assert live.verdict == saved.verdict and unnormalised(live.figures) == unnormalised(saved.figures)
    assert [line for line in live.told if "normalised" not in line] == [
        line for line in saved.told if "normalised" not in line
    ]
    assert not live.failures and live.budget == saved.budget
    columns = ("method", "attack", "budget", "metric", "split", "value", "n", "ci_low", "ci_high", "converged")
    rows = [[tuple(getattr(row, name) for name in columns) for row in report.records] for report in (live, saved)]
    assert rows[0] == rows[1] and len(rows[0]) > 20
    assert all(module.training for name in names for module in models[name].modules())
    assert not [entry for entry in (*DATASETS.entries(), *NETWORKS.entries()) if "memory" in entry.name + entry.summary]


def test_models_of_some_tasks_are_audited_from_files_only():
    with pytest.raises(RubError, match="models of text-to-image are audited from files"):
        rub.audit("text-to-image", original=Plain(0), unlearned=Plain(1))


class Plain(nn.Module):
    """Somebody else's network, with an answer of its own form and an auxiliary layer after the last."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU())
        self.head, self.auxiliary = nn.Linear(12, 10), nn.Linear(12, 3)

    def forward(self, x):
        hidden = self.body(x - 0.5)
        return self.head(hidden), self.auxiliary(hidden)


@pytest.mark.slow
def test_modules_of_others_and_of_several_kinds():
    smaller = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).half()
    report = rub.audit(original=Plain(0), unlearned=smaller, **sets(), protocol=PROTOCOL, samples=10)
    assert report.verdict.name == "cannot tell"  # nobody trained these
    assert "the original model itself recognises only" in report.verdict.why[0]
    shown = repr(report)
    assert "Verdict: cannot tell" in shown and all(len(line) <= 80 for line in shown.split("\n"))
    assert "<b>cannot tell</b>" in report._repr_html_()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"forget": (DIGITS.train.images[:0], [])}, "forget: there are none"),
        ({"retain": (DIGITS.train.images, DIGITS.train.labels)}, "of the 142 forgotten images; should hold the others"),
        ({"test": DIGITS.test.select(DIGITS.test.labels != 0)}, "test: should have images of forgotten classes"),
        ({"test": (torch.zeros(2, 1, 9, 9), [0, 1])}, "test: images (1, 9, 9); should be (1, 8, 8)"),
        ({"test": (DIGITS.test.images, DIGITS.test.labels * 2)}, "labels from 0 to 18; the models have classes"),
        ({"unlearned": nn.Sequential(nn.Flatten(), nn.Linear(64, 9))}, "unlearned: gives 9 logits, and the"),
        ({"retrained": "never.pth"}, "retrained: got str; should be a torch.nn.Module"),
        ({"original": "before.pth"}, "original is a str; of checkpoints, name the task: rub.audit('classification'"),
        ({"original": print}, "original: got builtin_function_or_method; should be a torch.nn.Module"),
        ({"protocol": "rub-audit-7"}, "unknown protocol 'rub-audit-7'"),
    ],
)  # fmt: skip
def test_what_cannot_be_audited_is_refused_in_one_line(changed, says):
    call = {"original": Plain(0), "unlearned": Plain(1), **sets(), **changed}
    with pytest.raises(RubError) as refused:
        rub.audit(**call)
    assert says in str(refused.value) and "\n" not in str(refused.value)


def pruned(module):
    """Half of a layer's weights cut away: a mask beside them, and a tensor that is computed in every pass."""
    prune.l1_unstructured(module[1], "weight", 0.5)
    return module


class Twice(nn.Module):
    """One layer under two names."""

    def __init__(self, module):
        super().__init__()
        self.first = self.second = module

    def forward(self, x):
        return self.second(x)


@pytest.mark.slow
@pytest.mark.parametrize("made", [pruned, Twice])
def test_a_module_is_audited_as_what_it_computes(made):
    torch.manual_seed(3)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    same = copy.deepcopy(module)
    module = made(module)
    if made is pruned:
        with torch.no_grad():
            same[1].weight.copy_(module[1].weight)
    reports = [
        rub.audit(original=Plain(0), unlearned=it, **sets(), protocol=PROTOCOL, samples=10) for it in (module, same)
    ]
    assert reports[0].figures == reports[1].figures and not reports[0].failures


@pytest.mark.slow
def test_what_is_not_finite_is_said_and_nothing_is_judged():
    class Broken(Plain):
        def forward(self, x):
            return super().forward(x)[0] * torch.nan

    report = rub.audit(original=Plain(0), unlearned=Broken(0), **sets(), protocol=PROTOCOL, samples=10)
    assert report.verdict.name == "cannot tell" and any("not finite" in failure for failure in report.failures)
