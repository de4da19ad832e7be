"""P4D, Ring-A-Bell and Concept Inversion against their equations; prompts do not depend on their neighbours."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch.nn import functional as F

from rub.errors import Diverged, RubError
from rub.models.diffusion.sampling import Sampler
from rub.models.weights import freeze
from rub.tasks.text_to_image.attacks.base import AttackContext, Budget, Prompts
from rub.tasks.text_to_image.attacks.concept_inversion import concept_inversion
from rub.tasks.text_to_image.attacks.harness import Drawing, make_target, run_attack
from rub.tasks.text_to_image.attacks.p4d import Vocabulary, adamw, alone, filled, p4d, woven
from rub.tasks.text_to_image.attacks.ring_a_bell import NEUTRAL, TEMPLATES, breed, concept_vector, ring_a_bell
from rub.tasks.text_to_image.attacks.tokens import allowed_tokens, noisy, timestep

TEXTS = ("a photo of the digit seven", "a church", "the digit eight on paper", "a chapel in the snow")
COUNT = len(TEXTS)
SMALL = {
    "p4d": (p4d, {"tokens": 4, "inner_steps": 2}),
    "p4d-k": (p4d, {"variant": "k", "inner_steps": 2, "random_timesteps": False}),
    "ring-a-bell": (ring_a_bell, {"tokens": 4, "population": 12, "generations": 2}),
    "concept-inversion": (concept_inversion, {"tokens": 2, "inner_steps": 2}),
}


@pytest.fixture
def target(make_model):
    """Two models that tests share and leave alone."""
    return shared(make_model)


def build(make_model):
    original, unlearned = freeze(make_model(0)), freeze(make_model(1))
    prompts = Prompts(torch.tensor([3, 14, 15, 92]), TEXTS, torch.arange(COUNT), torch.full((COUNT,), 3.0))
    shape = (COUNT, 1, 8, 8)
    pictures = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    return make_target(original, unlearned, prompts, pictures, 2, concept="church")


shared = cache(build)


def begun(search, target, rows):
    rows = torch.tensor(rows)
    state = {"row": rows, "id": target.prompts.ids[rows], "t": torch.zeros_like(rows)}
    search.begin(state)
    return state


def moved(search, state, times):
    for _ in range(times):
        search.move(state)
        state["t"] += 1
    return state


def start(function, target, seed=0, cap=5, **parameters):
    return function(target, target.prompts, Budget(cap), AttackContext(seed=seed), **parameters)


def unseen(images):
    return torch.zeros(len(images), dtype=torch.bool), torch.zeros(len(images))


def tables(target):
    """Return the unlearned model's embeddings and which rows may be proposed, found token by token."""
    tokenizer, table = target.unlearned.tokenizer, target.unlearned.token_embeddings
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    return table, [token for token in range(len(table)) if token not in special]


# --- where tokens go ---


def test_free_tokens_alone():
    tokens = torch.tensor([[8, 1, 2, 9, 7, 7]])
    ids, slots = alone(tokens, 9, 7, 2)
    assert filled(ids, torch.tensor([[4, 5]]), slots).tolist() == [[8, 4, 5, 9, 7, 7]]
    ids, slots = alone(tokens, 9, 7, 16)  # 16 do not fit: L - 2 are used
    assert filled(ids, torch.tensor([[1, 2, 3, 4]]), slots).tolist() == [[8, 1, 2, 3, 4, 9]]


