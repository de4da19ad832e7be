"""`rub.audit` on masked autoencoders in memory: the figures and the verdict of the same models saved as files."""

import pytest
import torch
import yaml
from torch import nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

import rub
from rub.api import make_runtime
from rub.data.sources import load_images
from rub.errors import RubError
from rub.models.mae.checkpoints import load_mae, save_mae, to_transformers
from rub.models.mae.model import build_mae
from rub.tasks.inpainting.live import saved

DIGITS = load_images("digits", None, size=16)
FIELDS = {"samples": 10, "judge_epochs": 1, "mask_ratio": 0.5}
SMALL = {
    "task": "inpainting",
    "name": "small",
    "summary": "a search of a moment",
    "attacks": {
        "uma": {"runs": [{"name": "uma", "steps": 2}], "budgets": [16], "splits": ["forget", "retain", "steered"]}
    },
}


def mae(seed):
    return build_mae("mae-mini", channels=1, image_size=16, mean=DIGITS.mean, std=DIGITS.std, seed=seed)


def sets():
    """With the ids of their images, which decide the masks."""
    forgotten = DIGITS.train.labels == 0
    return {"forget": DIGITS.train.select(forgotten), "retain": DIGITS.train.select(~forgotten), "test": DIGITS.test}


@pytest.mark.slow
def test_the_same_as_of_files(tmp_path):
    models = {"original": mae(0), "unlearned": mae(1)}
    for name, model in models.items():
        save_mae(model, tmp_path / f"{name}.safetensors")
    protocol = tmp_path / "small.yaml"
    protocol.write_text(yaml.safe_dump(SMALL), encoding="utf-8")
    fields = {**FIELDS, "protocol": str(protocol)}
    live = rub.audit("inpainting", **models, **sets(), **fields)
    filed = rub.audit(
        "inpainting", **{name: tmp_path / f"{name}.safetensors" for name in models}, data="digits", size=16,
        forget_classes=(0,), **fields, store=tmp_path / "store", runtime=make_runtime(device="cpu"),
    )  # fmt: skip
    assert not live.failures
    assert live.verdict == filed.verdict and live.figures == filed.figures
    rows = [
        [(row.method, row.attack, row.budget, row.metric, row.value, row.n) for row in it.records]
        for it in (live, filed)
    ]
    assert rows[0] == rows[1] and len(rows[0]) > 10


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"unlearned": nn.Linear(2, 2)}, "unlearned: got Linear; should be a MaskedAutoencoder"),
        ({"retrained": "never.pth"}, "retrained: got str; should be a MaskedAutoencoder"),
        ({"sample": 3}, "did you mean 'samples'?"),
        ({"test": (torch.zeros(2, 1, 9, 9), [0, 1])}, "test: images (1, 9, 9); should be (1, 16, 16)"),
    ],
)
def test_what_cannot_be_audited_is_refused_in_one_line(changed, says):
    with pytest.raises(RubError) as refused:
        rub.audit("inpainting", **{"original": mae(0), "unlearned": mae(1), **sets(), **FIELDS, **changed})
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_a_model_of_transformers_is_read_as_what_it_is(tmp_path):
    torch.manual_seed(0)
    config = ViTMAEConfig(
        image_size=16, patch_size=4, num_channels=1, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=64,
    )  # fmt: skip
    theirs = ViTMAEForPreTraining(config).eval()
    ours = load_mae(saved(theirs, "original", tmp_path), mean=(0.5,), std=(0.5,))
    wanted = {name.removeprefix("vit."): value for name, value in theirs.state_dict().items()}
    found = {name.removeprefix("vit."): value for name, value in to_transformers(ours.state_dict()).items()}
    assert set(found) <= set(wanted) and all(torch.equal(value, wanted[name]) for name, value in found.items())
