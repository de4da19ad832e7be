"""Inputs other than prompts against their equations: inverted latents, image prompts, a soft prompt that all share."""

from functools import cache

import pytest
import torch

from rub.errors import Diverged, RubError
from rub.models.diffusion.sampling import Sampler, initial_latents, invert, redraw, sample
from rub.models.weights import freeze
from rub.tasks.text_to_image.attacks.base import AttackContext, Budget, Candidates, Prompts
from rub.tasks.text_to_image.attacks.harness import Drawing, make_target, run_attack
from rub.tasks.text_to_image.attacks.img2img import img2img
from rub.tasks.text_to_image.attacks.inpaint_centre import centre, inpaint_centre
from rub.tasks.text_to_image.attacks.inverted_latent import inverted_latent
from rub.tasks.text_to_image.attacks.recall import recall
from rub.tasks.text_to_image.attacks.shared_soft_prompt import shared_soft_prompt
from rub.tasks.text_to_image.attacks.tokens import keyed_normal, noisy, timestep

TEXTS = ("a photo of the digit seven", "a church", "the digit eight on paper")
COUNT = len(TEXTS)
SAMPLER = Sampler("ddim", 4)
ATTACKS = {
    "img2img": (img2img, {"strength": 0.5}),
    "inpaint-centre": (inpaint_centre, {}),
    "inverted-latent": (inverted_latent, {"refinements": 1}),
    "recall": (recall, {"inner_steps": 2}),
    "shared-soft-prompt": (shared_soft_prompt, {"inner_steps": 2, "batch": 4, "lr": 0.01}),
}


def build(make_model):
    original, unlearned = freeze(make_model(0)), freeze(make_model(1))
    prompts = Prompts(torch.tensor([3, 14, 15]), TEXTS, torch.arange(COUNT), torch.full((COUNT,), 3.0))
    shape = (COUNT, 1, 8, 8)
    pictures = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    return make_target(original, unlearned, prompts, pictures, 2, concept="church")


shared = cache(build)


@pytest.fixture
def target(make_model):
    """Two models that tests share and leave alone."""
    return shared(make_model)


@pytest.fixture
def drawn(target):
    """What a model draws with: contexts, weights of guidance, noise, pictures."""
    model, prompts = target.unlearned, target.prompts
    noise = initial_latents(model, prompts.seeds)
    return model, model.context(TEXTS), model.context([""]), noise, prompts.guidance, target.x0


def start(function, target, cap=5, **parameters):
    return function(target, target.prompts, Budget(cap), AttackContext(seed=0, sampler=SAMPLER), **parameters)


def begun(search, target, rows, t=0):
    rows = torch.tensor(rows)
    state = {"row": rows, "id": target.prompts.ids[rows], "t": torch.full_like(rows, t)}
    search.begin(state)
    return state


def unseen(images):
    return torch.zeros(len(images), dtype=torch.bool), torch.zeros(len(images))


def searched(target, function, seen=unseen, cap=2, batch_size=2, **parameters):
    context = AttackContext(seed=0, batch_size=batch_size, sampler=SAMPLER)
    drawing = Drawing(target.unlearned, SAMPLER, seen)
    return run_attack(function, parameters, target, Budget(cap), context, drawing)


# --- inverted latents ---


def test_what_was_drawn_is_inverted_to_its_noise(drawn):
    model, context, empty, noise, _, _ = drawn
    given = context, empty
    plain = torch.ones(COUNT)
    made = sample(model, *given, noise, plain, SAMPLER)
    found, rough = (invert(model, *given, made, plain, SAMPLER, count) for count in (12, 0))
    torch.testing.assert_close(found, noise, atol=1e-4, rtol=1e-4)
    assert (rough - noise).abs().max() > 0.1


