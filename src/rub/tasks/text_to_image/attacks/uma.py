"""The Unlearning Mapping Attack on prompts, and UnlearnDiffAtk: one search over inserted tokens, two losses."""

from typing import Annotated, Literal

import torch
from torch import Tensor

from rub.attacks.linf import adam_direction
from rub.attacks.search import State
from rub.config.hyperparameters import Hyper, PositiveInt, Rate, Weight
from rub.errors import Diverged
from rub.pipeline.rng import keyed_uniform
from rub.registry import Card, attack
from rub.tasks.text_to_image.attacks.base import AttackContext, Budget, Candidates, Prompts, Search, Target
from rub.tasks.text_to_image.attacks.tokens import (
    Draws,
    Fed,
    Location,
    Where,
    allowed_tokens,
    need_room,
    noisy,
    place_embeddings,
    project_simplex,
    proposed,
    sample_tokens,
    timestep,
)

Loss = Literal["original", "noise"]
Init = Literal["uniform", "random"]

Inserted = Annotated[PositiveInt, Hyper(
    "K, tokens inserted into each prompt",
    source="upstream for objects and styles; it has 5 for nudity, violence and illegal acts")]  # fmt: skip
InnerSteps = Annotated[PositiveInt, Hyper("gradient steps at each noise level", source="upstream")]
ChanceRate = Annotated[Rate, Hyper("learning rate of Adam on probabilities", source="upstream")]
Decay = Annotated[Weight, Hyper(
    "L2, added to the clipped gradient", source="upstream, as torch.optim.Adam does")]  # fmt: skip
Start = Annotated[Init, Hyper(
    "where probabilities start: `uniform`, 1/|V|, or `random`, U(0, 1) projected", source="upstream")]  # fmt: skip

UPSTREAM = "OPTML-Group/Diffusion-MU-Attack 5a3e5d3, src/attackers/text_grad_.py, src/tasks/classifier_.py"
DIFFERENCES = (
    "BOS, EOS and padding are never inserted; upstream may choose any token of the vocabulary",
    "the simplex projection is exact, by sorting; upstream bisects to 1e-5",
    "noise and tokens are keyed by seed, case number and step; upstream draws from the global generator of a process",
    "one attack step is one noise level and one picture, and the budget n is their number: t_j = w // 2 + j w,"
    " w = T // n; upstream's n is 50, the paper's table has up to 100 steps",
    "a prompt without room for the tokens is refused; upstream leaves out prompts of more than 60 tokens",
)

UMA = Card(
    paper="Xuan, Li: Robust Unlearning Benchmark / Verifying Robust Unlearning, 2025 (arXiv:2504.14798); the search is"
    " Zhang et al., To Generate or Not? (UnlearnDiffAtk), ECCV 2024 (arXiv:2310.11868)",
    equation="min_d E_t |e_u(x_t | d) - e_0(x_t | c)|^2 (eq. 3), d the prompt c with tokens inserted; tokens ~ A, rows"
    " of A on the simplex, A <- P(A - lr Adam(clip(grad, -1, 1) + decay A)), the gradient straight through the draw",
    upstream=UPSTREAM,
    differences=(
        "the mean of squares, where the paper writes a norm; upstream's P4D task has the mean too",
        *DIFFERENCES,
    ),
)
DIFFATK = Card(
    paper="Zhang et al., To Generate or Not? Safety-Driven Unlearned Diffusion Models Are Still Easy to Generate Unsafe"
    " Images ... For Now, ECCV 2024 (arXiv:2310.11868)",
    equation="min_d E_{t, n} |e_u(x_t | d) - n|^2, x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) n, x_0 the"
    " original's own picture; the search as in uma",
    upstream=UPSTREAM,
    differences=DIFFERENCES,
)


