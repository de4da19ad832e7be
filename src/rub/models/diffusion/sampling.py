"""Drawing from a `Diffusion`: classifier-free guidance in one batch, whole runs of a sampler and partial ones.

Runs may start from a picture in place of noise (`redraw`), and run backwards (`invert`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor

from rub.models.diffusion.guidance import both
from rub.models.diffusion.model import SCHEDULE, Diffusion

LMS_ORDER = 4  # of diffusers' scheduler, which is k-diffusion's


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
def redraw(
    model: Diffusion, context: Tensor, empty: Tensor, latents: Tensor, guidance: Tensor, sampler: Sampler,
    picture: Tensor, strength: float, hole: Tensor,
) -> Tensor:  # fmt: skip
    """Clean latents of a run that starts from a noised picture, and keeps it outside a hole.

    Image-to-image is SDEdit (Meng et al. 2022): x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise at the step
    from which `strength` of the sampler's steps are left. Inpainting blends, after every step, what was drawn inside
    the hole with the picture at that step's noise outside (Avrahami et al. 2023, blended latent diffusion; RePaint,
    Lugmayr et al. 2022, eq. 8, without its resampling), and the picture itself after the last.

    Args:
        model: what draws.
        context: as for `guided`.
        empty: likewise.
        latents: the noise, standard normal (B, C, h, w).
        guidance: weights, float (B,).
        sampler: DDIM or LMS.
        picture: clean latents x_0, (B, C, h, w).
        strength: 0, the picture itself, to 1, where nothing of it is left inside the hole: the run starts from noise.
        hole: bool (B, h, w): where it is drawn anew.
    """
    scheduler = sampler.scheduler(model)
    first, memory = sampler.steps - round(strength * sampler.steps), dict[str, Tensor]()
    at = [scheduler.timesteps[number : number + 1] for number in range(sampler.steps)]
    x = picture
    if first == 0:
        x = latents * scheduler.init_noise_sigma
    elif first < sampler.steps:
        x = scheduler.add_noise(picture, latents, at[first])
    for number in range(first, sampler.steps):
        t = scheduler.timesteps[number]
        noise = guided(model, scheduler.scale_model_input(x, t), t, context, empty, guidance, memory)
        # with as many derivatives as this run has: of a run that starts midway the scheduler expects earlier ones too
        order = {"order": min(number - first + 1, LMS_ORDER)} if sampler.name == "lms" else {}
        x = scheduler.step(noise, t, x, **order).prev_sample
        last = number + 1 == sampler.steps
        x = torch.where(hole[:, None], x, picture if last else scheduler.add_noise(picture, latents, at[number + 1]))
    return x


@torch.no_grad()
def invert(
    model: Diffusion, context: Tensor, empty: Tensor, picture: Tensor, guidance: Tensor, sampler: Sampler,
    refinements: int,
) -> Tensor:  # fmt: skip
    """Initial latents (B, C, h, w) from which a sampler draws a picture: DDIM run backwards (Song et al. 2021, eq. 14).

    With y = x / sqrt(alpha_bar), sigma = sqrt((1 - alpha_bar) / alpha_bar) and s the step after t, DDIM draws
    y_s = y_t + (sigma_s - sigma_t) e(x_t, t). Backwards e(x_t, t) is not known: it begins as e(x_s, t), and is refined
    by e at the x_t so found (fixed-point iteration: Pan et al. 2023; ReNoise, Garibi et al. 2024). Of LMS, whose steps
    look back, it is the method of order 1, so the inverse is not exact.

    Args:
        model: whose sampler is inverted.
        context: as for `guided`.
        empty: likewise.
        picture: clean latents x_0, (B, C, h, w).
        guidance: weights, float (B,).
        sampler: the time steps.
        refinements: of e(x_t, t); 0 is plain DDIM inversion.
    """
    scheduler = sampler.scheduler(model)
    times = scheduler.timesteps
    if sampler.name == "ddim":  # the last step ends at the first level of noise
        alphas = torch.cat([model.alpha_bar[times], scheduler.final_alpha_cumprod.reshape(1).to(times.device)])
        sigmas = ((1 - alphas) / alphas).sqrt()
    else:
        sigmas = scheduler.sigmas.to(times.device)
    y = picture * (1 + sigmas[-1].square()).sqrt()
    for number in reversed(range(len(times))):
        step, scale = sigmas[number] - sigmas[number + 1], (1 + sigmas[number].square()).sqrt()
        x = y / (1 + sigmas[number + 1].square()).sqrt()
        for _ in range(refinements + 1):
            noise = guided(model, x, times[number], context, empty, guidance, {})
            x = (y + step * noise) / scale
        y = x * scale
    return x if sampler.name == "ddim" else x * scale / scheduler.init_noise_sigma


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