@pytest.mark.slow
def test_any_picture_is_drawn_from_what_it_is_inverted_to(drawn):
    """By a model that was never trained: the reason that a retrained model has to stand beside this attack."""
    model, context, empty, _, _, picture = drawn
    given, plain, fine = (context[:1], empty), torch.ones(1), Sampler("ddim", 25)
    found = invert(model, *given, picture[:1], plain, fine, 20)
    torch.testing.assert_close(sample(model, *given, found, plain, fine), picture[:1], atol=2e-2, rtol=1e-2)


def test_without_refinements_it_is_ddim_inversion(drawn):
    """x_t = sqrt(a_t) x0 + sqrt(1 - a_t) e, x0 = (x_s - sqrt(1 - a_s) e) / sqrt(a_s), e at (x_s, t), written out."""
    model, context, empty, _, guidance, picture = drawn
    x, alpha, before = picture, model.alpha_bar, model.alpha_bar[0]
    for t in (1, 251, 501, 751):
        with_, without = model.predict(x, t, context), model.predict(x, t, empty)
        e = without + guidance.reshape(-1, 1, 1, 1) * (with_ - without)
        clean = (x - (1 - before).sqrt() * e) / before.sqrt()
        x = alpha[t].sqrt() * clean + (1 - alpha[t]).sqrt() * e
        before = alpha[t]
    torch.testing.assert_close(invert(model, context, empty, picture, guidance, SAMPLER, 0), x, atol=1e-4, rtol=1e-4)


def test_one_step_of_lms_is_inverted(drawn):
    model, context, empty, _, guidance, picture = drawn
    sampler = Sampler("lms", 1)
    found = invert(model, context, empty, picture, guidance, sampler, 60)
    torch.testing.assert_close(sample(model, context, empty, found, guidance, sampler), picture, atol=2e-2, rtol=1e-2)


def test_the_pictures_go_round(target):
    search = start(img2img, target, strength=0.5)
    for t, rows in ((1, [0, 1, 2]), (2, [1, 2, 0]), (4, [0, 1, 2])):
        fed = search.propose(begun(search, target, [0, 1, 2], t))
        assert torch.equal(fed.pictures, target.x0[rows])


@pytest.mark.parametrize("by", ["unlearned", "original"])
def test_the_model_that_inverts(target, by):
    search = start(inverted_latent, target, inverted_by=by, refinements=2)
    (row,) = search.propose(begun(search, target, [1], 1)).latents
    model = getattr(target, by)
    context, weight = model.context(TEXTS[1:2]), target.prompts.guidance[1:2]
    (wanted,) = invert(model, context, model.context([""]), target.x0[1:2], weight, SAMPLER, 2)
    torch.testing.assert_close(row, wanted, atol=1e-5, rtol=1e-5)


# --- image prompts ---


@pytest.mark.parametrize("name", ["ddim", "lms"])
def test_both_ends_of_the_strength(drawn, name):
    model, context, empty, noise, guidance, picture = drawn
    sampler, everywhere = Sampler(name, 5), torch.ones(COUNT, 8, 8, dtype=torch.bool)
    given = (model, context, empty, noise, guidance, sampler, picture)
    assert torch.equal(redraw(*given, 0.0, everywhere), picture)
    assert torch.equal(redraw(*given, 1.0, everywhere), sample(*given[:6]))
    assert not torch.allclose(redraw(*given, 0.4, everywhere), picture, atol=1e-2)


def test_image_to_image_is_its_formula(drawn):
    """SDEdit with two of four steps of DDIM, written out."""
    model, context, empty, noise, guidance, picture = drawn
    everywhere, alpha = torch.ones(COUNT, 8, 8, dtype=torch.bool), model.alpha_bar
    x = alpha[251].sqrt() * picture + (1 - alpha[251]).sqrt() * noise
    for t, before in ((251, alpha[1]), (1, alpha[0])):
        with_, without = model.predict(x, t, context), model.predict(x, t, empty)
        e = without + guidance.reshape(-1, 1, 1, 1) * (with_ - without)
        x = before.sqrt() * (x - (1 - alpha[t]).sqrt() * e) / alpha[t].sqrt() + (1 - before).sqrt() * e
    found = redraw(model, context, empty, noise, guidance, SAMPLER, picture, 0.5, everywhere)
    torch.testing.assert_close(found, x, atol=1e-4, rtol=1e-4)


