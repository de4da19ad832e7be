"""Every metric of the classification task, with the function that computes it."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rub.metrics import layers
from rub.metrics.accuracy import correct, js_divergence, probe_accuracy, residual_knowledge, residual_ratio
from rub.metrics.base import Cells, Counted, Metric, Outputs
from rub.metrics.klom import klom
from rub.metrics.statistics import NORMAL

if TYPE_CHECKING:
    from rub.metrics.membership import ShadowOutputs, Shadows

POPULATION = 2000  # held-out images that RMIA compares with
TUNING_POINTS = 2000  # enough to choose RMIA's a from eleven values
OFFLINE_A = 0.33  # with too few shadows to tune it: the value of the RMIA paper's code for CIFAR
LIRA_SHADOWS = 4  # each point is out of half of them, and LiRA's spread needs two
GAPS = ("ua", "ra", "ta", "mia_svc")  # what the average gap is over (SalUn, Fan et al. 2024)
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Audited = tuple[NDArray[np.float32], "ShadowOutputs"]  # what the model and the shadows say of the same points


def right(outputs: Outputs) -> Bools:
    """Which samples the largest logit classifies right."""
    return correct(outputs.logits, outputs.labels)


def right_before(outputs: Outputs) -> Bools:
    """Which of the attacked images were recognised before the attack."""
    return right(outputs["clean"])


def right_of_kept(outputs: Outputs) -> Bools:
    """The same, of the classes that were kept."""
    return right(outputs.select(_kept(outputs)))


def of_kept_classes(outputs: Outputs) -> dict[str, str]:
    """Among how many classes an accuracy on kept ones is."""
    return {"setting": f"of {outputs.num_classes - len(outputs.forget_classes)} classes"}


def ranked(outputs: Outputs) -> float:
    """How well the forgotten classes' log-odds rank the samples."""
    return layers.log_odds_auc(outputs.logits, outputs.labels, outputs.forget_classes)


def transplanted(outputs: Outputs) -> Bools | None:
    """Which samples the original's last layer classifies right by these features; None where it does not fit them."""
    head = outputs["original"].head
    if head is None or head[0].shape[1:] != outputs.features.shape[1:]:
        return None
    return correct(layers.read_by(head, outputs.features), outputs.labels)


def transplanted_kept(outputs: Outputs) -> Bools | None:
    """The same, of the classes that were kept."""
    found = transplanted(outputs)
    return None if found is None else found[_kept(outputs)]


def refitted(outputs: Outputs) -> float | None:
    """Balanced accuracy with the forgotten rows of the head fitted to a few images; None without such a head."""
    train = outputs["few"]
    rows = layers.few(train.labels, outputs.forget_classes)
    if outputs.head is None:
        return None
    shown = train.features[rows], train.labels[rows]
    return layers.head_refit(*shown, outputs.features, outputs.labels, outputs.head, outputs.forget_classes)


def probed_evenly(outputs: Outputs) -> float:
    """Balanced accuracy of a linear probe on a few images of each class."""
    train = outputs["few"]
    return layers.probe_balanced(train.features, train.labels, outputs.features, outputs.labels, outputs.forget_classes)


def nearest(outputs: Outputs) -> float:
    """Balanced accuracy of the nearest class mean of a few images of each class."""
    train = outputs["few"]
    return layers.prototypes(train.features, train.labels, outputs.features, outputs.labels, outputs.forget_classes)


def until_half(outputs: Outputs) -> float:
    """Binary logarithm of the steps of fine-tuning until UA is half of the original's."""
    return _until_half(outputs, "relearn")


def until_half_by_kept(outputs: Outputs) -> float:
    """The same, by kept images alone."""
    return _until_half(outputs, "relearn_retain")


def probed(outputs: Outputs) -> float:
    """Recall of the forgotten classes by a linear probe, trained on the images of ``probe``."""
    train, most = outputs["probe"], {name: outputs.spec[f"probe_{name}"] for name in ("per_class", "total")}
    return probe_accuracy(
        train.features, train.labels, outputs.features, outputs.labels, outputs.forget_classes, seed=0, **most
    )


