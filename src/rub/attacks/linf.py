"""Search over inputs inside an L-infinity ball, for any task: steps, adaptive step sizes, best so far.

Every function is per sample (leading axis N): no sample's result depends on its neighbours in a batch.
"""

from bisect import bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor


def project(x: Tensor, origin: Tensor, eps: float | Tensor) -> Tensor:
    """Nearest point with ||x - origin||_inf <= eps inside the pixel range [0, 1].

    Args:
        x: any point, shape (N, ...).
        origin: the centre of the ball, same shape, in [0, 1].
        eps: radius >= 0 in pixel units; a number, or a tensor that broadcasts against x.

    Example:
        >>> project(torch.tensor([0.9, 0.1]), torch.tensor([0.5, 0.0]), 0.25)
        tensor([0.7500, 0.1000])
    """
    delta = x - origin
    near = torch.minimum(torch.maximum(delta, -eps), eps) if isinstance(eps, Tensor) else delta.clamp(-eps, eps)
    return (origin + near).clamp(0.0, 1.0)


def sign_step(x: Tensor, direction: Tensor, origin: Tensor, step_size: float | Tensor, eps: float | Tensor) -> Tensor:
    """P(x - step_size * sign(direction)), the projected step down a loss (Madry et al. 2018, section 2.1).

    Args:
        x: current points, shape (N, ...), in [0, 1].
        direction: the gradient of the loss or its running average, same shape.
        origin: centres of the balls, same shape.
        step_size: in pixel units; a number, or a tensor that broadcasts against x.
        eps: radius in pixel units, likewise.
    """
    return project(x - step_size * direction.sign(), origin, eps)


def accumulate(velocity: Tensor, gradient: Tensor, momentum: float) -> Tensor:
    """Running direction momentum * velocity + gradient / mean|gradient|, per sample (Dong et al. 2018, eq. 6).

    Args:
        velocity: the running direction, shape (N, ...).
        gradient: the new gradient, same shape; an all-zero gradient adds nothing.
        momentum: decay factor >= 0.
    """
    scale = gradient.flatten(1).abs().mean(1).clamp_min(torch.finfo(gradient.dtype).tiny)
    return momentum * velocity + gradient / column(scale, gradient)


def review_steps(steps: int) -> tuple[int, ...]:
    """Steps at which APGD reviews its step size: w_j = ceil(p_j N) (Croce & Hein 2020, section 3.1).

    p_0 = 0, p_1 = .22, p_{j+1} = p_j + max(p_j - p_{j-1} - .03, .06).

    Example:
        >>> review_steps(100)
        (0, 22, 41, 57, 70, 80, 87, 93, 99)
    """
    percent = [0, 22]  # whole hundredths: 0.41 * 100 would round up to 42
    while (following := percent[-1] + max(percent[-1] - percent[-2] - 3, 6)) <= 100:
        percent.append(following)
    return tuple(dict.fromkeys(-(-p * steps // 100) for p in percent))


def should_halve(
    improvements: Tensor, interval: Tensor, rho: float, unchanged_step: Tensor, best: Tensor, best_before: Tensor
) -> Tensor:
    """Whether APGD halves its step size at a review (Croce & Hein 2020, conditions 1 and 2).

    1: fewer than rho * interval steps since the last checkpoint improved the loss;
    2: the last checkpoint left the step size unchanged and the best loss has not improved since.

    Args:
        improvements: int64 (N,), improving steps since the last checkpoint.
        interval: int64 (N,), steps since the last checkpoint.
        rho: fraction in [0, 1] (.75 in the paper).
        unchanged_step: bool (N,), the step size was not halved at the last checkpoint.
        best: float (N,), best loss now.
        best_before: float (N,), best loss at the last checkpoint.
    """
    return (improvements < rho * interval) | (unchanged_step & (best >= best_before))


def adam_direction(
    gradient: Tensor, moments: tuple[Tensor, Tensor], step: Tensor, betas: tuple[float, float] = (0.9, 0.999)
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Adam's direction m^ / (sqrt(v^) + 1e-8) and its new moments (Kingma & Ba 2015, algorithm 1).

    Args:
        gradient: shape (N, ...).
        moments: the running means m of the gradient and v of its square, same shape; zeros before the first step.
        step: int64 (N,), the number of this step of each sample, from 1.
        betas: decay of m and v, in [0, 1).

    Example:
        >>> zero = torch.zeros(1, 2)
        >>> adam_direction(torch.tensor([[4.0, -0.5]]), (zero, zero), torch.tensor([1]))[0].round(decimals=3)
        tensor([[ 1., -1.]])
    """
    first = betas[0] * moments[0] + (1 - betas[0]) * gradient
    second = betas[1] * moments[1] + (1 - betas[1]) * gradient.square()
    age = column(step, gradient)
    corrected = first / (1 - betas[0] ** age), second / (1 - betas[1] ** age)
    return corrected[0] / (corrected[1].sqrt() + 1e-8), (first, second)


def better(success: Tensor, loss: Tensor, best_success: Tensor, best_loss: Tensor) -> Tensor:
    """Whether a candidate beats the best so far: success first, then the lower loss.

    Args:
        success: bool (N,), of the candidate.
        loss: float (N,), of the candidate.
        best_success: bool (N,), of the best so far.
        best_loss: float (N,), of the best so far.

    Example:
        >>> yes, no = torch.tensor([True]), torch.tensor([False])
        >>> better(yes, torch.tensor([9.0]), no, torch.tensor([1.0]))
        tensor([True])
    """
    return (success & ~best_success) | ((success == best_success) & (loss < best_loss))


def has_converged(success_curve: Sequence[float], loss_curve: Sequence[float], moves: Sequence[float]) -> bool:
    """Whether a search has levelled off: not when the last quarter of its moves was still improving.

    A move is a step to another stored probe. Steps that change nothing once it is rounded are not counted, so that a
    search is not called done for resting between two moves. Still improving means that this quarter brought more than
    1 % of the total fall of the mean best loss while success rose by more than half a point (.005), or more than a
    tenth of the total fall while there was success left to gain (a search that descends at an even pace brings a
    quarter): it may have recovered nothing because it is on its way. Fewer than four moves have no quarter: such a
    search has only levelled off where nothing was left to gain.

    Args:
        success_curve: fraction of samples that succeeded after each step, per-sample best so far.
        loss_curve: mean best loss after each step, same length.
        moves: how often a probe had moved after each step, in the mean over the samples still searched; same length.

    Example:
        >>> has_converged([0.0, 0.5, 0.9, 0.9, 0.9], [4.0, 2.0, 1.0, 1.0, 1.0], range(5))
        True
        >>> has_converged([0.0, 0.1, 0.2, 0.3, 0.4], [4.0, 3.0, 2.0, 1.0, 0.0], range(5))
        False
        >>> has_converged([0.0, 0.3, 0.6, 0.6, 0.6], [4.0, 3.0, 2.0, 2.0, 2.0], [0, 1, 2, 2, 2])
        False
    """
    last = len(loss_curve) - 1
    gained = success_curve[last] >= 0.995
    if moves[last] < 4:
        return gained
    quarter = bisect_right(moves, 0.75 * moves[last]) - 1
    total = loss_curve[0] - loss_curve[last]
    fall = loss_curve[quarter] - loss_curve[last]
    rising = success_curve[last] - success_curve[quarter] > 0.005
    return not ((fall > 0.1 * total and not gained) or (fall > 0.01 * total and rising))


def column(values: Tensor, like: Tensor) -> Tensor:
    """Values (N,) with trailing axes of size 1, so that they broadcast against `like` (N, ...)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
