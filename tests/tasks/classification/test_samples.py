"""Forgetting single samples: the distance to retraining, what is better, and the verdicts of audits."""

import copy
import json
from statistics import fmean

import numpy as np
import pytest
import torch
import yaml
from sklearn.datasets import load_digits
from torch import nn

import rub
from rub.api import make_runtime
from rub.audits.base import Rate
from rub.data.sources import load_images
from rub.data.spec import ForgetSpec
from rub.data.splits import split
from rub.errors import RubError
from rub.metrics.klom import klom
from rub.models.network import build_network
from rub.models.weights import save_weights
from rub.reports.board import boards
from rub.reports.grouping import Group, grouped
from rub.store.artifacts import Store
from rub.tasks.classification.stages import load_model
from rub.tasks.classification.tables import classification_tables, leaders
from rub.tasks.classification.verdict import Estimate
from rub.tasks.classification.verdict_samples import SampleFigures, Signal, conclude
from rub.training.counting import counting

CPU = {"runtime": make_runtime(device="cpu")}
RADIUS = {"smallest": 1, "largest": 64, "steps": 2, "refine": 2}
SEARCH = {"uma": {"runs": [{"name": "uma", "steps": 2}], "budgets": [16], "splits": ["forget"]}}


@pytest.fixture(scope="module")
def ran(write_suite, tmp_path_factory):
    """A suite that forgets every tenth sample, with two seeds: its records."""
    folder = tmp_path_factory.mktemp("samples")
    changes = {"forget": {"classes": None, "fraction": 0.1}, "seeds": {"unlearn": 2}, "methods": {"ga": {"epochs": 2}}}
    path = write_suite(folder, protocol={"radius": RADIUS, "attacks": SEARCH}, **changes)
    suite = rub.load_suite(str(path), overrides=[f"protocol.attacks={json.dumps({'only': SEARCH})}"])
    result = rub.run(suite, store=folder / "store", **CPU)
    assert result.failures == ()
    return result.records


def value(records, method, metric, seed=0):
    [row] = [r for r in records if (r.method, r.metric, r.unlearn_seed, r.attack) == (method, metric, seed, "none")]
    return row.value


@pytest.mark.slow
def test_no_less_is_better_and_every_row_says_so(ran):
    assert {row.scenario for row in ran} == {"samples"}
    assert {row.direction for row in ran} == {"up", "reference"}
    for table in classification_tables(ran):
        assert not {"down"} & {column.direction for column in table.columns}, table.name
        assert "↓" not in "".join(table.notes)
    assert "↓" not in "".join(column.title for column in leaders(ran))


@pytest.mark.slow
def test_the_average_gap_is_that_of_four_metrics(ran):
    def gap(method, other, seed, own=0):
        names = ("ua", "ra", "ta", "mia_svc")
        return fmean(abs(value(ran, method, name, own) - value(ran, other, name, seed)) for name in names)

    for seed in range(2):
        assert value(ran, "ft", "avg_gap", seed) == pytest.approx(gap("ft", "retrain", seed, seed))
    assert value(ran, "original", "avg_gap") == pytest.approx(gap("original", "retrain", 0))
    assert value(ran, "retrain", "avg_gap") == pytest.approx(gap("retrain", "retrain", 1)), "another seed of itself"


@pytest.mark.slow
def test_passes_are_counted_beside_the_epochs_of_training(ran):
    [table] = [table for table in classification_tables(ran) if table.name.startswith("gap")]
    assert [column.name for column in table.columns][-2:] == ["passes", "RTE"]
    assert value(ran, "original", "passes") == 1
    assert value(ran, "retrain", "passes") == pytest.approx(0.9, abs=1e-3)
    assert value(ran, "ga", "passes") == pytest.approx(2 * 0.1, abs=0.02)


@pytest.mark.slow
def test_boards_of_samples_stand_apart_and_rank_by_the_gap(ran):
    parts = [("page", group, own, "uma") for group, own in grouped(ran, "classification").items()]
    other = [row.model_copy(update={"scenario": "", "suite": "classes"}) for row in ran]
    parts += [("other", group, own, "uma") for group, own in grouped(other, "classification").items()]
    found = {board.scenario: board for board in boards(parts)}
    assert set(found) == {"", "samples"}
    rows = [row.method for row in found["samples"].rows if not row.control]
    gaps = {method: fmean(value(ran, method, "avg_gap", seed) for seed in range(2)) for method in rows}
    assert rows == sorted(rows, key=gaps.__getitem__) and len(rows) == 2


