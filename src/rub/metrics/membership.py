"""Membership inference on logits: Shokri's shadow attack, SalUn's SVC attack, offline RMIA and offline LiRA.

Upstream: OPTML-Group/Unlearn-Saliency a6e89fd (`evaluation/SVC_MIA.py`) and privacytrustlab/ml_privacy_meter e384af8
(`modules/mia/attacks/rmia.py`); equations are those of the papers that each function names.

Direction: the two classifiers (`shokri_fit`, `svc_fit`) are read as the fraction of forgotten samples called MEMBER,
lower is better, as in the paper. The two scores (`rmia_scores`, `lira_scores`) are read as an AUC against unseen test
images of the same classes, where a model that never saw the forget set gets about .5; retrain is the reference for all.

Functions accept NumPy arrays or CPU tensors and compute in float64. All randomness comes from the `seed` argument.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rub.errors import RubError
from rub.metrics.signals import Feature, Floats, logit_confidence, shokri_features, svc_features, true_log_probability
from rub.metrics.statistics import NORMAL
from rub.store.artifacts import Artifact

Bools = NDArray[np.bool_]
Outputs = tuple[ArrayLike, ArrayLike]
"""Logits, float (N, C), and labels, integer (N,), of one group of samples."""


@dataclass(frozen=True)
class MembershipAttack:
    """A fitted scikit-learn classifier of members (class 1) and non-members, and the features that it sees.

    `references` samples per side (members, non-members) fitted it; print that number with every result.
    """

    classifier: Any
    features: Callable[[ArrayLike, ArrayLike], Floats]
    references: int

    def members(self, logits: ArrayLike, labels: ArrayLike) -> Bools:
        """Which samples are called members, bool (N,); the mean over forgotten samples is the metric."""
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
        """Outputs of the other K - 1 shadows."""
        return replace(
            self, logits=np.delete(self.logits, shadow, axis=0), member=np.delete(self.member, shadow, axis=0)
        )

    def points(self, index: NDArray[Any]) -> "ShadowOutputs":
        """Outputs for some of the points: positions, int (n,), or a mask, bool (N,)."""
        return ShadowOutputs(self.logits[:, index], self.member[:, index], self.labels[index])

    def each(self, signal: Callable[[ArrayLike, ArrayLike], Floats]) -> Floats:
        """Signal of every shadow for every sample, float (K, N)."""
        return np.stack([signal(logits, self.labels) for logits in self.logits])


def joined(first: ShadowOutputs, second: ShadowOutputs) -> ShadowOutputs:
    """Outputs of the same shadows for two groups of points."""
    return ShadowOutputs(
        np.concatenate([first.logits, second.logits], axis=1),
        np.concatenate([first.member, second.member], axis=1),
        np.concatenate([first.labels, second.labels]),
    )


@dataclass(frozen=True, eq=False)
class Shadows:
    """Shadow models of a data set, in pairs trained on complementary halves; what they say is read when asked for.

    Attributes:
        models: their artifacts, an even number.
        ids: int64 (N,), of the training samples, those held out included.
        labels: integer (N,), of the same.
        test_labels: integer (M,), of the test samples.
        seed: membership seed.
    """

    models: tuple[Artifact, ...]
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    test_labels: NDArray[np.int64]
    seed: int = 0

    def __len__(self) -> int:
        return len(self.models)

    @property
    def train(self) -> ShadowOutputs:
        """Outputs for all training samples."""
        member = np.stack([np.load(item.file("member.npy"), allow_pickle=False) for item in self.models])
        return ShadowOutputs(self._logits("train"), member, self.labels)

    @property
    def test(self) -> ShadowOutputs:
        """Outputs for all test samples, of each of which half of the shadows are set aside as if trained on it.

        So members and non-members are judged by equally many: a mean of more shadows is another quantity.
        """
        logits = self._logits("test")
        aside = np.random.default_rng(1).random((len(logits) // 2, logits.shape[1])) < 0.5
        member = np.stack([aside, ~aside], axis=1).reshape(logits.shape[:2])
        return ShadowOutputs(logits, member, self.test_labels)

    @property
    def used(self) -> NDArray[np.int64]:
        """Places of the training samples that were not held out: those in one half of a pair or the other."""
        first, second = (np.load(item.file("member.npy"), allow_pickle=False) for item in self.models[:2])
        return np.flatnonzero(first | second)

    @cached_property
    def attack(self) -> MembershipAttack:
        """Shokri's attack that was fitted to them."""
        return shokri_fit(self.train.points(self.used), seed=self.seed)

    def places(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Places of these training samples, in the order of the data set."""
        return np.flatnonzero(np.isin(self.ids, ids))

    def _logits(self, part: str) -> NDArray[np.float32]:
        files = (item.file(f"{part}_logits.npy") for item in self.models)
        return np.stack([np.load(file, mmap_mode="r", allow_pickle=False) for file in files])


def shokri_fit(shadows: ShadowOutputs, *, seed: int, cap: int = 10_000) -> MembershipAttack:
    """Fit the shadow-model attack of Shokri et al. (IEEE S&P 2017): learn "member" from shadows, apply to the target.

    Differences from the paper: one attack model for all classes in place of one per class, whose samples would be too
    few with many classes, so it sees `shokri_features`, which do not depend on the class, in place of the raw
    probability vector; and it is a logistic regression on standardised features (C = 1), which has a unique optimum.
    The mean of `members` over forgotten samples is `mia_shadow`.

    Args:
        shadows: outputs of K >= 1 shadows on training points; about half are members of each.
        seed: the membership seed; draws equally many members and non-members from the K x N outputs.
        cap: most samples per side.

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


def svc_fit(
    retain: Outputs, test: Outputs, *, seed: int, feature: Feature = "confidence", cap: int = 2000
) -> MembershipAttack:
    """Fit SalUn's attack: an RBF support vector machine (C = 3, gamma = 1/F) on the unlearned model's own outputs.

    Differences from upstream: members are random retain samples, not the first ones; both sides are capped, equal in
    size and drawn by the seed; the modified entropy is the correct one; and RUB reads the fraction called MEMBER (lower
    is better), where upstream prints the fraction called non-member. When whole classes are forgotten, the classifier
    is fitted without any image of them. The mean of `members` over forgotten samples is `mia_svc`.

    Args:
        retain: (logits, labels) of retained training samples: members.
        test: (logits, labels) of test samples of retained classes: non-members.
        seed: the membership seed.
        feature: what the classifier sees; SalUn's headline is "confidence", p_y.
        cap: most samples per side.

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
    """Offline RMIA score, float (N,) in [0, 1], of each audited point (Zarifzadeh et al., ICML 2024); high for members.

    score(x) = Pr_z[ (p(x|theta)/p(x)) / (p(z|theta)/p(z)) > gamma ], p(x) = ((1 + a) P_out(x) + (1 - a)) / 2, with
    P_out the mean true-label probability over the shadows that did not train on the point.

    Args:
        logits: float (N, C), the audited model on the audited points: forgotten and reference points in one call.
        shadows: the shadows on the same points; each must be left out by at least one.
        population_logits: float (M, C), the audited model on population points z that nobody trained on.
        population: the shadows on the z.
        offline_a: a in [0, 1]; see `tune_offline_a`.
        gamma: threshold on the ratio, > 0.

    Raises:
        RubError: a point that every shadow trained on.
    """
    return _rmia(_rmia_signals(logits, shadows), _rmia_signals(population_logits, population), offline_a, gamma)


def tune_offline_a(shadows: ShadowOutputs, population: ShadowOutputs, *, paired: int = 0) -> float:
    """Choose RMIA's a, the smallest of 0, .1, ..., 1 with the largest AUC when others help to audit one shadow.

    Args:
        shadows: at least two shadows on training points, other than two complementary halves, of which neither left
            out what the other did.
        population: the same shadows on population points.
        paired: the shadow that plays the audited model; its `member` row is the truth.

    Raises:
        RubError: no point left out by another shadow is a member, or none is a non-member.
    """
    usable = shadows.points(np.flatnonzero(~shadows.without(paired).member.all(axis=0)))
    x = _rmia_signals(usable.logits[paired], usable.without(paired))
    z = _rmia_signals(population.logits[paired], population.without(paired))
    truth = usable.member[paired]
    return max((step / 10 for step in range(11)), key=lambda a: audit_auc(_rmia(x, z, a, 1.0), truth))


def lira_scores(logits: ArrayLike, shadows: ShadowOutputs, *, enough: int = 16) -> Floats:
    """Offline LiRA score, float (N,), of each audited point (Carlini et al., IEEE S&P 2022); high for members.

    (phi - mu_out) / sigma, with phi the logit-scaled confidence and mu_out its mean over the shadows that did not train
    on the point. The paper's score is Phi of this, which ranks the same but rounds to 1 for every clear member.

    Args:
        logits: float (N, C), the audited model on the audited points: forgotten and reference points in one call, so
            that both are judged with one rule for sigma.
        shadows: the shadows on the same points; each must be left out by at least one.
        enough: sigma is the point's own (ddof 1) when every point has this many OUT shadows, else one for all points:
            the pooled deviation from each point's mean.

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


def ulira_scores(signals: ArrayLike, member: ArrayLike, *, enough: int = 16) -> Floats:
    """U-LiRA score of every point in every shadow, float (K, N) (Hayes et al. 2024, arXiv 2403.01218); high: forgotten.

    log N(phi; mu_f, s_f) - log N(phi; mu_n, s_n), with phi the logit-scaled confidence of the point in this shadow, and
    mean and spread those of the other shadows: f where the point was trained on and then forgotten, n where it was
    never seen. So each shadow is audited by the others, and the unlearning method by all of them.

    Args:
        signals: float (K, N), phi of N points of the forget set in K shadows: models that were trained on a random half
            of the data and then forgot what they had of the forget set.
        member: bool (K, N), whether the point was in that half.
        enough: spreads are the point's own (ddof 1) where every point has this many shadows of either kind, else one
            for all points: the pooled deviation from each point's mean.

    Raises:
        RubError: a point that fewer than two others forgot, or never saw.
    """
    phi, truth = np.asarray(signals, np.float64), np.asarray(member, np.bool_)
    scores = np.empty_like(phi)
    for k in range(len(phi)):
        rest = np.arange(len(phi)) != k
        sides = [_fitted(phi[rest], side, enough) for side in (truth[rest], ~truth[rest])]
        seen, unseen = (-(((phi[k] - mean) / spread) ** 2) / 2 - np.log(spread) for mean, spread in sides)
        scores[k] = seen - unseen
    return scores


def _fitted(phi: Floats, kind: Bools, enough: int) -> tuple[Floats, Floats]:
    """Mean and spread (N,) of each point over the shadows that are of this kind for it, bool (K, N)."""
    counts = kind.sum(axis=0)
    if counts.min() < 2:
        raise RubError("U-LiRA: a point was forgotten, or never seen, by fewer than two other shadows: add shadows")
    mean = np.mean(phi, axis=0, where=kind)
    squares = np.sum((phi - mean) ** 2, axis=0, where=kind)
    own = squares / (counts - 1) if counts.min() >= enough else np.full_like(mean, squares.sum() / (counts - 1).sum())
    return mean, np.sqrt(np.maximum(own, np.finfo(np.float64).tiny))


def population_scores(
    logits: ArrayLike, labels: ArrayLike, population_logits: ArrayLike, population_labels: ArrayLike
) -> Floats:
    """Attack-P score, float (N,) in [0, 1], of each audited point (Ye et al., CCS 2022, section 4.2); high for members.

    score(x) = Pr_z[ p(x|theta) >= p(z|theta) ] over population points z of the class of x: RMIA's ratio without any
    reference model, so that it takes the audited model alone. Points that are hard or easy by nature are not told from
    non-members and members; the audited model's original shows what it can see.

    Args:
        logits: float (N, C), the audited model on the audited points.
        labels: integer (N,).
        population_logits: float (M, C), the same model on points that nobody trained on.
        population_labels: integer (M,), with every class of `labels` among them.

    Raises:
        RubError: a class without population points.

    Example:
        >>> population_scores([[2.0, 0.0], [0.0, 2.0]], [0, 0], [[1.0, 0.0], [3.0, 0.0]], [0, 0]).tolist()
        [0.5, 0.0]
    """
    own, pool = np.asarray(labels), np.asarray(population_labels)
    said, outside = true_log_probability(logits, own), true_log_probability(population_logits, pool)
    scores = np.empty(len(own))
    for label in np.unique(own):
        among = np.sort(outside[pool == label])
        if not len(among):
            raise RubError(f"membership: the population has no point of class {label}: hold out or give more images")
        scores[own == label] = np.searchsorted(among, said[own == label], side="right") / len(among)
    return scores


def auc_interval(members: ArrayLike, others: ArrayLike) -> tuple[float, int, float, float]:
    """AUC of scores for telling members (M,) from others (N,), M + N, and the 95 % interval of DeLong et al. (1988).

    Var = var(V10) / M + var(V01) / N, with V10 the share of others below each member, ties half, and V01 the share of
    members above each other point.

    Raises:
        RubError: fewer than two of either.

    Example:
        >>> auc_interval([2.0, 3.0, 1.0], [0.0, 2.5])[:2]
        (0.6666666666666666, 5)
    """
    inside, outside = np.asarray(members, np.float64), np.asarray(others, np.float64)
    if min(len(inside), len(outside)) < 2:
        raise RubError(f"membership: {len(inside)} members and {len(outside)} others: needs two of both kinds")
    above = _below(inside, outside)
    beneath = 1 - _below(outside, inside)
    auc = float(above.mean())
    half = NORMAL * float(np.sqrt(above.var(ddof=1) / len(inside) + beneath.var(ddof=1) / len(outside)))
    return auc, len(inside) + len(outside), max(auc - half, 0.0), min(auc + half, 1.0)


def _below(points: Floats, others: Floats) -> Floats:
    """Share of the others below each point, ties half."""
    ordered = np.sort(others)
    places = (np.searchsorted(ordered, points, side) for side in ("left", "right"))
    return np.asarray(sum(places) / (2 * len(ordered)))


def audit_auc(scores: ArrayLike, member: ArrayLike) -> float:
    """AUC of scores (N,) for telling members from others, bool (N,): `mia_rmia` and `mia_lira`, in [0, 1].

    For a forget set, "member" marks forgotten samples and the others are test images of the same classes.

    Raises:
        RubError: members only, or none.
    """
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(_both(member), np.asarray(scores, np.float64)))


