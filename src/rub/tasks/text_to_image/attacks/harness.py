"""The one way to run an attack: it searches; the harness draws, lets the judge look, and counts the steps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rub.attacks.search import Queue, Scores, State, run_queue
from rub.errors import Diverged, RubError
from rub.models.diffusion.model import Diffusion
from rub.models.diffusion.sampling import Sampler, initial_latents, redraw, sample
from rub.pipeline.checkpointing import AttributeState
from rub.tasks.text_to_image.attacks.base import (
    Attack,
    AttackContext,
    Budget,
    Candidates,
    Probes,
    Prompts,
    Search,
    Target,
)
from rub.training.device import reduced, tf32

Seen = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Pictures, uint8 (B, C, H, W) -> (hit, bool (B,); score, float (B,)): whether the judge sees the concept."""
NOTHING = {"embeddings": 0, "latents": 0, "pictures": 0, "strength": 1, "holes": 1}
"""What may be fed besides tokens, and the row of a prompt that was fed none: of an image prompt, noise everywhere."""


@dataclass(frozen=True)
class Drawing:
    """How a model's pictures are drawn and looked at: the same for the clean prompt and for every probe.

    Attributes:
        model: frozen.
        sampler: DDIM or LMS, and its steps.
        seen: what the judge says.
        precision: in which pictures are drawn; see `rub.training.device.reduced`. That the judge sees the concept is
            said of pictures in float32 alone.
    """

    model: Diffusion
    sampler: Sampler
    seen: Seen
    precision: str = "float32"

    def look(self, prompts: Prompts, fed: Candidates) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(pictures, ids, hit, score): what is drawn, see `draw`, and what the judge says of it, see `Seen`.

        Where the judge sees the concept in a picture of less precision, it is drawn again in float32, and that counts.
        """
        images, ids = self.draw(prompts, fed)
        hit, score = self.seen(images)
        if self.precision != "float32" and hit.any():
            rows = hit.nonzero().flatten().cpu()
            again = replace(self, precision="float32")
            images[rows], _, *told = again.look(prompts.select(rows), fed.select(rows))
            hit[hit.clone()], score[rows.to(score.device)] = told
        return images, ids, hit, score

    @torch.no_grad()
    def draw(self, prompts: Prompts, fed: Candidates) -> tuple[Tensor, Tensor]:
        """(pictures, uint8 (B, C, H, W); the token ids that were fed, int64 (B, L)).

        Args:
            prompts: B prompts, for their seeds and guidance.
            fed: what replaces their tokens or initial latents, or stands beside them; see `Candidates`.

        Raises:
            Diverged: the latents are not finite.
        """
        model = self.model
        ids = model.tokenize(fed.texts if fed.texts is not None else prompts.texts) if fed.ids is None else fed.ids
        context = model.encode(ids) if fed.embeddings is None else model.encode_soft(fed.embeddings)
        noise = initial_latents(model, prompts.seeds) if fed.latents is None else fed.latents
        guidance, empty = prompts.guidance.to(model.device), model.context([""])
        with reduced(self.precision, model.device):
            if fed.pictures is None:
                latents = sample(model, context, empty, noise, guidance, self.sampler)
            else:
                latents = self._redraw(context, empty, noise, guidance, fed)
            if not latents.isfinite().all():
                raise Diverged("the model's pictures are not finite")
            return model.to_images(latents), ids

    def _redraw(self, context: Tensor, empty: Tensor, noise: Tensor, guidance: Tensor, fed: Candidates) -> Tensor:
        """Latents drawn from image prompts; those of one strength begin at one step, and are drawn together."""
        assert fed.pictures is not None and fed.strength is not None
        made, holes = torch.empty_like(noise), fed.holes
        if holes is None:
            holes = torch.ones(len(noise), *noise.shape[2:], dtype=torch.bool, device=noise.device)
        for strength in sorted(set(fed.strength.tolist())):
            rows = fed.strength == strength
            made[rows] = redraw(
                self.model, context[rows], empty, noise[rows], guidance[rows], self.sampler, fed.pictures[rows],
                strength, holes[rows],
            )  # fmt: skip
        return made


def shapes_of(model: Diffusion, count: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that may be fed to a model for so many prompts, by their names in `Candidates`."""
    latents, ids = (count, *model.latent_shape), (count, model.length)
    soft = {"embeddings": (*ids, model.token_embeddings.shape[1]), "latents": latents}
    return {"ids": ids, **soft, "pictures": latents, "strength": (count,), "holes": (count, *model.latent_shape[1:])}


