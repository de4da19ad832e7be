"""Attacks on prompts: placement, the simplex, keyed draws, the two losses of one search, and its controls."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import minimize

from rub.config.hyperparameters import resolve
from rub.errors import Diverged, RubError
from rub.models.diffusion.sampling import Sampler
from rub.models.weights import freeze
from rub.pipeline.rng import keyed_uniform
from rub.registry import ATTACKS
from rub.tasks.text_to_image.attacks.base import AttackContext, Budget, Prompts, Target
from rub.tasks.text_to_image.attacks.controls import random_prefix, seed_search
from rub.tasks.text_to_image.attacks.harness import Drawing, run_attack
from rub.tasks.text_to_image.attacks.tokens import (
    allowed_tokens,
    insertion_rows,
    keyed_normal,
    place_embeddings,
    place_ids,
    project_simplex,
    room,
    sample_tokens,
    spoken,
    timestep,
)
from rub.tasks.text_to_image.attacks.uma import uma, unlearndiffatk

TEXTS = ("a church", "a photo of a chapel", "the digit seven", "a church in the snow")
CAP = 4


@pytest.fixture
def target(make_model):
    """Two models with other weights and four prompts."""
    unlearned, original = freeze(make_model(0)), freeze(make_model(1))
    for model in (unlearned, original):  # so that contexts matter more than in a model that was never trained
        model.text_encoder.get_input_embeddings().weight.mul_(20)
    prompts = Prompts(torch.tensor([30, 7, 12, 5]), TEXTS, torch.arange(4), torch.full((4,), 3.0))
    x0 = torch.randn(4, *unlearned.latent_shape, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    return Target(unlearned, original, prompts, unlearned.tokenize(TEXTS), x0, "church")


def start(search, target, rows):
    rows = torch.tensor(rows)
    state = {"row": rows, "id": target.prompts.ids[rows], "t": torch.zeros_like(rows)}
    search.begin(state)
    return state


def moved(search, state, moves=1):
    for _ in range(moves):
        search.move(state)
        state["t"] = state["t"] + 1
    return state


def slim(state, keep):
    return {name: part[torch.tensor(keep)] for name, part in state.items()}


def join(first, second):
    return {name: torch.cat([part, second[name]]) for name, part in first.items()}


# Placement. BOS 8, EOS 9, padding EOS or 0.


@pytest.mark.parametrize(
    ("row", "location", "wanted"),
    [
        ([8, 1, 2, 3, 9, 9, 9], "prefix", [8, 6, 7, 1, 2, 3, 9]),
        ([8, 1, 2, 3, 9, 9, 9], "suffix", [8, 1, 2, 3, 6, 7, 9]),
        ([8, 1, 2, 3, 9, 9, 9], "insert", [8, 1, 6, 7, 2, 3, 9]),
        ([8, 1, 2, 3, 4, 9, 9], "insert", [8, 1, 2, 6, 7, 3, 4]),  # one token too many: the tail is cut
        ([8, 1, 2, 9, 0, 0, 0], "suffix", [8, 1, 2, 6, 7, 9, 0]),
        ([8, 9, 9, 9, 9, 9, 9], "prefix", [8, 6, 7, 9, 9, 9, 9]),
        ([8, 9, 9, 9, 9, 9, 9], "suffix", [8, 6, 7, 9, 9, 9, 9]),
        ([8, 9, 9, 9, 9, 9, 9], "insert", [8, 6, 7, 9, 9, 9, 9]),
    ],
)
def test_tokens_are_placed_where_a_hand_puts_them(row, location, wanted):
    other = [8, 5, 9, 9, 9, 9, 9]  # prompts of other lengths in one batch
    tokens, inserted = torch.tensor([other, row]), torch.tensor([[4, 4], [6, 7]])
    assert place_ids(tokens, inserted, 9, location)[1].tolist() == wanted
    assert insertion_rows(tokens, 9, 2, location).shape == tokens.shape
    assert insertion_rows(tokens, 9, 0, location).tolist() == [list(range(7))] * 2


def test_room_counts_the_places_behind_the_first_eos():
    assert room(torch.tensor([[8, 1, 2, 9, 0], [8, 9, 9, 9, 9], [8, 1, 2, 3, 9]]), 9).tolist() == [1, 3, 0]


@pytest.mark.parametrize("location", ["prefix", "suffix", "insert"])
def test_placed_embeddings_are_those_of_placed_ids(model, location):
    freeze(model)
    tokens = model.tokenize(TEXTS)
    found = torch.arange(8).reshape(4, 2) + 40
    rows = model.token_embeddings[found].requires_grad_()
    context = model.encode_soft(place_embeddings(model, tokens, rows, location))
    assert torch.equal(context, model.encode(place_ids(tokens, found, model.tokenizer.eos_token_id, location)))
    (slope,) = torch.autograd.grad(context.square().sum(), rows)
    assert (slope.abs().sum(2) > 0).all()


def test_special_tokens_and_rows_without_a_string_may_not_be_proposed(model):
    model.text_encoder.resize_token_embeddings(len(model.tokenizer) + 3, mean_resizing=False)
    allowed = allowed_tokens(model)
    assert len(allowed) == len(model.tokenizer) + 3
    forbidden = {model.tokenizer.bos_token_id, model.tokenizer.eos_token_id, *range(len(model.tokenizer), len(allowed))}
    assert set((~allowed).nonzero().flatten().tolist()) == forbidden


@pytest.mark.slow
def test_decoded_prompts_have_no_special_tokens(model):
    assert spoken(model, model.tokenize([*TEXTS, ""])) == [*TEXTS, ""]


@pytest.mark.parametrize("attack", [uma, unlearndiffatk])
def test_a_prompt_without_room_is_named(target, attack):
    free = room(target.tokens, target.unlearned.tokenizer.eos_token_id)
    shortest = int(free.argmin())
    count = int(free.min()) + 1
    attack(target, target.prompts, Budget(CAP), AttackContext(), tokens=count - 1)
    with pytest.raises(
        RubError, match=f"case {int(target.prompts.ids[shortest])}: has room for {count - 1} of {count}"
    ):
        attack(target, target.prompts, Budget(CAP), AttackContext(), tokens=count)


# Draws and projections.


def test_keyed_normals_are_standard_normal_and_independent():
    ids = torch.arange(400)
    drawn = keyed_normal(3, "noise", ids, 5, (3, 7, 9)).double()
    flat = drawn.flatten().numpy()
    assert drawn.shape == (400, 3, 7, 9)
    assert stats.kstest(flat, "norm").pvalue > 0.01
    assert abs(flat.mean()) < 4 / math.sqrt(flat.size)
    assert abs(flat.var() - 1) < 4 * math.sqrt(2 / flat.size)
    assert abs(stats.kurtosis(flat)) < 4 * math.sqrt(24 / flat.size)
    others = [
        keyed_normal(4, "noise", ids, 5, (3, 7, 9)),
        keyed_normal(3, "other", ids, 5, (3, 7, 9)),
        keyed_normal(3, "noise", ids, 6, (3, 7, 9)),
        drawn.roll(1, 0),
        drawn.roll(1, 3),
        drawn.flatten(1).roll(95, 1),  # the partner of a Box-Muller pair
    ]
    for other in others:
        assert abs(np.corrcoef(flat, other.flatten().numpy())[0, 1]) < 4 / math.sqrt(flat.size)


def test_keyed_normals_of_a_prompt_do_not_depend_on_its_neighbours():
    ids, counter = torch.tensor([9, 2, 40]), torch.tensor([0, 7, 3])
    together = keyed_normal(0, "noise", ids, counter, (1, 5))
    for place in range(3):
        alone = keyed_normal(0, "noise", ids[place : place + 1], int(counter[place]), (1, 5))
        assert torch.equal(alone[0], together[place])
    assert keyed_normal(0, "noise", ids[:0], 0, (2, 2)).shape == (0, 2, 2)


def test_the_projection_is_the_nearest_point_of_the_simplex():
    generator = torch.Generator().manual_seed(1)
    for scale in (0.05, 0.3, 1.0):
        point = torch.randn(8, generator=generator).double() * scale
        found = minimize(
            lambda p, point=point: 0.5 * ((p - point.numpy()) ** 2).sum(),
            np.full(8, 1 / 8),
            jac=lambda p, point=point: p - point.numpy(),
            bounds=[(0, 1)] * 8,
            constraints={"type": "eq", "fun": lambda p: p.sum() - 1, "jac": np.ones_like},
            method="SLSQP",
            options={"ftol": 1e-12, "maxiter": 1000},
        )
        assert found.success
        np.testing.assert_allclose(project_simplex(point).numpy(), found.x, atol=1e-6)
        np.testing.assert_allclose(project_simplex(10 * point).numpy(), bisected(10 * point.numpy()), atol=1e-12)


@pytest.mark.parametrize("vocabulary", [1, 5, 49408])
def test_projected_rows_are_probabilities_and_stay_where_they_are(vocabulary):
    drawn = torch.rand(2, 3, vocabulary, generator=torch.Generator().manual_seed(2))
    for rows in (drawn, drawn - 5, 1 / vocabulary + 0.01 * (drawn - 0.5).sign(), torch.ones_like(drawn)):
        once = project_simplex(rows)
        assert once.min() >= 0
        torch.testing.assert_close(once.double().sum(-1), torch.ones(2, 3).double(), atol=1e-5, rtol=0)
        torch.testing.assert_close(project_simplex(once), once, atol=1e-7, rtol=1e-5)
    corner = (
        torch.eye(vocabulary)[:1] if vocabulary < 10 else torch.nn.functional.one_hot(torch.tensor([7]), vocabulary)
    )
    assert torch.equal(project_simplex(corner.float()), corner.float())


def test_tokens_are_drawn_with_their_probabilities():
    row = torch.tensor([0.0, 0.1, 0.0, 0.6, 0.3, 0.0])
    uniforms = keyed_uniform(0, "u", torch.arange(20000), 0, 1)
    ids = sample_tokens(row.expand(20000, 1, 6), uniforms)
    counts = torch.bincount(ids.flatten(), minlength=6)
    assert counts[[0, 2, 5]].sum() == 0
    assert stats.chisquare(counts[[1, 3, 4]].numpy(), [2000, 12000, 6000]).pvalue > 0.01


def test_the_ends_of_the_unit_interval_and_the_steps_between_tokens():
    rows = torch.tensor([[[0.0, 0.25, 0.0, 0.75, 0.0]]])
    for u, wanted in [(0.0, 1), (0.2499, 1), (0.25, 3), (1 - 2**-24, 3)]:
        assert sample_tokens(rows, torch.tensor([[u]])).item() == wanted
        assert sample_tokens(3 * rows, torch.tensor([[u]])).item() == wanted  # rows need not sum to 1
    broken = torch.full((1, 1, 5), torch.nan)
    assert 0 <= sample_tokens(broken, torch.tensor([[0.5]])).item() < 5


def test_noise_levels_are_those_of_unlearndiffatk():
    for cap, wanted in [(50, range(10, 1000, 20)), (100, range(5, 1000, 10)), (1, [500])]:
        assert timestep(torch.arange(cap), cap, 1000).tolist() == list(wanted)
    assert timestep(torch.tensor([0, 59]), 60, 1000).tolist() == [8, 8 + 59 * 16]


@pytest.mark.parametrize("cap", [501, 700, 999, 1000, 1001, 5000])
def test_more_moves_than_noise_levels_still_cover_them(cap):
    levels = timestep(torch.arange(cap), cap, 1000).tolist()
    assert all(first <= second <= first + 2 for first, second in pairwise(levels))
    assert levels[0] <= 1
    assert levels[-1] in {998, 999}


# The search.


def bisected(point):
    """Project on the simplex by bisection: sum max(a - theta, 0) = 1."""
    low, high = float(point.min()) - 1, float(point.max())
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(point - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(point - low, 0)


def by_hand(target, row, *, seed, loss, count, steps, level, lr, decay, limit):
    """The same search for one prompt as UnlearnDiffAtk is written: one-hot, a clip hook, torch's Adam."""
    unlearned, original, tokens = target.unlearned, target.original, target.tokens[row].tolist()
    case = target.prompts.ids[row : row + 1]
    table = unlearned.token_embeddings.detach()[:-2]  # BOS and EOS are the last two
    chances = torch.full((count, len(table)), 1 / len(table), requires_grad=True)
    optimizer = torch.optim.Adam([chances], lr=lr, weight_decay=decay)
    alpha = unlearned.alpha_bar[level]
    for step in range(steps):
        uniforms = keyed_uniform(seed, "tokens", case, step, count)[0]
        cumulative = np.cumsum(chances.detach().double().numpy(), 1)
        drawn = [int(np.argmax(cumulative[k] > float(uniforms[k]) * cumulative[k, -1])) for k in range(count)]
        onehot = torch.nn.functional.one_hot(torch.tensor(drawn), len(table)).float().requires_grad_()
        onehot.register_hook(lambda gradient: gradient.clamp(-limit, limit))
        words = unlearned.token_embeddings[tokens]
        embeddings = torch.cat([words[:1], onehot @ table, words[1:]])[: len(tokens)][None]
        noise = keyed_normal(seed, "noise", case, step, unlearned.latent_shape)
        x = alpha.sqrt() * target.x0[row : row + 1] + (1 - alpha).sqrt() * noise
        with torch.no_grad():
            goal = original.predict(x, level, original.context([TEXTS[row]])) if loss == "original" else noise
        error = torch.nn.functional.mse_loss(unlearned.predict(x, level, unlearned.encode_soft(embeddings)), goal)
        error.backward()
        optimizer.zero_grad()
        chances.grad = onehot.grad
        optimizer.step()
        with torch.no_grad():
            chances.copy_(torch.from_numpy(np.stack([bisected(part) for part in chances.double().numpy()])))
    return chances.detach()


