"""L2UL: ascend on forget images, and hold what adversarial examples and weight importance say of the rest."""

from copy import deepcopy
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rub.config.hyperparameters import Epochs, Hyper, Positive, PositiveInt, Rate, Weight
from rub.data.samples import Samples
from rub.models.weights import frozen
from rub.pipeline.checkpointing import Changing
from rub.registry import Card, method
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.classification.methods._steps import BatchNorm, Beside, input_gradient, l2_step, train_mode
from rub.tasks.classification.methods.rl import random_labels
from rub.training.saliency import gradients

CARD = Card(
    paper="Cha et al., Learning to Unlearn: Instance-Wise Unlearning for Pre-trained Classifiers, AAAI 2024,"
    " arXiv 2301.11578",
    equation="min_theta -(b_u / b) CE_u + (b_a / b) E_{D_A} CE(f_theta(x'), y') + (lambda / 2) sum_i (1 - w_i)"
    " (theta_i - theta_0i)^2, b = b_u + b_a the images of a batch; D_A: x' by targeted L2 PGD from x in D_u towards a"
    " random y' != y; w = E_{D_u} |grad ||f_0(x)||_2|, scaled to [0, 1] in each tensor",
    upstream="csm9493/L2UL b8b335b, main_unlearn_cifar10_mixed_label_resnet18.py; 18bda91, utils.py and"
    " run_unlearn_cifar_imagenet.sh",
    differences=(
        "made for some 16 to 256 forgotten images, each with `copies` adversarial ones: a whole class of thousands"
        " needs fewer, or hours",
        "y' is uniform over the wrong labels; upstream puts C / 2 where it draws the true one, which may be the true"
        " one again",
        "D_A is shuffled; upstream keeps the order in which it was made. Forget images are augmented as in training;"
        " upstream's are not",
        "PGD goes into the ball first and into [0, 1] then; upstream's library the other way round",
        "importance in train mode, on a copy, as upstream; a tensor with gradients all alike counts as unimportant",
        "batch normalisation in train mode, as upstream, see `batch_norm`",
    ),
)


def targeted(
    original: nn.Module, x: Tensor, labels: Tensor, context: UnlearnContext, draw: torch.Generator, eps: float,
    step: float, steps: int,
) -> Tensor:  # fmt: skip
    """L2 PGD within eps of x (B, C, H, W), in [0, 1], towards labels (B,), from a uniform image put into the ball."""
    away = torch.rand(x.shape, generator=draw).to(x.device) - x
    point = l2_step(x, away, eps, x, eps)
    for _ in range(steps):
        _, gradient = input_gradient(original, point, labels, context)
        point = l2_step(point, gradient, -step, x, eps)
    return point


def scaled(values: Tensor) -> Tensor:
    """Values moved and scaled to [0, 1]; 0 where they are all alike.

    Example:
        >>> scaled(torch.tensor([1.0, 2.0, 5.0])), scaled(torch.ones(2))
        (tensor([0.0000, 0.2500, 1.0000]), tensor([0., 0.]))
    """
    above = values - values.min()
    return above / above.max().clamp(min=torch.finfo(values.dtype).tiny)


def unimportance(model: nn.Module, forget: Samples, context: UnlearnContext) -> dict[str, Tensor]:
    """1 - w by parameter name, w = mean over forget images of |grad of their mean ||f(x)||_2|, scaled to [0, 1]."""
    own = deepcopy(model).train()  # whose batch normalisation needs two images: a lone last one is left out
    parameters = dict(own.named_parameters())
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    batches = context.batches(forget, context.generator("importance"), augment=False)
    losses = (context.forward(own, x).norm(dim=1).mean() * len(x) for x, _ in batches)
    for found in gradients(parameters, losses):
        for name, gradient in found.items():
            total[name] += gradient.abs()
    return {name: 1 - scaled(importance) for name, importance in total.items()}


@torch.no_grad()
def still_known(model: nn.Module, forget: Samples, context: UnlearnContext) -> bool:
    """Whether the model, put into eval mode, gets any forget image right."""
    model.eval()
    batches = context.batches(forget, context.generator(""), shuffle=False, augment=False)
    return any(bool((context.forward(model, x).argmax(1) == y).any()) for x, y in batches)


@method("l2ul", task="classification", card=CARD)
def learning_to_unlearn(
    model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext, *,
    lr: Annotated[Rate, Hyper("learning rate of SGD (momentum .9, weight decay 1e-4)",
        source="run_unlearn_cifar_imagenet.sh")] = 1e-3,
    epochs: Annotated[Epochs, Hyper("most passes over the adversarial images; it ends when no forget image is right",
        source="upstream, CIFAR-100 and ImageNet (CIFAR-10: 1000)")] = 100,
    copies: Annotated[PositiveInt, Hyper("adversarial images of each forget image",
        source="run_unlearn_cifar_imagenet.sh, CIFAR-10 (CIFAR-100 and ImageNet: 200)")] = 20,
    lam: Annotated[Weight, Hyper("lambda, weight of staying near the original",
        source="run_unlearn_cifar_imagenet.sh")] = 1.0,
    forget_batch: Annotated[PositiveInt, Hyper("forget images in a step", source="upstream")] = 32,
    eps: Annotated[Positive, Hyper("radius of the L2 ball, in the pixel range [0, 1]",
        source="run_unlearn_cifar_imagenet.sh")] = 4.0,
    step: Annotated[Positive, Hyper("length of a step of PGD", source="upstream")] = 0.1,
    steps: Annotated[PositiveInt, Hyper("steps of PGD", source="upstream")] = 100,
    batch_norm: Annotated[BatchNorm, Hyper(source="upstream calls model.train()")] = "train",
) -> nn.Module:  # fmt: skip
    """Ascend on forget images beside adversarial ones, near the original elsewhere. Retain is not used."""
    original, draw = frozen(model), context.generator("adversarial")
    points, labels = [], []
    for x, y in context.batches(forget, draw, shuffle=False, augment=False):
        for _ in range(copies):
            labels.append(random_labels(y.cpu(), context.num_classes, draw, exclude_true=True))
            points.append(targeted(original, x, labels[-1].to(x.device), context, draw, eps, step, steps).cpu())
    others = Beside(forget.select([]), torch.cat(points), torch.cat(labels))
    start = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    held = unimportance(model, forget, context)
    train_mode(model, batch_norm)
    optimizer = context.sgd(model, lr, weight_decay=1e-4)
    forgotten = context.endless(forget, "forget", forget_batch)
    changing: Changing = {"model": model, "optimizer": optimizer, "forgotten": forgotten}
    for x, rows in context.epochs(others.marked, epochs, changing):
        x_other, y_other = others.batch(x, rows)
        x_forget, y_forget = next(forgotten)
        known = F.cross_entropy(context.forward(model, x_forget), y_forget) * len(y_forget)
        other = F.cross_entropy(context.forward(model, x_other), y_other) * len(y_other)
        moved = sum((held[name] * (w - start[name]).square()).sum() for name, w in model.named_parameters())
        context.descend((other - known) / (len(y_forget) + len(y_other)) + lam / 2 * moved, optimizer)
        if not still_known(model, forget, context):
            break
        train_mode(model, batch_norm)
    context.progress(1, 1)  # also where it ended early
    train_mode(model, batch_norm)
    return model
