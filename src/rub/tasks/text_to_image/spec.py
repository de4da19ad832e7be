"""The specs of a text-to-image experiment and its protocols: every choice that the paper leaves open, named."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from rub.config.suite import Component, Experiment, Frozen, Protocol
from rub.data.class_names import slug
from rub.data.spec import DatasetSpec
from rub.errors import RubError
from rub.judges.spec import JudgeSpec
from rub.metrics.dose import DOSES, dose_of
from rub.registry import CONTROLS, METHODS, NAME

PAPERS_LIMIT = 60  # of 77 tokens; nudity.csv has 118 prompts that keep it, the paper's N

Precision = Literal["float32", "tf32", "bfloat16"]


class ModelSpec(Frozen):
    """Which diffusion model."""

    bare_field = "arch"
    arch: str
    """A name of `rub list models --task text-to-image`; ``stable-diffusion`` reads `weights`."""
    weights: str | None = None
    """A diffusers folder (also below the data root), one file, or a hub id; needed by ``stable-diffusion``."""
    config: str | None = Field(None, exclude_if=lambda config: config is None)
    """A diffusers folder or hub id with configs and tokenizer, for `weights` in one file of CompVis's layout, which has
    none; its weights are not read."""
    length: int = Field(32, ge=8, le=77)
    """Tokens that a prompt is padded to; of a miniature."""
    vocabulary: int = Field(1500, ge=514, le=49408)
    """Most tokens of a miniature's tokenizer, which is trained on its captions and on the prompts of all concepts."""


class TrainingSpec(Frozen):
    """How miniatures are trained: AdamW on the noise-prediction loss, captions dropped for classifier-free guidance."""

    steps: int = Field(2000, ge=1)
    lr: float = Field(2e-3, gt=0)
    """Peak learning rate; linear warm-up over the first twentieth, then half a cosine."""
    batch_size: int = Field(64, ge=2)
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of captions replaced by the empty prompt."""
    ema: float = Field(0.995, ge=0, lt=1)
    """Decay of the running mean of the weights, which is what is kept."""
    autoencoder_steps: int = Field(1000, ge=0)
    """Steps of the autoencoder, for models that have one."""
    autoencoder_lr: float = Field(4e-3, gt=0)
    autoencoder_batch: int = Field(32, ge=2)
    """Pictures per step of the autoencoder, which costs far more per picture than the UNet on its latents."""
    mirror: bool | None = None
    """Mirror half of the pictures; as the data set allows when left out."""
    precision: Precision = "float32"


class ConceptSpec(Frozen):
    """What is to be forgotten."""

    bare_field = "name"
    name: str
    """Names the shipped prompts and words: ``church``, ``garbage-truck``, ``nudity``, ``parachute``, ``tench``, or any
    class of the data set."""
    label: int | None = Field(None, ge=0)
    """The class of the data set that shows it; found by name when left out."""
    prompt: str | None = None
    """What it is called in a prompt; the first word of its class, or its name, when left out."""
    anchor: str = ""
    """The prompt that methods may map it to; ``""`` is the empty prompt."""
    prompts: str | tuple[str, ...] | None = None
    """Evaluation prompts: a CSV file or folder in UnlearnDiffAtk's columns, or a list; the shipped ones if left out."""
    judged_as: int | str | None = None
    """What the judge calls it, where that is not `label`: an index or a label of its own."""
    pictured: str | None = Field(None, exclude_if=lambda words: words is None)
    """What pictures of it are asked for as, "a photo of ...", where methods learn from pictures and the model draws
    them; `prompt` when left out."""
    tokens: int | None = Field(None, ge=1, le=75, exclude_if=lambda count: count is None)
    """K, words of the vocabulary that attacks insert into its prompts (those with ``fed``), in place of their own K:
    UnlearnDiffAtk has 3 for objects and 5 for nudity."""

    @field_validator("prompts")
    @classmethod
    def _some(cls, value: Any) -> Any:
        if isinstance(value, tuple) and not value:
            raise ValueError("should hold at least one prompt")
        return value


class CheckpointSpec(Frozen):
    """A model that others unlearned, as a row of the table."""

    bare_field = "weights"
    weights: str
    """Its checkpoint, as ``rub audit`` takes it: a file or folder (also below the data root), or owner/name:place."""
    method: str | None = Field(None, exclude_if=lambda method: method is None)
    """The method of RUB that it is a model of; needed where the row has that method's name."""


class AttackSpec(Frozen):
    """One attacked column: a search with a cap of attack steps."""

    run: Component
    cap: int = Field(100, ge=1)
    """Attack steps, each ends with a picture and a look of the judge; a failure counts as the cap."""

    @property
    def runs(self) -> tuple[Component, ...]:
        """The one search."""
        return (self.run,)


class TextToImageProtocol(Protocol):
    """The choices behind a number of this task."""

    attacks: dict[str, AttackSpec]
    sampler: Literal["ddim", "lms"] = "lms"
    sampler_steps: int = Field(50, ge=1, le=1000)
    token_limit: int = Field(PAPERS_LIMIT, ge=4, le=77)
    """Prompts with more tokens, BOS and EOS included, are dropped before both columns (UnlearnDiffAtk: 60 of 77); with
    a shorter text encoder, those that leave an attack less than 8 tokens."""
    guidance: float | None = Field(None, ge=1)
    """Classifier-free guidance of every prompt; each prompt's own when left out."""
    precision: Precision = Field("float32", exclude_if=lambda precision: precision == "float32")
    """In which pictures are drawn and methods compute, weights stay float32; the original's pictures and every success
    are drawn in float32."""


