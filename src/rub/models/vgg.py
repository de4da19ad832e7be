"""VGG-16 with batch normalisation: torchvision's keys, and the two heads that unlearning papers put on it for CIFAR.

Simonyan and Zisserman, ICLR 2015 (arXiv 1409.1556), configuration D. Heads: ``linear``, one layer on averaged features
(keys ``classifier.weight``: `vgg16_bn_lth` of OPTML-Group/Unlearn-Sparse and kuangliu/pytorch-cifar); ``small``, three
layers on 2 x 2 positions (``classifier.0``, ``.2``, ``.4``: that repository's `vgg16_bn`, whose convolutions have no
bias); ``imagenet``, three layers with dropout on 7 x 7 positions (``classifier.0``, ``.3``, ``.6``: torchvision).
"""

from typing import Annotated, Literal, cast

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from rub.config.hyperparameters import Hyper

STAGES = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))
"""Channels of the convolutions before each of the five poolings, in units of the width."""


class VGG(nn.Module):
    """Convolutions with batch norm and ReLU, five poolings (none below 2 px), and a head."""

    def __init__(self, num_classes: int, channels: int, size: int, *, head: str, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for stage in STAGES:
            for factor in stage:
                made = factor * width
                layers += [nn.Conv2d(channels, made, 3, padding=1, bias=head != "small"), nn.BatchNorm2d(made)]
                layers.append(nn.ReLU(inplace=True))
                channels = made
            layers.append(nn.MaxPool2d(2) if size > 1 else nn.Identity())
            size = max(size // 2, 1)
        self.features = nn.Sequential(*layers)
        side, hidden = {"linear": (1, 0), "small": (2, 4 * width), "imagenet": (7, 64 * width)}[head]
        self.avgpool = nn.AdaptiveAvgPool2d(side)
        inputs = channels * side**2
        self.classifier: nn.Module = (
            nn.Linear(inputs, num_classes)
            if head == "linear"
            else _head(inputs, hidden, num_classes, dropout=head == "imagenet")
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Raw logits (N, num_classes) of normalised images (N, C, H, W)."""
        return cast(Tensor, self.classifier(self.avgpool(self.features(x)).flatten(1)))

    def fold(self) -> None:
        """Fold batch norms into the convolutions before them: the same function in eval mode, to rounding."""
        for place, norm in enumerate(self.features):
            if isinstance(norm, nn.BatchNorm2d):
                self.features[place - 1] = fuse_conv_bn_eval(cast(nn.Conv2d, self.features[place - 1]), norm)
                self.features[place] = nn.Identity()


def _head(inputs: int, hidden: int, num_classes: int, *, dropout: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in ((inputs, hidden), (hidden, hidden)):
        layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
        layers += [nn.Dropout()] if dropout else []
    return nn.Sequential(*layers, nn.Linear(hidden, num_classes))


def vgg16_bn(
    num_classes: int,
    channels: int,
    size: int,
    *,
    head: Annotated[Literal["linear", "small", "imagenet"], Hyper("which classifier, see `rub.models.vgg`")] = "linear",
    width: Annotated[int, Hyper("channels of the first stage", ge=1, le=1024)] = 64,
) -> VGG:
    """VGG-16 with batch normalisation; the heads are described at the top of this file."""
    return VGG(num_classes, channels, size, head=head, width=width)
