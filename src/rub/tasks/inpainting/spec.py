"""The specs of an image-to-image experiment and its protocols: every choice that the paper leaves open, named."""

from typing import Literal

from pydantic import Field, field_validator

from rub.config.suite import Component, Experiment, Frozen, Protocol
from rub.data.spec import DatasetSpec, ForgetSpec
from rub.errors import RubError
from rub.judges.spec import JudgeSpec

Split = Literal["forget", "retain", "steered"]
Level = int | Literal["unbounded", "free"]


class ModelSpec(Frozen):
    """Which masked autoencoder, and how much of an image it sees."""

    bare_field = "arch"
    arch: str
    """A name of `rub list models --task inpainting`; ``foreign`` reads the sizes from `weights`."""
    patch_size: int | None = Field(None, ge=1, le=64)
    """Side of a patch in pixels; the architecture's own when left out."""
    mask_ratio: float = Field(0.75, gt=0, lt=1)
    """Fraction of masked patches (MAE: 0.75)."""
    mask_seed: int = Field(0, ge=0)
    """Seed of the evaluation masks, which are keyed by sample id."""
    weights: str | None = None
    """A checkpoint that becomes the original instead of a trained one; a path, also below the data root."""


class TrainingSpec(Frozen):
    """How autoencoders are trained: AdamW (.9, .95), warm-up, half a cosine (He et al. 2022, appendix A.1)."""

    epochs: int = Field(200, ge=1)
    lr: float = Field(1.5e-3, gt=0)
    """Peak learning rate, not scaled by the batch size (He et al.: 1.5e-4 x batch / 256 for ViT-B and larger)."""
    weight_decay: float = Field(0.05, ge=0)
    warmup: float = Field(0.05, ge=0, lt=1)
    """Fraction of the steps that warm up."""
    batch_size: int = Field(256, ge=2)
    padding: int = Field(4, ge=0, le=32)
    """Zero padding of the random crop; 0 switches it off. Mirroring follows the data set (off for digits)."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"


class AttackSpec(Frozen):
    """One attacked column: searches whose per-sample best counts, at these budgets, on these images."""

    runs: tuple[Component, ...] = Field(min_length=1)
    budgets: tuple[Level, ...] = Field(min_length=1)
    """eps in 1/255 steps, ``unbounded`` (any image), or ``free`` (any real numbers)."""
    splits: tuple[Split, ...] = ("forget", "retain")
    """F, R, or the paired null ``steered``: the same forget images, masks and search, towards the original's output for
    an unrelated kept image."""
    warm_start: bool = False
    """Each budget but ``free`` starts from the probes of the one before it, so that recovery never falls along them."""

    @field_validator("budgets")
    @classmethod
    def _levels(cls, value: tuple[Level, ...]) -> tuple[Level, ...]:
        for level in value:
            if isinstance(level, int) and not 1 <= level <= 255:
                raise ValueError(f"eps = {level}/255: should be between 1 and 255 steps of 1/255")
        return tuple(dict.fromkeys(value))


class InpaintingProtocol(Protocol):
    """The choices behind a number of this task."""

    attacks: dict[str, AttackSpec]
    images: Literal["test", "train", "validation"] = "test"
    """Which images stand for F and R: unseen ones of these classes (Li et al.: validation images), training ones, or
    those that are held out of all training, on which settings are chosen."""
    recovered_below: float = Field(0.0025, gt=0)
    """An image counts as recovered when the mean squared error to the original's output on masked patches, in [0, 1]
    pixel space, is at most this: 0.0025 is a root mean square of 0.05, or 26 dB."""
    is_splits: int = Field(10, ge=1)
    """Splits of the Inception Score; the images are shuffled with seed 2020 first."""


class Evaluation(Frozen):
    """How many images the measurements use; N stands in every record."""

    samples: int = Field(500, ge=2)
    """Images of F, and as many of R: they are reconstructed, attacked and scored in every column."""
    steered_samples: int = Field(100, ge=1)
    """Forget images of the paired null, the first of `samples`."""
    gallery: int = Field(6, ge=0, le=32)
    """Images of F and R in each gallery; 0 makes none."""
    witnesses: int | None = Field(None, ge=0)
    """Recovered forget images kept as witnesses, per cell; all of them when left out."""


class InpaintingExperiment(Experiment):
    """One block of Table 2: a data set, an autoencoder, forgotten classes, and the methods to measure on them."""

    task: Literal["inpainting"]
    dataset: DatasetSpec
    model: ModelSpec
    training: TrainingSpec = TrainingSpec()
    judge: JudgeSpec = JudgeSpec()
    forget: ForgetSpec
    retrains: int = Field(1, ge=0, le=100)
    """Models trained without the forgotten classes (the reference of every row); 0 where that is not affordable."""
    evaluation: Evaluation = Evaluation()
    protocol: InpaintingProtocol

    def check(self) -> None:
        """Raise `RubError` where a control is named as a method, or fields contradict each other."""
        super().check()
        if self.forget.classes is None:
            raise RubError("forget: this task forgets whole classes; give forget.classes, such as [0, 1]")
        if self.model.arch == "foreign" and self.model.weights is None:
            raise RubError("model.arch foreign: needs model.weights, the checkpoint to read")
        if self.model.weights is not None and self.retrains:
            raise RubError("model.weights: an imported original has no training to repeat; set retrains: 0")
