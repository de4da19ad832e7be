"""Miniatures: tokenizer and training are pure functions, latents and loss weights are what they say."""

import subprocess
import sys

import pytest
import torch

from rub.data.samples import Samples
from rub.models.diffusion.model import frozen
from rub.models.diffusion.sampling import Sampler
from rub.models.diffusion.tokenizer import make_tokenizer, train_vocabulary
from rub.tasks.text_to_image.context import Side, UnlearnContext, train_only
from rub.tasks.text_to_image.training import encoded, fit, min_snr
from rub.training.batches import Augmentation

SETTINGS = {"steps": 30, "lr": 4e-3, "dropout": 0.1, "ema": 0.9, "autoencoder_steps": 20, "autoencoder_lr": 4e-3,
            "autoencoder_batch": 8}  # fmt: skip


@pytest.mark.slow
def test_the_vocabulary_is_the_same_in_every_process():
    """Hash maps are in another order in each process; the trainer's ties must not follow them."""
    code = (
        "from rub.models.diffusion.tokenizer import train_vocabulary\n"
        "from rub.tasks.text_to_image.captions import vocabulary_texts\n"
        "print(train_vocabulary(vocabulary_texts([('seven', '7'), ('one', '1')]), 1200))"
    )
    said = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(said) == 1


def test_the_vocabulary_keeps_its_size_and_knows_every_byte():
    vocabulary, merges = train_vocabulary(["a church", "a church in the snow"] * 3, 520)
    assert len(vocabulary) == 520 and set(vocabulary.values()) == set(range(520))
    tokenizer = make_tokenizer(vocabulary, merges, 16)
    ids = tokenizer("Église ✓", add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids).strip() == "église ✓"


def test_padding_is_eos_and_long_prompts_are_cut(model):
    ids = model.tokenize(["church", " ".join(["church"] * 40)])
    bos, eos = model.tokenizer.bos_token_id, model.tokenizer.eos_token_id
    assert ids.shape == (2, 16) and ids[:, 0].tolist() == [bos, bos]
    assert (ids[0, 2:] == eos).all() and ids[1, -1] == eos and eos not in ids[1, :-1].tolist()


def test_soft_prompts_of_token_embeddings_are_the_prompt(model):
    """Check 5 of the reference: differs by 0.0, and the gradient arrives."""
    ids = model.tokenize(["a church"])
    rows = model.token_embeddings[ids].detach().requires_grad_(True)
    made = model.encode_soft(rows)
    assert torch.equal(made, model.encode(ids))
    made.square().sum().backward()
    assert rows.grad.abs().max() > 0


def test_pixels_are_latents_that_lose_nothing(model):
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    assert torch.equal(model.to_images(model.to_latents(images)), images)


def test_patch_components_are_those_of_scikit_learn(make_model):
    from sklearn.decomposition import PCA

    model = make_model(arch="sd-small", channels=3, size=32)
    images = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images = torch.nn.functional.avg_pool2d(images, 3, 1, 1) * 2  # so that components differ in size
    model.vae.fit(images)
    rows = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(-1, 48)
    wanted = PCA(8).fit(rows.numpy())
    overlap = (model.vae.basis.numpy() @ wanted.components_.T).__abs__()
    assert overlap.diagonal().min() > 0.99
    latents = model.vae.encode(images).latent_dist.mean * model.vae.config.scaling_factor
    assert tuple(latents.shape) == (40, 8, 8, 8) and latents.square().mean() == pytest.approx(1, abs=1e-3)
    back = model.vae.decode(latents / model.vae.config.scaling_factor).sample
    error = (back - images).square().mean() / (images - images.mean((0, 2, 3), keepdim=True)).square().mean()
    assert float(error) == pytest.approx(1 - wanted.explained_variance_ratio_.sum(), abs=0.01)


@pytest.mark.slow
def test_patch_components_survive_saving(make_model, tmp_path):
    from rub.models.diffusion.checkpoints import load_model, save_model, save_pipeline

    model = make_model(arch="sd-small", channels=3, size=32)
    model.vae.fit(torch.rand(20, 3, 32, 32) * 2 - 1)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    save_model(model, tmp_path / "model.safetensors")
    save_pipeline(model, tmp_path / "folder")
    for path in ("model.safetensors", "folder"):
        again = load_model(tmp_path / path)
        assert torch.equal(again.to_latents(images), model.to_latents(images))
        assert torch.equal(again.to_images(again.to_latents(images)), model.to_images(model.to_latents(images)))