def called_by_shadows(outputs: Outputs) -> Bools:
    """Which samples the attack that was fitted to the shadow models calls members."""
    return _shadows(outputs).attack.members(outputs.logits, outputs.labels)


def called_by_svc(outputs: Outputs) -> Bools:
    """Which samples SalUn's attack calls members, fitted to kept training images and unseen images of kept classes."""
    from rub.metrics.membership import svc_fit

    retain, test = outputs["retain"], outputs["test"].select(_kept(outputs["test"]))
    attack = svc_fit((retain.logits, retain.labels), (test.logits, test.labels), seed=outputs.spec["seed"])
    return attack.members(outputs.logits, outputs.labels)


def rmia(outputs: Outputs) -> Counted:
    """AUC of offline RMIA, forgotten training images against unseen images of the same classes."""
    from rub.metrics.membership import auc_interval, rmia_scores, tune_offline_a

    shadows, (audited, (seen, population), member) = _shadows(outputs), _audited(outputs)
    a = OFFLINE_A
    if len(shadows) >= LIRA_SHADOWS:
        pool = np.random.default_rng(0).permutation(shadows.used)[:TUNING_POINTS]
        a = tune_offline_a(shadows.train.points(pool), population)
    scores = rmia_scores(*audited, seen, population, offline_a=a)
    return Counted(*auc_interval(scores[member], scores[~member]))


def lira(outputs: Outputs) -> Counted:
    """AUC of offline LiRA on the same images."""
    from rub.metrics.membership import auc_interval, lira_scores

    audited, _, member = _audited(outputs)
    scores = lira_scores(*audited)
    return Counted(*auc_interval(scores[member], scores[~member]))


def against_population(outputs: Outputs) -> Counted:
    """AUC of Attack-P, which takes no further model: forgotten training images against unseen ones of their classes.

    The population is what was held out of all training, or half of the unseen images.
    """
    from rub.metrics.membership import auc_interval, population_scores

    unseen, population = outputs["forget_test"], outputs["population"]
    if not len(population):
        half = np.random.default_rng(0).permutation(len(unseen)) % 2 == 0
        unseen, population = unseen.select(half), unseen.select(~half)
    known = np.isin(unseen.labels, population.labels)
    pairs = [(part.logits, part.labels) for part in (outputs, unseen.select(known))]
    scores = [population_scores(*pair, population.logits, population.labels) for pair in pairs]
    return Counted(*auc_interval(*scores))


def nearer_boundary(outputs: Outputs) -> Counted:
    """AUC of the distance to the decision boundary, forgotten training images against unseen ones of their classes."""
    from rub.metrics.membership import auc_interval

    return Counted(*auc_interval(selectivity(outputs), selectivity(outputs["forget_test"])))


def zero_retain_forgetting(outputs: Outputs) -> Counted:
    """Mean over forgotten images of 1 - JS of the prediction and that of a network of the kind that was never trained.

    ZRF of Chundawat et al. (AAAI 2023); its code divides by the number of classes once more, which is off here.
    """
    values = 1 - js_divergence(outputs.logits, outputs["untrained"].logits)
    half = NORMAL * float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return Counted(float(values.mean()), len(values), float(values.mean()) - half, float(values.mean()) + half)


def passes(outputs: Outputs) -> float | None:
    """Images that went through the network while the model was made, per training image; None where nobody counted."""
    return outputs.facts.get("passes")


def average_gap(outputs: Outputs) -> float:
    """Mean of the absolute differences to the retrained model in UA, RA, TA and MIA SVC."""
    return float(np.mean([abs(outputs.facts[name] - outputs["retrained"].facts[name]) for name in GAPS]))


def margins_apart(outputs: Outputs) -> Counted:
    """Mean KLOM of the forgotten images, all unlearned models against all retrained ones."""
    values = klom(outputs.scores["margins"].T, outputs["retrained"].scores["margins"].T)
    return Counted(float(values.mean()), len(values))


