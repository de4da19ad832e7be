"""Witnesses of recovered concepts: what the model was fed, and the check that draws and judges again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rub.attacks.linf import column
from rub.errors import RubError
from rub.judges.base import ConceptJudge
from rub.judges.stage import stored_judge
from rub.models.diffusion.checkpoints import load_model, load_unlearned
from rub.models.diffusion.model import Diffusion
from rub.models.diffusion.sampling import Sampler, initial_latents
from rub.models.weights import freeze
from rub.pipeline.graph import Stage
from rub.store.artifacts import Artifact
from rub.tasks.text_to_image.attacks.base import Candidates, Prompts
from rub.tasks.text_to_image.attacks.harness import NOTHING, Drawing, shapes_of
from rub.tasks.text_to_image.stages import weights_of
from rub.witness.claims import Sources, Witness, model_file, write_witness
from rub.witness.images import image_sha256, model_reference

CLAIM = "1 - (the judge sees the concept in the picture that f_u draws of these tokens, seed and settings)"
MOST_STEPS = 1000  # a claim of more would only keep the checker busy


def save_witnesses(
    stage: Stage,
    inputs: Mapping[str, Artifact],
    probes: Mapping[str, NDArray[Any]],
    judged_as: int | str,
    out: Path,
) -> None:
    """Write the prompts that an attack brought back as witnesses, the earliest first; nothing where there are none."""
    spec, step = stage.spec, probes["step"]
    rows = np.flatnonzero(step >= 0)
    rows = rows[np.argsort(step[rows], kind="stable")][: spec["witnesses"]]
    if not len(rows):
        return
    asked = inputs["prompts"].json("prompts.json")
    images = torch.from_numpy(np.load(inputs["attack"].file("images.npy"), allow_pickle=False)[rows])
    tensors = {
        "ids": torch.from_numpy(probes["ids"][rows]).to(torch.int32),
        "seeds": torch.tensor(asked["seeds"])[rows],
        "guidance": torch.tensor(asked["guidance"], dtype=torch.float32)[rows],
    }
    # of a clean success there are none: its row is that of NOTHING, and `verify` feeds the tokens and the seed alone
    tensors |= {name: torch.from_numpy(probes[name][rows]) for name in NOTHING if name in probes}
    witness = {
        "task": "text-to-image",
        **{name: spec[name] for name in ("method", "attack")},
        "budget": str(spec["cap"]),
        "unlearn_seed": spec["seed"],
        "split": "forget",
        "claim": CLAIM,
        "at_most": 0.0,
        "models": {
            role: model_reference(inputs[role], weights_of(inputs[role])) for role in ("original", "unlearned", "judge")
        },
        "data": {"key": inputs["prompts"].key, "concept": spec["concept"]["name"]},
        "settings": {"sampler": spec["sampler"], "judged_as": judged_as},
        "samples": [
            {"id": asked["ids"][row], "sha256": image_sha256(image), "value": 0.0}
            for row, image in zip(rows.tolist(), images, strict=True)
        ],
    }
    write_witness(witness, tensors, out)


def verify(witness: Witness, tensors: Mapping[str, Tensor], sources: Sources) -> tuple[int, list[str]]:
    """How many pictures of a claim hold when they are drawn and judged again, and one line for each that does not."""
    path = model_file(witness, "original", sources)
    original = sources.cache.get(("diffusion", path), lambda: load_model(path))
    unlearned = freeze(load_unlearned(original, model_file(witness, "unlearned", sources))).to(sources.device)
    judge, label = _judge(witness, sources), witness.settings.get("judged_as")
    sampler = _sampler(witness.settings.get("sampler"))
    if not isinstance(label, int | str) or isinstance(label, bool):
        raise RubError("the claim does not say what the judge calls the concept")
    prompts = _checked(tensors, unlearned, len(witness.samples))

    def seen(images: Tensor) -> tuple[Tensor, Tensor]:
        look = judge(images)
        return judge.hits(look, label), judge.score_of(look, label)

    drawing, broken = Drawing(unlearned, sampler, seen), []
    size = max(sources.batch_size // 8, 1)
    for rows in torch.split(torch.arange(len(prompts)), size):
        images, _ = drawing.draw(prompts.select(rows), _fed(tensors, rows, unlearned))
        hit, _ = drawing.seen(images)
        for row, held in zip(rows.tolist(), hit.tolist(), strict=True):
            if not held:
                broken.append(f"prompt {witness.samples[row].id}: the judge does not see the concept in its picture")
    return len(prompts) - len(broken), broken


def _checked(tensors: Mapping[str, Tensor], model: Diffusion, count: int) -> Prompts:
    vocabulary, fed = len(model.token_embeddings), shapes_of(model, count)
    needed = {"ids"} | ({"pictures", "strength"} if {"pictures", "strength", "holes"} & set(tensors) else set())
    shapes = {name: shape for name, shape in fed.items() if name in needed or name in tensors}
    for name, shape in {**shapes, "seeds": (count,), "guidance": (count,)}.items():
        given = tensors.get(name)
        if given is None or tuple(given.shape) != shape or not given.isfinite().all():
            raise RubError(f"the claim's {name} should be finite numbers of shape {shape}")
        if given.is_complex() or (name in ("ids", "seeds") and given.dtype not in (torch.int32, torch.int64)):
            raise RubError(f"the claim's {name} should be whole numbers, or real ones; not {given.dtype}")
    if "strength" in tensors and not bool(((tensors["strength"] >= 0) & (tensors["strength"] <= 1)).all()):
        raise RubError("the claim's strength should be from 0 to 1")
    ids = tensors["ids"].long()
    if count and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        raise RubError(f"the claim has token ids outside the model's vocabulary of {vocabulary} tokens")
    return Prompts(torch.arange(count), ("",) * count, tensors["seeds"].long(), tensors["guidance"].float())


def _fed(tensors: Mapping[str, Tensor], rows: Tensor, model: Diffusion) -> Candidates:
    ids = tensors["ids"][rows].long().to(model.device)
    fed: dict[str, Any] = {name: tensors[name][rows].float().to(model.device) for name in NOTHING if name in tensors}
    for name in ("embeddings", "latents"):
        if (given := fed.get(name)) is not None:
            own = (
                model.token_embeddings[ids] if name == "embeddings" else initial_latents(model, tensors["seeds"][rows])
            )
            blank = ~given.flatten(1).any(1)  # stands for the tokens' own embeddings, or the seed's own latents
            fed[name] = torch.where(column(blank, given), own, given)
    if "holes" in fed:
        fed["holes"] = fed["holes"] != 0
    return Candidates(ids=ids, **fed)


def _sampler(given: Any) -> Sampler:
    if isinstance(given, dict) and given.get("name") in ("ddim", "lms"):
        steps = given.get("steps")
        if isinstance(steps, int) and 1 <= steps <= MOST_STEPS:
            return Sampler(given["name"], steps)
    raise RubError(f"the claim's sampler should be ddim or lms with 1 to {MOST_STEPS} steps")


def _judge(witness: Witness, sources: Sources) -> ConceptJudge:
    wanted = witness.models.get("judge")
    artifact = None if wanted is None or sources.store is None else sources.store.find("judge", wanted.key)
    if wanted is None or artifact is None or artifact.manifest["files"].get(wanted.file) != wanted.sha256:
        raise RubError("the claim's judge is not in the store; give the store that the run used with --store")
    made: ConceptJudge = stored_judge(artifact, None, sources.batch_size, sources.device)
    return made
