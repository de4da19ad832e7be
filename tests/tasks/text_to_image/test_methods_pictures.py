"""SalUn, EraseDiff, Scissorhands, Forget-Me-Not, Concept Ablation against their equations, written out once more."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from rub.config.hyperparameters import resolve
from rub.errors import Diverged, RubError
from rub.models.diffusion.groups import parameter_group
from rub.models.diffusion.model import SCHEDULE, Diffusion, frozen
from rub.models.diffusion.sampling import Sampler, sample
from rub.models.weights import freeze
from rub.registry import METHODS
from rub.tasks.text_to_image.context import Side, UnlearnContext
from rub.tasks.text_to_image.methods import fmn as fmn_module
from rub.tasks.text_to_image.methods._losses import (
    Noisy,
    guided_loss,
    noise_loss,
    noisy_pictures,
    other_prompt,
    redirected_loss,
)
from rub.tasks.text_to_image.methods.concept_ablation import anchor_pictures, concept_ablation
from rub.tasks.text_to_image.methods.erasediff import erasediff, erasediff_loss
from rub.tasks.text_to_image.methods.fmn import attention_norm, concept_positions, fmn, recorded
from rub.tasks.text_to_image.methods.salun import saliency_mask, salun, salun_loss
from rub.tasks.text_to_image.methods.scissorhands import (
    connection_sensitivity,
    redraw,
    redrawn_names,
    scissorhands,
    scissorhands_loss,
)

T2I = "text-to-image"
ALL = {"salun": salun, "erasediff": erasediff, "scissorhands": scissorhands, "fmn": fmn}
SHORT = {
    "salun": {"iterations": 2, "lr": 1e-3},
    "erasediff": {"iterations": 2, "lr": 1e-3, "inner_steps": 1, "every": 1},
    "scissorhands": {"iterations": 2, "lr": 1e-3, "prune_batches": 1, "sparsity": 0.9},
    "fmn": {"iterations": 2, "lr": 1e-3},
}


def side(seed, prompts, captions):
    generator = torch.Generator().manual_seed(seed)
    return Side(prompts, torch.randn(len(captions), 1, 8, 8, generator=generator), captions)


FORGET = side(1, ("church",), ("a photo of a church", "a church in the snow", "a photo of a church"))
RETAIN = side(
    2, ("chapel", "garbage truck"), ("a photo of a chapel", "a photo of a garbage truck", "a chapel", "eight")
)
NOTHING = Side(("church",), torch.empty(0, 1, 8, 8), ())


def context(**given):
    return UnlearnContext(**{"seed": 0, "batch_size": 2, **given})


def state(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def changed(model, before):
    return {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}


def unet_parameters(model):
    return {name: value for name, value in model.named_parameters() if name.startswith("unet.")}


def encode(model, prompts):
    ids = model.tokenizer(list(prompts), padding="max_length", max_length=16, return_tensors="pt").input_ids
    return model.text_encoder(ids)[0].detach()


def e(model, x, t, prompts):
    """The predicted noise, straight from the UNet."""
    return model.unet(x, t, encoder_hidden_states=encode(model, prompts)).sample


def mse(one, other):
    return (one - other).square().sum() / one.numel()


def batch(model, seed, captions):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(captions), 1, 8, 8, generator=generator)
    noise = torch.randn(len(captions), 1, 8, 8, generator=generator)
    t = torch.randint(0, 1000, (len(captions),), generator=generator)
    return Noisy(x, t, noise, encode(model, captions))


def drawn(model, data, ctx, stream, count):
    """The batches (x_t, t, noise, captions) of a stream, noised by the closed form of the schedule."""
    alpha = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0).float()
    generator, pictures = ctx.generator(f"{stream}-noise"), ctx.pictures(data, stream)
    for _ in range(count):
        x0, captions = next(pictures)
        t = torch.randint(0, 1000, (len(x0),), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        a = alpha[t].reshape(-1, 1, 1, 1)
        yield a.sqrt() * x0 + (1 - a).sqrt() * noise, t, noise, captions


def gradient(loss, model):
    parameters = unet_parameters(model)
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(parameters, found, strict=True))


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors.values()])


def close(one, other, tolerance=1e-4):
    """Whether two sets of tensors differ by little, in units of the second."""
    return float((flat(one) - flat({name: other[name] for name in one})).norm() / flat(other).norm()) < tolerance


CAPTIONS = ("a photo of a church", "a church in the snow")
OTHERS = ("a photo of a garbage truck", "a chapel")


# What they share.


def test_the_three_losses_are_their_equations(model, make_model):
    teacher, one = make_model(seed=4), batch(model, 0, CAPTIONS)
    given, without = e(model, one.x, one.t, CAPTIONS), e(model, one.x, one.t, ["", ""])
    assert noise_loss(model, one).item() == pytest.approx(mse(given, one.noise).item(), rel=1e-5)
    found = guided_loss(model, one, encode(model, [""]), 7.5)
    assert found.item() == pytest.approx(mse(8.5 * given - 7.5 * without, one.noise).item(), rel=1e-4)
    plain = guided_loss(model, one, encode(model, [""]), 0)
    assert plain.item() == pytest.approx(mse(given, one.noise).item(), rel=1e-5)
    other = encode(model, ["a chapel"])
    wanted = teacher.unet(one.x, one.t, encoder_hidden_states=other.expand(2, -1, -1)).sample
    found = redirected_loss(model, teacher, one, other)
    assert found.item() == pytest.approx(mse(given, wanted).item(), rel=1e-5)


def test_noisy_pictures_keep_their_captions_and_follow_the_schedule(model):
    ctx = context()
    stream = noisy_pictures(model, FORGET, ctx, "forget")
    seen = []
    for x, t, noise, captions in drawn(model, FORGET, ctx, "forget", 3):
        made = next(stream)
        assert torch.allclose(made.x, x, atol=1e-5)
        assert torch.equal(made.t, t)
        assert torch.equal(made.noise, noise)
        assert torch.allclose(made.given, encode(model, captions), atol=1e-6)
        assert not made.given.requires_grad
        seen += captions
    assert sorted(seen[:3]) == sorted(FORGET.captions)


def test_the_target_of_a_live_teacher_takes_no_gradient(model):
    one, other = batch(model, 0, CAPTIONS), encode(model, ["a chapel"])
    constant = e(model, one.x, one.t, ["a chapel"] * 2).detach()
    found = gradient(redirected_loss(model, model, one, other), model)
    assert close(found, gradient(mse(e(model, one.x, one.t, CAPTIONS), constant), model))


def test_a_live_teacher_under_autocast_leaves_the_gradient_alone(model):
    one, other = batch(model, 0, CAPTIONS), encode(model, ["a chapel"])
    exact = gradient(redirected_loss(model, model, one, other), model)
    with context(precision="bfloat16").autocast():
        loss = redirected_loss(model, model, one, other)
    rounded = gradient(loss, model)
    assert {name for name, value in rounded.items() if value.any()} == {n for n, value in exact.items() if value.any()}
    assert F.cosine_similarity(flat(exact), flat(rounded), dim=0) > 0.9


def test_the_other_prompt_is_the_anchor_or_the_first_retain_prompt():
    assert other_prompt(context(anchor="a photo"), RETAIN) == "a photo"
    assert other_prompt(context(), RETAIN) == "chapel"
    with pytest.raises(RubError, match="another prompt"):
        other_prompt(context(), replace(RETAIN, prompts=()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_same_seed_same_result_and_only_the_unet_changes(name, make_model):
    one, two, three = make_model(), make_model(), make_model()
    before = state(one)
    done = ALL[name](one, FORGET, RETAIN, context(anchor="a chapel"), **SHORT[name])
    ALL[name](two, FORGET, RETAIN, context(anchor="a chapel"), **SHORT[name])
    ALL[name](three, FORGET, RETAIN, context(anchor="a chapel", seed=1), **SHORT[name])
    assert done is one
    assert not done.training
    assert not any(parameter.requires_grad for parameter in done.parameters())
    assert changed(one, state(two)) == set()
    assert changed(one, state(three))
    moved = changed(one, before)
    assert moved
    assert all(part.startswith("unet.") for part in moved)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_every_step_is_told_and_the_global_generator_is_left_alone(name, model):
    told = []
    ctx = context(progress=lambda done, total, *rest: told.append((done, total)))
    before = torch.random.get_rng_state()
    ALL[name](model, FORGET, RETAIN, ctx, **SHORT[name])
    assert told == [(1, 2), (2, 2)]
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_a_loss_that_is_not_finite_is_said(name, model):
    broken = replace(FORGET, latents=FORGET.latents * float("nan"))
    with pytest.raises(Diverged):
        ALL[name](model, broken, RETAIN, context(), **SHORT[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_missing_pictures_are_said(name, model):
    with pytest.raises(RubError, match="pictures"):
        ALL[name](model, NOTHING, RETAIN, context(), **SHORT[name])
    if name != "fmn":
        with pytest.raises(RubError, match="pictures"):
            ALL[name](model, FORGET, replace(NOTHING, prompts=("chapel",)), context(), **SHORT[name])


@pytest.mark.parametrize("name", ALL)
def test_ranges_of_hyperparameters(name):
    entry = METHODS.get(name, T2I)
    with pytest.raises(RubError, match="iterations"):
        resolve(entry, {"iterations": 0}, "methods")


# SalUn.


def test_the_salun_loss_is_its_equation(model, make_model):
    teacher, wrong, right = make_model(seed=4), batch(model, 0, CAPTIONS), batch(model, 1, OTHERS)
    other = encode(model, ["eight"])
    wanted = teacher.unet(wrong.x, wrong.t, encoder_hidden_states=other.expand(2, -1, -1)).sample.detach()
    by_hand = mse(e(model, wrong.x, wrong.t, CAPTIONS), wanted) + 0.3 * mse(
        e(model, right.x, right.t, OTHERS), right.noise
    )
    found = salun_loss(model, teacher, wrong, right, other, 0.3)
    assert found.item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert close(gradient(found, model), gradient(by_hand, model))


def summed_by_hand(model, ctx, count, w, stream, each=lambda gradient: gradient):
    total = None
    for x, t, noise, captions in drawn(model, FORGET, ctx, stream, count):
        prediction = (1 + w) * e(model, x, t, captions) - w * e(model, x, t, [""] * len(captions))
        found = gradient(-mse(prediction, noise), model)
        found = {name: each(value) for name, value in found.items()}
        total = found if total is None else {name: total[name] + found[name] for name in found}
    return total


@pytest.mark.slow
def test_the_mask_holds_the_largest_summed_gradients(model):
    ctx, parameters = context(), unet_parameters(model)
    found = saliency_mask(model, parameters, FORGET, ctx, batches=3, guidance=7.5, k=0.5)
    scores = flat(summed_by_hand(model, ctx, 3, 7.5, "mask")).abs()
    mask = flat(found)
    assert mask.sum() == round(0.5 * len(scores))
    agree = (mask == (scores > scores.median())).float().mean()
    assert agree > 0.999  # rounding moves the few at the threshold


@pytest.mark.slow
def test_weights_outside_the_mask_stay_bit_for_bit(model):
    before, ctx = state(model), context(anchor="a chapel")
    mask = saliency_mask(model, unet_parameters(model), FORGET, ctx, batches=2, guidance=7.5, k=0.5)
    assert flat(mask).float().mean() == pytest.approx(0.5, abs=1e-5)
    salun(model, FORGET, RETAIN, ctx, iterations=3, lr=1e-3)
    moved = {name: value != before[name] for name, value in unet_parameters(model).items()}
    assert not any((moved[name] & ~mask[name]).any() for name in mask)
    assert sum((moved[name] & mask[name]).sum() for name in mask) > 0.99 * flat(mask).sum()


@pytest.mark.slow
@pytest.mark.parametrize(("anchor", "prompt"), [("a chapel in snow", "a chapel in snow"), ("", "chapel")])
def test_the_first_step_of_salun_is_adam_on_its_loss(model, anchor, prompt):
    before, ctx = state(model), context(anchor=anchor)
    x, t, _, captions = next(drawn(model, FORGET, ctx, "forget", 1))
    y, s, noise, names = next(drawn(model, RETAIN, ctx, "retain", 1))
    target = e(model, x, t, [prompt] * 2).detach()
    loss = mse(e(model, x, t, captions), target) + 0.5 * mse(e(model, y, s, names), noise)
    slope = flat(gradient(loss, model))
    salun(model, FORGET, RETAIN, ctx, iterations=1, lr=1e-3, k=1.0)
    way = flat(unet_parameters(model)) - flat({name: before[name] for name in unet_parameters(model)})
    large = slope.abs() > 1e-5  # below, rounding decides the sign
    assert large.float().mean() > 0.5
    assert torch.allclose(way[large], -1e-3 * slope[large].sign(), rtol=2e-2)


@pytest.mark.slow
def test_a_live_target_moves_with_the_model_and_a_frozen_one_does_not(make_model):
    ends = {}
    for steps in (1, 2):
        for teacher in ("live", "frozen"):
            model = make_model()
            salun(model, FORGET, RETAIN, context(), iterations=steps, lr=1e-3, pseudo_target=teacher)
            ends[steps, teacher] = state(model)
    assert torch.equal(flat(ends[1, "live"]), flat(ends[1, "frozen"]))
    assert not torch.equal(flat(ends[2, "live"]), flat(ends[2, "frozen"]))


@pytest.mark.slow
def test_the_mask_takes_one_pass_unless_told(make_model):
    ends = []
    for count in (None, 2, 1):
        model = make_model()
        salun(model, FORGET, RETAIN, context(), iterations=1, lr=1e-3, mask_batches=count)
        ends.append(flat(state(model)))
    assert torch.equal(ends[0], ends[1])  # three pictures are two batches of two
    assert not torch.equal(ends[0], ends[2])


def test_salun_can_keep_to_cross_attention(model):
    before = state(model)
    salun(model, FORGET, RETAIN, context(), iterations=1, lr=1e-3, group="xattn")
    assert changed(model, before) <= {name for name in before if ".attn2." in name}


# EraseDiff.


def test_the_gradient_of_erasediff_is_that_of_both_losses(model):
    wrong, right, other = batch(model, 0, CAPTIONS), batch(model, 1, OTHERS), encode(model, ["eight"])
    target = e(model, wrong.x, wrong.t, ["eight"] * 2).detach()
    held = gradient(mse(e(model, right.x, right.t, OTHERS), right.noise), model)
    forgotten = gradient(mse(e(model, wrong.x, wrong.t, CAPTIONS), target), model)
    both = {name: held[name] + 0.7 * forgotten[name] for name in held}
    assert close(gradient(erasediff_loss(model, wrong, right, other, 0.7), model), both)


def erasediff_by_hand(model, ctx, prompt, *, lam, lr, inner, every, iterations):
    """The loops of the paper's algorithm with the constant Lbar subtracted."""
    parameters = list(unet_parameters(model).values())
    optimizer = torch.optim.Adam(parameters, lr=lr)
    ahead = drawn(model, FORGET, ctx, "ahead", 100)
    outer = zip(
        drawn(model, FORGET, ctx, "forget", iterations), drawn(model, RETAIN, ctx, "retain", iterations), strict=True
    )

    def forget_loss(x, t, captions):
        return mse(e(model, x, t, captions), e(model, x, t, [prompt] * len(captions)).detach())

    def step(loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    mean = 0.0
    for index, ((x, t, _, captions), (y, s, noise, names)) in enumerate(outer):
        if index % every == 0 and inner:
            start, seen = [parameter.detach().clone() for parameter in parameters], []
            for _ in range(inner):
                u, v, _, texts = next(ahead)
                loss = forget_loss(u, v, texts)
                seen.append(loss.item())
                step(loss)
            mean = sum(seen) / len(seen)
            for parameter, value in zip(parameters, start, strict=True):
                parameter.data.copy_(value)
        step(mse(e(model, y, s, names), noise) + lam * (forget_loss(x, t, captions) - mean))


@pytest.mark.slow
@pytest.mark.parametrize("inner", [0, 2])
def test_erasediff_takes_the_steps_of_its_algorithm(make_model, inner):
    given, twin = make_model(), make_model()
    before = state(given)
    settings = {"lam": 0.7, "lr": 1e-4, "every": 2, "iterations": 3}
    erasediff(given, FORGET, RETAIN, context(anchor="eight"), inner_steps=inner, **settings)
    erasediff_by_hand(twin, context(), "eight", inner=inner, **settings)
    ways = [{name: value - before[name] for name, value in unet_parameters(one).items()} for one in (given, twin)]
    assert close(*ways, tolerance=0.05)  # Adam makes much of the sign of tiny gradients


@pytest.mark.slow
def test_the_steps_ahead_leave_moments_and_no_weights(make_model):
    ends = []
    for inner in (0, 2):
        model = make_model()
        before = state(model)
        erasediff(model, FORGET, RETAIN, context(), inner_steps=inner, iterations=1, lr=1e-3)
        ends.append(flat(state(model)) - flat(before))
    assert not torch.equal(*ends)
    assert ends[1].abs().max() < 1.5e-3  # three Adam steps of 1e-3 would have gone further


def test_erasediff_draws_the_pseudo_prompt_unless_there_is_an_anchor(make_model):
    ends = {}
    for name, anchor, pseudo in [("a", "", "eight"), ("b", "eight", "a chapel"), ("c", "", "a chapel")]:
        model = make_model()
        erasediff(model, FORGET, RETAIN, context(anchor=anchor), pseudo=pseudo, iterations=1, inner_steps=0, lr=1e-3)
        ends[name] = flat(state(model))
    assert torch.equal(ends["a"], ends["b"])
    assert not torch.equal(ends["a"], ends["c"])


def test_erasediff_trains_its_group_only(model):
    before = state(model)
    erasediff(model, FORGET, RETAIN, context(), iterations=1, inner_steps=1, lr=1e-3, group="noxattn")
    moved = changed(model, before)
    assert moved
    assert not any(".attn2." in name or "time_embedding" in name or "conv_out" in name for name in moved)


# Scissorhands.


@pytest.mark.slow
def test_the_sensitivity_sums_absolute_gradients(model):
    ctx = context()
    for w in (7.5, 0.0):
        found = connection_sensitivity(model, unet_parameters(model), FORGET, ctx, batches=2, guidance=w)
        total = summed_by_hand(model, ctx, 2, w, "prune", each=torch.abs)
        assert close(found, {name: value.abs() * total[name] for name, value in unet_parameters(model).items()})


@pytest.mark.slow
@pytest.mark.parametrize("init", ["trunc_normal", "kaiming_uniform"])
def test_exactly_the_salient_attention_weights_are_drawn_anew(model, init):
    before, ctx = state(model), context()
    total = summed_by_hand(model, ctx, 2, 7.5, "prune", each=torch.abs)
    scores = {name: before[name].abs() * value for name, value in total.items()}
    cut = flat(scores).sort(descending=True).values[round(0.3 * len(flat(scores)))]
    scissorhands(  # training leaves attn1 alone, so that what differs was drawn anew
        model, FORGET, RETAIN, ctx,
        sparsity=0.7, prune_batches=2, init=init, group="xattn", iterations=1, lr=1e-3,
    )  # fmt: skip
    after = state(model)
    places = {name for name in before if name.startswith("unet.up_blocks.") and ".attn1." in name}
    assert changed(model, before) <= places | {name for name in before if ".attn2." in name}
    assert {name.split(".attn1.")[1] for name in places & changed(model, before)} >= {"to_v.weight", "to_out.0.weight"}
    moved = torch.cat([(after[name] != before[name]).flatten() for name in sorted(places)])
    salient = torch.cat([(scores[name] > cut).flatten() for name in sorted(places)])
    assert (moved != salient).sum() <= 2  # rounding at the threshold
    assert 0 < moved.sum() < len(moved)
    fresh = [after[name][after[name] != before[name]] for name in places if name.endswith("weight")]
    limit = 0.02 * 5 if init == "trunc_normal" else math.sqrt(6 / 16)
    assert torch.cat(fresh).abs().max() < limit
    assert torch.cat(fresh).std() == pytest.approx(0.02 if init == "trunc_normal" else limit / 3**0.5, rel=0.15)
    for name in places:
        if name.endswith("bias"):
            assert (after[name][after[name] != before[name]] == 0).all()


def test_redrawing_obeys_its_masks(model):
    named = {name: value for name, value in unet_parameters(model).items() if ".attn1.to_out.0." in name}
    before = {name: value.detach().clone() for name, value in named.items()}
    generator = torch.Generator().manual_seed(0)
    masks = {name: torch.rand(value.shape, generator=generator) < 0.5 for name, value in named.items()}
    redraw(named, masks, "kaiming_uniform", generator)
    for name, value in named.items():
        assert torch.equal(value != before[name], masks[name])
        if name.endswith("bias"):
            assert (value[masks[name]] == 0).all()


def test_stable_diffusion_has_output_blocks_4_and_7_drawn_anew(model):
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 8, 8, 8), norm_num_groups=4, cross_attention_dim=32, attention_head_dim=2
    )  # all else is Stable Diffusion 1.4's
    names = redrawn_names(Diffusion(unet, model.text_encoder, None, model.tokenizer, SCHEDULE))
    counted = [f"unet.up_blocks.{i // 3}.attentions.{i % 3}.transformer_blocks.0.attn1." for i in (4, 7)]
    assert names == [block + part for block in counted for part in ("to_q.weight", "to_k.weight", "to_v.weight",
                                                                    "to_out.0.weight", "to_out.0.bias")]  # fmt: skip
    assert {name.split(".transformer")[0] for name in redrawn_names(model)} == {
        "unet.up_blocks.1.attentions.0", "unet.up_blocks.1.attentions.1",
    }  # fmt: skip


