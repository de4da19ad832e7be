"""An attack in one file: ``rub attack zoo/digits/resnet10-w4/ga/0 --plugin examples/my_attack.py --budgets 64``."""

from typing import Annotated, Any

import torch
from torch import Tensor

import rub


@rub.attack("corners", task="classification")
def corners(
    target: Any,
    images: Tensor,
    budget: Any,
    context: Any,
    *,
    tries: Annotated[int, rub.Hyper("corners that are drawn", source="ours", ge=1)] = 8,
) -> Tensor:
    """The best of some corners of the ball, drawn at random."""
    generator = torch.Generator().manual_seed(context.seed)
    best, highest = images, torch.full((len(images),), -torch.inf)
    for _ in range(tries):
        signs = torch.randint(0, 2, images.shape, generator=generator) * 2 - 1
        probes = (images.int() + signs * int(255 * budget.eps)).clamp(0, 255).to(torch.uint8)
        with torch.no_grad():
            logits = target.model(probes.to(context.device) / 255).cpu()
        said = logits[torch.arange(len(images)), target.labels.cpu()]  # how much it says what it was to forget
        best = torch.where((said > highest)[:, None, None, None], probes, best)
        highest = torch.maximum(highest, said)
    return best
