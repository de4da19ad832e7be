"""Every metric of the classification task, with the function that computes it where its outputs alone decide it."""

import numpy as np
from numpy.typing import NDArray

from rub.metrics.accuracy import correct, logit_auc
from rub.metrics.base import Cells, Metric, Outputs


def right(outputs: Outputs) -> NDArray[np.bool_]:
    """Which samples the largest logit classifies right."""
    return correct(outputs.logits, outputs.labels)


def right_of_kept(outputs: Outputs) -> NDArray[np.bool_]:
    """The same, of the classes that were kept."""
    return right(outputs)[~np.isin(outputs.labels, outputs.forget_classes)]


def ranked(outputs: Outputs) -> float:
    """How well the forgotten classes' logits rank the samples."""
    return logit_auc(outputs.logits, outputs.labels, outputs.forget_classes)


_INF = float("inf")
_PART, _AUC, _LOG = ("fraction", 3), ("AUC", 3), ("log2", 2)  # units and decimals

METRICS: tuple[Metric, ...] = (
    Metric("ta", "TA", "accuracy on test images of the classes that were kept", "up",
           split="test", function=right_of_kept),
    Metric("ta_all", "TA all", "accuracy on all test images, those of forgotten classes included", "reference",
           split="test", function=right),
    Metric("ra", "RA", "accuracy on the training images that were kept", "up", split="retain", function=right),
    Metric("ua", "UA", "accuracy on the forgotten training images (the paper's UA, not 1 - UA)", "down",
           function=right),
    Metric("ua_test", "UA test", "accuracy on test images of the forgotten classes, never trained on", "down",
           split="forget_test", function=right),
    Metric("own_radius", "own", "log2 of the smallest change in 1/255 at which an image is said to be of its own class",
           "reference", *_LOG, low=-_INF, high=_INF),
    Metric("other_radius", "other", "the same of the same images, towards another class", "reference", *_LOG,
           low=-_INF, high=_INF),
    Metric("selectivity", "selectivity", "log2(other / own) of an image: above 0, its own class is the nearer one",
           "reference", *_LOG, low=-_INF, high=_INF),
    Metric("own_reached", "own reached", "images that reach their class within what takes 9 of 10 to another one",
           "reference"),
    Metric("other_reached", "other reached", "images that reach another class within the largest budget", "reference"),
    Metric("mia_shadow", "MIA", "forgotten images called members by a Shokri shadow-model attack", "down", *_PART),
    Metric("mia_svc", "MIA SVC", "forgotten images called members by SalUn's SVC (it prints 1 - this)", "down", *_PART),
    Metric("mia_rmia", "RMIA", "how well offline RMIA tells forgotten from unseen images", "reference", *_AUC),
    Metric("mia_lira", "LiRA", "how well offline LiRA tells forgotten from unseen images", "reference", *_AUC),
    Metric("logit_auc", "logit AUC", "how well a forgotten class's logit finds its test images", "reference", *_AUC,
           split="test", function=ranked),
    Metric("probe_accuracy", "linear probe", "recall of forgotten classes by a linear probe on features", "reference",
           *_PART, split="forget_test"),
    Metric("residual_knowledge", "excess", "UA after the attack minus the retrained model's", "down", low=-1),
    Metric("residual_ratio", "ratio", "recovered images per image that retrain gives up too", "down", "ratio",
           high=_INF),
)  # fmt: skip
"""Every metric of the classification task, in the order of its tables. Shares are stored as 0..1, not percent."""
cell = Cells(METRICS)