def test_a_model_without_attention_on_its_way_up_is_refused(model):
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, cross_attention_dim=32, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    with pytest.raises(RubError, match="self-attention"):
        redrawn_names(Diffusion(unet, model.text_encoder, None, model.tokenizer, SCHEDULE))


@pytest.mark.parametrize("kind", ["ascent", "anchor"])
def test_the_scissorhands_loss_is_its_equation(model, kind):
    wrong, right, anchor = batch(model, 0, CAPTIONS), batch(model, 1, OTHERS), encode(model, ["eight"])
    held = mse(e(model, right.x, right.t, OTHERS), right.noise)
    prediction = e(model, wrong.x, wrong.t, CAPTIONS)
    if kind == "ascent":
        by_hand = held - 0.1 * mse(prediction, wrong.noise)
    else:
        by_hand = held + 0.1 * mse(prediction, e(model, wrong.x, wrong.t, ["eight"] * 2).detach())
    found = scissorhands_loss(model, wrong, right, anchor, 0.1, kind)
    assert found.item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert close(gradient(found, model), gradient(by_hand, model))


@pytest.mark.slow
def test_the_anchor_matters_to_its_own_forget_loss_alone(make_model):
    for kind, same in (("ascent", True), ("anchor", False)):
        ends = []
        for anchor in ("eight", "a chapel"):
            model = make_model()
            scissorhands(
                model, FORGET, RETAIN, context(anchor=anchor),
                iterations=1, lr=1e-3, prune_batches=1, forget_loss=kind,
            )  # fmt: skip
            ends.append(flat(state(model)))
        assert torch.equal(*ends) is same