def losses_of(search, state):
    """Make a move and return the loss of each of its gradient steps."""
    seen, inner = [], search._gradient

    def watched(*given):
        seen.append(inner(*given))
        return seen[-1]

    search._gradient = watched
    search.move(state)
    return [float(loss) for loss, _ in seen]


def loud(model, factor):
    """Make the model's predictions larger, so that gradients reach the clip."""
    model.unet.conv_out.weight.mul_(factor)
    model.unet.conv_out.bias.mul_(factor)


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "factor"), [("original", 1), ("noise", 1), ("noise", 20)])
def test_the_search_is_that_of_a_one_hot_matrix_with_a_clip_hook_and_torch_adam(target, loss, factor):
    loud(target.unlearned, factor)
    given = {"tokens": 2, "inner_steps": 4, "lr": 0.05, "weight_decay": 0.1}
    search = uma(target, target.prompts, Budget(CAP), AttackContext(seed=8), loss=loss, **given)
    state = start(search, target, [2, 1, 0])
    assert search.move(state) == 4
    same = {"seed": 8, "loss": loss, "count": 2, "steps": 4, "level": 125, "lr": 0.05, "decay": 0.1}
    for place, row in enumerate([2, 1, 0]):
        wanted = by_hand(target, row, limit=1, **same)
        torch.testing.assert_close(state["chances"][place], wanted, atol=2e-5, rtol=1e-3)
        unclipped = by_hand(target, row, limit=torch.inf, **same)
        assert bool(((unclipped - wanted).abs() > 1e-3).any()) == (factor > 1)


