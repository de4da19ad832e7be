"""UNSIR: impair with noise that the forgotten classes are lost on, then repair on retain images."""

from collections.abc import Iterator
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rub.config.hyperparameters import AdamRate, Epochs, Hyper, PositiveInt, Rate, Weight
from rub.data.samples import Samples
from rub.errors import RubError
from rub.models.network import normalisation
from rub.models.weights import frozen
from rub.registry import Card, method
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.classification.methods._steps import Beside, Parts, rounds

CARD = Card(
    paper="Tarun et al., Fast Yet Effective Machine Unlearning, TNNLS 2023, arXiv 2111.08947",
    equation="n = argmin_n -CE(f_0(n), c) + penalty ||n||^2 for each forgotten class c; impair: min_theta CE on"
    " D_r' + {(n, c)}; repair: min_theta CE on D_r', a part of D_r",
    upstream="vikram2000b/Fast-Machine-Unlearning fc217ce, Machine Unlearning.ipynb; if-loops/"
    "selective-synaptic-dampening 77161cc, forget_full_class_strategies.py",
    differences=(
        "forgets whole classes only, as upstream: the labels of random samples are those of retain images, too",
        "noise of every class has that class's label; the notebook gives 0 to the noise of all",
        "all noise images take part; both codes take three of a batch (they count channels for images)",
        "noise is learned from the original in eval mode; the notebook's network is in train mode, so that its"
        " statistics move with the noise",
        "noise is standard normal where the network has normalised its images, as upstream; it may leave [0, 1]",
        "D_r' is drawn at random and augmented as in training; upstream takes the first images of each class, as they"
        " are",
    ),
)


def error_maximising(
    original: nn.Module, labels: Tensor, shape: tuple[int, int, int], context: UnlearnContext, lr: float, steps: int,
    penalty: float,
) -> Tensor:  # fmt: skip
    """Images (M, C, H, W), in any range, that the frozen original does not call `labels` (M,), near its mean image."""
    mean, std = (value.to(labels.device) for value in normalisation(original))
    start = torch.randn(len(labels), *shape, generator=context.generator("noise"))
    noise = start.to(labels.device).requires_grad_()
    optimizer = torch.optim.Adam([noise], lr=lr)
    for _ in range(steps):
        error = F.cross_entropy(context.forward(original, mean + std * noise), labels)
        context.descend(-error + penalty * noise.square().sum((1, 2, 3)).mean(), optimizer)
    return (mean + std * noise).detach()


def drawn_of_each(retain: Samples, count: int, context: UnlearnContext) -> Samples:
    """At most so many retain samples of each class, in a random order of their own."""
    mixed = retain.select(torch.randperm(len(retain), generator=context.generator("part")))
    classes = sorted(set(mixed.labels.tolist()))
    return mixed.select(torch.cat([torch.where(mixed.labels == label)[0][:count] for label in classes]))


@method("unsir", task="classification", card=CARD)
def unsir(
    model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext, *,
    lr: Annotated[AdamRate, Hyper("learning rate of Adam while impairing",
        source="the authors' notebook; selective-synaptic-dampening has 1e-4")] = 0.02,
    repair_lr: Annotated[AdamRate, Hyper("learning rate of Adam while repairing",
        source="the authors' notebook; selective-synaptic-dampening has 1e-4")] = 0.01,
    epochs: Annotated[Epochs, Hyper("passes of impairing, and as many of repairing", source="upstream")] = 1,
    per_class: Annotated[PositiveInt, Hyper("images of each retain class in D_r'",
        source="the authors' notebook, CIFAR-10; selective-synaptic-dampening: 500")] = 1000,
    noise_images: Annotated[PositiveInt, Hyper("noise images of each forgotten class",
        source="the authors' notebook; selective-synaptic-dampening: 32")] = 256,
    copies: Annotated[PositiveInt, Hyper("times that each of them is seen in a pass",
        source="the authors' notebook; selective-synaptic-dampening: 80")] = 20,
    noise_lr: Annotated[Rate, Hyper("learning rate of Adam for the noise", source="upstream")] = 0.1,
    noise_steps: Annotated[PositiveInt, Hyper("steps of the noise",
        source="the authors' notebook; selective-synaptic-dampening: 25")] = 40,
    penalty: Annotated[Weight, Hyper("weight of the noise's squared norm", source="upstream")] = 0.1,
) -> nn.Module:  # fmt: skip
    """Train on retain images beside noise labelled as forgotten, then on retain images. The forget set is not used.

    Raises:
        RubError: no class is forgotten as a whole.
    """
    if not context.forget_classes:
        raise RubError("unsir needs forgotten classes: use a class-wise forget set, or leave unsir out")
    classes = torch.tensor(context.forget_classes, device=context.device).repeat_interleave(noise_images)
    noise = error_maximising(frozen(model), classes, retain.shape, context, noise_lr, noise_steps, penalty)
    part = drawn_of_each(retain, per_class, context)
    mixed = Beside(part, noise.cpu().repeat(copies, 1, 1, 1), classes.cpu().repeat(copies))

    def parts() -> Iterator[Parts]:
        for name, samples in (("impair", mixed.marked), ("repair", part)):
            yield from ({name: samples} for _ in range(epochs))

    model.train()
    impair, repair = (torch.optim.Adam(model.parameters(), lr=rate) for rate in (lr, repair_lr))
    for _, name, images, labels in rounds(context, parts, {"model": model, "impair": impair, "repair": repair}):
        x, y = mixed.batch(images, labels) if name == "impair" else (images, labels)
        context.descend(F.cross_entropy(context.forward(model, x), y), impair if name == "impair" else repair)
    return model
