"""Methods that act at inference: Safe Latent Diffusion and the negative prompt."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from rub.config.hyperparameters import Hyper
from rub.models.diffusion.guidance import predict_all
from rub.models.diffusion.model import Diffusion
from rub.registry import Card, guidance

Strength = Literal["weak", "medium", "strong", "max"]
STRENGTHS = {  # warm-up in steps of 50, scale s_S, threshold lambda, momentum s_m, beta_m
    "weak": (15, 200.0, 0.0, 0.0, 0.0),
    "medium": (10, 1000.0, 0.01, 0.3, 0.4),
    "strong": (7, 2000.0, 0.025, 0.5, 0.7),
    "max": (0, 5000.0, 1.0, 0.5, 0.7),
}
STEPS = 50  # of upstream's sampler

SLD = Card(
    paper="Schramowski et al., Safe Latent Diffusion: Mitigating Inappropriate Degeneration in Diffusion Models,"
    " CVPR 2023, arXiv 2211.05105",
    equation="e(x, 0) + s_g (e(x, c) - gamma - e(x, 0)), gamma_t = mu (e(x, s) - e(x, 0)) + s_m nu_t,"
    " mu = min(1, s_S |e(x, c) - e(x, s)|) where e(x, c) - e(x, s) < lambda, else 0;"
    " nu_{t+1} = beta nu_t + (1 - beta) gamma_t; s is the concept (eq. 5 to 8)",
    upstream="ml-research/safe-latent-diffusion; diffusers' pipeline_stable_diffusion_safe, which carried it on",
    differences=(
        "the concept s is the experiment's; upstream's is a list of what is inappropriate",
        "the warm-up ends at the noise level where upstream's 50 steps would, whatever sampler draws",
        "in a search there is no step before, and nu is 0",
    ),
    passes=lambda **_: 0,
)
NEGATIVE = Card(
    paper="Used in practice since Stable Diffusion; as a baseline of concept erasure in Gandikota et al., ICCV 2023"
    " (ESD), arXiv 2303.07345",
    equation="e(x, s) + s_g (e(x, c) - e(x, s)), s the concept's prompt instead of the empty one",
    upstream="diffusers, negative_prompt of StableDiffusionPipeline",
    passes=lambda **_: 0,
)


@dataclass(frozen=True)
class SafeLatentDiffusion:
    """SLD away from a concept."""

    concept: str
    warmup: float
    scale: float
    threshold: float
    momentum: float
    beta: float

    def predictions(
        self, model: Diffusion, x: Tensor, t: Tensor | int, context: Tensor, empty: Tensor, memory: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """(e(x, 0), e(x, c) - gamma)."""
        with torch.no_grad():
            unwanted = memory.setdefault("concept", model.context([self.concept]))
        without, given, away = predict_all(model, x, t, (empty, context, unwanted))
        difference = given - away
        weight = torch.where(difference < self.threshold, (self.scale * difference.abs()).clamp(max=1), 0)
        gamma = weight * (away - without)
        if "nu" in memory:
            gamma = gamma + self.momentum * memory["nu"]
        memory["nu"] = self.beta * memory.get("nu", torch.zeros_like(gamma)) + (1 - self.beta) * gamma
        warm = torch.as_tensor(t, device=x.device).reshape(-1, 1, 1, 1) < model.timesteps * (1 - self.warmup)
        return without, given - torch.where(warm, gamma, 0)


@guidance("sld", card=SLD)
def sld(
    concept: str, anchor: str, *,
    strength: Annotated[Strength, Hyper("`weak`, `medium`, `strong` or `max`", source="upstream")] = "max",
) -> SafeLatentDiffusion:  # fmt: skip
    """Safe Latent Diffusion: step away from the concept at every step of the sampler."""
    warmup, *rest = STRENGTHS[strength]
    return SafeLatentDiffusion(concept, warmup / STEPS, *rest)


@dataclass(frozen=True)
class NegativePrompt:
    """Classifier-free guidance away from a prompt instead of from nothing."""

    prompt: str

    def predictions(
        self, model: Diffusion, x: Tensor, t: Tensor | int, context: Tensor, empty: Tensor, memory: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """(e(x, s), e(x, c))."""
        with torch.no_grad():
            unwanted = memory.setdefault("concept", model.context([self.prompt]))
        without, given = predict_all(model, x, t, (unwanted, context))
        return without, given


@guidance("negative-prompt", card=NEGATIVE)
def negative_prompt(concept: str, anchor: str) -> NegativePrompt:
    """Guide away from the concept's prompt instead of from the empty one."""
    return NegativePrompt(concept)
