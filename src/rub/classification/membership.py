"""Membership inference on logits: Shokri's shadow attack, SalUn's SVC attack, offline RMIA and offline LiRA.

Facts were read from OPTML-Group/Unlearn-Saliency (`evaluation/SVC_MIA.py`) and privacytrustlab/ml_privacy_meter
(`modules/mia/attacks/rmia.py`); equations are from the papers each function names.

Direction: the two classifiers (`shokri_fit`, `svc_fit`) are read as the fraction of forgotten samples called MEMBER,
lower is better, as in the paper. The two scores (`rmia_scores`, `lira_scores`) are read as an AUC against unseen test
images of the same classes, where a model that never saw the forget set gets about .5; retrain is the reference for all.

Functions accept NumPy arrays or CPU tensors and compute in float64. All randomness comes from the `seed` argument.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr, log_softmax, logsumexp, softmax

from rub.classification.metrics import checked
from rub.errors import RubError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Outputs = tuple[ArrayLike, ArrayLike]
"""Logits, float (N, C), and labels, integer (N,), of one group of samples."""
Feature = Literal["confidence", "correctness", "entropy", "modified_entropy", "prob"]


@dataclass(frozen=True)
class MembershipAttack:
    """A fitted classifier of members and non-members.

    Attributes:
        classifier: the fitted scikit-learn classifier; class 1 is "member".
        features: (logits, labels) -> float (N, F), what the classifier sees.
        references: samples per side (members, non-members) that it was fitted on; print it with every result.
    """

    classifier: Any
    features: Callable[[ArrayLike, ArrayLike], Floats]
    references: int

    def members(self, logits: ArrayLike, labels: ArrayLike) -> Bools:
        """Return bool (N,): which samples are called members; the mean over forgotten samples is the metric."""
        return np.asarray(self.classifier.predict(self.features(logits, labels)) == 1)


@dataclass(frozen=True)
class ShadowOutputs:
    """What K shadow models, each trained on a random half of the training data, say of the same N points.

    Attributes:
        logits: float (K, N, C).
        member: bool (K, N), whether point n was in the training half of shadow k; all False for test points.
        labels: integer (N,).
    """

    logits: NDArray[np.floating[Any]]
    member: Bools
    labels: NDArray[np.integer[Any]]

    def __post_init__(self) -> None:
        """Turn tensors into arrays and refuse shapes that do not fit."""
        object.__setattr__(self, "logits", np.asarray(self.logits))
        object.__setattr__(self, "member", np.asarray(self.member, np.bool_))
        object.__setattr__(self, "labels", np.asarray(self.labels))
        if self.logits.ndim != 3 or self.member.shape != self.logits.shape[:2]:
            raise ValueError(f"need logits (K, N, C), member (K, N), got {self.logits.shape} and {self.member.shape}")
        if self.labels.shape != self.logits.shape[1:2]:
            raise ValueError(f"need labels (N,) for logits (K, N, C), got {self.labels.shape}, {self.logits.shape}")

    def without(self, shadow: int) -> "ShadowOutputs":
        """Return the outputs of the other K - 1 shadows."""
        return replace(
            self, logits=np.delete(self.logits, shadow, axis=0), member=np.delete(self.member, shadow, axis=0)
        )

    def points(self, index: NDArray[Any]) -> "ShadowOutputs":
        """Return the outputs for some of the points: positions, or a mask bool (N,)."""
        return ShadowOutputs(self.logits[:, index], self.member[:, index], self.labels[index])

    def each(self, signal: Callable[[ArrayLike, ArrayLike], Floats]) -> Floats:
        """Return float (K, N): a per-sample signal of every shadow."""
        return np.stack([signal(logits, self.labels) for logits in self.logits])


def true_log_probability(logits: ArrayLike, labels: ArrayLike) -> Floats:
    """Return log p_y, float64 (N,), of logits (N, C) and labels (N,)."""
    z, y = checked(logits, labels)
    return np.asarray(log_softmax(z, axis=1)[np.arange(len(y)), y])


def logit_confidence(logits: ArrayLike, labels: ArrayLike) -> Floats:
    """Return the logit-scaled confidence log p_y - log(1 - p_y) = z_y - logsumexp_{j != y} z_j (LiRA, eq. 2).

    Computed from logits, it stays exact where p_y rounds to 1.

    Args:
        logits: float (N, C), C >= 2, finite.
        labels: integer (N,).

    Returns:
        float64 (N,), unbounded and finite.

    Example:
        >>> logit_confidence([[100.0, 0.0]], [0]).tolist()
        [100.0]
    """
    z, y = checked(logits, labels)
    rows = np.arange(len(y))
    others = z.copy()
    others[rows, y] = -np.inf
    return np.asarray(z[rows, y] - logsumexp(others, axis=1))


def entropy(logits: ArrayLike) -> Floats:
    """Return -sum_j p_j log p_j, float64 (N,), in [0, log C], of logits (N, C)."""
    return np.asarray(entr(softmax(np.asarray(logits, np.float64), axis=1)).sum(axis=1))


def modified_entropy(logits: ArrayLike, labels: ArrayLike) -> Floats:
    """Return -(1 - p_y) log p_y - sum_{j != y} p_j log(1 - p_j) (Song & Mittal, USENIX Security 2021, eq. 8).

    Near 0 for a confident right answer and large for a confident wrong one. Unlike SalUn's `evaluation/SVC_MIA.py`,
    a sample's value does not depend on the other samples of its batch.

    Args:
        logits: float (N, C), C >= 2, finite; pass log-probabilities when only those are known.
        labels: integer (N,).

    Returns:
        float64 (N,), >= 0 and finite.

    Example:
        >>> bool(modified_entropy([[9.0, 0.0]], [0])[0] < 0.01 < modified_entropy([[9.0, 0.0]], [1])[0])
        True
    """
    z, y = checked(logits, labels)
    log_p = np.asarray(log_softmax(z, axis=1))
    p, rows, top = np.exp(log_p), np.arange(len(y)), z.argmax(axis=1)
    log_rest = np.log1p(-np.where(np.arange(z.shape[1]) == top[:, None], 0, p))
    # 1 - p of the largest probability may round to 0: take it from the logits
    log_rest[rows, top] = log_p[rows, top] - logit_confidence(z, top)
    terms = p * log_rest
    terms[rows, y] = np.exp(log_rest[rows, y]) * log_p[rows, y]
    return np.asarray(-terms.sum(axis=1))


def shokri_features(logits: ArrayLike, labels: ArrayLike) -> Floats:
    """Return float (N, 3 + min(3, C)): logit-scaled confidence, the largest three p (sorted), entropy, correctness."""
    z, y = checked(logits, labels)
    top = -np.sort(-np.asarray(softmax(z, axis=1)), axis=1)[:, :3]
    right = (z.argmax(axis=1) == y).astype(np.float64)
    return np.column_stack([logit_confidence(z, y), top, entropy(z), right])


def shokri_fit(shadows: ShadowOutputs, *, seed: int, cap: int = 10_000) -> MembershipAttack:
    """Fit the shadow-model attack of Shokri et al. (IEEE S&P 2017): learn "member" from shadows, apply to the target.

    Differences from the paper: one attack model for all classes in place of one per class, whose samples would be too
    few with many classes, so it sees `shokri_features`, which do not depend on the class, in place of the raw
    probability vector; and it is a logistic regression on standardised features (C = 1), which has a unique optimum.

    Args:
        shadows: outputs of K >= 1 shadows on training points; about half are members of each.
        seed: the membership seed; draws equally many members and non-members from the K x N outputs.
        cap: most samples per side.

    Returns:
        The attack; the mean of its `members` over forgotten samples is `mia_shadow`.

    Raises:
        RubError: the shadows have no members or no non-members.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    truth = shadows.member.ravel()
    inside, outside = np.flatnonzero(truth), np.flatnonzero(~truth)
    references = min(len(inside), len(outside), cap)
    if references == 0:
        raise RubError(f"shadow attack: {len(inside)} members and {len(outside)} non-members: needs some of both")
    rng = np.random.default_rng(seed)
    chosen = np.concatenate([rng.permutation(side)[:references] for side in (inside, outside)])
    shadow, point = np.divmod(chosen, shadows.member.shape[1])
    seen = shokri_features(shadows.logits[shadow, point], shadows.labels[point])
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return MembershipAttack(classifier.fit(seen, truth[chosen].astype(np.int64)), shokri_features, references)


