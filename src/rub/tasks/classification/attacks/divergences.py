"""The divergences D[f_u(probe), f(x)] that attacks minimise: pure functions, one value per sample, never a mean."""

from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rub.config.hyperparameters import Hyper

Divergence = Literal["kl", "ce", "margin", "logits-l2", "features-l2"]
Minimised = Annotated[Divergence, Hyper(
    "what is minimised: `kl` = KL(p_orig || p_unl), `ce`, `margin`, `logits-l2`, `features-l2`",
    source="KL on classification logits (paper); its direction and T = 1 are open")]  # fmt: skip


class Outputs(NamedTuple):
    """What the unlearned model says of a batch: logits (N, C) and, where asked for, penultimate features (N, D)."""

    logits: Tensor
    features: Tensor | None


class Aim(NamedTuple):
    """What a batch is driven towards: labels (N,), the original's logits (N, C) and features (N, D) on clean images."""

    labels: Tensor
    reference: Tensor
    features: Tensor


def kl(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(p_orig || p_unl) = sum_c p_orig (log p_orig - log p_unl), temperature 1, shape (N,).

    Its gradient at the unlearned model's logits is softmax(logits) - softmax(reference).

    Args:
        logits: the unlearned model's, float (N, C).
        reference: the original model's on the clean images, float (N, C).

    Example:
        >>> kl(torch.zeros(1, 2), torch.zeros(1, 2))
        tensor([0.])
    """
    return F.kl_div(F.log_softmax(logits, 1), F.softmax(reference, 1), reduction="none").sum(1)


def ce(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p_unl(y), the targeted cross-entropy to the forgotten label, shape (N,).

    Example:
        >>> ce(torch.zeros(1, 2), torch.tensor([1]))
        tensor([0.6931])
    """
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max_{j != y} z_j - z_y, shape (N,): negative exactly where y has the largest logit alone.

    Example:
        >>> margin(torch.tensor([[3.0, 1.0]]), torch.tensor([0]))
        tensor([-2.])
    """
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1, keepdim=True)
    return (others - own).squeeze(1)


def distance(values: Tensor, reference: Tensor) -> Tensor:
    """Euclidean norm ||values - reference||_2 over the last axis, shape (N,); its gradient at 0 is 0.

    Example:
        >>> distance(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2))
        tensor([5.])
    """
    length: Tensor = torch.linalg.vector_norm(values - reference, dim=1)
    return length


def divergence(name: Divergence, outputs: Outputs, aim: Aim) -> Tensor:
    """Named divergence of a batch, float32 (N,).

    Args:
        name: ``kl``, ``ce``, ``margin``, ``logits-l2`` or ``features-l2``.
        outputs: what the unlearned model says of the probes; ``features-l2`` needs its features.
        aim: what it is compared with.
    """
    logits = outputs.logits
    match name:
        case "kl":
            return kl(logits, aim.reference)
        case "ce":
            return ce(logits, aim.labels)
        case "margin":
            return margin(logits, aim.labels)
        case "logits-l2":
            return distance(logits, aim.reference)
        case "features-l2":
            assert outputs.features is not None
            return distance(outputs.features, aim.features)
