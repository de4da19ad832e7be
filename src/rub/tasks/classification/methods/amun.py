"""AMUN: fine-tune on the nearest adversarial example of every forget image, labelled as the original sees it."""

import math
from itertools import repeat
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rub.config.hyperparameters import Epochs, Hyper, Positive, PositiveInt, SgdRate
from rub.data.samples import Samples, concatenate
from rub.models.weights import frozen
from rub.pipeline.checkpointing import Changing
from rub.registry import Card, method
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.classification.methods._steps import Beside, input_gradient, l2_step, rounds
from rub.training.context import set_rate

CARD = Card(
    paper="Ebrahimpour-Boroojeny et al., Not All Wrong is Bad: Using Adversarial Examples for Unlearning, ICML 2025,"
    " arXiv 2503.00917",
    equation="min_theta CE on D_r + D_u + D_A, D_A = {(x', f_0(x'))}: x' by L2 PGD from x in D_u, up CE(f_0(x'), y) by"
    " eps / 10 within eps, until f_0(x') != y; eps doubles until it is",
    upstream="Ali-E/AMUN 7282329, adversarial_unlearn.py, pgdl2_modified.py, hyperparam_tune.py and README; 6dc29ab,"
    " AMUN_all_in_one.py",
    differences=(
        "`forget_too` is upstream's `amun`, without it `advonly`: where a whole class is forgotten, its images with"
        " their own labels keep it alive",
        "without the retain set upstream trains on D_u + D_A; here it is always there",
        "a search ends when its ball holds all images, and an image that has no adversarial example then keeps its"
        " label; upstream searches on without end",
        "D_A stays in floats and is not augmented, as upstream; the other images are, as upstream",
        "batch size is the experiment's; upstream 128",
    ),
)


def adversarial(
    original: nn.Module, x: Tensor, y: Tensor, context: UnlearnContext, eps: float, steps: int
) -> tuple[Tensor, Tensor]:
    """Nearest points that the frozen original does not call y: (B, C, H, W) in [0, 1], and what it calls them, (B,)."""
    points, said, alive = x.clone(), y.clone(), torch.arange(len(x), device=x.device)
    whole = math.sqrt(x[0].numel())
    while eps < 2 * whole:
        for _ in range(steps):
            logits, gradient = input_gradient(original, points[alive], y[alive], context)
            said[alive] = logits.argmax(1)
            right = said[alive] == y[alive]
            alive = alive[right]
            if not len(alive):
                return points, said
            points[alive] = l2_step(points[alive], gradient[right], eps / 10, x[alive], eps)
        eps *= 2
    return points, said


@method("amun", task="classification", card=CARD)
def amun(
    model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext, *,
    lr: Annotated[SgdRate, Hyper(source="README and hyperparam_tune.py (AMUN_all_in_one.py: 0.05)")] = 0.01,
    epochs: Annotated[Epochs, Hyper("passes over all images", source="upstream")] = 10,
    decay_every: Annotated[PositiveInt, Hyper("epochs after which the learning rate is divided by 10, again and again",
        source="README and hyperparam_tune.py, LRsteps (1, 5 and 10 are tried)")] = 1,
    forget_too: Annotated[bool, Hyper("train on the forget images with their own labels, too",
        source="upstream's `amun`, the method of the paper; false is its `advonly`")] = True,
    eps: Annotated[Positive, Hyper("first radius of the L2 ball, in the pixel range [0, 1]",
        source="pgdl2_modified.py")] = 0.04,
    steps: Annotated[PositiveInt, Hyper("steps of eps / 10 in each ball", source="pgdl2_modified.py")] = 50,
) -> nn.Module:  # fmt: skip
    """Fine-tune on retain and on adversarial examples of the forget set, labelled as the original calls them."""
    original = frozen(model)
    batches = context.batches(forget, context.generator(""), shuffle=False, augment=False)
    found = [adversarial(original, x, y, context, eps, steps) for x, y in batches]
    points, labels = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    mixed = Beside(concatenate([retain, forget]) if forget_too else retain, points, labels)
    model.train()
    optimizer = context.sgd(model, lr)
    changing: Changing = {"model": model, "optimizer": optimizer}
    for epoch, _, images, rows in rounds(context, lambda: repeat({"all": mixed.marked}, epochs), changing):
        set_rate(optimizer, lr * 0.1 ** (epoch // decay_every))
        x, y = mixed.batch(images, rows)
        context.descend(F.cross_entropy(context.forward(model, x), y), optimizer)
    return model
