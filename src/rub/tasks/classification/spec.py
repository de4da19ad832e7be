"""The specs of a classification experiment, and its protocols: every choice that the paper leaves open, named."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from rub.config.suite import Component, Experiment, Frozen, Protocol, protocol_of
from rub.data.spec import DatasetSpec, ForgetSpec, TrainingSpec

Split = Literal["forget", "forget_test", "retain"]


class ModelSpec(Frozen):
    """Which network."""

    arch: str
    stem: Literal["cifar", "imagenet", "half"] = "cifar"
    width: int | None = Field(None, ge=1, le=1024)
    """Channels of the first stage; the architecture's own when left out."""
    mean: tuple[float, ...] | None = None
    """Per-channel mean of the normalisation inside the network, in [0, 1]; the data set's when left out."""
    std: tuple[float, ...] | None = None


class AttackSpec(Frozen):
    """One attacked column: searches whose per-sample union counts, at these budgets, on these images."""

    runs: tuple[Component, ...] = Field(min_length=1)
    """Searches; a sample counts as recovered when one of them recovers it."""
    budgets: tuple[int, ...] = Field(min_length=1)
    """||delta||_inf in 1/255 steps; each budget starts from the probes of the next smaller one when `warm_start`."""
    splits: tuple[Split, ...] = ("forget",)
    """Which images: D_u (``forget``), same-class test images, retain images steered to a forgotten class."""
    warm_start: bool = False

    @field_validator("budgets")
    @classmethod
    def _levels(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        for level in value:
            if not 0 <= level <= 255:
                raise ValueError(f"eps = {level}/255: should be between 0 and 255 steps of 1/255")
        return tuple(sorted(set(value)))


class ClassificationProtocol(Protocol):
    """The choices behind a classification number."""

    attacks: dict[str, AttackSpec]
    shadows_per_seed: int = Field(2, ge=2, multiple_of=2)
    """Shadow models of each MIA seed; they come in pairs trained on complementary random halves."""
    probe_per_class: int = Field(200, ge=10)
    """Training images per class for the linear probe, at most."""
    probe_total: int = Field(3000, ge=100)
    """Training images for the linear probe in all, at most, shared evenly by the classes."""


class Evaluation(Frozen):
    """How many images the measurements use; N stands in every record."""

    attack_samples: int | None = Field(None, ge=1)
    """Forget images that are attacked, a fixed random subset; all of them when left out."""
    control_samples: int | None = Field(None, ge=1)
    """Same for the controls: same-class test images and steered retain images."""
    retain_samples: int | None = Field(None, ge=1)
    """Retain images that RA is measured on."""
    witnesses: int | None = Field(None, ge=0)
    """Recovered forget images kept as witnesses, per cell; all of them when left out."""


def _uma(**parameters: Any) -> Component:
    return Component(name="uma", **parameters)


ALL_SPLITS: tuple[Split, ...] = ("forget", "forget_test", "retain")


def _paper(*budgets: float) -> dict[str, AttackSpec]:
    """Return the paper's search at these budgets, and as many random draws at its larger one."""
    return {
        "uma": AttackSpec(
            runs=(_uma(divergence="kl", steps=100, restarts=1, finish_below=0.05),), budgets=budgets, splits=ALL_SPLITS
        ),
        "noise": AttackSpec(runs=(Component(name="noise", steps=100, finish_below=0.05),), budgets=(16,)),
    }


PROTOCOLS: Mapping[str, ClassificationProtocol] = {
    protocol.name: protocol
    for protocol in (
        ClassificationProtocol(
            name="rub-paper-1",
            summary="As close to the paper as can be known: KL-UMA, 100 signed-gradient steps of 2.5 eps/100 from the "
            "clean image, 8/255 and 16/255; joint forgetting; shadow-model MIA. A sample is finished once it is "
            "recovered with KL <= 0.05, so the MIA of attacked images is a lower bound.",
            attacks=_paper(8, 16),
        ),
        ClassificationProtocol(
            name="rub-curve-1",
            summary="rub-paper-1 at 1, 2 and 4/255 too, where fewer other images can be steered into the class, and "
            "what comes back says more. At 8/255 and 16/255 it is rub-paper-1, to the number.",
            attacks=_paper(1, 2, 4, 8, 16),
        ),
        ClassificationProtocol(
            name="rub-strict-1",
            summary="What RUB stands behind: the per-sample union of KL with 5 starts, CE, margin and APGD over the "
            "curve 1..16/255 with warm starts, a universal and a black-box attack, and as many random draws.",
            attacks={
                "uma": AttackSpec(
                    runs=(
                        _uma(divergence="kl", steps=100, restarts=5, finish_below=0.05),
                        _uma(divergence="ce", steps=100, restarts=1, finish_below=0.05),
                        _uma(divergence="margin", steps=100, restarts=1, finish_below=0.0),
                        Component(name="uma-apgd", divergence="kl", steps=100, restarts=1, finish_below=0.05),
                    ),
                    budgets=(0, 1, 2, 4, 8, 16),
                    splits=ALL_SPLITS,
                    warm_start=True,
                ),
                "universal": AttackSpec(runs=(Component(name="universal"),), budgets=(8, 16)),
                "square": AttackSpec(runs=(Component(name="square"),), budgets=(8, 16)),
                "noise": AttackSpec(runs=(Component(name="noise", steps=800),), budgets=(8, 16)),
            },
            shadows_per_seed=4,
        ),
        ClassificationProtocol(
            name="rub-audit-1",
            summary="For checkpoints of unknown origin: the search of rub-paper-1 over the curve 1..16/255 with warm "
            "starts. Where large budgets recover and steer everything alike, a small one may still tell them apart.",
            attacks={
                "uma": AttackSpec(
                    runs=(_uma(divergence="kl", steps=100, restarts=1, finish_below=0.05),),
                    budgets=(1, 2, 4, 8, 16),
                    splits=ALL_SPLITS,
                    warm_start=True,
                ),
            },
        ),
        ClassificationProtocol(
            name="rub-quick-1",
            summary="A tour in a minute on 8 x 8 digits: every part runs, with few steps and wide budgets "
            "(32/255 and 64/255). Its numbers show that things work; they are not for comparison.",
            attacks={
                "uma": AttackSpec(
                    runs=(_uma(divergence="kl", steps=20, restarts=1, finish_below=0.05),),
                    budgets=(32, 64),
                    splits=ALL_SPLITS,
                ),
                "uma-apgd": AttackSpec(runs=(Component(name="uma-apgd", steps=20),), budgets=(64,)),
                "universal": AttackSpec(runs=(Component(name="universal", steps=20),), budgets=(64,)),
                "square": AttackSpec(runs=(Component(name="square", steps=20),), budgets=(64,)),
                "noise": AttackSpec(runs=(Component(name="noise", steps=20),), budgets=(64,)),
            },
            shadows_per_seed=4,
            probe_per_class=50,
        ),
    )
}


class ClassificationExperiment(Experiment):
    """One row block of Table 1: a data set, a network, a forget set, and the methods to measure on them."""

    task: Literal["classification"]
    dataset: DatasetSpec
    model: ModelSpec
    training: TrainingSpec = TrainingSpec()
    forget: ForgetSpec
    evaluation: Evaluation = Evaluation()
    protocol: ClassificationProtocol

    @field_validator("protocol", mode="before")
    @classmethod
    def _by_name(cls, value: Any, info: ValidationInfo) -> Any:
        """Accept a protocol's name, or ``{name: ..., changed fields}``, which is then marked as ``name*hash``."""
        return protocol_of(value, PROTOCOLS, ClassificationProtocol)


CONTROLS = ("original", "retrain", "sham")
