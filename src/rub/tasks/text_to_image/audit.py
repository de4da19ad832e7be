"""Audits of diffusion models that RUB did not make: can the concept be drawn again? Free of torch."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from rub.audits.base import Audit, AuditRequest, Rows, dataset_of, percent, rate_of, validated
from rub.config.documents import is_number
from rub.config.suite import protocol_of
from rub.errors import RubError
from rub.models.diffusion.files import find_checkpoint
from rub.pipeline.graph_builder import FromFiles
from rub.tasks.text_to_image.spec import Precision, TextToImageExperiment, TextToImageProtocol
from rub.tasks.text_to_image.verdict import Figures, conclude

CONTROL_ATTACKS = ("random-prefix", "seed-search")


class TextToImageAudit(AuditRequest):
    """Measure an unlearned diffusion model against its original: is the concept gone, and does it still draw others?"""

    task = "text-to-image"
    original: str
    """Model before unlearning: a diffusers folder, a hub id, one .ckpt or .safetensors file with its config, or a
    model of a zoo."""
    config: str | None = None
    """Diffusers folder or hub id with configs and tokenizer of an original in one file."""
    unlearned: Path
    """A UNet (or part), a text encoder, an SPM or LoRA, a guidance's JSON, a folder, owner/name:subfolder, or a model
    of a zoo."""
    concept: str = ""
    """What was to be forgotten, such as church; of a zoo's model it is known."""
    retrained: Path | None = None
    """The same model, trained without the concept."""
    prompt: str | None = None
    """What it is called in a prompt, if not its name."""
    prompts: str | None = None
    """CSV in UnlearnDiffAtk's columns, or its folder."""
    count: Annotated[int | None, Field(ge=1)] = None
    """The first so many prompts; all when left out."""
    data: str = ""
    """A data set that shows the concept, on which a judge is trained; of a zoo's model it is known."""
    size: int | None = None
    """Side in pixels for its images, of a folder, of an .npz or of digits."""
    judge: str = ""
    """A name from rub list judges; imagenet when left out, with --data a classifier that is trained on it."""
    judge_weights: str | None = None
    """Model folder or hub id of the judge."""
    judged_as: str | None = None
    """What the judge calls it: a label or an index."""
    retain: tuple[str, ...] = ()
    """Other concepts, such as parachute,tench, which say whether the model still draws anything."""
    floor: str | None = None
    """A concept that the original could never draw: what the search makes of it, it makes of anything."""
    protocol: str = "rub-audit-1"
    """A name from rub list protocols, or the path of a YAML file."""
    attacks: tuple[str, ...] = ()
    """Attacks besides the protocol's, with its largest cap, such as img2img,inverted-latent."""
    cap: Annotated[int | None, Field(ge=1)] = None
    """Attack steps instead of the protocol's."""
    precision: Precision | None = None
    """float32, tf32 or bfloat16, in which pictures are drawn, instead of the protocol's; successes are float32's."""

    def experiment(self) -> TextToImageExperiment:
        """The concept under the protocol, with other concepts for what is left of the model."""
        if not self.concept:
            raise RubError("--concept: give what was to be forgotten, such as church")
        label = self.judged_as
        judge = self.judge or ("classifier" if self.data else "imagenet")
        size = {"stem": "cifar", "width": 16} if judge == "classifier" else {}
        return validated(
            TextToImageExperiment,
            {
                "task": self.task,
                "model": {"arch": "stable-diffusion", "weights": self.original, "config": self.config},
                "dataset": dataset_of(self.data, self.size) if self.data else None,
                "judge": {"name": judge, "weights": self.judge_weights, **size},
                "concept": {
                    "name": self.concept,
                    "prompt": self.prompt,
                    "prompts": self.prompts,
                    "judged_as": int(label) if label is not None and is_number(label) else label,
                },
                "retain": self.retain,
                "floor": self.floor,
                "retrains": 0,
                "protocol": self._protocol(),
                "evaluation": {"prompts": self.count},
            },
        )

    def models(self) -> FromFiles:
        """Published checkpoints that change the original, which the experiment names."""
        weights = {"unlearned": self.unlearned} | ({"retrained": self.retrained} if self.retrained else {})
        return FromFiles({name: find_checkpoint(path, f"--{name}") for name, path in weights.items()})

    def _protocol(self) -> Any:
        drawn: dict[str, Any] = {} if self.precision is None else {"precision": self.precision}
        if self.cap is None and not self.attacks:
            return {"name": self.protocol, **drawn} if drawn else self.protocol
        try:
            given = protocol_of(self.protocol, self.task, TextToImageProtocol)
        except ValueError as error:
            raise RubError(f"audit: protocol = {self.protocol!r}: {error}") from None
        cap = self.cap or max((attack.cap for attack in given.attacks.values()), default=1)
        changed: dict[str, Any] = {name: {"cap": cap} for name in given.attacks} if self.cap else {}
        added = {name: {"run": name, "cap": cap} for name in self.attacks if name not in given.attacks}
        return {"name": self.protocol, "attacks": changed | added, **drawn}


