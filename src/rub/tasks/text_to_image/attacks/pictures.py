"""What attacks with a picture share: which one is fed at which step."""

from torch import Tensor

from rub.attacks.search import State
from rub.tasks.text_to_image.attacks.base import Target

EVERY_STEP = (
    "at attack step k prompt i is fed the picture of prompt i + k - 1, its own first: as many steps as prompts see"
    " every picture once"
)


def picture_of_step(target: Target, state: State) -> Tensor:
    """Clean latents (B, C, h, w) of the picture that each prompt is fed after t moves: that of row + t - 1 (mod N)."""
    return target.x0[(state["row"] + state["t"] - 1) % len(target.x0)]