def test_a_row_of_older_lists_has_no_scenario():
    row = {"task": "t", "suite": "s", "experiment": "", "dataset": "d", "model": "m", "protocol": "p", "other": 1}
    assert Group.of(row).scenario == ""
    with pytest.raises(KeyError):
        Group.of({"task": "t"})


def test_images_are_counted_in_copies_and_under_vmap():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with counting(network) as images:
        teacher = copy.deepcopy(network)
        teacher(network(torch.zeros(3, 1, 2, 2)).new_zeros(5, 1, 2, 2))
        weights = dict(network.named_parameters())

        def loss(parameters, image):
            return torch.func.functional_call(network, parameters, (image[None],)).sum()

        torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, torch.ones(7, 1, 2, 2))
    assert images == [3, 5, 7]
    network(torch.zeros(2, 4))
    assert sum(images) == 15, "only inside"


DIGITS = load_digits()
IMAGES = torch.from_numpy(DIGITS.images / 16).float()[:, None]
SHUFFLED = torch.randperm(len(IMAGES), generator=torch.Generator().manual_seed(0))
NOISE = torch.rand(len(IMAGES), generator=torch.Generator().manual_seed(1)) < 0.35
WRONG = torch.randint(0, 10, (len(IMAGES),), generator=torch.Generator().manual_seed(2))
LABELS = torch.where(NOISE, WRONG, torch.from_numpy(DIGITS.target).long())  # what cannot be learned has to be memorised
FORGET, RETAIN, TEST = SHUFFLED[:200], SHUFFLED[200:1000], SHUFFLED[1000:]


def fit(places, labels, seed=0, steps=250, start=None):
    """A network that memorises these images."""
    torch.manual_seed(seed)
    network = start or nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(network(IMAGES[places]), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def models():
    """Models of known truth: trained on everything, on the retain set alone, or on it with wrong answers beside it."""
    both = torch.cat([FORGET, RETAIN])
    original = fit(both, LABELS[both])
    pushed = torch.cat([(LABELS[FORGET] + 3) % 10, LABELS[RETAIN]])
    ruined = copy.deepcopy(original)
    with torch.no_grad():
        ruined[-1].weight.zero_()
    return {
        "original": original,
        "retrained": fit(RETAIN, LABELS[RETAIN], seed=1),
        "another": fit(RETAIN, LABELS[RETAIN], seed=2),
        "pushed": fit(both, pushed, start=copy.deepcopy(original)),
        "ruined": ruined,
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("unlearned", "verdict"),
    [
        ("original", "remembered"),
        ("another", "no residual found"),
        ("pushed", "over-forgotten"),
        ("ruined", "destroyed"),
    ],
)
@pytest.mark.parametrize("reference", [None, "retrained"])
def test_verdicts_on_models_whose_truth_is_known(models, unlearned, verdict, reference):
    protocol = {"name": "small", "radius": RADIUS, "eligible": True, "attacks": SEARCH}
    sets = {name: (IMAGES[at], LABELS[at]) for name, at in (("forget", FORGET), ("retain", RETAIN), ("test", TEST))}
    report = rub.audit(
        original=models["original"], unlearned=models[unlearned], retrained=reference and models[reference],
        protocol=protocol, samples=60, **sets,
    )  # fmt: skip
    assert report.verdict.name == verdict, report
    assert {row.scenario for row in report.records} == {"samples"}
    assert report.figures.recognised["original"].value > 0.95 > report.figures.unseen["original"].value + 0.2
    assert (report.figures.gap is not None) == (reference is not None)


AT = dict.fromkeys(("original", "unlearned"), 0.9)
SEEN, UNSEEN = Rate(0.9, 0.88, 0.92), Rate(0.8, 0.78, 0.82)


def figures(unlearned, original=Estimate(0.7, 0.68, 0.72), found=UNSEEN, retrained=None):  # noqa: B008
    signal = Signal("MIA", original, unlearned, retrained)
    accuracy = AT if retrained is None else {**AT, "retrained": 0.9}
    recognised = {"original": SEEN, "unlearned": found} | ({} if retrained is None else {"retrained": UNSEEN})
    return SampleFigures(accuracy, 0.1, recognised, dict.fromkeys(accuracy, UNSEEN), (signal,))


def test_rules():
    clear, half, below = Estimate(0.6, 0.55, 0.65), Estimate(0.5, 0.48, 0.52), Estimate(0.4, 0.38, 0.42)
    assert conclude(figures(clear), "").name == "remembered"
    assert conclude(figures(clear, retrained=clear), "").name == "no residual found", "a retrained model has it too"
    assert conclude(figures(half), "").name == "no residual found"
    assert conclude(figures(below), "").name == "over-forgotten"
    assert conclude(figures(half, found=Rate(0.5, 0.47, 0.53)), "").name == "over-forgotten"
    assert conclude(figures(half, original=half), "").name == "cannot tell", "the original itself shows nothing"
    said = conclude(figures(half), "").why
    assert "an AUC of 0.520 would have shown" in said[0] and "without a retrained model" in said[1]


@pytest.mark.slow
def test_an_audit_of_listed_samples_is_that_of_the_same_share(tmp_path):
    protocol = {"task": "classification", "name": "small", "radius": RADIUS, "eligible": True, "attacks": SEARCH}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(protocol), encoding="utf-8")
    shape = {"num_classes": 10, "channels": 1, "size": 8, "mean": (0.5,), "std": (0.5,), "width": 2}
    for seed, name in enumerate(("original", "unlearned")):
        save_weights(build_network("resnet10", seed=seed, **shape), tmp_path / f"{name}.safetensors")
    images = load_images("digits", None)
    drawn = split(images, ForgetSpec(fraction=0.2, seed=3).model_dump(), 0.0).forget.ids
    np.save(tmp_path / "ids.npy", drawn.numpy())
    given = {name: tmp_path / f"{name}.safetensors" for name in ("original", "unlearned")}
    given |= {"arch": "resnet10", "width": 2, "data": "digits", "protocol": str(tmp_path / "small.yaml"), "samples": 20}
    asked = ({"forget_fraction": 0.2, "forget_seed": 3}, {"forget_ids": tmp_path / "ids.npy"})
    found = [rub.audit("classification", **given, **one, store=tmp_path / "store", **CPU) for one in asked]
    assert found[0].verdict == found[1].verdict and found[0].figures == found[1].figures
    assert next(row.n for row in found[0].records if row.metric == "ua") == len(drawn)


