"""The stage functions that measure: what the models make of F and R, clean and attacked."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rub.data.samples import to_unit
from rub.data.splits import input_dataset
from rub.judges.base import Judge, Judgement, identity
from rub.judges.stage import load_judge
from rub.metrics.base import Measured, Outputs, measure_metric, origin_of, row_of
from rub.metrics.lpips import lpips_or_none
from rub.models.mae.masks import Mask, gather
from rub.models.mae.model import MaskedAutoencoder, paste
from rub.pipeline.graph import Stage
from rub.pipeline.runtime import Runtime
from rub.registry import METRICS
from rub.store.artifacts import Artifact
from rub.tasks.inpainting.attacks.base import apply_delta, divergence
from rub.tasks.inpainting.attacks.harness import score
from rub.tasks.inpainting.metrics import PAIRED, cell, metrics_for, psnr, recovered, split_of, ssim
from rub.tasks.inpainting.stages import SIDES, WEIGHTS, EvalSet, eval_set, model_of, target_of
from rub.tasks.inpainting.witnesses import save_witnesses

Inputs = Mapping[str, Artifact]


@torch.no_grad()
def look(
    model: MaskedAutoencoder,
    original: MaskedAutoencoder,
    side: EvalSet,
    delta: Tensor | None,
    judge: Judge,
    runtime: Runtime,
) -> tuple[dict[str, Tensor], Judgement]:
    """What a model makes of a side's images, or probes, beside what the original makes of the images.

    Reconstructions are pasted: predicted masked patches beside the visible patches of the *clean* image, so that what
    is judged is what the model made and not the perturbation; then rounded to 8 bits. The scores are float32 (N,) each:
    mse_original, mse_input, psnr, ssim, mse_before (of the original to the true image), mse_flat (likewise of the mean
    colour of the visible patches) and, where its network is there, lpips.
    """
    perceptual = lpips_or_none(runtime.device)
    kept: dict[str, list[Tensor]] = {}
    for x, mask, made in _made(model, side, delta, runtime):
        wanted = original.reconstruct(x, mask)
        shown, reference = paste(made, x, mask, model), paste(wanted, x, mask, original)
        error, patches = divergence(made, wanted), model.patchify(x)
        truth = gather(patches, mask.hidden)
        found = {
            "mse_original": error,
            "mse_input": divergence(made, truth),
            "mse_before": divergence(wanted, truth),
            "mse_flat": divergence(flat(gather(patches, mask.keep), model.config.channels, truth), truth),
            "psnr": psnr(error),
            "ssim": ssim(shown, reference),
        }
        if perceptual is not None:
            found["lpips"] = perceptual(shown, reference)
        seen = judge(eight_bit(shown).cpu())
        found |= {"features": seen.features, "logits": seen.scores}
        for name, values in found.items():
            kept.setdefault(name, []).append(values.float().cpu())
    joined = {name: torch.cat(parts) for name, parts in kept.items()}
    return joined, Judgement(joined.pop("logits"), joined.pop("features"))


def flat(visible: Tensor, channels: int, hidden: Tensor) -> Tensor:
    """Patches like `hidden` in the mean colour of the visible ones, the baseline of skill.

    Args:
        visible: float (N, K, P), each patch in (row, column, channel) order.
        channels: numbers of a pixel.
        hidden: float (N, L - K, P).

    Example:
        >>> flat(torch.tensor([[[0.0, 0.2, 1.0, 0.4]]]), 2, torch.zeros(1, 2, 4))[0, 0]
        tensor([0.5000, 0.3000, 0.5000, 0.3000])
    """
    colour = visible.reshape(len(visible), -1, channels).mean(1)
    return colour.repeat(1, hidden.shape[-1] // channels)[:, None].expand_as(hidden)


def _made(
    model: MaskedAutoencoder, side: EvalSet, delta: Tensor | None, runtime: Runtime
) -> Iterator[tuple[Tensor, Mask, Tensor]]:
    # batches of clean images, their masks, and the patches that the model makes of them or of their probes
    images, masks = side.samples.images, side.mask(model)
    for start in range(0, len(images), runtime.batch_size):
        rows = slice(start, start + runtime.batch_size)
        x, mask = to_unit(images[rows]).to(runtime.device), masks.select(rows).to(runtime.device)
        probes = x if delta is None else apply_delta(images[rows], delta[rows]).to(runtime.device)
        yield x, mask, model.reconstruct(probes, mask)


def eight_bit(images: Tensor) -> Tensor:
    """Images in [0, 1] rounded to uint8."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def reference(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Look once at the real images and at the original's reconstructions, which every row is compared with."""
    judge: Judge = load_judge(inputs["judge"], inputs, runtime)
    original = model_of(inputs, "original", runtime)
    for name in SIDES:
        side = eval_set(name, inputs, runtime)
        np.save(out / f"{name}_real.npy", judge(side.samples.images).features.numpy())
        _, seen = look(original, original, side, None, judge, runtime)
        np.save(out / f"{name}_original.npy", seen.features.numpy())
        np.save(out / f"{name}_original_logits.npy", seen.scores.numpy())
    facts = {"extractor": identity(judge), "judge": judge.description}
    (out / "reference.json").write_text(json.dumps(facts), encoding="utf-8")