@pytest.mark.parametrize(
    ("own", "wanted"),
    [
        ([], [8, -1, 9, 7, 7, 7, 7, 7, 7, 7, 7, 7]),
        ([1, 2], [8, -1, 1, 2, 9, 7, 7, 7, 7, 7, 7, 7]),
        ([1, 2, 3], [8, -1, 1, 2, 3, -2, 9, 7, 7, 7, 7, 7]),
        ([1, 2, 3, 4], [8, -1, 1, 2, 3, -2, 4, 9, 7, 7, 7, 7]),
        ([1, 2, 3, 4, 5, 6], [8, -1, 1, 2, 3, -2, 4, 5, 6, -3, 9, 7]),
        ([1, 2, 3, 4, 5, 6, 1, 2], [8, -1, 1, 2, 3, -2, 4, 5, 6, -3, 1, 9]),  # the last 2 is cut
        ([1, 2, 3, 4, 5, 6, 1, 2, 3, 4], [8, -1, 1, 2, 3, -2, 4, 5, 6, -3, 1, 9]),
    ],
)
def test_tokens_are_woven_in_after_every_third(own, wanted):
    prompt = [8, *own, 9]
    tokens = torch.tensor([prompt + [7] * (12 - len(prompt))])
    ids, slots = woven(tokens, 9, 7, 3)
    assert slots.shape == (1, 3)
    assert filled(ids, torch.tensor([[-1, -2, -3]]), slots).tolist() == [wanted]


def test_placing_embeddings_agrees_with_placing_ids(target):
    table = target.unlearned.token_embeddings
    ids, slots = woven(target.tokens, target.unlearned.tokenizer.eos_token_id, 0, 2)
    found = torch.arange(5, 5 + slots.numel()).reshape(slots.shape)
    at = table[found].detach().requires_grad_()
    placed = filled(table[ids], at, slots)
    assert torch.equal(placed, table[filled(ids, found, slots)])
    (gradient,) = torch.autograd.grad(placed.sum(), at)
    assert torch.equal(gradient[..., 0], (slots < target.tokens.shape[1]).float())  # tokens without a place: nothing


# --- P4D ---


def test_the_nearest_token_is_found_by_cosine(target):
    table, allowed = tables(target)
    x = torch.randn(2, 3, table.shape[1], generator=torch.Generator().manual_seed(1))
    found = Vocabulary(target.unlearned).nearest(x)
    for place in ((0, 0), (0, 2), (1, 1)):
        best = max(allowed, key=lambda token: float(F.cosine_similarity(table[token], x[place], dim=0)))
        assert int(found[place]) == best
    own = table[torch.tensor(allowed[:40])]
    assert Vocabulary(target.unlearned).nearest(3 * own).tolist() == allowed[:40]


def test_special_tokens_are_never_nearest(target):
    model = target.unlearned
    x = model.token_embeddings[model.tokenizer.all_special_ids]
    assert allowed_tokens(model)[Vocabulary(model).nearest(x)].all()


def test_adamw_is_torchs():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 4, generator=generator)
    reference = [part.clone().requires_grad_() for part in x]
    optimizers = [torch.optim.AdamW([part], lr=0.1, weight_decay=0.1) for part in reference]
    state = {"x": x, "first": torch.zeros_like(x), "second": torch.zeros_like(x)}
    for step in range(1, 6):
        gradient = torch.randn(x.shape, generator=generator)
        for part, optimizer, own in zip(reference, optimizers, gradient, strict=True):
            part.grad = own
            optimizer.step()
        adamw(state, gradient, torch.full((3,), step), 0.1, 0.1)
        assert torch.allclose(state["x"], torch.stack(reference), atol=2e-5)


def test_p4d_steps_as_its_equation(target):
    """One prompt, one step, with torch's own optimiser and a plain embedding table."""
    search = start(p4d, target, tokens=4, inner_steps=1)
    state = begun(search, target, [1])
    x = state["x"][0].clone().requires_grad_()
    table, allowed = tables(target)
    x_t, t, _ = noisy(target, state, None, torch.tensor([0]), 0)
    moved(search, state, 1)

    cosines = F.cosine_similarity(x[:, None], table[allowed][None], dim=-1)
    nearest = torch.tensor(allowed)[cosines.argmax(1)]
    at = table[nearest].detach().requires_grad_()
    eos = target.unlearned.tokenizer.eos_token_id
    row = torch.cat([target.tokens[1, :1], nearest, torch.full((11,), eos)])
    embeddings = torch.cat([table[row[:1]], at, table[row[5:]]])[None]
    with torch.no_grad():
        wanted = target.original.predict(x_t, t, target.original.context(["a church"]))
    loss = F.mse_loss(target.unlearned.predict(x_t, t, target.unlearned.encode_soft(embeddings)), wanted)
    x.grad = torch.autograd.grad(loss, at)[0]
    torch.optim.AdamW([x], lr=0.1, weight_decay=0.1).step()
    assert torch.allclose(state["x"][0], x, atol=1e-4)