# Forget-Me-Not.


def probabilities_by_hand(model, x, t, prompts):
    """The softmax of all cross-attention layers, (B, heads, pixels, L) each, from the projections' outputs."""
    seen, handles, found = {}, [], []
    layers = {name: module for name, module in model.unet.named_modules() if name.endswith("attn2")}
    for name, layer in layers.items():
        for part in ("to_q", "to_k"):
            handles.append(
                getattr(layer, part).register_forward_hook(
                    lambda module, given, made, key=(name, part): seen.__setitem__(key, made)
                )
            )
    e(model, x, t, prompts)
    for handle in handles:
        handle.remove()
    for name, layer in layers.items():
        query, key = (
            torch.stack(seen[name, part].chunk(layer.heads, dim=2), dim=1) for part in ("to_q", "to_k")
        )  # (B, heads, places, width of a head)
        found.append((torch.einsum("bhpw,bhlw->bhpl", query, key) / query.shape[-1] ** 0.5).softmax(-1))
    return found


def test_the_norm_is_that_of_the_softmax_at_the_positions(model):
    one, positions = batch(model, 0, CAPTIONS), torch.tensor([2, 5, 6])
    total = sum(p[..., [2, 5, 6]].square().sum() for p in probabilities_by_hand(model, one.x, one.t, CAPTIONS))
    with recorded(model, positions) as kept:
        model.predict(one.x, one.t, one.given)
    found = attention_norm(kept)
    assert found.item() == pytest.approx(total.sqrt().item(), rel=1e-5)
    assert close(gradient(found, model), gradient(total.sqrt(), model))


