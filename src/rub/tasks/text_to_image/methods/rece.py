"""RECE: UCE, then again on the embedding that still means the concept, found in closed form."""

from typing import Annotated

import torch
from torch import Tensor

from rub.config.hyperparameters import Hyper, Positive, Weight
from rub.models.diffusion.groups import parameter_group
from rub.models.diffusion.model import Diffusion
from rub.models.weights import freeze
from rub.registry import Card, method
from rub.tasks.text_to_image.context import Side, UnlearnContext
from rub.tasks.text_to_image.methods.uce import Edit, Ridge, Scale, apply_edit, directions, edit_matrix, encoded

CARD = Card(
    paper="Gong et al., Reliable and Efficient Concept Erasure of Text-to-Image Diffusion Models, ECCV 2024,"
    " arXiv 2407.12383",
    equation="W_1 = UCE(W_0); then, so often: c' = (reg I + sum W_i^T W_i)^-1 (sum W_i^T W_0) c over all key and value"
    " matrices, the minimum of sum |W_i c' - W_0 c|^2 + reg |c'|^2; W_{i+1} = UCE(W_i) with c' erased",
    upstream="CharlesGong12/RECE 10ea80d, train_object.py and utils/embedding_calculation/close_form_emb.py"
    " (close_regzero)",
    differences=(
        "the first edit has the weights lam and s of the others; upstream starts from a file of its UCE script, with"
        " lam 0.5",
        "solved in float64, by linear solves; upstream inverts in float32",
        "the experiment's prompts, as for uce; upstream erases the name alone, and preserves the empty prompt beside"
        " what it is told",
        "the result is what the last round left; upstream keeps the round whose pictures show the concept least",
    ),
    passes=lambda **_: 0,
)


def surviving(now: list[Tensor], start: list[Tensor], ridge: float) -> Tensor:
    """C with c' = C c, float64 (D, D): what to ask a model for to get what the original gave for c.

    C = (ridge I + sum_i W_i^T W_i)^-1 sum_i W_i^T W_0i.

    Args:
        now: weights W_i, each (out, D).
        start: the original's W_0i.
        ridge: weight of |c'|^2, > 0.

    Example:
        >>> surviving([torch.eye(2)], [torch.tensor([[0.0, 1.0], [1.0, 0.0]])], 1e-12) @ torch.tensor([1.0, 0.0])
        tensor([0., 1.])
    """
    left = ridge * torch.eye(now[0].shape[1]).to(now[0])
    right = torch.zeros_like(left)
    for weight, before in zip(now, start, strict=True):
        left, right = left + weight.T @ weight, right + weight.T @ before
    made: Tensor = torch.linalg.solve(left, right)
    return made


@method("rece", task="text-to-image", card=CARD)
@torch.no_grad()
def rece(
    model: Diffusion, forget: Side, retain: Side, context: UnlearnContext, *,
    rounds: Annotated[int, Hyper("edits after the first", source="upstream for objects; 3 for nudity", ge=1)] = 1,
    ridge: Annotated[Positive, Hyper("reg, weight of a small c'",
        source="upstream for church and garbage truck; 0.1 for parachute and nudity")] = 1e-3,
    erase_scale: Scale = 1.0,
    preserve_scale: Annotated[Weight, Hyper("s_p, weight of the preserved prompts", source="upstream")] = 0.1,
    lam: Ridge = 0.1,
) -> Diffusion:  # fmt: skip
    """Edit the cross-attention as `uce` does, then for what still gives the concept's keys and values.

    The forget side's prompts are erased, the retain side's are preserved; the anchor "" stands for the empty prompt.

    Nothing is trained and nothing is random.
    """
    freeze(model)
    weights = [model.get_parameter(name) for name in parameter_group(model, "esd-x-strict")]
    weights = [weight for weight in weights if weight.ndim == 2]
    start = [weight.double() for weight in weights]
    scales = {"lam": lam, "erase_scale": erase_scale, "preserve_scale": preserve_scale}
    edit = directions(model, forget.prompts, context.anchor, retain.prompts, "last-to-end", context.batch_size)
    apply_edit(model, edit_matrix(edit, **scales))
    concept, wanted = (
        encoded(model, prompts, context.batch_size)[0] for prompts in (forget.prompts, (context.anchor,))
    )
    wanted = wanted.expand(len(concept), -1, -1).flatten(0, 1)
    for _ in context.counted(rounds):
        now = [weight.double() for weight in weights]
        found = concept.flatten(0, 1) @ surviving(now, start, ridge).T
        apply_edit(model, edit_matrix(Edit(found, wanted, edit.preserved), **scales))
    return model
