"""Audit models whose truth is known on CIFAR-10: is every verdict right?

    python benchmarks/known_truth.py resnet20-12fca82f.th --data-root data --out known-truth.json

From a public ResNet-20: RL and DELETE models (class 0, lr .01), the controls that ship, and wrecks. Prints Markdown: of
each model what it should be called and what it was called, with the figures behind it.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rub import api
from rub.audits.base import Report
from rub.data.samples import ImageDataset
from rub.data.sources import load_images
from rub.models.formats.classifier import load_weights
from rub.models.network import build_network, head
from rub.models.weights import save_weights
from rub.registry import CONTROLS, METHODS
from rub.tasks.classification.context import UnlearnContext

TRUTH = {
    "original": "recovered",
    "rl": "ordinary",
    "delete": "ordinary",
    "sham": "hidden",
    "zero-row": "hidden",
    "gauge": "recovered",
    "drift": "not 'no residual found'",
    "untrained": "destroyed",
    "zeroed": "destroyed",
    "constant": "destroyed",
    "noise": "destroyed",
}
SETTINGS: dict[str, dict[str, Any]] = {"rl": {"lr": 0.01, "epochs": 1}, "delete": {"lr": 0.01, "epochs": 1}}


def models(original: nn.Module, data: ImageDataset, retain_samples: int) -> Iterator[tuple[str, nn.Module]]:
    """Each model with its name."""
    context = UnlearnContext(seed=0, num_classes=10, forget_classes=(0,))
    forgotten = data.train.labels == 0
    kept = (~forgotten).nonzero()[:, 0]
    kept = kept[torch.randperm(len(kept), generator=context.generator("share"))[:retain_samples]]
    forget, retain = data.train.select(forgotten.nonzero()[:, 0]), data.train.select(kept)
    yield "original", original
    for name, given in SETTINGS.items():
        yield (
            name,
            METHODS.get(name, "classification").load()(copy.deepcopy(original), forget, retain, context, **given),
        )
    for name in ("sham", "zero-row", "gauge", "drift"):
        yield name, CONTROLS.get(name, "classification").load()(copy.deepcopy(original), forget, retain, context)
    yield "untrained", build_network("resnet20", num_classes=10, mean=data.mean, std=data.std, seed=1)
    for wreck in (zeroed, constant, noise):
        yield wreck.__name__, changed(original, wreck)


def changed(original: nn.Module, change: Callable[[nn.Module], None]) -> nn.Module:
    """A copy of the original, changed."""
    made = copy.deepcopy(original)
    with torch.no_grad():
        change(made)
    return made


def zeroed(model: nn.Module) -> None:
    """All weights 0."""
    for parameter in model.parameters():
        parameter.zero_()


def constant(model: nn.Module) -> None:
    """The same answer for every image."""
    weight: torch.Tensor = head(model).weight  # type: ignore[union-attr, assignment]
    weight.zero_()


def noise(model: nn.Module) -> None:
    """Weights of the same spread, drawn at random."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.std().nan_to_num(1.0))


def row(name: str, report: Report, seconds: float) -> dict[str, Any]:
    """The figures of one audit."""
    figures = report.figures
    found: dict[str, Any] = {
        "model": name,
        "truth": TRUTH[name],
        "verdict": report.verdict.name,
        "seconds": round(seconds),
    }
    if figures is None:
        return found | {"why": report.verdict.why[0]}
    contrast = figures.contrast
    means = {key: getattr(contrast, key) for key in ("own", "other", "selectivity")}
    layers = {layer.title: round(layer.unlearned, 4) for layer in (figures.log_odds, figures.transplant) if layer}
    return {
        **found,
        "ta": figures.accuracy["unlearned"],
        "ua": figures.clean.value,
        "n": contrast.count,
        **{key: [round(part, 3) for part in (mean.value, mean.low, mean.high)] for key, mean in means.items()},
        "reached": contrast.reached.value,
        "attacked": {budget: rate.value for budget, rate in figures.attacked.items()},
        **layers,
    }


def lines(found: list[dict[str, Any]]) -> Iterator[str]:
    """The table."""
    yield "| model | truth | verdict | TA | UA | own | other | selectivity | reached | UA at 1 · 8/255 |"
    yield "|:--|:--|:--|---:|---:|---:|---:|---:|---:|---:|"
    for item in found:
        if "ta" not in item:
            yield f"| {item['model']} | {item['truth']} | {item['verdict']} | {item['why']} |||||||"
            continue
        mean, low, high = item["selectivity"]
        head = (
            f"| {item['model']} | {item['truth']} | {item['verdict']} | {100 * item['ta']:.1f} | {100 * item['ua']:.1f}"
        )
        radii = f"{item['own'][0]:.2f} | {item['other'][0]:.2f} | {mean:+.2f} ({low:+.2f} to {high:+.2f})"
        attacked = " · ".join(f"{100 * item['attacked'][budget]:.0f}" for budget in ("1/255", "8/255"))
        yield f"{head} | {radii} | {100 * item['reached']:.0f} | {attacked} |"


def main() -> None:
    """Make the models, audit each, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--retain-samples", type=int, default=10_000)
    parser.add_argument("--store", type=Path, default=Path("known-truth-store"))
    parser.add_argument("--out", type=Path, default=Path("known-truth.json"))
    arguments = parser.parse_args()
    data = load_images("cifar10", arguments.data_root)
    original = build_network("resnet20", num_classes=10, mean=data.mean, std=data.std)
    load_weights(arguments.checkpoint, original)
    files = arguments.store / "models"
    files.mkdir(parents=True, exist_ok=True)
    found = []
    runtime = api.make_runtime(data_root=arguments.data_root, device="cpu")
    for name, model in models(original.eval(), data, arguments.retain_samples):
        save_weights(model, files / f"{name}.safetensors")
        began = time.perf_counter()
        report = api.audit(
            "classification", original=arguments.checkpoint, unlearned=files / f"{name}.safetensors", arch="resnet20",
            data="cifar10", forget_classes=(0,), samples=arguments.samples, store=arguments.store, runtime=runtime,
            mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
        )  # fmt: skip
        found.append(row(name, report, time.perf_counter() - began))
        print(*lines(found[-1:]), sep="\n", flush=True)
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(*lines(found), sep="\n")


if __name__ == "__main__":
    main()
