"""Where knowledge still is, on trained networks: what exposes the shams, what no gauge moves, how fast it returns."""

import numpy as np
import pytest
import torch

from rub import load_suite, run
from rub.api import make_runtime
from rub.data.samples import Samples
from rub.data.sources import load_images
from rub.models.network import build_network, head
from rub.models.weights import read_state
from rub.store.artifacts import Store
from rub.training.batches import Augmentation
from rub.training.classifier import predict
from rub.training.context import TrainContext
from rub.training.relearning import relearn

pytestmark = pytest.mark.slow

CHANGES = [
    "seeds.mia=1", "seeds.unlearn=1", "controls=[gauge]", "evaluation.attack_samples=8",
    "protocol={name: layers, shadows_per_seed: 2, probe_per_class: 50,"
    " attacks: {noise: {runs: [noise], budgets: [64]}}, few_images: 30, relearn: {images: 30, steps: 64}}",
]  # fmt: skip
LAYERS = ("log_odds_auc", "head_refit", "transplant", "transplant_ta", "probe_balanced", "prototypes")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Values of the layers of original, retrained model and controls: metric -> row -> value; and the store."""
    store = tmp_path_factory.mktemp("store")
    suite = load_suite("quick", task="classification", methods=[], overrides=CHANGES)
    result = run(suite, store=store, runtime=make_runtime(device="cpu"))
    assert result.failures == ()
    found = {}
    for record in result.records:
        if record.attack == "none":
            found.setdefault(record.metric, {})[record.method] = record.value
    return found, Store(store)


@pytest.fixture(scope="module")
def digits():
    return load_images("digits", None)


def network(store, label):
    [weights] = [
        path.parent / "weights.safetensors"
        for kind in ("train", "unlearn")
        for path in (store.root / kind).glob("*/manifest.json")
        if f'"{label}"' in path.read_text()
    ]
    data = load_images("digits", None)
    model = build_network("resnet10", num_classes=10, channels=1, width=8, mean=data.mean, std=data.std)
    model.load_state_dict(read_state(weights))
    return model.eval()


@pytest.mark.parametrize("sham", ["sham", "zero-row"])
def test_what_was_only_made_silent_is_exposed(ran, sham):
    """Bias lowered, or row deleted: UA is 0, and features, transplant and refitted head stand as the original's."""
    found, _ = ran
    assert found["ua"][sham] == found["ua_test"][sham] == 0
    for metric in ("transplant", "head_refit", "probe_balanced", "prototypes"):
        assert found[metric][sham] == found[metric]["original"], metric
    assert found["transplant"]["original"] == found["ua_test"]["original"] > 0.9
    assert found["transplant"]["retrain"] < found["transplant"]["original"] / 2
    assert found["head_refit"]["original"] > 0.95


def test_no_layer_depends_on_the_gauge(ran):
    found, _ = ran
    for metric in (*LAYERS, "relearn", "ua", "ta"):
        assert found[metric]["gauge"] == pytest.approx(found[metric]["original"], abs=1e-6), metric


def test_the_log_odds_of_the_sham_are_the_originals_and_a_retrained_model_has_less(ran):
    found, _ = ran
    assert found["log_odds_auc"]["sham"] == found["log_odds_auc"]["original"] > 0.99
    assert found["log_odds_auc"]["retrain"] < found["log_odds_auc"]["original"]


@pytest.mark.parametrize("row", ["retrain, seed 0", "unlearn zero-row, seed 0"])
def test_a_transplant_is_the_network_with_the_originals_last_layer(ran, digits, row):
    found, store = ran
    model = network(store, row)
    head(model).load_state_dict(head(network(store, "train original")).state_dict())
    right = (predict(model, digits.test).argmax(1) == digits.test.labels).numpy()
    forgotten = (digits.test.labels == 0).numpy()
    name = "retrain" if row.startswith("retrain") else "zero-row"
    assert found["transplant"][name] == pytest.approx(right[forgotten].mean())
    assert found["transplant_ta"][name] == pytest.approx(right[~forgotten].mean())


def test_relearning_tells_what_is_near(ran):
    """The original has nothing to learn; a silent output returns sooner than what was never known."""
    found, _ = ran
    assert found["relearn"]["original"] == found["relearn_retain"]["original"] == -1
    assert found["relearn"]["original"] < found["relearn"]["sham"]
    assert found["relearn"]["retrain"] <= np.log2(128)
    assert found["relearn_retain"]["retrain"] == np.log2(128), "kept images alone teach nothing of the class"


def test_fine_tuning_is_what_torch_does(digits):
    """Against a plain loop: the same steps on the same batches, statistics of batch normalisation as they were."""
    context = TrainContext(seed=0, batch_size=32, augmentation=Augmentation(0, flip=False))
    samples, unseen = digits.train.select(torch.arange(90)), digits.test
    model = build_network("resnet10", num_classes=10, channels=1, width=4, mean=digits.mean, std=digits.std).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steps, right = relearn(model, samples, unseen, context, lr=0.05, most=4, enough=2.0)
    assert steps == [0, 1, 2, 4] and right.shape == (len(unseen), 4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "a copy is tuned"
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    batches = context.endless(samples, "relearn")
    for step in range(5):
        if step in steps:
            expected = predict(model, unseen).argmax(1) == unseen.labels
            assert np.mean(right[:, steps.index(step)] != expected.numpy()) < 0.01
        x, y = next(batches)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if "running" in name)


def test_a_model_that_diverges_has_not_relearned(digits):
    context = TrainContext(seed=0, batch_size=32, augmentation=Augmentation(0, flip=False))
    model = build_network("resnet10", num_classes=10, channels=1, width=4, mean=digits.mean, std=digits.std).eval()
    samples = Samples(digits.train.stored, digits.train.labels, digits.train.ids)
    steps, right = relearn(model, samples, digits.test, context, lr=1e30, most=64, enough=2.0)
    assert steps[0] == 0 and steps[-1] < 64 and right.shape[1] == len(steps)
