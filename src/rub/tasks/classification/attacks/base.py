"""The contract between the attack harness and an attack: `Target`, `Budget`, `AttackContext`, `Probes`."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rub.pipeline.callback import Progress, silent
from rub.pipeline.checkpointing import Checkpointer


@dataclass(frozen=True)
class Budget:
    """How far a probe may leave its image: ||delta||_inf <= eps, with eps in pixel space of [0, 1] images.

    Attributes:
        levels: eps in 1/255 steps, an integer >= 0 (8 means 8/255).
    """

    levels: int

    @property
    def eps(self) -> float:
        """Return eps as a fraction of the pixel range [0, 1]."""
        return self.levels / 255

    def __str__(self) -> str:
        """Return the name used in records, such as ``"8/255"``; ``"none"`` for 0."""
        return f"{self.levels}/255" if self.levels else "none"


@dataclass(frozen=True)
class Target:
    """What an attack aims at: the unlearned model, and what the original model said of the clean images.

    Attributes:
        model: the unlearned model f_u, frozen, in eval mode, giving raw logits of [0, 1] images.
        labels: int64 (N,), the label of each image: a probe that is classified so is *recovered*.
        reference: float32 (N, C), the original model's logits f(x) of the clean images, computed once.
        features: float32 (N, D), the original model's penultimate features of the clean images.
    """

    model: nn.Module
    labels: Tensor
    reference: Tensor
    features: Tensor


@dataclass(frozen=True)
class AttackContext:
    """Everything an attack may use besides its target and images.

    Attributes:
        seed: attack seed; the random stream of a sample depends on (seed, its id, restart) and on nothing else.
        ids: int64 (N,), the ids of the images.
        batch_size: images per forward pass; results do not depend on it.
        device: where the model lives.
        fast: search in bfloat16 with fused, channels-last weights and re-score in float32.
        start: uint8 (N, C, H, W) or None: probes found at a smaller budget, where the first start begins instead of
            the clean images; the harness keeps one where nothing better is found.
        progress: told of every step.
        checkpointer: keeps states of the search; see `rub.pipeline.checkpointing`.
        compile: whether the network that guides the search is compiled; see `rub.training.device`.
    """

    seed: int
    ids: Tensor
    batch_size: int = 256
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    fast: bool = True
    start: Tensor | None = None
    progress: Progress = silent
    checkpointer: Checkpointer = field(default_factory=Checkpointer)
    compile: bool = False


@dataclass(frozen=True)
class Probes:
    """What a search found.

    Attributes:
        images: uint8 (N, C, H, W): the best probe of each sample, on the 1/255 grid, within eps and [0, 255].
        loss: float32 (N,): D[f_u(probe), f(x)] of each best probe.
        step: int64 (N,): first step at which the sample was recovered, counted over all restarts; -1 if never.
        success_curve: fraction of samples recovered after each step (per-sample best so far), length = steps + 1.
        loss_curve: mean over samples of the best loss so far after each step, length = steps + 1.
        evaluations: forward passes of single images spent (a forward+backward pair counts once).
        converged: False when the last quarter of the steps was still improving.
    """

    images: Tensor
    loss: Tensor
    step: Tensor
    success_curve: tuple[float, ...]
    loss_curve: tuple[float, ...]
    evaluations: int
    converged: bool


Attack = Callable[..., Probes | Tensor]
