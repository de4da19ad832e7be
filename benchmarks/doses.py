"""Dose models on digits: what metrics say of models of which it is known how much of the forgotten class they saw.

    python benchmarks/doses.py --out docs/doses.png

Trains a small ResNet on the retain set and 0 to 100 % of the forgotten class (0), twice each, prints own and other
radius, selectivity and log-odds AUC as Markdown with Spearman's correlation, and draws them.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from rub.attacks.base import AttackContext
from rub.data.sources import load_images
from rub.data.splits import split, training_set
from rub.metrics.dose import Measurement, validity
from rub.metrics.layers import log_odds_auc
from rub.models.network import build_network
from rub.models.weights import freeze
from rub.tasks.classification.attacks.base import other_classes
from rub.tasks.classification.attacks.radius import log2_radius, radii
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.classification.spec import RadiusSpec
from rub.training.batches import Augmentation
from rub.training.classifier import predict, train

DOSES, SEEDS = (0.0, 2.0, 5.0, 10.0, 30.0, 100.0), (0, 1)
FORGET = {"classes": (0,), "fraction": None, "ids": None, "seed": 0}
SPEC = RadiusSpec(smallest=1, largest=128)
TITLES = {
    "own": "own radius, log2 of 1/255",
    "other": "other radius, log2 of 1/255",
    "selectivity": "selectivity",
    "log-odds AUC": "log-odds AUC",
}


def measured(percent: float, seed: int) -> dict[str, float]:
    """What one model says: means over the forgotten training images, and the AUC on test images."""
    digits = load_images("digits", None)
    forgotten = split(digits, FORGET, 0.1).forget
    which = {"kind": "dose", "forget": FORGET, "percent": percent, "seed": seed}
    ends = {0.0: {"kind": "retain", "forget": FORGET}, 100.0: {"kind": "all"}}
    context = UnlearnContext(seed=seed, num_classes=10, batch_size=64, augmentation=Augmentation(1, flip=False))
    network = build_network(
        "resnet10", num_classes=10, channels=1, size=8, width=8, mean=digits.mean, std=digits.std, seed=seed
    )
    samples = training_set(digits, ends.get(percent, which), 0.1)
    model = freeze(train(network, samples, context, epochs=8, lr=0.1, schedule="onecycle"))
    others = other_classes(forgotten, predict(model, forgotten).argmax(1), list(range(1, 10)))
    search = AttackContext(ids=forgotten.ids, batch_size=128)
    own, other = (
        float(log2_radius(radii(model, forgotten.images, labels, SPEC, search), SPEC).mean())
        for labels in (forgotten.labels, others)
    )
    auc = log_odds_auc(predict(model, digits.test).numpy(), digits.test.labels.numpy(), [0])
    return {"own": own, "other": other, "selectivity": other - own, "log-odds AUC": auc}


def draw(found: dict[float, list[dict[str, float]]], out: Path) -> None:
    """One panel for each metric: a point for each model, a line through the means."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(TITLES), figsize=(13, 3.2), constrained_layout=True)
    places = range(len(found))
    for panel, (name, title) in zip(panels, TITLES.items(), strict=True):
        for place, models in zip(places, found.values(), strict=True):
            panel.plot([place] * len(models), [model[name] for model in models], "o", color="tab:blue", alpha=0.7)
        panel.plot(places, [np.mean([model[name] for model in models]) for models in found.values()], color="tab:blue")
        panel.set(title=title, xticks=list(places), xticklabels=[f"{dose:g}" for dose in found])
        panel.set_xlabel("dose: % of the class in training")
        panel.grid(alpha=0.3)
    figure.savefig(out, dpi=110)


def main() -> None:
    """Train, measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=Path("doses.png"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {dose: [measured(dose, seed) for seed in SEEDS] for dose in DOSES}
    print("| metric |", " | ".join(f"{dose:g} %" for dose in DOSES), "| Spearman |")
    print("|:--|", "|".join(["---:"] * (len(DOSES) + 1)), "|")
    for name in TITLES:
        cells = [" ".join(f"{model[name]:.2f}" for model in models) for models in found.values()]
        scale = {dose: [Measurement(model[name]) for model in models] for dose, models in found.items()}
        print("|", " | ".join([name, *cells, f"{validity(scale, seed=0).spearman:.2f}"]), "|")
    draw(found, arguments.out)


if __name__ == "__main__":
    main()