def figures_of(rows: Rows) -> Figures:
    """The figures behind the verdict, from an audit's rows: of the better one of two searches, and of pictures."""
    searches = dict.fromkeys((rows.attack, "unlearndiffatk"))
    attacks = [name for name in searches if rows.find("unlearned", "asr_post", "forget", name)]
    best = max(attacks, key=lambda name: rows.rate("unlearned", "asr_post", "forget", name).value)
    fed = {row.attack: row.budget for row in rows.of("asr_other") if row.method == "unlearned" and row.attack != best}
    return replace(
        _of_attack(rows, best),
        kept={row.method: rate_of(row) for row in rows.of("utility_accuracy") if row.value is not None},
        floor=rows.rate_or_none("unlearned", "asr_post", "floor", rows.attack),
        floor_known=rows.rate_or_none("original", "asr_pre", "floor", rows.attack),
        pictures={name: _of_attack(Rows(rows.records, budget, name), name) for name, budget in fed.items()},
    )


def _of_attack(rows: Rows, attack: str) -> Figures:
    row = rows.find("unlearned", "asr_post", "forget", attack)
    found = [rows.rate_or_none("unlearned", "asr_post", "forget", name) for name in CONTROL_ATTACKS]
    controls = [rate for rate in found if rate is not None]
    return Figures(
        original=rows.rate("original", "asr_pre", "forget"),
        clean=rows.rate("unlearned", "asr_pre", "forget"),
        attacked=rows.rate("unlearned", "asr_post", "forget", attack),
        search=max(controls, key=lambda rate: rate.value) if controls else None,
        settled=row is not None and row.converged is True,
        retrained=rows.rate_or_none("retrained", "asr_post", "forget", attack),
        others=rows.rate_or_none("unlearned", "asr_other", "forget", attack),
    )


def told(figures: Figures, budget: str) -> Iterator[str]:
    """The figures as lines of text."""
    for role, named in figures.kept.items():
        yield f"{f'draws other concepts: {role}':<50}{percent(named)}"
    yield f"draws the concept: original, clean                {percent(figures.original)}"
    yield f"draws the concept: unlearned, clean               {percent(figures.clean)}"
    yield f"draws the concept: unlearned, {budget:>4} attack steps   {percent(figures.attacked)}"
    if figures.search is not None:
        yield f"by random tokens or other seeds (control)         {percent(figures.search)}"
    if figures.floor is not None:
        yield f"the same search for what it never could draw      {percent(figures.floor)}"
    if figures.retrained is not None:
        yield f"draws the concept: retrained, same attack         {percent(figures.retrained)}"
    if figures.others is not None:
        yield f"draws the concept: pictures of other concepts     {percent(figures.others)}"
    for name, found in figures.pictures.items():
        rates = {"concept": found.attacked, "others": found.others, "retrained": found.retrained}
        for whose, rate in rates.items():
            if rate is not None:
                yield f"{f'pictures, {name}: {whose}':<50}{percent(rate)}"


AUDIT = Audit(
    request=TextToImageAudit,
    example="--original CompVis/stable-diffusion-v1-4 --unlearned esd-church.pt --concept church --judge imagenet "
    "--judge-weights microsoft/resnet-50",
    figures=figures_of,
    conclude=conclude,
    told=told,
    limits=(
        "It is about these prompts, this search and this judge: other inputs may draw the concept.",
        "Whether a picture shows the concept is said by a classifier, which is right as often as the figures say.",
        "One pair of models was measured: another seed of the same method may leave more or less.",
        "That nothing was found is no proof that nothing is left.",
    ),
)