def test_all_probabilities_of_a_pixel_sum_to_one(model):
    one = batch(model, 0, CAPTIONS)
    with recorded(model, torch.arange(16)) as kept:
        model.predict(one.x, one.t, one.given)
    assert len(kept) == 4
    assert all(torch.allclose(p.sum(-1), torch.ones(p.shape[:2]), atol=1e-5) for p in kept)


def test_the_processor_gives_the_default_processors_output(model):
    one, plain = batch(model, 0, CAPTIONS), frozen(model)
    expected = plain.predict(one.x, one.t, one.given)
    with recorded(model, torch.tensor([3])):
        assert torch.equal(model.predict(one.x, one.t, one.given), expected)
    layer = next(module for name, module in model.unet.named_modules() if name.endswith("attn2"))
    hidden, text = torch.randn(2, 9, layer.query_dim), torch.randn(2, 16, layer.cross_attention_dim)
    recorder = fmn_module.Recorder(layer.processor, torch.tensor([3]), [])
    called = recorder(layer, hidden, encoder_hidden_states=text, attention_mask=None, temb=None)
    assert torch.equal(called, layer(hidden, text))


def test_the_processors_come_back_even_after_an_error(model):
    before = dict(model.unet.attn_processors)
    with pytest.raises(ZeroDivisionError), recorded(model, torch.tensor([3])):
        assert any(model.unet.attn_processors[name] is not value for name, value in before.items())
        _ = 1 / 0
    assert all(model.unet.attn_processors[name] is value for name, value in before.items())


