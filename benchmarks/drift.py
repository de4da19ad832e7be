"""How much of what forget-only methods do is batch normalisation? Each beside drift, its statistics moving or still.

    python benchmarks/drift.py resnet20-12fca82f.th --data-root data --per-class 1000

Class 0 of CIFAR-10 leaves a public ResNet-20, whose inputs are normalised as ImageNet's: the methods that train on the
forget set alone, at their defaults and at a rate that works, for as many passes as drift has. Prints Markdown: UA on
the forgotten training images and TA on test images of the other classes, with Wilson's 95 % interval.
"""

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rub.data.samples import Samples
from rub.data.sources import load_images
from rub.errors import Diverged
from rub.metrics.statistics import wilson
from rub.models.formats.classifier import load_weights
from rub.models.network import build_network
from rub.registry import METHODS
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.classification.controls import drift
from rub.training.classifier import predict

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SETTINGS: dict[str, list[float]] = {
    "ga": [0.0001, 0.001],
    "boundary-shrink": [0.00001, 0.001],
    "delete": [0.0001, 0.01],
}
CONTEXT = UnlearnContext(seed=0, num_classes=10, forget_classes=(0,), batch_size=128)


def share(model: nn.Module, samples: Samples) -> str:
    """Return the accuracy in percent with its interval."""
    right = int((predict(model.eval(), samples).argmax(1) == samples.labels).sum())
    low, high = wilson(right, len(samples))
    return f"{100 * right / len(samples):.1f} ({100 * low:.1f} to {100 * high:.1f})"


def first(samples: Samples, count: int) -> Samples:
    """Return the first images of each class."""
    places = [(samples.labels == label).nonzero()[:count, 0] for label in range(10)]
    return samples.select(torch.cat(places).sort().values)


def main() -> None:
    """Run all of it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--per-class", type=int, default=5000, help="training images of each class")
    parser.add_argument("--passes", type=int, default=2)
    args = parser.parse_args()
    data = load_images("cifar10", args.data_root)
    original = build_network("resnet20", num_classes=10, **IMAGENET)
    load_weights(args.weights, original)
    train = first(data.train, args.per_class)
    forget, retain = (train.select(train.labels == 0), train.select(train.labels != 0))
    kept = data.test.select(data.test.labels != 0)
    print(f"UA: N = {len(forget):,}; TA: N = {len(kept):,}\n")
    print("| model | lr | batch normalisation | UA | TA |\n|:---|---:|:---|---:|---:|")
    print(f"| original | | | {share(original, forget)} | {share(original, kept)} |", flush=True)
    moved = drift(copy.deepcopy(original), forget, retain, CONTEXT, passes=args.passes)
    print(f"| *drift* | 0 | train | {share(moved, forget)} | {share(moved, kept)} |", flush=True)
    for name, rates in SETTINGS.items():
        for lr in rates:
            for mode in ("train", "eval"):
                given: dict[str, Any] = {"lr": lr, "epochs": args.passes, "batch_norm": mode}
                method = METHODS.get(name, "classification").load()
                try:
                    made = method(copy.deepcopy(original), forget, retain, CONTEXT, **given)
                except Diverged:
                    print(f"| {name} | {lr:g} | {mode} | diverged | |", flush=True)
                    continue
                print(f"| {name} | {lr:g} | {mode} | {share(made, forget)} | {share(made, kept)} |", flush=True)


if __name__ == "__main__":
    main()
