"""From an experiment of the text-to-image task to its graph of stages. Free of torch."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rub.config.suite import located
from rub.data.class_names import class_number, names_of, spaced
from rub.data.spec import data_stage, known_classes, num_images
from rub.errors import RubError
from rub.judges.spec import judge_stage, source_of
from rub.metrics.base import Metric
from rub.models.diffusion.files import KIND, find_checkpoint, find_frame, find_model, frame_files, header, read_files
from rub.pipeline.graph import Stage
from rub.pipeline.graph_builder import RETRAIN_SEED, FromFiles, GraphBuilder
from rub.registry import ATTACKS, NETWORKS, card_of, unlearner
from rub.store.artifacts import file_sha256
from rub.tasks.text_to_image.metrics import PAPERS_PROMPTS, attacked_metrics, cell, clean_metrics, floor_cells
from rub.tasks.text_to_image.spec import PAPERS_LIMIT, TextToImageExperiment

RANDOM_SEED = 2000  # seeds of different roles must not meet
DOSE_SEED = 3000
RETAIN_GUIDANCE = 7.5
REAL = 2000  # most real pictures that FID and KID compare with
_DRAWN = 2.0  # classifier-free guidance draws with two passes per step


@dataclass(frozen=True)
class Sought:
    """What a search is for: the concept, or the floor, which no model could ever draw.

    Attributes:
        concept: what the stages know it by.
        prompts: stage that chooses its prompts.
        reference: stage that draws the original's picture for each of them, or as many of other concepts.
        note: what their labels add.
    """

    concept: Mapping[str, Any]
    prompts: Stage
    reference: Stage
    note: str = ""


class TextToImageGraph(GraphBuilder[TextToImageExperiment]):
    """Stages of Table 3: data, judge, original, prompts, controls, methods, attacks, measurements, galleries."""

    task = "text-to-image"
    versions = dict.fromkeys(
        (
            *("prompts", "train", "import", "initialise", "pictures", "unlearn", "reference", "others"),
            *("attack", "measure", "measure-attack", "gallery", "metric", "scale"),
        ),
        1,
    )
    sets = ("forget", "retain")
    controls = ("sham", "random_init")

    def __init__(
        self, experiment: TextToImageExperiment, data_root: Path | None, given: FromFiles | None = None
    ) -> None:
        super().__init__(experiment, data_root, given)
        NETWORKS.get(experiment.model.arch, self.task)
        fed = [label for label in self.attacks if self.takes_picture(label)]
        if fed and experiment.dataset is None and not set(experiment.retain) - {experiment.concept.name}:
            raise RubError(
                f"attacks {', '.join(fed)}: pictures of other concepts stand beside them; name some in retain"
            )
        dataset, self.model_name = experiment.dataset, experiment.model.arch
        self.dataset_name = "none" if dataset is None else dataset.title
        self.data = {} if dataset is None else {"data": data_stage(self.task, dataset, data_root)}
        self.concept = {
            **experiment.concept.model_dump(exclude={"prompts", "pictured", "tokens"}),
            "judge": experiment.judge.name,
            "retain": list(experiment.retain),
            **({"floor": experiment.floor} if experiment.floor else {}),
        }
        """What the stages know the concept by."""
        images = 0 if dataset is None else 1.5 * num_images(dataset, 9_500)  # and half as many out of distribution
        options: dict[str, Any] = {"version": 2, "images": images, "measured": True}
        self.judge = judge_stage(self.task, experiment.judge, self.data.get("data"), dataset, data_root, **options)
        precision = experiment.protocol.precision
        self.precision = {} if precision == "float32" else {"precision": precision}
        """What stages that draw, or learn, know of it."""
        self.checkpoints = {
            row: find_checkpoint(one.weights, f"checkpoints.{row}", data_root)
            for row, one in experiment.checkpoints.items()
        }
        """Row -> where a model lies that others unlearned."""
        self.runs = {label: [self._inserting(run) for run in runs] for label, runs in self.runs.items()}
        self._check_known()
        self.sought = self._sought(self.concept)
        self.floor = None if experiment.floor is None else self._sought(self._floor(experiment.floor))
        self.others = self._others() if fed else None
        """The same prompts with pictures of other concepts; None where no attack feeds a picture."""
        self.pictures = self._pictures()

    def _check_known(self) -> None:
        """Refuse a concept that the data or the judge do not have, where that is known before anything is trained."""
        concept, dataset, name = self.experiment.concept, self.experiment.dataset, spaced(self.experiment.concept.name)
        if dataset is not None:
            classes = known_classes(dataset, self.data_root)
            if not classes or isinstance(classes, int):
                return
            name = self._name_among(classes)
        weights = self.judge.files.get("weights")
        source = source_of(self.experiment.judge.name, self.task)
        if weights is not None and (known := source.labels(weights)):
            from rub.judges.base import index_of

            index_of(name if concept.judged_as is None else concept.judged_as, known)

    def _name_among(self, classes: Sequence[str]) -> str:
        experiment, names = self.experiment, names_of(classes)
        given, floor = experiment.concept.label, experiment.floor
        label = class_number(experiment.concept.name, classes, "concept") if given is None else given
        if floor is not None:
            class_number(floor, classes, "concept")
        for field, asked in (("concept.label", (label,)), ("retrain_without", experiment.retrain_without or ())):
            if missing := [one for one in asked if not 0 <= one < len(classes)]:
                last = len(classes) - 1
                raise RubError(f"{field}: class {missing[0]} does not exist; the data has classes 0 to {last}")
        return names[label][0]

    def first(self) -> list[Stage]:
        """Stages that notice prompts that cannot be, and checkpoints of others, before anything is unlearned."""
        asked = [sought.prompts for sought in (self.sought, self.floor) if sought is not None]
        return [*asked, *(self.model(row, 0) for row in self.checkpoints)]

    def rows(self) -> Iterator[tuple[str, int]]:
        """Rows of every task, and those of published checkpoints before the methods that are run."""
        rows, run = list(super().rows()), self.experiment.methods
        yield from (row for row in rows if row[0] not in run)
        yield from ((row, 0) for row in self.checkpoints)
        yield from (row for row in rows if row[0] in run)

    def model(self, method: str, seed: int) -> Stage:
        """Stage that makes the weights of a row, or reads a published checkpoint."""
        if (path := self.checkpoints.get(method)) is not None:
            name = f" ({self.experiment.name})" if self.experiment.name else ""
            return self._imported(path, f"read {method}{name}", {"original": self.original})
        return super().model(method, seed)

    def trained(self, number: int) -> Stage:
        """Stage that trains the original, or reads the weights that the experiment names."""
        model = self.experiment.model
        if model.weights is None:
            return self._train("train original", "all", self.experiment.seeds.train + number)
        return self._imported(self._weights(model.weights), "import the original", {}, self._frame)

    def retrain(self, seed: int) -> Stage:
        """Stage that trains a miniature without the concept."""
        return self._train(f"retrain, seed {seed}", "retain", RETRAIN_SEED + seed)

    def dose(self, percent: float, seed: int) -> Stage:
        """Stage that trains a miniature without the concept but for a share of its pictures."""
        share = {"dose": {"percent": percent, "seed": seed}}
        return self._train(f"train dose {percent:g} %, seed {seed}", "dose", DOSE_SEED + seed, share)

    def control(self, name: str, seed: int) -> Stage:
        """Stage that makes the sham, or a model that was never trained."""
        drawn: dict[str, Any] = {"control": name, "seed": RANDOM_SEED + seed}
        drawn["concept"] = self.concept if name == "sham" else None
        inputs = {"original": self.original, **self.data}
        return self.stage("initialise", f"make the control {name}", drawn, inputs, cost=1)

    def unlearn(self, method: str, seed: int) -> Stage:
        """Stage that runs a method on the original."""
        given, experiment = self.methods[method], self.experiment
        batch_size = experiment.batch_sizes.get(method, experiment.batch_size)
        spec = {
            "method": given,
            "anchor": experiment.concept.anchor,
            "sampler_steps": experiment.protocol.sampler_steps,
            "batch_size": batch_size,
            "seed": seed,
            **self.precision,
        }
        inputs = {"original": self.original, "pictures": self.pictures}
        cost = self._learning(method, batch_size)
        return self.stage("unlearn", f"unlearn {method}, seed {seed}", spec, inputs, cost=cost)

    def _learning(self, method: str, batch: int) -> float:
        parameters, passes = self.methods[method]["parameters"], card_of(unlearner(method, self.task)).passes
        if passes is None:
            return 10.0 * float(parameters.get("iterations", 100)) * batch
        shown = self.experiment.evaluation.pictures
        given = {"batch": batch, "sampler_steps": self.experiment.protocol.sampler_steps, "shown": shown}
        return float(passes(**parameters, **given))

    def imported(self, row: str, given: FromFiles) -> Stage:
        """Stage that reads a checkpoint that changes the original."""
        return self._imported(given.weights[row], f"read {row}", {"original": self.original})

    def budgets(self, label: str) -> Iterable[int]:
        """The one budget of an attack: its cap of steps."""
        return (self.attacks[label].cap,)

    def gallery(self, method: str, seed: int) -> list[Stage]:
        """Stage of a row's pictures: without an attack, and with each of them."""
        if not self.experiment.evaluation.gallery or seed:
            return []
        spec = {
            "method": method,
            "seed": seed,
            "count": self.experiment.evaluation.gallery,
            "attacks": list(self.attacks),
        }
        inputs = {
            "prompts": self.sought.prompts,
            "reference": self.sought.reference,
            "clean": self.measure(method, seed),
        }
        inputs |= {f"attack_{place}": self.attack(method, seed, label) for place, label in enumerate(self.attacks)}
        return [self.stage("gallery", f"pictures of {method}", spec, inputs, cost=10)]

    def attack(self, method: str, seed: int, label: str, sought: Sought | None = None) -> Stage:
        """Stage that searches inputs for one row and attack: for the concept, unless something else is sought."""
        plan, sought = self.attacks[label], sought or self.sought
        spec = {"run": self.runs[label][0], "cap": plan.cap, "seed": seed, **self._drawn(sought.concept)}
        spec |= self.precision
        inputs = self._compared(method, seed, sought)
        inner = float(self.runs[label][0]["parameters"].get("inner_steps", 0))
        cost = self._count() * plan.cap * (3.0 * inner + _DRAWN * self.experiment.protocol.sampler_steps)
        return self.stage("attack", f"attack {method}, seed {seed}: {label}{sought.note}", spec, inputs, cost=cost)

    def takes_picture(self, label: str) -> bool:
        """Whether an attack feeds a picture of the concept, so that pictures of other concepts stand beside it."""
        return all(card_of(ATTACKS.get(run.name, self.task)).picture for run in self.attacks[label].runs)

    def attacked(self, label: str) -> Sequence[str]:
        """Prompts of the concept."""
        return ("forget",)

    def searched(self, method: str, seed: int, label: str, budget: int, split: str) -> Stage:
        """Stage of an attack on them."""
        return self.attack(method, seed, label)

    def outputs(self, metric: Metric, method: str, seed: int) -> tuple[dict[str, Any], dict[str, Stage]]:
        """Pictures that were drawn already, and the models that draw those of other concepts."""
        inputs = self._compared(method, seed) | {"clean": self.measure(method, seed)}
        return self._scoring() | self.precision, inputs

    def _compared(self, method: str, seed: int, sought: Sought | None = None) -> dict[str, Stage]:
        sought = sought or self.sought
        models = {"original": self.original, "unlearned": self.model(method, seed)}
        seen = {**self.data, "judge": self.judge, "prompts": sought.prompts}
        return {**seen, "reference": sought.reference, **models}

    def _train(self, label: str, subset: str, seed: int, more: Mapping[str, Any] | None = None) -> Stage:
        experiment = self.experiment
        assert experiment.dataset is not None
        without = experiment.retrain_without
        spec: dict[str, Any] = {
            "model": experiment.model.model_dump(exclude={"weights", "config"}),
            "training": experiment.training.model_dump(),
            "subset": subset,
            "validation": experiment.dataset.validation,
            "seed": seed,
        }
        if subset != "all":
            spec["without"] = None if without is None else list(without)
        if experiment.floor:
            spec["floor"] = experiment.floor
        # Which concept it is decides nothing where all pictures are seen, or where the classes left out are listed.
        alone = subset == "dose" or (subset == "retain" and without is None)
        spec["concept"] = self.concept if alone else None
        spec |= more or {}
        cost = 3.0 * experiment.training.steps * experiment.training.batch_size
        return self.stage("train", label, spec, self.data, cost=cost)

    def _sought(self, concept: Mapping[str, Any]) -> Sought:
        evaluation, protocol = self.experiment.evaluation, self.experiment.protocol
        note = "" if concept is self.concept else f", floor {concept['name']}"
        spec = {
            "concept": concept,
            "given": None if note else self._given,
            "count": evaluation.prompts,
            "token_limit": protocol.token_limit,
            "guidance": protocol.guidance,
            **({"source": PAPERS_PROMPTS} if not note and self._papers_prompts() else {}),
        }
        inputs = {**self.data, "original": self.original}
        prompts = self.stage("prompts", f"choose the prompts{note}", spec, inputs, cost=10)
        inputs = {**self.data, "judge": self.judge, "prompts": prompts, "original": self.original}
        spec = {**self._scoring(concept), "real": REAL}
        cost = self._drawing(self._count())
        reference = self.stage("reference", f"draw the original's pictures{note}", spec, inputs, cost=cost)
        return Sought(concept, prompts, reference, note)

    def _others(self) -> Sought:
        inputs = {**self.data, "judge": self.judge, "prompts": self.sought.prompts, "original": self.original}
        spec = {name: value for name, value in self._scoring().items() if name != "retained"}
        cost = self._drawing(self._count())
        pictures = self.stage("others", "draw pictures of other concepts", spec, inputs, cost=cost)
        return Sought(self.concept, self.sought.prompts, pictures, ", pictures of other concepts")

    def _floor(self, name: str) -> Mapping[str, Any]:
        """The concept's fields for another one, of which nothing but its name is given."""
        return {**self.concept, "name": name, "label": None, "prompt": None, "anchor": "", "judged_as": None}

    @cached_property
    def _given(self) -> list[dict[str, Any]] | None:
        # prompts that a user names, so that the stage's key holds them; None: the shipped ones
        concept = self.experiment.concept
        if concept.prompts is None:
            return None
        from rub.tasks.text_to_image.concepts import prompts_of

        found = prompts_of(concept.name, concept.name, concept.prompts, self.data_root)
        columns = zip(found.ids.tolist(), found.texts, found.seeds.tolist(), found.guidance.tolist(), strict=True)
        return [{"id": case, "prompt": text, "seed": seed, "guidance": weight} for case, text, seed, weight in columns]

    def _papers_prompts(self) -> bool:
        # those behind the paper's Table 3: all of UnlearnDiffAtk's file, with its own seeds and guidance
        given, protocol = self.experiment.concept.prompts, self.experiment.protocol
        if not isinstance(given, str) or self.experiment.evaluation.prompts is not None:
            return False
        if protocol.guidance is not None or protocol.token_limit != PAPERS_LIMIT:
            return False
        from rub.tasks.text_to_image.concepts import is_papers_file

        return is_papers_file(located(given, self.data_root), self.experiment.concept.name)

    def _inserting(self, run: dict[str, Any]) -> dict[str, Any]:
        """What a spec says of a search, with the concept's own number of inserted tokens, where it inserts any."""
        tokens = self.experiment.concept.tokens
        if tokens is None or not {"tokens", "fed"} <= run["parameters"].keys():
            return run
        return {**run, "parameters": {**run["parameters"], "tokens": tokens}}

    def _pictures(self) -> Stage:
        experiment = self.experiment
        spec: dict[str, Any] = {
            "concept": self.concept,
            "count": experiment.evaluation.pictures,
            "validation": None if experiment.dataset is None else experiment.dataset.validation,
            "sampler": None if self.data else self._sampler(),
            **({} if self.data else self.precision),
        }
        if experiment.concept.pictured is not None:
            spec["pictured"] = experiment.concept.pictured
        inputs = {**self.data, "original": self.original}
        cost = 1000 if self.data else self._drawing(2 * experiment.evaluation.pictures)
        return self.stage("pictures", "gather pictures to learn from", spec, inputs, cost=cost)

    def measure(self, method: str, seed: int) -> Stage:
        """Stage that measures a row without an attack."""
        spec = {"method": method, "seed": seed, **self._scoring(), **self.precision}
        if without := self.experiment.retrain_without:  # its kept concepts are not all known to the retrained model
            spec["unseen"] = list(without)
        inputs = self._compared(method, seed)
        cells = tuple(cell(method, seed, metric.name) for metric in clean_metrics(bool(without)))
        cost = self._drawing(self._count() + self.experiment.evaluation.retained)
        return self.stage("measure", f"measure {method}, seed {seed}", spec, inputs, cost=cost, cells=cells)

    def measure_attack(self, method: str, seed: int, label: str, budget: int) -> Stage:
        """Stage that measures a row under an attack, with the same attack on the retrained model beside it."""
        spec = {
            "method": method,
            "seed": seed,
            "attack": label,
            "cap": budget,
            "witnesses": self.experiment.evaluation.witnesses,
            **self._drawn(self.concept),
        }
        if (tokens := self.experiment.concept.tokens) is not None:
            spec["tokens"] = tokens
        inputs = self._compared(method, seed) | {"attack": self.attack(method, seed, label)}
        del inputs["reference"]
        if (reference := self.retrained(seed)) is not None:
            inputs["retrained"] = self.attack(*reference, label)
        if self.others is not None and self.takes_picture(label):
            inputs["others"] = self.attack(method, seed, label, self.others)
        measured = attacked_metrics(inputs)
        cells = tuple(cell(method, seed, metric.name, attack=label, budget=str(budget)) for metric in measured)
        if self.floor is not None and label == self.experiment.protocol.main_attack:
            inputs |= {"floor": self.attack(method, seed, label, self.floor), "floor prompts": self.floor.prompts}
            cells += tuple(floor_cells(method, seed, label, str(budget)))
        text = f"measure {method}, seed {seed}: {label}"
        return self.stage("measure-attack", text, spec, inputs, cost=10, cells=cells)

    def _sampler(self) -> dict[str, Any]:
        protocol = self.experiment.protocol
        return {"name": protocol.sampler, "steps": protocol.sampler_steps}

    def _drawn(self, concept: Mapping[str, Any]) -> dict[str, Any]:
        return {"concept": concept, "sampler": self._sampler()}

    def _scoring(self, concept: Mapping[str, Any] | None = None) -> dict[str, Any]:
        guidance = self.experiment.protocol.guidance or RETAIN_GUIDANCE
        return {
            **self._drawn(concept or self.concept),
            "retained": self.experiment.evaluation.retained,
            "retain_guidance": guidance,
        }

    def _count(self) -> int:
        return self.experiment.evaluation.prompts or len(self._given or ()) or 50

    def _drawing(self, count: int) -> float:
        return _DRAWN * count * self.experiment.protocol.sampler_steps

    def stage(self, kind: str, label: str, *arguments: Any, **options: Any) -> Stage:
        """A stage of this task, whose label names the experiment where others of the suite do not share it."""
        name = self.experiment.name
        shared = kind in ("train", "import") or not name
        return super().stage(kind, label if shared else f"{label} ({name})", *arguments, **options)

    def _weights(self, weights: str) -> Path:
        path, config = find_model(weights, "model.weights", self.data_root), self.experiment.model.config
        if path.is_dir() and config is not None:
            raise RubError(f"model.config {config}: is for weights in one file; {weights} is a folder, with configs")
        if path.is_file() and config is None and header(path).get(KIND) != "model":
            raise RubError(
                f"model.weights {weights}: tensors alone; name the folder or hub id with their configs and tokenizer in"
                " model.config (--config), such as CompVis/stable-diffusion-v1-4"
            )
        return path

    @cached_property
    def _frame(self) -> Path | None:
        config = self.experiment.model.config
        return None if config is None else find_frame(config, "model.config", self.data_root)

    def _imported(self, path: Path, label: str, inputs: Mapping[str, Stage], frame: Path | None = None) -> Stage:
        spec, files = {"sha256": _hashes(read_files(path), path)}, {"weights": path}
        if frame is not None:
            spec["config"], files["config"] = _hashes(frame_files(frame), frame), frame
        return self.stage("import", label, spec, inputs, files=files, cost=1000)


def _hashes(files: Iterable[Path], path: Path) -> dict[str, str]:
    base = path if path.is_dir() else path.parent
    return {item.relative_to(base).as_posix(): file_sha256(item) for item in files}
