"""A soft prompt that all prompts share: one word learned on the unlearned model from pictures of the concept."""

from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor

from rub.attacks.search import State
from rub.config.hyperparameters import Hyper, PositiveInt, Rate, Weight
from rub.pipeline.rng import keyed_uniform
from rub.registry import Card, attack
from rub.tasks.text_to_image.attacks.base import AttackContext, Budget, Candidates, Predict, Prompts, Search, Target
from rub.tasks.text_to_image.attacks.concept_inversion import Start, first_embedding
from rub.tasks.text_to_image.attacks.p4d import adamw, slope
from rub.tasks.text_to_image.attacks.tokens import Location, Where, need_room, noisy, place_embeddings

CARD = Card(
    paper="Pham et al., Circumventing Concept Erasure Methods for Text-to-Image Generative Models, ICLR 2024"
    " (arXiv:2308.01508); the search is Gal et al., An Image is Worth One Word (textual inversion), ICLR 2023"
    " (arXiv:2208.01618)",
    equation="v* = argmin_v E_{i, noise, t} MSE(noise, e_u(x_t^i, t, c_i(v))), one v for the pictures x^i and prompts"
    " c_i of all i, an input embedding of the text encoder",
    upstream="NYU-DICE-Lab/circumventing-concept-erasure 6d23790, esd/concept_inversion.py and esd/train.sh",
    differences=(
        "the pictures are the original's own for the prompts, one each; upstream has 25 of a style, one half mirrored",
        "the prompt's own tokens stay beside the soft ones; upstream's templates (a photo of a ...) have the new word"
        " alone",
        "it is drawn with the prompts that it was learned on",
        "float32, and the mean of the picture's latents; upstream half precision, and a draw from the autoencoder",
        "the judge looks after every attack step and the first success counts; upstream looks once, at the end",
        "the soft prompt after k attack steps is the same for all prompts, however long they are searched; a run that"
        " was killed learns it again from the beginning",
    ),
    picture=True,
)


@dataclass(frozen=True)
class SharedSoftPrompt:
    """Textual inversion of all prompts together.

    Attributes:
        learned: soft prompts (K, D) after 0, 1, ... attack steps, as far as one was asked for.
        moments: state of AdamW after the last of them.
    """

    target: Target
    predict: Predict
    seed: int
    batch: int
    location: Location
    inner_steps: int
    lr: float
    weight_decay: float
    moments: State
    learned: list[Tensor] = field(default_factory=list)

    def begin(self, state: State) -> None:
        """Keep nothing: what is learned does not depend on who asks."""

    def move(self, state: State) -> int:
        """Learn on until there is a soft prompt for the farthest of these prompts."""
        self.after(int(state["t"].max()) + 1)
        return self.inner_steps

    def propose(self, state: State) -> Candidates:
        """Embeddings of the whole prompts with the soft prompt of each one's step."""
        tokens = self.target.tokens[state["row"]]
        soft = torch.stack([self.after(step) for step in state["t"].tolist()])
        return Candidates(embeddings=place_embeddings(self.target.unlearned, tokens, soft, self.location))

    def after(self, step: int) -> Tensor:
        """Soft prompt (K, D) after so many attack steps."""
        if not self.learned:
            self.learned.append(self.moments["x"][0])
        while len(self.learned) <= step:
            for inner in range(self.inner_steps):
                self._learn((len(self.learned) - 1) * self.inner_steps + inner)
            self.learned.append(self.moments["x"][0])
        return self.learned[step]

    def _learn(self, number: int) -> None:
        tokens = self.target.tokens
        place = torch.arange(self.batch, device=tokens.device)
        drawn = keyed_uniform(self.seed, "prompts", place, number, 1)[:, 0]
        rows = (drawn * len(tokens)).long()
        x, t, noise = noisy(self.target, {"row": rows, "id": place}, None, torch.full_like(place, number), self.seed)
        gradient = self.gradient(self.moments["x"], rows, x, t, noise)
        step = torch.full((1,), number + 1, device=tokens.device)
        adamw(self.moments, gradient, step, self.lr, self.weight_decay)

    @torch.enable_grad()
    def gradient(self, soft: Tensor, rows: Tensor, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Gradient (1, K, D) of the mean loss over these prompts at the soft prompt (1, K, D)."""
        model, at = self.target.unlearned, soft.detach().requires_grad_()
        shared = at.expand(len(rows), -1, -1)
        context = model.encode_soft(place_embeddings(model, self.target.tokens[rows], shared, self.location))
        return slope(noise, self.predict(x, t, context), at) / len(rows)


@attack("shared-soft-prompt", task="text-to-image", card=CARD)
def shared_soft_prompt(
    target: Target, prompts: Prompts, budget: Budget, context: AttackContext, *,
    tokens: Annotated[PositiveInt, Hyper("K, soft tokens", source="upstream num_vectors")] = 1,
    start: Annotated[Start, Hyper(
        "`concept`: the mean embedding of the concept's tokens; `random`: those of random tokens",
        source="ours; upstream a word that the user gives, such as art")] = "concept",
    location: Annotated[Where, Hyper(source="as concept-inversion")] = "prefix",
    batch: Annotated[PositiveInt, Hyper("prompts and pictures in a gradient step",
        source="upstream 4 in each of 4 accumulated batches")] = 16,
    inner_steps: Annotated[PositiveInt, Hyper("steps of AdamW for each attack step",
        source="as concept-inversion")] = 40,
    lr: Annotated[Rate, Hyper("learning rate of AdamW",
        source="upstream's 5e-3, which its scale_lr multiplies by the 16 pictures of a step")] = 0.08,
    weight_decay: Annotated[Weight, Hyper("weight decay of AdamW", source="upstream")] = 0.01,
) -> Search:  # fmt: skip
    """Learn one soft prompt beside all prompts, with which the unlearned model denoises pictures of the concept.

    Raises:
        RubError: a prompt has no room for it.
    """
    need_room(target, tokens)
    x = first_embedding(
        target, start, tokens, context.seed, torch.zeros(1, dtype=torch.int64, device=target.tokens.device)
    )
    moments = {"x": x, "first": torch.zeros_like(x), "second": torch.zeros_like(x)}
    predict = context.predictor(target.unlearned)
    return SharedSoftPrompt(target, predict, context.seed, batch, location, inner_steps, lr, weight_decay, moments)
