"""How fast a model relearns what it was made to forget: short fine-tuning, looked at after 0, 1, 2, 4, 8, ... steps."""

import copy
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch import nn

from rub.data.samples import Samples
from rub.errors import Diverged
from rub.training.classifier import predict
from rub.training.context import TrainContext


def relearn(
    model: nn.Module, samples: Samples, unseen: Samples, context: TrainContext, *, lr: float, most: int, enough: float
) -> tuple[list[int], NDArray[np.bool_]]:
    """Fine-tune a copy by SGD (momentum .9) and see which unseen images it gets right after so many steps.

    Batch normalisation keeps its statistics (eval mode), so that steps alone move the model. It stops where a share of
    `enough` is right, at `most` steps, or where the loss is finite no more.

    Args:
        model: left as it is.
        samples: what is shown to it, in the order of the context's seed: the same for every model.
        unseen: N images that are looked at.
        context: seed, batch size, augmentation, device.
        lr: learning rate.
        most: most steps, a power of 2.
        enough: share in [0, 1].

    Returns:
        Numbers of steps, E of them, and bool (N, E): which images are right after each.
    """
    copied, labels, batches = copy.deepcopy(model).eval(), unseen.labels, context.endless(samples, "relearn")
    optimizer = context.sgd(copied, lr, weight_decay=0.0)
    steps: list[int] = []
    right: list[NDArray[np.bool_]] = []
    for wanted in _doubling(most):
        try:
            for _ in range(wanted - (steps[-1] if steps else 0)):
                x, y = next(batches)
                context.descend(nn.functional.cross_entropy(context.forward(copied, x), y), optimizer)
        except Diverged:
            break
        said = predict(copied, unseen, batch_size=context.batch_size, device=context.device).argmax(1)
        steps.append(wanted)
        right.append((said == labels).numpy())
        if right[-1].mean() >= enough:
            break
    return steps, np.stack(right, axis=1)


def _doubling(most: int) -> Iterator[int]:
    yield 0
    yield from (2**power for power in range(int(math.log2(most)) + 1))
