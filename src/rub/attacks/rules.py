"""Rules of search: how iterates move, for any task whose probes are `State` tensors ``x`` around ``clean``."""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from rub.attacks.linf import accumulate, adam_direction, column, review_steps, should_halve
from rub.attacks.regions import Region, region_of
from rub.attacks.search import State
from rub.pipeline.rng import keyed_uniform

Distribution = Literal["sign", "uniform"]


def uniform_like(clean: Tensor, seed: int, stream: str, ids: Tensor, counter: Tensor | int) -> Tensor:
    """Keyed uniform numbers in [0, 1) in the shape of `clean` (B, ...); see `rub.pipeline.rng.keyed_uniform`."""
    return keyed_uniform(seed, stream, ids, counter, clean[:1].numel()).reshape(clean.shape)


class SignDescent:
    """x <- P(x - step_size * s(g)), g the gradient and s(g) its sign, or in an L2 ball g / ||g||_2."""

    gradient = True

    def __init__(self, *, eps: float | Region, step_size: float) -> None:
        """Radius of the L-infinity ball, or another region, and step size, both in pixel units."""
        self.region, self.step_size = region_of(eps), step_size

    def begin(self, state: State) -> None:
        """Keep nothing."""

    def move(self, state: State, loss: Tensor, gradient: Tensor | None) -> None:
        """Take one projected step."""
        assert gradient is not None
        state["x"] = self.region.step(state["x"], gradient, state["clean"], self.step_size)


class MomentumDescent:
    """x <- P(x - eta_t s(v)), v the running average of normalised gradients, s(v) as in `SignDescent`.

    eta_t = eps / 4 * (1 + cos(pi t / steps)): from half of eps to 0. Large first steps cross the ball at once; small
    last ones settle.
    """

    gradient = True
    momentum = 0.75

    def __init__(self, *, eps: float | Region, steps: int) -> None:
        """Radius in pixel units, or a region, and the number of steps in which the step size falls to 0."""
        self.region, self.steps = region_of(eps), steps

    def begin(self, state: State) -> None:
        """Start with no velocity."""
        state["velocity"] = torch.zeros_like(state["x"])

    def move(self, state: State, loss: Tensor, gradient: Tensor | None) -> None:
        """Take one projected step."""
        assert gradient is not None
        velocity = state["velocity"] = accumulate(state["velocity"], gradient, self.momentum)
        eta = self.region.eps / 4 * (1 + (torch.pi / self.steps * state["t"]).cos())
        state["x"] = self.region.step(state["x"], velocity, state["clean"], column(eta, velocity))


class AdamDescent:
    """x <- P(x - lr * Adam's direction), with moments of each sample's own."""

    gradient = True

    def __init__(self, *, lr: float, confine: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Learning rate in pixel units, and P: (x, clean) -> the nearest point that the budget allows."""
        self.lr, self.confine = lr, confine

    def begin(self, state: State) -> None:
        """Start with zero moments."""
        state["first"], state["second"] = torch.zeros_like(state["x"]), torch.zeros_like(state["x"])

    def move(self, state: State, loss: Tensor, gradient: Tensor | None) -> None:
        """Take one step."""
        assert gradient is not None
        moments = state["first"], state["second"]
        direction, (state["first"], state["second"]) = adam_direction(gradient, moments, state["t"] + 1)
        state["x"] = self.confine(state["x"] - self.lr * direction, state["clean"])


class AdaptiveDescent:
    """APGD's iteration with a step size for each sample (Croce & Hein 2020, algorithm 1).

    z = P(x - eta s(g)); x <- P(x + alpha (z - x) + (1 - alpha)(x - x_before)), alpha .75, and 1 for the first step.
    """

    gradient = True

    def __init__(self, *, eps: float | Region, steps: int, rho: float, device: torch.device) -> None:
        """Lay out the reviews: for every step, the number of steps since the last one, or 0 for none."""
        self.region, self.rho = region_of(eps), rho
        self.interval = torch.zeros(steps + 1, dtype=torch.int64, device=device)
        for before, now in pairwise(review_steps(steps)):
            self.interval[now] = now - before

    def begin(self, state: State) -> None:
        """Start with step size 2 eps and nothing improved."""
        row = state["row"]
        infinite = torch.full_like(row, torch.inf, dtype=torch.float32)
        state["before"] = state["x"]
        state["eta"] = torch.full_like(infinite, 2 * self.region.eps)
        state["improvements"], state["unchanged"] = torch.zeros_like(row), torch.zeros_like(row, dtype=torch.bool)
        state["last_loss"] = state["low"] = state["low_before"] = infinite
        state["low_x"], state["low_gradient"] = state["x"], torch.zeros_like(state["x"])

    def move(self, state: State, loss: Tensor, gradient: Tensor | None) -> None:
        """Note the present point, review the step size where it is due, and take one step."""
        assert gradient is not None
        lower = loss < state["low"]
        state["low"] = torch.where(lower, loss, state["low"])
        state["low_x"] = torch.where(column(lower, gradient), state["x"], state["low_x"])
        state["low_gradient"] = torch.where(column(lower, gradient), gradient, state["low_gradient"])
        state["improvements"] = state["improvements"] + ((loss < state["last_loss"]) & (state["t"] > 0))
        state["last_loss"] = loss

        back = column(self._review(state), gradient)
        x, before = torch.where(back, state["low_x"], state["x"]), state["before"]
        gradient = torch.where(back, state["low_gradient"], gradient)
        alpha = column(torch.where(state["t"] == 0, 1.0, 0.75), x)
        state["before"] = x
        z = self.region.step(x, gradient, state["clean"], column(state["eta"], x))
        state["x"] = self.region.confine(x + alpha * (z - x) + (1 - alpha) * (x - before), state["clean"])

    def _review(self, state: State) -> Tensor:
        interval = self.interval[state["t"]]
        due = interval > 0
        stalled = should_halve(
            state["improvements"], interval, self.rho, state["unchanged"], state["low"], state["low_before"]
        )
        halve = due & stalled
        state["eta"] = torch.where(halve, state["eta"] / 2, state["eta"])
        state["unchanged"] = torch.where(due, ~halve, state["unchanged"])
        state["low_before"] = torch.where(due, state["low"], state["low_before"])
        state["improvements"] = torch.where(due, 0, state["improvements"])
        return halve


class Draw:
    """x <- P(clean + d) with a fresh random d of the region at every step; without a bound, uniform on [0, 1]."""

    gradient = False

    def __init__(self, *, eps: float | Region | None, seed: int, distribution: Distribution) -> None:
        """Radius in pixel units or region (None: no bound), seed, and whether pixels are +-eps or in between.

        In an L2 ball both are points of its sphere: of pixels that change equally much, or of a normal vector.
        """
        self.region = None if eps is None else region_of(eps)
        self.seed, self.distribution = seed, distribution

    def begin(self, state: State) -> None:
        """Keep nothing."""

    def move(self, state: State, loss: Tensor, gradient: Tensor | None) -> None:
        """Draw the next point of each sample."""
        clean = state["clean"]
        u = uniform_like(clean, self.seed, "noise", state["id"], state["t"])
        if self.region is None:
            state["x"] = u
            return
        if self.distribution == "sign":
            u = (u >= 0.5).to(u.dtype)
        state["x"] = self.region.confine(clean + self.region.draw(u), clean)
