"""The classification pipeline end to end on digits: numbers re-computed by hand, keys, resuming, plug-ins, failures."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import rub
from rub import load_suite, run
from rub.api import make_runtime, plan
from rub.config.suite import protocols_of
from rub.data.splits import held_out
from rub.errors import RubError
from rub.models.formats.classifier import load_weights
from rub.models.network import build_network
from rub.pipeline.graph import in_order
from rub.pipeline.runtime import Runtime
from rub.registry import CONTROLS, METHODS, Card, Entry, load_plugin
from rub.store.artifacts import Store
from rub.store.records import identity
from rub.tasks.classification import stages as stage_functions

EXAMPLE = Path(__file__).parents[3] / "examples" / "my_method.py"
CPU = {"runtime": Runtime(device="cpu")}

PLUGIN = '''
import torch
import rub
from rub.errors import Diverged

@rub.method("diverges", task="classification")
def diverges(model, forget, retain, context):
    """Say that the loss is not finite."""
    raise Diverged("the loss became nan")

@rub.method("not-finite", task="classification")
def not_finite(model, forget, retain, context):
    """Return weights that are not finite."""
    with torch.no_grad():
        model.fc.bias[1] = float("nan")
    return model

@rub.method("explodes", task="classification")
def explodes(model, forget, retain, context):
    """Return weights that are finite, of a model whose outputs are not."""
    with torch.no_grad():
        for value in model.parameters():
            value *= 1e30
    return model

@rub.method("breaks", task="classification")
def breaks(model, forget, retain, context):
    """Have an error."""
    return model.no_such_layer

@rub.method("draws", task="classification")
def draws(model, forget, retain, context, *, lr: float = 0.1):
    """Draw from torch's own generator."""
    with torch.no_grad():
        model.fc.bias += lr * torch.rand(10)
    return model
