"""Image-to-image: the prompt as it is, drawn from a noised picture of the concept in place of noise."""

from dataclasses import dataclass
from typing import Annotated

import torch

from rub.attacks.search import State
from rub.config.hyperparameters import Fraction, Hyper
from rub.registry import Card, attack
from rub.tasks.text_to_image.attacks.base import AttackContext, Budget, Candidates, Prompts, Search, Target
from rub.tasks.text_to_image.attacks.controls import Still
from rub.tasks.text_to_image.attacks.pictures import EVERY_STEP, picture_of_step

CARD = Card(
    paper="Meng et al., SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations, ICLR 2022"
    " (arXiv:2108.01073)",
    equation="x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise at the t from which the share s of the steps is"
    " left, then the sampler with the prompt; x_0 the original's own picture of the concept",
    upstream="huggingface/diffusers 0.42, StableDiffusionImg2ImgPipeline, by its behaviour",
    differences=(
        "strength 1 starts from noise alone, so that it is drawing from the prompt; upstream leaves 7 % of the"
        " picture, sqrt(alpha_bar_T)",
        "the number of steps is rounded; upstream cuts it",
        "of LMS, as many earlier derivatives are used as the run has; upstream takes the coefficients of a run from the"
        " beginning (a bug, off)",
        EVERY_STEP,
    ),
    picture=True,
)


@dataclass(frozen=True)
class ImageToImage(Still):
    """Feeds another picture at every step."""

    target: Target
    strength: float

    def propose(self, state: State) -> Candidates:
        """Picture of this step, with the strength."""
        pictures = picture_of_step(self.target, state)
        strength = torch.full((len(pictures),), self.strength, device=pictures.device)
        return Candidates(pictures=pictures, strength=strength)


@attack("img2img", task="text-to-image", card=CARD)
def img2img(
    target: Target, prompts: Prompts, budget: Budget, context: AttackContext, *,
    strength: Annotated[Fraction, Hyper(
        "share of the sampler's steps that are run on the picture: 0 returns it, 1 is drawing from noise",
        source="upstream; the paper's range is 0.3 to 0.6, where more of the picture is left")] = 0.8,
) -> Search:  # fmt: skip
    """Draw the clean prompt from a noised picture of the concept."""
    return ImageToImage(target, strength)
