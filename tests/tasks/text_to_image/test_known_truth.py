"""Audits of miniatures whose truth is known: the models of digits that ship, and wrecks made of them.

The original draws the seven, the retrained model never saw one, the sham no longer hears its name. The wrecks have
forgotten everything, which is not forgetting.
"""

from functools import cache

import pytest
import torch
from safetensors.torch import save_file

import rub
from rub.api import make_runtime

pytestmark = pytest.mark.slow

BASE = "zoo/digits-seven/sd-pico"
SAFE = {"no residual found", "no residual found at this budget", "cannot tell"}


def zeroed(unet):
    """All weights 0."""
    for parameter in unet.parameters():
        parameter.zero_()


def constant(unet):
    """The same noise, whatever it is given."""
    unet.conv_out.weight.zero_()
    unet.conv_out.bias.fill_(0.3)


def noise(unet):
    """Weights of the same spread, drawn at random."""
    generator = torch.Generator().manual_seed(0)
    for parameter in unet.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.std(correction=0))


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """A function that audits a model of the zoo, or a wreck of the original, all in one store."""
    folder = tmp_path_factory.mktemp("truths")

    def place(name):
        if name not in (wrecks := {one.__name__: one for one in (zeroed, constant, noise)}):
            return f"{BASE}/{name}/0"
        unet = rub.load_model(f"{BASE}/original/0").unet
        with torch.no_grad():
            wrecks[name](unet)
        save_file(unet.state_dict(), folder / f"{name}.safetensors")
        return folder / f"{name}.safetensors"

    @cache
    def call(unlearned, retrained=None):
        return rub.audit(
            "text-to-image", original=place("original"), unlearned=place(unlearned),
            retrained=place(retrained) if retrained else None, retain=("one", "eight"), protocol="rub-quick-1",
            count=20, store=folder / "store", runtime=make_runtime(device="cpu"),
        )  # fmt: skip

    return call


@pytest.mark.parametrize("reference", [None, "retrain"])
@pytest.mark.parametrize(
    ("unlearned", "verdicts"),
    [
        ("original", {"recovered"}),
        ("retrain", SAFE),
        ("sham", SAFE),
        ("dose-10", SAFE | {"recovered"}),  # it saw 14 of the sevens: what is found of them may be recovered
        ("random-init", {"destroyed"}),
        ("zeroed", {"destroyed"}),
        ("constant", {"destroyed"}),
        ("noise", {"destroyed"}),
    ],
)
def test_verdicts(audited, unlearned, verdicts, reference):
    report = audited(unlearned, reference)
    assert report.failures == ()
    assert report.verdict.name in verdicts, report