@pytest.mark.slow
def test_latents_of_an_autoencoder_have_unit_spread_after_training(make_model):
    model = make_model(arch="sd-latent", channels=3, size=32)
    generator = torch.Generator().manual_seed(0)
    pool = (
        torch.randint(0, 256, (24, 3, 4, 4), dtype=torch.uint8, generator=generator)
        .repeat_interleave(8, 2)
        .repeat_interleave(8, 3)
    )
    samples = Samples(pool, torch.zeros(24).long(), torch.arange(24))
    before = (model.to_images(model.to_latents(pool)).float() - pool.float()).abs().mean()
    context = UnlearnContext(seed=0, batch_size=8, augmentation=Augmentation(0, False))
    fit(model, samples, lambda labels, generator: ["a church"] * len(labels), context, {**SETTINGS, "steps": 1})
    after = (model.to_images(model.to_latents(pool)).float() - pool.float()).abs().mean()
    assert after < 0.9 * before
    assert encoded(model, samples, mirror=False).std() == pytest.approx(1, abs=1e-3)


def test_min_snr_by_hand():
    alpha = torch.tensor([0.99, 0.9, 0.5, 0.1], dtype=torch.float64)
    wanted = torch.tensor([min(a / (1 - a), 5) / (a / (1 - a)) for a in alpha.tolist()], dtype=torch.float64)
    assert torch.allclose(min_snr(alpha), wanted / wanted.mean())


def trained(make_model, seed):
    samples = Samples(torch.full((16, 1, 8, 8), 200, dtype=torch.uint8), torch.arange(16) % 2, torch.arange(16))
    context = UnlearnContext(seed=seed, batch_size=8, augmentation=Augmentation(0, False))
    names = ("a church", "a chapel")
    captions = lambda labels, generator: [names[label] for label in labels.tolist()]  # noqa: E731
    return fit(make_model(), samples, captions, context, SETTINGS), samples


@pytest.mark.slow
def test_training_is_a_function_of_its_seed_and_lowers_the_loss(make_model):
    (one, samples), (again, _), (other, _) = (trained(make_model, seed) for seed in (0, 0, 1))
    for a, b in zip(one.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))

    def loss(model):
        generator = torch.Generator().manual_seed(3)
        x0, t = model.to_latents(samples.images), torch.randint(0, 1000, (16,), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        with torch.no_grad():
            return (model.predict(model.noised(x0, t, noise), t, model.context(["a church"])) - noise).square().mean()

    assert loss(one) < 0.7 * loss(make_model())


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "size", "kills"), [("sd-nano", 8, (5, 7)), ("sd-latent", 16, (5, 25, 9))])
def test_training_that_is_killed_ends_in_the_same_bytes(arch, size, kills, make_model, ends_the_same):
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (16, 1, size, size), generator=draw, dtype=torch.uint8)
    samples = Samples(images, torch.arange(16) % 2, torch.arange(16))

    def caption(labels, generator):
        return [f"a church {int(torch.randint(0, 9, (), generator=generator))}" for _ in labels]

    def work(context):
        model = fit(make_model(arch=arch, size=size), samples, caption, context, SETTINGS)
        scale = getattr(getattr(model.vae, "config", None), "scaling_factor", 1.0)
        return [torch.tensor(scale), *model.state_dict().values()]

    context = UnlearnContext(seed=1, batch_size=4, augmentation=Augmentation(0, True))
    ends_the_same(work, context, kills)


def test_pictures_come_in_shuffled_passes(model):
    side = Side(("seven",), torch.arange(5.0).reshape(5, 1, 1, 1).expand(5, 1, 8, 8), tuple("abcde"))
    batches = UnlearnContext(seed=0, batch_size=2).pictures(side, "forget")
    seen = [next(batches) for _ in range(5)]
    rows = [int(x[0, 0, 0]) for latents, _ in seen for x in latents]
    assert sorted(rows[:5]) == sorted(rows[5:]) == list(range(5))
    assert [caption for _, captions in seen for caption in captions] == ["abcde"[row] for row in rows]


@pytest.mark.slow
def test_partial_draws_stop_where_their_time_step_says(model):
    context = UnlearnContext(seed=0, batch_size=3, sampler=Sampler("ddim", 10))
    generator = context.generator("x")
    for _ in range(8):
        x, t = context.partial(model, "a church", generator)
        assert x.shape == (3, 1, 8, 8) and (t // 100 == t[0] // 100).all()  # one bucket of 100 of 1,000 time steps


def test_frozen_copies_share_nothing_but_the_tokenizer(model):
    copy = frozen(model)
    assert copy.tokenizer is model.tokenizer and not any(p.requires_grad for p in copy.parameters())
    chosen = train_only(model, ["unet.conv_in.weight"])
    assert list(chosen) == ["unet.conv_in.weight"]
    with torch.no_grad():
        chosen["unet.conv_in.weight"].zero_()
    assert copy.unet.conv_in.weight.abs().sum() > 0