def test_what_was_forgotten_has_to_be_said(refused, tmp_path):
    (tmp_path / "a.pth").write_bytes(b"")
    files = ["--original", tmp_path / "a.pth", "--unlearned", tmp_path / "a.pth", "--data", "digits"]
    refused("audit", "classification", *files, "--arch", "resnet10", says="--forget-classes: give what was forgotten")
    both = ["--forget-ids", tmp_path / "ids.txt", "--forget-fraction", "0.1"]
    (tmp_path / "ids.txt").write_text("1 2", encoding="utf-8")
    refused("audit", "classification", *files, "--arch", "resnet10", *both, says=("exactly one", "fraction and ids"))


def test_klom_takes_ten_models_of_both(write_suite, tmp_path):
    path = write_suite(tmp_path, forget={"classes": None, "fraction": 0.1}, evaluation={"klom": True})
    with pytest.raises(RubError, match="1 unlearning seeds and 1 retrained models; it takes 10 of both"):
        rub.plan(rub.load_suite(str(path)), **CPU)


@pytest.mark.slow
def test_klom_of_a_suite_is_that_of_its_margins(write_suite, tmp_path):
    changes = {"forget": {"classes": None, "fraction": 0.1}, "seeds": {"unlearn": 10}, "evaluation": {"klom": True}}
    nothing = {"only": {"noise": {"runs": ["noise"], "budgets": [0]}}}
    path = write_suite(tmp_path, **changes)
    suite = rub.load_suite(str(path), overrides=[f"protocol.attacks={json.dumps(nothing)}"])
    result = rub.run(suite, store=tmp_path / "store", **CPU)
    assert result.failures == ()
    [row] = [row for row in result.records if row.metric == "klom"]
    assert (row.method, row.unlearn_seed, row.status) == ("ft", None, "ok")
    images = load_images("digits", None)
    parts = split(images, suite.experiments[0].forget.model_dump(), 0.1)
    margins = {}
    for _, graph in rub.plan(suite, **CPU):
        [stage] = [stage for stage in graph.stages if stage.kind == "klom"]
        for role, made in stage.inputs.items():
            if role != "data":
                network = load_model(Store(tmp_path / "store").find(made.kind, made.key), images)
                with torch.no_grad():
                    logits = network(parts.forget.images / 255)
                own = logits.gather(1, parts.forget.labels[:, None])[:, 0]
                rest = logits.scatter(1, parts.forget.labels[:, None], -torch.inf).logsumexp(1)
                margins[role] = (own - rest).double().numpy()
    sides = [
        np.stack([m for role, m in margins.items() if role.startswith(side)]) for side in ("unlearned", "retrained")
    ]
    assert row.value == pytest.approx(klom(*sides).mean(), rel=0.02)
    [table] = [table for table in classification_tables(result.records) if table.name.startswith("gap")]
    assert "KLOM" in [column.name for column in table.columns]
    assert "means over 10 unlearning seeds" in " ".join(classification_tables(result.records)[0].notes)


