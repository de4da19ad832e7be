"""What an unlearning method of diffusion models receives besides its model: what to forget, what to keep, helpers."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rub.errors import RubError
from rub.models.diffusion.model import Diffusion
from rub.models.diffusion.sampling import Sampler, partial
from rub.training.batches import Stream, orders, refilled
from rub.training.context import TrainContext


@dataclass(frozen=True)
class Side:
    """What is to be forgotten, or to be kept: its names, and pictures of it with captions.

    Attributes:
        prompts: what it is called: of the forget side the concept's own prompts, the first one names it best
            (``"church"``); of the retain side one prompt for each other concept.
        latents: clean latents x_0 of pictures, float32 (N, C, h, w) on the CPU.
        captions: one for each picture.
    """

    prompts: tuple[str, ...]
    latents: Tensor
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.captions)


@dataclass(frozen=True, kw_only=True)
class UnlearnContext(TrainContext):
    """Everything an unlearning method may use besides its model and data; the rest is in `TrainContext`.

    Attributes:
        anchor: the prompt that a method may map the concept to, such as ``"a photo of a digit"``; ``""``: nothing.
        sampler: DDIM, for methods that draw their own x_t.
    """

    anchor: str = ""
    sampler: Sampler = field(default_factory=Sampler)

    def rows(self, count: int, size: int, stream: str) -> Stream[Tensor, Tensor]:
        """Rows of a set, int64 (size,), in shuffled passes without end; a batch may hold rows of two passes."""
        return Stream(lambda: refilled(orders(count, self.generator(stream)), size), lambda rows: rows)

    def pictures(self, side: Side, stream: str) -> Stream[Tensor, tuple[Tensor, list[str]]]:
        """Batches (x_0, captions) of a side's pictures in shuffled passes without end: float32 (B, C, h, w), B strings.

        Raises:
            RubError: there are no pictures.
        """
        if not len(side):
            raise RubError("unlearning: this method needs pictures, but there are none of one side")

        def make(rows: Tensor) -> tuple[Tensor, list[str]]:
            return side.latents[rows].to(self.device), [side.captions[row] for row in rows.tolist()]

        return Stream(lambda: refilled(orders(len(side), self.generator(stream)), self.batch_size), make)

    def noised(self, model: Diffusion, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(x_t, t, noise) for clean latents: t uniform in 0 to T - 1, int64 (B,), and standard normal noise."""
        t, noise = (part.to(self.device) for part in draw_noise(model, x0.shape, generator))
        return model.noised(x0, t, noise), t, noise

    def normal(self, shape: Iterable[int], generator: torch.Generator) -> Tensor:
        """Standard normal numbers on the device, drawn on the CPU."""
        return torch.randn(tuple(shape), generator=generator).to(self.device)

    def partial(
        self, model: Diffusion, prompt: str, generator: torch.Generator, *, guidance: float = 3.0
    ) -> tuple[Tensor, Tensor]:
        """(x_t, t): DDIM from noise to a random step with the model as it is, as ESD draws its x_t.

        One stop, uniform in 0 to S - 1 for S sampler steps, for the whole batch; t uniform in the time steps that the
        next step stands for, int64 (B,).

        Args:
            model: what draws, without gradients.
            prompt: what it draws.
            generator: gives noise, stop and t.
            guidance: weight of classifier-free guidance (ESD: 3).
        """
        stop = int(torch.randint(0, self.sampler.steps, (1,), generator=generator))
        noise = self.normal((self.batch_size, *model.latent_shape), generator)
        with torch.no_grad():
            context, empty = model.context([prompt]), model.context([""])
        x = partial(model, context, empty, noise, guidance, self.sampler, stop)
        width = model.timesteps / self.sampler.steps
        left = self.sampler.steps - stop  # steps still to go: x stands at the noise of the left-th bucket from 0
        low, high = round((left - 1) * width), max(round(left * width), round((left - 1) * width) + 1)
        t = torch.randint(low, min(high, model.timesteps), (len(x),), generator=generator)
        return x, t.to(self.device)

    def adam(self, parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Adam:
        """Adam over these parameters, one after the other: all together would take their size once more.

        Raises:
            RubError: there are none.
        """
        chosen = list(parameters)
        if not chosen:
            raise RubError("unlearning: no parameter of this model is selected for training")
        return torch.optim.Adam(chosen, lr=lr, foreach=False)


def draw_noise(model: Diffusion, shape: Iterable[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(t, noise) for latents of a shape (B, C, h, w), on the CPU: t uniform in 0 to T - 1, int64 (B,)."""
    count, *rest = shape
    t = torch.randint(0, model.timesteps, (count,), generator=generator)
    return t, torch.randn((count, *rest), generator=generator)


def train_only(model: Diffusion, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """Let gradients reach these parameters of the model alone (``unet.``..., ``text_encoder.``...), and return them."""
    chosen = set(names)
    found = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
        if name in chosen:
            found[name] = parameter
    return found
