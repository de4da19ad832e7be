"""RURK: fine-tune against the forget set and against what is still recognised around it."""

from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rub.config.hyperparameters import Epochs, Hyper, Positive, PositiveInt, SgdRate, Weight
from rub.data.samples import Samples
from rub.pipeline.checkpointing import Changing
from rub.registry import Card, method
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.classification.methods._steps import clipped_step, input_gradient

Search = Literal["gaussian", "pgd"]
STEP = 2 / 255  # of the search; paper, B.4

CARD = Card(
    paper="Hsu et al., The Unseen Threat: Residual Knowledge in Machine Unlearning under Perturbed Samples,"
    " NeurIPS 2025, arXiv 2601.22359",
    equation="min_theta CE_r - lambda_f CE_u - lambda_a E_{D_u} (1/v) sum_i CE(f_theta(x'_i), y) (Eq. 6 as in Algorithm"
    " 1), x'_i of V = {x' in B(x, tau): f_theta(x') = y}, which `gaussian` takes for the whole of B(x, tau)",
    upstream="the paper's Algorithm 1, B.2 and B.4; the code that it promises, HsiangHsu/Robust-Unlearning, could"
    " not be read",
    differences=(
        "the learning rate is constant: the paper names a cosine over 200 without saying of what; of epochs, as in its"
        " training, that leaves it as it is",
        "`pgd` descends CE(f(x'), y) in the L-inf ball, as section 4.2 says; B.4 climbs CE with a random wrong label"
        " instead and turns the term's sign, since its library only climbs",
        "all v points count, also one that the model does not call y any more, as in Algorithm 1",
        "batch size is the experiment's; the paper 128. Forget images are cycled, reshuffled on every pass",
        "the paper forgets half of a class or the whole of it; for the whole its settings are not all printed",
    ),
)


def around(
    model: nn.Module, x: Tensor, y: Tensor, tau: float, search: Search, steps: int, draw: torch.Generator,
    context: UnlearnContext,
) -> Tensor:  # fmt: skip
    """A point near each x (B, C, H, W), in [0, 1]: with Gaussian noise of deviation tau, or searched for y (B,)."""
    if search == "gaussian":
        return (x + tau * torch.randn(x.shape, generator=draw).to(x.device)).clamp(0, 1)
    mode = model.training
    model.eval()
    point = (x + tau * (2 * torch.rand(x.shape, generator=draw) - 1).to(x.device)).clamp(0, 1)
    for _ in range(steps):
        _, gradient = input_gradient(model, point, y, context)
        point = (x + (point - STEP * gradient.sign() - x).clamp(-tau, tau)).clamp(0, 1)
    model.train(mode)
    return point


@method("rurk", task="classification", card=CARD)
def rurk(
    model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext, *,
    lr: Annotated[SgdRate, Hyper(source="paper, B.2")] = 0.01,
    epochs: Annotated[Epochs, Hyper("passes over the retain set", source="paper, B.2")] = 2,
    tau: Annotated[Weight, Hyper("how far around a forget image, in the pixel range [0, 1]: standard deviation of"
        " the noise, or radius of the L-inf ball", source="paper, B.2: about 8/255")] = 0.03,
    lambda_f: Annotated[Weight, Hyper("weight of the forget images", source="paper, B.2")] = 0.03,
    lambda_a: Annotated[Weight, Hyper("weight of the points around them",
        source="paper, B.2, CIFAR-10 (its 1,000 images of 5 classes: 0.03)")] = 0.00045,
    v: Annotated[PositiveInt, Hyper("points around each forget image", source="paper, B.2")] = 1,
    search: Annotated[Search, Hyper("`gaussian`: noise; `pgd`: the L-inf search for the forgotten label",
        source="paper, B.2; C.3 finds `pgd` stronger and slower")] = "gaussian",
    steps: Annotated[PositiveInt, Hyper("steps of 2/255 of `pgd`", source="paper, C.3, the first that it prints")] = 5,
    clip: Annotated[Positive, Hyper("most that the gradient's L2 norm may be", source="paper, B.2")] = 1.0,
) -> nn.Module:  # fmt: skip
    """Descend on retain while ascending on forget images and on points around them.

    Raises:
        RubError: a set is empty.
    """
    model.train()
    optimizer, draw = context.sgd(model, lr), context.generator("around")
    forgotten = context.endless(forget, "forget")
    changing: Changing = {"model": model, "optimizer": optimizer, "forgotten": forgotten, "draw": draw}
    for x, y in context.epochs(retain, epochs, changing):
        x_forget, y_forget = next(forgotten)
        near = [around(model, x_forget, y_forget, tau, search, steps, draw, context) for _ in range(v)]
        keep = F.cross_entropy(context.forward(model, x), y)
        known = F.cross_entropy(context.forward(model, x_forget), y_forget)
        again = F.cross_entropy(context.forward(model, torch.cat(near)), y_forget.repeat(v))
        context.backward(keep - lambda_f * known - lambda_a * again, optimizer)
        clipped_step(optimizer, clip)
    return model