def _rmia_signals(logits: ArrayLike, shadows: ShadowOutputs) -> tuple[Floats, Floats]:
    p_out = np.mean(np.exp(shadows.each(true_log_probability)), axis=0, where=_out(shadows))
    # a probability that underflows must not divide by zero where a = 1
    return true_log_probability(logits, shadows.labels), np.maximum(p_out, np.finfo(np.float64).tiny)


def _rmia(x: tuple[Floats, Floats], z: tuple[Floats, Floats], a: float, gamma: float) -> Floats:
    ratio_x, ratio_z = (log_p - np.log(((1 + a) * p_out + 1 - a) / 2) for log_p, p_out in (x, z))
    return np.asarray(np.searchsorted(np.sort(ratio_z), ratio_x - np.log(gamma), side="left") / len(ratio_z))


def _out(shadows: ShadowOutputs) -> Bools:
    if always := int(shadows.member.all(axis=0).sum()):
        raise RubError(f"membership: every shadow trained on {always} of {len(shadows.labels)} points: add shadows")
    return ~shadows.member


def _both(member: ArrayLike) -> Bools:
    truth = np.asarray(member, np.bool_)
    if truth.all() or not truth.any():
        raise RubError(f"membership: {int(truth.sum())} of {len(truth)} points are members: needs some of both kinds")
    return truth
