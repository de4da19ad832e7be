"""The specs of a classification experiment and its protocols: every choice that the paper leaves open, named."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, field_validator

from rub.config.suite import Component, Experiment, Frozen, Protocol
from rub.data.spec import DatasetSpec, ForgetSpec, TrainingSpec
from rub.errors import RubError
from rub.tasks.classification.budgets import Budget

Split = Literal["forget", "forget_test", "other", "retain"]
ATTACK_SUITE = "attack"  # name of the suite that the result folder of `rub attack` holds
ATTACK_PROTOCOL = "rub-attack-1"
"""What decides its numbers: at most N forgotten training images that the original gets right, by a fixed draw; L-inf
budgets, each searched from the probes of the one before; attacks with their default settings and seed 0."""
DEFAULT_SEARCH = "uma-momentum"
"""The search that stands beside every attack of others."""


class ModelSpec(Frozen):
    """Which network: its name, its normalisation, and the hyperparameters that it has of its own."""

    bare_field = "arch"
    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    arch: str
    """A name from ``rub list models``, or ``my_net.py:build``."""
    stem: Literal["cifar", "imagenet", "half"] = "cifar"
    width: int | None = Field(None, ge=1, le=1024)
    """Channels of the first stage; the architecture's own when left out."""
    mean: tuple[float, ...] | None = None
    """Per-channel mean of the normalisation inside the network, in [0, 1]; the data set's when left out."""
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None


class AttackSpec(Frozen):
    """One attacked column: searches whose per-sample union counts, at these budgets, on these images."""

    runs: tuple[Component, ...] = Field(min_length=1)
    """Searches; a sample counts as recovered when one of them recovers it."""
    budgets: tuple[int | str, ...] = Field(min_length=1)
    """||delta||_inf in 1/255 steps, or text: ``l2:0.5`` (||delta||_2 in pixel units), ``patch:8`` or ``patch:8@12x10``
    (side in pixels; row and column of its top left one, the middle when left out), ``border:2`` (width of a frame),
    ``corruption:3`` (severity). Each starts from the probes of the next smaller one of its kind when `warm_start`."""
    splits: tuple[Split, ...] = ("forget",)
    """Which images: D_u (``forget``), same-class test images, D_u towards another class, retain images steered to a
    forgotten class."""
    warm_start: bool = False

    @field_validator("budgets")
    @classmethod
    def _budgets(cls, value: tuple[int | str, ...]) -> tuple[int | str, ...]:
        try:
            found = {Budget.of(given) for given in value}
        except RubError as error:
            raise ValueError(str(error)) from None
        return tuple(budget.given for budget in sorted(found, key=lambda budget: budget.order))


class RadiusSpec(Frozen):
    """The search for the smallest change at which an image is said to be of a class."""

    smallest: float = Field(0.25, gt=0)
    """The first budget, ||delta||_inf in 1/255; each further one is twice as large."""
    largest: float = Field(32.0, gt=0)
    """No budget is larger."""
    steps: int = Field(16, ge=1)
    """Signed gradient steps of a quarter of the budget, at each budget until one succeeds."""
    refine: int = Field(32, ge=0)
    """Steps of the minimum-norm search from there."""


class RelearnSpec(Frozen):
    """Short fine-tuning that shows how near in the weights the forgotten classes still are."""

    images: int = Field(50, ge=1)
    """Training images of each class that are shown, forgotten and kept."""
    steps: Literal[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024] = 256
    """Most steps; a model that has not relearned by then counts as one that needs twice as many."""
    batch_size: int = Field(64, ge=2)
    lr: float = Field(0.01, gt=0)
    """Learning rate of SGD with momentum .9, without weight decay."""


class ClassificationProtocol(Protocol):
    """The choices behind a classification number."""

    attacks: dict[str, AttackSpec]
    eligible: bool = Field(False, exclude_if=lambda eligible: not eligible)
    """Whether success is counted on images that the original gets right, and on no others."""
    radius: RadiusSpec | None = Field(None, exclude_if=lambda radius: radius is None)
    """The search for recovery radii; none where left out."""
    shadows_per_seed: int = Field(2, ge=2, multiple_of=2)
    """Shadow models of each MIA seed; they come in pairs trained on complementary random halves."""
    probe_per_class: int = Field(200, ge=10)
    """Training images per class for the linear probe, at most."""
    probe_total: int = Field(3000, ge=100)
    """Training images for the linear probe in all, at most, shared evenly by the classes."""
    few_images: int = Field(50, ge=2, exclude_if=lambda count: count == 50)
    """Training images of each class for the refitted head, the balanced probe and prototypes."""
    relearn: RelearnSpec | None = Field(None, exclude_if=lambda relearn: relearn is None)
    """Fine-tuning until half of what was forgotten is back; none where left out."""


class Evaluation(Frozen):
    """How many images the measurements use; N stands in every record."""

    attack_samples: int | None = Field(None, ge=1)
    """Forget images that are attacked, towards either class, a fixed random subset; all of them when left out."""
    control_samples: int | None = Field(None, ge=1)
    """Same for same-class test images and steered retain images."""
    retain_samples: int | None = Field(None, ge=1)
    """Retain images that RA is measured on."""
    shadows: bool = Field(True, exclude_if=lambda shadows: shadows)
    """Whether shadow models are trained, `protocol.shadows_per_seed` for each MIA seed; without, MIA takes none."""
    ulira: int = Field(0, ge=0, multiple_of=2, exclude_if=lambda ulira: not ulira)
    """Shadow models for U-LiRA, on each of which every method is run anew; 0: not measured. Six are the fewest."""
    klom: bool = Field(False, exclude_if=lambda klom: not klom)
    """Whether KLOM is measured, over all seeds of each method and all retrained models; it takes ten of both."""
    witnesses: int | None = Field(None, ge=0)
    """Recovered forget images kept as witnesses, per cell; all of them when left out."""


class ClassificationExperiment(Experiment):
    """One row block of Table 1: a data set, a network, a forget set, and the methods to measure on them."""

    task: Literal["classification"]
    dataset: DatasetSpec
    model: ModelSpec
    training: TrainingSpec = TrainingSpec()
    forget: ForgetSpec
    evaluation: Evaluation = Evaluation()
    protocol: ClassificationProtocol
