"""Dose models on digits: the radius and the selectivity go with how much of the forget set a model has seen."""

import pytest
import torch

from rub.attacks.base import AttackContext
from rub.data.sources import load_images
from rub.data.splits import split, training_set
from rub.metrics.dose import Measurement, validity
from rub.models.network import build_network
from rub.models.weights import freeze
from rub.tasks.classification.attacks.base import other_classes
from rub.tasks.classification.attacks.radius import log2_radius, radii
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.classification.spec import RadiusSpec
from rub.training.batches import Augmentation
from rub.training.classifier import predict, train

FORGET = {"classes": (0,), "fraction": None, "ids": None, "seed": 0}
SPEC = RadiusSpec(smallest=1, largest=128)


def subset(percent, seed):
    if percent == 100:
        return {"kind": "all"}
    if percent == 0:
        return {"kind": "retain", "forget": FORGET}
    return {"kind": "dose", "forget": FORGET, "percent": percent, "seed": seed}


@pytest.mark.slow
def test_radius_and_selectivity_go_with_the_dose():
    digits = load_images("digits", None)
    forgotten = split(digits, FORGET, 0.1).forget.select(torch.arange(100))
    found = {}
    for percent in (0, 2, 5, 10, 30, 100):
        for seed in (0, 1):
            context = UnlearnContext(seed=seed, num_classes=10, batch_size=64, augmentation=Augmentation(1, flip=False))
            model = build_network(
                "resnet10", num_classes=10, channels=1, size=8, width=8, mean=digits.mean, std=digits.std, seed=seed
            )
            samples = training_set(digits, subset(percent, seed), 0.1)
            model = freeze(train(model, samples, context, epochs=8, lr=0.1, schedule="onecycle"))
            others = other_classes(forgotten, predict(model, forgotten).argmax(1), list(range(1, 10)))
            search = AttackContext(ids=forgotten.ids, batch_size=128)
            own, other = (
                log2_radius(radii(model, forgotten.images, labels, SPEC, search), SPEC).double().numpy()
                for labels in (forgotten.labels, others)
            )
            for name, values in (("own_radius", own), ("selectivity", other - own)):
                found.setdefault(name, {}).setdefault(percent, []).append(Measurement(float(values.mean())))
    said = {name: validity(scale, seed=0) for name, scale in found.items()}
    assert said["own_radius"].spearman <= -0.9 and said["selectivity"].spearman >= 0.9, said
    means = {percent: sum(m.value for m in models) / 2 for percent, models in found["selectivity"].items()}
    assert means[0] < -3 and means[100] > 4
