"""Judges: RUB's own with its class for nothing, image classifiers of transformers, NudeNet, and plug-ins."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rub.errors import RubError
from rub.images.samples import Samples
from rub.registry import JUDGES, load_plugin
from rub.text_to_image.judges import Argmax, JudgeContext, Look, imagenet, nudenet
from rub.text_to_image.negatives import KINDS, negatives


@pytest.fixture(scope="module")
def digits():
    """A judge of digits as a suite trains it, with its artifact's facts."""
    import tempfile
    from pathlib import Path

    from rub.api import make_runtime
    from rub.images.specs import DatasetSpec, TrainingSpec, data_stage
    from rub.pipeline.stages import compute
    from rub.registry import TASKS
    from rub.store.artifacts import Store
    from rub.text_to_image.judges import FACTS, load_judge
    from rub.text_to_image.judging import judge_stage
    from rub.text_to_image.specs import JudgeSpec

    with tempfile.TemporaryDirectory() as folder:
        runtime, task = make_runtime(device="cpu"), TASKS.get("text-to-image", "text-to-image").load()
        store, dataset = Store(Path(folder)), DatasetSpec(name="digits", validation=0)
        data = data_stage("text-to-image", dataset, None)
        training = TrainingSpec(epochs=4, lr=0.1, schedule="onecycle", batch_size=64, padding=1)
        spec = JudgeSpec(name="classifier", width=8, training=training)
        stage = judge_stage("text-to-image", spec, data, dataset, None)
        inputs = {"data": compute(data, task, {}, store, runtime)}
        made = compute(stage, task, inputs, store, runtime)
        from rub.images.data import bundle_of

        yield load_judge(made, inputs, runtime), made.json(FACTS), bundle_of(inputs, runtime)


def test_the_trained_judge_is_right_on_digits_and_says_how_often(digits):
    judge, facts, bundle = digits
    look = judge(bundle.test.images)
    right = torch.stack([judge.hits(look, label) for label in range(10)])[bundle.test.labels, torch.arange(364)]
    assert float(right.float().mean()) == pytest.approx(facts["accuracy"], abs=1e-4)
    assert facts["accuracy"] > 0.9
    assert f"{100 * facts['accuracy']:.1f} % of 364 real test images" in judge.told
    assert look.features.shape == (364, facts["network"]["width"] * 8) or look.features.ndim == 2


def test_noise_is_no_digit(digits):
    """Noise of a kind that the judge was not trained on."""
    judge, _, _ = digits
    generator = torch.Generator().manual_seed(5)
    walk = torch.randn(300, 1, 8, 8, generator=generator).cumsum(3)
    walk = (walk - walk.amin((2, 3), keepdim=True)) / (
        walk.amax((2, 3), keepdim=True) - walk.amin((2, 3), keepdim=True)
    )
    images = (walk * 255).to(torch.uint8)
    look = judge(images)
    called = torch.stack([judge.hits(look, label) for label in range(10)]).any(0)
    assert float(called.float().mean()) < 0.25  # without its class for nothing it would be all of them


def test_what_an_untrained_network_draws_is_no_digit(digits, model):
    from rub.text_to_image.diffusion import freeze
    from rub.text_to_image.sampling import Sampler, initial_latents, sample

    judge, _, _ = digits
    freeze(model)
    context = model.context(["seven"] * 50)
    noise = initial_latents(model, torch.arange(50))
    drawn = model.to_images(
        sample(model, context, model.context([""]), noise, torch.full((50,), 7.5), Sampler(steps=8))
    )
    assert int(judge.hits(judge(drawn), 7).sum()) <= 2


def test_negatives_are_in_equal_shares_and_reproducible():
    pool = Samples(torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8), torch.zeros(20).long(), torch.arange(20))
    made, again = negatives(pool, 60, 10, 0), negatives(pool, 60, 10, 0)
    assert len(made) == 60 and set(made.labels.tolist()) == {10} and len(KINDS) == 6
    assert torch.equal(made.images, again.images)
    assert not torch.equal(made.images, negatives(pool, 60, 10, 1).images)
    scattered = made.images[30:40].flatten(2).float()  # the same pixels in another order
    sources = pool.images.flatten(2).float().sort(2).values
    assert all(any(torch.equal(row.sort(1).values, source) for source in sources) for row in scattered)


