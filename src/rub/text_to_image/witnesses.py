"""Witnesses of recovered concepts: what was fed to the text encoder, and the check that draws and judges again."""

import json
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rub.errors import RubError
from rub.pipeline.plan import Stage
from rub.store.artifacts import Artifact
from rub.store.witnesses import Sources, Witness, model_file, write_witness
from rub.text_to_image.checkpoints import load_model, load_unlearned
from rub.text_to_image.diffusion import Diffusion, freeze
from rub.text_to_image.judges import judge_in
from rub.text_to_image.probing import Candidates, Prompts
from rub.text_to_image.sampling import Sampler

CLAIM = "1 - (the judge sees the concept in the picture that f_u draws of these tokens, seed and settings)"
MODEL = "model.safetensors"


def save_witnesses(stage: Stage, inputs: Mapping[str, Artifact], probes: Mapping[str, NDArray[Any]], out: Path) -> None:
    """Write the prompts that an attack brought back as witnesses, the earliest first; nothing where there are none.

    Args:
        stage: names the row and how many to keep.
        inputs: original, unlearned, judge, prompts, attack.
        probes: what the attack found.
        out: the artifact's folder.
    """
    spec, step = stage.spec, probes["step"]
    rows = np.flatnonzero(step >= 0)
    rows = rows[np.argsort(step[rows], kind="stable")][: spec["witnesses"]]
    if not len(rows):
        return
    asked = inputs["prompts"].json("prompts.json")
    images = np.load(inputs["attack"].file("images.npy"), allow_pickle=False)[rows]
    tensors = {
        "ids": torch.from_numpy(probes["ids"][rows]).to(torch.int32),
        "seeds": torch.tensor(asked["seeds"])[rows],
        "guidance": torch.tensor(asked["guidance"], dtype=torch.float32)[rows],
    }
    for name in ("embeddings", "latents"):  # of a clean success there are none: zeros say so
        if name in probes:
            tensors[name] = torch.from_numpy(probes[name][rows])
    witness = {
        "task": "text-to-image",
        **{name: spec[name] for name in ("method", "attack")},
        "budget": str(spec["cap"]),
        "unlearn_seed": spec["seed"],
        "split": "forget",
        "claim": CLAIM,
        "at_most": 0.0,
        "models": {role: _reference(inputs[role]) for role in ("original", "unlearned", "judge")},
        "data": {"key": inputs["prompts"].key, "concept": dict(spec["concept"])},
        "settings": {"sampler": spec["sampler"], "judged_as": _judged(stage, inputs)},
        "samples": [
            {"id": asked["ids"][row], "sha256": _hash(image), "value": 0.0}
            for row, image in zip(rows.tolist(), images, strict=True)
        ],
    }
    write_witness(witness, tensors, out)
