"""Training: the schedules, the loop against a hand-written one, determinism; and what `predict` and `embed` return."""

import copy
import math
from hashlib import sha256

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rub.data.samples import Samples
from rub.data.sources import load_images
from rub.errors import Diverged, RubError
from rub.models.network import build_network
from rub.pipeline.rng import seeded
from rub.tasks.classification.context import UnlearnContext
from rub.training.batches import Augmentation
from rub.training.classifier import embed, learning_rate, predict, train

STILL = Augmentation(padding=0, flip=False)


def toy(count=48, seed=0):
    """Return two classes that brightness tells apart."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=generator)
    noise = torch.randint(0, 60, (count, 3, 8, 8), generator=generator)
    return Samples((noise + 150 * labels[:, None, None, None]).to(torch.uint8), labels, torch.arange(count))


def network(seed=0):
    return build_network("resnet10", num_classes=2, width=4, seed=seed)


def trained(seed=0, **changes):
    context = UnlearnContext(seed=seed, num_classes=2, batch_size=16)
    return train(network(), toy(), context, **{"epochs": 3, "lr": 0.05, "schedule": "onecycle", **changes})


def test_steps_drop_where_upstream_drops():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)
    upstream = torch.optim.lr_scheduler.MultiStepLR(optimizer, [91, 136], gamma=0.1)
    per_epoch = 7
    for epoch in range(182):
        for step in range(per_epoch):
            progress = (epoch * per_epoch + step + 0.5) / (182 * per_epoch)
            assert learning_rate("steps", 0.1, progress) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        upstream.step()


def test_onecycle_and_cosine():
    for progress, share in ((0.0, 0.0), (0.1, 0.5), (0.2, 1.0), (0.6, 0.5), (1.0, 0.0)):
        assert learning_rate("onecycle", 0.4, progress) == pytest.approx(0.4 * share)
    for progress in (0.0, 0.25, 0.5, 1.0):
        assert learning_rate("cosine", 0.4, progress) == pytest.approx(0.4 * math.cos(math.pi * progress / 2) ** 2)
    with pytest.raises(RubError, match="did you mean 'cosine'"):
        learning_rate("cosin", 0.1, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize(("schedule", "nesterov"), [("onecycle", True), ("steps", False), ("cosine", False)])
def test_the_loop_is_sgd_written_by_hand(schedule, nesterov):
    samples, context = toy(33), UnlearnContext(seed=5, num_classes=2, batch_size=8, augmentation=STILL)
    model = network().double()  # in float32, rounding grows to 1e-2 within these few steps
    mine = copy.deepcopy(model)
    train(model, samples, context, epochs=2, lr=0.02, schedule=schedule, momentum=0.8, weight_decay=0.01)
    mine.train()
    velocity, step, total = {}, 0, 2 * 4  # 33 = 4 x 8 + 1: the single image is left out
    for x, y in context.epochs(samples, 2):
        mine.zero_grad()
        F.cross_entropy(mine(x).float(), y).backward()
        rate = learning_rate(schedule, 0.02, (step + 0.5) / total)
        with torch.no_grad():
            for name, parameter in mine.named_parameters():
                slope = parameter.grad + 0.01 * parameter
                velocity[name] = 0.8 * velocity[name] + slope if name in velocity else slope.clone()
                parameter.sub_(rate * (slope + 0.8 * velocity[name] if nesterov else velocity[name]))
        step += 1
    assert step == total
    for name, value in mine.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-9, atol=1e-9)


def test_training_learns_and_ends_in_eval_mode():
    model = trained(epochs=6)
    assert not model.training
    fresh = toy(40, seed=9)
    assert (predict(model, fresh).argmax(1) == fresh.labels).float().mean() > 0.9


@pytest.mark.slow
def test_the_same_seed_gives_identical_weights():
    one, same, other = trained(7).state_dict(), trained(7).state_dict(), trained(8).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])


def test_bfloat16_keeps_float32_weights():
    context = UnlearnContext(seed=0, num_classes=2, batch_size=16, precision="bfloat16")
    model = train(network(), toy(), context, epochs=1, lr=0.05, schedule="cosine")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_divergence_and_wrong_schedules_end_training():
    with pytest.raises(Diverged):
        trained(lr=1e30)
    with pytest.raises(RubError, match="unknown schedule"):
        trained(schedule="linear")


def test_predict_and_embed_agree_with_the_model():
    model, samples = trained(), toy(21, seed=3)
    x = samples.images.double().div(255).float()
    with torch.no_grad():
        expected = model(x)
    model.train()
    logits, features = predict(model, samples), embed(model, samples)
    assert model.training  # its mode is restored
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(F.linear(features, model.fc.weight, model.fc.bias), logits, rtol=1e-4, atol=1e-5)
    assert logits.dtype == features.dtype == torch.float32
    assert not logits.requires_grad
    assert not features.requires_grad
    assert torch.equal(predict(model, samples.images), logits)  # bare images do as well
    assert features.shape == (21, 32)


@pytest.mark.parametrize("function", [predict, embed])
def test_batch_size_does_not_change_results(function):
    model, samples = trained(), toy(21, seed=3)
    whole = function(model, samples)
    for batch_size in (1, 7, 20):
        torch.testing.assert_close(function(model, samples, batch_size=batch_size), whole, rtol=1e-5, atol=1e-5)


def test_no_samples_give_no_rows():
    model = network()
    nothing = toy().select(torch.zeros(48, dtype=torch.bool))
    assert predict(model, nothing).shape == (0, 2)
    assert embed(model, nothing).shape == (0, 32)


def test_predict_ignores_autocast_around_it():
    model, samples = trained(), toy(8, seed=3)
    expected = predict(model, samples)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(predict(model, samples), expected)


def test_predict_leaves_frozen_batch_norms_frozen():
    model = network().train()
    model.bn1.eval()
    predict(model, toy(4))
    assert model.training
    assert model.fc.training
    assert not model.bn1.training


@pytest.mark.slow
def test_a_small_network_learns_digits():
    data, losses = load_images("digits", None), []
    context = UnlearnContext(seed=0, num_classes=10, batch_size=32, augmentation=STILL)
    shape = {"num_classes": 10, "channels": 1, "width": 8, "mean": data.mean, "std": data.std}
    for epochs in (1, 4):
        model = train(
            build_network("resnet10", **shape), data.train, context, epochs=epochs, lr=0.1, schedule="onecycle"
        )
        losses.append(F.cross_entropy(predict(model, data.train), data.train.labels).item())
    assert losses[1] < losses[0] < math.log(10)  # below the loss of equal logits, and falling
    assert (predict(model, data.test).argmax(1) == data.test.labels).float().mean() > 0.9


def pictures(count, side=5):
    generator = torch.Generator().manual_seed(4)
    return torch.randint(1, 256, (count, 2, side, side), generator=generator, dtype=torch.uint8)


def shifted(image, row, column, pad, mirrored):
    """Cut the window whose corner is (row, column) out of an image with a border of zeros, pixel by pixel."""
    side = image.shape[-1]
    out = torch.zeros_like(image)
    for i in range(side):
        for j in range(side):
            y, x = row + i - pad, column + j - pad
            if 0 <= y < side and 0 <= x < side:
                out[:, i, side - 1 - j if mirrored else j] = image[:, y, x]
    return out


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("flip", [True, False])
def test_augmentation_is_a_crop_and_a_flip_drawn_evenly(padding, flip):
    images = pictures(1).expand(1500, -1, -1, -1)
    augmented = Augmentation(padding, flip)(images, seeded(0, "augment"))
    assert augmented.dtype == torch.uint8
    assert augmented.shape == images.shape
    places = range(2 * padding + 1)
    wanted = [(r, c, m) for r in places for c in places for m in ((False, True) if flip else (False,))]
    counts = [
        (augmented == shifted(images[0], row, column, padding, mirrored)).flatten(1).all(1).sum().item()
        for row, column, mirrored in wanted
    ]
    assert sum(counts) == 1500  # every result is one of these, which differ from each other
    share = 1500 / len(wanted)
    assert all(abs(count - share) < 5 * share**0.5 for count in counts)


def test_a_crop_follows_its_draw():
    images, pad = pictures(6), 2
    draw = torch.randint(0, 2 * pad + 1, (2, 6), generator=torch.Generator().manual_seed(9))
    expected = [shifted(image, int(r), int(c), pad, False) for image, r, c in zip(images, *draw, strict=True)]
    augmented = Augmentation(pad, flip=False)(images, torch.Generator().manual_seed(9))
    assert torch.equal(augmented, torch.stack(expected))


def test_no_augmentation_is_the_identity_and_draws_nothing():
    images, generator = pictures(3), torch.Generator().manual_seed(2)
    before = generator.get_state()
    assert torch.equal(STILL(images, generator), images)
    assert torch.equal(generator.get_state(), before)


def test_streams_are_sha256_of_seed_and_name():
    def draw(seed, stream):
        return torch.randint(0, 2**40, (8,), generator=seeded(seed, stream)).tolist()

    digest = sha256(b"12:batches").hexdigest()
    by_hand = torch.Generator().manual_seed(int(digest[:16], 16) // 2)
    assert draw(12, "batches") == torch.randint(0, 2**40, (8,), generator=by_hand).tolist()
    drawn = {tuple(draw(seed, stream)) for seed in (0, 1, 12) for stream in ("batches", "labels", "")}
    assert len(drawn) == 9
    context = UnlearnContext(seed=12, num_classes=2)
    assert torch.randint(0, 2**40, (8,), generator=context.generator("batches")).tolist() == draw(12, "batches")


def test_batches_pass_over_every_sample_once():
    samples = toy(20)
    samples = Samples(samples.images, torch.arange(20), samples.ids)  # the label names the image
    context = UnlearnContext(seed=1, num_classes=20, batch_size=8, augmentation=STILL)
    passes = list(context.epochs(samples, 2))
    assert [len(y) for _, y in passes] == [8, 8, 4] * 2
    for x, y in passes:
        assert torch.equal(x, (samples.images[y].double() / 255).float())
    first, second = (torch.cat([y for _, y in part]) for part in (passes[:3], passes[3:]))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(20))
    assert not torch.equal(first, second)
    in_order = context.batches(samples.select(torch.arange(17)), context.generator(""), shuffle=False, augment=False)
    assert torch.cat([y for _, y in in_order]).tolist() == list(range(17))  # a last single image too
