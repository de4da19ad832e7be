"""Membership inference against loops from the equations, by-hand numbers, and synthetic models of known membership."""

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.svm import SVC

from rub.errors import RubError
from rub.metrics.membership import (
    ShadowOutputs,
    auc_interval,
    audit_auc,
    lira_scores,
    population_scores,
    rmia_scores,
    shokri_fit,
    svc_fit,
    tune_offline_a,
    ulira_scores,
)
from rub.metrics.signals import entropy, logit_confidence, modified_entropy, shokri_features, svc_features

CLASSES = 5


def world(shadows=8, points=300, gain=3.0, seed=0):
    """Models that add `gain` to the right logit of what they trained on; difficulty differs by point.

    Returns the shadows, the audited model's logits (N, C), and which points it trained on.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, points)
    right = np.eye(CLASSES)[labels]
    hard = rng.normal(2, 2, (points, 1)) * right
    member = rng.random((shadows + 1, points)) < 0.5
    member[1, member[1:].all(axis=0)] = False  # every point is left out by a shadow
    noise = rng.normal(0, 0.7, (shadows + 1, points, CLASSES))
    logits = hard + noise + gain * member[:, :, None] * right
    return ShadowOutputs(logits[1:], member[1:], labels), logits[0], member[0]


def population(shadows=8, points=250, seed=1):
    outputs, logits, _ = world(shadows, points, gain=0.0, seed=seed)
    return ShadowOutputs(outputs.logits, np.zeros_like(outputs.member), outputs.labels), logits


def softmax_at(logits, label):
    return math.exp(logits[label]) / sum(math.exp(value) for value in logits)


def test_modified_entropy_published_values():
    torch.manual_seed(0)
    p = torch.softmax(torch.randn(6, 10) * 3, dim=1).double()
    got = modified_entropy(p.log(), torch.arange(6))
    assert got == pytest.approx([7.09, 3.90, 7.72, 3.76, 3.97, 0.764], abs=5e-3)
    alone = [modified_entropy(p[i : i + 1].log(), torch.tensor([i]))[0] for i in range(6)]
    assert got == pytest.approx(alone)  # a sample's value does not depend on its batch


def test_modified_entropy_and_entropy_equal_their_formulas():
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(20, 6)) * 3, rng.integers(0, 6, 20)
    for row, label, modified, plain in zip(z, y, modified_entropy(z, y), entropy(z), strict=True):
        p = [softmax_at(row, j) for j in range(6)]
        others = sum(p[j] * math.log(1 - p[j]) for j in range(6) if j != label)
        assert modified == pytest.approx(-(1 - p[label]) * math.log(p[label]) - others)
        assert plain == pytest.approx(-sum(v * math.log(v) for v in p))


def test_signals_stay_finite_where_probabilities_round():
    z = [[2000.0, 0.0, 0.0], [0.0, 2000.0, 0.0], [0.0, 0.0, 0.0]]
    assert logit_confidence(z, [0, 0, 0]) == pytest.approx([2000 - math.log(2), -2000, -math.log(2)])
    modified = modified_entropy(z, [0, 0, 0])
    assert modified[0] == 0 and modified[1] == pytest.approx(4000 - math.log(2))
    assert entropy(z)[:2].tolist() == [0, 0] and np.isfinite(modified).all()
    assert modified[2] == pytest.approx(2 / 3 * math.log(3) - 2 / 3 * math.log(2 / 3))


def test_logit_confidence_equals_its_formula():
    z = np.random.default_rng(1).normal(size=(30, 4))
    p = [softmax_at(row, 2) for row in z]
    assert logit_confidence(z, np.full(30, 2)) == pytest.approx([math.log(v) - math.log(1 - v) for v in p])


@pytest.mark.parametrize("gamma", [1.0, 1.5])
@pytest.mark.parametrize("a", [0.0, 0.33, 1.0])
def test_rmia_equals_the_direct_loop(a, gamma):
    shadows, logits, _ = world(points=60)
    z_shadows, z_logits = population(points=50)

    def ratio(target, outputs, n):
        label = outputs.labels[n]
        out = [softmax_at(outputs.logits[k, n], label) for k in range(8) if not outputs.member[k, n]]
        prior = ((1 + a) * sum(out) / len(out) + (1 - a)) / 2
        return softmax_at(target[n], label) / prior

    zs = [ratio(z_logits, z_shadows, m) for m in range(50)]
    expected = [np.mean([ratio(logits, shadows, n) / z > gamma for z in zs]) for n in range(60)]
    got = rmia_scores(logits, shadows, z_logits, z_shadows, offline_a=a, gamma=gamma)
    assert got == pytest.approx(expected)


def test_rmia_counts_strictly_smaller_ratios():
    shadows, logits, _ = world(points=1)
    copies = np.zeros(4, dtype=int)
    same = ShadowOutputs(shadows.logits[:, copies], np.zeros((8, 4), bool), shadows.labels[copies])
    assert rmia_scores(logits[copies], same, logits[copies], same).tolist() == [0.0] * 4


@pytest.mark.parametrize("enough", [2, 16])
def test_lira_equals_the_direct_loop(enough):
    shadows, logits, _ = world(points=60, shadows=12)
    assert (~shadows.member).sum(axis=0).min() >= 2
    p = [[softmax_at(row, y) for row, y in zip(m, shadows.labels, strict=True)] for m in [logits, *shadows.logits]]
    scaled = [[math.log(v) - math.log(1 - v) for v in model] for model in p]
    outs = [[scaled[k + 1][n] for k in range(12) if not shadows.member[k, n]] for n in range(60)]
    pooled = math.sqrt(sum(np.var(o) * len(o) for o in outs) / sum(len(o) - 1 for o in outs))
    expected = [
        (scaled[0][n] - np.mean(o)) / (np.std(o, ddof=1) if enough == 2 else pooled) for n, o in enumerate(outs)
    ]
    assert lira_scores(logits, shadows, enough=enough) == pytest.approx(expected)


def test_strong_attacks_separate_members_and_beat_plain_confidence():
    shadows, logits, truth = world()
    z_shadows, z_logits = population()
    plain = audit_auc(logit_confidence(logits, shadows.labels), truth)
    lira = audit_auc(lira_scores(logits, shadows), truth)
    rmia = audit_auc(rmia_scores(logits, shadows, z_logits, z_shadows), truth)
    assert lira > 0.95 and lira > plain + 0.03
    assert rmia > plain + 0.03


def test_a_model_that_never_saw_the_points_scores_one_half():
    """The retrained model: forgotten points (half of the shadows hold them) against test points (no shadow does)."""
    shadows, logits, _ = world(points=1200, gain=0.0)
    forgotten = np.arange(1200) < 600
    shadows = ShadowOutputs(shadows.logits, shadows.member & forgotten, shadows.labels)
    z_shadows, z_logits = population()
    scores = [lira_scores(logits, shadows), rmia_scores(logits, shadows, z_logits, z_shadows)]
    for score in scores:
        assert audit_auc(score, forgotten) == pytest.approx(0.5, abs=0.06)  # 3.5 standard errors
        remembered = logits + 3.0 * forgotten[:, None] * np.eye(CLASSES)[shadows.labels]
    assert audit_auc(lira_scores(remembered, shadows), forgotten) > 0.9


def test_shuffled_membership_gives_one_half():
    shadows, logits, truth = world(points=1500)
    shuffled = np.random.default_rng(3).permutation(truth)
    assert audit_auc(lira_scores(logits, shadows), shuffled) == pytest.approx(0.5, abs=0.05)
    assert audit_auc(lira_scores(logits, shadows), truth) > 0.9


def test_tuned_offline_a_is_the_best_of_the_grid():
    shadows, _, _ = world(points=200)
    z_shadows, _ = population()
    keep = ~shadows.without(2).member.all(axis=0)
    seen = shadows.points(keep)
    aucs = {}
    for a in np.arange(11) / 10:
        scores = rmia_scores(
            seen.logits[2], seen.without(2), z_shadows.logits[2], z_shadows.without(2), offline_a=float(a)
        )
        aucs[float(a)] = audit_auc(scores, seen.member[2])
    best = tune_offline_a(shadows, z_shadows, paired=2)
    assert aucs[best] == max(aucs.values())
    assert best == min(a for a, auc in aucs.items() if auc == aucs[best])


def test_tuning_needs_a_shadow_that_left_out_what_the_paired_one_left_out():
    shadows, _, _ = world(shadows=2)
    halves = ShadowOutputs(shadows.logits, np.stack([shadows.member[0], ~shadows.member[0]]), shadows.labels)
    with pytest.raises(RubError, match="both kinds"):
        tune_offline_a(halves, population(shadows=2)[0])


def test_shokri_calls_members_members():
    shadows, logits, truth = world(shadows=3, points=600, gain=4.0)
    attack = shokri_fit(shadows, seed=0, cap=500)
    called = attack.members(logits, shadows.labels)
    assert attack.references == 500
    assert (called == truth).mean() > 0.75
    assert (attack.members(logits, shadows.labels) == called).all()
    again = shokri_fit(shadows, seed=0, cap=500).members(logits, shadows.labels)
    other = shokri_fit(shadows, seed=1, cap=500).members(logits, shadows.labels)
    assert (again == called).all() and (other != called).any()


@pytest.mark.slow
def test_shokri_agrees_with_art():
    """ART's attack sees the raw probability vector and the one-hot label; boosted trees are its best model here."""
    inference = pytest.importorskip("art.attacks.inference.membership_inference")
    estimators = pytest.importorskip("art.estimators.classification")
    shadows, logits, truth = world(shadows=3, points=1000, gain=4.0)
    p, one_hot = softmax(shadows.logits, axis=2), np.eye(CLASSES)[shadows.labels]
    y, m = np.broadcast_to(one_hot, p.shape), shadows.member
    box = estimators.BlackBoxClassifier(lambda x: x, (CLASSES,), CLASSES)
    theirs = inference.MembershipInferenceBlackBox(box, attack_model_type="gb")
    theirs.fit(x=None, y=y[m], test_x=None, test_y=y[~m], pred=p[m], test_pred=p[~m])
    called = theirs.infer(None, one_hot, pred=softmax(logits, axis=1)).ravel()
    ours = shokri_fit(shadows, seed=0).members(logits, shadows.labels)
    assert (ours == truth).mean() == pytest.approx((called == truth).mean(), abs=0.04)
    assert (ours == called).mean() > 0.8


