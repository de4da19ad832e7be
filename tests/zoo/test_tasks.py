"""How each task keeps its models: written to a zoo and read again they are what they were."""

import json
from types import SimpleNamespace

import pytest
import torch

from rub.store.artifacts import Store
from rub.zoo.entry import ZooModel, shelf_of

KEY, OTHER = "a" * 64, "b" * 64


def facts(task, network, files, **more):
    return ZooModel(
        task=task, dataset="digits", model="m", method="x", network=network, files=dict.fromkeys(files, "0"), **more
    )


def kept(task, artifact, inputs, out, dtype="float32"):
    """What a task reads of what it wrote."""
    out.mkdir()
    shelf = shelf_of(task)
    network = shelf.write(artifact, inputs, out, dtype)
    files = [file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()]
    model = facts(task, network, files)
    made = shelf.read(out, model)
    assert shelf.probe(made, model).isfinite().all()
    return SimpleNamespace(model=made, files=files, network=network)


@pytest.fixture
def diffusion():
    from rub.models.diffusion.mini import build_mini
    from rub.models.diffusion.tokenizer import make_tokenizer, train_vocabulary

    words = make_tokenizer(*train_vocabulary(["a photo of the digit seven"] * 2, 700), 16)
    return build_mini("sd-latent", channels=3, size=32, tokenizer=words, seed=0)


@pytest.fixture
def original(diffusion, tmp_path):
    from rub.models.diffusion.checkpoints import save_model

    store = Store(tmp_path / "store")
    return store.write("train", KEY, {}, lambda out: save_model(diffusion, out / "model.safetensors"))


def unlearned(original, made, tmp_path):
    from rub.models.diffusion.checkpoints import load_model, save_unlearned

    def fill(out):
        place = save_unlearned(load_model(original.file("model.safetensors")), made, out)
        (out / "unlearned.json").write_text(json.dumps({"file": place.name}), encoding="utf-8")

    return Store(tmp_path / "store").write("unlearn", OTHER, {}, fill)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_text_to_image_model_is_whole_and_diffusers_reads_it(diffusion, original, tmp_path, dtype):
    from diffusers import DiffusionPipeline

    from rub.models.diffusion.checkpoints import load_model

    changed = load_model(original.file("model.safetensors"))
    with torch.no_grad():
        changed.unet.conv_in.bias += 1
    artifact = unlearned(original, changed, tmp_path)
    found = kept("text-to-image", artifact, {"original": original}, tmp_path / "one", dtype)
    kind = getattr(torch, dtype)
    bias = found.model.unet.conv_in.bias
    assert bias.dtype == torch.float32
    assert torch.equal(bias, changed.unet.conv_in.bias.to(kind).float())
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "one", safety_checker=None, local_files_only=True)
    assert torch.equal(pipe.unet.conv_in.bias.float(), bias)
    assert found.network["latent"] == list(diffusion.latent_shape)


def test_a_model_that_acts_while_drawing_keeps_its_guidance(original, tmp_path):
    from rub.models.diffusion.checkpoints import load_model
    from rub.models.diffusion.guidance import guided_by

    made = load_model(original.file("model.safetensors"))
    made.guidance = guided_by("negative-prompt", "seven", "", {})
    artifact = unlearned(original, made, tmp_path)
    found = kept("text-to-image", artifact, {"original": original}, tmp_path / "one")
    assert found.model.guidance.describe() == made.guidance.describe()
    assert "guidance/guidance.json" in found.files


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_masked_autoencoder_is_one_file(tmp_path, dtype):
    from rub.models.mae.checkpoints import save_mae
    from rub.models.mae.model import build_mae

    model = build_mae("mae-mini", channels=1, mean=(0.3,), std=(0.4,))
    artifact = Store(tmp_path / "store").write(
        "train", KEY, {}, lambda out: save_mae(model, out / "weights.safetensors")
    )
    found = kept("inpainting", artifact, {}, tmp_path / "one", dtype)
    assert found.files == ["mae.safetensors"]
    kind = getattr(torch, dtype)
    for name, value in model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], value.to(kind).float()), name
    assert found.model.config == model.config


@pytest.mark.parametrize("arch", ["vit-mini", "swin-mini"])
def test_transformers_reads_a_classifier_of_its_own_kind(tmp_path, arch):
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    from rub.data.sources import load_images
    from rub.data.splits import save_dataset
    from rub.models.network import build_network
    from rub.models.weights import save_weights

    data, mean, std = load_images("digits", None), [0.3], [0.2]
    network = build_network(arch, num_classes=10, channels=1, size=8, mean=mean, std=std, seed=3).eval()

    def fill(out):
        save_weights(network, out / "weights.safetensors")
        said = {"arch": arch, "stem": "cifar", "width": None, "mean": mean, "std": std, "classes": list(data.classes)}
        (out / "network.json").write_text(json.dumps(said), encoding="utf-8")

    store = Store(tmp_path / "store")
    artifact = store.write("train", KEY, {}, fill)
    inputs = {"data": store.write("data", OTHER, {}, lambda out: save_dataset(data, out))}
    made = kept("classification", artifact, inputs, tmp_path / "out")
    images = data.test.images[:4].float() / 255
    theirs = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    seen = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert torch.equal(torch.tensor(seen.image_mean), torch.tensor(mean))
    with torch.no_grad():
        wanted = network(images)
        assert torch.allclose(theirs((images - mean[0]) / std[0]).logits, wanted, atol=1e-5)
        assert torch.equal(made.model(images), wanted)
    assert theirs.config.id2label[3] == data.classes[3]