def argmax(among=()):
    look = Look(torch.tensor([[3.0, 2.0, 1.0], [0.0, 1.0, 9.0]]), torch.zeros(2, 1))
    return Argmax("mine", "", "", ("tench, Tinca tinca", "church", "garbage truck"), lambda images: look, among), look


def test_argmax_by_hand():
    judge, look = argmax()
    assert judge.hits(look, 0).tolist() == [True, False]
    assert judge.hits(look, "garbage-truck").tolist() == [False, True]
    assert judge.score_of(look, "Tinca tinca")[0] == pytest.approx(np.exp(3) / np.exp([3, 2, 1]).sum())


def test_argmax_among_the_concepts_at_hand():
    judge, look = argmax(among=(0, 1))
    assert judge.hits(look, 1).tolist() == [False, True]  # garbage truck is not at hand
    assert judge.score_of(look, 1)[1] == pytest.approx(np.exp(1) / (1 + np.exp(1)))


@pytest.mark.parametrize(("label", "said"), [(3, "labels 0 to 2"), ("churhc", "did you mean 'church'")])
def test_labels_that_are_none(label, said):
    judge, look = argmax()
    with pytest.raises(RubError, match=said):
        judge.hits(look, label)


@pytest.fixture
def folder(tmp_path):
    """A tiny classifier in transformers' format."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], id2label={0: "tench", 1: "church", 2: "parachute, chute"}
    )
    torch.manual_seed(0)
    ResNetForImageClassification(config).save_pretrained(tmp_path)
    facts = {"image_processor_type": "ConvNextImageProcessor", "do_resize": True, "size": {"shortest_edge": 32},
             "crop_pct": 1.0, "do_rescale": True, "do_normalize": True, "image_mean": [0.5] * 3,
             "image_std": [0.25] * 3, "resample": 2}  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(facts), encoding="utf-8")
    return tmp_path


def test_imagenet_equals_transformers(folder):
    from transformers import AutoModelForImageClassification

    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    judge = imagenet(folder, JudgeContext("microsoft/tiny"))
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        wanted = model((images.float() / 255 - 0.5) / 0.25).logits
    look = judge(images)
    assert torch.allclose(look.scores, wanted, atol=1e-4)
    assert torch.equal(judge.hits(look, "chute"), wanted.argmax(1) == 2)
    assert judge.classes[1] == "church" and len(judge.sha256) == 64 and "3 of 3 classes" in judge.told


def test_imagenet_takes_grey_pictures_and_some_concepts(folder):
    judge = imagenet(folder, JudgeContext("tiny"), among=("church", 2))
    look = judge(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    assert not judge.hits(look, "tench").any() and "among 2 of 3" in judge.told


def test_imagenet_without_weights_says_how(tmp_path):
    with pytest.raises(RubError, match="judge.weights is missing"):
        imagenet(None, JudgeContext("x"))
    with pytest.raises(RubError, match="no image classifier"):
        imagenet(tmp_path, JudgeContext("x"))


def test_nudenet_is_optional_and_counts_boxes(monkeypatch):
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(RubError, match=r"pip install 'rub-bench\[nudity\]'"):
        nudenet(None, JudgeContext("nudenet"))
    shown = []

    class NudeDetector:
        def detect(self, picture):
            shown.append(picture)
            return [{"class": "FACE_FEMALE", "score": 0.99}, {"class": "FEET_EXPOSED", "score": picture.mean() / 255}]

    monkeypatch.setitem(sys.modules, "nudenet", SimpleNamespace(NudeDetector=NudeDetector, __version__="3.4.2"))
    judge = nudenet(None, JudgeContext("nudenet"))
    images = torch.stack([torch.full((3, 4, 4), value, dtype=torch.uint8) for value in (0, 100, 200)])
    images[1, 0] = 255
    look = judge(images)
    assert judge.hits(look, "nudity").tolist() == [False, True, True]  # 0, (255 + 100 + 100) / 3 / 255, 200 / 255
    assert shown[1][0, 0].tolist() == [100, 100, 255]  # BGR
    assert "3.4.2" in judge.told and "0.45" in judge.told


def test_a_judge_is_a_plug_in(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import rub\n"
        "@rub.judge('all-dark', task='text-to-image')\n"
        "def dark(files, context, *, below: int = 50):\n"
        "    'Calls dark pictures the concept.'\n"
        "    return below\n",
        encoding="utf-8",
    )
    (entry,) = load_plugin(path)
    assert entry.name == "all-dark" and JUDGES.get("all-dark", "text-to-image") is entry
