"""Drawing from a `Diffusion`: classifier-free guidance in one batch, whole runs of a sampler and partial ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor

from rub.models.diffusion.guidance import both
from rub.models.diffusion.model import SCHEDULE, Diffusion


@dataclass(frozen=True)
class Sampler:
    """How images are drawn, in 1 to T steps of DDIM (Song et al. 2021, eta 0) or of LMS.

    LMS is k-diffusion's linear multistep, UnlearnDiffAtk's.
    """

    name: Literal["ddim", "lms"] = "ddim"
    steps: int = 50

    def scheduler(self, model: Diffusion) -> Any:
        """Fresh diffusers scheduler with the time steps set."""
        from diffusers import DDIMScheduler, LMSDiscreteScheduler

        given = {name: value for name, value in model.schedule.items() if name in SCHEDULE}
        given["prediction_type"] = "epsilon"  # `Diffusion.predict` gives noise
        if self.name == "lms":
            given = {name: given[name] for name in given if name.startswith("beta") or name == "num_train_timesteps"}
        scheduler = (DDIMScheduler if self.name == "ddim" else LMSDiscreteScheduler)(**given)
        scheduler.set_timesteps(self.steps, device=model.device)
        return scheduler


def initial_latents(model: Diffusion, seeds: Tensor) -> Tensor:
    """Standard normal latents (B, C, h, w), one CPU generator per seed, as UnlearnDiffAtk's evaluation draws."""
    drawn = [
        torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds.tolist()
    ]
    shape = (len(seeds), *model.latent_shape)
    return torch.stack(drawn).to(model.device) if drawn else torch.empty(shape, device=model.device)


def guided(
    model: Diffusion, x: Tensor, t: Tensor | int, context: Tensor, empty: Tensor, weight: Tensor,
    memory: dict[str, Tensor],
) -> Tensor:  # fmt: skip
    """e(x, 0) + g (e(x, c) - e(x, 0)), both in one call (Ho & Salimans 2022), or what the model's guidance has instead.

    g = 1 everywhere needs one half. Context of prompts is (B or 1, L, D), of the empty prompt (1, L, D); t is a time
    step or int64 (B,), g float (B,); `memory` is what guidance keeps from step to step of a run.
    """
    if model.guidance is None and bool((weight == 1).all()):
        return model.predict(x, t, context).float()
    without, given = (made.float() for made in both(model, x, t, context, empty, memory))
    return without + weight.reshape(-1, 1, 1, 1) * (given - without)


def steps(
    model: Diffusion, context: Tensor, empty: Tensor, latents: Tensor, guidance: Tensor, sampler: Sampler
) -> Iterator[Tensor]:
    """Yield the latents after every step of the sampler, the last ones are clean; arguments as for `sample`."""
    scheduler = sampler.scheduler(model)
    x, memory = latents * scheduler.init_noise_sigma, dict[str, Tensor]()
    for t in scheduler.timesteps:
        noise = guided(model, scheduler.scale_model_input(x, t), t, context, empty, guidance, memory)
        x = scheduler.step(noise, t, x).prev_sample
        yield x


@torch.no_grad()
def sample(
    model: Diffusion, context: Tensor, empty: Tensor, latents: Tensor, guidance: Tensor, sampler: Sampler
) -> Tensor:
    """Clean latents (B, C, h, w) of standard normal ones, from `initial_latents`; contexts and g as for `guided`."""
    *_, clean = steps(model, context, empty, latents, guidance, sampler)
    return clean


@torch.no_grad()
def partial(
    model: Diffusion, context: Tensor, empty: Tensor, latents: Tensor, guidance: float, sampler: Sampler, stop: int
) -> Tensor:
    """Noisy latents after `stop` DDIM steps from noise, as ESD and its descendants make their x_t.

    `stop` is 0 (pure noise) to the number of the sampler's steps; no gradient flows.
    """
    weights = torch.full((len(latents),), guidance, device=latents.device)
    run = steps(model, context, empty, latents, weights, sampler)
    return latents if stop == 0 else next(islice(run, stop - 1, None))