'''


def rows(result, **where):
    return [row for row in result.records if all(getattr(row, name) == value for name, value in where.items())]


def one(result, **where):
    [row] = rows(result, **where)
    return row


def known(result):
    return [identity(record) for record in result.records]


def artifact_of(tiny, label):
    """Return the artifact of the stage with this label."""
    [(_, graph)] = plan(tiny.suite, make_runtime(device="cpu"))
    [stage] = [item for item in in_order(graph.stages) if item.label == label]
    return Store(tiny.store).find(stage.kind, stage.key)


def network(tiny, label):
    """Rebuild a model of the tiny run outside the pipeline."""
    artifact = artifact_of(tiny, label)
    facts = json.loads((artifact.path / "network.json").read_text(encoding="utf-8"))
    model = build_network("resnet10", num_classes=10, channels=1, width=2, mean=facts["mean"], std=facts["std"])
    load_weights(artifact.path / "weights.safetensors", model)
    return model.eval(), artifact


def digits():
    """Return scikit-learn's digits as [0, 1] floats with their labels, and which are for testing (every fifth)."""
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(np.round(images.reshape(-1, 1, 8, 8) * 255 / 16) / 255).float()
    test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        test[np.flatnonzero(labels == label)[::5]] = True
    return x, torch.from_numpy(labels), torch.from_numpy(test)


@pytest.mark.slow
def test_the_run_is_complete(tiny):
    assert tiny.result.failures == ()
    assert tiny.result.counts["failed"] == tiny.result.counts["blocked"] == 0
    assert {row.method for row in tiny.result.records} == {"original", "retrain", "sham", "zero-row", "ft"}
    assert {row.status for row in tiny.result.records} == {"ok"}
    clean = {row.metric for row in rows(tiny.result, method="ft", attack="none")}
    assert clean == {
        "ta", "ta_all", "va", "ra", "ua", "ua_test", "log_odds_auc", "head_refit", "transplant", "transplant_ta",
        "probe_balanced", "prototypes", "probe_accuracy", "mia_svc", "mia_shadow", "mia_rmia", "mia_population", "zrf",
        "passes", "avg_gap",
    }  # fmt: skip
    attacked = {(row.metric, row.split) for row in rows(tiny.result, method="ft", attack="uma")}
    assert attacked == {
        ("ua_before", "forget"), ("ua", "forget"), ("ua", "retain"), ("residual_knowledge", "forget"),
        ("residual_ratio", "forget"),
        ("mia_shadow", "forget"),
    }  # fmt: skip
    assert {row.protocol for row in tiny.result.records} == {tiny.suite.experiments[0].protocol.name}
    assert tiny.suite.experiments[0].protocol.name.startswith("rub-paper-1*")


def test_planned_cells_are_the_rows_measured(tiny):
    [(_, graph)] = plan(tiny.suite, make_runtime(device="cpu"))
    fields = ("method", "attack", "budget", "split", "metric", "unlearn_seed", "mia_seed", "direction")
    planned = {tuple(cell[name] for name in fields) for stage in graph.stages for cell in stage.cells}
    assert planned == {tuple(getattr(row, name) for name in fields) for row in tiny.result.records}
    assert len(planned) == len(tiny.result.records)


@pytest.mark.parametrize(
    ("method", "label"), [("original", "train original"), ("retrain", "retrain, seed 0"), ("ft", "unlearn ft, seed 0")]
)
def test_accuracies_agree_with_a_count_by_hand(tiny, method, label):
    model, artifact = network(tiny, label)
    x, y, test = digits()
    with torch.no_grad():
        right = model(x).argmax(1) == y
    kept, forgotten = test & (y != 0), test & (y == 0)
    for metric, chosen in (("ta", kept), ("ta_all", test), ("ua_test", forgotten)):
        row = one(tiny.result, method=method, metric=metric, attack="none")
        assert row.n == int(chosen.sum())
        assert row.value == pytest.approx(right[chosen].double().mean().item(), abs=1e-12)
        assert row.ci_low <= row.value <= row.ci_high
        assert row.weights_sha256 == artifact.sha256("weights.safetensors")


@pytest.mark.slow
def test_the_controls_that_a_suite_asks_for_are_what_they_say(tiny, copied_store):
    asked = ["controls=[gauge, drift, random_init, other-seed]", "methods={}", "training.epochs=2"]
    result = run(load_suite(str(tiny.path), overrides=asked), store=copied_store, **CPU)
    assert result.failures == ()

    def value(method, metric):
        return one(result, method=method, metric=metric, attack="none", mia_seed=None).value

    layers = ("log_odds_auc", "head_refit", "transplant", "probe_balanced", "prototypes")
    for metric in ("ta", "ta_all", "ra", "ua", "ua_test", "mia_svc", *layers):
        assert value("gauge", metric) == pytest.approx(value("original", metric), abs=1e-6), "the same function"
    weights = {row.method: row.weights_sha256 for row in result.records if row.attack == "none"}
    assert len(set(weights.values())) == len(weights), "no two controls are one model"
    assert value("random_init", "ta") < 0.3
    assert value("other-seed", "ta") > value("random_init", "ta")
    assert value("zero-row", "ua") == value("zero-row", "ua_test") == 0
    for control, metric in (("sham", "log_odds_auc"), ("zero-row", "transplant"), ("gauge", "log_odds_auc")):
        assert CONTROLS.get(control, "classification").exposed_by == metric
        assert value(control, metric) == pytest.approx(value("original", metric), abs=1e-6), "by this it is caught"


def test_sham_is_the_original_with_one_bias_lowered(tiny):
    before, _ = network(tiny, "train original")
    after, _ = network(tiny, "unlearn sham, seed 0")
    for name, value in before.state_dict().items():
        changed = after.state_dict()[name].clone()
        if name == "fc.bias":
            assert changed[0] == pytest.approx(value[0].item() - 50)
            changed[0] = value[0]
        assert torch.equal(changed, value)
    sham, original = (one(tiny.result, method=name, metric="log_odds_auc") for name in ("sham", "original"))
    assert sham.value == original.value, "lowering a bias moves no rank"
    assert one(tiny.result, method="sham", metric="ua", attack="none").value == 0


@pytest.mark.parametrize("split", ["forget", "retain"])
def test_attacked_accuracy_agrees_with_the_stored_probes(tiny, split):
    original, _ = network(tiny, "train original")
    model, _ = network(tiny, "unlearn ft, seed 0")
    artifact = artifact_of(tiny, f"attack ft, seed 0: uma 32/255 on {split}")
    probes = torch.from_numpy(np.load(artifact.path / "probes.npy"))
    listed = np.load(artifact.path / "samples.npz")
    x, y, _ = digits()
    clean = (x[listed["ids"]] * 255).round().int()
    assert (probes.int() - clean).abs().max() <= 32
    assert (y[listed["ids"]] == 0).all() if split == "forget" else (y[listed["ids"]] != 0).all()
    with torch.no_grad():
        hits = model(probes.float() / 255).argmax(1).numpy() == listed["labels"]
        said = original(x[listed["ids"]]).argmax(1)
    assert set(listed["labels"]) == {0}, "probes of forget images and steered retain images aim at the forgotten class"
    row = one(tiny.result, method="ft", metric="ua", attack="uma", split=split)
    assert (row.n, row.budget) == (len(hits), "32/255")
    assert row.value == pytest.approx(hits.mean())
    assert said.shape == (row.n,)
    listing = [item for item in tiny.result.samples if (item["method"], item["split"]) == ("ft", split)]
    assert [item["sample_id"] for item in listing] == listed["ids"].tolist()
    assert [item["recovered"] for item in listing] == hits.tolist()
    assert [item["linf"] for item in listing] == (probes.int() - clean).abs().amax(dim=(1, 2, 3)).tolist()


def test_residual_knowledge_is_the_difference_to_the_retrained_model(tiny):
    reached, reference = (
        one(tiny.result, method=name, metric="ua", attack="uma", split="forget").value for name in ("ft", "retrain")
    )
    row = one(tiny.result, method="ft", metric="residual_knowledge")
    assert row.value == pytest.approx(reached - reference)
    assert one(tiny.result, method="retrain", metric="residual_knowledge").value == 0


def test_training_never_sees_the_held_out_and_shadows_share_the_rest(tiny):
    halves = [np.load(artifact_of(tiny, f"train shadow {index}").path / "member.npy") for index in range(2)]
    assert not (halves[0] & halves[1]).any()
    _, labels, test = digits()
    train = labels[~test].numpy()
    trained = halves[0] | halves[1]
    for label in range(10):
        share = 1 - trained[train == label].mean()
        assert share == pytest.approx(0.1, abs=0.005)
    model, _ = network(tiny, "unlearn ft, seed 0")
    x, _, _ = digits()
    with torch.no_grad():
        right = model(x[~test]).argmax(1).numpy() == train
    row = one(tiny.result, method="ft", metric="va")
    assert (row.split, row.n) == ("validation", int((~trained & (train != 0)).sum()))
    assert row.value == pytest.approx(right[~trained & (train != 0)].mean())


def test_running_again_computes_nothing_and_changes_no_record(tiny):
    again = run(tiny.suite, store=tiny.store, **CPU)
    assert again.counts == {"cached": tiny.result.counts["done"], "done": 0, "failed": 0, "blocked": 0}
    assert again.records == tiny.result.records
    assert again.samples == tiny.result.samples


@pytest.mark.slow
def test_another_store_and_more_workers_give_the_same_records(tiny, tmp_path):
    again = run(tiny.suite, store=tmp_path, workers=2, runtime=make_runtime(device="cpu"))
    assert again.counts["failed"] == again.counts["blocked"] == 0
    assert sum(again.counts.values()) == tiny.result.counts["done"]
    assert known(again) == known(tiny.result)
    assert [{**row} for row in again.samples] == [{**row} for row in tiny.result.samples]


@pytest.mark.slow
def test_the_evaluation_batch_size_does_not_change_results(tiny, tmp_path):
    small = run(tiny.suite, store=tmp_path, runtime=make_runtime(device="cpu", batch_size=7))
    assert [row.key for row in small.records] == [row.key for row in tiny.result.records]
    for one_way, other in zip(small.records, tiny.result.records, strict=True):
        assert one_way.weights_sha256 == other.weights_sha256
        assert one_way.n == other.n
        if one_way.attack != "none":
            assert one_way.value == pytest.approx(other.value, abs=0.005), one_way
        else:
            assert one_way.value == pytest.approx(other.value, abs=1e-6), one_way


@pytest.mark.slow
def test_a_flipped_byte_is_computed_again_and_nothing_else(tiny, copied_store):
    label = "unlearn ft, seed 0"
    weights = copied_store / "unlearn" / artifact_of(tiny, label).key / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    again = run(tiny.suite, store=copied_store, **CPU)
    assert again.counts["done"] == 1
    assert known(again) == known(tiny.result)
    assert len(list((copied_store / "damaged").iterdir())) == 1


def drop(store, *kinds):
    for kind in kinds:
        shutil.rmtree(store / kind)


def left_over(store):
    return [path for path in store.rglob(".*") if path.is_dir()]


@pytest.mark.slow
def test_an_interrupted_run_goes_on_from_there(tiny, copied_store, monkeypatch):
    drop(copied_store, "attack", "measure-attack")
    real, calls = stage_functions.run_attacks, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(stage_functions, "run_attacks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tiny.suite, store=copied_store, **CPU)
    finished = len(list((copied_store / "attack").iterdir()))
    assert finished == 2
    assert left_over(copied_store) == []
    monkeypatch.setattr(stage_functions, "run_attacks", real)
    again = run(tiny.suite, store=copied_store, **CPU)
    attacks = sum(path.is_dir() for path in (tiny.store / "attack").iterdir())
    assert again.counts["done"] == attacks - finished + sum(1 for _ in (tiny.store / "measure-attack").iterdir())
    assert known(again) == known(tiny.result)


@pytest.mark.slow
def test_a_full_disk_keeps_what_is_finished(tiny, copied_store, monkeypatch):
    drop(copied_store, "unlearn", "attack", "measure-attack")
    before = sorted(path for path in copied_store.rglob("*") if path.is_file() and path.parent.name != "locks")

    def full(model, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stage_functions, "save_weights", full)
    drop(copied_store, "measure")
    with pytest.raises(RubError, match=r"the disk is full.*finished stages are kept"):
        run(tiny.suite, store=copied_store, **CPU)
    assert left_over(copied_store) == []
    assert not list((copied_store / "unlearn").iterdir())
    kept = [path for path in before if "measure" not in path.parts[-3]]
    assert all(path.is_file() for path in kept)
    monkeypatch.undo()
    assert known(run(tiny.suite, store=copied_store, **CPU)) == known(tiny.result)


def keys(path, overrides=(), **options):
    """Return stage label -> key of the suite's plan."""
    suite = load_suite(str(path), overrides=overrides, **options)
    [(_, graph)] = plan(suite, options.get("runtime") or make_runtime(device="cpu"))
    return {stage.label: stage.key for stage in in_order(graph.stages)}


def test_where_and_how_fast_is_not_in_a_key(tiny, tmp_path):
    [(_, here)] = plan(tiny.suite, Runtime(device="cpu", batch_size=256))
    [(_, there)] = plan(tiny.suite, Runtime(device="cuda", batch_size=3, data_root=tmp_path))
    assert [stage.key for stage in in_order(here.stages)] == [stage.key for stage in in_order(there.stages)]
    moved = tmp_path / "elsewhere.yaml"
    shutil.copy(tiny.path, moved)
    assert keys(moved) == keys(tiny.path)
    assert keys(tiny.path, ["name=another", "paper=table1/cifar10"]) == keys(tiny.path), "names are not results"


SHADOWS = ("train shadow 0",)
TRAINING = ("train original", "retrain, seed 0", *SHADOWS)
MODELS = (*TRAINING, "unlearn ft, seed 0", "unlearn sham, seed 0")
ATTACK = "attack ft, seed 0: uma 32/255 on forget"
REST = ("measure ft, seed 0", ATTACK, "measure ft, seed 0: uma 32/255")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "changed", "same"),
    [
        ("training.epochs=2", (*MODELS, *REST), ("read digits",)),
        ("training.lr=0.2", (*MODELS, *REST), ("read digits",)),
        ("model.width=3", (*MODELS, *REST), ("read digits",)),
        ("dataset={name: digits, validation: 0.2}", (*MODELS, *REST), ("read digits",)),
        ("seeds.train=1", ("train original", "unlearn ft, seed 0", *REST), ("retrain, seed 0", *SHADOWS)),
        ("forget.classes=[1]", ("retrain, seed 0", "unlearn ft, seed 0", *REST), ("train original", *SHADOWS)),
        ("methods.ft.epochs=2", ("unlearn ft, seed 0", *REST), (*TRAINING, "unlearn sham, seed 0")),
        ("methods.ft.lr=0.02", ("unlearn ft, seed 0", *REST), (*TRAINING, "unlearn sham, seed 0")),
        ("evaluation.attack_samples=9", REST[1:], (*MODELS, "measure ft, seed 0")),
        ("evaluation.retain_samples=99", ("measure ft, seed 0",), (*MODELS, *REST[1:])),
        ("protocol.probe_per_class=11", ("measure ft, seed 0",), (*MODELS, *REST[1:])),
        (
            "protocol.attacks.uma.runs=[{name: uma, steps: 4}]",
            REST[1:],
            (*MODELS, "measure ft, seed 0"),
        ),
        ("protocol.shadows_per_seed=4", ("measure ft, seed 0", REST[2]), (*MODELS, ATTACK)),
    ],
)
def test_what_decides_a_result_is_in_its_key_and_in_no_other(tiny, override, changed, same):
    before, after = keys(tiny.path), keys(tiny.path, [override])
    assert [label for label in changed if before[label] == after[label]] == []
    assert [label for label in same if before[label] != after[label]] == []


def test_seeds_give_stages_of_their_own(tiny):
    before, after = keys(tiny.path), keys(tiny.path, seeds=2)
    assert {label: after[label] for label in before} == before, "more seeds keep what the first has computed"
    assert after["unlearn ft, seed 1"] != after["unlearn ft, seed 0"]
    assert after["retrain, seed 1"] != after["retrain, seed 0"]


def test_versions_are_in_the_key(tiny, monkeypatch):
    from rub.tasks.classification.graph import ClassificationGraph

    before = keys(tiny.path)
    monkeypatch.setitem(ClassificationGraph.versions, "unlearn", 99)
    after = keys(tiny.path)
    assert {label for label in MODELS if before[label] != after[label]} == {
        "unlearn ft, seed 0",
        "unlearn sham, seed 0",
    }
    monkeypatch.undo()
    entry = METHODS.get("ft", "classification")
    newer = Entry("ft", "classification", entry.summary, entry.load(), "rub", Card(version=99))
    monkeypatch.setitem(METHODS._entries, ("classification", "ft"), newer)
    after = keys(tiny.path)
    assert {label for label in MODELS if before[label] != after[label]} == {"unlearn ft, seed 0"}
    assert before[REST[-1]] != after[REST[-1]]


def plugged(tiny, path, text, name):
    """Load a plug-in's text, plan, and take its methods out again."""
    from rub.registry import ATTACKS

    path.write_text(text, encoding="utf-8")
    before = dict(METHODS._entries), dict(ATTACKS._entries)
    found = keys(tiny.path, added=load_plugin(path), methods=["ft", name])
    METHODS._entries, ATTACKS._entries = before
    for module in [module for module in sys.modules if module.startswith("rub_plugin_")]:
        del sys.modules[module]
    return found


def test_an_edited_plugin_gets_other_keys(tiny, tmp_path):
    (tmp_path / "moved").mkdir()
    first = plugged(tiny, tmp_path / "mine.py", PLUGIN, "draws")
    moved = plugged(tiny, tmp_path / "moved" / "mine.py", PLUGIN, "draws")
    edited = plugged(tiny, tmp_path / "mine.py", PLUGIN + "\n# another line\n", "draws")
    assert first == moved
    differing = {label for label in first if first[label] != edited[label]}
    assert "unlearn draws, seed 0" in differing
    assert all("draws" in label for label in differing)


@pytest.mark.slow
def test_failing_methods_have_failed_cells_and_the_others_go_on(tiny, tmp_path):
    path = tmp_path / "plugin.py"
    path.write_text(PLUGIN, encoding="utf-8")
    suite = load_suite(str(tiny.path), added=load_plugin(path))
    result = run(suite, store=tiny.store, **CPU)
    assert known_of(result, {"original", "retrain", "sham", "zero-row", "ft"}) == known(tiny.result)
    reasons = {
        "diverges": "unlearn diverges, seed 0: diverged: the loss became nan",
        "not-finite": "unlearn not-finite, seed 0: diverged: fc.bias holds values that are not finite",
        "explodes": "unlearn explodes, seed 0: diverged: the logits of 64 of 64 images are not finite",
        "breaks": "unlearn breaks, seed 0: AttributeError: 'ResNet' object has no attribute 'no_such_layer' (plugin.py:"
        f"{1 + PLUGIN.splitlines().index('    return model.no_such_layer')})",
    }
    assert set(result.failures) == set(reasons.values())
    assert result.counts["failed"] == 4
    cells = {(row.metric, row.split, row.attack) for row in rows(result, method="ft")}
    for method, reason in reasons.items():
        failed = rows(result, method=method)
        assert {(row.metric, row.split, row.attack) for row in failed} == cells
        assert {(row.status, row.value, row.reason) for row in failed} == {("failed", None, reason)}
    assert {row.status for row in rows(result, method="draws")} == {"ok"}
    assert [path.name for path in (tiny.store / "unlearn").iterdir() if path.name.startswith(".")] == []


def known_of(result, methods):
    return [identity(record) for record in result.records if record.method in methods]


@pytest.mark.slow
def test_a_method_that_draws_from_the_global_generator_repeats(tiny, copied_store, tmp_path):
    path = tmp_path / "plugin.py"
    path.write_text(PLUGIN, encoding="utf-8")
    suite = load_suite(str(tiny.path), added=load_plugin(path), methods=["draws"])
    torch.manual_seed(1)
    hashes = set()
    for _ in range(2):
        torch.rand(3)
        result = run(suite, store=copied_store, **CPU)
        hashes |= {row.weights_sha256 for row in rows(result, method="draws")}
        drop(copied_store, "unlearn", "measure")
    state = torch.random.get_rng_state()
    run(suite, store=copied_store, **CPU)
    assert len(hashes) == 1
    assert torch.equal(state, torch.random.get_rng_state()), "and the caller's random numbers are left alone"


@pytest.mark.slow
def test_the_example_method_runs(tiny):
    added = load_plugin(EXAMPLE)
    overrides = ["methods.my-method.epochs=1"]
    suite = load_suite(str(tiny.path), added=added, overrides=overrides, methods=["my-method"])
    result = run(suite, store=tiny.store, **CPU)
    assert result.failures == ()
    ours = rows(result, method="my-method")
    assert len(ours) == len(rows(tiny.result, method="ft"))
    assert {row.status for row in ours} == {"ok"}


def sizes(tiny):
    """Return the ids of digits' training samples that are trained on, in the official order."""
    halves = [np.load(artifact_of(tiny, f"train shadow {index}").path / "member.npy") for index in range(2)]
    _, _, test = digits()
    return np.flatnonzero(~test.numpy())[halves[0] | halves[1]]


def without_classes(tiny, forget):
    suite = load_suite(str(tiny.path), overrides=[f"forget={json.dumps(forget)}"])
    [(_, graph)] = plan(suite, make_runtime(device="cpu"))
    assert len(graph.notes) == 1
    assert "measures of the head need forgotten classes" in graph.notes[0]
    result = run(suite, store=tiny.store, **CPU)
    assert result.failures == ()
    assert {row.status for row in result.records} == {"ok"}
    assert {row.method for row in result.records} == {"original", "retrain", "ft"}
    assert not {"log_odds_auc", "probe_accuracy"} & {row.metric for row in result.records}
    assert {row.split for row in rows(result, attack="uma")} == {"forget"}, "no class to steer retain images into"
    return result


@pytest.mark.slow
def test_forgetting_a_random_fraction(tiny):
    result = without_classes(tiny, {"fraction": 0.05})
    count = len(sizes(tiny))
    for method in ("original", "retrain", "ft"):
        assert one(result, method=method, metric="ua", attack="none").n == round(0.05 * count)
    assert 0 <= one(result, method="ft", metric="mia_rmia").value <= 1


@pytest.mark.slow
def test_forgetting_listed_samples(tiny):
    trained = sizes(tiny)
    chosen = trained[[3, 50, 500, 700, 1000, 1200]].tolist()
    result = without_classes(tiny, {"ids": chosen})
    model, _ = network(tiny, "train original")
    x, y, _ = digits()
    with torch.no_grad():
        right = (model(x[chosen]).argmax(1) == y[chosen]).double().mean().item()
    row = one(result, method="original", metric="ua", attack="none")
    assert row.n == len(chosen)
    assert row.value == pytest.approx(right)
    listed = {item["sample_id"] for item in result.samples if item["split"] == "forget"}
    assert listed == set(chosen)


@pytest.mark.parametrize(
    ("forget", "says"),
    [
        ({"classes": [12]}, "class 12 does not exist; the data has classes 0 to 9"),
        ({"classes": [-1]}, "class -1 does not exist"),
        ({"classes": list(range(10))}, "the forget set is the whole training set"),
        ({"fraction": 1e-6}, "the forget set is empty"),
        ({"ids": [5000]}, "1 ids are not training samples, such as 5000"),
        ({"ids": [1, -1]}, "ids are not training samples"),
    ],
)
def test_forget_sets_that_cannot_be_are_refused(tiny, forget, says):
    suite = load_suite(str(tiny.path), overrides=[f"forget={json.dumps(forget)}"])
    with pytest.raises(RubError, match=says):
        run(suite, store=tiny.store, **CPU)


def test_a_share_that_holds_out_no_image_is_refused():
    labels = torch.arange(40) % 4
    assert held_out(labels, 0.1).sum() == 4
    assert not held_out(labels, 0.0).any()
    with pytest.raises(RubError, match=r"dataset.validation = 0.01: holds out no image of any class; give more, or 0"):
        held_out(labels, 0.01)


def test_held_out_samples_cannot_be_forgotten(tiny):
    _, _, test = digits()
    held = sorted(set(np.flatnonzero(~test.numpy()).tolist()) - set(sizes(tiny).tolist()))
    suite = load_suite(str(tiny.path), overrides=[f"forget={{ids: [{held[0]}]}}"])
    with pytest.raises(RubError, match="not training samples"):
        run(suite, store=tiny.store, **CPU)


@pytest.mark.slow
def test_warm_starts_never_lose_a_sample(tiny):
    attacks = {"uma": {"budgets": [8, 32], "warm_start": True, "splits": ["forget"]}}
    protocol = json.dumps({"name": "rub-paper-1", "shadows_per_seed": 2, "probe_per_class": 10, "attacks": {
        "uma": {**attacks["uma"], "runs": [{"name": "uma", "steps": 2}]}, "noise": {"budgets": [0]}}})  # fmt: skip
    suite = load_suite(str(tiny.path), overrides=[f"protocol={protocol}"], methods=[])
    result = run(suite, store=tiny.store, **CPU)
    found = {
        level: {item["sample_id"] for item in result.samples
                if item["method"] == "retrain" and item["budget"] == f"{level}/255" and item["recovered"]}
        for level in (8, 32)
    }  # fmt: skip
    assert found[8] <= found[32]


@pytest.mark.slow
def test_protocols_name_attacks_and_parameters_that_exist():
    for name in protocols_of("classification"):
        suite = load_suite("quick", task="classification", overrides=[f"protocol={name}"])
        [(_, graph)] = plan(suite, make_runtime(device="cpu"))
        assert graph.common["protocol"] == name


def test_a_control_is_no_method(tiny):
    for name in ("original", "retrain", "sham"):
        with pytest.raises(RubError, match=f"--methods {name}: a control that always runs"):
            load_suite(str(tiny.path), methods=[name])
        with pytest.raises(RubError, match=f"method '{name}' is a control"):
            plan(load_suite(str(tiny.path), overrides=[f"methods=[{name}]"]), make_runtime(device="cpu"))


@pytest.mark.slow
def test_one_more_metric_runs_only_that_metric(tiny, copied_store):
    @rub.metric("again", task="classification", direction="down", attacked=True)
    def again(outputs):
        """UA, computed from the outputs."""
        return outputs.logits.argmax(axis=1) == outputs.labels

    @rub.metric("moved", task="classification", unit="logits", split="retain", needs=["original", "test"], low=0)
    def moved(outputs):
        """How far kept images' logits moved, beside the spread of test images."""
        assert len(outputs["test"]) > 0
        assert outputs.features.shape == (len(outputs), outputs["original"].features.shape[1])
        return abs(outputs.logits - outputs["original"].logits).mean()

    suite = load_suite(str(tiny.path), overrides=["metrics=[again, moved]"])
    result = run(suite, store=copied_store, runtime=make_runtime(device="cpu"))
    rows = len({(record.method, record.unlearn_seed) for record in result.records})
    assert (result.counts["done"], result.counts["failed"]) == (3 * rows, 0)  # clean, clean, and after uma
    found = {
        metric: {(r.method, r.attack): (r.value, r.ci_low, r.n) for r in result.records
                 if r.metric == metric and r.split == "forget" and r.attack != "noise"}
        for metric in ("ua", "again")
    }  # fmt: skip
    assert found["ua"] == found["again"]
    assert {record.value for record in result.records if record.metric == "moved" and record.method == "original"} == {
        0
    }
    assert [item.name for item in tiny.result.pages[0][2]] == [
        table.name for table in result.pages[0][2] if not table.name.startswith("metrics")
    ]
    assert "metrics" not in tiny.suite.experiments[0].model_dump()


@pytest.mark.slow
def test_a_metric_of_a_plugin_may_ask_shadow_models(tiny, copied_store):
    @rub.metric("members", task="classification", direction="down", shadows=2, seeded=True, attacked=True)
    def members(outputs):
        """The membership attack of every seed, again."""
        return outputs.shadows.attack.members(outputs.logits, outputs.labels)

    @rub.metric("inside", task="classification", shadows=2)
    def inside(outputs):
        """Forgotten images that were trained on by each shadow model, mean."""
        return outputs.shadows.train.points(outputs.shadows.places(outputs.ids)).member.mean()

    suite = load_suite(str(tiny.path), overrides=["metrics=[members, inside]"])
    result = run(suite, store=copied_store, runtime=make_runtime(device="cpu"))
    assert result.counts["failed"] == 0
    found = {
        metric: {(r.method, r.attack, r.mia_seed): (r.value, r.ci_low, r.n) for r in result.records
                 if r.metric == metric and r.attack != "noise"}
        for metric in ("mia_shadow", "members")
    }  # fmt: skip
    assert found["mia_shadow"] == found["members"] and {seed for _, _, seed in found["members"]} == {0}
    assert {r.value for r in result.records if r.metric == "inside"} == {0.5}, "two complementary halves"


def test_a_metric_that_asks_more_shadow_models_than_there_are_is_refused(tiny):
    @rub.metric("members", task="classification", shadows=4)
    def members(outputs):
        """Nothing."""
        return 0.0

    with pytest.raises(RubError, match="metric 'members' needs 4 shadow models, this experiment has 2"):
        plan(load_suite(str(tiny.path), overrides=["metrics=[members]"]), make_runtime(device="cpu"))


@pytest.mark.parametrize(
    ("given", "says"),
    [("[ua]", "is always measured"), ("[agian]", "did you mean 'again'"), ("[again]", "needs steered")],
)
def test_metrics_that_cannot_be_measured_are_refused(tiny, given, says):
    @rub.metric("again", task="classification", split="steered")
    def again(outputs):
        """Nothing."""
        return 0.0

    with pytest.raises(RubError, match=says):
        plan(load_suite(str(tiny.path), overrides=[f"metrics={given}"]), make_runtime(device="cpu"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "says"), [(2.0, "should lie from 0.0 to 1.0"), (float("nan"), "is None"), ([1], "bool")]
)
def test_a_metric_with_an_impossible_value_fails_its_stage_alone(tiny, copied_store, value, says):
    @rub.metric("wrong", task="classification")
    def wrong(outputs):
        """Nothing."""
        return value

    suite = load_suite(str(tiny.path), overrides=["metrics=[wrong]"])
    result = run(suite, store=copied_store, runtime=make_runtime(device="cpu"))
    assert all(says in reason for reason in result.failures)
    assert {record.status for record in result.records if record.metric == "wrong"} == {"failed"}
    assert {record.status for record in result.records if record.metric != "wrong"} == {"ok"}
