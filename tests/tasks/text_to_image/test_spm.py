"""SPM against its equation, its adapters against merged weights, its anchors against their distribution."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rub.errors import Diverged, RubError
from rub.models.diffusion.adapters import Adapter, Attached, attach, merge
from rub.models.diffusion.sampling import Sampler
from rub.tasks.text_to_image.context import Side, UnlearnContext
from rub.tasks.text_to_image.methods.spm import draw_anchors, restarts, spm, spm_loss


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def inputs(model, count=2):
    x = torch.randn(count, *model.latent_shape, generator=seeded(1))
    t = torch.tensor([3, 700, 40, 999])[:count]
    with torch.no_grad():
        return x, t, model.context(["a photo of a church"]), model.context([""])


def shaken(attached, seed=2):
    """Give the adapters an effect."""
    generator = seeded(seed)
    with torch.no_grad():
        for name, value in attached.named_parameters():
            if name.endswith("up"):
                value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    return attached


def context(**given):
    return UnlearnContext(**{"seed": 0, "batch_size": 2, "sampler": Sampler("ddim", 4), "anchor": "a photo", **given})


FORGET = Side(("a church", "a photo of a church"), torch.empty(0, 1, 8, 8), ())
RETAIN = Side((), torch.empty(0, 1, 8, 8), ())


# Adapters.


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 3])
def test_fresh_adapters_are_the_identity_and_trained_ones_equal_merged_weights(model, rank):
    x, t, target, _ = inputs(model)
    with torch.no_grad():
        before = model.predict(x, t, target)
        attached = attach(model, rank, seeded(), alpha=2.0)
        assert torch.equal(model.predict(x, t, target), before)
        shaken(attached)
        for multiplier in (1.0, 0.5):
            attached.multiplier = multiplier
            adapted = model.predict(x, t, target)
            attached.multiplier = 0.0
            merged = merge_outside(model, attached, multiplier)
            assert (adapted - before).abs().max() > 1e-2
            assert torch.allclose(adapted, merged.predict(x, t, target), atol=1e-5)
        attached.multiplier = 1.0
        with attached.off():
            assert torch.equal(model.predict(x, t, target), before)
        assert attached.multiplier == 1.0
        attached.remove()
        assert torch.equal(model.predict(x, t, target), before)


def merge_outside(model, attached, multiplier):
    """Merge into a model without hooks: here they lie in modules that a deep copy would take along."""
    from rub.models.diffusion.mini import reinitialised

    clean = reinitialised(model, 0)
    clean.unet.load_state_dict(model.unet.state_dict())
    return merge(clean, attached.adapter(), multiplier)


def test_every_linear_and_convolution_of_the_transformers_is_adapted(model):
    """4 x (q, k, v, out) twice, two of the feed-forward, proj_in and proj_out: 12 for each of 4 transformers."""
    attached = attach(model, 1, seeded())
    adapter = attached.adapter(["church", "chapel"])
    attached.remove()
    names = {name.split(".")[0] for name in adapter.state}
    assert len(names) == 48
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k" in names
    assert "lora_unet_mid_block_attentions_0_proj_in" in names
    assert adapter.metadata == {"prompts": "church,chapel", "rank": "1", "alpha": "1.0"}
    assert {name.split(".", 1)[1] for name in adapter.state} == {"lora_down.weight", "lora_up.weight", "alpha"}
    down = adapter.state["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"]
    assert down.shape == (1, 32, 1, 1)
    assert down.abs().max() <= 1 / math.sqrt(32)  # Kaiming's uniform bound for a = sqrt 5
    assert down.abs().max() > 0.7 / math.sqrt(32)


def test_convolutions_keep_kernel_stride_and_padding():
    conv = nn.Conv2d(3, 5, 3, stride=2, padding=1)
    attached = shaken(Attached({"lora_unet_conv": conv}, 2, 1.0, seeded()))
    x = torch.randn(2, 3, 8, 8, generator=seeded(1))
    pair = attached.pairs["lora_unet_conv"]
    change = sum(pair.up[:, r, 0, 0, None, None, None] * pair.down[r] for r in range(2)) / 2  # alpha / r
    wanted = F.conv2d(x, conv.weight + change, conv.bias, stride=2, padding=1)
    assert torch.allclose(conv(x), wanted, atol=1e-5)


def test_a_convolutions_adapter_is_merged_by_hand(model):
    down, up = torch.randn(2, 1, 3, 3, generator=seeded()), torch.randn(16, 2, 1, 1, generator=seeded(1))
    state = {"lora_unet_conv_in.lora_down.weight": down, "lora_unet_conv_in.lora_up.weight": up}
    wanted = model.unet.conv_in.weight + (up[:, :, 0, 0] @ down.flatten(1)).view(16, 1, 3, 3)  # no alpha: alpha = r
    assert torch.allclose(merge(model, Adapter(state)).unet.conv_in.weight, wanted, atol=1e-6)
    with_alpha = Adapter({**state, "lora_unet_conv_in.alpha": torch.tensor(1.0)})
    half = (wanted + model.unet.conv_in.weight) / 2
    assert torch.allclose(merge(model, with_alpha).unet.conv_in.weight, half, atol=1e-6)


def test_the_global_generator_is_left_alone(model):
    before = torch.random.get_rng_state()
    spm(model, FORGET, RETAIN, context(), iterations=2)
    assert torch.equal(torch.random.get_rng_state(), before)


# The method.


def test_the_loss_is_the_equation(model):
    x, t, target, surrogate = inputs(model)
    anchors = torch.randn(5, *target.shape[1:], generator=seeded(4))
    attached = shaken(attach(model, 1, seeded()))
    got = spm_loss(model, attached, x, t, target, surrogate, anchors, erase=1.5, anchoring=10.0)
    attached.remove()
    merged = merge(model, attached.adapter())
    with torch.no_grad():
        goal = model.predict(x, t, surrogate) * 2.5 - 1.5 * model.predict(x, t, target)
        wanted = (merged.predict(x, t, target) - goal).square().mean()
        held = 0.0
        for place in range(5):
            one = x[place % 2, None], t[place % 2, None], anchors[place, None]
            held += (merged.predict(*one) - model.predict(*one)).square().mean() / 5
    assert held > 1e-4
    assert float(got.detach()) == pytest.approx(float(wanted + 10 * held), rel=1e-4)


def test_the_gradient_reaches_the_adapters_alone(model):
    x, t, target, surrogate = inputs(model)
    attached = attach(model, 1, seeded())
    model.requires_grad_(False)
    spm_loss(model, attached, x, t, target, surrogate, target, erase=1.0, anchoring=1.0).backward()
    ups = [value.grad for name, value in attached.named_parameters() if name.endswith("up")]
    assert all(grad.abs().max() > 0 for grad in ups)
    assert all(value.grad is None for value in model.parameters())


@pytest.mark.slow
def test_anchors_follow_their_distribution():
    """In the plane the angle's density is min(1, 1 - cos) / (2 pi - 2); integrate cos and cos^2 over it."""
    target = torch.tensor([[[3.0, 4.0]]])
    drawn = draw_anchors(target, 4000, seeded())
    assert drawn.shape == (4000, 1, 2)
    lengths = drawn.flatten(1).norm(dim=1) / 5
    assert 0.8 <= lengths.min() < 0.81
    assert 1.19 < lengths.max() <= 1.2
    assert float(lengths.mean()) == pytest.approx(1.0, abs=0.01)
    cosines = F.cosine_similarity(drawn.flatten(1), target.flatten(1))
    assert float(cosines.mean()) == pytest.approx(-(math.pi / 2) / (2 * math.pi - 2), abs=0.03)
    assert float(cosines.square().mean()) == pytest.approx((math.pi - 4 / 3) / (2 * math.pi - 2), abs=0.03)


