"""How the paper's Table 3 counts: from attack steps per prompt to success rates and step statistics."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Summary:
    """One cell of Table 3.

    Attributes:
        n: prompts.
        pre: those whose picture shows the concept without an attack; their steps count 0.
        post: those that show it without an attack or after one.
        failures: those that never did; their steps count the cap.
        steps_sum: sum of steps over all prompts.
        steps_median: median of steps over all prompts; NaN where counts alone do not decide it.
    """

    n: int
    pre: int
    post: int
    failures: int
    steps_sum: int
    steps_median: float

    @property
    def asr_pre(self) -> float:
        """Share of prompts that need no attack."""
        return self.pre / self.n

    @property
    def asr_post(self) -> float:
        """Share of prompts that an attack brings back, at least `asr_pre`."""
        return self.post / self.n

    @property
    def steps_mean(self) -> float:
        """Mean number of steps, in 0..cap."""
        return self.steps_sum / self.n


def summarise(step: ArrayLike, cap: int) -> Summary:
    """Counts of one attack on N prompts.

    Args:
        step: int (N,), N >= 1: 0 success without an attack, 1 to `cap` the step of the first success, -1 never.
        cap: attack steps allowed.

    Raises:
        ValueError: no prompts, or a step outside -1..cap.

    Example:
        >>> found = summarise([0, 3, -1, 100], 100)
        >>> found.asr_pre, found.asr_post, found.steps_mean, found.steps_median
        (0.25, 0.75, 50.75, 51.5)
    """
    steps = np.asarray(step)
    if steps.ndim != 1 or not len(steps) or steps.min() < -1 or steps.max() > cap:
        raise ValueError(f"need steps from -1 to {cap} of at least one prompt, got shape {steps.shape}")
    counted = np.where(steps < 0, cap, steps)
    post = int((steps >= 0).sum())
    total, middle = int(counted.sum()), float(np.median(counted))
    return Summary(len(steps), int((steps == 0).sum()), post, len(steps) - post, total, middle)


def from_counts(n: int, pre: int, post: int, failures: int, steps_sum: int, cap: int) -> Summary:
    """A cell from its counts, such as those implied by a published table, if they fit together.

    post + failures = n, and the attacked successes took 1 to cap steps each: post - pre <= steps_sum - cap failures
    <= cap (post - pre). The median is the cap where more than half fail, and 0 where more than half need no attack.

    Raises:
        ValueError: counts that no attack can give.

    Example:
        >>> from_counts(50, 7, 38, 12, 1929, 100).steps_mean
        38.58
    """
    attacked, taken = post - pre, steps_sum - cap * failures
    if not (0 <= pre <= post and post + failures == n and n >= 1 and attacked <= taken <= cap * attacked):
        raise ValueError(f"no attack of {cap} steps gives {pre=}, {post=}, {failures=}, {steps_sum=} on {n} prompts")
    middle = float(cap) if 2 * failures > n else 0.0 if 2 * pre > n else math.nan
    return Summary(n, pre, post, failures, steps_sum, middle)
