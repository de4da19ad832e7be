"""The contract between an attack and its harness, whatever the task: context, probes, claims and checks."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from rub.attacks.linf import better, column
from rub.errors import Diverged, RubError
from rub.pipeline.callback import Progress, silent
from rub.pipeline.checkpointing import Checkpointer


@dataclass(frozen=True, kw_only=True)
class SearchContext:
    """What every search may use besides its target and inputs.

    Attributes:
        seed: attack seed; the random stream of a sample depends on (seed, its id, step) and on nothing else.
        batch_size: samples that advance together; results do not depend on it.
        device: where the models are.
        progress: told of every step.
        checkpointer: keeps states of the search; see `rub.pipeline.checkpointing`.
        compile: whether the network that guides the search is compiled; see `rub.training.device`.
    """

    seed: int = 0
    batch_size: int = 64
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    progress: Progress = silent
    checkpointer: Checkpointer = field(default_factory=Checkpointer)
    compile: bool = False


@dataclass(frozen=True, kw_only=True)
class AttackContext(SearchContext):
    """What an attack on images may use besides its target and images.

    Attributes:
        ids: int64 (N,), the ids of the images.
        fast: search with a bfloat16 copy of the model and re-score in float32.
        start: probes of a smaller budget, or None: where the first start begins instead of the clean images; the
            harness keeps one where nothing better is found.
    """

    ids: Tensor
    fast: bool = True
    start: Tensor | None = None

    def select(self, rows: Tensor) -> "AttackContext":
        """The context of some of the images, int64 (B,)."""
        return replace(self, ids=self.ids[rows], start=None if self.start is None else self.start[rows])


@dataclass(frozen=True)
class Probes:
    """What a search found for N samples.

    Attributes:
        inputs: the best probe of each sample as it is stored: uint8 images (N, C, H, W), within eps; for inpainting
            deltas, int16 levels of 1/255 (float16 in pixel units for the budget ``"free"``), 0 on masked patches.
        loss: float32 (N,), D of each best probe.
        step: int64 (N,), first step at which the sample was recovered, counted over all restarts; -1 if never.
        success_curve: fraction of samples recovered after each step (per-sample best so far), length = steps + 1.
        loss_curve: mean over samples of the best D so far after each step, length = steps + 1.
        evaluations: forward passes of single images spent (a forward+backward pair counts once).
        converged: False when the last quarter of the steps was still improving.
        start: float32 (N,), D of the clean images; filled in by the harness.
    """

    inputs: Tensor
    loss: Tensor
    step: Tensor
    success_curve: tuple[float, ...]
    loss_curve: tuple[float, ...]
    evaluations: int
    converged: bool
    start: Tensor = field(default_factory=lambda: torch.empty(0))


Attack = Callable[..., Probes]


def merged(first: Probes, second: Probes) -> Probes:
    """Two attacks on the same images as one: each sample keeps its best probe, recovered first, then the lowest D.

    Steps and curves count the attacks one after another.
    """
    offset = len(first.success_curve) - 1
    hit, other_hit = first.step >= 0, second.step >= 0
    win = better(other_hit, second.loss, hit, first.loss)
    step = torch.where(hit, first.step, torch.where(other_hit, second.step + offset, -1))
    when = range(offset + 1, offset + len(second.success_curve))
    successes = [float(((step >= 0) & (step <= last)).double().mean()) for last in when]
    losses = [min(value, first.loss_curve[-1]) for value in second.loss_curve[1:]]
    return replace(
        first,
        inputs=torch.where(column(win, first.inputs), second.inputs, first.inputs),
        loss=torch.where(win, second.loss, first.loss),
        step=step,
        success_curve=(*first.success_curve, *successes),
        loss_curve=(*first.loss_curve, *losses),
        evaluations=first.evaluations + second.evaluations,
        converged=first.converged and second.converged,
    )


def require_finite(loss: Tensor, name: str) -> Tensor:
    """The losses (N,) of an attack's probes, on the CPU.

    Raises:
        Diverged: one is not finite.
    """
    if not torch.isfinite(loss).all():
        count = int((~loss.isfinite()).sum())
        raise Diverged(f"attack '{name}': the unlearned model's outputs are not finite on {count} images")
    return loss.cpu()


def check_request(model: nn.Module, images: Tensor, **parts: Tensor) -> None:
    """Refuse images and what belongs to them where they cannot be attacked.

    Args:
        model: the unlearned one.
        images: N of them.
        parts: what each image has one of, by name in the plural.

    Raises:
        RubError: lengths or types disagree, or the model is in training mode.
    """
    lengths = [len(part) for part in parts.values()]
    if images.dtype != torch.uint8 or images.ndim != 4 or {len(images), *lengths} != {len(images)} or not len(images):
        wanted, got = (f"{', '.join(most)} and {last}" for *most, last in (list(parts), [str(n) for n in lengths]))
        raise RubError(
            f"attack: wanted uint8 images (N, C, H, W), N >= 1, with N {wanted}; got {images.dtype}"
            f" {tuple(images.shape)} with {got}"
        )
    if any(module.training for module in model.modules()):
        raise RubError("attack: the unlearned model is in training mode; freeze it first (make_target does)")
