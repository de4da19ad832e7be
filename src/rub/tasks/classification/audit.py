"""Audits of image classifiers that RUB did not make: can the knowledge be brought back? Free of torch."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from rub.audits.base import (
    MARGIN,
    Audit,
    AuditRequest,
    Rows,
    Verdict,
    dataset_of,
    ends_of,
    existing,
    percent,
    rate_of,
    validated,
)
from rub.config.documents import read_yaml
from rub.config.suite import protocol_of
from rub.data.spec import TrainingSpec
from rub.errors import RubError
from rub.pipeline.graph_builder import FromFiles
from rub.reports.grouping import kind_of
from rub.tasks.classification import verdict, verdict_samples
from rub.tasks.classification.budgets import Budget
from rub.tasks.classification.metrics import METRICS
from rub.tasks.classification.spec import ClassificationExperiment, ClassificationProtocol
from rub.tasks.classification.verdict import Contrast, Estimate, Figures, Layer
from rub.tasks.classification.verdict_samples import SampleFigures, Signal

Norm = Literal["linf", "l2"]
NORMS: Mapping[str, tuple[int | str, ...]] = {"linf": (4, 8, 16), "l2": ("l2:0.25", "l2:0.5", "l2:1")}
CHANCE = 0.25  # a checkpoint that is right less often, or 1.5 times as often as by guessing, did not learn such inputs


class ClassificationAudit(AuditRequest):
    """Measure an unlearned classifier against its original: is the knowledge gone, and from where?"""

    task = "classification"
    original: Path
    """Checkpoint before unlearning, or a model of a zoo, such as zoo/digits/resnet10-w4/original/0."""
    unlearned: Path
    """Checkpoint after unlearning, likewise."""
    data: str = ""
    """A name from rub list datasets, or the path of an image folder or .npz; of a zoo's model it is known."""
    forget_classes: tuple[int | str, ...] = ()
    """Forgotten classes by number or name, such as 0,3 or church,tench; with --forget-fraction, what it is of."""
    forget_ids: Path | None = None
    """Forgotten samples instead: an .npy, .csv or .txt file of their ids."""
    forget_files: tuple[str, ...] = ()
    """Forgotten samples instead: patterns of their names, such as train/church/*_0*.jpg."""
    forget_fraction: float | None = None
    """Forgotten share of the training samples instead, drawn at random by --forget-seed."""
    forget_seed: int = 0
    """Seed of the share."""
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
    """Side in pixels for images of a folder, of an .npz or of digits."""
    mean: tuple[float, ...] | None = None
    """Mean that inputs were normalised with, if not the data's."""
    std: tuple[float, ...] | None = None
    """Standard deviation, likewise, such as 0.247,0.243,0.262."""
    protocol: str = "rub-audit-2"
    """A name from rub list protocols, or the path of a YAML file."""
    budgets: tuple[str, ...] = ()
    """Budgets of the protocol's attacks instead of its own, such as 4,8 (1/255) or l2:0.5,patch:8,border:2;
    corruption:3 adds common corruptions."""
    norm: Norm | None = None
    """Budgets of a norm instead: linf (4, 8 and 16/255) or l2 (0.25, 0.5 and 1)."""
    samples: Annotated[int, Field(ge=10)] = 256
    """Forget images to attack (half as many controls)."""
    shadows: Annotated[int, Field(ge=0)] = 0
    """Shadow models to train for membership attacks, an even number; 0: attacks that take none."""
    shadow_epochs: Annotated[int, Field(ge=1)] = 30
    """Epochs of each; as many as the original had is best."""

    def experiment(self) -> ClassificationExperiment:
        """The forget set under the protocol."""
        share: dict[str, Any] = {"fraction": self.forget_fraction, "seed": self.forget_seed}
        forget = {
            "classes": self.forget_classes or None, "ids": self.forget_ids, "files": self.forget_files or None, **share,
        }  # fmt: skip
        if not any(forget.values()):
            raise RubError("--forget-classes: give what was forgotten: classes such as 0,3, --forget-ids or a fraction")
        made = experiment_of(dataset_of(self.data, self.size), self.model(), forget, self._protocol(), self.samples)
        training = TrainingSpec(epochs=self.shadow_epochs, schedule="onecycle")
        evaluation = made.evaluation.model_copy(update={"shadows": self.shadows > 0})
        return made.model_copy(update={"training": training, "evaluation": evaluation})

    def _protocol(self) -> Any:
        if self.budgets and self.norm:
            raise RubError(f"--norm {self.norm}: --budgets gives budgets already; give one of them")
        budgets = [Budget.of(given) for given in self.budgets or NORMS.get(self.norm or "", ())]
        changes: dict[str, Any] = {"shadows_per_seed": self.shadows} if self.shadows else {}
        searched = [budget.given for budget in budgets if budget.kind != "corruption"]
        corrupting = [budget.given for budget in budgets if budget.kind == "corruption"]
        if searched:
            try:
                given = protocol_of(self.protocol, self.task, ClassificationProtocol)
            except ValueError as error:
                raise RubError(f"audit: protocol = {self.protocol!r}: {error}") from None
            changes["attacks"] = {name: {"budgets": searched} for name in given.attacks}
        if corrupting:
            changes.setdefault("attacks", {})["corruptions"] = {"runs": ["corruptions"], "budgets": corrupting}
        return {"name": self.protocol, **changes} if changes else self.protocol

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
            return {"arch": arch, **given, **{name: read_yaml(value, f"--parameters {name}") for name, value in pairs}}
        except ValueError:
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
        from rub.models.files import weights_file

        weights = {name: getattr(self, name) for name in ("original", "unlearned", "retrained")}
        found = existing(weights, "a checkpoint (.safetensors, .pt, .pth, .pth.tar, .th)", folders=True)
        return FromFiles({name: weights_file(path) for name, path in found.items()})