def forgotten_or_unseen(outputs: Outputs) -> Counted:
    """AUC of U-LiRA over all shadows and forgotten images."""
    from rub.metrics.membership import audit_auc, ulira_scores

    signals, member = (outputs.scores[name].T for name in ("signals", "member"))
    return Counted(audit_auc(ulira_scores(signals, member).ravel(), member.ravel()), len(outputs))


def own_radius(outputs: Outputs) -> Floats:
    """Binary logarithm of the radius of each image towards its own class."""
    return outputs.scores["own"]


def other_radius(outputs: Outputs) -> Floats:
    """The same of the same images towards another class."""
    return outputs.scores["other"]


def selectivity(outputs: Outputs) -> Floats:
    """Their difference: the image is held fixed, so what makes it easy or hard to change cancels."""
    return other_radius(outputs) - own_radius(outputs)


def own_reached(outputs: Outputs) -> Bools:
    """Which images reach their own class within the change that takes 9 of 10 to another class, or the largest."""
    most = min(float(np.quantile(other_radius(outputs), 0.9)), _largest(outputs))
    return np.asarray(own_radius(outputs) <= most)


def other_reached(outputs: Outputs) -> Bools:
    """Which images reach another class within the largest change."""
    return np.asarray(other_radius(outputs) <= _largest(outputs))


def excess(outputs: Outputs) -> float:
    """Share recovered minus that of the retrained model."""
    return residual_knowledge(right(outputs), _given_up(outputs))


def ratio(outputs: Outputs) -> float:
    """Recovered images per image that the retrained model gives up too."""
    return residual_ratio(right(outputs), _given_up(outputs))


def both_converged(outputs: Outputs) -> dict[str, bool]:
    """Whether the search had ended, and that on the retrained model too."""
    return {"converged": outputs.facts["converged"] and outputs["retrained"].facts["converged"]}


def _largest(outputs: Outputs) -> float:
    return float(np.log2(outputs.spec["radius"]["largest"]))


def _given_up(outputs: Outputs) -> Bools:
    reference = outputs["retrained"]
    if not np.array_equal(reference.ids, outputs.ids):
        raise ValueError("the retrained model was attacked on other images")
    return np.asarray(reference.scores["step"] >= 0)


def _until_half(outputs: Outputs, name: str) -> float:
    steps, wanted = outputs.facts[name], right(outputs["original"]).mean() / 2
    shares = outputs.scores[name].mean(axis=0)
    return layers.steps_until(steps, shares, float(wanted), outputs.spec["relearn"]["steps"])


def _kept(outputs: Outputs) -> Bools:
    return ~np.isin(outputs.labels, outputs.forget_classes)


def _shadows(outputs: Outputs) -> "Shadows":
    assert outputs.shadows is not None  # the metrics that come here declare them
    return outputs.shadows


# Members and non-members that are audited, a population that nobody trained on, and which of the former are members.
def _audited(outputs: Outputs) -> tuple[Audited, Audited, Bools]:
    from rub.metrics.membership import joined

    shadows, test, population = _shadows(outputs), outputs["test"], outputs["population"]
    train, unseen = shadows.train, shadows.test
    same = np.isin(test.labels, outputs.forget_classes) if outputs.forget_classes else np.ones(len(test), np.bool_)
    others = np.random.default_rng(0).permutation(np.flatnonzero(same))
    if len(population):
        outside = population.logits, train.points(shadows.places(population.ids))
    else:  # nothing was held out: half of the unseen images are the population, the other half the non-members
        others, rest = others[::2], others[1::2]
        outside = test.logits[rest], unseen.points(rest)
    said = joined(train.points(shadows.places(outputs.ids)), unseen.points(others))
    member = np.arange(len(outputs) + len(others)) < len(outputs)
    return (np.concatenate([outputs.logits, test.logits[others]]), said), outside, member


_INF = float("inf")
_PART, _AUC, _LOG = ("fraction", 3), ("AUC", 3), ("log2", 2)  # units and decimals