@pytest.mark.slow
def test_shadow_models_of_an_audit_are_trained_on_request_and_told_first(tmp_path, rub):
    protocol = {"task": "classification", "name": "small", "radius": RADIUS, "eligible": True, "attacks": SEARCH}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(protocol), encoding="utf-8")
    shape = {"num_classes": 10, "channels": 1, "size": 8, "mean": (0.5,), "std": (0.5,), "width": 2}
    for seed, name in enumerate(("original", "unlearned")):
        save_weights(build_network("resnet10", seed=seed, **shape), tmp_path / f"{name}.safetensors")
    files = ["--original", tmp_path / "original.safetensors", "--unlearned", tmp_path / "unlearned.safetensors"]
    asked = ["--arch", "resnet10", "--width", "2", "--data", "digits", "--protocol", tmp_path / "small.yaml"]
    asked += ["--samples", "20", "--forget-fraction", "0.2", "--store", tmp_path / "store"]
    said = rub("audit", "classification", *files, *asked, "--shadows", "4", "--shadow-epochs", "1")
    assert said.code == 0, said.err
    assert "note: trains 4 shadow models, 1 epochs each on half of the images" in said.out
    told = [line for line in said.out.splitlines() if line.startswith(("RMIA", "LiRA", "MIA population"))]
    assert len(told) == 3 and all("original" in line for line in told)
    odd = rub("audit", "classification", *files, *asked, "--shadows", "3")
    assert odd.code == 2 and "shadows_per_seed = 3" in odd.err


@pytest.mark.slow
def test_ulira_runs_every_method_on_models_of_halves(write_suite, tmp_path):
    changes = {"forget": {"classes": None, "fraction": 0.2}, "evaluation": {"ulira": 8, "shadows": False}}
    nothing = {"only": {"noise": {"runs": ["noise"], "budgets": [0]}}}
    path = write_suite(tmp_path, **changes, methods={"ga": {"epochs": 1}})
    suite = rub.load_suite(str(path), overrides=[f"protocol.attacks={json.dumps(nothing)}"])
    result = rub.run(suite, store=tmp_path / "store", **CPU)
    assert result.failures == ()
    found = {row.method: row for row in result.records if row.metric == "ulira"}
    assert set(found) == {"ft", "ga"} and all(0.3 < row.value < 0.8 for row in found.values())
    assert not [row for row in result.records if row.metric in ("mia_shadow", "mia_rmia")], "shadows were switched off"
    [(_, graph)] = rub.plan(suite, **CPU)
    forgot = {one.label: one for stage in graph.stages if stage.kind == "ulira" for one in stage.inputs.values()}
    assert len(forgot) == 16 and len({one.inputs["original"].key for one in forgot.values()}) == 8
    images, held = load_images("digits", None), Store(tmp_path / "store")
    wanted = split(images, suite.experiments[0].forget.model_dump(), 0.1).forget.ids
    sides = []
    for index in (0, 1):
        stage = forgot[f"unlearn ft on shadow {index}"]
        own = np.load(held.find(stage.kind, stage.key).file("forget.npz"))
        half = np.load(held.find("half", stage.inputs["original"].key).file("ids.npy"))
        assert own["ids"].tolist() == wanted.tolist()
        assert (own["member"] == np.isin(own["ids"], half)).all()
        sides.append(own["member"])
    assert (sides[0] != sides[1]).all(), "the halves of a pair are complementary"


def test_ulira_of_few_shadows_is_refused(write_suite, tmp_path):
    path = write_suite(tmp_path, evaluation={"ulira": 4})
    with pytest.raises(RubError, match=r"evaluation\.ulira: 4 shadows; it takes 6 at least"):
        rub.plan(rub.load_suite(str(path)), **CPU)
