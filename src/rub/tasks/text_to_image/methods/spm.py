"""SPM: rank-1 adapters that turn the concept away, held still on random points of the text-embedding space."""

import math
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from rub.config.hyperparameters import Fraction, Hyper, Positive, PositiveInt, Rate, Weight
from rub.models.diffusion.adapters import Adapter, Attached, attach
from rub.models.diffusion.model import Diffusion
from rub.models.weights import freeze
from rub.registry import Card, method
from rub.tasks.text_to_image.context import Side, UnlearnContext
from rub.training.context import set_rate

CARD = Card(
    paper="Lyu et al., One-dimensional Adapter to Rule Them All: Concepts, Diffusion Models and Erasing Applications,"
    " CVPR 2024, arXiv 2312.16145",
    equation="min_{u,d} MSE(e_u(x_t, c), e(x_t, n) - s (e(x_t, c) - e(x_t, n)))"
    " + lambda MSE(e_u(x_t, a), e(x_t, a)), W_u = W + (alpha / r) u d, a random in text-embedding space",
    upstream="Con6924/SPM 3dd762e, train_spm.py, src/engine/sampling.py, src/configs/prompt.py, src/models/spm.py",
    differences=(
        "merged into the weights with m = 1 for evaluation (upstream's merge_spm.py); Facilitated Transport, which"
        " weakens the adapters prompt by prompt and scales both matrices, so that m^2 counts, is not used",
        "AdamW in 32 bit; upstream AdamW8bit",
        "one size of latents, the model's own; upstream draws 256 to 448 pixels",
        "the DDIM run has the experiment's sampler steps (upstream 30) and may stop at pure noise; t is drawn from the"
        " bucket of its stop (ESD), upstream takes one t near it",
        "with a batch of more than one picture, anchor i uses picture i mod B; upstream requires B to divide the"
        " number of anchors",
        "every draw comes from the seed; upstream's acceptance and scale come from Python's global generator",
    ),
    passes=lambda iterations, anchors, batch, sampler_steps, **_: (
        iterations * (batch * (sampler_steps + 2 + 3) + anchors * (1 + 3))
    ),
)


def draw_anchors(target: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Random points of the text-embedding space, float (count, L, D), on the target's device.

    z = g / |g| with Gaussian g is kept with probability min(1, 1 - cos(target, z)) and scaled: a = v |target| z, v
    uniform in 0.8 to 1.2. Norms and cosines are over all L D numbers of one prompt.

    Args:
        target: context of the concept, (1, L, D).
        count: A.
        generator: on the CPU.
    """
    center = target[0].detach().cpu().float()
    length = center.norm()
    kept: list[Tensor] = []
    while len(kept) < count:
        z = torch.randn(center.shape, generator=generator)
        z = z / z.norm()
        chance, scale = torch.rand(2, generator=generator)
        if chance < 1 - (z * center).sum() / length:
            kept.append((0.8 + 0.4 * scale) * length * z)
    return torch.stack(kept).to(target)


def spm_loss(
    model: Diffusion, adapters: Attached, x: Tensor, t: Tensor, target: Tensor, surrogate: Tensor, anchors: Tensor, *,
    erase: float, anchoring: float,
) -> Tensor:  # fmt: skip
    """MSE(e_u(x, c), e(x, n) - s (e(x, c) - e(x, n))) + lambda MSE(e_u(x', a), e(x', a)).

    e_u is the model with its adapters, e without; x' repeats x for the anchors.

    Args:
        model: with adapters attached.
        adapters: they.
        x: noisy latents (B, C, h, w).
        t: int64 (B,).
        target: context of the concept c, (1, L, D).
        surrogate: of what it should become, n, (1, L, D).
        anchors: contexts a, (A, L, D).
        erase: s.
        anchoring: lambda.
    """
    rows = torch.arange(len(anchors), device=x.device) % len(x)
    with torch.no_grad(), adapters.off():
        concept, neutral = model.predict(x, t, target).float(), model.predict(x, t, surrogate).float()
        held = model.predict(x[rows], t[rows], anchors).float()
    moved = F.mse_loss(model.predict(x, t, target).float(), neutral - erase * (concept - neutral))
    return moved + anchoring * F.mse_loss(model.predict(x[rows], t[rows], anchors).float(), held)


def restarts(step: int, total: int, warmup: int, cycles: int) -> float:
    """Factor of the learning rate: linear up over the warm-up, then `cycles` half cosines from 1 to 0.

    Example:
        >>> [round(restarts(step, 14, 2, 3), 2) for step in (0, 1, 2, 4, 6)]
        [0.0, 0.5, 1.0, 0.5, 1.0]
    """
    if step < warmup:
        return step / warmup
    return (1 + math.cos(math.pi * (cycles * (step - warmup) / (total - warmup) % 1))) / 2


@method("spm", task="text-to-image", card=CARD)
def spm(
    model: Diffusion, forget: Side, retain: Side, context: UnlearnContext, *,
    erase: Annotated[Weight, Hyper("s, how far beyond the surrogate the concept is pushed",
        source="upstream guidance_scale")] = 1.0,
    anchoring: Annotated[Weight, Hyper("lambda, weight of the anchors", source="upstream la_strength")] = 1000.0,
    anchors: Annotated[PositiveInt, Hyper("anchors per step", source="upstream sampling_batch_size")] = 4,
    rank: Annotated[PositiveInt, Hyper("r of the adapters", source="upstream")] = 1,
    alpha: Annotated[Positive, Hyper("scale of the adapters, times r", source="upstream")] = 1.0,
    iterations: Annotated[PositiveInt, Hyper("training steps of AdamW", source="upstream")] = 3000,
    lr: Annotated[Rate, Hyper("peak learning rate", source="upstream")] = 1e-4,
    weight_decay: Annotated[Weight, Hyper("weight decay of AdamW", source="upstream, bitsandbytes' default")] = 0.01,
    warmup: Annotated[Fraction, Hyper("fraction of the steps with a rising learning rate",
        source="upstream (500 of 3000 iterations)")] = 1 / 6,
    cycles: Annotated[PositiveInt, Hyper("half cosines of the learning rate after the warm-up", source="upstream")] = 3,
    guidance: Annotated[Weight, Hyper("weight of classifier-free guidance in the partial DDIM run",
        source="upstream")] = 3.0,
) -> Adapter:  # fmt: skip
    """Train adapters beside a frozen UNet, from prompts alone, and return them; no weight of the model changes.

    Each step takes one of the forget side's prompts and maps it to the anchor. The retain side is not used.
    """
    freeze(model)
    adapters = attach(model, rank, context.generator("adapters"), alpha=alpha)
    optimizer = torch.optim.AdamW(adapters.parameters(), lr=lr, weight_decay=weight_decay)
    rising = round(warmup * iterations)
    draws, points = context.generator("steps"), context.generator("anchors")
    surrogate = model.context([context.anchor])
    try:
        for step in context.counted(
            iterations, {"adapters": adapters, "optimizer": optimizer, "draws": draws, "points": points}
        ):
            set_rate(optimizer, lr * restarts(step, iterations, rising, cycles))
            prompt = forget.prompts[int(torch.randint(len(forget.prompts), (1,), generator=draws))]
            target = model.context([prompt])
            with context.autocast():
                x, t = context.partial(model, prompt, draws, guidance=guidance)
                loss = spm_loss(
                    model, adapters, x, t, target, surrogate, draw_anchors(target, anchors, points),
                    erase=erase, anchoring=anchoring,
                )  # fmt: skip
            context.descend(loss, optimizer)
        return adapters.adapter(forget.prompts)
    finally:
        adapters.remove()
