"""UCE: the keys and values of the cross-attention, edited in closed form."""

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from rub.config.hyperparameters import Hyper, Weight
from rub.models.diffusion.groups import parameter_group
from rub.models.diffusion.model import Diffusion
from rub.models.weights import freeze
from rub.registry import Card, method
from rub.tasks.text_to_image.context import Side, UnlearnContext

Tokens = Literal["last-to-end", "last"]
Scale = Annotated[Weight, Hyper("s_e, weight of the erased prompts", source="both codes")]
Ridge = Annotated[float, Hyper(
    "weight of staying near the original weights; below 1e-6 the solution would be rounding noise",
    source="both codes", ge=1e-6)]  # fmt: skip

CARD = Card(
    paper="Gandikota et al., Unified Concept Editing in Diffusion Models, WACV 2024, arXiv 2308.14761",
    equation="W = (lam W_0 + s_e sum_E v* c^T + s_p sum_P W_0 c c^T) (lam I + s_e sum_E c c^T + s_p sum_P c c^T)^-1,"
    " v* = W_0 c* (eq. 7): the minimum of s_e sum_E |W c - v*|^2 + s_p sum_P |W c - W_0 c|^2 + lam |W - W_0|^2",
    upstream="rohitgandikota/unified-concept-editing 35e91e2, train-scripts/train_erase.py (the paper's; its files are"
    " those that others evaluate); 4502388, trainscripts/uce_sd_erase.py (rewritten in 2025: tokens = last,"
    " preserve_scale 1)",
    differences=(
        "solved in float64, by a linear solve; upstream inverts in float32",
        "every v* is W_0 c*, so that W is W_0 times one matrix, which all layers share (technique: replace; the paper's"
        " code also has tensor, which projects)",
        "the experiment's prompts: those of the concept are erased, the first of every other concept is preserved;"
        " upstream erases the name alone and preserves what it is told",
        "no add_prompts, expand_prompts: templates around the names",
    ),
    passes=lambda **_: 0,
)


class Edit(NamedTuple):
    """Directions of an edit.

    Attributes:
        erased: every c of E, float64 (N, D).
        wanted: its c*, (N, D).
        preserved: every c of P, (M, D).
    """

    erased: Tensor
    wanted: Tensor
    preserved: Tensor


def encoded(model: Diffusion, prompts: Sequence[str], batch_size: int) -> tuple[Tensor, list[int]]:
    """Text encoder's output float64 (N, L, D) of N prompts, and the place of each one's last token before EOS.

    The empty prompt has none: its place is that of BOS.
    """
    found, places = [torch.empty(0, model.length, model.token_embeddings.shape[1], device=model.device).double()], []
    for start in range(0, len(prompts), batch_size):
        ids = model.tokenize(prompts[start : start + batch_size])
        places += ((ids == model.tokenizer.eos_token_id).int().argmax(1) - 1).tolist()
        found.append(model.encode(ids).double())
    return torch.cat(found), places


def directions(
    model: Diffusion, erased: Sequence[str], anchor: str, preserved: Sequence[str], tokens: Tokens, batch_size: int
) -> Edit:
    """What is edited for these prompts.

    ``last-to-end`` takes of an erased prompt the last token, EOS and all padding, each to the anchor's as far behind
    its own last token, and of a preserved prompt every token; of none, those of the empty prompt. ``last`` takes the
    last token of each, and preserves nothing where there is nothing.
    """
    (c, places), (own, (start,)) = (encoded(model, prompts, batch_size) for prompts in (erased, (anchor,)))
    if tokens == "last":
        kept, ends = encoded(model, preserved, batch_size)
        rows = torch.arange(len(c)), torch.arange(len(kept))
        return Edit(c[rows[0], places], own[:, start].expand(len(c), -1), kept[rows[1], ends])
    counts = [model.length - max(place, start) for place in places]
    return Edit(
        torch.cat([one[place : place + count] for one, place, count in zip(c, places, counts, strict=True)]),
        torch.cat([own[0, start : start + count] for count in counts]),
        encoded(model, preserved or ("",), batch_size)[0].flatten(0, 1),
    )


def edit_matrix(edit: Edit, *, lam: float, erase_scale: float, preserve_scale: float) -> Tensor:
    """E with W = W_0 E, float64 (D, D).

    E = (lam I + s_e sum_E c* c^T + s_p sum_P c c^T) (lam I + s_e sum_E c c^T + s_p sum_P c c^T)^-1.

    Args:
        edit: c, c* and what is preserved.
        lam: weight of staying at W_0, > 0.
        erase_scale: s_e.
        preserve_scale: s_p.

    Example:
        >>> one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> edit_matrix(Edit(one, other, one[:0]), lam=1.0, erase_scale=3.0, preserve_scale=1.0) @ one[0]
        tensor([0.2500, 0.7500])
    """
    c, wanted, kept = edit
    stay = lam * torch.eye(c.shape[1]).to(c) + preserve_scale * kept.T @ kept
    made: Tensor = torch.linalg.solve(stay + erase_scale * c.T @ c, stay + erase_scale * wanted.T @ c, left=False)
    return made


def apply_edit(model: Diffusion, edit: Tensor) -> None:
    """Multiply every key and value matrix of the cross-attention by an edit, in float64."""
    for name in parameter_group(model, "esd-x-strict"):
        weight = model.get_parameter(name)
        if weight.ndim == 2:  # a bias, where there is one, adds the same to v* and to W c
            weight.copy_(weight.double() @ edit)


@method("uce", task="text-to-image", card=CARD)
@torch.no_grad()
def uce(
    model: Diffusion, forget: Side, retain: Side, context: UnlearnContext, *,
    erase_scale: Scale = 1.0,
    preserve_scale: Annotated[Weight, Hyper("s_p, weight of the preserved prompts",
        source="the paper's code; 1 in the rewrite")] = 0.1,
    lam: Ridge = 0.5,
    tokens: Annotated[Tokens, Hyper(
        "which tokens are edited: `last-to-end`, the last of the name, EOS and padding; `last`: the last of the name",
        source="the paper's code; the rewrite")] = "last-to-end",
) -> Diffusion:  # fmt: skip
    """Edit the keys and values of the cross-attention so that the concept's tokens give those of the anchor.

    The forget side's prompts are erased, the retain side's are preserved; the anchor "" stands for the empty prompt.

    Nothing is trained and nothing is random.
    """
    freeze(model)
    edit = directions(model, forget.prompts, context.anchor, retain.prompts, tokens, context.batch_size)
    apply_edit(model, edit_matrix(edit, lam=lam, erase_scale=erase_scale, preserve_scale=preserve_scale))
    return model