@pytest.mark.slow
def test_p4d_descends_when_the_original_itself_is_attacked(target):
    """e_u = e_0: the error of the tokens found is below that of the random ones that it starts with."""
    target = replace(target, unlearned=target.original)
    search = start(p4d, target, variant="k", every=1, inner_steps=10)
    state = begun(search, target, list(range(COUNT)))

    def error():
        t, model = torch.full((COUNT,), 500), target.original
        x, _, _ = noisy(target, state, t, torch.full((COUNT,), 999), 0)
        given, clean = model.encode(search.propose(state).ids), model.encode(target.tokens)
        with torch.no_grad():
            return (model.predict(x, t, given) - model.predict(x, t, clean)).square().mean()

    before = error()
    assert error() == before
    moved(search, state, 4)
    assert error() < before


def test_the_clean_prompt_has_no_error_on_its_own_model(target):
    model, x = target.original, target.x0
    t = torch.tensor([5, 300, 600, 900])
    soft = model.encode_soft(model.token_embeddings[target.tokens])
    assert torch.allclose(model.predict(x, t, soft), model.predict(x, t, model.encode(target.tokens)), atol=1e-5)


def test_draws_of_noise_are_the_forward_process(target):
    state = {"row": torch.arange(COUNT), "id": target.prompts.ids}
    x, t, noise = noisy(target, state, None, torch.arange(COUNT), 3)
    alpha = torch.linspace(0.00085**0.5, 0.012**0.5, 1000).square().neg().add(1).cumprod(0)[t].reshape(-1, 1, 1, 1)
    assert torch.allclose(x, alpha.sqrt() * target.x0 + (1 - alpha).sqrt() * noise, atol=1e-4)
    many = {"row": torch.zeros(4000, dtype=torch.int64), "id": torch.arange(4000)}
    _, t, noise = noisy(target, many, None, torch.zeros(4000, dtype=torch.int64), 3)
    assert t.min() < 10 and t.max() > 989 and abs(float(t.float().mean()) - 499.5) < 20
    assert abs(float(noise.mean())) < 0.01 and abs(float(noise.std()) - 1) < 0.01


def test_time_rises_with_the_attack_steps_where_it_is_not_random(target, monkeypatch):
    seen = []
    model = target.unlearned
    monkeypatch.setattr(model, "predict", lambda x, t, c, kept=model.predict: seen.append(t.tolist()) or kept(x, t, c))
    search = start(p4d, target, cap=5, inner_steps=2, random_timesteps=False)
    state = begun(search, target, [0, 1])
    state["t"] = torch.tensor([0, 3])
    search.move(state)
    assert seen == [[100, 700]] * 2
    assert seen[0] == timestep(torch.tensor([0, 3]), 5, 1000).tolist()


# --- Ring-A-Bell ---


def test_the_concept_vector_is_the_mean_difference(target):
    model = target.original
    pairs = [(text.replace("{}", "church"), text.replace("{}", "house")) for text in TEMPLATES]
    with torch.no_grad():
        wanted = torch.stack([model.context([one])[0] - model.context([other])[0] for one, other in pairs]).mean(0)
    assert torch.allclose(concept_vector(model, "church", "house"), wanted, atol=1e-5)
    assert len(TEMPLATES) == len(set(TEMPLATES)) and all(text.count("{}") == 1 for text in TEMPLATES)


def distance_of(target, row, ids, eta):
    model = target.original
    with torch.no_grad():
        shift = concept_vector(model, target.concept, target.anchor or NEUTRAL)
        wanted = model.context([TEXTS[row]])[0] + eta * shift
        return float((model.encode(ids[None])[0] - wanted).square().sum())