@pytest.mark.parametrize("init", ["uniform", "random"])
def test_rows_stay_on_the_simplex_and_start_where_they_should(target, init):
    search = uma(target, target.prompts, Budget(CAP), AttackContext(), init=init, inner_steps=3)
    state = start(search, target, [0, 1])
    first = state["chances"].clone()
    moved(search, state)
    for rows in (first, state["chances"]):
        assert rows.min() >= 0
        torch.testing.assert_close(rows.sum(-1), torch.ones(2, 3), atol=1e-5, rtol=0)
    assert bool((first == 1 / first.shape[2]).all()) == (init == "uniform")


@pytest.mark.slow
def test_the_originals_own_prompt_has_no_loss_and_noise_is_another_goal(target):
    """Where only EOS is allowed, inserted before the first EOS it gives the clean prompt back."""
    eos = target.unlearned.tokenizer.eos_token_id
    found = {}
    for name, unlearned in (("original", target.original), ("unlearned", target.unlearned)):
        for loss in ("original", "noise"):
            aimed = replace(target, unlearned=unlearned)
            given = {"loss": loss, "tokens": 1, "location": "suffix", "fed": "ids", "inner_steps": 3}
            search = uma(aimed, aimed.prompts, Budget(CAP), AttackContext(), **given)
            search.vocabulary, search.table = torch.tensor([eos]), unlearned.token_embeddings[eos : eos + 1]
            state = start(search, aimed, [0, 1, 2])
            assert torch.equal(search.propose(state).ids, target.tokens[:3])
            found[name, loss] = losses_of(search, state)
    assert max(found["original", "original"]) < 1e-10
    assert min(found["original", "noise"]) > 0.1
    assert min(found["unlearned", "original"]) > 0.1
    assert found["unlearned", "original"] != found["unlearned", "noise"]


