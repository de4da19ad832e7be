"""The text-to-image task as the pipeline sees it: from an experiment to its graph of stages. Free of torch."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rub.config.suite import located
from rub.data.spec import data_stage
from rub.pipeline.graph import Plan, Stage
from rub.pipeline.runtime import Runtime
from rub.registry import ATTACKS, METHODS, NETWORKS, resolved
from rub.store.artifacts import file_sha256
from rub.tasks.text_to_image.judging import judge_stage
from rub.tasks.text_to_image.metrics import METRICS_DECLARED, cell
from rub.tasks.text_to_image.spec import AttackSpec, TextToImageExperiment

# Version of each stage function; raised when its results change.
VERSIONS = {
    "prompts": 1,
    "train": 1,
    "import": 1,
    "initialise": 1,
    "pictures": 1,
    "unlearn": 1,
    "reference": 1,
    "attack": 1,
    "measure": 1,
    "measure-attack": 1,
    "gallery": 1,
}
RETRAIN_SEED, RANDOM_SEED = 1000, 2000  # seeds of different roles must not meet
RETAIN_GUIDANCE = 7.5
REAL = 2000  # most real pictures that FID and KID compare with
_CLEAN = ("asr_pre", "utility_accuracy", "fid", "kid")
_ATTACKED = ("asr_post", "steps_mean", "steps_median", "gradient_steps_mean")
_DRAWN = 2.0  # classifier-free guidance draws with two passes per step


class TextToImageTask:
    """Table 3: unlearn a concept from a diffusion model, then search prompts that draw it again."""

    name = "text-to-image"
    experiment = TextToImageExperiment
    metrics = METRICS_DECLARED
    reporting = "rub.tasks.text_to_image.report:REPORTING"
    audit = "rub.tasks.text_to_image.audit:audit"
    verify = "rub.tasks.text_to_image.witnesses:verify"
    functions: Mapping[str, str] = {
        "data": "rub.data.splits:read",
        "judge": "rub.tasks.text_to_image.judges:judge",
        "prompts": "rub.tasks.text_to_image.stages:prompts",
        "train": "rub.tasks.text_to_image.stages:train",
        "import": "rub.tasks.text_to_image.stages:import_model",
        "initialise": "rub.tasks.text_to_image.stages:initialise",
        "pictures": "rub.tasks.text_to_image.stages:pictures",
        "unlearn": "rub.tasks.text_to_image.stages:unlearn",
        "reference": "rub.tasks.text_to_image.measure:reference",
        "attack": "rub.tasks.text_to_image.stages:attack",
        "measure": "rub.tasks.text_to_image.measure:measure",
        "measure-attack": "rub.tasks.text_to_image.measure:measure_attack",
        "gallery": "rub.tasks.text_to_image.galleries:gallery",
    }

    def plan(self, experiment: TextToImageExperiment, runtime: Runtime) -> Plan:
        """Return the graph: data, judge, original, controls, methods and seeds, attacks, measurements, galleries."""
        graph = Graph(experiment, runtime.data_root)
        stages = [graph.prompts]  # first: prompts that cannot be are noticed before anything is unlearned
        for method, seed in graph.models():
            stages += graph.measurements(method, seed)
        notes = () if experiment.retrains else ("retrains: 0: no model shows what forgotten is like",)
        return Plan(tuple(stages), graph.common, notes)


class Graph:
    """Builds the stages of one experiment; every stage is a pure function of the experiment."""

    def __init__(self, experiment: TextToImageExperiment, data_root: Path | None) -> None:
        """Validate methods and attacks against the registry, and fingerprint data, prompts and weights.

        Raises:
            RubError: an unknown component or hyperparameter, or data, prompts or weights that are not there.
        """
        experiment.check()
        self.experiment, self.data_root = experiment, data_root
        NETWORKS.get(experiment.model.arch, "text-to-image")
        self.methods = {
            name: resolved(METHODS.get(name, "text-to-image"), given, f"methods.{name}")
            for name, given in experiment.methods.items()
        }
        self.attacks = experiment.protocol.attacks
        self.runs = {
            label: resolved(ATTACKS.get(plan.run.name, "text-to-image"), plan.run.parameters, f"attacks.{label}")
            for label, plan in self.attacks.items()
        }
        dataset = experiment.dataset
        self.data = {} if dataset is None else {"data": data_stage("text-to-image", dataset, data_root)}
        self.concept = {
            **experiment.concept.model_dump(exclude={"prompts"}),
            "judge": experiment.judge.name,
            "retain": list(experiment.retain),
        }
        self.judge = judge_stage("text-to-image", experiment.judge, self.data.get("data"), dataset, data_root)
        self.original = self._original()
        self.prompts = self._prompts()
        self.reference = self._stage(
            "reference",
            "draw the original's pictures",
            {**self._scoring(), "real": REAL},
            {**self._seen(), "original": self.original},
            cost=self._drawing(self._count()),
        )
        self.pictures = self._pictures()
        self.common = {
            "task": "text-to-image",
            "experiment": experiment.name,
            "protocol": experiment.protocol.name,
            "dataset": "none" if dataset is None else dataset.title,
            "model": experiment.model.arch,
        }

    def models(self) -> Iterator[tuple[str, int]]:
        """Yield (method, unlearning seed) of every row: the controls first, each with the seeds that it has."""
        yield "original", 0
        yield from (("retrain", seed) for seed in range(self.experiment.retrains))
        yield "sham", 0
        yield "random_init", 0
        yield from ((name, seed) for name in self.methods for seed in range(self.experiment.seeds.unlearn))

    def model(self, method: str, seed: int) -> Stage:
        """Return the stage that makes the weights of a row."""
        if method == "original":
            return self.original
        if method == "retrain":
            return self._train(f"retrain, seed {seed}", "retain", RETRAIN_SEED + seed)
        if method in ("sham", "random_init"):
            drawn: dict[str, Any] = {"control": method, "seed": RANDOM_SEED + seed}
            drawn["concept"] = self.concept if method == "sham" else None
            inputs = {"original": self.original, **self.data}
            return self._stage("initialise", f"make the control {method}", drawn, inputs, cost=1)
        given, experiment = self.methods[method], self.experiment
        batch_size = experiment.batch_sizes.get(method, experiment.batch_size)
        spec = {
            "method": given,
            "anchor": experiment.concept.anchor,
            "sampler_steps": experiment.protocol.sampler_steps,
            "batch_size": batch_size,
            "seed": seed,
        }
        steps = float(given["parameters"].get("iterations", 100))
        inputs = {"original": self.original, "pictures": self.pictures}
        cost = 10 * steps * batch_size
        return self._stage("unlearn", f"unlearn {method}, seed {seed}", spec, inputs, cost=cost)

    def measurements(self, method: str, seed: int) -> list[Stage]:
        """Return the measuring stages of one row: clean, one for each attack, and a gallery."""
        clean = self._measure(method, seed)
        stages = [clean, *(self._measure_attack(method, seed, label, plan) for label, plan in self.attacks.items())]
        if self.experiment.evaluation.gallery and seed == 0:
            stages.append(self._gallery(method, seed, clean))
        return stages

    def attack(self, method: str, seed: int, label: str) -> Stage:
        """Return the stage that searches prompts for one row and attack."""
        plan = self.attacks[label]
        spec = {"run": self.runs[label], "cap": plan.cap, "seed": seed, **self._drawn()}
        inputs = {
            **self._seen(),
            "original": self.original,
            "reference": self.reference,
            "unlearned": self.model(method, seed),
        }
        inner = float(self.runs[label]["parameters"].get("inner_steps", 0))
        cost = self._count() * plan.cap * (3.0 * inner + _DRAWN * self.experiment.protocol.sampler_steps)
        return self._stage("attack", f"attack {method}, seed {seed}: {label}", spec, inputs, cost=cost)

    def retrained(self, seed: int) -> tuple[str, int] | None:
        """Return the retrained row that the rows of an unlearning seed are compared with; None without one."""
        count = self.experiment.retrains
        return ("retrain", seed % count) if count else None

    def _seen(self) -> dict[str, Stage]:
        return {**self.data, "judge": self.judge, "prompts": self.prompts}

    def _original(self) -> Stage:
        model = self.experiment.model
        if model.weights is None:
            return self._train("train original", "all", self.experiment.seeds.train)
        return imported(model.weights, "import the original", self.data_root, {})

    def _train(self, label: str, subset: str, seed: int) -> Stage:
        experiment = self.experiment
        assert experiment.dataset is not None
        without = experiment.retrain_without
        spec: dict[str, Any] = {
            "model": experiment.model.model_dump(exclude={"weights"}),
            "training": experiment.training.model_dump(),
            "subset": subset,
            "validation": experiment.dataset.validation,
            "seed": seed,
        }
        if subset == "retain":
            spec["without"] = None if without is None else list(without)
        # Which concept it is decides nothing where all pictures are seen, or where the classes left out are listed.
        alone = subset == "retain" and without is None
        spec["concept"] = self.concept if alone else None
        cost = 3.0 * experiment.training.steps * experiment.training.batch_size
        return self._stage("train", label, spec, self.data, cost=cost)

    def _prompts(self) -> Stage:
        evaluation, protocol = self.experiment.evaluation, self.experiment.protocol
        spec = {
            "concept": self.concept,
            "given": given_prompts(self.experiment.concept.name, self.experiment.concept.prompts, self.data_root),
            "count": evaluation.prompts,
            "token_limit": protocol.token_limit,
            "guidance": protocol.guidance,
        }
        return self._stage("prompts", "choose the prompts", spec, {**self.data, "original": self.original}, cost=10)

    def _pictures(self) -> Stage:
        experiment = self.experiment
        spec = {
            "concept": self.concept,
            "count": experiment.evaluation.pictures,
            "validation": None if experiment.dataset is None else experiment.dataset.validation,
            "sampler": None if self.data else self._sampler(),
        }
        inputs = {**self.data, "original": self.original}
        return self._stage("pictures", "gather pictures to learn from", spec, inputs, cost=1000)

    def _measure(self, method: str, seed: int) -> Stage:
        spec = {"method": method, "seed": seed, **self._scoring()}
        metrics = list(_CLEAN)
        if without := self.experiment.retrain_without:  # its kept concepts are not all known to the retrained model
            spec["unseen"] = list(without)
            metrics.append("utility_seen")
        inputs = {
            **self._seen(),
            "original": self.original,
            "reference": self.reference,
            "unlearned": self.model(method, seed),
        }
        cells = tuple(cell(method, seed, metric) for metric in metrics)
        cost = self._drawing(self._count() + self.experiment.evaluation.retained)
        return self._stage("measure", f"measure {method}, seed {seed}", spec, inputs, cost=cost, cells=cells)

    def _measure_attack(self, method: str, seed: int, label: str, plan: AttackSpec) -> Stage:
        spec = {
            "method": method,
            "seed": seed,
            "attack": label,
            "cap": plan.cap,
            "witnesses": self.experiment.evaluation.witnesses,
            **self._drawn(),
        }
        inputs = {
            "judge": self.judge,
            **self.data,
            "prompts": self.prompts,
            "original": self.original,
            "unlearned": self.model(method, seed),
            "attack": self.attack(method, seed, label),
        }
        metrics = list(_ATTACKED)
        if (reference := self.retrained(seed)) is not None:
            inputs["retrained"] = self.attack(*reference, label)
            metrics.append("residual_knowledge")
        cells = tuple(cell(method, seed, metric, attack=label, budget=str(plan.cap)) for metric in metrics)
        text = f"measure {method}, seed {seed}: {label}"
        return self._stage("measure-attack", text, spec, inputs, cost=10, cells=cells)

    def _gallery(self, method: str, seed: int, clean: Stage) -> Stage:
        spec = {
            "method": method,
            "seed": seed,
            "count": self.experiment.evaluation.gallery,
            "attacks": list(self.attacks),
        }
        inputs = {"prompts": self.prompts, "reference": self.reference, "clean": clean}
        inputs |= {f"attack_{place}": self.attack(method, seed, label) for place, label in enumerate(self.attacks)}
        return self._stage("gallery", f"pictures of {method}", spec, inputs, cost=10)

    def _sampler(self) -> dict[str, Any]:
        protocol = self.experiment.protocol
        return {"name": protocol.sampler, "steps": protocol.sampler_steps}

    def _drawn(self) -> dict[str, Any]:
        return {"concept": self.concept, "sampler": self._sampler()}

    def _scoring(self) -> dict[str, Any]:
        guidance = self.experiment.protocol.guidance or RETAIN_GUIDANCE
        return {**self._drawn(), "retained": self.experiment.evaluation.retained, "retain_guidance": guidance}

    def _count(self) -> int:
        return self.experiment.evaluation.prompts or 50

    def _drawing(self, count: int) -> float:
        return _DRAWN * count * self.experiment.protocol.sampler_steps

    def _stage(
        self,
        kind: str,
        label: str,
        spec: Mapping[str, Any],
        inputs: Mapping[str, Stage],
        *,
        cost: float,
        cells: tuple[Mapping[str, Any], ...] = (),
    ) -> Stage:
        name = self.experiment.name
        shared = kind in ("train", "import")  # by the experiments of a suite
        told = label if shared or not name else f"{label} ({name})"
        return Stage("text-to-image", kind, VERSIONS[kind], told, spec, inputs, cost=cost, cells=cells)


def imported(weights: str, label: str, data_root: Path | None, inputs: Mapping[str, Stage]) -> Stage:
    """Return the stage that reads a model that someone else made; its key holds the hash of every file.

    Args:
        weights: a file, a diffusers folder (also below the data root), or a hub id whose files are in the hub's cache.
        label: what people see.
        data_root: folder of data and weights, or None.
        inputs: ``original`` for a checkpoint that changes one.

    Raises:
        RubError: there is no such file or folder, and the hub's cache does not hold it.
    """
    path = _found(weights, data_root)
    files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
    base = path if path.is_dir() else path.parent
    spec = {"sha256": {item.relative_to(base).as_posix(): file_sha256(item) for item in files}}
    version = VERSIONS["import"]
    return Stage("text-to-image", "import", version, label, spec, inputs, files={"weights": path}, cost=1000)


def _found(weights: str, data_root: Path | None) -> Path:
    """Return where weights are: a path, a path below the data root, or a snapshot in the hub's cache."""
    if (place := located(weights, data_root)).exists():
        return place
    from rub.models.diffusion.hub import snapshot

    return snapshot(weights)


def given_prompts(
    name: str, given: str | tuple[str, ...] | None, data_root: Path | None
) -> list[dict[str, Any]] | None:
    """Return the rows of prompts that a user names, so that the stage's key holds them; None: the shipped ones.

    Raises:
        RubError: no such file, or one without prompts.
    """
    if given is None:
        return None
    from rub.tasks.text_to_image.concepts import prompts_of

    found = prompts_of(name, name, given, data_root)
    columns = zip(found.ids.tolist(), found.texts, found.seeds.tolist(), found.guidance.tolist(), strict=True)
    return [{"id": case, "prompt": text, "seed": seed, "guidance": weight} for case, text, seed, weight in columns]


TASK = TextToImageTask()
