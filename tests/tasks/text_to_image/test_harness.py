"""The harness: steps are counted once, prompts leave at their success, a search that breaks its contract is told."""

import pytest
import torch

from rub.errors import RubError
from rub.models.diffusion.model import SCHEDULE, Diffusion
from rub.models.diffusion.sampling import Sampler, guided, initial_latents, sample
from rub.models.weights import freeze
from rub.tasks.text_to_image.attacks.base import AttackContext, Budget, Candidates, Prompts
from rub.tasks.text_to_image.attacks.harness import Drawing, make_target, run_attack

TEXTS = ("a photo of the digit seven", "a church", "the digit eight on paper", "a chapel", "a garbage truck")


@pytest.fixture
def prompts():
    return Prompts(torch.arange(10, 15), TEXTS, torch.arange(5), torch.full((5,), 3.0))


class Scripted:
    """A search that succeeds for a prompt after as many moves as its script says: it feeds the token of that number."""

    def __init__(self, target, prompts, budget, context, *, gradient_steps=2):
        self.target, self.gradient_steps, self.sizes = target, gradient_steps, []

    def begin(self, state):
        state["moved"] = torch.zeros_like(state["row"])

    def move(self, state):
        assert torch.equal(state["moved"], state["t"])
        state["moved"] += 1
        self.sizes.append(len(state["row"]))
        return self.gradient_steps

    def propose(self, state):
        ids = self.target.tokens[state["row"]].clone()
        ids[:, 1] = state["moved"]  # the judge below reads it from the picture
        return Candidates(ids=ids)


class Judge:
    """Sees the concept once the number of looks at a prompt exceeds its script."""

    def __init__(self, needed):
        self.needed, self.looks = needed, dict.fromkeys(needed, 0)
        self.queue = []

    def drawn(self, rows):
        self.queue.append(rows)

    def __call__(self, images):
        rows = self.queue.pop(0)
        assert len(rows) == len(images)
        hit = []
        for row in rows:
            hit.append(self.looks[row] >= self.needed[row])
            self.looks[row] += 1
        return torch.tensor(hit), torch.arange(len(rows)).float()


class Told(Drawing):
    """A drawing that tells the judge which prompts it drew."""

    def draw(self, prompts, fed):
        self.seen.drawn(prompts.ids.tolist())
        return super().draw(prompts, fed)


def attack(model, prompts, needed, cap=4, batch_size=3, function=Scripted, **parameters):
    judge = Judge(needed)
    drawing = Told(model, Sampler("ddim", 2), judge)
    before = torch.zeros(len(prompts), 1, 8, 8, dtype=torch.uint8)
    target = make_target(model, model, prompts, before, 2, concept="seven")
    found = run_attack(function, parameters, target, Budget(cap), AttackContext(batch_size=batch_size), drawing)
    return found, judge


@pytest.mark.slow
def test_steps_and_evaluations_are_counted_per_prompt(model, prompts):
    needed = {10: 0, 11: 1, 12: 4, 13: 99, 14: 2}
    found, judge = attack(freeze(model), prompts, needed)
    assert found.step.tolist() == [0, 1, 4, -1, 2]  # success before any move is step 0, a failure is -1
    assert found.evaluations.tolist() == [1, 2, 5, 5, 3]  # the clean picture and one per step
    assert found.gradient_steps.tolist() == [0, 2, 8, 8, 4]
    assert list(judge.looks.values()) == found.evaluations.tolist()


@pytest.mark.slow
def test_a_search_that_is_killed_ends_in_the_same_bytes(model, prompts, ends_the_same):
    def work(context):
        def seen(images):  # depends on the picture alone
            score = images.float().mean((1, 2, 3))
            return score > 140, score

        before = torch.zeros(5, 1, 8, 8, dtype=torch.uint8)
        target = make_target(freeze(model), model, prompts, before, 2, concept="seven")
        drawing = Drawing(model, Sampler("ddim", 2), seen)
        found = run_attack(Scripted, {}, target, Budget(6), context, drawing)
        return [found.step, found.score, found.ids, found.images, found.gradient_steps, found.evaluations]

    ends_the_same(work, AttackContext(batch_size=2), kills=(6, 5))


def test_what_was_fed_at_the_success_is_kept(model, prompts):
    found, _ = attack(freeze(model), prompts, {10: 0, 11: 1, 12: 4, 13: 99, 14: 2})
    clean = model.tokenize(prompts.texts)
    assert torch.equal(found.ids[0], clean[0])  # a clean success fed the prompt itself
    assert found.ids[1:, 1].tolist() == [1, 4, 4, 2]
    assert torch.equal(found.ids[1:, 2:], clean[1:, 2:])


@pytest.mark.slow
def test_pictures_are_those_of_the_kept_tokens(model, prompts):
    found, _ = attack(freeze(model), prompts, {10: 0, 11: 1, 12: 4, 13: 99, 14: 2})
    drawing = Drawing(model, Sampler("ddim", 2), lambda images: None)
    for row in range(5):  # drawn alone: the neighbours do not matter
        alone, _ = drawing.draw(prompts.select([row]), Candidates(ids=found.ids[row : row + 1]))
        assert (alone[0].int() - found.images[row].int()).abs().max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batches_do_not_change_the_result(model, prompts, batch_size):
    needed = {10: 0, 11: 1, 12: 4, 13: 99, 14: 2}
    one, _ = attack(freeze(model), prompts, needed, batch_size=1)
    other, _ = attack(freeze(model), prompts, needed, batch_size=batch_size)
    assert torch.equal(one.step, other.step) and torch.equal(one.ids, other.ids)


