"""The masked autoencoder against transformers' and timm's: same weights and noise, same numbers."""

import math

import pytest
import torch
from torch import nn

from rub.models.mae.checkpoints import load_mae, save_mae, to_transformers
from rub.models.mae.masks import gather, keyed_noise, make_mask
from rub.models.mae.model import ARCHITECTURES, MAEConfig, MaskedAutoencoder, build_mae, paste, sincos

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CONFIGS = {
    "small": MAEConfig(16, 4, 3, 16, 2, 4, 8, 1, 2),
    "deep decoder": MAEConfig(24, 8, 3, 32, 1, 2, 16, 3, 4, mean=(0.5,) * 3, std=(0.5,) * 3),
    "grey": MAEConfig(14, 2, 1, 24, 3, 3, 12, 2, 1, mlp_ratio=2.0, mean=(0.1307,), std=(0.3081,)),
    "eps": MAEConfig(32, 8, 3, 16, 2, 2, 20, 2, 5, eps=1e-3),
    "five channels": MAEConfig(20, 5, 5, 12, 1, 1, 8, 1, 1, mean=(0.1, 0.3, 0.5, 0.7, 0.9), std=(0.2,) * 5),
}


def shaken(config, seed=0):
    """A model with random norms and biases too, in evaluation mode."""
    model = MaskedAutoencoder(config, seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def theirs_of(model, ratio=0.75, **changes):
    """The installed transformers' model with the same weights."""
    transformers = pytest.importorskip("transformers")
    c = model.config
    sizes = {
        "hidden_size": c.dim,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.heads,
        "intermediate_size": int(c.dim * c.mlp_ratio),
        "decoder_hidden_size": c.decoder_dim,
        "decoder_num_hidden_layers": c.decoder_depth,
        "decoder_num_attention_heads": c.decoder_heads,
        "decoder_intermediate_size": int(c.decoder_dim * c.mlp_ratio),
        "image_size": c.image_size,
        "patch_size": c.patch_size,
        "num_channels": c.channels,
        "layer_norm_eps": c.eps,
        "mask_ratio": ratio,
    }
    theirs = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**{**sizes, **changes})).eval()
    theirs.load_state_dict(to_transformers(model.state_dict()), strict=True)
    return theirs


def images_of(config, count=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, config.channels, config.image_size, config.image_size)
    return torch.rand(shape, generator=generator), torch.rand(count, config.patches, generator=generator)


def normalised(config, x):
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (config.mean, config.std))
    return (x - mean) / std


def close(mine, other):
    """Equal to 1e-6 of the largest number: rounding of float32, whose convolution and product sum in other orders."""
    return (mine - other).abs().max() <= 1e-6 * max(1.0, float(other.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.85])
@pytest.mark.parametrize("name", CONFIGS)
def test_equals_transformers(name, ratio):
    config = CONFIGS[name]
    model = shaken(config)
    theirs, (x, noise) = theirs_of(model, ratio), images_of(config)
    mask = make_mask(noise, ratio)
    with torch.no_grad():
        out = theirs(normalised(config, x), noise=noise)
        latent = theirs.vit(normalised(config, x), noise=noise).last_hidden_state
        assert close(model(x, mask), out.logits)
        assert close(model.encode(x, mask), latent)
        assert close(model.decode_hidden(latent, mask), gather(out.logits, mask.hidden))
        assert close(model.loss(x, mask), out.loss)
        assert torch.equal(mask.removed, out.mask.bool())
        assert torch.equal(mask.restore, out.ids_restore)
        target = x.flip(0)
        squared = (out.logits - theirs.patchify(normalised(config, target))).square().mean(-1)
        swapped = (squared * out.mask).sum() / out.mask.sum()
        assert close(model.loss(x, mask, target), swapped)


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_transformers_in_double_precision(name):
    model = shaken(CONFIGS[name]).double()
    theirs, (x, noise) = theirs_of(model).double(), (images.double() for images in images_of(CONFIGS[name]))
    theirs.load_state_dict(to_transformers(model.state_dict()))
    with torch.no_grad():
        expected = theirs(model.unpatchify(model.normalise(model.patchify(x))), noise=noise).logits
        assert (model(x, make_mask(noise, 0.75)) - expected).abs().max() <= 1e-12


