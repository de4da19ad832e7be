"""The contract between the attack harness and an attack: `Target`, `Budget`, `Search`, `Candidates`, `Probes`.

An attack only searches. The harness admits prompts to the batch, asks the search to move, draws what it proposes,
lets the judge look, counts steps, and takes prompts that succeeded out of the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from rub.attacks.base import SearchContext
from rub.attacks.search import State
from rub.errors import RubError
from rub.models.diffusion.guidance import effective
from rub.models.diffusion.model import Diffusion
from rub.models.diffusion.sampling import Sampler
from rub.training.device import compiled_batches

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`Diffusion.predict` on (x, t, context), each with a row for every prompt."""


@dataclass(frozen=True)
class Prompts:
    """The evaluation prompts of a concept, in the columns of UnlearnDiffAtk's files.

    Attributes:
        ids: case numbers, int64 (N,), unique.
        texts: N prompts.
        seeds: evaluation seeds of the initial latents, int64 (N,).
        guidance: weights of classifier-free guidance, float32 (N,).
    """

    ids: Tensor
    texts: tuple[str, ...]
    seeds: Tensor
    guidance: Tensor

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, rows: Tensor | list[int]) -> "Prompts":
        """Prompts at these positions."""
        index = torch.as_tensor(rows, dtype=torch.int64)
        return Prompts(
            self.ids[index], tuple(self.texts[row] for row in index.tolist()), self.seeds[index], self.guidance[index]
        )


@dataclass(frozen=True)
class Budget:
    """The cap of attack steps: evaluations after the clean one. Its name in records is the number.

    Example:
        >>> str(Budget(100))
        '100'
    """

    cap: int

    def __post_init__(self) -> None:
        if self.cap < 1:
            raise RubError(f"budget {self.cap}: should be at least 1 attack step")

    def __str__(self) -> str:
        return str(self.cap)


@dataclass(frozen=True)
class Target:
    """What an attack aims at; row i of every tensor belongs to prompt i.

    Attributes:
        unlearned: e_u, frozen, in eval mode.
        original: e_0, likewise; a black-box attack may use its text encoder only.
        prompts: the N prompts.
        tokens: int64 (N, L) on the device, their token ids.
        x0: float32 (N, C, h, w) on the device, latents of the original's own picture for each prompt; where a picture
            of another concept stands beside an attack (`rub.registry.Card.picture`), those instead.
        concept: the prompt that names the concept, such as ``"church"``.
        anchor: the prompt that stands for its absence, such as ``""``.
    """

    unlearned: Diffusion
    original: Diffusion
    prompts: Prompts
    tokens: Tensor
    x0: Tensor
    concept: str
    anchor: str = ""


@dataclass(frozen=True, kw_only=True)
class AttackContext(SearchContext):
    """What an attack receives besides target and budget; batches are of prompts.

    Attributes:
        sampler: how its pictures are drawn.
    """

    batch_size: int = 16
    sampler: Sampler = field(default_factory=Sampler)

    def predictor(self, model: Diffusion) -> Predict:
        """Noise prediction of a model that guides a search; through the model's own guidance where it has one."""
        if model.guidance is not None:
            with torch.no_grad():  # once, not at every gradient step
                empty = model.context([""])
            return partial(effective, model, empty)
        return compiled_batches(model.predict, self.batch_size, self.compile)


@dataclass(frozen=True)
class Candidates:
    """What a search proposes for the B prompts in its state. What is None is as without an attack.

    Attributes:
        ids: token ids fed to the text encoder, int64 (B, L), BOS and padding included.
        texts: strings to be tokenised instead.
        embeddings: input embeddings of the text encoder instead, float (B, L, D): a soft prompt.
        latents: initial latents, float (B, C, h, w).
        pictures: clean latents of image prompts, float (B, C, h, w): what the run starts from, with the prompt's own
            noise; see `rub.models.diffusion.sampling.redraw`.
        strength: of each image prompt, float (B,): the share of the sampler's steps that are run on it, 0 to 1.
        holes: where it is drawn anew, bool (B, h, w); everywhere, if None. Outside it stays what it is.
    """

    ids: Tensor | None = None
    texts: list[str] | None = None
    embeddings: Tensor | None = None
    latents: Tensor | None = None
    pictures: Tensor | None = None
    strength: Tensor | None = None
    holes: Tensor | None = None

    def select(self, rows: Tensor) -> "Candidates":
        """Candidates for the prompts at these positions, int64 (B,)."""
        tensors = {name: part for name, part in vars(self).items() if isinstance(part, Tensor)}
        chosen = {name: part[rows.to(part.device)] for name, part in tensors.items()}
        texts = None if self.texts is None else [self.texts[row] for row in rows.tolist()]
        return replace(self, texts=texts, **chosen)


class Search(Protocol):
    """How an attack moves: the only part in which attacks differ.

    `state` holds ``row`` (position in the target's tensors), ``id`` (case number) and ``t`` (moves made so far), int64
    (B,), and the search's own per-prompt tensors, each with leading axis B. No result may depend on who else is in it.
    """

    def begin(self, state: State) -> None:
        """Add the search's own entries to the state of prompts that start."""

    def move(self, state: State) -> int:
        """Advance every prompt by one attack step, and return how many gradient steps each took."""

    def propose(self, state: State) -> Candidates:
        """Candidates to be drawn and judged now."""


Attack = Callable[..., Search]
"""``attack(target, prompts, budget, context, **hyperparameters)``."""


@dataclass(frozen=True)
class Probes:
    """What an attack found for N prompts: the candidate that succeeded, or the last one.

    Attributes:
        step: int64 (N,): 0 success without an attack; 1 to cap; -1 never.
        score: float32 (N,), the judge's score of the picture.
        ids: int64 (N, L), token ids fed to the text encoder; those of the prompt itself where `embeddings` was fed.
        embeddings: float32 (N, L, D) or None.
        latents: float32 (N, C, h, w) or None: initial latents, where they are not those of the seed.
        pictures: float32 (N, C, h, w) or None: latents of image prompts; 0 where none was fed.
        strength: float32 (N,) or None: theirs; 1, with a hole of everything, where none was fed.
        holes: bool (N, h, w) or None: theirs.
        images: uint8 (N, channels, H, W).
        gradient_steps: int64 (N,).
        evaluations: int64 (N,), pictures drawn, the clean one included.
    """

    step: Tensor
    score: Tensor
    ids: Tensor
    embeddings: Tensor | None
    latents: Tensor | None
    pictures: Tensor | None
    strength: Tensor | None
    holes: Tensor | None
    images: Tensor
    gradient_steps: Tensor
    evaluations: Tensor

    def __len__(self) -> int:
        return len(self.step)
