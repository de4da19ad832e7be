"""RECALL: an adversarial image prompt, whose latent is searched by the unlearned model's own predictions."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from rub.attacks.search import State
from rub.config.hyperparameters import Fraction, Hyper, PositiveInt, Rate, Weight
from rub.registry import Card, attack
from rub.tasks.text_to_image.attacks.base import AttackContext, Budget, Candidates, Predict, Prompts, Search, Target
from rub.tasks.text_to_image.attacks.p4d import slope
from rub.tasks.text_to_image.attacks.tokens import keyed_normal, timestep

Direction = Literal["towards", "away"]

CARD = Card(
    paper="Liu et al., Image Can Bring Your Memory Back: A Novel Multi-Modal Guided Attack against Image Generation"
    " Model Unlearning (RECALL), 2025 (arXiv:2507.07139)",
    equation="z = b z_ref + (1 - b) noise; z <- z - lr sign(v), v <- mu v + g / mean|g|, g the gradient of"
    " MSE(e_u(z_t, t, c), e_u(z_ref_t, t, c)), both with one noise; the picture of z is fed with the clean prompt",
    upstream="ryliu68/RECALL 0c88a44, attack.py, models.py",
    differences=(
        "the step goes towards the prediction for the reference; upstream's code adds it, and so goes away from it:"
        " direction `away`",
        "the reference is the original's own picture for each prompt; upstream has one picture from the web for each"
        " concept",
        "step 0 is the clean prompt alone; upstream's is the prompt with the reference picture, which img2img measures",
        "the mean of the autoencoder's latents, float32, and noise keyed by seed, case number and step; upstream draws"
        " from the autoencoder, in half precision, and another noise for each picture",
        "one attack step is one noise level and one picture, as in uma; upstream has 50",
        "the picture is drawn as img2img draws it; upstream's LMS takes the wrong coefficients (a bug, off)",
    ),
    picture=True,
)


@dataclass(frozen=True)
class AdversarialPicture:
    """Signed descent with momentum; ``x`` is the picture's latent (B, C, h, w), ``velocity`` v."""

    target: Target
    predict: Predict
    cap: int
    seed: int
    direction: Direction
    blend: float
    inner_steps: int
    lr: float
    momentum: float
    every: int
    added: float
    strength: float

    def begin(self, state: State) -> None:
        """Start from a blend of the reference with noise."""
        reference = self.target.x0[state["row"]]
        noise = keyed_normal(self.seed, "blend", state["id"], 0, reference.shape[1:])
        state["x"] = self.blend * reference + (1 - self.blend) * noise
        state["velocity"] = torch.zeros_like(reference)

    def move(self, state: State) -> int:
        """Take the gradient steps of one noise level, then add some of the reference, every few of them."""
        for inner in range(self.inner_steps):
            gradient = self.gradient(state, state["t"] * self.inner_steps + inner)
            size = gradient.abs().mean((1, 2, 3), keepdim=True) + 1e-8
            state["velocity"] = self.momentum * state["velocity"] + gradient / size
            step = self.lr * state["velocity"].sign()
            state["x"] = state["x"] - step if self.direction == "towards" else state["x"] + step
        due = ((state["t"] + 1) % self.every == 0)[:, None, None, None]
        state["x"] = torch.where(due, state["x"] + self.added * self.target.x0[state["row"]], state["x"])
        return self.inner_steps

    def propose(self, state: State) -> Candidates:
        """The picture as it is now."""
        strength = torch.full((len(state["x"]),), self.strength, device=state["x"].device)
        return Candidates(pictures=state["x"], strength=strength)

    @torch.enable_grad()
    def gradient(self, state: State, counter: Tensor) -> Tensor:
        """Gradient (B, C, h, w) of the loss at the picture; the loss is over the prompt's and the empty prediction."""
        model, reference = self.target.unlearned, self.target.x0[state["row"]]
        level = timestep(state["t"], self.cap, model.timesteps)
        noise = keyed_normal(self.seed, "noise", state["id"], counter, reference.shape[1:])
        at = state["x"].detach().requires_grad_()
        with torch.no_grad():
            contexts = model.encode(self.target.tokens[state["row"]]), model.context([""]).expand(len(at), -1, -1)
            goal = [self.predict(model.noised(reference, level, noise), level, context) for context in contexts]
        made = [self.predict(model.noised(at, level, noise), level, context) for context in contexts]
        return slope(torch.stack(goal, 1), torch.stack(made, 1), at)


@attack("recall", task="text-to-image", card=CARD)
def recall(
    target: Target, prompts: Prompts, budget: Budget, context: AttackContext, *,
    direction: Annotated[Direction, Hyper(
        "`towards` the reference's prediction, or `away` from it", source="ours; upstream's code is away")] = "towards",
    blend: Annotated[Fraction, Hyper("b, share of the reference at the start", source="upstream")] = 0.25,
    inner_steps: Annotated[PositiveInt, Hyper("gradient steps at each noise level", source="upstream")] = 20,
    lr: Annotated[Rate, Hyper("size of each signed step", source="upstream")] = 1e-3,
    momentum: Annotated[Fraction, Hyper("mu", source="upstream")] = 0.9,
    every: Annotated[PositiveInt, Hyper("attack steps after which some of the reference is added",
        source="upstream")] = 5,
    added: Annotated[Weight, Hyper("how much of it", source="upstream")] = 0.05,
    strength: Annotated[Fraction, Hyper("share of the sampler's steps that are run on the picture",
        source="upstream")] = 0.8,
) -> Search:  # fmt: skip
    """Search an image prompt for which the unlearned model predicts what it predicts for a picture of the concept."""
    return AdversarialPicture(
        target, context.predictor(target.unlearned), budget.cap, context.seed, direction, blend, inner_steps, lr,
        momentum, every, added, strength,
    )  # fmt: skip
