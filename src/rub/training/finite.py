"""Models whose numbers stopped being finite: said once, where a model is made or read, and not by every later stage."""

import torch
from torch import Tensor, nn

from rub.data.samples import Samples
from rub.data.splits import subset
from rub.errors import Diverged

SHOWN = 64  # images that a model which was made, or read, is looked at on


def looked_at(samples: Samples) -> Samples:
    """A fixed draw of at most `SHOWN` images."""
    return subset(samples, SHOWN, "look")


def check_weights(model: nn.Module) -> None:
    """Make sure that a model's weights and buffers are finite.

    Raises:
        Diverged: one holds others.
    """
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise Diverged(f"{name} holds values that are not finite")


def check_outputs(outputs: Tensor, what: str) -> None:
    """Make sure that a model's outputs (N, ...), one for each image, are finite; `what` names them, in the plural.

    Raises:
        Diverged: those of some images are not.
    """
    if dead := int((~outputs.isfinite()).flatten(1).any(1).sum()):
        raise Diverged(f"the {what} of {dead} of {len(outputs)} images are not finite")
