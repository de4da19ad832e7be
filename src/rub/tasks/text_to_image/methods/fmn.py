"""Forget-Me-Not: take the cross-attention off the tokens that name the concept."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from rub.config.hyperparameters import Hyper, Iterations, Positive, Rate, Weight
from rub.errors import RubError
from rub.models.diffusion.groups import parameter_group
from rub.models.diffusion.model import Diffusion
from rub.models.weights import freeze
from rub.pipeline.checkpointing import Changing, ParameterState
from rub.registry import Card, method
from rub.tasks.text_to_image.context import Side, UnlearnContext, train_only
from rub.tasks.text_to_image.methods._losses import captioned, embedded

Ends = Literal["all", "first", "none"]

CARD = Card(
    paper="Zhang et al., Forget-Me-Not: Learning to Forget in Text-to-Image Diffusion Models, CVPR Workshops 2024,"
    " arXiv 2303.17591",
    equation="min ||A||_F, A = softmax(Q K^T / sqrt(d)) of every cross-attention layer, head and pixel at the tokens of"
    " the concept in 'a photo of {concept}'",
    upstream="SHI-Labs/Forget-Me-Not a4a81e8, src/train_attn.py and configs/attn.yaml",
    differences=(
        "no textual inversion: the concept is its plain prompt (upstream: use_ti, on in its configuration, off by its"
        " readme)",
        "the base model is the experiment's; upstream's is Stable Diffusion 2.1-base",
        "pictures are the experiment's; upstream takes about 10 of a concept",
        "latents are the means of the autoencoder's posterior; upstream samples it",
        "padding counts as end-of-text where the model pads with it, as upstream's test of ids has it on Stable"
        " Diffusion 1.x; with ends = first only the one that the text encoder pools, as on upstream's base model",
        "pictures per step are the experiment's, and the norm goes over all of them; upstream 1",
        "the norm is not squared, there is no denoising loss and no retain picture, as upstream",
    ),
    passes=lambda iterations, batch, **_: iterations * batch * 3,
)


class Recorder:
    """An attention processor that keeps probabilities at some tokens and leaves the output to the one it stands for."""

    def __init__(self, inner: Any, positions: Tensor, kept: list[Tensor]) -> None:
        """Stand for `inner`; append (B * heads, pixels, P) to `kept` on every call, for int64 (P,) positions."""
        self.inner, self.positions, self.kept = inner, positions, kept

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor | None = None,
        temb: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:  # fmt: skip
        """Inner processor's output for an `Attention` of (B, pixels, width) to (B, L, D)."""
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
        self.kept.append(attn.get_attention_scores(query, key)[..., self.positions])
        output: Tensor = self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs)
        return output


@contextmanager
def recorded(model: Diffusion, positions: Tensor) -> Iterator[list[Tensor]]:
    """Let every cross-attention layer append its probabilities at these tokens to the list; undone at the end.

    A backward pass that predicts again (`Diffusion.micro_batch`) has to come before the end.
    """
    layers = [module for name, module in model.unet.named_modules() if name.endswith("attn2")]
    before, kept = [layer.get_processor() for layer in layers], list[Tensor]()
    try:
        for layer, inner in zip(layers, before, strict=True):
            layer.set_processor(Recorder(inner, positions, kept))
        yield kept
    finally:
        for layer, inner in zip(layers, before, strict=True):
            layer.set_processor(inner)


def concept_positions(model: Diffusion, caption: str, concept: str, *, ends: Ends) -> Tensor:
    """Places of a concept's tokens in a tokenised caption, int64 (P,) in 0 to L - 1, ascending.

    Args:
        model: gives tokenizer, L and device.
        caption: names the concept.
        concept: every place where its tokens follow each other counts.
        ends: which end-of-text tokens count too: every token with that id, padding that has it among them; the first.

    Raises:
        RubError: the caption does not hold the concept's tokens.
    """
    ids = model.tokenize([caption])[0].tolist()
    wanted = model.tokenizer(concept, add_special_tokens=False).input_ids
    size = len(wanted)
    starts = [place for place in range(len(ids)) if wanted and ids[place : place + size] == wanted]
    if not starts:
        raise RubError(f"fmn: '{caption}' does not hold the tokens of '{concept}' within {model.length} tokens")
    found = {start + step for start in starts for step in range(size)}
    last = [place for place, token in enumerate(ids) if token == model.tokenizer.eos_token_id]
    found.update({"all": last, "first": last[:1], "none": []}[ends])
    return torch.tensor(sorted(found), device=model.device)


def attention_norm(kept: Iterable[Tensor]) -> Tensor:
    """||A||_F over layers, pictures, heads, pixels and positions, of probabilities that were `recorded`."""
    norm: Tensor = torch.cat([probabilities.float().flatten() for probabilities in kept]).norm()
    return norm


@method("fmn", task="text-to-image", card=CARD)
def fmn(
    model: Diffusion, forget: Side, retain: Side, context: UnlearnContext, *,
    template: Annotated[str, Hyper("the caption; {} stands for the concept",
        source="upstream for objects; a photo in the style of {} for styles")] = "a photo of {}",
    ends: Annotated[Ends, Hyper("end-of-text tokens whose attention shall go too: `all`, padding with their id among"
        " them, the `first`, or `none`", source="upstream's configuration, use_pooler")] = "all",
    real_pictures: Annotated[bool, Hyper("noise is added to forget pictures, else to zeros, and no pictures are needed",
        source="upstream (no_real_image: false)")] = True,
    group: Annotated[Literal["full", "xattn"], Hyper("`full`: all of the UNet; `xattn`: its cross-attention",
        source="upstream (only_optimize_ca: false)")] = "full",
    lr: Annotated[Rate, Hyper("learning rate of AdamW", source="upstream")] = 2e-6,
    weight_decay: Annotated[Weight, Hyper("weight decay of AdamW", source="upstream")] = 0.01,
    clip: Annotated[Positive, Hyper("largest norm of the gradient", source="upstream")] = 1.0,
    iterations: Annotated[Iterations, Hyper(source="upstream")] = 35,
) -> Diffusion:  # fmt: skip
    """Train the UNet down the norm of its attention to the concept's tokens.

    The forget side's first prompt is the concept; its captions, the retain side and the anchor are not used.

    Raises:
        RubError: a template without {}, a concept that does not fit into the caption, or no pictures.
    """
    concept = forget.prompts[0]
    caption = captioned("fmn", template, concept)
    positions = concept_positions(model, caption, concept, ends=ends)
    given = embedded(model, caption)
    weights = train_only(model.eval(), parameter_group(model, group))
    optimizer = torch.optim.AdamW(weights.values(), lr=lr, weight_decay=weight_decay, foreach=False)
    zeros = torch.zeros(context.batch_size, *model.latent_shape, device=context.device)
    draws, pictures = context.generator("forget-noise"), context.pictures(forget, "forget") if real_pictures else None
    changing: Changing = {"weights": ParameterState(weights), "optimizer": optimizer, "draws": draws}
    for _ in context.counted(iterations, {**changing, "pictures": pictures} if pictures else changing):
        clean = next(pictures)[0] if pictures else zeros
        x, t, _ = context.noised(model, clean, draws)
        with recorded(model, positions) as kept:
            with context.autocast():
                model.predict(x, t, given)
                loss = attention_norm(kept)
            context.backward(loss, optimizer)
        nn.utils.clip_grad_norm_(weights.values(), clip)
        optimizer.step()
    return freeze(model)
