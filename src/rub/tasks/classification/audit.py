"""Audits of image classifiers that RUB did not make: can the knowledge be brought back? Free of torch."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field

from rub.audits.base import Audit, AuditRequest, Rows, dataset_of, existing, percent, validated
from rub.errors import RubError
from rub.pipeline.graph_builder import FromFiles
from rub.tasks.classification.spec import ClassificationExperiment
from rub.tasks.classification.verdict import Figures, conclude

CHANCE = 0.25  # a checkpoint that is right less often was hardly trained on such inputs


class ClassificationAudit(AuditRequest):
    """Measure an unlearned classifier against its original: recovered, hidden, no residual found, or cannot tell."""

    task = "classification"
    original: Path
    """Checkpoint before unlearning."""
    unlearned: Path
    """Checkpoint after unlearning."""
    data: str
    """A name from rub list datasets, or the path of an image folder or .npz."""
    forget_classes: tuple[int, ...]
    """Forgotten classes, such as 0,3."""
    retrained: Path | None = None
    """Checkpoint trained without the forget set."""
    arch: str | None = None
    """A name from rub list models; recognised by the original's keys when left out."""
    network: str | None = None
    """A network of one's own instead: my_net.py:build."""
    stem: str = "cifar"
    """cifar, imagenet or half."""
    width: int | None = None
    """Channels of the first stage."""
    parameters: str = ""
    """Other hyperparameters of the network, such as head=small,depth=3."""
    size: int | None = None
    """Side in pixels for images of a folder."""
    mean: tuple[float, ...] | None = None
    """Mean that inputs were normalised with, if not the data's."""
    std: tuple[float, ...] | None = None
    """Standard deviation, likewise, such as 0.247,0.243,0.262."""
    protocol: str = "rub-audit-1"
    """A name from rub list protocols, or the path of a YAML file."""
    samples: Annotated[int, Field(ge=10)] = 256
    """Forget images to attack (half as many controls)."""

    def experiment(self) -> ClassificationExperiment:
        """The forgotten classes, jointly, under the protocol."""
        dataset = dataset_of(self.data, self.size)
        return experiment_of(dataset, self.model(), self.forget_classes, self.protocol, self.samples)

    def model(self) -> dict[str, Any]:
        """The network: as it is named, or as the original's keys and shapes tell."""
        if self.arch is not None and self.network is not None:
            raise RubError(f"--network {self.network}: --arch {self.arch} names another one; give one of them")
        arch = self.network or self.arch
        given = {name: getattr(self, name) for name in ("stem", "width", "mean", "std")}
        if arch is None:
            return {**given, **self._recognised()}
        try:
            pairs = [pair.split("=") for pair in self.parameters.split(",") if pair]
            return {"arch": arch, **given, **{name: yaml.safe_load(value) for name, value in pairs}}
        except (ValueError, yaml.YAMLError):
            raise RubError(f"--parameters {self.parameters}: should be such as head=small,depth=3") from None

    def _recognised(self) -> dict[str, Any]:
        from rub.models.formats.classifier import known_network
        from rub.models.weights import read_state

        if (self.original / "config.json").is_file():
            return {"arch": f"hf:{self.original}"}
        found = known_network(read_state(self.models().weights["original"]))
        if found is None:
            raise RubError(f"checkpoint {self.original}: keys of no known network; give --arch or --network")
        return found[0]

    def models(self) -> FromFiles:
        """Checkpoints in any format of `load_weights`."""
        from rub.models.weights import weights_file

        weights = {name: getattr(self, name) for name in ("original", "unlearned", "retrained")}
        found = existing(weights, "a checkpoint (.safetensors, .pt, .pth, .pth.tar, .th)", folders=True)
        return FromFiles({name: weights_file(path) for name, path in found.items()})


def experiment_of(
    dataset: Mapping[str, Any], model: Mapping[str, Any], forget_classes: Sequence[int], protocol: Any, samples: int
) -> ClassificationExperiment:
    """The experiment that measures an audit's models: jointly forgotten classes, under a protocol."""
    fields = {
        "task": "classification",
        "dataset": dataset,
        "model": model,
        "forget": {"classes": forget_classes},
        "protocol": protocol,
        "evaluation": {"attack_samples": samples, "control_samples": max(samples // 2, 5), "retain_samples": 5000},
    }
    return validated(ClassificationExperiment, fields)


def figures_of(rows: Rows) -> Figures:
    """The figures behind the verdict, from an audit's rows."""
    attack = rows.attack
    attacked = rows.find("unlearned", "ua", "forget", attack)
    bias_free: dict[str, tuple[float, float, float | None]] = {}
    for metric, split in (("logit_auc", "test"), ("probe_accuracy", "forget_test")):
        values = [rows.find(method, metric, split) for method in ("original", "unlearned", "retrained")]
        before, after, never = (None if record is None else record.value for record in values)
        if before is not None and after is not None:
            bias_free[metric] = (before, after, never)
    return Figures(
        original=rows.rate("original", "ua", "forget"),
        clean=rows.rate("unlearned", "ua", "forget"),
        attacked=rows.rate("unlearned", "ua", "forget", attack),
        converged=attacked is not None and attacked.converged is True,
        steered=rows.rate("unlearned", "ua", "retain", attack),
        retrained=rows.rate_or_none("retrained", "ua", "forget", attack),
        bias_free=bias_free,
        attack=attack,
        accuracy=next((row.value for row in rows.records if (row.method, row.metric) == ("original", "ta_all")), None),
    )


def told(figures: Figures, budget: str) -> Iterator[str]:
    """The figures as lines of text."""
    attack = figures.attack.upper()
    yield f"UA of the original model on clean forget images   {percent(figures.original)}"
    yield f"UA of the unlearned model, clean                  {percent(figures.clean)}"
    yield f"UA of the unlearned model, {attack} at {budget:<8}        {percent(figures.attacked)}"
    yield f"retain images steered into the class (control)    {percent(figures.steered)}"
    if figures.retrained is not None:
        yield f"UA of the retrained model, {attack} at {budget:<8}        {percent(figures.retrained)}"
    for name, (before, after, never) in figures.bias_free.items():
        reference = "" if never is None else f", retrained {never:.3f}"
        yield f"{name:<15} original {before:.3f}, unlearned {after:.3f}{reference}"
    if figures.accuracy is not None and figures.accuracy < CHANCE:
        yield f"The original is right on {100 * figures.accuracy:.1f} % of the test images, hardly more than by chance;"
        yield "if it was trained on inputs normalised otherwise than by the data's mean and std, give --mean and --std."


AUDIT = Audit(
    request=ClassificationAudit,
    example="--original before.pth --unlearned after.pth --arch resnet18 --data cifar10 --data-root data "
    "--forget-classes 0",
    figures=figures_of,
    conclude=conclude,
    told=told,
    modules="rub.tasks.classification.live:audit",
)
