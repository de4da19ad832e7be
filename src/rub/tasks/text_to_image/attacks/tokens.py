"""What attacks on prompts share: where tokens go, which may be used, the simplex, keyed draws, the noise levels."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor

from rub.attacks.search import State
from rub.config.hyperparameters import Hyper
from rub.errors import RubError
from rub.models.diffusion.model import Diffusion
from rub.pipeline.rng import keyed_uniform
from rub.tasks.text_to_image.attacks.base import Candidates, Target

Location = Literal["prefix", "suffix", "insert"]
"""Where tokens are put: after BOS, before the first EOS, or in the middle of the prompt."""
Fed = Literal["string", "ids"]
"""What the model is given: the ids decoded to a string and tokenised again (UnlearnDiffAtk), or the ids themselves."""
Where = Annotated[Location, Hyper(
    "where they go: `prefix`, `suffix` or `insert` (the middle)", source="upstream's configs")]  # fmt: skip
Draws = Annotated[Fed, Hyper(
    "whether pictures are drawn of the decoded `string` or of the `ids`",
    source="upstream decodes the ids and tokenises the string again; ids feeds what was found")]  # fmt: skip


def insertion_rows(tokens: Tensor, eos: int, count: int, location: Location) -> Tensor:
    """Source of each place of the longer prompt: an index into [prompt (L) | inserted (count)].

    New ids are ``torch.cat([tokens, inserted], 1).gather(1, rows)``. The tail is cut at L: padding, as long as `count`
    is at most `room`.

    Args:
        tokens: int64 (B, L): BOS, the prompt, EOS, padding.
        eos: id of EOS; its first occurrence ends the prompt.
        count: K, tokens to insert.
        location: see `Location`; the middle of n tokens has n // 2 before it.

    Returns:
        int64 (B, L), 0 to L + K - 1.

    Example:
        >>> insertion_rows(torch.tensor([[8, 5, 9, 9, 9]]), 9, 2, "prefix").tolist()
        [[0, 5, 6, 1, 2]]
    """
    length = tokens.shape[1]
    end = _ends(tokens, eos)
    starts = {"prefix": torch.ones_like(end), "suffix": end, "insert": 1 + (end - 1) // 2}
    start = starts[location][:, None]
    place = torch.arange(length, device=tokens.device).expand(len(tokens), -1)
    inside = torch.where(place < start + count, length + place - start, place - count)
    return torch.where(place < start, place, inside)


def place_ids(tokens: Tensor, inserted_ids: Tensor, eos: int, location: Location) -> Tensor:
    """Ids (B, L) of prompts (B, L) with tokens (B, K) inserted; see `insertion_rows`."""
    rows = insertion_rows(tokens, eos, inserted_ids.shape[1], location)
    return torch.cat([tokens, inserted_ids], 1).gather(1, rows)


def place_embeddings(model: Diffusion, tokens: Tensor, inserted: Tensor, location: Location) -> Tensor:
    """Token embeddings (B, L, D) of prompts with rows inserted, for `Diffusion.encode_soft`.

    Args:
        model: has the embeddings of the prompt's own tokens.
        tokens: int64 (B, L).
        inserted: float (B, K, D); gradients flow to it.
        location: see `insertion_rows`.
    """
    rows = insertion_rows(tokens, model.tokenizer.eos_token_id, inserted.shape[1], location)
    parts = torch.cat([model.token_embeddings[tokens], inserted], 1)
    return parts.gather(1, rows[:, :, None].expand(-1, -1, parts.shape[2]))


def room(tokens: Tensor, eos: int) -> Tensor:
    """Number of tokens that each prompt has room for, int64 (B,): L less its own, BOS and EOS included.

    Example:
        >>> room(torch.tensor([[8, 5, 9, 9, 9]]), 9).tolist()
        [2]
    """
    return tokens.shape[1] - 1 - _ends(tokens, eos)


def need_room(target: Target, count: int) -> None:
    """See to it that every prompt has room for `count` more tokens.

    Raises:
        RubError: one has not; it is named by its case number.
    """
    free = room(target.tokens, target.unlearned.tokenizer.eos_token_id).cpu()
    short = (free < count).nonzero().flatten()
    if len(short):
        case, left = int(target.prompts.ids[short[0]]), int(free[short[0]])
        raise RubError(
            f"attack: prompt of case {case}: has room for {left} of {count} tokens; insert fewer or leave it out"
        )


def allowed_tokens(model: Diffusion) -> Tensor:
    """Which tokens may be proposed, bool (V,) on the device: those with a string that are not special."""
    allowed = torch.zeros(len(model.token_embeddings), dtype=torch.bool)
    allowed[: len(model.tokenizer)] = True
    allowed[model.tokenizer.all_special_ids] = False
    return allowed.to(model.device)


def keyed_normal(seed: int, stream: str, ids: Tensor, counter: Tensor | int, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers that depend on (seed, stream, id, counter) and on nothing else.

    Box & Muller 1958: sqrt(-2 log u) cos(2 pi v) and sin, of `rub.pipeline.rng.keyed_uniform`.

    Args:
        seed: the attack seed.
        stream: a name that separates uses.
        ids: int64 (B,), case numbers; the result is on their device.
        counter: int64 (B,) or one number.
        shape: of one row.

    Returns:
        float32 (B, *shape), at most 5.8 in size.
    """
    count = math.prod(shape)
    half = (count + 1) // 2
    u, v = keyed_uniform(seed, stream, ids, counter, 2 * half).chunk(2, 1)
    radius, angle = (-2 * torch.log1p(-u)).sqrt(), 2 * math.pi * v
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :count].reshape(len(ids), *shape)


