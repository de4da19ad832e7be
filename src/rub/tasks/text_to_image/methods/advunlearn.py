"""AdvUnlearn: ESD on the text encoder, against prompts that are made adversarial at every step."""

from collections.abc import Callable
from dataclasses import replace
from math import ceil
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rub.config.hyperparameters import AdamRate, Count, Hyper, Iterations, PositiveInt, Rate, Weight
from rub.errors import RubError
from rub.models.diffusion.groups import parameter_group
from rub.models.diffusion.model import Diffusion, frozen
from rub.models.weights import freeze
from rub.pipeline.checkpointing import AttributeState, Changing, ParameterState
from rub.registry import Card, method
from rub.tasks.text_to_image.concepts import objects
from rub.tasks.text_to_image.context import Side, UnlearnContext, train_only
from rub.tasks.text_to_image.methods.esd import esd_loss

Attack = Literal["adam", "sign"]
Init = Literal["latest", "random"]
Retained = Literal["experiment", "objects"]


def _passes(
    iterations: int, warmup: int, attack_every: int, attack_steps: int, gamma: float, retain_batch: int, batch: int,
    sampler_steps: int, **_: Any,
) -> float:  # fmt: skip
    # every loss draws an x_t of its own: half of the sampler's steps, each with and without the prompt
    attacks = ceil(max(iterations - warmup, 0) / attack_every)
    held = retain_batch * (sampler_steps + 1 + 3) if gamma else 0
    searched = attacks * attack_steps * batch * (sampler_steps + 1 + 3)
    return iterations * (batch * (sampler_steps + 2 + 3) + held) + searched


CARD = Card(
    paper="Zhang et al., Defensive Unlearning with Adversarial Training for Robust Concept Erasure in Diffusion Models,"
    " NeurIPS 2024, arXiv 2405.15234",
    equation="min_TE MSE(e(x_t, TE([A; c])), e_0(x_t, 0) - eta (e_0(x_t, c) - e_0(x_t, 0)))"
    " + gamma MSE(e(x_t, TE(p_r)), e_0(x_t, p_r)), A = argmin MSE(e(x_t, TE([A; c])), e_0(x_t, c))",
    upstream="OPTML-Group/AdvUnlearn 9d23124, train-scripts/AdvUnlearn.py, utils/attack_util.py, utils/get_loss.py",
    differences=(
        "the attack's gradients are zeroed at every step; upstream adds them all up",
        "training sees A after all of its steps, and so does the next attack that starts from it; upstream's is the A"
        " before the last step",
        "A is put between BOS and the prompt's tokens, and the tail is cut; upstream counts a prompt's words for its"
        " tokens, and loses k of them where a word has several",
        "retain regularisation ('reg', README); upstream's default is a retain step after every forget step ('iter'),"
        " and its weight is 1",
        "each retain prompt has its own stop and time step; upstream draws one for a whole step, forget and retain",
        "the experiment's retain prompts, or 243 of everyday things that are RUB's own; upstream 243 of COCO's objects",
        "pictures per step and their size are the experiment's; upstream 1 of 512 pixels for forget and attack",
        "one prompt, the concept's first; upstream may split its prompt in several",
        "upstream's --lr takes integers only, and the default of its --dataset_retain is none of its choices",
    ),
    passes=_passes,
)


def prefixed(model: Diffusion, ids: Tensor, prefix: Tensor) -> Tensor:
    """Input embeddings of [BOS, A, prompt, EOS, padding], cut to L: float (1, L, D).

    Args:
        model: gives the table of embeddings.
        ids: of the prompt, int64 (1, L).
        prefix: A, (1, K, D).
    """
    embedded = model.token_embeddings[ids]
    return torch.cat([embedded[:, :1], prefix, embedded[:, 1:]], dim=1)[:, : ids.shape[1]]


def random_tokens(model: Diffusion, count: int, generator: torch.Generator) -> Tensor:
    """Embeddings of random tokens of the vocabulary, float (1, count, D)."""
    table = model.token_embeddings.detach()
    rows = torch.randint(0, len(table), (1, count), generator=generator)
    return table[rows.to(table.device)]


def attack_loss(
    model: Diffusion, original: Diffusion, x: Tensor, t: Tensor, ids: Tensor, prefix: Tensor, concept: Tensor
) -> Tensor:
    """MSE(e(x_t, TE([A; c])), e_0(x_t, c)).

    Args:
        model: e and TE, the ones being trained.
        original: e_0, frozen.
        x: noisy latents (B, C, h, w).
        t: int64 (B,).
        ids: of the concept's prompt c, (1, L).
        prefix: A, (1, K, D).
        concept: context of c by the original's text encoder, (1, L, D).
    """
    with torch.no_grad():
        wanted = original.predict(x, t, concept).float()
    return F.mse_loss(model.predict(x, t, model.encode_soft(prefixed(model, ids, prefix))).float(), wanted)


def strengthened(
    loss: Callable[[Tensor], Tensor], prefix: Tensor, context: UnlearnContext, *, attack: Attack, steps: int, lr: float,
) -> Tensor:  # fmt: skip
    """A after steps of Adam down a loss, each from fresh gradients or from their signs.

    Args:
        loss: of A; draws its own x_t.
        prefix: where A starts.
        context: takes the steps.
        attack: "adam" or "sign".
        steps: how many.
        lr: learning rate of Adam.

    Raises:
        Diverged: the loss is not finite.
    """
    variable = nn.Parameter(prefix.detach().clone())
    optimizer = context.adam([variable], lr)
    for _ in range(steps):
        context.backward(loss(variable), optimizer)
        if attack == "sign" and variable.grad is not None:
            variable.grad.sign_()
        optimizer.step()
    return variable.detach()


