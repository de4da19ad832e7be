"""ESD, UCE and AdvUnlearn against loops of their equations, and the groups of weights that they train."""

from dataclasses import dataclass, field

import pytest
import torch
from torch.nn import functional as F

from rub.config.hyperparameters import resolve
from rub.errors import Diverged, RubError
from rub.models.diffusion.groups import TEXT_ENCODER, UNET, parameter_group
from rub.models.diffusion.model import Diffusion, frozen
from rub.models.diffusion.sampling import Sampler
from rub.models.weights import freeze
from rub.registry import METHODS
from rub.tasks.text_to_image.context import Side, UnlearnContext
from rub.tasks.text_to_image.methods import advunlearn as adv
from rub.tasks.text_to_image.methods.advunlearn import advunlearn, attack_loss, prefixed, random_tokens
from rub.tasks.text_to_image.methods.esd import esd_loss, esd_u, esd_x, negative_guidance
from rub.tasks.text_to_image.methods.rece import rece, surviving
from rub.tasks.text_to_image.methods.uce import Edit, directions, edit_matrix, encoded, uce

NONE = torch.empty(0, 1, 8, 8)
FORGET = Side(("a church", "a photo of a church"), NONE, ())
RETAIN = Side(("a garbage truck", "the digit seven", "a drawing of the digit one"), NONE, ())
T2I = "text-to-image"


def context(kind=UnlearnContext, **given):
    return kind(**{"seed": 0, "batch_size": 2, "sampler": Sampler("ddim", 3), **given})


@dataclass(frozen=True, kw_only=True)
class Watched(UnlearnContext):
    """Notes every x_t with who drew it and for which prompt."""

    drawn: list = field(default_factory=list)

    def partial(self, model, prompt, generator, *, guidance=3.0):
        x, t = super().partial(model, prompt, generator, guidance=guidance)
        self.drawn.append((model, prompt, x.clone(), t.clone()))
        return x, t


def state(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def changed(model, before):
    return {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}


def same(one, other):
    mine, yours = state(one), state(other)
    return all(torch.equal(value, yours[name]) for name, value in mine.items())


def detour(model, twin, before):
    """Return how far apart two models ended, in units of their way: Adam makes much of the sign of tiny gradients."""
    mine, yours = state(model), state(twin)
    apart = sum((mine[name] - yours[name]).square().sum() for name in before)
    return float((apart / sum((yours[name] - before[name]).square().sum() for name in before)).sqrt())


def draws(model, count=2):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, *model.latent_shape, generator=generator), torch.tensor([3, 640, 999])[:count]


def predict(model, x, t, embedded):
    """e(x_t, t, context), straight from the UNet."""
    return model.unet(x, t, encoder_hidden_states=embedded.expand(len(x), -1, -1)).sample


def encode(model, *prompts):
    ids = model.tokenizer(list(prompts), padding="max_length", max_length=16, return_tensors="pt").input_ids
    return model.text_encoder(ids)[0]


# Groups of weights.


def stable_diffusion_shaped(make_model, **changes):
    """A model with the blocks of Stable Diffusion 1.x: four levels of two layers."""
    from diffusers import UNet2DConditionModel

    small = make_model()
    given = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 2, **changes}
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=1, out_channels=1, norm_num_groups=4, cross_attention_dim=32,
        attention_head_dim=2, **given,
    )  # fmt: skip
    return Diffusion(unet, small.text_encoder, None, small.tokenizer)


def unet_names(model):
    return [name for name, _ in model.named_parameters() if name.startswith("unet.")]


