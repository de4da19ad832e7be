"""Controls: as many pictures as a search has, without looking at the model: random tokens, or other initial latents."""

from typing import Annotated

from torch import Tensor

from rub.attacks.search import State
from rub.config.hyperparameters import Hyper, PositiveInt
from rub.models.diffusion.sampling import initial_latents
from rub.pipeline.rng import keyed_uniform
from rub.registry import Card, attack
from rub.tasks.text_to_image.attacks.base import AttackContext, Budget, Candidates, Prompts, Search, Target
from rub.tasks.text_to_image.attacks.tokens import Draws, Fed, Location, Where, allowed_tokens, need_room, proposed

UPSTREAM = "OPTML-Group/Diffusion-MU-Attack 5a3e5d3, src/attackers/"
RANDOM_PREFIX = Card(
    paper="the control of Zhang et al., To Generate or Not? (UnlearnDiffAtk), ECCV 2024 (arXiv:2310.11868)",
    equation="at every step K tokens, uniform on the vocabulary, before the prompt",
    upstream=UPSTREAM,
    differences=(
        "as many draws as the budget has steps; upstream has 40",
        "BOS, EOS and padding are never inserted",
        "draws are keyed by seed, case number and step",
    ),
)
SEED_SEARCH = Card(
    paper="the control of Zhang et al., To Generate or Not? (UnlearnDiffAtk), ECCV 2024 (arXiv:2310.11868)",
    equation="at every step initial latents of another seed, with the clean prompt",
    upstream=UPSTREAM,
    differences=(
        "a prompt counts once, at its first success, and the seeds are as many as the budget has steps; upstream has 40"
        " and reports successes per seed",
        "seeds are keyed by seed, case number and step",
    ),
)


class Still:
    """A search that keeps nothing and has no gradient: all that it proposes depends on prompt and step."""

    def begin(self, state: State) -> None:
        """Keep nothing."""

    def move(self, state: State) -> int:
        """Take no gradient step."""
        return 0


class RandomTokens(Still):
    """Inserts K random tokens."""

    def __init__(self, target: Target, context: AttackContext, *, tokens: int, location: Location, fed: Fed) -> None:
        need_room(target, tokens)
        self.target, self.seed, self.count, self.location, self.fed = target, context.seed, tokens, location, fed
        self.vocabulary = allowed_tokens(target.unlearned).nonzero().flatten()

    def propose(self, state: State) -> Candidates:
        """Prompts with the tokens of this step."""
        drawn = keyed_uniform(self.seed, "random-prefix", state["id"], state["t"], self.count).double()
        found = self.vocabulary[(drawn * len(self.vocabulary)).long()]
        return proposed(self.target.unlearned, self.target.tokens[state["row"]], found, self.location, self.fed)


class OtherSeeds(Still):
    """Leaves the prompt alone and draws other initial latents."""

    def __init__(self, target: Target, context: AttackContext) -> None:
        self.model, self.seed = target.unlearned, context.seed

    def seeds(self, state: State) -> Tensor:
        """Seeds of this step, int64 (B,), 48 bits each."""
        high, low = (keyed_uniform(self.seed, "seed-search", state["id"], state["t"], 2) * 2**24).long().unbind(1)
        return high * 2**24 + low

    def propose(self, state: State) -> Candidates:
        """Latents of this step."""
        return Candidates(latents=initial_latents(self.model, self.seeds(state)))


@attack("random-prefix", task="text-to-image", card=RANDOM_PREFIX)
def random_prefix(
    target: Target, prompts: Prompts, budget: Budget, context: AttackContext, *,
    tokens: Annotated[PositiveInt, Hyper("K, tokens inserted into each prompt", source="as uma")] = 3,
    location: Annotated[Where, Hyper(source="as uma")] = "prefix",
    fed: Annotated[Draws, Hyper(source="as uma")] = "string",
) -> Search:  # fmt: skip
    """Insert random tokens, others at every step.

    Raises:
        RubError: a prompt without room for the tokens.
    """
    return RandomTokens(target, context, tokens=tokens, location=location, fed=fed)


@attack("seed-search", task="text-to-image", card=SEED_SEARCH)
def seed_search(target: Target, prompts: Prompts, budget: Budget, context: AttackContext) -> Search:
    """Draw the clean prompt from other initial latents at every step: how much a success owes to luck."""
    return OtherSeeds(target, context)