METRICS: tuple[Metric, ...] = (
    Metric("ta", "TA", "accuracy on test images of the classes that were kept", right_of_kept, "up", split="test",
           facts=of_kept_classes, share=True),
    Metric("ta_all", "TA all", "accuracy on all test images, those of forgotten classes included", right,
           "reference", split="test", share=True),
    Metric("va", "VA", "accuracy on held-out images of the classes that were kept, by which settings are chosen",
           right_of_kept, "up", split="validation", share=True),
    Metric("ra", "RA", "accuracy on the training images that were kept", right, "up", split="retain", share=True),
    Metric("ua", "UA", "accuracy on the forgotten training images (the paper's UA, not 1 - UA)", right, "down",
           attacked=True, knowledge="rises", share=True),
    Metric("ua_test", "UA test", "accuracy on test images of the classes of forgotten ones, never trained on", right,
           "down", split="forget_test", attacked=True, knowledge="rises", share=True),
    Metric("ua_before", "before", "attacked images that are recognised without the attack", right_before,
           "down", needs=("clean",), stage="", attacked=True, share=True),
    Metric("own_radius", "own", "log2 of the smallest change in 1/255 at which an image is said to be of its own class",
           own_radius, "reference", *_LOG, low=-_INF, high=_INF, stage="radius", knowledge="falls"),
    Metric("other_radius", "other", "the same of the same images, towards another class", other_radius, "reference",
           *_LOG, low=-_INF, high=_INF, stage="radius"),
    Metric("selectivity", "selectivity", "log2(other / own) of an image: above 0, its own class is the nearer one",
           selectivity, "reference", *_LOG, low=-_INF, high=_INF, stage="radius", knowledge="rises"),
    Metric("own_reached", "own reached", "images that reach their class within what takes 9 of 10 to another one",
           own_reached, "reference", stage="radius", knowledge="rises", share=True),
    Metric("other_reached", "other reached", "images that reach another class within the largest budget",
           other_reached, "reference", stage="radius", share=True),
    Metric("boundary", "boundary AUC", "how well log2(other / own) tells forgotten from unseen images, 0.5: not at all",
           nearer_boundary, "reference", *_AUC, needs=("forget_test",), samplewise=True, stage="radius",
           knowledge="rises"),
    Metric("residual_knowledge", "excess", "UA after the attack minus the retrained model's", excess, "down", low=-1,
           needs=("retrained",), stage="", attacked=True, facts=both_converged),
    Metric("residual_ratio", "ratio", "recovered images per image that retrain gives up too", ratio, "down", "ratio",
           high=_INF, needs=("retrained",), stage="", attacked=True, facts=both_converged),
    Metric("log_odds_auc", "log-odds AUC", "how well a forgotten class's log-odds find its test images", ranked,
           "reference", *_AUC, split="test", classwise=True, knowledge="rises"),
    Metric("head_refit", "refitted head", "balanced accuracy with forgotten rows of the head fitted to a few images",
           refitted, "reference", split="test", needs=("few",), classwise=True, knowledge="rises"),
    Metric("transplant", "transplant", "unseen forgotten images that the original's last layer reads from the features",
           transplanted, "reference", split="forget_test", needs=("original",), classwise=True, knowledge="rises",
           share=True),
    Metric("transplant_ta", "transplant TA", "TA with the original's last layer: whether it fits the features at all",
           transplanted_kept, "reference", split="test", needs=("original",), classwise=True, share=True),
    Metric("probe_balanced", "balanced probe", "balanced accuracy of a linear probe on a few images of each class",
           probed_evenly, "reference", split="test", needs=("few",), classwise=True, knowledge="rises"),
    Metric("prototypes", "prototypes", "balanced accuracy of the nearest mean of a few images of each class", nearest,
           "reference", split="test", needs=("few",), classwise=True, knowledge="rises"),
    Metric("relearn", "relearning", "log2 of the steps of fine-tuning until UA on unseen images is half the original's",
           until_half, "reference", *_LOG, split="forget_test", low=-1, high=_INF, needs=("original",), classwise=True,
           stage="relearn", knowledge="falls"),
    Metric("relearn_retain", "relearning by kept", "the same, fine-tuned on kept images alone", until_half_by_kept,
           "reference", *_LOG, split="forget_test", low=-1, high=_INF, needs=("original",), classwise=True,
           stage="relearn", knowledge="falls"),
    Metric("probe_accuracy", "linear probe", "recall of forgotten classes by a linear probe on features", probed,
           "reference", *_PART, split="forget_test", needs=("probe",), classwise=True, knowledge="rises"),
    Metric("mia_svc", "MIA SVC", "forgotten images called members by SalUn's SVC on confidence (it prints 1 - this)",
           called_by_svc, "down", *_PART, needs=("retain", "test"), knowledge="rises", share=True),
    Metric("mia_population", "MIA population", "how well Attack-P tells forgotten from unseen images, without shadows",
           against_population, "reference", *_AUC, needs=("forget_test", "population"), knowledge="rises"),
    Metric("zrf", "ZRF", "1 - JS divergence to an untrained network's predictions on forgotten images, log base 2",
           zero_retain_forgetting, "reference", *_PART, needs=("untrained",), knowledge="falls", made=True),
    Metric("avg_gap", "avg gap", "mean distance to the retrained model in UA, RA, TA and MIA SVC", average_gap,
           "reference", needs=("retrained",), stage="gap"),
    Metric("ulira", "U-LiRA", "how well U-LiRA tells what a method made shadow models forget from what they never saw",
           forgotten_or_unseen, "reference", *_AUC, stage="ulira"),
    Metric("klom", "KLOM", "KL divergence of a forgotten image's margins, all unlearned models to all retrained ones",
           margins_apart, "reference", "nats", 2, high=_INF, needs=("retrained",), stage="klom"),
    Metric("passes", "passes", "images through the network while the model was made, per training image", passes,
           "reference", "per image", 2, high=_INF, made=True, optional=True),
    Metric("mia_shadow", "MIA", "forgotten images called members by a Shokri shadow-model attack", called_by_shadows,
           "down", *_PART, shadows=2, seeded=True, attacked=True, knowledge="rises", share=True),
    Metric("mia_rmia", "RMIA", "how well offline RMIA tells forgotten from unseen images", rmia, "reference", *_AUC,
           needs=("test", "population"), shadows=2, knowledge="rises"),
    Metric("mia_lira", "LiRA", "how well offline LiRA tells forgotten from unseen images", lira, "reference", *_AUC,
           needs=("test", "population"), shadows=LIRA_SHADOWS, knowledge="rises"),
)  # fmt: skip
"""Every metric of the classification task, in the order of its tables. Shares are stored as 0..1, not percent."""
cell = Cells(METRICS)