def test_the_two_attacks_differ_in_their_loss_alone(target):
    results = []
    for attack, given in ((unlearndiffatk, {}), (uma, {"loss": "noise"}), (uma, {})):
        search = attack(target, target.prompts, Budget(CAP), AttackContext(), inner_steps=3, **given)
        results.append(moved(search, start(search, target, [0, 1]))["chances"])
    assert torch.equal(results[0], results[1])
    assert not torch.allclose(results[0], results[2], atol=1e-4)


@pytest.mark.slow
def test_a_prompt_is_searched_alike_alone_and_while_others_join_and_leave(target):
    search = uma(target, target.prompts, Budget(CAP), AttackContext(), inner_steps=3, fed="ids")
    together = moved(search, start(search, target, [0, 1, 2]))  # 0, 1, 2 at t = 1
    together = join(slim(together, [1, 2]), start(search, target, [3]))
    together = moved(search, together)  # 1, 2 at t = 2; 3 at t = 1
    together = moved(search, slim(together, [2, 1]))  # 3 at t = 2; 2 at t = 3
    assert together["row"].tolist() == [3, 2]
    assert together["t"].tolist() == [2, 3]
    for place, (row, moves) in enumerate([(3, 2), (2, 3)]):
        alone = moved(search, start(search, target, [row]), moves)
        torch.testing.assert_close(alone["chances"][0], together["chances"][place], atol=1e-4, rtol=1e-3)
        assert torch.equal(search.propose(alone).ids[0], search.propose(together).ids[place])