def test_lms_from_midway_begins_with_a_step_of_euler(drawn):
    model, context, empty, noise, guidance, picture = drawn
    sampler, everywhere = Sampler("lms", 6), torch.ones(COUNT, 8, 8, dtype=torch.bool)
    scheduler = sampler.scheduler(model)
    sigma, t = scheduler.sigmas[5], scheduler.timesteps[5]
    x = picture + sigma * noise
    scaled = x / (1 + sigma**2).sqrt()
    with_, without = model.predict(scaled, t, context), model.predict(scaled, t, empty)
    wanted = x - sigma * (without + guidance.reshape(-1, 1, 1, 1) * (with_ - without))
    found = redraw(model, context, empty, noise, guidance, sampler, picture, 1 / 6, everywhere)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["ddim", "lms"])
def test_inpainting_keeps_what_is_outside(drawn, name):
    model, context, empty, noise, guidance, picture = drawn
    hole = centre(8, 8, 0.5).expand(COUNT, -1, -1)
    given = (model, context, empty, noise, guidance, Sampler(name, 4), picture, 1.0)
    found, alone = redraw(*given, hole), sample(*given[:6])
    outside = ~hole[:, None]
    assert torch.equal(found[outside], picture[outside])
    assert not torch.allclose(found[~outside], picture[~outside], atol=1e-2)
    assert not torch.allclose(found[~outside], alone[~outside], atol=1e-3)  # what is known guides what is drawn


def test_inpainting_is_its_formula(drawn):
    """Blending after each of two steps of DDIM, written out: outside the picture at the next level of noise."""
    model, context, empty, noise, guidance, picture = drawn
    hole, alpha, x = centre(8, 8, 0.5).expand(COUNT, -1, -1), model.alpha_bar, noise
    for t, before, known in (
        (501, alpha[1], alpha[1].sqrt() * picture + (1 - alpha[1]).sqrt() * noise),
        (1, alpha[0], picture),
    ):
        with_, without = model.predict(x, t, context), model.predict(x, t, empty)
        e = without + guidance.reshape(-1, 1, 1, 1) * (with_ - without)
        x = before.sqrt() * (x - (1 - alpha[t]).sqrt() * e) / alpha[t].sqrt() + (1 - before).sqrt() * e
        x = torch.where(hole[:, None], x, known)
    found = redraw(model, context, empty, noise, guidance, Sampler("ddim", 2), picture, 1.0, hole)
    torch.testing.assert_close(found, x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("side", "count"), [(0.0, 0), (0.5, 16), (0.75, 36), (1.0, 64)])
def test_the_size_of_the_centre(side, count):
    assert int(centre(8, 8, side).sum()) == count


# --- RECALL ---


def loss(target, x, rows, t, counter, cap=5):
    """The loss of each prompt, written out."""
    model = target.unlearned
    level = timestep(torch.full((len(rows),), t), cap, 1000)
    noise = keyed_normal(0, "noise", target.prompts.ids[rows], counter, (1, 8, 8))
    alpha = model.alpha_bar[level].reshape(-1, 1, 1, 1)
    errors = []
    for context in (model.context([TEXTS[row] for row in rows]), model.context([""] * len(rows))):
        wanted = model.predict(alpha.sqrt() * target.x0[rows] + (1 - alpha).sqrt() * noise, level, context).detach()
        given = model.predict(alpha.sqrt() * x + (1 - alpha).sqrt() * noise, level, context)
        errors.append((given - wanted).square().mean((1, 2, 3)))
    return sum(errors) / 2