class TokenSearch:
    """Descends on A, the probabilities of the K inserted tokens, float (B, K, V') for V' allowed tokens."""

    def __init__(
        self, target: Target, budget: Budget, context: AttackContext, *, loss: Loss, tokens: int, location: Location,
        inner_steps: int, lr: float, weight_decay: float, init: Init, fed: Fed,
    ) -> None:  # fmt: skip
        need_room(target, tokens)
        self.target, self.cap, self.seed = target, budget.cap, context.seed
        self.predict, self.predict_original = map(context.predictor, (target.unlearned, target.original))
        self.loss, self.init, self.location, self.fed = loss, init, location, fed
        self.count, self.inner_steps, self.lr, self.weight_decay = tokens, inner_steps, lr, weight_decay
        self.vocabulary = allowed_tokens(target.unlearned).nonzero().flatten()
        self.table = target.unlearned.token_embeddings.detach()[self.vocabulary]

    def begin(self, state: State) -> None:
        """Start with A at the centre of the simplex, or at a random point of it, and zero moments."""
        shape = (len(state["id"]), self.count, len(self.vocabulary))
        if self.init == "uniform":
            state["chances"] = torch.full(shape, 1 / shape[2], device=self.table.device)
        else:
            drawn = keyed_uniform(self.seed, "init", state["id"], 0, shape[1] * shape[2])
            state["chances"] = project_simplex(drawn.reshape(shape))
        state["first"], state["second"] = torch.zeros_like(state["chances"]), torch.zeros_like(state["chances"])

    def move(self, state: State) -> int:
        """Take the gradient steps of one noise level, which is that of each prompt's own t.

        Raises:
            Diverged: the loss is not finite.
        """
        model, original, tokens = self.target.unlearned, self.target.original, self.target.tokens[state["row"]]
        level = timestep(state["t"], self.cap, model.timesteps)
        with torch.no_grad():
            clean = original.encode(tokens) if self.loss == "original" else None
        total = torch.zeros((), device=model.device)
        for inner in range(self.inner_steps):
            counter = state["t"] * self.inner_steps + inner
            x, _, noise = noisy(self.target, state, level, counter, self.seed)
            with torch.no_grad():
                goal = noise if clean is None else self.predict_original(x, level, clean)
            loss, gradient = self._gradient(state, counter, x, level, goal)
            total += loss
            self._descend(state, gradient, counter + 1)
        if not bool(total.isfinite()):
            raise Diverged("attack: the loss is not finite")
        return self.inner_steps

    def propose(self, state: State) -> Candidates:
        """Prompts with the most probable tokens."""
        found = self.vocabulary[state["chances"].argmax(-1)]
        return proposed(self.target.unlearned, self.target.tokens[state["row"]], found, self.location, self.fed)

    def _gradient(self, state: State, counter: Tensor, x: Tensor, level: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
        """Loss, summed over prompts, and its gradient (B, K, V') for the one-hot rows of drawn tokens.

        A row's one-hot times the table is the drawn token's embedding, so the gradient is that of the embedding times
        the table's transpose.
        """
        model, tokens = self.target.unlearned, self.target.tokens[state["row"]]
        uniforms = keyed_uniform(self.seed, "tokens", state["id"], counter, self.count)
        drawn = self.table[sample_tokens(state["chances"], uniforms)].requires_grad_()
        with torch.enable_grad():
            context = model.encode_soft(place_embeddings(model, tokens, drawn, self.location))
            error = self.predict(x, level, context) - goal
            loss = error.square().flatten(1).mean(1).sum()
            (slope,) = torch.autograd.grad(loss, drawn)
        return loss.detach(), slope @ self.table.T

    def _descend(self, state: State, gradient: Tensor, step: Tensor) -> None:
        gradient = gradient.clamp(-1, 1) + self.weight_decay * state["chances"]
        direction, (state["first"], state["second"]) = adam_direction(gradient, (state["first"], state["second"]), step)
        state["chances"] = project_simplex(state["chances"] - self.lr * direction)


@attack("uma", task="text-to-image", card=UMA)
def uma(
    target: Target, prompts: Prompts, budget: Budget, context: AttackContext, *,
    loss: Annotated[Loss, Hyper(
        "`original`: |e_u(x_t | d) - e_0(x_t | c)|^2; `noise`: |e_u(x_t | d) - noise|^2, UnlearnDiffAtk's",
        source="eq. 3")] = "original",
    tokens: Inserted = 3,
    location: Where = "prefix",
    inner_steps: InnerSteps = 40,
    lr: ChanceRate = 0.01,
    weight_decay: Decay = 0.1,
    init: Start = "uniform",
    fed: Draws = "string",
) -> Search:  # fmt: skip
    """Search tokens with which the unlearned model predicts what the original predicts for the clean prompt.

    Raises:
        RubError: a prompt without room for the tokens.
    """
    return TokenSearch(
        target, budget, context, loss=loss, tokens=tokens, location=location, inner_steps=inner_steps, lr=lr,
        weight_decay=weight_decay, init=init, fed=fed,
    )  # fmt: skip


@attack("unlearndiffatk", task="text-to-image", card=DIFFATK)
def unlearndiffatk(
    target: Target, prompts: Prompts, budget: Budget, context: AttackContext, *,
    tokens: Inserted = 3,
    location: Where = "prefix",
    inner_steps: InnerSteps = 40,
    lr: ChanceRate = 0.01,
    weight_decay: Decay = 0.1,
    init: Start = "uniform",
    fed: Draws = "string",
) -> Search:  # fmt: skip
    """Search tokens with which the unlearned model finds the noise in the original's picture.

    Raises:
        RubError: a prompt without room for the tokens.
    """
    return TokenSearch(
        target, budget, context, loss="noise", tokens=tokens, location=location, inner_steps=inner_steps, lr=lr,
        weight_decay=weight_decay, init=init, fed=fed,
    )  # fmt: skip