@pytest.mark.slow
def test_the_search_finds_one_of_the_best_tokens(target):
    """Of every fourth token, tried one by one on fresh noise, at most a twentieth is better than the one found."""
    given = {"tokens": 1, "inner_steps": 60, "lr": 0.1, "weight_decay": 0.0, "fed": "ids"}
    search = unlearndiffatk(target, target.prompts, Budget(1), AttackContext(), **given)
    state = moved(search, start(search, target, [1]))
    model, tokens = target.unlearned, target.tokens[1:2]
    noise = torch.randn(8, *model.latent_shape, generator=torch.Generator().manual_seed(5))
    x = model.noised(target.x0[1:2].expand(8, -1, -1, -1), torch.full((8,), 500), noise)

    @torch.no_grad()
    def loss(token):
        ids = place_ids(tokens, token.reshape(1, 1), model.tokenizer.eos_token_id, "prefix")
        return float((model.predict(x, 500, model.encode(ids)) - noise).square().mean())

    others = search.vocabulary[::4]
    found = loss(search.propose(state).ids[0, 1])
    assert sum(loss(token) < found for token in others) < len(others) / 20


def test_strings_or_ids_are_proposed(target):
    said, meant = (
        uma(target, target.prompts, Budget(CAP), AttackContext(), inner_steps=2, fed=fed) for fed in ("string", "ids")
    )
    texts = said.propose(moved(said, start(said, target, [0, 1]))).texts
    proposed = meant.propose(moved(meant, start(meant, target, [0, 1])))
    assert proposed.texts is None
    assert proposed.ids.shape == (2, target.unlearned.length)
    assert [text.endswith(TEXTS[row]) for row, text in enumerate(texts)] == [True, True]
    assert texts == spoken(target.unlearned, proposed.ids)