def make_target(
    original: Diffusion, unlearned: Diffusion, prompts: Prompts, pictures: Tensor, batch_size: int, *, concept: str,
    anchor: str = "",
) -> Target:  # fmt: skip
    """Target of an attack.

    Args:
        original: e_0, frozen.
        unlearned: e_u, frozen; of the same latents and tokenizer.
        prompts: N prompts.
        pictures: the original's own picture for each prompt, uint8 (N, C, H, W).
        batch_size: pictures encoded at once.
        concept: the prompt that names the concept.
        anchor: the prompt that stands for its absence.

    Raises:
        RubError: the models do not fit together.
    """
    shapes = [(model.latent_shape, model.length, len(model.token_embeddings)) for model in (original, unlearned)]
    if shapes[0] != shapes[1]:
        raise RubError(f"attack: latents, prompt length and vocabulary are {shapes[0]} and {shapes[1]}; should agree")
    parts = [original.to_latents(pictures[start : start + batch_size]) for start in range(0, len(pictures), batch_size)]
    tokens = unlearned.tokenize(prompts.texts)
    return Target(unlearned, original, prompts, tokens, torch.cat(parts), concept, anchor)


def run_attack(
    function: Attack, parameters: Mapping[str, Any], target: Target, budget: Budget, context: AttackContext,
    drawing: Drawing,
) -> Probes:  # fmt: skip
    """Run an attack on every prompt until the judge sees the concept, or for as many steps as the budget has.

    Step 0 is the clean prompt; step k the picture after k moves of the search. A prompt leaves the batch at its first
    success, and another one takes its place.

    Args:
        function: the attack; called as ``function(target, prompts, budget, context, **parameters)``.
        parameters: its hyperparameters.
        target: models, prompts, and the original's pictures.
        budget: the cap.
        context: seed, batch size, device, progress.
        drawing: how pictures of the unlearned model are drawn and judged.

    Raises:
        RubError: the attack broke its contract, such as ids outside the vocabulary.
        Diverged: pictures, or what the attack proposed, are not finite.
    """
    search = function(target, target.prompts, budget, context, **parameters)
    run = _Run(search, target, budget, drawing, f"attack '{getattr(function, '__name__', 'of no name')}'")
    count, queue = len(target.prompts), Queue(target.tokens.device)
    part = context.checkpointer.section("search", {"queue": queue, "run": run})

    def report(left: int) -> None:
        context.progress(count - left, count, f"{int((run.step >= 0).sum())} back")
        if left:
            part.keep(0)

    part.restore()
    if not len(queue):  # else a run that was killed left prompts on their way
        queue.pending = torch.arange(count)
    run_queue(queue, context.batch_size, run.admit, run.observe, run.move, report)
    return run.probes()


