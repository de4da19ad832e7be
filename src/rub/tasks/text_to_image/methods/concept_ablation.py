"""Concept Ablation: under the concept's caption, predict what is predicted under the anchor's."""

from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rub.config.hyperparameters import Hyper, Iterations, Positive, PositiveInt, Rate, Weight
from rub.models.diffusion.groups import parameter_group
from rub.models.diffusion.model import Diffusion, frozen
from rub.models.diffusion.sampling import sample
from rub.models.weights import freeze
from rub.pipeline.checkpointing import Changing, ParameterState
from rub.registry import Card, method
from rub.tasks.text_to_image.context import Side, UnlearnContext, train_only
from rub.tasks.text_to_image.methods._losses import captioned, embedded, noisy_pictures, other_prompt, redirected_loss

CARD = Card(
    paper="Kumari et al., Ablating Concepts in Text-to-Image Diffusion Models, ICCV 2023, arXiv 2303.13516",
    equation="min E ||sg e(x_t, c) - e(x_t, c*)||^2 + w E ||e(x_t, c) - noise||^2 (model-based; eq. 5, and its prior),"
    " x_0 drawn under the anchor's caption c, c* the concept's",
    upstream="nupurkmr9/concept-ablation 045c6f7, diffusers/train.py",
    differences=(
        "one caption of the anchor and one of the concept; upstream takes 200 captions with the anchor's name from a"
        " language model, and puts the concept's in its place",
        "no resizing of the pictures (upstream's --noaug) and no mirroring (its --hflip)",
        "pictures are drawn by DDIM at the experiment's number of steps; upstream by its pipeline's default, PNDM",
        "pictures per step are the experiment's; upstream 4 on each of two GPUs, and its lr of 2e-6 is multiplied by"
        " these 8",
        "latents are what the model drew; upstream decodes them, and samples the autoencoder's posterior",
        "noise-based training and the group embedding are left out",
    ),
    passes=lambda iterations, pictures, prior_weight, batch, sampler_steps, **_: (
        pictures * 2 * sampler_steps + iterations * batch * (1 + 3 + (3 if prior_weight else 0))
    ),
)


@torch.no_grad()
def anchor_pictures(model: Diffusion, anchor: str, count: int, guidance: float, context: UnlearnContext) -> Tensor:
    """Clean latents, float32 (count, C, h, w) on the CPU, that a model draws under the anchor's caption."""
    given, empty, draws = model.context([anchor]), model.context([""]), context.generator("anchor-pictures")
    parts = []
    for start in range(0, count, context.batch_size):
        noise = context.normal((min(context.batch_size, count - start), *model.latent_shape), draws)
        weights = torch.full((len(noise),), guidance, device=noise.device)
        parts.append(sample(model, given, empty, noise, weights, context.sampler).float().cpu())
    return torch.cat(parts)


@method("concept-ablation", task="text-to-image", card=CARD)
def concept_ablation(
    model: Diffusion, forget: Side, retain: Side, context: UnlearnContext, *,
    template: Annotated[str, Hyper("the concept's caption c*; {} stands for its prompt",
        source="upstream puts the name into the anchor's")] = "a photo of {}",
    pictures: Annotated[PositiveInt, Hyper("how many are drawn under the anchor's caption",
        source="upstream; 1000 in the paper")] = 200,
    guidance: Annotated[Weight, Hyper("weight of classifier-free guidance when they are drawn",
        source="upstream, its pipeline's default")] = 7.5,
    prior_weight: Annotated[Weight, Hyper("w, weight of the denoising loss on the same pictures under c",
        source="upstream; 1 for concepts near to their anchor")] = 0.0,
    group: Annotated[Literal["esd-x-strict", "full"], Hyper(
        "`esd-x-strict`: keys and values of the cross-attention; `full`: all of the UNet",
        source="upstream; full for memorised pictures")] = "esd-x-strict",
    lr: Annotated[Rate, Hyper("learning rate of AdamW", source="upstream, 2e-6 times 8")] = 1.6e-5,
    weight_decay: Annotated[Weight, Hyper("weight decay of AdamW", source="upstream")] = 0.01,
    clip: Annotated[Positive, Hyper("largest norm of the gradient", source="upstream")] = 1.0,
    iterations: Annotated[Iterations, Hyper(source="upstream")] = 100,
) -> Diffusion:  # fmt: skip
    """Train keys and values of the cross-attention to predict under the concept's caption what the anchor's gives.

    The anchor, or the first retain prompt where there is none, is drawn by the original; no other pictures are used.

    Raises:
        RubError: a template without {}, or neither an anchor nor a retain prompt.
    """
    caption = captioned("concept-ablation", template, forget.prompts[0])
    anchor = other_prompt(context, retain)
    drawn = anchor_pictures(frozen(model), anchor, pictures, guidance, context)
    batches = noisy_pictures(model, Side((anchor,), drawn, (caption,) * pictures), context, "anchor")
    weights, other = train_only(model.eval(), parameter_group(model, group)), embedded(model, anchor)
    optimizer = torch.optim.AdamW(weights.values(), lr=lr, weight_decay=weight_decay, foreach=False)
    changing: Changing = {"weights": ParameterState(weights), "optimizer": optimizer, "batches": batches}
    for _ in context.counted(iterations, changing):
        batch = next(batches)
        with context.autocast():
            loss = redirected_loss(model, model, batch, other)
            if prior_weight:
                loss = loss + prior_weight * F.mse_loss(model.predict(batch.x, batch.t, other).float(), batch.noise)
        context.backward(loss, optimizer)
        nn.utils.clip_grad_norm_(weights.values(), clip)
        optimizer.step()
    return freeze(model)
