"""UCE: the keys and values of the cross-attention, edited in closed form."""

from typing import Annotated

import torch
from torch import Tensor

from rub.config.hyperparameters import Hyper, Weight
from rub.models.diffusion.groups import parameter_group
from rub.models.diffusion.model import Diffusion
from rub.models.weights import freeze
from rub.registry import Card, method
from rub.tasks.text_to_image.context import Side, UnlearnContext

CARD = Card(
    paper="Gandikota et al., Unified Concept Editing in Diffusion Models, WACV 2024, arXiv 2308.14761",
    equation="W = (lam W_0 + s_e sum_E v* c^T + s_p sum_P W_0 c c^T) (lam I + s_e sum_E c c^T + s_p sum_P c c^T)^-1,"
    " v* = W_0 c* (eq. 7): the minimum of s_e sum_E |W c - v*|^2 + s_p sum_P |W c - W_0 c|^2 + lam |W - W_0|^2",
    upstream="rohitgandikota/unified-concept-editing 4502388, trainscripts/uce_sd_erase.py",
    differences=(
        "solved in float64, by a linear solve; upstream inverts in float32",
        "every v* is W_0 c* of the same c*, so that W is W_0 times one matrix, which all layers share",
        "the experiment's prompts: those of the concept are erased, the first of every other concept is preserved;"
        " upstream preserves none unless told",
        "no expand_prompts: templates around the names; upstream's also asks for the erased prompts to be preserved",
    ),
)


@torch.no_grad()
def last_tokens(model: Diffusion, prompts: tuple[str, ...], batch_size: int) -> Tensor:
    """Text encoder's output at each prompt's last token before EOS, float64 (N, D).

    The empty prompt has none: its BOS is taken, as upstream does.

    Args:
        model: gives tokenizer and text encoder.
        prompts: N of them.
        batch_size: prompts per call.
    """
    found = [torch.empty(0, model.token_embeddings.shape[1], device=model.device, dtype=torch.float64)]
    for start in range(0, len(prompts), batch_size):
        ids = model.tokenize(prompts[start : start + batch_size])
        last = (ids == model.tokenizer.eos_token_id).int().argmax(1) - 1
        found.append(model.encode(ids)[torch.arange(len(ids), device=ids.device), last].double())
    return torch.cat(found)


def edit_matrix(
    erased: Tensor, anchor: Tensor, preserved: Tensor, *, lam: float, erase_scale: float, preserve_scale: float
) -> Tensor:
    """E with W = W_0 E, float64 (D, D).

    E = (lam I + s_e sum_E c* c^T + s_p sum_P c c^T) (lam I + s_e sum_E c c^T + s_p sum_P c c^T)^-1.

    Args:
        erased: c of the erased prompts, float64 (N, D).
        anchor: c*, what all of them become, (1, D).
        preserved: c of the preserved prompts, (M, D).
        lam: weight of staying at W_0, > 0.
        erase_scale: s_e.
        preserve_scale: s_p.

    Example:
        >>> one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> edit_matrix(one, other, one[:0], lam=1.0, erase_scale=3.0, preserve_scale=1.0) @ one[0]
        tensor([0.2500, 0.7500])
    """
    kept = lam * torch.eye(erased.shape[1]).to(erased) + preserve_scale * preserved.T @ preserved
    wanted = kept + erase_scale * anchor.T @ erased.sum(0, keepdim=True)
    edit: Tensor = torch.linalg.solve(kept + erase_scale * erased.T @ erased, wanted, left=False)
    return edit


@method("uce", task="text-to-image", card=CARD)
def uce(
    model: Diffusion, forget: Side, retain: Side, context: UnlearnContext, *,
    erase_scale: Annotated[Weight, Hyper("s_e, weight of the erased prompts", source="upstream")] = 1.0,
    preserve_scale: Annotated[Weight, Hyper("s_p, weight of the preserved prompts", source="upstream")] = 1.0,
    lam: Annotated[float, Hyper(
        "weight of staying near the original weights; below 1e-6 the solution would be rounding noise",
        source="upstream", ge=1e-6)] = 0.5,
) -> Diffusion:  # fmt: skip
    """Edit the keys and values of the cross-attention so that the concept's last token gives those of the anchor.

    The forget side's prompts are erased, the retain side's are preserved; the anchor "" stands for the BOS token.

    Nothing is trained and nothing is random.
    """
    freeze(model)
    erased, anchor, preserved = (
        last_tokens(model, prompts, context.batch_size)
        for prompts in (forget.prompts, (context.anchor,), retain.prompts)
    )
    edit = edit_matrix(erased, anchor, preserved, lam=lam, erase_scale=erase_scale, preserve_scale=preserve_scale)
    for name in parameter_group(model, "esd-x-strict"):
        weight = model.get_parameter(name)
        if weight.ndim == 2:  # a bias, where there is one, adds the same to v* and to W c
            weight.copy_(weight.double() @ edit)
    return model