def retain_loss(model: Diffusion, original: Diffusion, x: Tensor, t: Tensor, prompts: list[str]) -> Tensor:
    """MSE(e(x_t, TE(p_r)), e_0(x_t, p_r)).

    Args:
        model: e and TE.
        original: e_0, frozen.
        x: noisy latents (R, C, h, w), one for each prompt.
        t: int64 (R,).
        prompts: R of them.
    """
    with torch.no_grad():
        wanted = original.predict(x, t, original.context(prompts)).float()
    return F.mse_loss(model.predict(x, t, model.context(prompts)).float(), wanted)


class Adversary(AttributeState):
    """What attacks leave to one another: the soft tokens of the latest, float (1, k, D); none before the first."""

    changing = ("prefix",)

    def __init__(self, model: Diffusion) -> None:
        self.prefix = torch.empty(0, device=model.device)


@method("advunlearn", task="text-to-image", card=CARD)
def advunlearn(
    model: Diffusion, forget: Side, retain: Side, context: UnlearnContext, *,
    eta: Annotated[Weight, Hyper("how far away from the concept the target lies, in the paper's convention",
        source="upstream, the paper's convention of ESD")] = 1.0,
    gamma: Annotated[Weight, Hyper("weight of the retain prompts",
        source="upstream for objects and styles (its issue 7); 0.3 for nudity (README)")] = 0.5,
    guidance: Annotated[Weight, Hyper("weight of classifier-free guidance in the partial DDIM runs",
        source="upstream")] = 3.0,
    lr: Annotated[AdamRate, Hyper(source="upstream")] = 1e-5,
    iterations: Annotated[Iterations, Hyper(source="upstream")] = 1000,
    warmup: Annotated[Count, Hyper("steps before the first attack", source="upstream")] = 200,
    retain_batch: Annotated[PositiveInt, Hyper("retain prompts per step", source="upstream")] = 5,
    retained: Annotated[Retained, Hyper(
        "the retain prompts: those of the `experiment`, or 243 `objects`, which a miniature has no words for",
        source="upstream objects")] = "experiment",
    k: Annotated[PositiveInt, Hyper("soft tokens of A", source="upstream")] = 1,
    attack: Annotated[Attack, Hyper("`adam`, or `sign`: Adam on the signs of the gradients",
        source="upstream ('pgd'); sign is its 'fast_at'")] = "adam",
    attack_init: Annotated[Init, Hyper(
        "an attack starts from the A before it (`latest`) or from `random` tokens, as the first one does",
        source="upstream's README; by default latest")] = "random",
    attack_steps: Annotated[PositiveInt, Hyper("steps of an attack", source="upstream")] = 30,
    attack_lr: Annotated[Rate, Hyper("learning rate of the attack's Adam", source="upstream")] = 1e-3,
    attack_every: Annotated[PositiveInt, Hyper("training steps from one attack to the next", source="upstream")] = 1,
) -> Diffusion:  # fmt: skip
    """Train the text encoder without its embeddings, from prompts alone; the UNet stays bit for bit what it was.

    The forget side's first prompt names the concept, the retain prompts are held still, the anchor is not used.

    Raises:
        RubError: no retain prompts, and gamma is not 0; or k tokens do not fit into a prompt.
    """
    texts = objects() if retained == "objects" else retain.prompts
    if gamma and not texts:
        raise RubError("advunlearn: the retain side has no prompts; give some, or set gamma to 0")
    if k > model.length - 2:
        raise RubError(f"advunlearn: k = {k}: should be at most {model.length - 2}, a prompt without BOS and EOS")
    original, names = frozen(model), parameter_group(model, "text_encoder_full")
    weights = train_only(model, names)
    optimizer = context.adam(weights.values(), lr)
    prompt, ids = forget.prompts[0], model.tokenize(forget.prompts[:1])
    concept, empty = original.context([prompt]), original.context([""])
    draws, attacks, tokens = (context.generator(stream) for stream in ("steps", "attacks", "tokens"))
    single, kept, adversary = replace(context, batch_size=1), context.generator("retain"), Adversary(model)
    prompts = context.rows(len(texts), retain_batch, "prompts")

    def attacked(prefix: Tensor) -> Tensor:
        with context.autocast():
            x, t = context.partial(original, prompt, attacks, guidance=guidance)
            return attack_loss(model, original, x, t, ids, prefix, concept)

    def held() -> Tensor:
        chosen = [texts[row] for row in next(prompts).tolist()]
        drawn = [single.partial(original, one, kept, guidance=guidance) for one in chosen]  # each at an x_t of its own
        x, t = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        return retain_loss(model, original, x, t, chosen)

    changing: Changing = {
        "weights": ParameterState(weights), "optimizer": optimizer, "draws": draws, "attacks": attacks,
        "tokens": tokens, "kept": kept, "prompts": prompts, "adversary": adversary,
    }  # fmt: skip
    for step in context.counted(iterations, changing):
        if step >= warmup and (step - warmup) % attack_every == 0:
            train_only(model, ())  # an attack needs no gradient of the weights
            latest = len(adversary.prefix) and attack_init == "latest"
            start = adversary.prefix if latest else random_tokens(model, k, tokens)
            adversary.prefix = strengthened(attacked, start, context, attack=attack, steps=attack_steps, lr=attack_lr)
            train_only(model, names)
        with context.autocast():
            x, t = context.partial(original, prompt, draws, guidance=guidance)
            soft = adversary.prefix
            given = model.encode_soft(prefixed(model, ids, soft)) if len(soft) else model.encode(ids)
            loss = esd_loss(model, original, x, t, given, concept, empty, eta)
            if gamma:
                loss = loss + gamma * held()
        context.descend(loss, optimizer)
    return freeze(model)