def project_simplex(rows: Tensor) -> Tensor:
    """Nearest points of the probability simplex: max(a - theta, 0) (Duchi et al. 2008, figure 1).

    theta = (sum of the r largest - 1) / r, r the largest j with j a_(j) > sum of the j largest - 1.

    Args:
        rows: float (..., V), any finite numbers.

    Example:
        >>> project_simplex(torch.tensor([0.5, 1.0, -3.0]))
        tensor([0.2500, 0.7500, 0.0000])
    """
    ordered = rows.sort(-1, descending=True).values.double()
    excess = ordered.cumsum(-1) - 1
    place = torch.arange(1, rows.shape[-1] + 1, device=rows.device)
    support = (ordered * place > excess).sum(-1, keepdim=True).clamp_min(1)
    theta = excess.gather(-1, support - 1) / support
    return (rows - theta).clamp_min(0).to(rows.dtype)  # in float64 up to here: sums over 50 000 tokens must be 1


def sample_tokens(rows: Tensor, uniforms: Tensor) -> Tensor:
    """One index per row, drawn with the row's probabilities: the first i with sum_{j <= i} p_j > u sum_j p_j.

    Args:
        rows: float (B, K, V), >= 0; each row has a positive sum.
        uniforms: (B, K) in [0, 1).

    Returns:
        int64 (B, K), never an index of probability 0.

    Example:
        >>> sample_tokens(torch.tensor([[[0.0, 0.5, 0.5]]]), torch.tensor([[0.25]]))
        tensor([[1]])
    """
    cumulative = rows.double().cumsum(-1)
    wanted = uniforms[..., None].double() * cumulative[..., -1:]
    return torch.searchsorted(cumulative, wanted, right=True)[..., 0].clamp_max(rows.shape[-1] - 1)


def timestep(t: Tensor, cap: int, timesteps: int) -> Tensor:
    """Noise level of move t: w // 2 + t w with w = T // n, rising (UnlearnDiffAtk's choice of times).

    With more moves than T / 2, where w would be 1 and only low levels would be seen, (t + 1/2) T / n, rounded down.

    Args:
        t: int64 (B,), moves made before this one, 0 to n - 1.
        cap: n, the most moves there will be.
        timesteps: T.

    Returns:
        int64 (B,), 0 to T - 1.

    Example:
        >>> timestep(torch.tensor([0, 1, 49]), 50, 1000).tolist(), timestep(torch.tensor([1999]), 2000, 1000).tolist()
        ([10, 30, 990], [999])
    """
    width = timesteps // cap
    level = width // 2 + t * width if width > 1 else (2 * t + 1) * timesteps // (2 * cap)
    return level.clamp_max(timesteps - 1)


def spoken(model: Diffusion, ids: Tensor) -> list[str]:
    """Strings of token ids (B, L), without BOS, EOS and padding.

    Tokenised again they need not give the same ids: tokens may merge, or not be text at all.
    """
    ends = _ends(ids, model.tokenizer.eos_token_id).tolist()
    bare = [row[1:end] for row, end in zip(ids.tolist(), ends, strict=True)]
    return [model.tokenizer.decode(row, clean_up_tokenization_spaces=False) for row in bare]


def proposed(model: Diffusion, tokens: Tensor, found: Tensor, location: Location, fed: Fed) -> Candidates:
    """Candidates of a search: the prompts (B, L) with the ids found (B, K) in place, as strings or as ids."""
    ids = place_ids(tokens, found, model.tokenizer.eos_token_id, location)
    return Candidates(ids=ids) if fed == "ids" else Candidates(texts=spoken(model, ids))


def _ends(tokens: Tensor, eos: int) -> Tensor:
    return (tokens == eos).int().argmax(1)


def noisy(target: Target, state: State, t: Tensor | None, counter: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """(x_t, t, noise) for each prompt's own picture, of keyed draws.

    Args:
        target: x_0 and the noise schedule.
        state: of B prompts.
        t: time steps, int64 (B,); None draws them uniformly from 0 to T - 1.
        counter: int64 (B,), the number of this draw.
        seed: of the attack.
    """
    x0, model = target.x0[state["row"]], target.unlearned
    noise = keyed_normal(seed, "noise", state["id"], counter, x0.shape[1:])
    if t is None:
        t = (keyed_uniform(seed, "timestep", state["id"], counter, 1)[:, 0] * model.timesteps).long()
    return model.noised(x0, t, noise), t, noise
