"""Scoring of images against a `Target`: a fast one that guides a search, and the float32 one that decides."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from rub.attacks.base import AttackContext
from rub.attacks.search import Score
from rub.data.samples import to_unit
from rub.errors import RubError
from rub.models.network import frozen_copy, outputs, with_float32_head
from rub.pipeline.checkpointing import AttributeState
from rub.tasks.classification.attacks.base import Target
from rub.tasks.classification.attacks.divergences import Aim, Divergence, Outputs
from rub.tasks.classification.attacks.divergences import divergence as divergence_of
from rub.training.device import compiled_batches


class Scorer(AttributeState):
    """Scores batches of images by their row in the target, and counts every image it passes through the model.

    Attributes:
        evaluations: forward passes of single images so far; a forward+backward pair counts once.
        is_exact: whether the guide is the float32 model itself, so that its word needs no second look.
    """

    changing = ("evaluations",)

    def __init__(self, target: Target, divergence: Divergence, context: AttackContext) -> None:
        """Prepare the float32 model and, in fast mode, its bfloat16 copy with folded batch normalisation.

        Raises:
            RubError: the divergence compares features that the target does not have.
        """
        if divergence == "features-l2" and not target.features.shape[1]:
            raise RubError("divergence 'features-l2': the target has no features of the original; use 'kl'")
        self.evaluations = 0
        self.is_exact = not (context.fast or context.compile)
        self._batch_size = context.batch_size
        self._device = context.device
        self._divergence = divergence
        self._aim = Aim(*(part.to(context.device) for part in (target.labels, target.reference, target.features)))
        self._model = target.model
        self._guide = with_float32_head(frozen_copy(target.model)) if context.fast else target.model
        compile = context.compile and divergence != "features-l2"
        self._steep = compiled_batches(self._guide, context.batch_size, compile)
        # Without the instructions, bfloat16 on a CPU is emulated and slower than float32.
        self._autocast = context.fast and (context.device.type != "cpu" or torch.cpu._is_avx512_bf16_supported())

    def guide(self, x: Tensor, rows: Tensor, *, gradient: bool) -> Score:
        """Score float images for the search: with the bfloat16 copy in fast mode, else with the float32 model.

        Args:
            x: float32 (B, C, H, W) in [0, 1].
            rows: int64 (B,), the samples of the target that they belong to.
            gradient: whether to return dD/dx, shape of x; parameters never receive gradients.
        """
        x = x.detach().requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
                found = self._outputs(self._steep if gradient else self._guide, x.view_as(x))  # profilers hook no leaf
            score = self._score(found, rows)
        slope = torch.autograd.grad(score.loss.sum(), x)[0] if gradient else None
        return Score(score.loss.detach(), score.recovered, slope)

    @torch.no_grad()
    def exact(self, images: Tensor, rows: Tensor) -> Score:
        """Score uint8 images (B, C, H, W) with the target's own model in float32, in batches; rows as in `guide`."""
        scores = [Score(self._aim.reference.new_empty(0), torch.empty(0, dtype=torch.bool, device=self._device))]
        for start in range(0, len(images), self._batch_size):
            part = slice(start, start + self._batch_size)
            x = to_unit(images[part].to(self._device))
            scores.append(self._score(self._outputs(self._model, x), rows[part].to(self._device)))
        return Score(torch.cat([score.loss for score in scores]), torch.cat([score.recovered for score in scores]))

    def _outputs(self, model: Callable[[Tensor], Tensor], x: Tensor) -> Outputs:
        if self._divergence != "features-l2":
            return Outputs(model(x).float(), None)
        logits, features = outputs(cast(nn.Module, model), x)
        return Outputs(logits.float(), features.float())

    def _score(self, found: Outputs, rows: Tensor) -> Score:
        self.evaluations += len(rows)
        aim = Aim(*(part[rows] for part in self._aim))
        return Score(divergence_of(self._divergence, found, aim), found.logits.argmax(1) == aim.labels)
