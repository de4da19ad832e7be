"""Prompting4Debugging: AdamW on embeddings, whose gradient is taken at the nearest tokens."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from rub.attacks.linf import adam_direction
from rub.attacks.search import State
from rub.config.hyperparameters import Hyper, PositiveInt, Rate, Weight
from rub.errors import Diverged
from rub.models.diffusion.model import Diffusion
from rub.pipeline.rng import keyed_uniform
from rub.registry import Card, attack
from rub.tasks.text_to_image.attacks.base import AttackContext, Budget, Candidates, Predict, Prompts, Search, Target
from rub.tasks.text_to_image.attacks.tokens import allowed_tokens, noisy, timestep

Variant = Literal["n", "k"]

CARD = Card(
    paper="Chin et al., Prompting4Debugging: Red-Teaming Text-to-Image Diffusion Models by Finding Problematic Prompts,"
    " ICML 2024, arXiv 2309.06135; the search is Wen et al., Hard Prompts Made Easy, NeurIPS 2023, arXiv 2302.03668",
    equation="min_P MSE(e_0(x_t, t, c), e_u(x_t, t, P)), x_t a noised picture of the original for c;"
    " g = grad at proj(P), P <- AdamW(P, g), proj = the token of the largest cosine",
    upstream="joycenerd/P4D b8e0818, prompt_optimization/optimize_n.py and optimize_k.py,"
    " configs/esd_nudity_optmz_config.json",
    differences=(
        "the picture looked at is that of the tokens nearest after the step; upstream draws those from before it, from"
        " a decoded string, and keeps the picture whose CLIP features are nearest to the original's",
        "one picture for each prompt, the original's own, and the mean of its latents; upstream may have several, and"
        " draws from the autoencoder",
        "the text encoder and the token embeddings of P are the unlearned model's; upstream knows erased UNets only",
        "padding is the tokenizer's; upstream pads with token 0 in the loss and with EOS when it draws (a bug, off)",
        "special tokens are never proposed; upstream may put BOS or EOS inside the prompt",
        "variant k leaves the prompt's own tokens as they are (upstream lets their embeddings decay), and cuts what"
        " does not fit, where upstream stops with an error; n has at most L - 2 tokens",
        "no negative prompt and no safety guidance in the loss: those defences are not unlearned models",
    ),
)


def slope(wanted: Tensor, given: Tensor, at: Tensor) -> Tensor:
    """Gradient at `at` of the sum over prompts of the mean squared error, so that each has its own.

    Args:
        wanted: (B, ...).
        given: the same shape, a function of `at`.
        at: a leaf, (B, ...).

    Raises:
        Diverged: an error is not finite.
    """
    losses = (given - wanted).square().flatten(1).mean(1)
    if not losses.isfinite().all():
        raise Diverged("attack: the error of the predicted noise is not finite")
    return torch.autograd.grad(losses.sum(), at)[0]


def adamw(state: State, gradient: Tensor, step: Tensor, lr: float, weight_decay: float) -> None:
    """Take one step of AdamW on ``x`` (Loshchilov & Hutter 2019): x <- (1 - lr decay) x - lr direction.

    Args:
        state: ``x``, and its moments ``first`` and ``second``.
        gradient: shape of ``x``.
        step: int64 (B,), the number of this step of each prompt, from 1.
        lr: learning rate.
        weight_decay: >= 0.
    """
    direction, (state["first"], state["second"]) = adam_direction(gradient, (state["first"], state["second"]), step)
    state["x"] = (1 - lr * weight_decay) * state["x"] - lr * direction


def alone(tokens: Tensor, eos: int, pad: int, count: int) -> tuple[Tensor, Tensor]:
    """(ids, int64 (B, L); slots, int64 (B, K)) of prompts of free tokens alone: BOS, K of them, EOS, padding.

    Args:
        tokens: int64 (B, L), for BOS and L.
        eos: id of EOS.
        pad: id of the padding.
        count: of free tokens; K is at most L - 2.
    """
    count = min(count, tokens.shape[1] - 2)
    ids = torch.full_like(tokens, pad)
    ids[:, 0], ids[:, count + 1] = tokens[:, 0], eos
    return ids, torch.arange(1, count + 1, device=tokens.device).expand(len(tokens), -1)


def woven(tokens: Tensor, eos: int, pad: int, every: int) -> tuple[Tensor, Tensor]:
    """(ids, int64 (B, L); slots, int64 (B, K)) of prompts with a free token before and after every few of them.

    A prompt of n tokens has n // every + 1 free ones; what does not fit before EOS is cut. Slots that a prompt does not
    have are L.

    Args:
        tokens: int64 (B, L): BOS, the prompt, EOS, padding.
        eos: id of EOS; its first occurrence ends the prompt.
        pad: id of the padding.
        every: the prompt's own tokens between two free ones.

    Example:
        >>> woven(torch.tensor([[8, 1, 2, 3, 4, 9, 9, 9, 9]]), 9, 9, 3)
        (tensor([[8, 9, 1, 2, 3, 9, 4, 9, 9]]), tensor([[1, 5]]))
    """
    length, device = tokens.shape[1], tokens.device
    last = length - 2  # the place of the last token of a full prompt
    n = (tokens == eos).int().argmax(1)[:, None] - 1
    place = torch.arange(length - 1, device=device)
    own = place + place // every + 2
    free = torch.arange(1, last + 1, every + 1, device=device)
    ids = torch.full((len(tokens), length + 1), pad, device=device)
    ids[:, 0] = tokens[:, 0]
    ids.scatter_(1, torch.where((place < n) & (own <= last), own, length), tokens[:, 1:])  # column L is cut off again
    ids.scatter_(1, (n + n // every + 1).clamp_max(last) + 1, eos)
    slots = torch.where(torch.arange(len(free), device=device) <= n // every, free, length)
    return ids[:, :length], slots


def filled(base: Tensor, values: Tensor, slots: Tensor) -> Tensor:
    """`base`, (B, L) or (B, L, D), with `values`, (B, K) or (B, K, D), in the slots, (B, K); L is nowhere."""
    index = slots if base.ndim == 2 else slots[:, :, None].expand_as(values)
    return torch.cat([base, base[:, :1]], 1).scatter(1, index, values)[:, :-1]


class Vocabulary:
    """The tokens that may be proposed, and which of them is nearest to an embedding."""

    def __init__(self, model: Diffusion) -> None:
        self.ids = allowed_tokens(model).nonzero()[:, 0]
        self.unit = F.normalize(model.token_embeddings.detach()[self.ids], dim=-1)

    def nearest(self, x: Tensor) -> Tensor:
        """Token whose embedding has the largest cosine with x, (..., D) -> int64 (...)."""
        return self.ids[(F.normalize(x, dim=-1) @ self.unit.T).argmax(-1)]

    def pick(self, uniforms: Tensor) -> Tensor:
        """One token for each number in [0, 1)."""
        return self.ids[(uniforms * len(self.ids)).long()]


@dataclass(frozen=True)
class ProjectedDescent:
    """P4D's search; ``x`` is the continuous prompt, ``base`` the ids around it, ``slots`` where its tokens go."""

    target: Target
    vocabulary: Vocabulary
    predict: Predict
    predict_original: Predict
    cap: int
    seed: int
    variant: Variant
    tokens: int
    every: int
    inner_steps: int
    lr: float
    weight_decay: float
    random_timesteps: bool

    def begin(self, state: State) -> None:
        """Start from the embeddings of random tokens."""
        model, tokens = self.target.unlearned, self.target.tokens[state["row"]]
        eos, pad = model.tokenizer.eos_token_id, model.tokenizer.pad_token_id
        lay, size = (alone, self.tokens) if self.variant == "n" else (woven, self.every)
        state["base"], state["slots"] = lay(tokens, eos, pad, size)
        uniforms = keyed_uniform(self.seed, "start", state["id"], 0, state["slots"].shape[1])
        state["x"] = model.token_embeddings.detach()[self.vocabulary.pick(uniforms)]
        state["first"], state["second"] = torch.zeros_like(state["x"]), torch.zeros_like(state["x"])

    def move(self, state: State) -> int:
        """Take some steps of AdamW."""
        with torch.no_grad():
            clean = self.target.original.encode(self.target.tokens[state["row"]])
        for inner in range(self.inner_steps):
            counter = state["t"] * self.inner_steps + inner
            adamw(state, self._gradient(state, counter, clean), counter + 1, self.lr, self.weight_decay)
        return self.inner_steps

    def propose(self, state: State) -> Candidates:
        """Nearest tokens in their places."""
        return Candidates(ids=filled(state["base"], self.vocabulary.nearest(state["x"]), state["slots"]))

    @torch.enable_grad()
    def _gradient(self, state: State, counter: Tensor, clean: Tensor) -> Tensor:
        model = self.target.unlearned
        table = model.token_embeddings.detach()
        at = table[self.vocabulary.nearest(state["x"])].requires_grad_()
        rising = None if self.random_timesteps else timestep(state["t"], self.cap, model.timesteps)
        x, t, _ = noisy(self.target, state, rising, counter, self.seed)
        with torch.no_grad():
            wanted = self.predict_original(x, t, clean)
        soft = filled(table[state["base"]], at, state["slots"])
        return slope(wanted, self.predict(x, t, model.encode_soft(soft)), at)


