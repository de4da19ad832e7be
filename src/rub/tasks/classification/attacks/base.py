"""What an attack on a classifier aims at; how far a probe may go is a `Budget`."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rub.attacks.base import Probes
from rub.data.samples import Samples
from rub.errors import NothingToMeasure
from rub.pipeline.rng import keyed_uniform
from rub.tasks.classification.budgets import Budget

__all__ = ["Attack", "Budget", "Target", "other_classes"]


@dataclass(frozen=True)
class Target:
    """What an attack aims at: the unlearned model, and what the original model said of the clean images.

    Attributes:
        model: the unlearned model f_u, frozen, in eval mode, giving raw logits of [0, 1] images.
        labels: int64 (N,), the label of each image: a probe that is classified so is *recovered*.
        reference: float32 (N, C), the original model's logits f(x) of the clean images, computed once.
        features: float32 (N, D), the original model's penultimate features of the clean images.
    """

    model: nn.Module
    labels: Tensor
    reference: Tensor
    features: Tensor

    def select(self, rows: Tensor) -> "Target":
        """The target of some of the images, int64 (B,)."""
        labels, reference, features = (part[rows] for part in (self.labels, self.reference, self.features))
        return Target(self.model, labels, reference, features)

    def towards(self, labels: Tensor) -> "Target":
        """The same images aimed at other classes, int64 (N,): the original's logits with the two classes exchanged.

        Example:
            >>> two = Target(nn.Identity(), torch.tensor([0]), torch.tensor([[5.0, 1.0, 2.0]]), torch.zeros(1, 4))
            >>> two.towards(torch.tensor([2])).reference.tolist()
            [[2.0, 1.0, 5.0]]
        """
        own, other = self.labels[:, None], labels[:, None]
        reference = self.reference.scatter(1, own, self.reference.gather(1, other))
        return replace(self, labels=labels, reference=reference.scatter(1, other, self.reference.gather(1, own)))


Attack = Callable[..., Probes | Tensor]
"""The best probe of each sample, or all that a search knows of it."""


def other_classes(samples: Samples, said: Tensor, kept: list[int]) -> Tensor:
    """Another class for each image, int64 (N,): of those kept, drawn by the image's id, and not what the model says.

    It is the same for every model that does not say it already.

    Args:
        samples: N images.
        said: int64 (N,), the class that the model says of each now.
        kept: classes to draw from.

    Raises:
        NothingToMeasure: an image is left without another class.

    Example:
        >>> three = Samples(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 0]), torch.tensor([5, 9]))
        >>> other_classes(three, torch.tensor([1, 2]), [1, 2]).tolist()
        [2, 1]
    """
    choices = torch.tensor(kept)
    taken = (choices[None] == said[:, None]) | (choices[None] == samples.labels[:, None])
    if bool(taken.all(1).any()):
        raise NothingToMeasure(
            f"contrast: {len(kept)} kept classes leave no other class than what the model says: three are enough"
        )
    order = keyed_uniform(0, "other class", samples.ids, 0, len(kept)).masked_fill(taken, torch.inf)
    return choices[order.argmin(1)]