def svc_features(feature: Feature) -> Callable[[ArrayLike, ArrayLike], Floats]:
    """Return the function (logits, labels) -> float (N, F) of one of SalUn's five features; F = 1 but for "prob"."""
    table: dict[str, Callable[[ArrayLike, ArrayLike], Floats]] = {
        "confidence": lambda z, y: np.exp(true_log_probability(z, y))[:, None],
        "correctness": lambda z, y: (np.argmax(checked(z, y)[0], axis=1) == np.asarray(y)).astype(np.float64)[:, None],
        "entropy": lambda z, y: entropy(checked(z, y)[0])[:, None],
        "modified_entropy": lambda z, y: modified_entropy(z, y)[:, None],
        "prob": lambda z, y: np.asarray(softmax(checked(z, y)[0], axis=1)),
    }
    if feature not in table:
        raise RubError(f"SVC attack: unknown feature '{feature}': known: {', '.join(table)}")
    return table[feature]


def svc_fit(
    retain: Outputs, test: Outputs, *, seed: int, feature: Feature = "confidence", cap: int = 2000
) -> MembershipAttack:
    """Fit SalUn's attack: an RBF support vector machine (C = 3, gamma = 1/F) on the unlearned model's own outputs.

    Differences from upstream: members are random retain samples, not the first ones; both sides are capped, equal in
    size and drawn by the seed; the modified entropy is the correct one; and RUB reads the fraction called MEMBER (lower is
    better), where upstream prints the fraction called non-member. For class-wise forgetting it never sees the class.

    Args:
        retain: (logits, labels) of retained training samples: members.
        test: (logits, labels) of test samples of retained classes: non-members.
        seed: the membership seed.
        feature: what the classifier sees; SalUn's headline is "confidence", p_y.
        cap: most samples per side.

    Returns:
        The attack; the mean of its `members` over forgotten samples is `mia_svc`.

    Raises:
        RubError: an unknown feature.
    """
    from sklearn.svm import SVC

    features = svc_features(feature)
    rng = np.random.default_rng(seed)
    sides = [features(*side) for side in (retain, test)]
    references = min(*map(len, sides), cap)
    seen = np.concatenate([side[rng.permutation(len(side))[:references]] for side in sides])
    classifier = SVC(C=3, gamma="auto", kernel="rbf").fit(seen, np.repeat([1, 0], references))
    return MembershipAttack(classifier, features, references)