def test_numbers_that_are_not_finite_end_the_attack(target):
    broken = replace(target, x0=target.x0.log())
    search = uma(broken, broken.prompts, Budget(CAP), AttackContext(), inner_steps=2)
    with pytest.raises(Diverged):
        search.move(start(search, broken, [0, 1]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uma", "unlearndiffatk", "random-prefix", "seed-search"])
def test_the_harness_runs_every_attack_with_its_defaults(target, name):
    entry = ATTACKS.get(name, "text-to-image")
    given = resolve(entry, {"inner_steps": 2} if name in {"uma", "unlearndiffatk"} else {}, "test")

    def unseen(images):
        return torch.zeros(len(images), dtype=torch.bool), torch.zeros(len(images))

    drawing = Drawing(target.unlearned, Sampler(steps=2), unseen)
    probes = run_attack(entry.load(), given, target, Budget(2), AttackContext(batch_size=3), drawing)
    assert probes.step.tolist() == [-1] * 4
    assert probes.evaluations.tolist() == [3] * 4
    assert probes.gradient_steps.tolist() == [2 * given.get("inner_steps", 0)] * 4
    assert (probes.latents is None) == (name != "seed-search")
    assert bool((probes.ids == target.tokens).all(1).any()) == (name == "seed-search")


# Controls.


@pytest.mark.parametrize(("location", "place"), [("prefix", 1), ("suffix", None)])
def test_random_tokens_are_reproducible_and_others_at_every_step(target, location, place):
    found = []
    for rows, seed in (([0, 1, 2, 3], 0), ([3, 0], 0), ([0, 1, 2, 3], 1)):
        search = random_prefix(
            target, target.prompts, Budget(CAP), AttackContext(seed=seed), tokens=2, location=location, fed="ids"
        )
        state = start(search, target, rows)
        steps = []
        for _ in range(30):
            assert search.move(state) == 0
            state["t"] = state["t"] + 1
            steps.append(search.propose(state).ids)
        found.append(torch.stack(steps))
    assert torch.equal(found[0][:, [3, 0]], found[1])
    assert not torch.equal(found[0], found[2])
    eos = target.unlearned.tokenizer.eos_token_id
    at = place or int((target.tokens[0] == eos).int().argmax())
    drawn = found[0][:, 0, at : at + 2]
    assert len(set(drawn.flatten().tolist())) > 40
    assert allowed_tokens(target.unlearned)[drawn].all()
    kept = torch.cat([found[0][:, 0, :at], found[0][:, 0, at + 2 :]], 1)
    assert torch.equal(kept, target.tokens[0, :-2].expand(30, -1))


def test_random_tokens_are_said_as_strings_by_default(target):
    search = random_prefix(target, target.prompts, Budget(CAP), AttackContext())
    texts = search.propose(moved(search, start(search, target, [2]))).texts
    assert texts[0].endswith(TEXTS[2])
    assert len(texts[0]) > len(TEXTS[2])


def test_seed_search_draws_other_latents_at_every_step(target):
    search = seed_search(target, target.prompts, Budget(CAP), AttackContext())
    state, alone = start(search, target, [0, 1, 2]), start(search, target, [1])
    drawn, seeds = [], []
    for _ in range(20):
        state, alone = moved(search, state), moved(search, alone)
        candidates = search.propose(state)
        assert candidates.ids is candidates.texts is candidates.embeddings is None
        assert torch.equal(candidates.latents[1:2], search.propose(alone).latents)
        drawn.append(candidates.latents)
        seeds += search.seeds(state).tolist()
    assert len(set(seeds)) == 60
    assert stats.kstest(torch.stack(drawn).flatten().numpy(), "norm").pvalue > 0.01