class _Run(AttributeState):
    """The state of one attack over all prompts: what `run_queue` calls, and what is known of each prompt."""

    changing = (
        "step", "score", "ids", "embeddings", "latents", "pictures", "strength", "holes", "images", "gradient_steps",
        "evaluations",
    )  # fmt: skip

    def __init__(self, search: Search, target: Target, budget: Budget, drawing: Drawing, name: str) -> None:
        count = len(target.tokens)
        self.search, self.target, self.budget, self.drawing, self.name = search, target, budget, drawing, name
        self.step = torch.full((count,), -1)
        self.score = torch.zeros(count)
        self.ids = target.tokens.cpu().clone()
        self.embeddings: Tensor | None = None
        self.latents: Tensor | None = None
        self.pictures: Tensor | None = None
        self.strength: Tensor | None = None
        self.holes: Tensor | None = None
        self.images: Tensor | None = None
        self.gradient_steps, self.evaluations = torch.zeros(count).long(), torch.zeros(count).long()

    def admit(self, rows: Tensor) -> State:
        """State of prompts that start."""
        device = self.target.tokens.device
        state = {"row": rows.to(device), "id": self.target.prompts.ids[rows].to(device), "t": torch.zeros_like(rows)}
        state["t"] = state["t"].to(device)
        if len(rows):
            self.search.begin(state)
        return state

    def observe(self, state: State) -> tuple[Scores, Tensor]:
        """Draw and judge what is proposed, and say which prompts leave; the clean prompts first.

        Prompts that have just been admitted stand at the end of the batch, each group is drawn on its own.
        """
        new = state["t"] == 0
        leaving = torch.zeros_like(new)
        for group in (new, ~new):
            if group.any():
                clean = bool(state["t"][group][0] == 0)
                fed = Candidates() if clean else self._checked(self.search.propose(_part(state, group)), group)
                leaving[group] = self._look(state["row"][group].cpu(), state["t"][group].cpu(), fed).to(leaving.device)
        return (), leaving

    def move(self, state: State) -> None:
        """Let the search advance by one step; on CUDA its products may be rounded, those of pictures may not."""
        with tf32(True):
            self.gradient_steps[state["row"].cpu()] += self.search.move(state)

    def probes(self) -> Probes:
        """Result of the attack."""
        assert self.images is not None
        return Probes(
            self.step, self.score, self.ids, self.embeddings, self.latents, self.pictures, self.strength, self.holes,
            self.images, self.gradient_steps, self.evaluations,
        )  # fmt: skip

    def _look(self, rows: Tensor, t: Tensor, fed: Candidates) -> Tensor:
        images, ids, hit, score = self.drawing.look(self.target.prompts.select(rows), fed)
        self.evaluations[rows] += 1
        self.score[rows], self.ids[rows] = score.cpu(), ids.cpu()
        self.images = _kept(self.images, images, rows, len(self.step))
        for name, nothing in NOTHING.items():
            given, kept = getattr(fed, name), getattr(self, name)
            if given is not None:
                setattr(self, name, _kept(kept, given, rows, len(self.step), nothing))
            elif kept is not None:
                kept[rows] = nothing
        self.step[rows] = torch.where(hit.cpu(), t, self.step[rows])
        return hit.cpu() | (t >= self.budget.cap)

    def _checked(self, fed: Candidates, group: Tensor) -> Candidates:
        count, model = int(group.sum()), self.drawing.model
        vocabulary = len(model.token_embeddings)
        for what, shape in shapes_of(model, count).items():
            given = getattr(fed, what)
            if given is not None and tuple(given.shape) != shape:
                raise RubError(f"{self.name}: proposed {what} {tuple(given.shape)}; should be {shape}")
            if given is not None and not given.isfinite().all():
                raise Diverged(f"{self.name}: proposed {what} that are not finite")
        if (fed.pictures is None) != (fed.strength is None) or (fed.pictures is None and fed.holes is not None):
            raise RubError(f"{self.name}: proposed pictures, strength or holes alone; pictures need a strength")
        if fed.strength is not None and not bool(((fed.strength >= 0) & (fed.strength <= 1)).all()):
            raise RubError(f"{self.name}: proposed a strength outside 0 to 1")
        if fed.holes is not None and fed.holes.dtype != torch.bool:
            raise RubError(f"{self.name}: proposed holes of {fed.holes.dtype}; should be bool")
        if fed.texts is not None and len(fed.texts) != count:
            raise RubError(f"{self.name}: proposed {len(fed.texts)} texts; should be {count}")
        if fed.ids is not None and (int(fed.ids.min()) < 0 or int(fed.ids.max()) >= vocabulary):
            raise RubError(f"{self.name}: proposed a token id outside the vocabulary of {vocabulary} tokens")
        return fed


def _part(state: State, group: Tensor) -> State:
    return {name: values[group] for name, values in state.items()}


def _kept(all_rows: Tensor | None, values: Tensor, rows: Tensor, count: int, nothing: float = 0) -> Tensor:
    values = values.detach().cpu()
    kept = torch.full((count, *values.shape[1:]), nothing, dtype=values.dtype) if all_rows is None else all_rows
    kept[rows] = values
    return kept
