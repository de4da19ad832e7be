"""NegGrad+: descend on the retain set and ascend on the forget set in the same step."""

from typing import Annotated

from torch import nn
from torch.nn import functional as F

from rub.config.hyperparameters import Epochs, Fraction, Hyper, Rate, Weight
from rub.data.samples import Samples
from rub.pipeline.checkpointing import Changing
from rub.registry import Card, method
from rub.tasks.classification.context import UnlearnContext

CARD = Card(
    paper="Kurmanji et al., Towards Unbounded Machine Unlearning, NeurIPS 2023, arXiv 2302.09880 (as NegGrad+)",
    equation="min_theta alpha CE_r - (1 - alpha) CE_u, one retain and one forget batch per step, forget cycled",
    upstream="xcadet/deepunlearn 6830ff6, munl/unlearning/neggradplus.py; meghdadk/SCRUB 98ffb11, train_negrad",
    differences=(
        "batch normalisation in train mode as in SCRUB; deepunlearn trains in eval mode",
        "weight decay is SGD's; deepunlearn penalises the distance to the original weights (0 by default in both)",
        "the cycled forget set is reshuffled on every pass; upstream repeats the batches of its first pass",
    ),
)


@method("neggrad-plus", task="classification", card=CARD)
def neggrad_plus(
    model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext, *,
    alpha: Annotated[Fraction, Hyper("weight of the retain loss", source="deepunlearn ORIGINAL_ALPHA")] = 0.95,
    lr: Annotated[Rate, Hyper("learning rate of SGD (momentum .9)", source="deepunlearn ORIGINAL_LR")] = 0.01,
    epochs: Annotated[Epochs, Hyper("passes over the retain set", source="deepunlearn ORIGINAL_NUM_EPOCHS")] = 10,
    weight_decay: Annotated[Weight, Hyper("weight decay of SGD", source="deepunlearn ORIGINAL_WEIGHT_DECAY")] = 0.0,
) -> nn.Module:  # fmt: skip
    """Descend on retain and ascend on forget: min_theta alpha CE_r - (1 - alpha) CE_u.

    The forget set is cycled; the length of the retain set gives the number of steps.
    """
    model.train()
    optimizer = context.sgd(model, lr, weight_decay=weight_decay)
    forgotten = context.endless(forget, "forget")
    changing: Changing = {"model": model, "optimizer": optimizer, "forgotten": forgotten}
    for x, y in context.epochs(retain, epochs, changing):
        x_forget, y_forget = next(forgotten)
        keep = F.cross_entropy(context.forward(model, x), y)
        drop = F.cross_entropy(context.forward(model, x_forget), y_forget)
        context.descend(alpha * keep - (1 - alpha) * drop, optimizer)
    return model
