"""Networks: torchvision's keys, the published sizes, and the equations recomputed with plain functions."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rub.errors import RubError
from rub.models.network import build_network, frozen_copy
from rub.models.resnet import PaddedShortcut, Pointwise, ResNet


def norm_keys(prefix):
    return [f"{prefix}.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]


def torchvision_keys(blocks, convolutions, *, first_downsample):
    """Return torchvision's state-dict keys, written from its documented structure."""
    keys = ["conv1.weight", *norm_keys("bn1")]
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            place = f"layer{stage}.{block}"
            for number in range(1, convolutions + 1):
                keys += [f"{place}.conv{number}.weight", *norm_keys(f"{place}.bn{number}")]
            if block == 0 and (stage > 1 or first_downsample):
                keys += [f"{place}.downsample.0.weight", *norm_keys(f"{place}.downsample.1")]
    return [*keys, "fc.weight", "fc.bias"]


def shaken(model, seed=0):
    """Give the batch norms statistics and weights that are not 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0, 0.2, generator=generator)
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "blocks", "convolutions", "first", "count"),
    [
        ("resnet10", (1, 1, 1, 1), 2, False, 74),
        ("resnet18", (2, 2, 2, 2), 2, False, 122),
        ("resnet34", (3, 4, 6, 3), 2, False, 218),
        ("resnet50", (3, 4, 6, 3), 3, True, 320),
    ],
)
def test_keys_are_torchvisions(arch, blocks, convolutions, first, count):
    names = list(build_network(arch, num_classes=5, width=4).state_dict())
    assert sorted(names) == sorted(torchvision_keys(blocks, convolutions, first_downsample=first))
    assert len(names) == count


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "stem", "classes", "parameters"),
    [  # the sizes that torchvision and He et al. (table 6) print
        ("resnet18", "imagenet", 1000, 11_689_512),
        ("resnet34", "imagenet", 1000, 21_797_672),
        ("resnet50", "imagenet", 1000, 25_557_032),
        ("resnet18", "cifar", 10, 11_173_962),
        ("resnet20", "cifar", 10, 269_722),
        ("resnet56", "cifar", 10, 853_018),
    ],
)
def test_sizes_are_the_published_ones(arch, stem, classes, parameters):
    model = build_network(arch, num_classes=classes, stem=stem)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_the_cifar_family_has_no_parameters_in_shortcuts():
    model = build_network("resnet20", num_classes=10, width=4)
    assert not [name for name in model.state_dict() if "downsample" in name or "layer4" in name]
    x = torch.rand(2, 4, 6, 6)
    expected = torch.zeros(2, 8, 3, 3)
    expected[:, 2:6] = x[:, :, ::2, ::2]
    assert torch.equal(PaddedShortcut(4, 8, 2)(x), expected)


@pytest.mark.parametrize(
    ("arch", "stem", "sizes"),
    [
        ("resnet18", "cifar", (32, 32, 16, 8, 4)),
        ("resnet18", "half", (16, 16, 8, 4, 2)),
        ("resnet18", "imagenet", (16, 8, 4, 2, 1)),
        ("resnet20", "cifar", (32, 32, 16, 8)),
    ],
)
def test_resolutions_of_stem_and_stages(arch, stem, sizes):
    model = build_network(arch, num_classes=3, stem=stem, width=4)
    seen = []
    for name in ("conv1", *model.stages):
        model.get_submodule(name).register_forward_hook(lambda _m, _i, out: seen.append(out.shape[-1]))
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 3)
    assert tuple(seen) == sizes


def by_hand(state, x, blocks, convolutions, mean, std):
    """Compute a CIFAR-stem ResNet's features from its state dict with functions alone."""

    def norm(x, place):
        args = (state[f"{place}.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *args)

    x = (x - torch.tensor(mean).view(1, -1, 1, 1)) / torch.tensor(std).view(1, -1, 1, 1)
    x = norm(F.conv2d(x, state["conv1.weight"], padding=1), "bn1").relu()
    strided = 1 if convolutions == 2 else 2
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            place, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            out = x
            for number in range(1, convolutions + 1):
                weight = state[f"{place}.conv{number}.weight"]
                step = stride if number == strided else 1
                out = norm(F.conv2d(out, weight, stride=step, padding=weight.shape[-1] // 2), f"{place}.bn{number}")
                out = out.relu() if number < convolutions else out
            if f"{place}.downsample.0.weight" in state:
                x = norm(F.conv2d(x, state[f"{place}.downsample.0.weight"], stride=stride), f"{place}.downsample.1")
            x = (x + out).relu()
    return x.flatten(2).mean(2)


@pytest.mark.parametrize(
    ("arch", "blocks", "convolutions"), [("resnet18", (2, 2, 2, 2), 2), ("resnet50", (3, 4, 6, 3), 3)]
)
def test_the_forward_pass_is_the_equation(arch, blocks, convolutions):
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    model = shaken(build_network(arch, num_classes=7, width=4, mean=mean, std=std))
    x = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        expected = by_hand(model.state_dict(), x, blocks, convolutions, mean, std)
        torch.testing.assert_close(model.features(x), expected, rtol=1e-4, atol=1e-5)
        logits = F.linear(expected, model.fc.weight, model.fc.bias)
        torch.testing.assert_close(model(x), logits, rtol=1e-4, atol=1e-5)


def test_initial_weights_are_kaiming_and_follow_the_seed():
    before = torch.random.get_rng_state()
    one, same, other = (build_network("resnet18", num_classes=10, width=16, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)  # the caller's stream is not touched
    for name, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[name])
    assert not torch.equal(one.conv1.weight, other.conv1.weight)
    weight = one.get_parameter("layer4.1.conv2.weight")
    assert weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.03)  # sqrt(2 / fan out)
    assert torch.equal(one.get_parameter("layer1.0.bn2.weight"), torch.ones(16))  # no zero-init of residuals


def test_normalisation_is_inside_and_outside_the_state_dict():
    model = build_network("resnet10", num_classes=3, width=4, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)).eval()
    assert model.mean.shape == model.std.shape == (1, 3, 1, 1)
    assert not {"mean", "std"} & set(model.state_dict())
    plain = build_network("resnet10", num_classes=3, width=4, mean=(0.0,), std=(1.0,)).eval()
    assert plain.mean.shape == (1, 3, 1, 1)
    x = torch.rand(2, 3, 8, 8)
    assert torch.allclose(model(x), plain((x - model.mean) / model.std), atol=1e-6)


def test_wrong_requests_are_one_line():
    with pytest.raises(RubError, match="did you mean 'resnet18'"):
        build_network("resnet81", num_classes=3)
    with pytest.raises(RubError, match="stem = 'cifra'"):
        build_network("resnet18", num_classes=3, stem="cifra")
    with pytest.raises(RubError, match=r"got 2 values; should be one per channel \(3\)"):
        build_network("resnet18", num_classes=3, mean=(0.1, 0.2))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "resnet20"])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_the_fused_copy_computes_the_same(arch, stem):
    model = shaken(build_network(arch, num_classes=6, stem=stem, width=8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    copy = frozen_copy(model.train())
    assert model.training
    assert not copy.training
    assert not any(p.requires_grad for p in copy.parameters())
    assert not [m for m in copy.modules() if isinstance(m, nn.BatchNorm2d)]
    assert copy.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    x = torch.rand(4, 3, 32, 32)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(copy(x), model(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(copy.features(x), model.features(x), rtol=1e-4, atol=1e-4)
        assert torch.equal(frozen_copy(copy)(x), copy(x))
    for name, value in model.state_dict().items():  # the original is left alone
        assert torch.equal(value, state[name])
    assert isinstance(copy, ResNet)
    assert isinstance(copy.fc, nn.Linear)


def test_the_fused_copy_passes_gradients_to_its_input():
    model = shaken(build_network("resnet10", num_classes=3, width=4))
    grads = []
    for network in (model, frozen_copy(model)):
        x = torch.full((2, 3, 8, 8), 0.3, requires_grad=True)
        network(x)[:, 0].sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-5)


def test_a_foreign_model_is_copied_and_frozen():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
    x = torch.rand(3, 3, 6, 6)
    model(x)
    copy = frozen_copy(model)
    assert not any(p.requires_grad for p in copy.parameters())
    assert all(p.requires_grad for p in model.parameters())
    assert torch.allclose(copy(x), model.eval()(x), atol=1e-6)


def test_a_narrow_strided_shortcut_is_the_convolution():
    """Eight channels at 64 px, channels last: oneDNN's own backward pass would crash here (see `Pointwise`)."""
    net = build_network("resnet10", num_classes=4, channels=3, width=8, mean=(0.5,) * 3, std=(0.2,) * 3)
    ours = net.layer2[0].downsample[0]
    assert isinstance(ours, Pointwise)
    plain = nn.Conv2d(8, 16, 1, 2, bias=False)
    plain.load_state_dict(ours.state_dict())
    made = []
    for layer, form in ((plain, torch.contiguous_format), (ours, torch.channels_last)):
        x = torch.randn(64, 8, 64, 64, generator=torch.Generator().manual_seed(0))
        x = x.contiguous(memory_format=form).requires_grad_()
        y = layer.to(memory_format=form)(x)
        y.sin().sum().backward()
        made.append((y.detach(), x.grad, layer.weight.grad))
    for one, other in zip(*made, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-3)
    assert not isinstance(build_network("resnet18", num_classes=4, channels=3, mean=(0.5,) * 3, std=(0.2,) * 3)
                          .layer2[0].downsample[0], Pointwise)  # fmt: skip
