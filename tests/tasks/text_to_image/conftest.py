"""A diffusion model of a few thousand weights, untrained: enough for equations, formats and contracts."""

import pytest

WORDS = [
    "a photo of the digit seven", "a photo of the digit eight", "a drawing of the digit one on paper",
    "a photo of a church", "a church in the snow", "a photo of a chapel", "a photo of a garbage truck",
]  # fmt: skip


def nano(seed=0, *, arch="sd-nano", channels=1, size=8, length=16):
    """Build a fresh model."""
    from rub.models.diffusion.mini import build_mini
    from rub.models.diffusion.tokenizer import make_tokenizer, train_vocabulary

    tokenizer = make_tokenizer(*train_vocabulary(WORDS * 2, 700), length)
    return build_mini(arch, channels=channels, size=size, tokenizer=tokenizer, seed=seed)


@pytest.fixture
def model():
    """A fresh, trainable model of 8 x 8 grey pixels without an autoencoder."""
    return nano()


@pytest.fixture
def make_model():
    """The builder itself, for other seeds and sizes."""
    return nano