def test_the_genetic_search_descends_and_never_gets_worse(target):
    search = start(ring_a_bell, target, tokens=5, population=20, generations=3, eta=2.0)
    state = begun(search, target, [0, 2])
    found = [state["distance"][:, 0].clone()]
    for _ in range(8):
        moved(search, state, 1)
        found.append(state["distance"][:, 0].clone())
        ids = search.propose(state).ids
        for place, row in enumerate([0, 2]):
            assert distance_of(target, row, ids[place], 2.0) == pytest.approx(float(found[-1][place]), rel=1e-4)
    course = torch.stack(found)
    assert (course.diff(dim=0) <= 0).all()
    assert (course[-1] < course[0]).all()
    assert (state["distance"].diff(dim=1) >= 0).all()  # the best first


def test_all_distances_belong_to_their_candidates(target):
    search = start(ring_a_bell, target, tokens=3, population=10, generations=5)
    state = moved(search, begun(search, target, [1]), 2)
    model, eos = target.original, target.original.tokenizer.eos_token_id
    for tokens, distance in zip(state["kept"][0], state["distance"][0], strict=True):
        ids = torch.cat([target.tokens[1, :1], tokens, torch.full((model.length - 4,), eos)])
        assert distance_of(target, 1, ids, 3.0) == pytest.approx(float(distance), rel=1e-4)


def test_breeding_by_hand(target):
    vocabulary = Vocabulary(target.original)
    parents = torch.tensor([[[1, 2, 3, 4], [5, 6, 7, 8]]])
    quarter = 1 / len(vocabulary.ids)
    uniforms = torch.tensor([[
        0.9, 0.1,  # only the second has children
        0.0, 0.0,  # with the first
        0.0, 0.3,  # cut before place 1
        0.1, 0.2, 0.9, 0.9, 0.9, 0.1,  # the second, and the second's second child, have a token replaced
        0.0, 0.5, 0.0, 0.0, 0.0, 0.75,  # at places 2 and 3
        0.0, 0.0, 0.0, 0.0, 0.0, 1.5 * quarter,  # by the first and by the second token of the vocabulary
    ]])  # fmt: skip
    family, born, fresh = breed(parents, uniforms, vocabulary, 0.5, 0.25)
    first, second = vocabulary.ids[:2].tolist()
    assert born.tolist() == [[True, True, False, True, False, True]]
    assert fresh.tolist() == [[False, True, False, True, False, True]]  # the best one has no draw that changes it
    assert family[0][born[0]].tolist() == [[1, 2, 3, 4], [5, 6, first, 8], [5, 2, 3, 4], [1, 6, 7, second]]


@pytest.mark.parametrize("crossover", [0.0, 0.5, 1.0])
def test_rates_of_breeding(target, crossover):
    vocabulary, generator = Vocabulary(target.original), torch.Generator().manual_seed(0)
    parents = torch.full((1, 2000, 4), int(vocabulary.ids[-1]))
    uniforms = torch.rand(1, 24000, generator=generator)
    family, born, fresh = breed(parents, uniforms, vocabulary, crossover, 0.25)
    assert int(born.sum()) == pytest.approx(2000 * (1 + 2 * crossover), rel=0.05)
    changed = (family != parents[0, 0]).sum(-1)[born]
    assert int(changed.max()) == 1 and float(changed.float().mean()) == pytest.approx(0.25, abs=0.03)
    assert not (fresh & ~born).any()


class Silent(torch.nn.Module):
    """A model that must not be used."""

    def __getattr__(self, name):
        raise AssertionError(f"the unlearned model was asked for {name}")


def test_ring_a_bell_never_touches_the_unlearned_model(target):
    blind = replace(target, unlearned=Silent())
    search = start(ring_a_bell, blind, **SMALL["ring-a-bell"][1])
    state = begun(search, blind, [0, 1])
    assert search.move(state) == 0
    seeing = start(ring_a_bell, target, **SMALL["ring-a-bell"][1])
    assert torch.equal(search.propose(state).ids, seeing.propose(moved(seeing, begun(seeing, target, [0, 1]), 1)).ids)


def test_ring_a_bell_uses_no_denoiser(make_model):
    target = build(make_model)
    target.original.unet = None
    search = start(ring_a_bell, target, **SMALL["ring-a-bell"][1])
    assert search.propose(moved(search, begun(search, target, [0]), 1)).ids.shape == (1, 16)