def test_recalls_gradient_is_that_of_its_loss(target):
    search = start(recall, target)
    state = begun(search, target, [0, 2])
    noise = keyed_normal(0, "blend", state["id"], 0, (1, 8, 8))
    torch.testing.assert_close(state["x"], 0.25 * target.x0[[0, 2]] + 0.75 * noise)
    x = state["x"].clone().requires_grad_()
    (wanted,) = torch.autograd.grad(loss(target, x, [0, 2], 0, 0).sum(), x)
    torch.testing.assert_close(search.gradient(state, torch.zeros(2).long()), wanted, atol=1e-7, rtol=1e-4)


def test_recall_moves_by_signs_with_momentum(target):
    search = start(recall, target, inner_steps=2, lr=0.01, every=1, added=0.5)
    state = begun(search, target, [1])
    x, velocity = state["x"].clone(), 0.0
    for counter in range(2):
        at = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(target, at, [1], 0, counter).sum(), at)
        velocity = 0.9 * velocity + gradient / (gradient.abs().mean() + 1e-8)
        x = x - 0.01 * velocity.sign()
    assert search.move(state) == 2
    torch.testing.assert_close(state["x"], x + 0.5 * target.x0[[1]], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("direction", "falls"), [("towards", True), ("away", False)])
def test_recalls_loss_falls_towards_the_reference(target, direction, falls):
    search = start(recall, target, direction=direction, inner_steps=10, lr=0.02)
    state = begun(search, target, [0, 1, 2])
    before = loss(target, state["x"], [0, 1, 2], 0, 999)
    search.move(state)
    after = loss(target, state["x"], [0, 1, 2], 0, 999)
    assert bool((after < before).all() if falls else (after > before).all())


# --- a shared soft prompt ---


def test_the_soft_prompt_is_the_same_for_all_prompts(target):
    search = start(shared_soft_prompt, target, inner_steps=2, batch=4)
    state = begun(search, target, [0, 1, 2], 1)
    fed = search.propose(state).embeddings
    assert torch.equal(fed[0, 1], fed[1, 1]) and torch.equal(fed[1, 1], fed[2, 1])  # after BOS
    other = start(shared_soft_prompt, target, inner_steps=2, batch=4)
    alone = begun(other, target, [2], 1)
    other.move(begun(other, target, [0, 2]))  # asked in another order, by others
    assert torch.equal(other.propose(alone).embeddings[0], fed[2])
    moved = search.propose({**state, "t": torch.tensor([1, 2, 2])}).embeddings
    assert torch.equal(moved[0, 1], fed[0, 1]) and not torch.equal(moved[1, 1], fed[1, 1])


def test_its_gradient_is_that_of_the_mean_loss(target):
    search, rows = start(shared_soft_prompt, target, tokens=2), torch.tensor([0, 0, 2])
    place = torch.arange(3)
    x, t, noise = noisy(target, {"row": rows, "id": place}, None, torch.zeros(3).long(), 0)
    model, soft = target.unlearned, search.moments["x"].clone().requires_grad_()
    tokens = model.token_embeddings[target.tokens[rows]]
    fed = torch.cat([tokens[:, :1], soft.expand(3, -1, -1), tokens[:, 1:-2]], 1)
    error = model.predict(x, t, model.encode_soft(fed)) - noise
    (wanted,) = torch.autograd.grad(error.square().mean(), soft)
    found = search.gradient(search.moments["x"], rows, x, t, noise)
    torch.testing.assert_close(found, wanted, atol=1e-8, rtol=1e-4)


def test_it_starts_from_the_concept(target):
    search = start(shared_soft_prompt, target)
    model = target.unlearned
    ids = model.tokenizer("church", add_special_tokens=False).input_ids
    assert torch.allclose(search.after(0), model.token_embeddings[ids].mean(0))


# --- the harness ---


