"""The stage functions that make models and probes: prompts, train, import, initialise, images, unlearn, attack."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rub.data.class_names import class_number, names_of
from rub.data.samples import ImageDataset, Samples
from rub.data.splits import input_dataset, trainable
from rub.errors import RubError
from rub.judges.stage import load_judge
from rub.models.diffusion.checkpoints import load_model, load_unlearned, save_model, save_unlearned
from rub.models.diffusion.mini import build_mini, reinitialised
from rub.models.diffusion.model import Diffusion, frozen
from rub.models.diffusion.sampling import Sampler, initial_latents, sample
from rub.models.diffusion.tokenizer import make_tokenizer, train_vocabulary
from rub.models.weights import freeze
from rub.pipeline.execution import told_in
from rub.pipeline.graph import Stage
from rub.pipeline.rng import seeded
from rub.pipeline.runtime import Runtime
from rub.registry import ATTACKS, unlearner
from rub.store.artifacts import Artifact
from rub.tasks.text_to_image.attacks.base import AttackContext, Budget, Candidates, Probes, Prompts
from rub.tasks.text_to_image.attacks.harness import NOTHING, Drawing, make_target, run_attack
from rub.tasks.text_to_image.captions import Captioner, vocabulary_texts
from rub.tasks.text_to_image.concepts import prompts_of, within
from rub.tasks.text_to_image.context import Side, UnlearnContext
from rub.tasks.text_to_image.settings import ResolvedConcept, resolve_concept
from rub.tasks.text_to_image.training import encoded, fit
from rub.training.batches import Augmentation
from rub.training.device import reduced

Inputs = Mapping[str, Artifact]
MODEL = "model.safetensors"
SHARE = 8  # of a runtime's batch size, for a prompt that is searched or a picture that is learned from
ROOM = 8  # tokens left free for an attack, where the text encoder is shorter than the protocol thinks


def train(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Train a miniature from scratch: on all classes, without some (the retrained reference), or with a dose of one."""
    spec, dataset = stage.spec, input_dataset(inputs, runtime)
    training, given, names = spec["training"], spec["model"], names_of(dataset.classes)
    samples = _seen(trainable(dataset, spec["validation"]), spec, inputs, runtime)
    words = train_vocabulary(vocabulary_texts(names), given["vocabulary"])
    channels, side, width = dataset.train.shape
    if width != side:
        raise RubError(f"data: images of {width} x {side} pixels; a miniature takes square ones")
    tokenizer = make_tokenizer(*words, given["length"])
    model = build_mini(given["arch"], channels=channels, size=side, tokenizer=tokenizer, seed=spec["seed"])
    mirror = dataset.flip if training["mirror"] is None else training["mirror"]
    context = UnlearnContext(
        seed=spec["seed"],
        batch_size=training["batch_size"],
        augmentation=Augmentation(0, mirror),
        precision=training["precision"],
        **runtime.shared(),
    )
    fit(model.to(runtime.device), samples, Captioner(names).captions, context, training)
    save_model(model, out / MODEL)


def _seen(samples: Samples, spec: Mapping[str, Any], inputs: Inputs, runtime: Runtime) -> Samples:
    """The training images of a subset: ``all``, the ``retain`` set, or that and a ``dose`` of the concept's.

    A dose of p percent holds at least one image, and all of any smaller dose of the same seed.
    """
    names = input_dataset(inputs, runtime).classes
    if "floor" in spec:
        samples = samples.select(samples.labels != class_number(spec["floor"], names, "concept"))
    if spec["subset"] == "all":
        return samples
    own = [] if spec["concept"] is None else [resolve_concept(spec["concept"], inputs, runtime).label]
    kept = ~torch.isin(samples.labels, torch.tensor(spec["without"] or own))
    if spec["subset"] == "dose":
        rows = torch.isin(samples.labels, torch.tensor(own)).nonzero()[:, 0]
        count = max(round(spec["dose"]["percent"] / 100 * len(rows)), 1)
        kept[rows[torch.randperm(len(rows), generator=seeded(spec["dose"]["seed"], "dose"))[:count]]] = True
    return samples.select(kept)


