"""MSG: re-draw the convolution weights that separate forget from retain least, then fine-tune."""

from itertools import repeat
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rub.config.hyperparameters import Epochs, Fraction, Hyper, Rate
from rub.data.samples import Samples
from rub.pipeline.checkpointing import Changing
from rub.registry import Card, method
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.classification.methods._steps import convolutions, rounds
from rub.training.context import set_rate
from rub.training.saliency import summed_gradients, top_mask

CARD = Card(
    paper="Cadet et al., Deep Unlearn, EuroS&P 2025, arXiv 2410.01276 (MSG, from the NeurIPS 2023 competition)",
    equation="g = grad(sum CE over n_f retain samples - sum CE over D_u), by batches; re-draw the fraction of"
    " smallest |g| in each convolution; min_theta CE_r with the gradients of the other convolution weights times 0.1",
    upstream="xcadet/deepunlearn 6830ff6, munl/unlearning/kgltop2.py",
    differences=(
        "gradients in eval mode; upstream leaves the mode to the caller",
        "biases of convolutions are kept; upstream re-draws them because it builds new layers",
        "batch size is the experiment's; upstream 64",
        "weight decay is not damped, as upstream",
    ),
)


def separation_gradients(
    model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext
) -> dict[str, Tensor]:
    """G by convolution name: summed batch gradients of CE on n_f random retain samples minus CE on forget."""
    generator = context.generator("separation")
    subset = retain.select(torch.randperm(len(retain), generator=generator)[: len(forget)])
    parameters = {name: layer.weight for name, layer in convolutions(model, "msg").items()}
    model.eval()
    losses = (
        sign * F.cross_entropy(context.forward(model, x), y)
        for sign, samples in ((1, subset), (-1, forget))
        for x, y in context.batches(samples, generator)
    )
    return summed_gradients(parameters, losses)


@torch.no_grad()
def redraw(layer: nn.Conv2d, gradient: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """Re-draw the layer's round(fraction * n) weights of smallest |gradient| (Kaiming normal, fan-out), in place.

    Returns:
        bool mask of the layer's weight shape, True where the weight was drawn anew.
    """
    fresh = torch.empty(layer.weight.shape, dtype=layer.weight.dtype)
    nn.init.kaiming_normal_(fresh, mode="fan_out", nonlinearity="relu", generator=generator)
    mask = top_mask({"weight": -gradient.abs()}, fraction)["weight"]
    layer.weight.copy_(torch.where(mask, fresh.to(layer.weight.device), layer.weight))
    return mask


def warm_and_decay(epoch: int, epochs: int) -> float:
    """Factor of the learning rate: linear up to 1 over the first half of the epochs, then linear down.

    Example:
        >>> [round(warm_and_decay(epoch, 5), 2) for epoch in range(5)]
        [0.33, 0.67, 1.0, 0.67, 0.33]
    """
    step, warm = epoch + 1, (epochs + 1) // 2
    return step / warm if step <= warm else (epochs + 1 - step) / (epochs + 1 - warm)


@method("msg", task="classification", card=CARD)
def msg(
    model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext, *,
    fraction: Annotated[Fraction, Hyper("share of each convolution's weights that is drawn anew",
        source="upstream ORIGINAL_INIT_RATE")] = 0.3,
    lr: Annotated[Rate, Hyper("peak learning rate of SGD (momentum .9, weight decay 5e-4)",
        source="upstream ORIGINAL_LR")] = 1e-3,
    epochs: Annotated[Epochs, Hyper("passes over the retain set", source="upstream ORIGINAL_NUM_EPOCHS")] = 5,
    damping: Annotated[Fraction, Hyper("factor of the gradients of the kept convolution weights",
        source="upstream, fixed")] = 0.1,
) -> nn.Module:  # fmt: skip
    """Re-draw the convolution weights with the smallest separation gradient, then fine-tune on the retain set.

    Raises:
        RubError: the model has no convolution.
    """
    gradients = separation_gradients(model, forget, retain, context)
    generator = context.generator("redraw")
    scales = []
    for name, layer in convolutions(model, "msg").items():
        drawn = redraw(layer, gradients[name], fraction, generator)
        scales.append((layer, drawn + damping * ~drawn))
    model.train()
    optimizer = context.sgd(model, lr)
    changing: Changing = {"model": model, "optimizer": optimizer}
    for epoch, _, x, y in rounds(context, lambda: repeat({"retain": retain}, epochs), changing):
        set_rate(optimizer, lr * warm_and_decay(epoch, epochs))
        context.backward(F.cross_entropy(context.forward(model, x), y), optimizer)
        for layer, scale in scales:
            if layer.weight.grad is not None:
                layer.weight.grad.mul_(scale)
        optimizer.step()
    return model