def measure(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Measure one model on the clean images of F and R."""
    facts = origin_of(inputs["unlearned"].sha256(WEIGHTS), inputs["unlearned"])
    measured = Measured(cell, stage.spec["method"], stage.spec["seed"], facts)
    seen = {name: _seen(name, None, stage, inputs, runtime) for name in SIDES}
    for name in SIDES:
        outputs = _together(name, seen)
        for metric in metrics_for(name, outputs.others):
            measured.compute(metric, outputs, split=name)
    measured.save(out)


def measure_attack(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Re-evaluate the stored probes in float32, beside the retrained model's, and keep witnesses of recoveries."""
    spec = stage.spec
    where = {"attack": spec["attack"], "budget": spec["budget"]}
    measured = Measured(cell, spec["method"], spec["seed"], {})
    samples, curves = [], []
    deltas, seen = {}, {}
    for name in spec["splits"]:
        artifact = inputs[f"attack_{name}"]
        deltas[name] = torch.from_numpy(np.load(artifact.file("delta.npy"), allow_pickle=False))
        seen[name] = (_steered if name == "steered" else partial(_seen, name))(deltas[name], stage, inputs, runtime)
        seen[name] = replace(seen[name], facts={**seen[name].facts, **artifact.json("attack.json")})
    for name in spec["splits"]:
        artifact = inputs[f"attack_{name}"]
        facts = artifact.json("attack.json")
        measured.facts = origin_of(inputs["unlearned"].sha256(WEIGHTS), artifact)
        measured.facts |= {fact: facts[fact] for fact in ("converged", "evaluations")}
        listed = np.load(artifact.file("samples.npz"), allow_pickle=False)
        outputs = _together(name, seen)
        outputs = replace(outputs, scores={**outputs.scores, "start": listed["start"]})
        for metric in metrics_for(name, outputs.others, attacked=True):
            measured.compute(metric, outputs, split=split_of(metric, name), **where)
        back, loss, shared = recovered(outputs), outputs.scores["mse_original"], row_of(spec, name)
        curves.append({**shared, **facts})
        samples += [
            {
                **shared,
                "sample_id": int(listed["ids"][index]),
                "label": int(listed["labels"][index]),
                "clean": bool(listed["start"][index] <= spec["recovered_below"]),
                "recovered": bool(back[index]),
                "distance": round(float(loss[index]), 8),
                "step": int(listed["step"][index]),
                "linf": round(float(listed["linf"][index]), 6),
                "probe": f"{artifact.key}:{index}",
            }
            for index in range(len(back))
        ]
        if name == "forget":
            save_witnesses(stage, inputs, deltas[name], torch.from_numpy(loss), back, out, runtime)
    measured.save(out, samples=samples, curves=curves)


def metric(stage: Stage, inputs: Inputs, out: Path, runtime: Runtime) -> None:
    """Measure a metric of a plug-in on pasted reconstructions of F or R, of clean images or of an attack's probes."""
    split_name = METRICS.get(stage.spec["metric"], stage.task).load().split
    judge: Judge = load_judge(inputs["judge"], inputs, runtime)
    facts = origin_of(inputs["unlearned"].sha256(WEIGHTS), inputs["unlearned"]) | {"extractor": identity(judge)}
    delta = None
    if "attack" in inputs:
        searched = inputs["attack"].json("attack.json")
        facts |= {name: searched[name] for name in ("converged", "evaluations")}
        delta = torch.from_numpy(np.load(inputs["attack"].file("delta.npy"), allow_pickle=False))

    def outputs(name: str) -> Outputs:
        side = eval_set(split_name if name == "original" else name, inputs, runtime)
        role = "original" if name == "original" else "unlearned"
        model, probed = model_of(inputs, role, runtime), delta if name == split_name else None
        with torch.no_grad():
            batches = _made(model, side, probed, runtime)
            made = torch.cat([eight_bit(paste(patches, x, mask, model)).cpu() for x, mask, patches in batches])
        seen = judge(made)
        return Outputs(
            ids=side.samples.ids.numpy(),
            labels=side.samples.labels.numpy(),
            logits=seen.scores.numpy(),
            features=seen.features.numpy(),
            images=made.numpy(),
            num_classes=len(input_dataset(inputs, runtime).classes),
        )

    measure_metric(stage.task, stage.spec, outputs, facts, out)


# What the unlearned model makes of a side's images, or probes, beside the real ones, the original's and the retrained
# model's search.
def _seen(name: str, delta: Tensor | None, stage: Stage, inputs: Inputs, runtime: Runtime) -> Outputs:
    judge, side, known = (
        load_judge(inputs["judge"], inputs, runtime),
        eval_set(name, inputs, runtime),
        inputs["reference"],
    )
    model, original = model_of(inputs, "unlearned", runtime), model_of(inputs, "original", runtime)
    scored, seen = look(model, original, side, delta, judge, runtime)
    ids, labels = side.samples.ids.numpy(), side.samples.labels.numpy()
    real, before, logits = (
        np.load(known.file(f"{name}_{what}.npy"), allow_pickle=False)
        for what in ("real", "original", "original_logits")
    )
    others = {"real": Outputs(ids, labels, features=real), "original": Outputs(ids, labels, logits, before)}
    if name == "forget" and "attack_retrained" in inputs:
        retrained = inputs["attack_retrained"]
        listed = np.load(retrained.file("samples.npz"), allow_pickle=False)
        steps, facts = {"step": listed["step"]}, retrained.json("attack.json")
        others["retrained"] = Outputs(listed["ids"], listed["labels"], scores=steps, facts=facts)
    return Outputs(
        ids=ids,
        labels=labels,
        logits=seen.scores.numpy(),
        features=seen.features.numpy(),
        scores={score: values.numpy() for score, values in scored.items()},
        others=others,
        spec=stage.spec,
        facts=known.json("reference.json"),
    )


# The outputs of a set beside those that it is compared with: forgotten images with kept ones, steered ones with the
# same images on the way to their own output.
def _together(name: str, seen: Mapping[str, Outputs]) -> Outputs:
    compared = {"forget": {"retain": "retain"}, "steered": {PAIRED: "forget"}}.get(name, {})
    beside = {role: seen[other] for role, other in compared.items() if other in seen}
    return replace(seen[name], others={**seen[name].others, **beside})


# How far unrelated images are from the output that they were steered to.
def _steered(delta: Tensor, stage: Stage, inputs: Inputs, runtime: Runtime) -> Outputs:
    side, target = target_of("steered", inputs, runtime)
    loss = score(target, side.samples.images, delta, runtime.batch_size, torch.device(runtime.device))
    samples, distances = side.samples, {"mse_original": loss.numpy()}
    return Outputs(samples.ids.numpy(), samples.labels.numpy(), scores=distances, spec=stage.spec)