def test_shokri_on_shuffled_membership_predicts_nothing():
    shadows, _, _ = world(shadows=4, points=1500, gain=4.0)
    shuffled = ShadowOutputs(shadows.logits, np.random.default_rng(0).permuted(shadows.member, axis=1), shadows.labels)
    called = shokri_fit(shuffled.without(3), seed=0).members(shadows.logits[3], shadows.labels)
    assert (called == shuffled.member[3]).mean() == pytest.approx(0.5, abs=0.05)
    honest = shokri_fit(shadows.without(3), seed=0).members(shadows.logits[3], shadows.labels)
    assert (honest == shadows.member[3]).mean() > 0.75


def test_shokri_features_by_hand():
    p = np.array([[0.1, 0.6, 0.05, 0.25]])
    row = shokri_features(np.log(p), [3])[0]
    shannon = -(p * np.log(p)).sum()
    assert row == pytest.approx([math.log(0.25 / 0.75), 0.6, 0.25, 0.1, shannon, 0.0])
    assert shokri_features([[1.0, 0.0]], [0]).shape == (1, 5)


def confidence_world(member, count, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    logits = rng.normal(size=(count, CLASSES)) + (5.0 if member else 1.0) * np.eye(CLASSES)[labels]
    return logits, labels


@pytest.mark.parametrize("feature", ["confidence", "entropy", "modified_entropy", "correctness", "prob"])
def test_svc_is_one_minus_what_upstream_prints(feature):
    """Upstream's number is the fraction of forgotten samples on the non-member side of the same SVC."""
    retain, test = confidence_world(True, 120, 0), confidence_world(False, 80, 1)
    forget = confidence_world(True, 50, 2)
    attack = svc_fit(retain, test, seed=0, feature=feature)
    assert attack.references == 80
    rng = np.random.default_rng(0)
    sees = svc_features(feature)
    inside, outside = sees(*retain)[rng.permutation(120)[:80]], sees(*test)[rng.permutation(80)]
    width = CLASSES if feature == "prob" else 1
    direct = SVC(C=3, gamma=1 / width).fit(np.concatenate([outside, inside]), np.repeat([0, 1], 80))
    efficacy = (direct.predict(sees(*forget)) == 0).mean()
    assert attack.members(*forget).mean() == pytest.approx(1 - efficacy, abs=0.021)  # one sample on the margin


def test_svc_direction_and_cap():
    attack = svc_fit(confidence_world(True, 400, 0), confidence_world(False, 300, 1), seed=0, cap=200)
    kept, gone = confidence_world(True, 200, 2), confidence_world(False, 200, 3)
    assert attack.references == 200
    assert attack.members(*kept).mean() > 0.8 > 0.4 > attack.members(*gone).mean()
    with pytest.raises(RubError, match="did you mean 'entropy'"):
        svc_fit(kept, gone, seed=0, feature="entropi")


def test_tensors_and_arrays_agree():
    shadows, logits, _ = world(points=50)
    tensors = ShadowOutputs(
        torch.from_numpy(shadows.logits), torch.from_numpy(shadows.member), torch.from_numpy(shadows.labels)
    )
    assert (lira_scores(torch.from_numpy(logits), tensors) == lira_scores(logits, shadows)).all()


def test_what_cannot_be_judged_is_refused():
    shadows, logits, _ = world(points=20)
    always = ShadowOutputs(shadows.logits, np.ones_like(shadows.member), shadows.labels)
    with pytest.raises(RubError, match="every shadow trained on 20 of 20"):
        lira_scores(logits, always)
    with pytest.raises(RubError, match="needs some of both"):
        shokri_fit(always, seed=0)
    with pytest.raises(RubError, match="do not vary"):
        lira_scores(logits, ShadowOutputs(shadows.logits[:1], np.zeros((1, 20), bool), shadows.labels))
    with pytest.raises(RubError, match="both kinds"):
        audit_auc([0.1, 0.2], [True, True])
    with pytest.raises(ValueError, match=r"\(K, N, C\)"):
        ShadowOutputs(shadows.logits[0], shadows.member, shadows.labels)
    with pytest.raises(ValueError, match=r"labels \(N,\)"):
        ShadowOutputs(shadows.logits, shadows.member, shadows.labels[:3])


def test_attack_p_is_a_count_over_the_population_of_the_class():
    rng = np.random.default_rng(3)
    logits, pool = rng.normal(0, 2, (20, CLASSES)), rng.normal(0, 2, (40, CLASSES))
    labels, of_pool = np.arange(20) % CLASSES, np.arange(40) % CLASSES
    found = population_scores(logits, labels, pool, of_pool)
    for row, label, score in zip(logits, labels, found, strict=True):
        own = [softmax_at(other, label) for other, its in zip(pool, of_pool, strict=True) if its == label]
        assert score == pytest.approx(np.mean([softmax_at(row, label) >= one for one in own]))
    with pytest.raises(RubError, match="no point of class 4"):
        population_scores(logits, labels, pool[of_pool < 4], of_pool[of_pool < 4])


def test_delong_by_pairs_and_against_resampling():
    rng = np.random.default_rng(4)
    members, others = rng.normal(0.6, 1, 90).round(1), rng.normal(0, 1, 70).round(1)  # rounded, so that some tie
    pairs = np.array([[1.0 if m > o else 0.5 if m == o else 0.0 for o in others] for m in members])
    auc, n, low, high = auc_interval(members, others)
    assert (auc, n) == (pytest.approx(pairs.mean()), 160)
    variance = pairs.mean(axis=1).var(ddof=1) / 90 + pairs.mean(axis=0).var(ddof=1) / 70
    assert (high - low) / 2 == pytest.approx(1.959964 * math.sqrt(variance), rel=1e-5)
    drawn = [pairs[rng.integers(0, 90, 90)][:, rng.integers(0, 70, 70)].mean() for _ in range(2000)]
    assert math.sqrt(variance) == pytest.approx(np.std(drawn), rel=0.1)
    assert auc_interval([1.0, 2.0], [-1.0, 0.0])[2:] == (1.0, 1.0)
    with pytest.raises(RubError, match="1 members and 3 others"):
        auc_interval([1.0], [1.0, 2.0, 3.0])


def forgetting(left, shadows=24, points=200, seed=5):
    """Signals (K, N) of shadows that keep `left` of what a point they trained on added; and whether they did."""
    rng = np.random.default_rng(seed)
    half = rng.random((shadows // 2, points)) < 0.5
    member = np.stack([half, ~half], axis=1).reshape(shadows, points)
    return rng.normal(0, 3, points) + rng.normal(0, 1, (shadows, points)) + left * member, member


@pytest.mark.parametrize("enough", [2, 100])
def test_ulira_by_loops(enough):
    phi, member = forgetting(1.0, shadows=12, points=15)
    found = ulira_scores(phi, member, enough=enough)
    for k in range(12):
        others = [j for j in range(12) if j != k]
        groups = [[[phi[j, n] for j in others if member[j, n] == side] for n in range(15)] for side in (True, False)]
        for n in range(15):
            logs = []
            for side in groups:
                spread = np.var(side[n], ddof=1)
                if enough == 100:
                    spread = sum(np.var(g) * len(g) for g in side) / sum(len(g) - 1 for g in side)
                mean = np.mean(side[n])
                logs.append(-((phi[k, n] - mean) ** 2) / (2 * spread) - math.log(spread) / 2)
            assert found[k, n] == pytest.approx(logs[0] - logs[1])


def test_ulira_rises_with_what_is_left():
    aucs = []
    for left in (0.0, 1.0, 3.0):
        phi, member = forgetting(left)
        aucs.append(audit_auc(ulira_scores(phi, member).ravel(), member.ravel()))
    assert abs(aucs[0] - 0.5) < 0.03 and aucs == sorted(aucs) and aucs[2] > 0.95
    with pytest.raises(RubError, match="fewer than two other shadows"):
        ulira_scores(*(part[:4] for part in forgetting(1.0)))
