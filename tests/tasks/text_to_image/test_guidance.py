"""Methods that act at inference: their equations, and that samplers and searches ask them."""

import json

import pytest
import torch

import rub
from rub.errors import RubError
from rub.models.diffusion.checkpoints import load_unlearned, save_unlearned
from rub.models.diffusion.guidance import SEARCHED, both, effective, guided_by, read_guidance
from rub.models.diffusion.model import frozen
from rub.models.diffusion.sampling import Sampler, guided, sample, steps
from rub.models.weights import freeze
from rub.registry import METHODS, scoped
from rub.tasks.text_to_image.attacks.base import AttackContext
from rub.tasks.text_to_image.context import Side, UnlearnContext
from rub.tasks.text_to_image.methods.inference import STRENGTHS

NONE = torch.empty(0, 1, 8, 8)


@pytest.fixture
def model(make_model):
    return freeze(make_model())


def given_guidance(model, name, **parameters):
    made = frozen(model)
    side, context = Side(("church",), NONE, ()), UnlearnContext(seed=0)
    return METHODS.get(name, "text-to-image").load()(made, side, Side((), NONE, ()), context, **parameters)


def e(model, x, t, prompt):
    with torch.no_grad():
        return model.unet(x, t, encoder_hidden_states=model.context([prompt]).expand(len(x), -1, -1)).sample


@pytest.mark.parametrize("strength", STRENGTHS)
def test_sld_takes_the_steps_of_its_equation(model, strength):
    warmup, scale, threshold, momentum, beta = STRENGTHS[strength]
    made = given_guidance(model, "sld", strength=strength)
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    weight = torch.tensor([7.5, 3.0])
    sampler = Sampler("ddim", 5)
    scheduler = sampler.scheduler(model)
    x, nu = noise, torch.zeros_like(noise)
    prompts, empty = made.context(["a photo of a church", "a garbage truck"]), made.context([""])
    with torch.no_grad():
        found = list(steps(made, prompts, empty, noise, weight, sampler))
    for place, t in enumerate(scheduler.timesteps):
        without, away = e(model, x, t, ""), e(model, x, t, "church")
        with torch.no_grad():
            both_ = model.unet(x, t, encoder_hidden_states=prompts).sample
        mu = (scale * (both_ - away).abs()).clamp(max=1) * (both_ - away < threshold)
        gamma = mu * (away - without) + momentum * nu
        nu = beta * nu + (1 - beta) * gamma
        direction = both_ - without - (gamma if t < 1000 * (1 - warmup / 50) else 0)
        x = scheduler.step(without + weight.reshape(-1, 1, 1, 1) * direction, t, x).prev_sample
        torch.testing.assert_close(found[place], x, rtol=1e-3, atol=1e-3)


def test_a_negative_prompt_takes_the_place_of_the_empty_one(model):
    made = given_guidance(model, "negative-prompt")
    x, t, weight = torch.randn(2, 1, 8, 8), torch.tensor(500), torch.tensor([1.0, 7.5])
    with torch.no_grad():
        found = guided(made, x, t, made.context(["a church"]), made.context([""]), weight, {})
    away, towards = e(model, x, t, "church"), e(model, x, t, "a church")
    wanted = away + weight.reshape(-1, 1, 1, 1) * (towards - away)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["sld", "negative-prompt"])
def test_a_search_follows_what_plain_guidance_would_have_to_predict(model, name):
    made = given_guidance(model, name)
    x, t, prompt = torch.randn(3, 1, 8, 8), torch.tensor([900, 400, 20]), made.context(["a church"])
    soft = prompt.clone().requires_grad_()
    found = AttackContext(seed=0).predictor(made)(x, t, soft.expand(3, -1, -1))
    with torch.no_grad():
        without, given = both(made, x, t, prompt, made.context([""]), {})
        plain = e(model, x, t, "")
        wanted = without + SEARCHED * (given - without)
    torch.testing.assert_close(plain + SEARCHED * (found - plain), wanted, rtol=1e-3, atol=1e-3)
    assert torch.autograd.grad(found.sum(), soft)[0].abs().max() > 0
    untouched = frozen(made)
    untouched.guidance = None
    torch.testing.assert_close(AttackContext(seed=0).predictor(untouched)(x, t, prompt), e(model, x, t, "a church"))


def test_a_guidance_is_kept_as_json_and_read_again(model, tmp_path):
    made = given_guidance(model, "sld", strength="medium")
    path = save_unlearned(model, made, tmp_path)
    assert path.name == "guidance.json"
    assert json.loads(path.read_text()) == {
        "guidance": "sld", "concept": "church", "anchor": "", "parameters": {"strength": "medium"},
    }  # fmt: skip
    again = load_unlearned(model, path)
    noise, weight = torch.randn(1, 1, 8, 8), torch.tensor([7.5])
    drawn = [
        sample(one, one.context(["a church"]), one.context([""]), noise, weight, Sampler("lms", 4))
        for one in (made, again, model)
    ]
    assert torch.equal(drawn[0], drawn[1]) and not torch.allclose(drawn[0], drawn[2])
    with torch.no_grad():
        made.unet.conv_out.bias += 1
    with pytest.raises(RubError, match="guidance 'sld' on changed weights"):
        save_unlearned(model, made, tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1]", "should be JSON with guidance"), ("{", "should be JSON with guidance"),
        ('{"guidance": "sld"}', "should be JSON with guidance"),
        ('{"guidance": "sld", "concept": 3}', "should be text"),
        ('{"guidance": "sdl", "concept": "church"}', "did you mean 'sld'"),
        ('{"guidance": "uce", "concept": "church"}', "changes weights instead|this method changes weights"),
        ('{"guidance": "sld", "concept": "church", "parameters": {"strength": "huge"}}', "strength"),
        ("[" * 100_000, "should be JSON with guidance"),
    ],
)  # fmt: skip
def test_a_file_that_names_no_guidance_is_refused(tmp_path, content, said):
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises(RubError, match=said):
        read_guidance(tmp_path / "mine.json")


def test_guidance_of_another_shape_is_refused(model):
    class Half:
        def predictions(self, model, x, t, context, empty, memory):
            return x[:, :, :4], x[:, :, :4]

    with scoped():

        @rub.guidance("half")
        def half(concept, anchor):
            """Half of the picture."""
            return Half()

        made = frozen(model)
        made.guidance = guided_by("half", "church", "", {})
        with pytest.raises(RubError, match=r"guidance 'half': gave \(1, 1, 4, 8\); should be \(1, 1, 8, 8\)"):
            effective(made, made.context([""]), torch.randn(1, 1, 8, 8), torch.tensor([5]), made.context(["a church"]))