def test_the_anchor_stands_for_the_concepts_absence(target):
    anchored = replace(target, anchor="a photo of a chapel")
    one, other = (start(ring_a_bell, given, eta=2.0).shift for given in (target, anchored))
    assert torch.allclose(one, 2 * concept_vector(target.original, "church", "something"))
    assert torch.allclose(other, 2 * concept_vector(target.original, "church", "a photo of a chapel"))


def test_a_population_of_two_and_no_children(target):
    search = start(ring_a_bell, target, tokens=2, population=2, generations=2, crossover=0.0)
    state = begun(search, target, [0])
    before = search.propose(state).ids
    assert torch.equal(search.propose(moved(search, state, 2)).ids, before)


# --- Concept Inversion ---


def test_concept_inversion_steps_as_its_equation(target):
    search = start(concept_inversion, target, inner_steps=1)
    state = begun(search, target, [2])
    model = target.unlearned
    table = model.token_embeddings.detach()
    words = model.tokenize(["church"])[0]
    own = words[1 : words.tolist().index(model.tokenizer.eos_token_id)]
    assert torch.allclose(state["x"][0, 0], table[own].mean(0))

    soft = table[own].mean(0, keepdim=True).requires_grad_()
    x_t, t, noise = noisy(target, state, None, torch.tensor([0]), 0)
    tokens = target.tokens[2]
    embeddings = torch.cat([table[tokens[:1]], soft, table[tokens[1:-1]]])[None]
    F.mse_loss(model.predict(x_t, t, model.encode_soft(embeddings)), noise).backward()
    torch.optim.AdamW([soft], lr=5e-3, weight_decay=0.01).step()
    moved(search, state, 1)
    assert torch.allclose(state["x"][0], soft, atol=1e-5)
    proposed = search.propose(state).embeddings
    assert torch.allclose(proposed[0, 1], state["x"][0, 0])
    assert torch.equal(proposed[0, 0], table[tokens[0]]) and torch.equal(proposed[0, 2:], table[tokens[1:-1]])


@pytest.mark.slow
def test_concept_inversion_descends(target):
    search = start(concept_inversion, target, tokens=3, inner_steps=10, lr=0.05)
    state = begun(search, target, list(range(COUNT)))
    pictures = {"row": torch.arange(COUNT).repeat_interleave(16), "id": torch.arange(COUNT * 16) + 1000}
    x, t, noise = noisy(target, pictures, None, torch.zeros(COUNT * 16, dtype=torch.int64), 9)

    def error():
        with torch.no_grad():
            context = target.unlearned.encode_soft(search.propose(state).embeddings)[pictures["row"]]
            return float((target.unlearned.predict(x, t, context) - noise).square().mean())

    before = error()
    moved(search, state, 4)
    assert error() < before


def test_soft_tokens_may_start_at_random_tokens(target):
    search = start(concept_inversion, target, tokens=3, start="random", location="suffix")
    state = begun(search, target, [0, 1])
    table, allowed = tables(target)
    for x in state["x"].flatten(0, 1):
        assert any(torch.equal(x, table[token]) for token in allowed)
    assert not torch.equal(state["x"][0], state["x"][1])


def test_a_prompt_without_room_is_told(target):
    with pytest.raises(RubError, match="case 3"):
        start(concept_inversion, target, tokens=14)


