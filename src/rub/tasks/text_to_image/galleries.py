"""The stage function of the galleries: images that the original draws of some prompts, the unlearned, the attacked."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rub.pipeline.graph import Stage
from rub.pipeline.runtime import Runtime
from rub.store.artifacts import Artifact
from rub.tasks.text_to_image.stages import prompts_in


def gallery(stage: Stage, inputs: Mapping[str, Artifact], out: Path, runtime: Runtime) -> None:
    """Write tiles for some prompts: before, after, and after each attack; those that an attack brought back first."""
    spec, asked = stage.spec, prompts_in(inputs["prompts"])
    step = np.load(inputs["attack_0"].file("probes.npz"), allow_pickle=False)["step"]
    order = np.argsort(np.where(step > 0, 0, np.where(step < 0, 1, 2)), kind="stable")[: spec["count"]]
    columns = {"before": inputs["reference"], "after": inputs["clean"]}
    columns |= {name: inputs[f"attack_{place}"] for place, name in enumerate(spec["attacks"])}
    shown = [np.load(made.file("images.npy"), allow_pickle=False)[order] for made in columns.values()]
    tiles = np.stack(shown, 1).transpose(0, 1, 3, 4, 2)
    np.savez(out / "gallery_forget.npz", tiles=tiles, columns=np.array(list(columns)), ids=asked.ids.numpy()[order])
    parts = [{"split": "forget", "file": "gallery_forget.npz"}]
    facts = {"method": spec["method"], "unlearn_seed": spec["seed"], "parts": parts}
    (out / "gallery.json").write_text(json.dumps(facts), encoding="utf-8")