def rmia_scores(
    logits: ArrayLike,
    shadows: ShadowOutputs,
    population_logits: ArrayLike,
    population: ShadowOutputs,
    *,
    offline_a: float = 0.33,
    gamma: float = 1.0,
) -> Floats:
    """Return the offline RMIA score of each audited point (Zarifzadeh et al., ICML 2024, eq. 4 and 10).

    score(x) = Pr_z[ (p(x|theta)/p(x)) / (p(z|theta)/p(z)) > gamma ], p(x) = ((1 + a) P_out(x) + (1 - a)) / 2, with
    P_out the mean true-label probability over the shadows that did not train on the point.

    Args:
        logits: float (N, C), the audited model on the audited points: forgotten and reference points in one call.
        shadows: the shadows on the same points; each must be left out by at least one.
        population_logits: float (M, C), the audited model on population points z that nobody trained on.
        population: the shadows on the z.
        offline_a: a in [0, 1]; see `tune_offline_a`.
        gamma: threshold on the ratio, > 0.

    Returns:
        float (N,), in [0, 1]; higher means more like a member.

    Raises:
        RubError: a point that every shadow trained on.
    """
    x = _log_ratio(logits, shadows, offline_a)
    z = np.sort(_log_ratio(population_logits, population, offline_a))
    return np.asarray(np.searchsorted(z, x - np.log(gamma), side="left") / len(z))