def test_the_positions_are_those_of_the_concepts_tokens(model):
    caption = "a photo of a garbage truck"
    tokens = model.tokenizer.convert_ids_to_tokens(model.tokenize([caption])[0].tolist())
    found = concept_positions(model, caption, "garbage truck", ends="none").tolist()
    assert "".join(tokens[place] for place in found).replace("</w>", " ").strip() == "garbage truck"
    with_end = concept_positions(model, caption, "garbage truck", ends="first").tolist()
    assert with_end == [*found, found[-1] + 1]
    assert tokens[with_end[-1]] == "<|endoftext|>"
    padded = concept_positions(model, caption, "garbage truck", ends="all").tolist()
    assert padded == [*found, *range(found[-1] + 1, 16)]  # this tokenizer pads with the end of text
    twice = concept_positions(model, "church church", "church", ends="none")
    assert len(twice) == 2 * len(concept_positions(model, "church", "church", ends="none"))
    assert twice[0] == 1


def test_a_concept_that_is_not_in_the_caption_is_said(model):
    for caption, concept in [
        ("a photo of a church", "truck"),
        ("a photo", ""),
        ("a photo of " * 8 + "church", "church"),
    ]:
        with pytest.raises(RubError, match="does not hold the tokens"):
            concept_positions(model, caption, concept, ends="first")
    with pytest.raises(RubError, match="template"):
        fmn(model, FORGET, RETAIN, context(), template="a photo")


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{}, {"real_pictures": False}, {"group": "xattn"}, {"ends": "none"}, {"ends": "first"}]
)
def test_fmn_takes_the_attention_off_the_concept(model, settings):
    before, ctx, caption = state(model), context(batch_size=4), "a photo of church"
    one = batch(model, 7, [caption] * 4)
    places = concept_positions(model, caption, "church", ends=settings.get("ends", "all")).tolist()

    def attention():
        return sum(p[..., places].sum(-1).mean() for p in probabilities_by_hand(model, one.x, one.t, [caption] * 4))

    start = attention().item()
    fmn(model, FORGET, RETAIN, ctx, lr=1e-3, iterations=10, **settings)
    assert attention().item() < 0.97 * start
    if "group" in settings:
        assert changed(model, before) <= {name for name in before if ".attn2." in name}