# --- all of them ---


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_neighbours_do_not_matter(target, name):
    """A prompt alone, and beside others that joined at another time and leave before it."""
    function, parameters = SMALL[name]
    lonely = start(function, target, **parameters)
    single = moved(lonely, begun(lonely, target, [1]), 4)

    search = start(function, target, **parameters)
    state = moved(search, begun(search, target, [0, 2]), 1)
    later = begun(search, target, [1, 3])
    state = {name: torch.cat([part, later[name]]) for name, part in state.items()}
    state = moved(search, state, 2)
    state = {name: part[torch.tensor([False, True, True, False])] for name, part in state.items()}
    state = moved(search, state, 2)
    assert state["t"].tolist() == [5, 4]
    for key, part in single.items():
        assert torch.allclose(state[key][1].double(), part[0].double(), rtol=1e-4, atol=1e-3 * part.is_floating_point())
    mine, alone_ = search.propose(state), lonely.propose(single)
    if mine.ids is not None:
        assert torch.equal(mine.ids[1], alone_.ids[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_seed_gives_the_same_search_and_another_one_another(target, name):
    function, parameters = SMALL[name]

    def found(seed):
        search = start(function, target, seed=seed, **parameters)
        given = search.propose(moved(search, begun(search, target, [0, 1, 2]), 2))
        return given.embeddings if given.ids is None else given.ids

    torch.manual_seed(0)
    one = found(0)
    torch.manual_seed(1)
    assert torch.equal(one, found(0))
    assert not torch.equal(one, found(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["p4d", "p4d-k", "ring-a-bell"])
def test_proposed_ids_are_prompts_of_allowed_tokens(target, name):
    function, parameters = SMALL[name]
    search = start(function, target, **(parameters | ({} if name == "p4d-k" else {"tokens": 16})))
    state = begun(search, target, list(range(COUNT)))
    _, allowed = tables(target)
    tokenizer = target.original.tokenizer
    for _ in range(3):
        moved(search, state, 1)
        ids = search.propose(state).ids
        assert ids.shape == (COUNT, 16) and ids.dtype == torch.int64
        for row, text in zip(ids.tolist(), TEXTS, strict=True):
            end = row.index(tokenizer.eos_token_id)
            assert row[0] == tokenizer.bos_token_id
            assert set(row[1:end]) <= set(allowed) and set(row[end:]) == {tokenizer.eos_token_id}
            if name == "p4d-k":
                own = tokenizer(text, add_special_tokens=False).input_ids
                kept = [token for place, token in enumerate(row[1:end]) if place % 4]
                assert kept == own[: len(kept)] and end - 1 == min(len(own) + len(own) // 3 + 1, 14)
            else:
                assert end == 15  # 16 tokens do not fit


@pytest.mark.parametrize("name", SMALL)
def test_gradient_steps_are_told(target, name):
    function, parameters = SMALL[name]
    search = start(function, target, **parameters)
    assert search.move(begun(search, target, [0])) == parameters.get("inner_steps", 0)


@pytest.mark.parametrize("name", SMALL)
def test_models_are_left_alone(target, name):
    function, parameters = SMALL[name]
    models = target.original, target.unlearned
    before = [{key: value.clone() for key, value in model.state_dict().items()} for model in models]
    search = start(function, target, **parameters)
    state = moved(search, begun(search, target, [0, 1]), 1)
    for model, kept in zip(models, before, strict=True):
        assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())
    assert not any(part.requires_grad for part in state.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_the_harness_runs_it(target, name):
    function, parameters = SMALL[name]
    drawing = Drawing(target.unlearned, Sampler("ddim", 2), unseen)
    found = run_attack(function, parameters, target, Budget(2), AttackContext(batch_size=3), drawing)
    assert found.step.tolist() == [-1] * COUNT and found.evaluations.tolist() == [3] * COUNT
    assert (found.embeddings is None) == (name != "concept-inversion")
    assert (found.ids != target.tokens).any() == (name != "concept-inversion")


@pytest.mark.parametrize("name", ["p4d", "concept-inversion"])
def test_errors_that_are_not_finite_are_told(target, name):
    function, parameters = SMALL[name]
    target = replace(target, x0=target.x0.clone())
    target.x0[2] = torch.nan
    search = start(function, target, **parameters)
    state = begun(search, target, [0, 2])
    with pytest.raises(Diverged, match="not finite"):
        search.move(state)


def test_a_broken_text_encoder_is_told(make_model):
    target = build(make_model)
    search = start(ring_a_bell, target, **SMALL["ring-a-bell"][1])
    with torch.no_grad():
        target.original.token_embeddings.fill_(torch.nan)
    with pytest.raises(Diverged, match="not finite"):
        begun(search, target, [0])