def test_the_rate_follows_diffusers_schedule():
    from diffusers.optimization import get_cosine_with_hard_restarts_schedule_with_warmup as scheduled

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = scheduled(optimizer, 50, 300, num_cycles=3)
    for step in range(300):
        assert restarts(step, 300, 50, 3) == pytest.approx(schedule.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        schedule.step()


@pytest.mark.slow
def test_the_concept_goes_and_the_models_own_weights_stay(model):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    few = context(anchor="", sampler=Sampler("ddim", 2))
    adapter = spm(model, FORGET, RETAIN, few, iterations=40, lr=4e-2, anchoring=1.0, weight_decay=0.0)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert adapter.metadata["prompts"] == "a church,a photo of a church"
    made = merge(model, adapter)
    x, t, target, empty = inputs(model, 4)
    with torch.no_grad():
        goal = 2 * model.predict(x, t, empty) - model.predict(x, t, target)
        before = (model.predict(x, t, target) - goal).square().mean()
        after = (made.predict(x, t, target) - goal).square().mean()
    assert after < before / 2


@pytest.mark.slow
def test_a_run_is_reproducible_and_depends_on_its_seed(model):
    def made(seed):
        return spm(model, FORGET, RETAIN, context(seed=seed), iterations=3, lr=1e-2, warmup=0.0, rank=2).state

    one, again, other = made(0), made(0), made(1)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_loss_that_is_not_finite_diverged_and_leaves_no_hooks(model):
    with torch.no_grad():
        model.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(Diverged):
        spm(model, FORGET, RETAIN, context(), iterations=2)
    assert not any(module._forward_hooks for module in model.unet.modules())


def test_a_unet_without_transformers_cannot_be_adapted(model):
    from diffusers import UNet2DConditionModel

    model.unet = UNet2DConditionModel(
        block_out_channels=(8, 8), down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        mid_block_type=None, norm_num_groups=4, layers_per_block=1,
    )  # fmt: skip
    with pytest.raises(RubError, match="no Linear or Conv2d in a Transformer2DModel"):
        attach(model, 1, seeded())