def test_the_first_step_of_fmn_is_adamw_on_the_norm(model):
    before, ctx, caption = state(model), context(), "a photo of church"
    x, t, _, _ = next(drawn(model, FORGET, ctx, "forget", 1))
    places = concept_positions(model, caption, "church", ends="all").tolist()
    total = sum(p[..., places].square().sum() for p in probabilities_by_hand(model, x, t, [caption] * 2)).sqrt()
    slope = gradient(total, model)
    norm = flat(slope).norm()
    fmn(model, FORGET, RETAIN, ctx, lr=1e-3, iterations=1, weight_decay=0.1)
    checked = 0
    for name, value in unet_parameters(model).items():
        start, g = before[name], slope[name] / norm.clamp_min(1.0)
        large = g.abs() > 1e-5
        checked += int(large.sum())
        wanted = start * (1 - 1e-3 * 0.1) - 1e-3 * g / (g.abs() + 1e-8)
        assert torch.allclose(value[large], wanted[large], atol=2e-5)
        if not slope[name].any() and "conv_out" in name:  # what no attention depends on has no step at all
            assert torch.equal(value, start)
    assert checked > 1000


def test_zeros_need_no_pictures(model):
    before = state(model)
    fmn(model, NOTHING, RETAIN, context(), real_pictures=False, iterations=1, lr=1e-3)
    assert changed(model, before)


