"""NegGrad+: descend on the retain set and ascend on the forget set in the same step."""

from torch import nn
from torch.nn import functional as F

from rub.config.hyperparameters import Epochs, Fraction, Rate, Weight
from rub.data.samples import Samples
from rub.pipeline.checkpointing import Changing
from rub.registry import Card, method
from rub.tasks.classification.context import UnlearnContext

CARD = Card(
    paper="Kurmanji et al., Towards Unbounded Machine Unlearning, NeurIPS 2023, arXiv 2302.09880 (as NegGrad+)",
    equation="min_theta alpha CE_r - (1 - alpha) CE_u, one retain and one forget batch per step, forget cycled",
    upstream="xcadet/deepunlearn 6830ff6, munl/unlearning/neggradplus.py; meghdadk/SCRUB 98ffb11, train_negrad",
    defaults={
        "alpha": "0.95: deepunlearn ORIGINAL_ALPHA",
        "lr": "0.01: deepunlearn ORIGINAL_LR",
        "epochs": "10: deepunlearn ORIGINAL_NUM_EPOCHS",
        "weight_decay": "0: deepunlearn ORIGINAL_WEIGHT_DECAY",
    },
    differences=(
        "batch normalisation in train mode as in SCRUB; deepunlearn trains in eval mode",
        "weight decay is SGD's; deepunlearn penalises the distance to the original weights (0 by default in both)",
        "the cycled forget set is reshuffled on every pass; upstream repeats the batches of its first pass",
    ),
)


@method("neggrad-plus", task="classification", card=CARD)
def neggrad_plus(
    model: nn.Module,
    forget: Samples,
    retain: Samples,
    context: UnlearnContext,
    *,
    alpha: Fraction = 0.95,
    lr: Rate = 0.01,
    epochs: Epochs = 10,
    weight_decay: Weight = 0.0,
) -> nn.Module:
    """Descend on retain and ascend on forget: min_theta alpha CE_r - (1 - alpha) CE_u.

    Args:
        model: trainable copy of the original; changed in place.
        forget: D_u, cycled; at least one sample.
        retain: D_r; its length sets the number of steps.
        context: batches, seed and steps.
        alpha: weight of the retain loss, 0 to 1.
        lr: learning rate of SGD (momentum .9), > 0.
        epochs: passes over the retain set, >= 1.
        weight_decay: of SGD, >= 0.

    Raises:
        Diverged: the loss is not finite.
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
