"""Audits of models whose truth is known, on digits: the original, a retrained model, and wrecks.

The wrecks have forgotten everything, which is not forgetting: an untrained model, one that paints a colour, one that
paints noise.
"""

import pytest
import torch
import yaml

import rub
from rub.api import make_runtime
from rub.data.sources import load_images
from rub.data.splits import split
from rub.models.mae.checkpoints import load_mae, save_mae
from rub.models.mae.model import build_mae
from rub.tasks.inpainting.context import UnlearnContext
from rub.tasks.inpainting.stages import fit
from rub.training.batches import Augmentation

pytestmark = pytest.mark.slow

DIGITS = load_images("digits", None, size=16)
CLASSES = (0, 1, 2, 3, 4)
FORGET = {"classes": CLASSES, "fraction": None, "ids": None, "seed": 0}
TRAINING = {"epochs": 20, "lr": 4e-3, "weight_decay": 0.05, "warmup": 0.05}
PROTOCOL = {
    "task": "inpainting",
    "name": "truths",
    "summary": "a short search at two budgets",
    "recovered_below": 0.005,
    "attacks": {
        "uma": {
            "runs": [{"name": "uma", "steps": 20, "adam_steps": 20}], "budgets": [8, "unbounded"],
            "splits": ["forget", "retain", "steered"],
        },
    },
}  # fmt: skip


def trained(samples, seed):
    model = build_mae("mae-mini", channels=1, image_size=16, patch_size=4, mean=DIGITS.mean, std=DIGITS.std, seed=seed)
    context = UnlearnContext(seed=seed, mask_ratio=0.5, batch_size=64, augmentation=Augmentation(0, False))
    return fit(model, samples, context, TRAINING)


def painter(path, bias, weight):
    """The original with a last layer of its own: a colour, or noise that changes with the image."""
    model = load_mae(path)
    with torch.no_grad():
        model.decoder_pred.weight.copy_(weight * torch.randn(model.decoder_pred.weight.shape))
        model.decoder_pred.bias.copy_(bias * torch.randn(model.decoder_pred.bias.shape))
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("truths")
    parts = split(DIGITS, FORGET, 0.0)
    torch.manual_seed(0)
    save_mae(trained(DIGITS.train, 0), folder / "original.safetensors")
    made = {
        "retrained": trained(parts.retain, 1000),
        "retrained-again": trained(parts.retain, 1001),
        "untrained": build_mae("mae-mini", channels=1, image_size=16, patch_size=4, mean=DIGITS.mean, std=DIGITS.std),
        "colour": painter(folder / "original.safetensors", 0, 0),
        "noise": painter(folder / "original.safetensors", 1, 1),
    }
    for name, model in made.items():
        save_mae(model, folder / f"{name}.safetensors")
    (folder / "truths.yaml").write_text(yaml.safe_dump(PROTOCOL), encoding="utf-8")
    return folder


def audited(folder, unlearned, reference):
    return rub.audit(
        "inpainting", original=folder / "original.safetensors", unlearned=folder / f"{unlearned}.safetensors",
        retrained=folder / f"{reference}.safetensors" if reference else None, data="digits", size=16,
        forget_classes=CLASSES, mask_ratio=0.5, samples=40, judge_epochs=1, protocol=str(folder / "truths.yaml"),
        store=folder / "store", runtime=make_runtime(device="cpu"),
    )  # fmt: skip


@pytest.mark.parametrize("reference", [None, "retrained-again"])
@pytest.mark.parametrize(
    ("unlearned", "verdicts"),
    [
        ("original", {"recovered"}),
        ("retrained", {"no residual found", "cannot tell"}),
        ("untrained", {"destroyed"}),
        ("colour", {"destroyed"}),
        ("noise", {"destroyed"}),
    ],
)
def test_verdicts(models, unlearned, verdicts, reference):
    report = audited(models, unlearned, reference)
    assert report.failures == ()
    assert report.verdict.name in verdicts, report
    if unlearned == "retrained" and reference:
        assert report.verdict.name == "no residual found", report


@pytest.mark.parametrize("wreck", ["untrained", "colour"])
def test_a_wreck_is_no_reference(models, wreck):
    """What is said is what would be said without it."""
    report, alone = (audited(models, "retrained", reference) for reference in (wreck, None))
    assert report.verdict.name == alone.verdict.name
    assert "is no reference" in " ".join(report.verdict.why), report