# Concept Ablation.


def test_the_anchors_pictures_are_drawn_by_the_model_under_its_caption(model):
    given, ctx = freeze(model), context(sampler=Sampler("ddim", 4))
    found = anchor_pictures(given, "a photo of eight", 3, 3.0, ctx)
    noise = torch.randn(2, 1, 8, 8, generator=(draws := ctx.generator("anchor-pictures")))
    noise = torch.cat([noise, torch.randn(1, 1, 8, 8, generator=draws)])
    contexts = encode(given, ["a photo of eight"]), encode(given, [""])
    wanted = sample(given, *contexts, noise, torch.full((3,), 3.0), Sampler("ddim", 4))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prior", [0.0, 0.7])
def test_concept_ablation_takes_adamw_steps_down_its_loss(make_model, prior):
    given, twin = make_model(), make_model()
    ctx = context(anchor="a photo of eight", sampler=Sampler("ddim", 3))
    settings = {"lr": 1e-3, "weight_decay": 0.1, "clip": 0.05}
    before = state(given)
    concept_ablation(given, NOTHING, RETAIN, ctx, pictures=3, prior_weight=prior, iterations=2, **settings)
    names = set(parameter_group(twin, "esd-x-strict"))
    assert changed(given, before) == names
    pictures = anchor_pictures(frozen(twin), "a photo of eight", 3, 7.5, ctx)
    data, trained = Side((), pictures, ("",) * 3), [twin.get_parameter(name) for name in sorted(names)]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.1)
    for x, t, noise, _ in drawn(twin, data, ctx, "anchor", 2):
        with torch.no_grad():
            wanted = e(twin, x, t, ["a photo of eight"] * 2)
        loss = mse(e(twin, x, t, ["a photo of church"] * 2), wanted)
        loss = loss + prior * mse(e(twin, x, t, ["a photo of eight"] * 2), noise)
        for parameter, slope in zip(trained, torch.autograd.grad(loss, trained), strict=True):
            parameter.grad = slope
        norm = torch.stack([parameter.grad.norm() for parameter in trained]).norm()
        for parameter in trained:
            parameter.grad.mul_((0.05 / (norm + 1e-6)).clamp(max=1.0))
        optimizer.step()
    for name in names:
        torch.testing.assert_close(given.get_parameter(name), twin.get_parameter(name), rtol=0, atol=2e-5)


def test_concept_ablation_needs_an_anchor(model):
    with pytest.raises(RubError, match=r"give concept\.anchor"):
        concept_ablation(model, FORGET, Side((), torch.empty(0, 1, 8, 8), ()), context())
    with pytest.raises(RubError, match="template = 'church'"):
        concept_ablation(model, FORGET, RETAIN, context(anchor="a photo"), template="church")