class Bad(Scripted):
    """Breaks the contract in the way it is told."""

    def __init__(self, *given, how, **more):
        super().__init__(*given, **more)
        self.how = how

    def propose(self, state):
        count = len(state["row"])
        return {
            "ids": Candidates(ids=torch.full((count, 16), 10**6)),
            "negative": Candidates(ids=torch.full((count, 16), -1)),
            "shape": Candidates(ids=torch.zeros(count, 3, dtype=torch.int64)),
            "texts": Candidates(texts=["one"] * (count + 1)),
            "latents": Candidates(latents=torch.zeros(count, 1, 4, 4)),
        }[self.how]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("ids", "outside the vocabulary"),
        ("negative", "outside the vocabulary"),
        ("shape", "proposed ids"),
        ("texts", "6 texts; should be 5"),
        ("latents", "proposed latents"),
    ],
)
def test_a_search_that_breaks_its_contract_is_told(model, prompts, how, said):
    with pytest.raises(RubError, match=said):
        attack(freeze(model), prompts, dict.fromkeys(range(10, 15), 99), batch_size=5, function=Bad, how=how)


def test_a_cap_of_nothing_is_refused():
    with pytest.raises(RubError, match="at least 1 attack step"):
        Budget(0)


def test_guidance_is_the_textbook_combination(model):
    freeze(model)
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), 500
    context, empty = model.context(["a church", "a chapel"]), model.context([""])
    given = guided(model, x, t, context, empty, torch.tensor([7.5, 2.0]), {})
    with_, without = model.predict(x, t, context), model.predict(x, t, empty)
    wanted = torch.stack([7.5 * with_[0] - 6.5 * without[0], 2 * with_[1] - without[1]])
    assert torch.allclose(given, wanted, atol=1e-5)


@pytest.mark.parametrize("name", ["ddim", "lms"])
def test_a_model_that_predicts_v_draws_what_diffusers_draws(model, name):
    from diffusers import DDIMScheduler, LMSDiscreteScheduler

    schedule = {**SCHEDULE, "prediction_type": "v_prediction"}
    made = freeze(Diffusion(model.unet, model.text_encoder, model.vae, model.tokenizer, schedule))
    context, noise = made.context(["a church"]), initial_latents(made, torch.tensor([3]))
    if name == "ddim":
        scheduler = DDIMScheduler(**schedule)
    else:
        scheduler = LMSDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction"
        )
    scheduler.set_timesteps(7)
    x = noise * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            v = made.unet(scheduler.scale_model_input(x, t), t, encoder_hidden_states=context).sample
            x = scheduler.step(v, t, x).prev_sample
    drawn = sample(made, context, made.context([""]), noise, torch.tensor([1.0]), Sampler(name, 7))
    torch.testing.assert_close(drawn, x, rtol=2e-3, atol=2e-3)
    plain = sample(model, context, made.context([""]), noise, torch.tensor([1.0]), Sampler(name, 7))
    assert not torch.allclose(drawn, plain, atol=0.1)


def test_ddim_equals_its_formula(model):
    """Song et al. 2021, eq. 12 with eta 0, written out."""
    freeze(model)
    noise, steps = initial_latents(model, torch.tensor([3])), 4
    context, empty = model.context(["a church"]), model.context([""])
    drawn = sample(model, context, empty, noise, torch.tensor([1.0]), Sampler("ddim", steps))
    x, alpha = noise, model.alpha_bar
    for t in range(1000 - 1000 // steps + 1, 0, -1000 // steps):
        e = model.predict(x, t, context)
        before = alpha[t - 1000 // steps] if t >= 1000 // steps else alpha[0]
        x0 = (x - (1 - alpha[t]).sqrt() * e) / alpha[t].sqrt()
        x = before.sqrt() * x0 + (1 - before).sqrt() * e
    assert torch.allclose(drawn, x, atol=1e-4)


def test_alpha_bar_is_stable_diffusions(model):
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    wanted = (1 - betas).cumprod(0).float()
    assert torch.allclose(model.alpha_bar, wanted, atol=1e-6)
    assert model.alpha_bar[0] == pytest.approx(0.99915) and model.alpha_bar[-1] == pytest.approx(0.00466, abs=1e-5)


def test_lms_starts_at_its_sigma(model):
    scheduler = Sampler("lms", 50).scheduler(model)
    assert float(scheduler.init_noise_sigma) == pytest.approx(14.61, abs=0.05)


def test_seeds_fix_the_initial_latents(model):
    one, both = initial_latents(model, torch.tensor([7])), initial_latents(model, torch.tensor([3, 7]))
    assert torch.equal(one[0], both[1]) and not torch.equal(both[0], both[1])
