"""Controls of classification against what they say of themselves, computed without them."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from rub.data.samples import to_unit
from rub.errors import RubError
from rub.models.network import build_network, outputs
from rub.registry import CONTROLS
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.classification.controls import drift, gauge, sham, zero_row
from rub.training.batches import Augmentation

CONTEXT = UnlearnContext(
    seed=1, num_classes=4, forget_classes=(1, 3), batch_size=5, augmentation=Augmentation(0, False)
)
SHAPE = {"num_classes": 4, "channels": 3, "size": 8, "mean": (0.5,) * 3, "std": (0.25,) * 3, "seed": 0}


@pytest.fixture
def data(samples_of):
    return samples_of(17, 0), samples_of(23, 1)


@pytest.fixture(params=["resnet10", "vgg16-bn", "vit-mini"])
def network(request):
    """A network in eval mode, with a head whose biases are not all 0."""
    options = {"resnet10": {"stem": "cifar", "width": 2}, "vgg16-bn": {"width": 2}, "vit-mini": {}}[request.param]
    model = build_network(request.param, **SHAPE, **options).eval()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in list(model.parameters())[-2:]:
            parameter.add_(0.5 * torch.randn_like(parameter))
    return model


def seen(model, data):
    x = torch.cat([to_unit(data[0].images), to_unit(data[1].images), torch.rand(9, 3, 8, 8)])
    with torch.no_grad():
        return outputs(model.eval(), x)


def test_sham_changes_the_forgotten_logits_only(network, data):
    torch.manual_seed(3)
    before = seen(network, data)
    torch.manual_seed(3)
    after = seen(sham(deepcopy(network), *data, CONTEXT), data)
    shift = after.logits - before.logits
    assert torch.equal(shift[:, [0, 2]], torch.zeros(len(shift), 2))
    assert torch.allclose(shift[:, [1, 3]], torch.full((len(shift), 2), -50.0), atol=1e-4)


def test_zero_row_says_the_forgotten_classes_of_no_image_and_keeps_the_features(network, data):
    torch.manual_seed(3)
    before = seen(network, data)
    torch.manual_seed(3)
    after = seen(zero_row(deepcopy(network), *data, CONTEXT), data)
    assert torch.equal(after.logits[:, [1, 3]], torch.full((len(after.logits), 2), -50.0))
    assert torch.equal(after.logits[:, [0, 2]], before.logits[:, [0, 2]])
    assert torch.equal(after.features, before.features)


def test_gauge_is_the_same_function_under_other_weights(network, data):
    torch.manual_seed(3)
    before = seen(network, data)
    changed = gauge(deepcopy(network), *data, CONTEXT)
    torch.manual_seed(3)
    after = seen(changed, data)
    assert (after.logits.softmax(1) - before.logits.softmax(1)).abs().max() < 1e-6
    assert torch.equal(after.logits[:, 1], torch.zeros(len(after.logits))), "the row itself is gone"
    assert (after.logits - before.logits).abs().max() > 0.1
    differing = [
        name for name, value in changed.state_dict().items() if not torch.equal(value, network.state_dict()[name])
    ]
    assert len(differing) == 2


def test_gauge_needs_no_bias(data):
    bare = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4, bias=False))
    x = to_unit(data[0].images)
    before = bare(x).softmax(1)
    assert torch.allclose(gauge(bare, *data, CONTEXT)(x).softmax(1), before, atol=1e-6)


def test_drift_moves_running_statistics_alone_by_their_own_equation(samples_of):
    forget, retain = samples_of(17, 0), samples_of(23, 1)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 64, 6), nn.BatchNorm1d(6), nn.Linear(6, 4))
    with torch.no_grad():
        model[0].weight.uniform_(0.5, 2)
    start = deepcopy(model.state_dict())
    mean, var = [torch.zeros(3), torch.zeros(6)], [torch.ones(3), torch.ones(6)]
    batches = CONTEXT.endless(forget, "batches")
    for _ in range(3 * 4):
        x, _ = next(batches)
        pixels = x.movedim(1, 0).flatten(1).T
        shown = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
        scaled = shown * start["0.weight"][:, None, None] + start["0.bias"][:, None, None]
        rows = scaled.flatten(1) @ start["2.weight"].T + start["2.bias"]
        for layer, values in enumerate((pixels, rows)):
            mean[layer] = 0.9 * mean[layer] + 0.1 * values.mean(0)
            var[layer] = 0.9 * var[layer] + 0.1 * values.var(0)
    moved = drift(model, forget, retain, CONTEXT, passes=3).state_dict()
    for layer, place in enumerate(("0", "3")):
        assert torch.allclose(moved[f"{place}.running_mean"], mean[layer], atol=1e-5)
        assert torch.allclose(moved[f"{place}.running_var"], var[layer], rtol=1e-4)
    still = [name for name in start if "running" not in name and "tracked" not in name]
    assert all(torch.equal(moved[name], start[name]) for name in still)


@pytest.mark.parametrize("control", [sham, zero_row, gauge], ids=lambda control: control.__name__)
def test_heads_that_a_control_cannot_use_are_refused_in_one_line(control, data):
    name = control.__name__.replace("_", "-")
    flat = nn.Flatten()
    with pytest.raises(RubError, match=f"{name} needs forgotten classes"):
        control(nn.Sequential(flat, nn.Linear(192, 4)), *data, replace(CONTEXT, forget_classes=()))
    with pytest.raises(RubError, match=f"{name}: Sequential has no last layer with one row for each class"):
        control(nn.Sequential(nn.Conv2d(3, 4, 8), flat), *data, CONTEXT)
    if control is not gauge:
        with pytest.raises(RubError, match=f"{name}: the last layer of Sequential has no bias"):
            control(nn.Sequential(flat, nn.Linear(192, 4, bias=False)), *data, CONTEXT)


@pytest.mark.parametrize("layer", [nn.LayerNorm(8), nn.BatchNorm2d(3, track_running_stats=False)])
def test_a_network_without_running_statistics_cannot_drift(layer, data):
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(192, 4))
    with pytest.raises(
        RubError, match="drift: Sequential has no batch normalisation that could drift; leave drift out"
    ):
        drift(model, *data, CONTEXT)


def test_each_control_that_hides_names_the_metric_that_tells():
    told = {entry.name: entry.exposed_by for entry in CONTROLS.entries("classification") if entry.exposed_by}
    assert set(told) == {"sham", "zero-row", "gauge"}
