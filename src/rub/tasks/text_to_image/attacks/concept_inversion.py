"""Concept Inversion: a soft prompt that is learned on the unlearned model, as textual inversion learns a word."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from rub.attacks.search import State
from rub.config.hyperparameters import Hyper, PositiveInt, Rate, Weight
from rub.pipeline.rng import keyed_uniform
from rub.registry import Card, attack
from rub.tasks.text_to_image.attacks.base import AttackContext, Budget, Candidates, Predict, Prompts, Search, Target
from rub.tasks.text_to_image.attacks.p4d import Vocabulary, adamw, slope
from rub.tasks.text_to_image.attacks.tokens import Location, Where, need_room, noisy, place_embeddings

Start = Literal["concept", "random"]

CARD = Card(
    paper="Pham et al., Circumventing Concept Erasure Methods for Text-to-Image Generative Models, ICLR 2024,"
    " arXiv 2308.01508; the search is Gal et al., An Image is Worth One Word (textual inversion), ICLR 2023,"
    " arXiv 2208.01618",
    equation="v* = argmin_v E_{x_0, noise, t} MSE(noise, e_u(x_t, t, c(v))), v an input embedding of the text encoder",
    upstream="NYU-DICE-Lab/circumventing-concept-erasure 6d23790, esd/concept_inversion.py and esd/train.sh",
    differences=(
        "one embedding for each prompt, learned from the original's own picture for it, so that every attack has the"
        " same budget for each prompt; upstream learns one from many pictures of the concept (25 of a style) and uses"
        " it everywhere",
        "one picture and one t in a step; upstream 4 pictures in each of 4 accumulated batches, and one half of them"
        " mirrored",
        "the prompt's own tokens stay beside the soft ones; upstream's templates (a photo of a ...) have the new word"
        " alone",
        "float32, and the mean of the picture's latents; upstream half precision, and a draw from the autoencoder",
        "the judge looks after every attack step and the first success counts; upstream looks once, at the end",
    ),
)


def first_embedding(target: Target, start: Start, tokens: int, seed: int, ids: Tensor) -> Tensor:
    """Soft prompts (B, K, D) to start from: the mean of the concept's tokens, K times, or random tokens.

    Args:
        target: the unlearned model and the concept.
        start: see `concept_inversion`.
        tokens: K.
        seed: of the attack.
        ids: case numbers, int64 (B,).
    """
    model = target.unlearned
    table = model.token_embeddings.detach()
    if start == "concept":
        own = model.tokenizer(target.concept, add_special_tokens=False, verbose=False).input_ids
        return table[own].mean(0).expand(len(ids), tokens, -1).clone()
    return table[Vocabulary(model).pick(keyed_uniform(seed, "start", ids, 0, tokens))]


@dataclass(frozen=True)
class SoftPrompt:
    """Textual inversion per prompt; ``x`` is the soft prompt (B, K, D)."""

    target: Target
    predict: Predict
    seed: int
    tokens: int
    start: Start
    location: Location
    inner_steps: int
    lr: float
    weight_decay: float

    def begin(self, state: State) -> None:
        """Start from the mean of the concept's tokens, K times, or from random tokens."""
        state["x"] = first_embedding(self.target, self.start, self.tokens, self.seed, state["id"])
        state["first"], state["second"] = torch.zeros_like(state["x"]), torch.zeros_like(state["x"])

    @torch.enable_grad()
    def move(self, state: State) -> int:
        """Take some steps of AdamW."""
        model, tokens = self.target.unlearned, self.target.tokens[state["row"]]
        for inner in range(self.inner_steps):
            counter = state["t"] * self.inner_steps + inner
            x, t, noise = noisy(self.target, state, None, counter, self.seed)
            soft = state["x"].detach().requires_grad_()
            context = model.encode_soft(place_embeddings(model, tokens, soft, self.location))
            gradient = slope(noise, self.predict(x, t, context), soft)
            adamw(state, gradient, counter + 1, self.lr, self.weight_decay)
        return self.inner_steps

    def propose(self, state: State) -> Candidates:
        """Embeddings of the whole prompt."""
        tokens = self.target.tokens[state["row"]]
        return Candidates(embeddings=place_embeddings(self.target.unlearned, tokens, state["x"], self.location))


@attack("concept-inversion", task="text-to-image", card=CARD)
def concept_inversion(
    target: Target, prompts: Prompts, budget: Budget, context: AttackContext, *,
    tokens: Annotated[PositiveInt, Hyper("K, soft tokens", source="upstream num_vectors")] = 1,
    start: Annotated[Start, Hyper(
        "`concept`: the mean embedding of the concept's tokens; `random`: those of random tokens",
        source="ours; upstream a word that the user gives, such as art")] = "concept",
    location: Annotated[Where, Hyper(
        source="upstream's form for I2P, a new word before each picture's caption")] = "prefix",
    inner_steps: Annotated[PositiveInt, Hyper("steps of AdamW for each attack step",
        source="as UnlearnDiffAtk; 100 attack steps are 4000 steps, upstream 5000")] = 40,
    lr: Annotated[Rate, Hyper("learning rate of AdamW",
        source="upstream's base rate; scale_lr multiplies it by 16 there, for 16 pictures in a step")] = 5e-3,
    weight_decay: Annotated[Weight, Hyper("weight decay of AdamW", source="upstream")] = 0.01,
) -> Search:  # fmt: skip
    """Learn soft tokens beside each prompt with which the unlearned model denoises the original's picture.

    The original model gives the pictures alone.

    Raises:
        RubError: a prompt has no room for them.
    """
    need_room(target, tokens)
    predict = context.predictor(target.unlearned)
    return SoftPrompt(target, predict, context.seed, tokens, start, location, inner_steps, lr, weight_decay)
