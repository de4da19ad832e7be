"""Inverted latents: the initial noise from which the unlearned model draws a picture of the concept."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from rub.attacks.search import State
from rub.config.hyperparameters import Count, Hyper
from rub.errors import Diverged
from rub.models.diffusion.model import Diffusion
from rub.models.diffusion.sampling import Sampler, invert
from rub.registry import Card, attack
from rub.tasks.text_to_image.attacks.base import AttackContext, Budget, Candidates, Prompts, Search, Target
from rub.tasks.text_to_image.attacks.controls import Still
from rub.tasks.text_to_image.attacks.pictures import EVERY_STEP, picture_of_step

Inverter = Literal["unlearned", "original"]

CARD = Card(
    paper="Rusanovsky et al., Memories of Forgotten Concepts, CVPR 2025 (arXiv:2412.00782); the inversion is DDIM's"
    " (Song et al., ICLR 2021, arXiv:2010.02502), refined as in ReNoise (Garibi et al., ECCV 2024, arXiv:2403.14602)",
    equation="y_t = y_s + (sigma_t - sigma_s) e_u(x_t, t, c), s the step after t, from y_0 of the original's own"
    " picture; y = x / sqrt(alpha_bar), sigma = sqrt((1 - alpha_bar) / alpha_bar); x_T with the clean prompt is drawn",
    upstream="matanr/Memories_of_Forgotten_Concepts 494cb1a, src/memory_of_an_ablated_concept.py, src/renoise/",
    differences=(
        "the weight of guidance is the prompt's own, as its pictures are drawn; upstream inverts and draws without"
        " guidance",
        "the sampler is the protocol's; upstream has 50 steps of DDIM. Of LMS, the inverse is that of its method of"
        " order 1",
        "the last refinement counts; upstream averages those of the first noise levels, and pulls the noise towards"
        " a normal one",
        "success is the judge's; upstream measures the likelihood of x_T and the PSNR of the picture",
        EVERY_STEP,
    ),
    picture=True,
)


@dataclass(frozen=True)
class Inversion(Still):
    """Inverts another picture at every step; the model that inverts may be the original."""

    target: Target
    model: Diffusion
    sampler: Sampler
    refinements: int

    @torch.no_grad()
    def propose(self, state: State) -> Candidates:
        """Initial latents of the picture of this step."""
        rows = state["row"]
        guidance = self.target.prompts.guidance[rows.cpu()].to(rows.device)
        context, empty = self.model.encode(self.target.tokens[rows]), self.model.context([""])
        pictures = picture_of_step(self.target, state)
        latents = invert(self.model, context, empty, pictures, guidance, self.sampler, self.refinements)
        if not latents.isfinite().all():
            raise Diverged("attack: an inverted latent is not finite; take fewer refinements")
        return Candidates(latents=latents)


@attack("inverted-latent", task="text-to-image", card=CARD)
def inverted_latent(
    target: Target, prompts: Prompts, budget: Budget, context: AttackContext, *,
    inverted_by: Annotated[Inverter, Hyper(
        "the model that inverts: `unlearned` finds the latent that draws the picture, `original` one that drew it",
        source="upstream inverts with the model under attack")] = "unlearned",
    refinements: Annotated[Count, Hyper(
        "refinements of the noise at each time step; 0 is plain DDIM inversion", source="upstream")] = 5,
) -> Search:  # fmt: skip
    """Draw the clean prompt from latents that were inverted from pictures of the concept."""
    return Inversion(target, getattr(target, inverted_by), context.sampler, refinements)
