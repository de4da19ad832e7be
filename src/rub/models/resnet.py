"""Residual networks with torchvision's state-dict keys and the input normalisation inside, so that eps is in pixels.

He et al., CVPR 2016 (arXiv 1512.03385). `cifar_resnet` is its CIFAR family (section 4.2): three stages and option-A
shortcuts without parameters, as in the public akamaster/pytorch_resnet_cifar10.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from rub.config.hyperparameters import Hyper
from rub.errors import RubError

Stem = Annotated[
    Literal["cifar", "imagenet", "half"], Hyper("first layers: 3 x 3, torchvision's, or 3 x 3 of stride 2")
]
# (kernel, stride, padding, max-pool): "half" halves the resolution at once, for networks that a CPU trains
STEMS: Mapping[str, tuple[int, int, int, bool]] = {
    "cifar": (3, 1, 1, False),
    "imagenet": (7, 2, 3, True),
    "half": (3, 2, 1, False),
}
Width = Annotated[int | None, Hyper("channels of the first stage; None: 64, or 16 in the CIFAR family", ge=1, le=1024)]
Depth = Annotated[int, Hyper("number of layers, 6n + 2", ge=8, le=1202)]

NARROW = 16  # channels: see `Pointwise`


class PaddedShortcut(nn.Module):
    """Option A: take every second pixel and pad the new channels with zeros, half on each side; no parameters."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, outputs, H / stride, W / stride)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class Pointwise(nn.Conv2d):
    """A strided 1 x 1 convolution that takes every second pixel first.

    The same equation; oneDNN's own (v3.12, channels-last on a CPU with AVX-512) writes past its memory in the backward
    pass when there are fewer than 16 channels: a crash, or wrong gradients (oneDNN issue 6035).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, outputs, H / stride, W / stride)."""
        down, across = self.stride
        return F.conv2d(x[:, :, ::down, ::across], self.weight, self.bias)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int, *, padded: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _shortcut(inputs, planes, stride, padded=padded)

    def forward(self, x: Tensor) -> Tensor:
        """relu(f(x) + shortcut(x))."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return cast(Tensor, self.relu(x + shortcut))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (with the stride, as torchvision), 1 x 1 convolutions beside a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int, *, padded: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, 4 * planes, stride, padded=padded)

    def forward(self, x: Tensor) -> Tensor:
        """relu(f(x) + shortcut(x))."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return cast(Tensor, self.relu(x + shortcut))


class ResNet(nn.Module):
    """A residual classifier of [0, 1] images, giving raw logits.

    The state dict has exactly torchvision's keys: mean and std are buffers that are not part of it.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, kind: str, blocks: Sequence[int], *, num_classes: int, channels: int, stem: str, width: int
    ) -> None:
        super().__init__()
        kernel, stride, padding, pool = STEMS[stem]
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1), persistent=False)
        self.register_buffer("std", torch.ones(1, channels, 1, 1), persistent=False)
        self.conv1 = nn.Conv2d(channels, width, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if pool else nn.Identity()
        block = Bottleneck if kind == "bottleneck" else BasicBlock
        self.stages = tuple(f"layer{index + 1}" for index in range(len(blocks)))
        inputs = width
        for index, (name, count) in enumerate(zip(self.stages, blocks, strict=True)):
            planes, step = width * 2**index, 1 if index == 0 else 2
            layers: list[nn.Module] = []
            for place in range(count):
                layers.append(block(inputs, planes, step if place == 0 else 1, padded=kind == "cifar"))
                inputs = planes * block.expansion
            self.add_module(name, nn.Sequential(*layers))
        self.fc = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features (N, D) of images (N, C, H, W) in [0, 1]."""
        x = (x - self.mean) / self.std
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return x.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Raw logits (N, num_classes) of images (N, C, H, W) in [0, 1]."""
        return cast(Tensor, self.fc(self.features(x)))

    def fold(self) -> None:
        """Fold batch norms into their convolutions and std into the first: the same function to rounding.

        conv((x - mean) / std) = conv'(x - mean); the subtraction keeps padding exact.
        """
        for module in self.modules():
            _fold_pairs(module)
        self.conv1.weight.data /= self.std
        self.std = torch.ones_like(self.std)


def _resnet(
    kind: str, blocks: Sequence[int], num_classes: int, channels: int, size: int, *, stem: Stem = "cifar",
    width: Width = None,
) -> ResNet:  # fmt: skip
    width = width or (16 if kind == "cifar" else 64)
    return ResNet(kind, blocks, num_classes=num_classes, channels=channels, stem=stem, width=width)


def cifar_resnet(
    num_classes: int, channels: int, size: int, *, depth: Depth = 20, stem: Stem = "cifar", width: Width = None
) -> ResNet:
    """CIFAR ResNet of `depth` = 6n + 2 layers: n blocks in each of three stages, shortcuts without parameters.

    Raises:
        RubError: another depth.
    """
    if depth % 6 != 2:
        raise RubError(f"cifar-resnet: depth = {depth}: should be 6n + 2, such as 20, 32, 44, 56 or 110")
    return _resnet("cifar", (depth // 6,) * 3, num_classes, channels, size, stem=stem, width=width)


resnet10 = partial(_resnet, "basic", (1, 1, 1, 1))
resnet18 = partial(_resnet, "basic", (2, 2, 2, 2))
resnet34 = partial(_resnet, "basic", (3, 4, 6, 3))
resnet50 = partial(_resnet, "bottleneck", (3, 4, 6, 3))
resnet20 = partial(_resnet, "cifar", (3,) * 3)
resnet32 = partial(_resnet, "cifar", (5,) * 3)
resnet44 = partial(_resnet, "cifar", (7,) * 3)
resnet56 = partial(_resnet, "cifar", (9,) * 3)
resnet110 = partial(_resnet, "cifar", (18,) * 3)


def _fold_pairs(module: nn.Module) -> None:
    for number in (1, 2, 3):
        convolution, norm = getattr(module, f"conv{number}", None), getattr(module, f"bn{number}", None)
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(module, f"conv{number}", fuse_conv_bn_eval(convolution, norm))
            setattr(module, f"bn{number}", nn.Identity())
    shortcut = getattr(module, "downsample", None)
    if isinstance(shortcut, nn.Sequential) and len(shortcut) == 2:  # of length 1 once it is folded
        pair = fuse_conv_bn_eval(cast(nn.Conv2d, shortcut[0]), cast(nn.BatchNorm2d, shortcut[1]))
        module.downsample = nn.Sequential(pair)


def _shortcut(inputs: int, outputs: int, stride: int, *, padded: bool) -> nn.Module | None:
    if stride == 1 and inputs == outputs:
        return None
    if padded:
        return PaddedShortcut(inputs, outputs, stride)
    convolution = Pointwise if inputs < NARROW and stride > 1 else nn.Conv2d
    return nn.Sequential(convolution(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