def test_groups_of_the_first_code_are_what_its_rules_say_of_compvis_names(make_model):
    """Translate by diffusers' own converter from CompVis, on which the rules of train-esd.py are defined."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    inside = ("attn1.to_q.weight", "attn1.to_k.weight", "attn2.to_k.weight", "attn2.to_out.0.bias", "norm2.weight")
    known = ["time_embed.0.weight", "time_embed.2.bias", "input_blocks.0.0.weight", "out.0.weight", "out.2.bias"]
    resnet = ("in_layers.0.weight", "in_layers.2.weight", "emb_layers.1.weight", "out_layers.3.weight")
    places = [f"input_blocks.{i}" for i in (1, 2, 4, 5, 7, 8, 10, 11)] + [f"output_blocks.{i}" for i in range(12)]
    known += [f"{place}.0.{leaf}" for place in places for leaf in resnet]
    known += [f"input_blocks.{i}.0.op.{leaf}" for i in (3, 6, 9) for leaf in ("weight", "bias")]
    upsampled = [f"output_blocks.{i}.{part}.conv" for i, part in ((2, 1), (5, 2), (8, 2))]
    known += [f"{place}.{leaf}" for place in upsampled for leaf in ("weight", "bias")]
    attended = [f"input_blocks.{i}.1" for i in (1, 2, 4, 5, 7, 8)] + [f"output_blocks.{i}.1" for i in range(3, 12)]
    attended.append("middle_block.1")
    known += [f"{place}.transformer_blocks.0.{leaf}" for place in attended for leaf in inside]
    known += [f"middle_block.{i}.{leaf}" for i in (0, 2) for leaf in resnet]
    number = {name: torch.tensor(place) for place, name in enumerate(known)}
    model = stable_diffusion_shaped(make_model)
    given = {f"model.diffusion_model.{name}": value for name, value in number.items()}
    converted = convert_ldm_unet_checkpoint(given, dict(model.unet.config))
    ours = {known[int(value)]: f"unet.{name}" for name, value in converted.items()}
    assert len(ours) == len(known)
    assert set(ours.values()) <= set(unet_names(model))

    outer = lambda name: name.startswith("out.") or "time_embed" in name  # noqa: E731
    rules = {
        "xattn": lambda name: "attn2" in name,
        "noxattn": lambda name: not outer(name) and "attn2" not in name,
        "selfattn": lambda name: "attn1" in name,
        "full": lambda name: True,
        "notime": lambda name: not outer(name),
        "xlayer": lambda name: "attn2" in name and ("output_blocks.6." in name or "output_blocks.8." in name),
        "selflayer": lambda name: "attn1" in name and ("input_blocks.4." in name or "input_blocks.7." in name),
    }
    for group, rule in rules.items():
        found = set(parameter_group(model, group))
        assert {name for name, mine in ours.items() if mine in found} == {name for name in known if rule(name)}, group
    assert len(parameter_group(model, "xattn")) == 16 * 5  # Stable Diffusion 1.x has 16 cross-attentions
    assert len(parameter_group(model, "xlayer")) == 2 * 5
    assert len(parameter_group(model, "selflayer")) == 2 * 5


def test_groups_of_the_later_code_hold_linear_layers_and_convolutions_alone(model):
    owners = {
        f"unet.{place}.{name}": type(part).__name__
        for place, part in model.unet.named_modules()
        for name, _ in part.named_parameters(recurse=False)
    }
    layers = [name for name in unet_names(model) if owners[name] in ("Linear", "Conv2d")]
    assert parameter_group(model, "esd-all") == layers
    assert parameter_group(model, "esd-x") == [name for name in layers if "attn2" in name]
    assert parameter_group(model, "esd-x") == parameter_group(model, "xattn")
    assert parameter_group(model, "esd-u") == [name for name in layers if "attn2" not in name]
    strict = parameter_group(model, "esd-x-strict")
    assert len(strict) == 2 * 4  # the miniature has 4 cross-attentions, whose keys and values have no bias
    assert {name.rsplit(".", 2)[1] for name in strict} == {"to_k", "to_v"}
    chosen = parameter_group(model, "esd-u")
    assert {"unet.time_embedding.linear_1.weight", "unet.conv_out.bias"} <= set(chosen)
    assert not [name for name in chosen if "norm" in name.rsplit(".", 2)[1]]
    assert parameter_group(model, "full") == unet_names(model)


@pytest.mark.parametrize("old", [False, True])
def test_the_text_encoders_group_leaves_the_embeddings_out_under_both_layouts(model, old):
    encoder = model.text_encoder
    if old:  # transformers before 5.6 keeps everything one level deeper
        inner = torch.nn.Module()
        for name, part in list(encoder.named_children()):
            delattr(encoder, name)
            inner.add_module(name, part)
        encoder.add_module("text_model", inner)
    found = parameter_group(model, "text_encoder_full")
    every = [name for name, _ in model.named_parameters() if name.startswith("text_encoder.")]
    assert found == [name for name in every if "embedding" not in name]
    assert len(found) == len(every) - 2
    assert all(name.startswith("text_encoder.text_model.") is old for name in found)


def test_groups_that_a_model_lacks_are_named_with_those_that_it_has(make_model, model):
    with pytest.raises(RubError, match=r"'xlayer': this model lacks its layers; .*: xattn, .*text_encoder_full"):
        parameter_group(model, "xlayer")
    three = stable_diffusion_shaped(
        make_model, block_out_channels=(8, 8, 8),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    with pytest.raises(RubError, match="selflayer"):  # it has input_blocks.4, but input_blocks.7 attends to nothing
        parameter_group(three, "selflayer")
    with pytest.raises(RubError, match="did you mean 'noxattn'"):
        parameter_group(model, "noxatn")
    assert len({*UNET, *TEXT_ENCODER}) == 12


# ESD.


def test_the_target_in_the_paper_s_convention_is_that_of_the_new_code_with_one_more(model):
    generator = torch.Generator().manual_seed(1)
    concept, empty = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64).unbind()
    for eta in (0.0, 1.0, 2.5):
        new = concept - (eta + 1) * (concept - empty)
        torch.testing.assert_close(negative_guidance(concept, empty, eta), new)
    assert torch.equal(negative_guidance(concept, empty, 0.0), empty)


def test_esd_loss_is_its_equation_and_its_gradient_reaches_the_trained_model_alone(model, make_model):
    original = freeze(make_model(1))
    x, t = draws(model)
    with torch.no_grad():
        c, none = encode(original, "a church"), encode(original, "")
        target = predict(original, x, t, none) - 1.5 * (predict(original, x, t, c) - predict(original, x, t, none))
        wanted = (predict(model, x, t, c) - target).square().mean()
    loss = esd_loss(model, original, x, t, c, c, none, 1.5)
    torch.testing.assert_close(loss, wanted)
    loss.backward()
    assert any(value.grad is not None for value in model.unet.parameters())
    assert all(value.grad is None for value in original.parameters())


def esd_by_hand(model, names, drawn, *, eta, lr):
    """Adam (Kingma & Ba 2015, algorithm 1), written out, on the equation."""
    original = frozen(model)
    parameters = [value for name, value in model.named_parameters() if name in names]
    moments = [(torch.zeros_like(value), torch.zeros_like(value)) for value in parameters]
    with torch.no_grad():
        c, none = encode(original, "a church"), encode(original, "")
    for step, (_, _, x, t) in enumerate(drawn, 1):
        with torch.no_grad():
            concept, empty = predict(original, x, t, c), predict(original, x, t, none)
        loss = F.mse_loss(predict(model, x, t, c), (1 + eta) * empty - eta * concept)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for value, gradient, (first, second) in zip(parameters, gradients, moments, strict=True):
                first.mul_(0.9).add_(0.1 * gradient)
                second.mul_(0.999).add_(0.001 * gradient**2)
                value.sub_(lr * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8))
    return model


@pytest.mark.slow
@pytest.mark.parametrize(("run", "group"), [(esd_x, "esd-x"), (esd_x, "esd-x-strict"), (esd_u, "esd-u"),
                                            (esd_u, "noxattn")])  # fmt: skip
def test_esd_follows_its_equation_on_its_group_alone(make_model, run, group):
    model, seen = make_model(), context(Watched)
    before, names = state(model), set(parameter_group(model, group))
    made = run(model, FORGET, RETAIN, seen, eta=0.5, lr=1e-3, iterations=3, group=group)
    assert made is model
    assert not model.training
    assert {prompt for _, prompt, _, _ in seen.drawn} == {"a church"}
    assert changed(model, before) == names
    twin = esd_by_hand(make_model(), names, seen.drawn, eta=0.5, lr=1e-3)
    assert detour(model, twin, before) < 1e-3


@pytest.mark.parametrize("drawn_by", ["base", "model"])
def test_who_draws_x(make_model, drawn_by):
    model, seen = make_model(), context(Watched)
    esd_x(model, FORGET, RETAIN, seen, iterations=2, lr=1e-3, drawn_by=drawn_by)
    assert [who is model for who, _, _, _ in seen.drawn] == [drawn_by == "model"] * 2


def unlearned(make_model, run, **given):
    taken = {name: given.pop(name) for name in ("seed", "precision", "anchor") if name in given}
    return run(make_model(), FORGET, RETAIN, context(**taken), **given)


SMALL = {
    esd_x: {"iterations": 2, "lr": 1e-3},
    esd_u: {"iterations": 2, "lr": 1e-3},
    advunlearn: {"iterations": 2, "warmup": 1, "attack_steps": 2, "retain_batch": 2, "lr": 1e-3},
}


@pytest.mark.slow
@pytest.mark.parametrize("run", list(SMALL), ids=["esd-x", "esd-u", "advunlearn"])
def test_results_depend_on_the_seed_and_on_nothing_else(make_model, run):
    first = unlearned(make_model, run, **SMALL[run])
    torch.manual_seed(99)
    assert same(first, unlearned(make_model, run, **SMALL[run]))
    assert not same(first, unlearned(make_model, run, seed=1, **SMALL[run]))


@pytest.mark.slow
@pytest.mark.parametrize("run", list(SMALL), ids=["esd-x", "esd-u", "advunlearn"])
def test_bfloat16_trains_the_same_weights(make_model, run):
    extra = {} if run is advunlearn else {"drawn_by": "model"}
    full, half = (unlearned(make_model, run, precision=p, **SMALL[run], **extra) for p in ("float32", "bfloat16"))
    before = state(make_model())
    assert changed(half, before) == changed(full, before)
    assert not same(full, half)
    assert {value.dtype for value in half.parameters()} == {torch.float32}


def erasure(model, original):
    x, t = draws(model, 3)
    with torch.no_grad():
        concept, empty = encode(original, "a church"), encode(original, "")
        return float(esd_loss(model, original, x, t, encode(model, "a church"), concept, empty, 1.0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "given"),
    [
        (esd_x, {"iterations": 15, "lr": 1e-3}),
        (esd_u, {"iterations": 15, "lr": 2e-4}),
        (advunlearn, {"iterations": 15, "lr": 1e-3, "warmup": 15, "gamma": 0.0}),
    ],
    ids=["esd-x", "esd-u", "advunlearn"],
)
def test_a_few_steps_lower_the_loss(make_model, run, given):
    """On noise that training never saw; at its initialisation the miniature hardly heeds its prompt, so make it."""

    def attentive():
        made = make_model()
        with torch.no_grad():
            for name in parameter_group(made, "xattn"):
                made.get_parameter(name).mul_(3)
        return made

    original = freeze(attentive())
    model = run(attentive(), FORGET, RETAIN, context(batch_size=4), **given)
    assert erasure(model, original) < 0.8 * erasure(original, original)


@pytest.mark.slow
@pytest.mark.parametrize("run", list(SMALL), ids=["esd-x", "esd-u", "advunlearn"])
def test_a_loss_that_is_not_finite_is_reported(make_model, run):
    model = make_model()
    with torch.no_grad():
        model.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(Diverged):
        run(model, FORGET, RETAIN, context(), **SMALL[run])


# UCE and RECE.


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_last_token_is_the_one_before_the_end(model, count):
    prompts = ("", "a church", "a photo of a garbage truck", "the digit seven " * 9)
    found, places = encoded(freeze(model), prompts, count)
    for row, place, prompt in zip(found, places, prompts, strict=True):
        assert place == min(len(model.tokenizer(prompt).input_ids), 16) - 2  # BOS and EOS included
        ids = model.tokenizer([prompt], padding="max_length", truncation=True, max_length=16, return_tensors="pt")
        torch.testing.assert_close(row, model.text_encoder(ids.input_ids)[0][0].double(), rtol=0, atol=1e-6)
    assert encoded(model, (), count)[0].shape == (0, 16, 32)


@pytest.mark.parametrize("anchor", ["", "a photo of a very large chapel"])
def test_the_last_token_the_end_and_all_padding_are_edited_side_by_side(model, anchor):
    prompts = ("church", "a photo of a church")
    edit = directions(freeze(model), prompts, anchor, ("the digit seven",), "last-to-end", 2)
    (target,) = encode(model, anchor).double()
    start, row = len(model.tokenizer(anchor).input_ids) - 2, 0
    for prompt in prompts:
        own, place = encode(model, prompt)[0].double(), len(model.tokenizer(prompt).input_ids) - 2
        for step in range(16 - max(place, start)):  # as far as both go
            torch.testing.assert_close(edit.erased[row], own[place + step], rtol=0, atol=1e-6)
            torch.testing.assert_close(edit.wanted[row], target[start + step], rtol=0, atol=1e-6)
            row += 1
    assert row == len(edit.erased) == len(edit.wanted)
    torch.testing.assert_close(edit.preserved, encode(model, "the digit seven")[0].double(), rtol=0, atol=1e-6)
    nothing = directions(model, prompts, anchor, (), "last-to-end", 2).preserved
    torch.testing.assert_close(nothing, encode(model, "")[0].double(), rtol=0, atol=1e-6)


def objective(weight, start, erased, anchor, preserved, lam, erase_scale, preserve_scale):
    """s_e sum_E |W c - W_0 c*|^2 + s_p sum_P |W c - W_0 c|^2 + lam |W - W_0|^2, token by token."""
    total = lam * (weight - start).square().sum()
    for c, wanted in zip(erased, anchor.expand(len(erased), -1), strict=True):
        total = total + erase_scale * (weight @ c - start @ wanted).square().sum()
    for c in preserved:
        total = total + preserve_scale * (weight @ c - start @ c).square().sum()
    return total


@pytest.mark.parametrize("width", [8, 1024])  # that of Stable Diffusion 2's text encoder
@pytest.mark.parametrize("preserved", [0, 4])
def test_the_closed_form_is_the_minimum_of_its_objective_and_upstreams_expression(preserved, width):
    generator = torch.Generator().manual_seed(3)
    random = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    start, erased, anchor, kept = random(5, width), random(3, width), random(3, width), random(preserved, width)
    scales = {"lam": 0.3, "erase_scale": 1.7, "preserve_scale": 0.6}
    weight = (start @ edit_matrix(Edit(erased, anchor, kept), **scales)).requires_grad_()
    given = (start, erased, anchor, kept, *scales.values())
    (slope,) = torch.autograd.grad(objective(weight, *given), weight)
    assert slope.abs().max() < 1e-10
    left, right = 0.3 * start, 0.3 * torch.eye(width, dtype=torch.float64)
    for c, wanted in zip(erased, anchor, strict=True):
        left, right = left + 1.7 * torch.outer(start @ wanted, c), right + 1.7 * torch.outer(c, c)
    for c in kept:
        left, right = left + 0.6 * torch.outer(start @ c, c), right + 0.6 * torch.outer(c, c)
    torch.testing.assert_close(weight.detach(), left @ torch.inverse(right))


@pytest.mark.parametrize("anchor", ["", "a photo of a chapel"])
@pytest.mark.parametrize("tokens", ["last-to-end", "last"])
def test_uce_edits_keys_and_values_alone_each_to_its_own_minimum(make_model, anchor, tokens):
    model = make_model()
    before, names = state(model), set(parameter_group(model, "esd-x-strict"))
    scales = {"erase_scale": 2.0, "preserve_scale": 0.5, "lam": 0.1}
    assert uce(model, FORGET, RETAIN, context(anchor=anchor), tokens=tokens, **scales) is model
    assert not model.training
    assert changed(model, before) == names
    with torch.no_grad():
        rows = {prompt: encode(model, prompt)[0].double() for prompt in (*FORGET.prompts, *RETAIN.prompts, anchor)}
    last = {prompt: len(model.tokenizer(prompt).input_ids) - 2 for prompt in rows}
    ends = {prompt: 16 - max(last[prompt], last[anchor]) if tokens == "last-to-end" else 1 for prompt in FORGET.prompts}
    erased = torch.cat([rows[prompt][last[prompt] : last[prompt] + ends[prompt]] for prompt in FORGET.prompts])
    wanted = torch.cat([rows[anchor][last[anchor] : last[anchor] + ends[prompt]] for prompt in FORGET.prompts])
    everything = tokens == "last-to-end"
    kept = torch.cat([rows[prompt] if everything else rows[prompt][last[prompt], None] for prompt in RETAIN.prompts])
    for name in names:
        weight = model.get_parameter(name).detach().double().requires_grad_()
        start = before[name].double()
        given = (start, erased, wanted, kept, 0.1, 2.0, 0.5)
        (slope,) = torch.autograd.grad(objective(weight, *given), weight)
        (scale,) = torch.autograd.grad(objective(at := start.clone().requires_grad_(), *given), at)
        assert slope.abs().max() < 1e-4 * scale.abs().max()  # the rounding of W to float32


def test_what_survives_is_the_minimum_of_its_objective():
    generator = torch.Generator().manual_seed(5)
    random = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    now, start, c = [random(5, 8), random(7, 8)], [random(5, 8), random(7, 8)], random(8)
    found = (surviving(now, start, 0.3) @ c).requires_grad_()
    total = 0.3 * found.square().sum()
    for weight, before in zip(now, start, strict=True):
        total = total + (weight @ found - before @ c).square().sum()
    (slope,) = torch.autograd.grad(total, found)
    assert slope.abs().max() < 1e-10


def test_rece_is_uce_and_then_uce_of_what_survives(make_model):
    model, twin = make_model(), make_model()
    names = [name for name in parameter_group(model, "esd-x-strict") if model.get_parameter(name).ndim == 2]
    original = state(model)
    before = state(model)
    assert rece(model, FORGET, RETAIN, context(anchor="a chapel"), rounds=2, ridge=0.05, lam=0.2) is model
    assert changed(model, before) == set(names)
    uce(twin, FORGET, RETAIN, context(anchor="a chapel"), lam=0.2)
    with torch.no_grad():
        rows = {prompt: encode(twin, prompt)[0].double() for prompt in (*FORGET.prompts, *RETAIN.prompts, "a chapel")}
    for _ in range(2):
        before = {name: twin.get_parameter(name).detach().double() for name in names}
        left, right = 0.05 * torch.eye(32).double(), torch.zeros(32, 32).double()
        for name in names:
            left, right = left + before[name].T @ before[name], right + before[name].T @ original[name].double()
        again = torch.inverse(left) @ right
        for name in names:
            top, bottom = 0.2 * before[name], 0.2 * torch.eye(32).double()
            for prompt in FORGET.prompts:
                for c, wanted in zip(rows[prompt] @ again.T, rows["a chapel"], strict=True):
                    top, bottom = top + torch.outer(before[name] @ wanted, c), bottom + torch.outer(c, c)
            for prompt in RETAIN.prompts:
                for c in rows[prompt]:
                    top, bottom = top + 0.1 * torch.outer(before[name] @ c, c), bottom + 0.1 * torch.outer(c, c)
            with torch.no_grad():
                twin.get_parameter(name).copy_(top @ torch.inverse(bottom))
    for name in names:
        torch.testing.assert_close(model.get_parameter(name), twin.get_parameter(name), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_uce_is_not_random_and_limits_are_what_they_should_be(make_model):
    assert same(unlearned(make_model, uce, seed=0), unlearned(make_model, uce, seed=7))
    still = unlearned(make_model, uce, erase_scale=0.0, preserve_scale=3.0)
    for name, value in make_model().named_parameters():
        torch.testing.assert_close(still.get_parameter(name), value, rtol=0, atol=1e-6)
    hard = uce(make_model(), Side(("a church",), NONE, ()), Side((), NONE, ()), context(), lam=1e-6, tokens="last")
    c, none = encode(hard, "a church")[0, 2], encode(hard, "")[0, 0]
    for name in parameter_group(hard, "esd-x-strict"):
        value, start = hard.get_parameter(name), make_model().get_parameter(name)
        torch.testing.assert_close(value @ c, start @ none, rtol=0, atol=1e-4)


# AdvUnlearn.


def test_soft_tokens_stand_between_bos_and_the_prompt(model):
    ids, extra = model.tokenize(["a church"]), model.tokenize(["snow truck"])[:, 1:3]
    prefix = model.token_embeddings[extra]
    joined = torch.cat([ids[:, :1], extra, ids[:, 1:-2]], dim=1)
    assert joined.shape == ids.shape
    torch.testing.assert_close(model.encode_soft(prefixed(model, ids, prefix)), model.text_encoder(joined)[0])


def test_random_tokens_are_rows_of_the_table_and_of_all_of_it(model):
    drawn = random_tokens(model, 4000, torch.Generator().manual_seed(0))
    assert drawn.shape == (1, 4000, 32)
    assert not drawn.requires_grad
    gap, row = torch.cdist(drawn[0], model.token_embeddings.detach(), compute_mode="donot_use_mm_for_euclid_dist").min(
        1
    )
    assert gap.max() == 0
    assert len(row.unique()) > 0.95 * len(model.token_embeddings)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["adam", "sign"])
def test_the_attack_descends_from_fresh_gradients(model, make_model, rule):
    original = freeze(make_model(1))
    freeze(model)
    ids, (x, t) = model.tokenize(["a church"]), draws(model)
    concept = encode(original, "a church")
    start = random_tokens(model, 2, torch.Generator().manual_seed(0))

    def loss(prefix):
        return attack_loss(model, original, x, t, ids, prefix, concept)

    found = adv.strengthened(loss, start, context(), attack=rule, steps=3, lr=0.1)
    a, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for step in (1, 2, 3):
        a.requires_grad_()
        table = model.token_embeddings[ids]
        soft = torch.cat([table[:, :1], a, table[:, 1:-2]], dim=1)
        hook = model.text_encoder.get_input_embeddings().register_forward_hook(lambda *_, soft=soft: soft)
        given = model.text_encoder(ids)[0]
        hook.remove()
        distance = (predict(model, x, t, given) - predict(original, x, t, concept)).square().mean()
        (gradient,) = torch.autograd.grad(distance, a)
        gradient = gradient.sign() if rule == "sign" else gradient
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        a = a.detach() - 0.1 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    torch.testing.assert_close(found, a, rtol=0, atol=1e-4)
    assert not found.requires_grad
    further = adv.strengthened(loss, start, context(), attack=rule, steps=12, lr=0.05)
    assert loss(further) < loss(start)


def adv_by_hand(model, drawn, prefixes, prompts, *, eta, gamma, lr):
    """Every step of training, from the x_t and A that were used."""
    original = frozen(model)
    table = model.text_encoder.get_input_embeddings()
    parameters = [v for n, v in model.text_encoder.named_parameters() if "embedding" not in n]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    ids = model.tokenizer(["a church"], padding="max_length", max_length=16, return_tensors="pt").input_ids
    with torch.no_grad():
        c, none = encode(original, "a church"), encode(original, "")
    for (x, t), held, prefix, texts in zip(*drawn, prefixes, prompts, strict=True):
        if prefix is None:
            given = encode(model, "a church")
        else:
            soft = torch.cat([table(ids)[:, :1], prefix, table(ids)[:, 1:-1]], dim=1)
            hook = table.register_forward_hook(lambda *_, soft=soft: soft)
            given = model.text_encoder(ids)[0]
            hook.remove()
        with torch.no_grad():
            concept, empty = predict(original, x, t, c), predict(original, x, t, none)
            still = [predict(original, *one, encode(original, text)) for one, text in zip(held, texts, strict=True)]
        loss = F.mse_loss(predict(model, x, t, given), empty - eta * (concept - empty))
        for one, text, wanted in zip(held, texts, still, strict=True):
            loss = loss + gamma * F.mse_loss(predict(model, *one, encode(model, text)), wanted) / len(texts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.mark.slow
@pytest.mark.parametrize("init", ["latest", "random"])
def test_advunlearn_follows_its_equations_on_the_text_encoder_alone(make_model, monkeypatch, init):
    made, inner = [], adv.strengthened

    def noted(loss, prefix, *rest, **given):
        made.append((prefix, inner(loss, prefix, *rest, **given)))
        return made[-1][1]

    monkeypatch.setattr(adv, "strengthened", noted)
    model, seen = make_model(), context(Watched)
    before = state(model)
    settings = {"eta": 0.5, "gamma": 0.7, "lr": 1e-3}
    result = advunlearn(
        model, FORGET, RETAIN, seen, iterations=5, warmup=1, retain_batch=2, attack_steps=2, attack_lr=0.01,
        attack_init=init, attack_every=2, **settings,
    )  # fmt: skip
    assert result is model
    assert not model.training
    assert changed(model, before) == {n for n in before if n.startswith("text_encoder.") and "embedding" not in n}

    starts, ends = zip(*made, strict=True)
    assert len(made) == 2  # in steps 1 and 3 of 0 to 4
    tokens = seen.generator("tokens")
    table = before["text_encoder.embeddings.token_embedding.weight"]
    rows = torch.randint(0, len(table), (2,), generator=tokens)
    assert torch.equal(starts[0][0], table[rows[:1]])
    if init == "latest":
        assert torch.equal(starts[1], ends[0])
    else:
        assert not torch.equal(starts[1], ends[0])

    # What was drawn, in order: the attack's, then the concept's, then one for each retain prompt.
    assert all(who is not model and same(who, make_model()) for who, _, _, _ in seen.drawn[:1])
    rest = [(prompt, (x, t)) for _, prompt, x, t in seen.drawn]
    own, held, prompts = [], [], []
    for step in range(5):
        del rest[: 2 if step in (1, 3) else 0]
        assert rest[0][0] == "a church"
        own.append(rest[0][1])
        prompts.append([prompt for prompt, _ in rest[1:3]])
        held.append([drawn for _, drawn in rest[1:3]])
        del rest[:3]
    assert not rest
    assert {prompt for texts in prompts for prompt in texts} == set(RETAIN.prompts)
    assert own[0][0].shape[0] == 2
    assert held[0][0][0].shape[0] == 1
    prefixes = [None, ends[0], ends[0], ends[1], ends[1]]
    twin = adv_by_hand(make_model(), (own, held), prefixes, prompts, **settings)
    assert detour(model, twin, before) < 1e-3


@pytest.mark.slow
def test_the_attack_waits_for_the_warm_up_and_then_matters(make_model):
    one, two = ({**SMALL[advunlearn], "attack_steps": steps, "attack_lr": 0.1} for steps in (1, 4))
    waiting = [unlearned(make_model, advunlearn, **{**given, "warmup": 2}) for given in (one, two)]
    assert same(*waiting)
    attacked = [unlearned(make_model, advunlearn, **given) for given in (one, two)]
    assert not same(*attacked)
    assert not same(attacked[0], unlearned(make_model, advunlearn, **one, attack="sign", k=2))


@pytest.mark.slow
def test_gamma_holds_the_retain_prompts(make_model):
    original, drift = freeze(make_model()), []
    x, t = draws(original)
    for gamma in (0.0, 20.0):
        given = {**SMALL[advunlearn], "iterations": 6, "warmup": 6, "gamma": gamma}
        model = unlearned(make_model, advunlearn, **given)
        with torch.no_grad():
            drift.append(sum(
                F.mse_loss(predict(model, x, t, encode(model, p)), predict(original, x, t, encode(original, p)))
                for p in RETAIN.prompts
            ))  # fmt: skip
    assert drift[1] < 0.7 * drift[0]


def test_retain_prompts_come_in_shuffled_passes():
    taken = context().rows(4, 3, "prompts")
    drawn = ["abcd"[row] for _ in range(8) for row in next(taken).tolist()]
    assert all(sorted(drawn[start : start + 4]) == ["a", "b", "c", "d"] for start in range(0, 24, 4))
    assert len({tuple(drawn[start : start + 4]) for start in range(0, 24, 4)}) > 1


def test_what_cannot_be_done_is_said_in_a_line(make_model):
    nothing = Side((), NONE, ())
    with pytest.raises(RubError, match="retain side has no prompts; give some, or set gamma to 0"):
        advunlearn(make_model(), FORGET, nothing, context(), **SMALL[advunlearn])
    before = state(make_model())
    assert changed(advunlearn(make_model(), FORGET, nothing, context(), **SMALL[advunlearn], gamma=0.0), before)
    with pytest.raises(RubError, match="k = 15: should be at most 14"):
        advunlearn(make_model(), FORGET, RETAIN, context(), k=15)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("esd-x", {"group": "esd-u"}), ("esd-x", {"eta": -1.0}), ("esd-u", {"drawn_by": "original"}),
     ("uce", {"lam": 0.0}), ("advunlearn", {"k": 0}), ("advunlearn", {"attack": "pgd"})],
)  # fmt: skip
def test_hyperparameters_out_of_range_are_refused(name, wrong):
    with pytest.raises(RubError, match=next(iter(wrong))):
        resolve(METHODS.get(name, T2I), wrong, "test")