@pytest.mark.parametrize("name", CONFIGS)
def test_patches_are_in_their_order(name):
    model, (x, noise) = shaken(CONFIGS[name]), images_of(CONFIGS[name])
    theirs = theirs_of(model)
    patches = model.patchify(x)
    assert torch.equal(patches, theirs.patchify(x))
    assert torch.equal(model.unpatchify(patches), x)
    assert torch.equal(theirs.unpatchify(patches), x)
    assert torch.allclose(model.unpatchify(model.normalise(patches)), normalised(CONFIGS[name], x), atol=1e-6)
    mask = make_mask(noise, 0.75)
    with torch.no_grad():
        out = theirs(normalised(CONFIGS[name], x), noise=noise)
        pasted = paste(model.reconstruct(x, mask), x, mask, model)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (CONFIGS[name].mean, CONFIGS[name].std))
    pixels = theirs.unpatchify(out.logits) * std + mean
    shown = theirs.unpatchify(out.mask[..., None].expand_as(patches))
    assert torch.allclose(pasted, (x * (1 - shown) + pixels * shown).clamp(0, 1), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("grid", "dim"), [(14, 512), (8, 48), (3, 8)])
def test_position_embeddings_are_the_published_ones(grid, dim):
    """By hand, one number at a time; and as transformers draws its decoder's, whose halves the original has swapped."""
    expected = torch.zeros(1 + grid * grid, dim)
    for row in range(grid):
        for column in range(grid):
            for i in range(dim // 4):
                frequency = 1 / 10000 ** (i / (dim // 4))
                waves = [f(at * frequency) for at in (column, row) for f in (math.sin, math.cos)]
                for part, wave in enumerate(waves):
                    expected[1 + row * grid + column, part * dim // 4 + i] = wave
    assert (sincos(grid, dim)[0] - expected).abs().max() <= 1e-6
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 4, "num_hidden_layers": 0, "num_attention_heads": 1, "image_size": grid, "patch_size": 1}
    config = transformers.ViTMAEConfig(**sizes, decoder_hidden_size=dim, decoder_num_hidden_layers=0)
    decoder = transformers.ViTMAEForPreTraining(config).decoder
    decoder.decoder_pos_embed._is_hf_initialized = False  # version 5 leaves zeros there
    decoder.initialize_weights(grid * grid)
    assert (sincos(grid, dim) - decoder.decoder_pos_embed).abs().max() <= 1e-6


def test_encoder_equals_timm():
    timm = pytest.importorskip("timm")
    config = MAEConfig(32, 8, 3, 24, 3, 4, 8, 1, 2)
    model = shaken(config)
    theirs = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=4, num_classes=0, global_pool="token",
        norm_layer=lambda dim, **options: nn.LayerNorm(dim, eps=1e-6),
    ).eval()  # fmt: skip
    encoder = {n: v for n, v in model.state_dict().items() if not n.startswith(("decoder", "mask_token"))}
    theirs.load_state_dict(encoder, strict=True)
    x, noise = images_of(config)
    with torch.no_grad():
        tokens = theirs.patch_embed(normalised(config, x)) + theirs.pos_embed[:, 1:]
        keep = noise.argsort(1)[:, : int(16 * 0.25)]
        seen = torch.stack([rows[index] for rows, index in zip(tokens, keep, strict=True)])
        first = (theirs.cls_token + theirs.pos_embed[:, :1]).expand(len(x), -1, -1)
        latent = theirs.norm(theirs.blocks(torch.cat([first, seen], 1)))
        assert (model.encode(x, make_mask(noise, 0.75)) - latent).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("name", "count", "encoder"), [("mae-vit-base", 111_907_840, 85.8e6), ("mae-vit-large", 329_541_888, 303.3e6)]
)
def test_published_sizes(name, count, encoder):
    with torch.device("meta"):
        model = build_mae(name, channels=3, mean=MEAN, std=STD)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert sum(parameter.numel() for _, parameter in model.encoder_parameters()) == pytest.approx(encoder, rel=2e-3)
    fixed = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert sorted(fixed) == ["decoder_pos_embed", "pos_embed"]
    assert model.config.patches == 196
    assert make_mask(torch.rand(1, 196), 0.75).keep.shape == (1, 49)
    assert set(ARCHITECTURES) >= {"mae-vit-base", "mae-vit-large", "mae-vit-huge"}


# Masks


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("patches", [16, 49, 196])
def test_masks_do_not_depend_on_batch_or_order(patches, ratio):
    ids = torch.tensor([5, 0, 123_456, 7, 99])
    noise = keyed_noise(ids, patches, seed=3)
    assert torch.equal(noise, keyed_noise(ids, patches, seed=3))
    assert not torch.equal(noise, keyed_noise(ids, patches, seed=4))
    assert noise.unique().numel() == noise.numel()
    mask = make_mask(noise, ratio)
    again = make_mask(noise, ratio)
    assert torch.equal(mask.keep, again.keep) and torch.equal(mask.hidden, again.hidden)
    assert (mask.removed.sum(1) == patches - int(patches * (1 - ratio))).all()
    for row, sample in enumerate(ids):
        alone = make_mask(keyed_noise(sample[None], patches, seed=3), ratio)
        assert torch.equal(alone.keep[0], mask.keep[row]) and torch.equal(alone.hidden[0], mask.hidden[row])
    order = torch.tensor([3, 1, 4, 0, 2])
    shuffled, picked = make_mask(keyed_noise(ids[order], patches, seed=3), ratio), mask.select(order)
    assert torch.equal(shuffled.keep, picked.keep) and torch.equal(shuffled.removed, mask.removed[order])


def test_an_image_alone_gives_what_it_gives_in_a_batch():
    config = CONFIGS["small"]
    model, (x, _) = shaken(config), images_of(config, count=5)
    mask = make_mask(keyed_noise(torch.arange(5), 16), 0.75)
    with torch.no_grad():
        together = model(x, mask)
        for i in range(5):
            alone = model(x[i : i + 1], mask.select(slice(i, i + 1)))
            assert (alone[0] - together[i]).abs().max() <= 1e-6


@pytest.mark.parametrize(("visible", "reproduced"), [(4, True), (3, False), (5, False)])
def test_a_boolean_mask_as_noise_is_reproduced_iff_its_count_fits(visible, reproduced):
    wanted = torch.ones(2, 16, dtype=torch.bool)
    wanted[0, torch.randperm(16, generator=torch.Generator().manual_seed(0))[:visible]] = False
    wanted[1, :visible] = False
    mask = make_mask(wanted.float(), 0.75)
    assert mask.keep.shape == (2, int(16 * 0.25))  # the ratio wins, whatever the boolean mask counts
    assert all(torch.equal(mask.removed[i], wanted[i]) is reproduced for i in range(2))


# The attack's gradient


@pytest.mark.parametrize("name", CONFIGS)
def test_the_attack_reaches_visible_patches_only(name):
    """The squared error to a fixed target has gradient 0 on masked patches; MAE's own loss, whose target moves, not."""
    config = CONFIGS[name]
    model, (x, noise) = shaken(config).requires_grad_(False), images_of(config)
    mask = make_mask(noise, 0.75)
    target = model.reconstruct(x.roll(1, 0), mask)  # of another image
    probe = x.clone().requires_grad_()
    (model.reconstruct(probe, mask) - target).square().mean().backward()
    size = model.patchify(probe.grad).abs().sum(-1)
    assert (size[mask.removed] == 0).all()
    assert (size[~mask.removed] > 0).all()
    leaking = x.clone().requires_grad_()
    model.loss(leaking, mask).backward()
    assert (model.patchify(leaking.grad).abs().sum(-1)[mask.removed] > 0).all()


def test_gradients_equal_transformers():
    config = CONFIGS["small"]
    model, (x, noise) = shaken(config), images_of(config)
    theirs, mask = theirs_of(model), make_mask(noise, 0.75)
    target = torch.randn(3, 16, 48, generator=torch.Generator().manual_seed(2))
    ours, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    (model(ours, mask) - target)[mask.removed].square().mean().backward()
    (theirs(normalised(config, other), noise=noise).logits - target)[mask.removed].square().mean().backward()
    assert (ours.grad - other.grad).abs().max() <= 1e-6
    named = to_transformers({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            assert (parameter.grad - named[name]).abs().max() <= 1e-5, name


def test_the_original_towards_its_own_output_starts_at_zero():
    config = CONFIGS["small"]
    model, (x, noise) = shaken(config), images_of(config)
    mask = make_mask(noise, 0.75)
    with torch.no_grad():
        assert torch.equal(model.reconstruct(x, mask), model.reconstruct(x.clone(), mask))


# Saving


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small", "deep decoder", "grey"])
def test_there_and_back_through_transformers(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = CONFIGS[name]
    model, (x, noise) = shaken(config), images_of(config)
    mask = make_mask(noise, 0.75)
    theirs_of(model).save_pretrained(tmp_path / "theirs")
    own = load_mae(tmp_path / "theirs", mean=config.mean, std=config.std)
    assert own.config == config
    read, info = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    save_mae(own, tmp_path / "own.safetensors")
    with torch.no_grad():
        expected = model(x, mask)
        assert torch.equal(own(x, mask), expected)
        assert torch.equal(load_mae(tmp_path / "own.safetensors")(x, mask), expected)
        assert close(read.eval()(normalised(config, x), noise=noise).logits, expected)
