"""Inpainting: the centre of a picture of the concept is drawn anew, with the prompt as it is."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from rub.attacks.search import State
from rub.config.hyperparameters import Fraction, Hyper
from rub.registry import Card, attack
from rub.tasks.text_to_image.attacks.base import AttackContext, Budget, Candidates, Prompts, Search, Target
from rub.tasks.text_to_image.attacks.controls import Still
from rub.tasks.text_to_image.attacks.pictures import EVERY_STEP, picture_of_step

CARD = Card(
    paper="Avrahami et al., Blended Latent Diffusion, ACM TOG (SIGGRAPH) 2023 (arXiv:2206.02779), of which RePaint"
    " (Lugmayr et al., CVPR 2022, arXiv:2201.09865, eq. 8) is the form in pixels",
    equation="after every step x_t <- m x_t + (1 - m) (sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise), m the"
    " centre, x_0 the original's own picture of the concept, and x_0 itself after the last",
    upstream="huggingface/diffusers 0.42, StableDiffusionInpaintPipeline with a UNet of 4 channels, by its behaviour",
    differences=(
        "one noise in all steps, the prompt's own, as upstream; the papers draw another at every step",
        "no resampling (RePaint), no optimisation of the decoder for the known pixels (Blended Latent Diffusion)",
        "the mask is of latents, whole ones; a latent of an autoencoder with a wide receptive field may see through its"
        " edge",
        "the judge looks at the whole result, the known rim included",
        EVERY_STEP,
    ),
    picture=True,
)


def centre(height: int, width: int, side: float) -> Tensor:
    """The middle of a picture, bool (h, w): True in a box whose sides are this share of its own, rounded.

    Example:
        >>> centre(4, 4, 0.5).int().tolist()
        [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    """
    inside = torch.zeros(height, width, dtype=torch.bool)
    tall, wide = round(side * height), round(side * width)
    top, left = (height - tall) // 2, (width - wide) // 2
    inside[top : top + tall, left : left + wide] = True
    return inside


@dataclass(frozen=True)
class Inpainting(Still):
    """Feeds another picture with the same hole, bool (h, w), at every step."""

    target: Target
    hole: Tensor

    def propose(self, state: State) -> Candidates:
        """Picture of this step with its centre missing."""
        pictures = picture_of_step(self.target, state)
        strength = torch.ones(len(pictures), device=pictures.device)
        holes = self.hole.to(pictures.device).expand(len(pictures), -1, -1)
        return Candidates(pictures=pictures, strength=strength, holes=holes)


@attack("inpaint-centre", task="text-to-image", card=CARD)
def inpaint_centre(
    target: Target, prompts: Prompts, budget: Budget, context: AttackContext, *,
    side: Annotated[Fraction, Hyper(
        "share of the picture's height and width that the hole has", source="ours: a fourth of the picture")] = 0.5,
) -> Search:  # fmt: skip
    """Draw the centre of a picture of the concept anew."""
    return Inpainting(target, centre(*target.unlearned.latent_shape[1:], side))