class Evaluation(Frozen):
    """How many prompts and pictures the measurements use; N stands in every record."""

    prompts: int | None = Field(None, ge=1)
    """The first so many prompts of the concept; all when left out."""
    retained: int = Field(100, ge=2)
    """Pictures of other concepts, drawn by every model: judged accuracy, FID, KID."""
    pictures: int = Field(200, ge=8)
    """Pictures of the concept, and as many of others, that methods may learn from: of the data set, or drawn by the
    original model where there is none."""
    gallery: int = Field(6, ge=0, le=32)
    """Prompts in each gallery; 0 makes none."""
    witnesses: int | None = Field(None, ge=0)
    """Prompts that brought the concept back, kept as witnesses per cell; all when left out."""


class TextToImageExperiment(Experiment):
    """One column group of Table 3: a model, a concept, and the methods to measure on it; named by the concept."""

    task: Literal["text-to-image"]
    dataset: DatasetSpec | None = None
    """What a miniature is trained on; none for Stable Diffusion."""
    model: ModelSpec
    training: TrainingSpec = TrainingSpec()
    judge: JudgeSpec = JudgeSpec()
    concept: ConceptSpec
    retain: tuple[str, ...] = ()
    """Names of other concepts for the retain side, where there is no data set; the data set's other classes else."""
    floor: str | None = Field(None, exclude_if=lambda floor: floor is None)
    """A concept that no model of the experiment could ever draw, searched for as the concept is: what a search makes of
    it, it makes of anything. A class of the data set is left out of all training."""
    retrains: int = Field(1, ge=0, le=100)
    """Miniatures trained without the concept: the reference for "forgotten"."""
    retrain_without: tuple[int, ...] | None = None
    """Classes that they never see, the concept's among them; the concept's own class when left out. Experiments that
    name the same classes share their retrained models."""
    batch_size: int = Field(8, ge=1)
    """Pictures per step of an unlearning method."""
    batch_sizes: dict[str, int] = Field(default_factory=dict)
    """Method -> pictures per step, where it is not `batch_size`: upstream's published settings go with theirs."""
    evaluation: Evaluation = Evaluation()
    checkpoints: dict[str, CheckpointSpec] = Field(default_factory=dict, exclude_if=lambda rows: not rows)
    """Row -> a published checkpoint that changes the original: measured as methods are, with no training."""
    protocol: TextToImageProtocol

    @model_validator(mode="before")
    @classmethod
    def _named_by_concept(cls, value: Any) -> Any:
        if isinstance(value, dict) and not value.get("name"):
            concept = value.get("concept")
            name = concept.get("name") if isinstance(concept, dict) else concept
            return {**value, "name": name} if isinstance(name, str) else value
        return value

    def check(self) -> None:
        """Raise `RubError` where a control is named as a method, or fields contradict each other."""
        super().check()
        foreign = self.model.arch == "stable-diffusion"
        if foreign and self.model.weights is None:
            raise RubError("model.weights: stable-diffusion needs a diffusers folder or a hub id")
        if self.model.config is not None and self.model.weights is None:
            raise RubError("model.config: is for weights in one file; give model.weights too, or leave it out")
        if not foreign and self.dataset is None:
            raise RubError(f"dataset: the miniature {self.model.arch} is trained on one; give dataset, such as digits")
        if (foreign or self.model.weights is not None) and (self.retrains or self.doses):
            raise RubError(
                "model.weights: an imported original has no training to repeat; set retrains: 0, and no doses"
            )
        if self.floor is not None and slug(self.floor) == slug(self.concept.name):
            raise RubError(f"floor = '{self.floor}': is the concept itself; should be one that no model ever saw")
        if self.doses and not self.retrains:
            raise RubError("doses: the scale begins with the retrained model; set retrains to 1 or more")
        for row, given in self.checkpoints.items():
            self._check_row(row, given)

    def _check_row(self, row: str, given: CheckpointSpec) -> None:
        where, methods = f"checkpoints.{row}", {entry.name for entry in METHODS.entries(self.task)}
        if not NAME.fullmatch(row):
            raise RubError(f"{where}: should be letters, digits, dots, dashes and underscores, 64 at most")
        if row in (DOSES, *(entry.name for entry in CONTROLS.entries(self.task))) or dose_of(row) is not None:
            raise RubError(f"{where}: is the name of a control; call the row something else, such as {row}-file")
        if row in self.methods:
            raise RubError(f"{where}: the experiment trains {row} too; call the row something else, such as {row}-file")
        if given.method is not None:
            METHODS.get(given.method, self.task)
        if row in methods and given.method != row:
            raise RubError(
                f"{where}: is the name of a method, which seems to have been run; call the row something else, such as"
                f" {row}-file, or say so: {{weights: {given.weights}, method: {row}}}"
            )