def tune_offline_a(shadows: ShadowOutputs, population: ShadowOutputs, *, paired: int = 0) -> float:
    """Choose RMIA's a in 0, .1, ..., 1: the largest AUC when one shadow is audited with the others' help.

    Args:
        shadows: at least two shadows on training points.
        population: the same shadows on population points.
        paired: the shadow that plays the audited model; its `member` row is the truth.

    Returns:
        The best a; the smallest of equals.

    Raises:
        RubError: no point left out by another shadow is a member, or none is a non-member.
    """
    usable = shadows.points(~shadows.without(paired).member.all(axis=0))
    others, others_z = usable.without(paired), population.without(paired)
    audited, audited_z = usable.logits[paired], population.logits[paired]

    def quality(a: float) -> float:
        return audit_auc(rmia_scores(audited, others, audited_z, others_z, offline_a=a), usable.member[paired])

    return max((step / 10 for step in range(11)), key=quality)


def lira_scores(logits: ArrayLike, shadows: ShadowOutputs, *, enough: int = 16) -> Floats:
    """Return the offline LiRA score of each audited point (Carlini et al., IEEE S&P 2022, section V).

    (phi - mu_out) / sigma, with phi the logit-scaled confidence and mu_out its mean over the shadows that did not train
    on the point. The paper's score is Phi of this, which ranks the same but rounds to 1 for every clear member.

    Args:
        logits: float (N, C), the audited model on the audited points: forgotten and reference points in one call, so
            that both are judged with one rule for sigma.
        shadows: the shadows on the same points; each must be left out by at least one.
        enough: sigma is the point's own (ddof 1) when every point has this many OUT shadows, else one for all points:
            the pooled deviation from each point's mean.

    Returns:
        float (N,); higher means more like a member.

    Raises:
        RubError: a point that every shadow trained on, or no point left out twice, or no spread to scale by.
    """
    phi, out = shadows.each(logit_confidence), _out(shadows)
    counts, mean = out.sum(axis=0), np.mean(phi, axis=0, where=out)
    squares = np.sum((phi - mean) ** 2, axis=0, where=out)
    if counts.min() >= max(enough, 2):
        sigma = np.sqrt(squares / (counts - 1))
    else:
        sigma = np.sqrt(squares.sum(keepdims=True) / max(counts.sum() - len(counts), 1))
    if not (sigma > 0).all():
        raise RubError("LiRA: the OUT shadows of a point do not vary: train at least two different shadows per point")
    return np.asarray((logit_confidence(logits, shadows.labels) - mean) / sigma)


def audit_auc(scores: ArrayLike, member: ArrayLike) -> float:
    """Return the AUC of scores (N,) for telling members from others, bool (N,): `mia_rmia` and `mia_lira`, in [0, 1].

    For a forget set, "member" marks forgotten samples and the others are test images of the same classes.

    Raises:
        RubError: members only, or none.
    """
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(_both(member), np.asarray(scores, np.float64)))


def tpr_at_fpr(scores: ArrayLike, member: ArrayLike, fpr: float = 0.01) -> float:
    """Return the largest true-positive rate that some threshold reaches at a false-positive rate of at most `fpr`.

    Raises:
        RubError: members only, or none.
    """
    from sklearn.metrics import roc_curve

    false_rate, true_rate, _ = roc_curve(_both(member), np.asarray(scores, np.float64), drop_intermediate=False)
    return float(true_rate[false_rate <= fpr].max())


def _log_ratio(logits: ArrayLike, shadows: ShadowOutputs, a: float) -> Floats:
    """Return log p(x|theta) - log p(x), float (N,)."""
    p_out = np.mean(np.exp(shadows.each(true_log_probability)), axis=0, where=_out(shadows))
    return np.asarray(true_log_probability(logits, shadows.labels) - np.log(((1 + a) * p_out + 1 - a) / 2))


def _out(shadows: ShadowOutputs) -> Bools:
    """Return bool (K, N): which shadows leave a point out; every point needs one."""
    always = int(shadows.member.all(axis=0).sum())
    if always:
        raise RubError(f"membership: every shadow trained on {always} of {len(shadows.labels)} points: add shadows")
    return ~shadows.member


def _both(member: ArrayLike) -> Bools:
    truth = np.asarray(member, np.bool_)
    if truth.all() or not truth.any():
        raise RubError(f"membership: {int(truth.sum())} of {len(truth)} points are members: needs some of both kinds")
    return truth
