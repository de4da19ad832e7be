"""The stage function of the galleries: what both models make of some images, as in the paper's Figures 2 and 3."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from rub.config.suite import DEFAULT_MAIN
from rub.data.samples import to_unit
from rub.models.mae.masks import gather, scatter
from rub.models.mae.model import paste
from rub.pipeline.graph import Stage
from rub.pipeline.runtime import Runtime
from rub.store.artifacts import Artifact
from rub.tasks.inpainting.attacks.base import apply_delta
from rub.tasks.inpainting.measure import eight_bit
from rub.tasks.inpainting.stages import SIDES, eval_set, model_of

GREY = 0.5  # of masked patches, and of no change in the image of delta


@torch.no_grad()
def gallery(stage: Stage, inputs: Mapping[str, Artifact], out: Path, runtime: Runtime) -> None:
    """Write tiles for some images of F and of R: image, masked, both models' outputs, attacked outputs, delta."""
    spec, parts = stage.spec, []
    attack = spec.get("attack", DEFAULT_MAIN)
    original, unlearned = (model_of(inputs, role, runtime) for role in ("original", "unlearned"))
    for name in SIDES:
        side = eval_set(name, inputs, runtime)
        count = min(spec["count"], len(side.samples))
        images = side.samples.take(slice(count))
        x, mask = to_unit(images).to(runtime.device), side.mask(original).select(slice(count)).to(runtime.device)
        patches = original.patchify(x)
        blank = scatter(gather(patches, mask.keep), mask.keep, torch.full_like(patches, GREY))
        columns = {
            "image": x,
            "masked": original.unpatchify(blank),
            "original": paste(original.reconstruct(x, mask), x, mask, original),
            "unlearned": paste(unlearned.reconstruct(x, mask), x, mask, unlearned),
        }
        for place, budget in enumerate(spec["budgets"]):
            path = inputs[f"attack_{place}_{name}"].file("delta.npy")
            delta = torch.from_numpy(np.load(path, mmap_mode="r", allow_pickle=False)[:count].copy())
            probes = apply_delta(images, delta).to(runtime.device)
            columns[f"{attack} {budget}"] = paste(unlearned.reconstruct(probes, mask), x, mask, unlearned)
            change, factor = (probes - x), _factor(budget)
            columns[f"delta x {factor}" if factor > 1 else "delta"] = (GREY + change * factor / 2).clamp(0, 1)
        tiles = torch.stack([eight_bit(tile.cpu()) for tile in columns.values()], 1).permute(0, 1, 3, 4, 2)
        file = f"gallery_{name}.npz"
        np.savez(out / file, tiles=tiles.numpy(), columns=np.array(list(columns)), ids=side.samples.ids[:count].numpy())
        parts.append({"split": name, "file": file})
    facts = {"method": spec["method"], "unlearn_seed": spec["seed"], "parts": parts}
    (out / "gallery.json").write_text(json.dumps(facts), encoding="utf-8")


def _factor(budget: str) -> int:
    # how much a delta is amplified, so that its budget fills the range from black to white
    return 255 // int(budget.partition("/")[0]) if "/" in budget else 1
