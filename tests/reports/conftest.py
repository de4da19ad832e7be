"""Synthetic records with numbers whose intervals are worked out by hand in the tests."""

import pytest

from rub.store.records import Record

HOSTILE = "<script>alert(1)</script>|_%"
COMMON = {
    "task": "classification", "suite": "demo", "experiment": "", "protocol": "rub-paper-1", "dataset": "cifar10",
    "model": "resnet10-w8", "n": 100, "device": "cpu test", "key": "k", "code_version": "0.1.0+abc",
    "library_versions": {"numpy": "2.0"}, "created": "2026-01-01T00:00:00+00:00",
}  # fmt: skip
TA = {"original": [0.95], "retrain": [0.94, 0.95, 0.96], "sham": [0.95], "ft": [0.90, 0.92, 0.94]}
UA16 = {
    "original": [1.0], "retrain": [0.0, 0.0, 0.0], "sham": [0.0], "ft": [1.0, 1.0, 1.0], "rl": [0.20, 0.22, 0.24],
    "salun": [0.25, 0.27, 0.29], "neggrad-plus": [0.0, 0.0, 0.0], HOSTILE: [0.6, 0.6, 0.6],
}  # fmt: skip


def row(method, metric, value, *, split="forget", attack="none", budget="none", seed=0, mia=None, **more):
    from rub.tasks.classification.metrics import cell

    fields = {"method": method, "metric": metric, "value": value, "split": split, "attack": attack, "budget": budget}
    fields |= {
        "unlearn_seed": seed,
        "mia_seed": mia,
        "direction": cell(method, seed, metric)["direction"],
    }
    return Record.model_validate({**COMMON, **fields, **more})


def rows_of(method, seed, ta, ua16):
    """Return the rows of one model: clean, and attacked at two budgets."""
    yield row(method, "ta", ta, split="test", seed=seed, n=900)
    for metric, split in (
        ("ta_all", "test"), ("ra", "retain"), ("ua", "forget"), ("ua_test", "forget_test"), ("logit_auc", "test"),
        ("probe_accuracy", "forget_test"), ("mia_svc", "forget"), ("mia_rmia", "forget"), ("mia_lira", "forget"),
    ):  # fmt: skip
        yield row(method, metric, 0.5, split=split, seed=seed)
    for budget, ua in (("8/255", ua16 / 2), ("16/255", ua16)):
        at = {"attack": "uma", "budget": budget, "seed": seed, "converged": method != "salun"}
        yield row(method, "ua", ua, **at)
        yield row(method, "ua_test", ua, split="forget_test", **at)
        yield row(method, "ua", 0.1, split="retain", **at)
        yield row(method, "residual_knowledge", ua, **at)
        yield from (row(method, "mia_shadow", 0.1 + 0.2 * seed + 0.1 * mia, mia=mia, **at) for mia in range(2))
    yield row(method, "ua", ua16 / 4, attack="noise", budget="16/255", seed=seed, converged=True)
    yield from (row(method, "mia_shadow", 0.3, mia=mia, seed=seed) for mia in range(2))


@pytest.fixture(scope="session")
def make_row():
    return row


@pytest.fixture(scope="session")
def hostile():
    return HOSTILE


@pytest.fixture(scope="session")
def records():
    """3 unlearning x 2 MIA seeds, controls, five methods; ga failed in all seeds, rl in its last."""
    made = [
        record
        for method, values in UA16.items()
        for seed, ua16 in enumerate(values)
        for record in rows_of(method, seed, TA.get(method, [0.9] * 3)[seed], ua16)
    ]
    lost = {"value": None, "status": "failed", "n": 0}
    failed = [
        record.model_copy(
            update={**lost, "method": "ga", "reason": f"unlearn ga, seed {record.unlearn_seed}: diverged"}
        )
        for record in made
        if record.method == "ft"
    ]
    partly = [
        record.model_copy(update={**lost, "reason": "unlearn rl, seed 2: out of memory"})
        if (record.method, record.unlearn_seed, record.metric) == ("rl", 2, "ta")
        else record
        for record in made
    ]
    return partly + failed


@pytest.fixture(scope="session")
def curves(records):
    """Return one search per attacked (method, seed, budget): it recovers more with every step, to the record's UA."""
    found = []
    for record in records:
        if record.metric == "ua" and record.split == "forget" and record.attack == "uma" and record.value is not None:
            share = [record.value * k / 10 for k in range(11)]
            names = ("task", "suite", "experiment", "protocol", "dataset", "model", "method", "unlearn_seed")
            fields = {name: getattr(record, name) for name in (*names, "attack", "budget", "split", "converged")}
            loss = [2.0 - 0.1 * k for k in range(11)]
            found.append({**fields, "success_curve": share, "loss_curve": loss, "evaluations": 1000})
    return found