def metrics_of_stage(kind: str) -> list[Metric]:
    """Metrics that the stages of a kind measure."""
    return [item for item in METRICS if item.stage == kind]


def clean_metrics(classwise: bool, *, shadows: int, held_out: bool, made: bool) -> list[Metric]:
    """Metrics of ``measure``, for whole classes or not, so many shadow models, images held out, models made here."""
    own = [item for item in metrics_of_stage("measure") if held_out or item.split != "validation"]
    own = [item for item in own if made or not item.made]
    return [item for item in own if item.shadows <= shadows and (classwise or not item.classwise)]


def radius_metrics(classwise: bool, sets: Iterable[str]) -> list[tuple[str, Metric]]:
    """Sets and metrics of ``radius``: each set has all, but for those that compare sets, which have a set of their own.

    These are measured where single samples are forgotten.
    """
    own = metrics_of_stage("radius")
    alone = [(name, item) for name in sets for item in own if not item.samplewise]
    return alone + [(item.split, item) for item in own if item.samplewise and not classwise]


def attacked_metrics(split: str, *, shadows: int, retrained: bool) -> list[Metric]:
    """Metrics of what an attack found for a set; images that were steered to a class that is not theirs count by UA."""
    own = [item for item in METRICS if item.attacked and item.split == split]
    shown = own or [item for item in METRICS if item.name == "ua"]
    return [item for item in shown if item.shadows <= shadows and (retrained or "retrained" not in item.needs)]