def import_model(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Read a model that someone else made, whole or as a change of the original."""
    path = stage.files["weights"]
    if "original" in inputs:
        made = load_unlearned(model_of(inputs, "original", runtime), path)
        keep_unlearned(model_of(inputs, "original", runtime), made, out)
    else:
        save_model(load_model(path, stage.files.get("config")), out / MODEL)


def initialise(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Make a control: a UNet that was never trained, or the sham."""
    original = model_of(inputs, "original", runtime)
    if stage.spec["control"] == "random_init":
        made = reinitialised(original, stage.spec["seed"])
    else:
        made = muted(original, resolve_concept(stage.spec["concept"], inputs, runtime))
    keep_unlearned(original, made, out)


def muted(original: Diffusion, facts: ResolvedConcept) -> Diffusion:
    """Sham: the original, whose text encoder no longer hears the words of the concept's own name.

    The embeddings of those tokens of the name that no retained name shares become that of the padding. Nothing is
    unlearned: every other word for the concept works as before.
    """
    made = frozen(original)
    special = set(made.tokenizer.all_special_ids)
    others = _tokens(made, [facts.anchor, *facts.retained_names])
    own = _tokens(made, [facts.prompt]) - others - special
    with torch.no_grad():
        made.token_embeddings[sorted(own)] = made.token_embeddings[made.tokenizer.eos_token_id].clone()
    return made


def _tokens(model: Diffusion, texts: Sequence[str]) -> set[int]:
    return set(model.tokenize(texts).flatten().tolist())


def prompts(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Write down the evaluation prompts, and which were dropped because they are too long."""
    spec, facts = stage.spec, resolve_concept(stage.spec["concept"], inputs, runtime)
    model = model_of(inputs, "original", runtime)
    found = prompts_of(facts.name, facts.prompt, None, None) if spec["given"] is None else _listed(spec["given"])
    limit = min(spec["token_limit"], model.length - ROOM)
    kept, dropped = within(found, model.tokenizer, limit)
    kept = kept.select(list(range(min(len(kept), spec["count"] or len(kept)))))
    guidance = kept.guidance if spec["guidance"] is None else torch.full((len(kept),), float(spec["guidance"]))
    rows = {
        "ids": kept.ids.tolist(),
        "texts": list(kept.texts),
        "seeds": kept.seeds.tolist(),
        "guidance": guidance.tolist(),
        "given": len(found),
        "limit": limit,
        "dropped": list(dropped),
        **({"source": spec["source"]} if "source" in spec else {}),
    }
    (out / "prompts.json").write_text(json.dumps(rows), encoding="utf-8")


def _listed(rows: list[dict[str, Any]]) -> Prompts:
    # prompts that a user gave, as the plan wrote them into the spec
    ids, texts, seeds, weights = ([row[name] for row in rows] for name in ("id", "prompt", "seed", "guidance"))
    return Prompts(torch.tensor(ids), tuple(texts), torch.tensor(seeds), torch.tensor(weights, dtype=torch.float32))


def prompts_in(artifact: Artifact) -> Prompts:
    """Prompts as `prompts` wrote them down."""
    rows = artifact.json("prompts.json")
    ids, seeds = torch.tensor(rows["ids"]), torch.tensor(rows["seeds"])
    return Prompts(ids, tuple(rows["texts"]), seeds, torch.tensor(rows["guidance"], dtype=torch.float32))


def method_images(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Write down the images that methods may learn from: of the data set, or drawn by the original model."""
    spec, facts = stage.spec, resolve_concept(stage.spec["concept"], inputs, runtime)
    model, count = model_of(inputs, "original", runtime), spec["count"]
    for side in ("forget", "retain"):
        names = [facts.prompt] if side == "forget" else list(facts.retained_names)
        if "data" in inputs:
            samples = _pool(input_dataset(inputs, runtime), spec["validation"], facts, side)
            order = torch.randperm(len(samples), generator=seeded(0, f"pictures-{side}"))[:count]
            chosen = samples.select(order)
            latents = encoded(model, chosen, mirror=False)[0]
            captions = [f"a photo of {facts.names[label][0]}" for label in chosen.labels.tolist()]
        else:
            shown = [spec.get("pictured", facts.prompt)] if side == "forget" else names
            captions = [f"a photo of {shown[place % len(shown)]}" for place in range(count)]
            with reduced(spec.get("precision", "float32"), model.device):
                latents = _sampled(model, captions, Sampler(**spec["sampler"]), runtime)
        np.save(out / f"{side}_latents.npy", latents.numpy())
        facts_ = {"prompts": names, "captions": captions}
        (out / f"{side}.json").write_text(json.dumps(facts_), encoding="utf-8")


def _pool(dataset: ImageDataset, validation: float, facts: ResolvedConcept, side: str) -> Samples:
    # training images of the concept, or of the retained classes
    samples = trainable(dataset, validation)
    labels = torch.tensor([facts.label] if side == "forget" else list(facts.retained_classes))
    return samples.select(torch.isin(samples.labels, labels))


def _sampled(model: Diffusion, captions: list[str], sampler: Sampler, runtime: Runtime) -> Tensor:
    # latents of images that the model draws of these captions; the seed of each is its place
    parts, size = [], batch_of(runtime)
    for start in range(0, len(captions), size):
        texts = captions[start : start + size]
        noise = initial_latents(model, torch.arange(start, start + len(texts)))
        weights = torch.full((len(texts),), 7.5, device=model.device)
        with torch.no_grad():
            parts.append(sample(model, model.context(texts), model.context([""]), noise, weights, sampler).cpu())
        runtime.progress(start + len(texts), len(captions), "drawing")
    return torch.cat(parts)


def side_of(inputs: Inputs, side: str) -> Side:
    """Data to forget (``forget``) or to keep (``retain``), as `method_images` wrote it down."""
    artifact = inputs["pictures"]
    facts = artifact.json(f"{side}.json")
    latents = torch.from_numpy(np.load(artifact.file(f"{side}_latents.npy"), allow_pickle=False))
    return Side(tuple(facts["prompts"]), latents, tuple(facts["captions"]))


def unlearn(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Run an unlearning method on a private copy of the original, and keep what it changed in a published format.

    A step holds the activations of at most `batch_of` pictures.
    """
    spec = stage.spec
    original = model_of(inputs, "original", replace(runtime, device="cpu"))  # only compared with at the end
    context = UnlearnContext(
        seed=spec["seed"],
        batch_size=spec["batch_size"],
        anchor=spec["anchor"],
        sampler=Sampler("ddim", spec["sampler_steps"]),
        precision=spec.get("precision", "float32"),
        **runtime.shared(),
    )
    method = unlearner(spec["method"]["name"], "text-to-image").load()
    model = frozen(original).to(runtime.device).requires_grad_(True)
    model.micro_batch = batch_of(runtime)
    held = told_in("picture", lambda: min(model.widest, batch_of(runtime)), SHARE)
    # A method may draw from torch's global generator (a plug-in, say): seeding it keeps the stage a pure function.
    with held, torch.random.fork_rng():
        torch.manual_seed(spec["seed"])
        sides = side_of(inputs, "forget"), side_of(inputs, "retain")
        made = method(model, *sides, context, **spec["method"]["parameters"])
    keep_unlearned(original, made, out)


def keep_unlearned(original: Diffusion, made: Any, out: Path) -> None:
    """Write what changed, and under which name."""
    path = save_unlearned(original, made, out)
    (out / "unlearned.json").write_text(json.dumps({"file": path.name}), encoding="utf-8")


def attack(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Search for inputs that draw the concept again, and keep what was found."""
    asked = prompts_in(inputs["prompts"])
    found = search(stage.spec, inputs, torch.arange(len(asked)), runtime)
    save_probes(found, asked, out, stage.spec["cap"])


def search(spec: Mapping[str, Any], inputs: Inputs, rows: Tensor, runtime: Runtime) -> Probes:
    """What an attack finds for the prompts in these rows, int64 (N,)."""
    facts, asked = resolve_concept(spec["concept"], inputs, runtime), prompts_in(inputs["prompts"]).select(rows)
    original, unlearned = model_of(inputs, "original", runtime), model_of(inputs, "unlearned", runtime)
    before = torch.from_numpy(np.load(inputs["reference"].file("images.npy"), allow_pickle=False))[rows]
    size = batch_of(runtime)
    target = make_target(original, unlearned, asked, before, size, concept=facts.prompt, anchor=facts.anchor)
    sampler = Sampler(**spec["sampler"])
    context = AttackContext(seed=spec["seed"], batch_size=size, sampler=sampler, **runtime.shared())
    function = ATTACKS.get(spec["run"]["name"], "text-to-image").load()
    drawing = drawing_of(inputs, "unlearned", spec, runtime)
    with told_in("prompt", lambda: min(size, len(asked)), SHARE):
        return run_attack(function, spec["run"]["parameters"], target, Budget(spec["cap"]), context, drawing)


def drawing_of(inputs: Inputs, role: str, spec: Mapping[str, Any], runtime: Runtime) -> Drawing:
    """How a model's images are drawn and judged, from a stage's ``sampler`` and ``concept``."""
    judge, facts = load_judge(inputs["judge"], inputs, runtime), resolve_concept(spec["concept"], inputs, runtime)

    def seen(images: Tensor) -> tuple[Tensor, Tensor]:
        judgement = judge(images)
        return judge.hits(judgement, facts.judged_as), judge.score_of(judgement, facts.judged_as)

    return Drawing(model_of(inputs, role, runtime), Sampler(**spec["sampler"]), seen, spec.get("precision", "float32"))


def clean_images(drawing: Drawing, asked: Prompts, size: int) -> Tensor:
    """Images that a model draws of prompts without an attack, uint8 (N, C, H, W)."""
    rows = torch.split(torch.arange(len(asked)), size)
    return torch.cat([drawing.draw(asked.select(part), Candidates())[0] for part in rows])


def clean_hits(drawing: Drawing, asked: Prompts, size: int) -> tuple[Tensor, Tensor]:
    """(images, hit, bool (N,)): those of `clean_images`, and whether the judge sees the concept; see `Drawing.look`."""
    rows = torch.split(torch.arange(len(asked)), size)
    looks = [drawing.look(asked.select(part), Candidates()) for part in rows]
    return torch.cat([images for images, *_ in looks]), torch.cat([hit.cpu() for *_, hit, _ in looks])


def batch_of(runtime: Runtime) -> int:
    """Prompts that advance together, and pictures of a method's step: a gradient holds far more than an evaluation."""
    return max(runtime.batch_size // SHARE, 1)


def save_probes(found: Probes, asked: Prompts, out: Path, cap: int) -> None:
    """Write what an attack found, prompt by prompt, and the share brought back after each step."""
    arrays = {name: getattr(found, name) for name in ("step", "score", "ids", "gradient_steps", "evaluations")}
    soft = {name: getattr(found, name) for name in NOTHING}
    arrays |= {name: value for name, value in soft.items() if value is not None}
    np.savez(out / "probes.npz", cases=asked.ids.numpy(), **{name: value.numpy() for name, value in arrays.items()})
    np.save(out / "images.npy", found.images.numpy())
    back = torch.bincount(found.step[found.step >= 0], minlength=cap + 1).cumsum(0).double() / len(found)
    facts = {
        "success_curve": [round(value, 6) for value in back.tolist()],
        "loss_curve": [],
        "evaluations": int(found.evaluations.sum()),
    }
    (out / "attack.json").write_text(json.dumps(facts), encoding="utf-8")


def model_of(inputs: Inputs, role: str, runtime: Runtime) -> Diffusion:
    """A stage's model in eval mode on the device, frozen, loaded once per process."""

    def load() -> Diffusion:
        path, changed = inputs[role].file(weights_of(inputs[role])), "unlearned.json" in inputs[role].manifest["files"]
        made = load_unlearned(model_of(inputs, "original", runtime), path) if changed else load_model(path)
        return freeze(made.to(runtime.device))

    return runtime.cache.get((inputs[role].key, runtime.device), load)


def weights_of(artifact: Artifact) -> str:
    """Name of the file that holds a stage's weights; a judge's description where it has none."""
    files = artifact.manifest["files"]
    if "unlearned.json" in files:
        return str(artifact.json("unlearned.json")["file"])
    return next((name for name in (MODEL, "weights.safetensors") if name in files), "judge.json")