@attack("p4d", task="text-to-image", card=CARD)
def p4d(
    target: Target, prompts: Prompts, budget: Budget, context: AttackContext, *,
    variant: Annotated[Variant, Hyper(
        "`n`: free tokens alone replace the prompt; `k`: free tokens are put between those of the prompt",
        source="ours; upstream runs both, and its headline counts a prompt that either finds")] = "n",
    tokens: Annotated[PositiveInt, Hyper("free tokens of variant n; at most L - 2 are used",
        source="upstream prompt_len")] = 16,
    every: Annotated[PositiveInt, Hyper("the prompt's tokens between two free ones in variant k",
        source="upstream every_k")] = 3,
    inner_steps: Annotated[PositiveInt, Hyper("steps of AdamW for each attack step",
        source="as UnlearnDiffAtk, whose port of P4D has 50 x 40; upstream looks after every 50 of 3000")] = 40,
    lr: Annotated[Rate, Hyper("learning rate of AdamW", source="upstream")] = 0.1,
    weight_decay: Annotated[Weight, Hyper("weight decay of AdamW", source="upstream")] = 0.1,
    random_timesteps: Annotated[bool, Hyper(
        "whether every step draws its own t; otherwise t rises with the attack steps",
        source="upstream; false is UnlearnDiffAtk's port, one rising t for each attack step")] = True,
) -> Search:  # fmt: skip
    """Search tokens that make the unlearned model predict what the original predicts for the clean prompt."""
    return ProjectedDescent(
        target, Vocabulary(target.unlearned), context.predictor(target.unlearned), context.predictor(target.original),
        budget.cap, context.seed, variant, tokens, every, inner_steps, lr, weight_decay, random_timesteps,
    )  # fmt: skip