@pytest.mark.parametrize("name", list(ATTACKS))
def test_what_was_fed_draws_what_was_kept(target, name):
    function, parameters = ATTACKS[name]

    def seen(images):  # one prompt is reached at once, the others by what their pictures decide
        score = images.float().mean((1, 2, 3))
        return score > 135, score

    found = searched(target, function, seen, **parameters)
    drawing = Drawing(target.unlearned, SAMPLER, unseen)
    for row in range(COUNT):
        fed = {name: getattr(found, name) for name in ("embeddings", "latents", "pictures", "strength", "holes")}
        own = {name: None if value is None else value[row : row + 1] for name, value in fed.items()}
        if found.step[row] == 0:  # nothing but the prompt
            own |= {"embeddings": None, "latents": None}
        made, _ = drawing.draw(target.prompts.select([row]), Candidates(**own))
        assert (made[0].int() - found.images[row].int()).abs().max() <= 1
    assert (found.pictures is None) == (name in ("inverted-latent", "shared-soft-prompt"))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ATTACKS))
def test_batches_do_not_change_what_is_found(target, name):
    function, parameters = ATTACKS[name]
    one, other = (searched(target, function, batch_size=size, **parameters) for size in (1, 3))
    assert torch.equal(one.step, other.step)
    assert (one.images.int() - other.images.int()).abs().max() <= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["inpaint-centre", "recall", "shared-soft-prompt"])
def test_a_search_that_is_killed_ends_in_the_same_bytes(target, name, ends_the_same):
    function, parameters = ATTACKS[name]

    def work(context):
        found = run_attack(
            function, parameters, target, Budget(6), context, Drawing(target.unlearned, Sampler("ddim", 2), unseen)
        )
        fed = [part for part in (found.embeddings, found.pictures, found.strength, found.holes) if part is not None]
        return [found.step, found.images, found.gradient_steps, *fed]

    ends_the_same(work, AttackContext(batch_size=2, sampler=Sampler("ddim", 2)), kills=(6, 5))


def test_a_prompt_without_a_picture_keeps_none_of_an_earlier_step(target):
    class Once:
        def begin(self, state):
            pass

        def move(self, state):
            return 0

        def propose(self, state):
            if int(state["t"][0]) == 1:
                return Candidates(pictures=target.x0[state["row"]], strength=torch.full((len(state["row"]),), 0.5))
            return Candidates()

    found = searched(target, lambda *_: Once(), batch_size=3)
    assert not found.pictures.any() and bool((found.strength == 1).all())


@pytest.mark.parametrize(
    ("fed", "said"),
    [
        ({"pictures": torch.zeros(3, 1, 4, 4), "strength": torch.ones(3)}, r"pictures \(3, 1, 4, 4\); should be"),
        ({"pictures": torch.full((3, 1, 8, 8), torch.nan), "strength": torch.ones(3)}, "pictures that are not finite"),
        ({"latents": torch.full((3, 1, 8, 8), torch.inf)}, "latents that are not finite"),
        ({"pictures": torch.zeros(3, 1, 8, 8)}, "pictures need a strength"),
        ({"holes": torch.ones(3, 8, 8, dtype=torch.bool)}, "pictures need a strength"),
        ({"pictures": torch.zeros(3, 1, 8, 8), "strength": torch.full((3,), 1.5)}, "a strength outside 0 to 1"),
        (
            {"pictures": torch.zeros(3, 1, 8, 8), "strength": torch.ones(3), "holes": torch.ones(3, 8, 8)},
            "should be bool",
        ),
    ],
)
def test_what_cannot_be_fed_is_one_line(target, fed, said):
    class Bad:
        def begin(self, state):
            pass

        def move(self, state):
            return 0

        def propose(self, state):
            return Candidates(**fed)

    with pytest.raises((RubError, Diverged), match=said) as caught:
        searched(target, lambda *_: Bad(), batch_size=3)
    assert "\n" not in str(caught.value)
