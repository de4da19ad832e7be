"""Audits of models whose truth is known, on digits: the verdict of each, with and without a retrained model."""

import copy

import pytest
import torch

from rub.api import audit, make_runtime
from rub.data.sources import load_images
from rub.models.network import build_network, head
from rub.models.weights import save_weights
from rub.registry import CONTROLS
from rub.tasks.classification.audit import ClassificationAudit
from rub.tasks.classification.context import UnlearnContext
from rub.training.batches import Augmentation
from rub.training.classifier import train

pytestmark = pytest.mark.slow

DIGITS = load_images("digits", None)
FORGET = DIGITS.train.select(DIGITS.train.labels == 0)
RETAIN = DIGITS.train.select(DIGITS.train.labels != 0)
PROTOCOL = """
task: classification
name: small
eligible: true
radius: {smallest: 1, largest: 128, steps: 8}
attacks: {uma: {runs: [{name: uma-apgd, steps: 10, divergence: margin}], budgets: [32], splits: [forget]}}
"""


def context(seed=0):
    augmentation = Augmentation(1, flip=False)
    return UnlearnContext(seed=seed, num_classes=10, batch_size=64, augmentation=augmentation, forget_classes=(0,))


def fresh(seed):
    return build_network("resnet10", num_classes=10, channels=1, width=6, mean=DIGITS.mean, std=DIGITS.std, seed=seed)


def fit(samples, seed, epochs=8):
    return train(fresh(seed), samples, context(seed), epochs=epochs, lr=0.1, schedule="onecycle")


def controlled(original, name):
    made = CONTROLS.get(name, "classification").load()(copy.deepcopy(original), FORGET, RETAIN, context())
    return made.eval()


def changed(original, change):
    made = copy.deepcopy(original)
    with torch.no_grad():
        change(made)
    return made


def zeroed(model):
    for parameter in model.parameters():
        parameter.zero_()


def constant(model):
    head(model).weight.zero_()


def noise(model):
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.std().nan_to_num(1.0))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("known")
    (folder / "small.yaml").write_text(PROTOCOL, encoding="utf-8")
    original, retrained = fit(DIGITS.train, 0), fit(RETAIN, 1)
    models = {
        "original": original,
        "retrained": retrained,
        "retrained-again": fit(RETAIN, 2),
        "half-trained": fit(RETAIN.select(torch.arange(60)), 1, epochs=2),
        "other-seed": fit(DIGITS.train, 3),
        **{name: controlled(original, name) for name in ("sham", "zero-row", "gauge", "drift")},
        "untrained": fresh(4).eval(),
        **{change.__name__: changed(original, change) for change in (zeroed, constant, noise)},
    }
    for name, model in models.items():
        save_weights(model, folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def ask(checkpoints, tmp_path_factory):
    store = tmp_path_factory.mktemp("store")

    def call(unlearned, retrained=None):
        files = {"original": "original", "unlearned": unlearned, "retrained": retrained}
        request = ClassificationAudit(
            **{role: checkpoints / f"{name}.safetensors" for role, name in files.items() if name},
            arch="resnet10", width=6, data="digits", forget_classes=(0,), samples=60,
            protocol=str(checkpoints / "small.yaml"),
        )  # fmt: skip
        return audit(request, runtime=make_runtime(device="cpu"), store=store)

    return call


@pytest.mark.parametrize("retrained", [None, "retrained"])
@pytest.mark.parametrize(
    ("unlearned", "verdict"),
    [
        ("original", "recovered"),
        ("other-seed", "recovered"),
        ("gauge", "recovered"),
        ("sham", "hidden"),
        ("zero-row", "hidden"),
        ("retrained-again", "no residual found"),
        ("untrained", "destroyed"),
        ("zeroed", "destroyed"),
        ("constant", "destroyed"),
        ("noise", "destroyed"),
    ],
)
def test_the_verdict_of_a_model_whose_truth_is_known(ask, unlearned, verdict, retrained):
    report = ask(unlearned, retrained)
    assert report.verdict.name == verdict, report


def test_drift_is_not_forgetting(ask):
    report = ask("drift", "retrained")
    assert report.verdict.name in ("recovered", "ordinary", "hidden"), report


def test_the_same_function_in_another_gauge_has_the_same_figures(ask):
    one, other = ask("original").figures, ask("gauge").figures
    assert other.log_odds.unlearned == pytest.approx(one.log_odds.unlearned, abs=1e-6)
    assert other.transplant == one.transplant and other.clean == one.clean


def test_a_retrained_model_that_cannot_classify_is_no_reference(ask):
    for unlearned, verdict in (("retrained", "no residual found"), ("zero-row", "hidden")):
        report = ask(unlearned, "half-trained")
        assert report.verdict.name == verdict, report
        assert "no reference" in " ".join(report.verdict.why)