def experiment_of(
    dataset: Mapping[str, Any], model: Mapping[str, Any], forget: Mapping[str, Any], protocol: Any, samples: int
) -> ClassificationExperiment:
    """The experiment that measures an audit's models: a forget set, under a protocol, without shadow models."""
    counts = {"attack_samples": samples, "control_samples": max(samples // 2, 5), "retain_samples": 5000}
    fields = {
        "task": "classification",
        "dataset": dataset,
        "model": model,
        "forget": forget,
        "protocol": protocol,
        "evaluation": {**counts, "shadows": False},
    }
    experiment = validated(ClassificationExperiment, fields)
    if experiment.protocol.radius is None:
        raise RubError(
            f"audit: protocol {experiment.protocol.name} searches no radii: give it a 'radius' (rub-audit-2)"
        )
    return experiment


SIGNALS = ("mia_population", "boundary", "mia_rmia", "mia_lira")  # AUCs that tell forgotten from unseen images
MEMBERSHIP = ("mia_svc", "mia_population", "mia_rmia", "mia_lira")
LAYERS = {  # metric -> how much it has to differ between original and retrained model to tell anything
    "head_refit": MARGIN,
    "probe_balanced": MARGIN,
    "prototypes": MARGIN,
    "relearn": 1.0,
    "relearn_retain": 1.0,
}


def figures_of(rows: Rows) -> Figures | SampleFigures:
    """The figures behind the verdict, from an audit's rows."""
    if rows.records[0].scenario == "samples":
        return _sample_figures(rows)
    measured = [record for record in rows.records if record.value is not None]
    own = [
        record for record in measured if (record.method, record.metric, record.split) == ("unlearned", "ua", "forget")
    ]
    attacked = [record for record in own if record.attack == rows.attack]
    layers = {metric: layer for metric in ("log_odds_auc", "transplant", *LAYERS) if (layer := _layer(rows, metric))}
    kept, _, normalisation = rows.record("unlearned", "own_radius", "forget").setting.partition(" kept classes, ")
    return Figures(
        accuracy={record.method: float(record.value or 0) for record in measured if record.metric == "ta"},
        chance=1 / int(kept),
        known=rows.rate("original", "ua", "forget"),
        clean=rows.rate("unlearned", "ua", "forget"),
        contrast=_contrast(rows),
        attacked={record.budget: rate_of(record) for record in attacked},
        corrupted={record.budget: rate_of(record) for record in own if kind_of(record.budget) == "corruption"},
        converged=bool(attacked) and attacked[-1].converged is True,
        said=rows.rate_or_none("retrained", "ua", "forget"),
        log_odds=layers.pop("log_odds_auc", None),
        transplant=layers.pop("transplant", None),
        transplant_accuracy=next((r.value for r in rows.of("transplant_ta") if r.method == "unlearned"), None),
        layers=tuple(layers.values()),
        membership=tuple(layer for metric in MEMBERSHIP if (layer := _layer(rows, metric))),
        attack=rows.attack,
        normalisation=normalisation,
    )


def _sample_figures(rows: Rows) -> SampleFigures:
    accuracy = {record.method: float(record.value or 0) for record in rows.of("ta")}
    unseen = {role: rows.rate(role, "ua_test", "forget_test") for role in accuracy}
    gap = rows.find("unlearned", "avg_gap", "forget")
    kept, _, _ = rows.record("unlearned", "own_radius", "forget").setting.partition(" ")
    return SampleFigures(
        accuracy=accuracy,
        chance=1 / int(kept),
        recognised={role: rows.rate(role, "ua", "forget") for role in accuracy},
        unseen=unseen,
        signals=tuple(_signal(rows, metric) for metric in SIGNALS if rows.of(metric)),
        gap=gap.value if gap else None,
    )


def _signal(rows: Rows, metric: str) -> Signal:
    found = {record.method: Estimate(*ends_of(record)) for record in rows.of(metric)}
    title = next(declared.title for declared in METRICS if declared.name == metric)
    return Signal(title, found["original"], found["unlearned"], found.get("retrained"))


def concluded(figures: Figures | SampleFigures, budget: str) -> Verdict:
    """The verdict for an audit's figures."""
    if isinstance(figures, SampleFigures):
        return verdict_samples.conclude(figures, budget)
    return verdict.conclude(figures, budget)


def _contrast(rows: Rows) -> Contrast:
    def mean(metric: str) -> Estimate:
        return Estimate(*ends_of(rows.record("unlearned", metric, "forget")))

    return Contrast(
        own=mean("own_radius"),
        other=mean("other_radius"),
        selectivity=mean("selectivity"),
        reached=rows.rate("unlearned", "own_reached", "forget"),
        other_reached=rows.rate("unlearned", "other_reached", "forget"),
        count=rows.record("unlearned", "own_radius", "forget").n,
    )


def _layer(rows: Rows, metric: str) -> Layer | None:
    values = {record.method: record.value for record in rows.of(metric) if record.value is not None}
    if not {"original", "unlearned"} <= values.keys():
        return None
    title = next(declared.title for declared in METRICS if declared.name == metric)
    margin = LAYERS.get(metric, MARGIN)
    return Layer(title, values["original"], values["unlearned"], values.get("retrained"), margin)


def told(figures: Figures | SampleFigures, budget: str) -> Iterator[str]:
    """The figures as lines of text."""
    if isinstance(figures, SampleFigures):
        yield from verdict_samples.told(figures, budget)
        return
    contrast, attack = figures.contrast, figures.attack.upper()
    yield _line("TA, kept classes", *(f"{role} {100 * value:.1f} %" for role, value in figures.accuracy.items()))
    yield _line("UA, clean, original", percent(figures.known))
    yield _line("UA, clean, unlearned", percent(figures.clean))
    if figures.said is not None:
        yield _line("UA, clean, retrained", percent(figures.said))
    for at, rate in figures.attacked.items():
        yield _line(f"UA, {attack} at {at}, unlearned", percent(rate))
    for at, rate in figures.corrupted.items():
        yield _line(f"UA, {at}, unlearned", percent(rate))
    own, other = (f"{2**mean.value:.3g}/255" for mean in (contrast.own, contrast.other))
    yield _line("radius (geometric mean)", f"own class {own}", f"another class {other}")
    chosen = contrast.selectivity
    yield _line("selectivity, log2(other / own)", f"{chosen.value:+.2f} ({chosen.low:+.2f} to {chosen.high:+.2f})")
    for layer in (figures.log_odds, figures.transplant, *figures.layers, *figures.membership):
        if layer is not None:
            values = (("original", layer.original), ("unlearned", layer.unlearned), ("retrained", layer.retrained))
            yield _line(layer.title, *(f"{role} {value:.3f}" for role, value in values if value is not None))
    if figures.normalisation:
        yield figures.normalisation
    if (right := figures.accuracy["original"]) < max(CHANCE, 1.5 * figures.chance):
        yield f"The original is right on {100 * right:.1f} % of the test images, hardly more than by chance;"
        yield "if it was trained on inputs normalised otherwise than by the data's mean and std, give --mean and --std."


def _line(title: str, *values: str) -> str:
    return f"{title:<31} {', '.join(values)}"


AUDIT = Audit(
    request=ClassificationAudit,
    example="--original before.pth --unlearned after.pth --arch resnet18 --data cifar10 --data-root data "
    "--forget-classes 0",
    figures=figures_of,
    conclude=concluded,
    told=told,
    limits=(
        "It is about these images, this search and these budgets: another attack may bring back more.",
        "It says whether a class is recognised, not whether single images were trained on (membership).",
        "One pair of models was measured: another seed of the same method may leave more or less.",
        "That nothing was found is no proof that nothing is left.",
    ),
    modules="rub.tasks.classification.live:audit",
)
