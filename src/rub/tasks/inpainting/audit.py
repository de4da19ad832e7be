"""Audits of masked autoencoders that RUB did not make: can the completions be brought back? Free of torch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from rub.audits.base import Audit, AuditRequest, Rows, dataset_of, existing, percent, validated
from rub.errors import RubError
from rub.pipeline.graph_builder import FromFiles
from rub.tasks.inpainting.spec import InpaintingExperiment
from rub.tasks.inpainting.verdict import Figures, conclude


class InpaintingAudit(AuditRequest):
    """Measure an unlearned masked autoencoder against its original: destroyed, recovered or not, or cannot tell."""

    task = "inpainting"
    original: Path
    """Checkpoint before unlearning: .pth, .safetensors, a HF folder, or a model of a zoo."""
    unlearned: Path
    """Checkpoint after unlearning, likewise."""
    data: str = ""
    """A name from rub list datasets, or the path of an image folder or .npz; of a zoo's model it is known."""
    forget_classes: tuple[int | str, ...] = ()
    """Forgotten classes by number or name, such as 0,3 or church,tench; of a zoo's model they are known."""
    retrained: Path | None = None
    """Checkpoint trained without the forget set."""
    size: int | None = None
    """Side in pixels for images of a folder, of an .npz or of digits."""
    heads: int | None = None
    """Attention heads, where neither file nor size tells."""
    decoder_heads: int | None = None
    """Attention heads of the decoder, likewise."""
    mean: tuple[float, ...] | None = None
    """Mean that inputs are normalised with, if not ImageNet's."""
    std: tuple[float, ...] | None = None
    """Standard deviation, likewise, such as 0.229,0.224,0.225."""
    mask_ratio: float = 0.75
    """Fraction of masked patches."""
    protocol: str = "rub-audit-1"
    """A name from rub list protocols, or the path of a YAML file."""
    samples: Annotated[int, Field(ge=10)] = 200
    """Forget images, and as many retained ones."""
    judge_epochs: Annotated[int, Field(ge=1)] = 10
    """Training of the classifier behind FID and IS."""

    def experiment(self) -> InpaintingExperiment:
        """The forgotten classes, jointly, under the protocol; every attacked image is steered too."""
        if not self.forget_classes:
            raise RubError("--forget-classes: give what was forgotten, such as 0,3 or church,tench")
        training = {"epochs": self.judge_epochs, "schedule": "onecycle"}
        fields = {
            "task": self.task,
            "dataset": dataset_of(self.data, self.size),
            "model": {"arch": "foreign", "mask_ratio": self.mask_ratio, "weights": "given"},
            "judge": {"stem": "half", "width": 16, "training": training},
            "forget": {"classes": self.forget_classes},
            "retrains": 0,
            "protocol": self.protocol,
            "evaluation": {"samples": self.samples, "steered_samples": self.samples},
        }
        return validated(InpaintingExperiment, fields)

    def models(self) -> FromFiles:
        """Checkpoints in any format of `load_mae`, with what shapes do not tell."""
        weights = {name: getattr(self, name) for name in ("original", "unlearned", "retrained")}
        sizes = {name: getattr(self, name) for name in ("heads", "decoder_heads", "mean", "std")}
        kinds = "a checkpoint (.safetensors, .pth) or a transformers folder"
        return FromFiles(existing(weights, kinds, folders=True), sizes)


def figures_of(rows: Rows) -> Figures:
    """The figures behind the verdict, from an audit's rows."""
    attack = rows.attack
    models = ("original", "unlearned", *(("retrained",) if rows.find("retrained", "skill", "retain") else ()))
    attacked = rows.find("unlearned", "recovered", "forget", attack)
    return Figures(
        kept={model: _skill(rows, model, "retain") for model in models},
        forgotten={model: _skill(rows, model, "forget") for model in models},
        clean=rows.rate("unlearned", "recovered", "forget"),
        attacked=rows.rate("unlearned", "recovered", "forget", attack),
        converged=attacked is not None and attacked.converged is True,
        steered=rows.rate("unlearned", "recovered", "steered", attack),
        clean_retrained=rows.rate_or_none("retrained", "recovered", "forget"),
        retrained=rows.rate_or_none("retrained", "recovered", "forget", attack),
        attack=attack,
    )


def _skill(rows: Rows, model: str, split: str) -> float:
    found = rows.find(model, "skill", split)
    if found is None or found.value is None:
        raise RubError(f"audit: no skill of the {model} model on {split} images was measured")
    return found.value


def told(figures: Figures, budget: str) -> Iterator[str]:
    """The figures as lines of text."""
    attack = f"{figures.attack.upper()} at {budget}"
    for side, skills in (("kept", figures.kept), ("forgotten", figures.forgotten)):
        values = ", ".join(f"{model} {100 * value:.1f} %" for model, value in skills.items())
        yield f"skill on {side} images: {values}"
    yield f"{'completed as the original did, clean (never gone)':49} {percent(figures.clean)}"
    yield f"{f'completed as the original did, {attack}':49} {percent(figures.attacked)}"
    yield f"{'led to unrelated outputs (same image and search)':49} {percent(figures.steered)}"
    if figures.clean_retrained is not None and figures.retrained is not None:
        yield f"{'of the retrained model, clean':49} {percent(figures.clean_retrained)}"
        yield f"{f'of the retrained model, {attack}':49} {percent(figures.retrained)}"


AUDIT = Audit(
    request=InpaintingAudit,
    example="--original mae_visualize_vit_large.pth --unlearned after.pth --data photos --size 224 "
    "--forget-classes 0,1",
    figures=figures_of,
    conclude=conclude,
    told=told,
    limits=(
        "It is about these images and masks, this search and these budgets: another attack may bring back more.",
        "A model may complete a class that it never saw: what comes back beyond the retrained model is what counts.",
        "One pair of models was measured: another seed of the same method may leave more or less.",
        "That nothing was found is no proof that nothing is left.",
    ),
    modules="rub.tasks.inpainting.live:audit",
)
