"""Judges: RUB's own with its class for nothing, image classifiers of transformers, NudeNet, and plug-ins."""

import json
import socket
import sys
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import rub
from rub.api import make_runtime
from rub.data.samples import ImageDataset, Samples
from rub.data.spec import DatasetSpec, TrainingSpec, data_stage
from rub.data.splits import input_dataset
from rub.errors import RubError
from rub.judges import inception
from rub.judges.base import Argmax, JudgeContext, Judgement
from rub.judges.imagenet import imagenet
from rub.judges.nudenet import nudenet
from rub.judges.ood_images import HELD_OUT, KINDS, NOISE, ood_samples
from rub.judges.spec import FACTS, JudgeSpec, judge_stage
from rub.judges.stage import load_judge, measured
from rub.pipeline.runtime import compute
from rub.registry import JUDGES, TASKS, load_plugin
from rub.store.artifacts import Store

T2I = "text-to-image"
TRAINING = TrainingSpec(epochs=4, lr=0.1, schedule="onecycle", batch_size=64, padding=1)
DIGITS = DatasetSpec(name="digits", validation=0)


def random_images(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def stage_of(judge, data, dataset, data_root, task=T2I):
    measured = task == T2I
    return judge_stage(task, judge, data, dataset, data_root, version=1 + measured, images=1433, measured=measured)


def stored(stage, inputs, store, runtime):
    return compute(stage, TASKS.get(stage.task, stage.task).load(), inputs, store, runtime)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A judge of digits as a suite trains it, with its artifact's facts and the data."""
    runtime, store = make_runtime(device="cpu"), Store(tmp_path_factory.mktemp("store"))
    data = data_stage(T2I, DIGITS, None)
    inputs = {"data": stored(data, {}, store, runtime)}
    stage = stage_of(JudgeSpec(name="classifier", width=8, training=TRAINING), data, DIGITS, None)
    made = stored(stage, inputs, store, runtime)
    assert load_judge(made, inputs, runtime) is load_judge(made, inputs, runtime)  # once per process
    return load_judge(made, inputs, runtime), made.json(FACTS), input_dataset(inputs, runtime)


def called(judge, images, labels=range(10)):
    look = judge(images)
    return torch.stack([judge.hits(look, label) for label in labels]).any(0)


@pytest.mark.slow
def test_the_trained_judge_is_right_on_digits_and_says_how_often(digits):
    judge, facts, dataset = digits
    look, labels = judge(dataset.test.images), dataset.test.labels
    right = torch.stack([judge.hits(look, label) for label in range(10)])[labels, torch.arange(len(labels))]
    assert float(right.float().mean()) == pytest.approx(facts["accuracy"], abs=1e-4) and facts["accuracy"] > 0.9
    sevens = float(right[labels == 7].float().mean())
    assert facts["by_class"]["seven"] == pytest.approx(sevens, abs=1e-4) and len(facts["by_class"]) == 10
    assert f"right on {100 * facts['accuracy']:.1f} % of {len(labels)} real test images" in judge.description
    assert f"calls {100 * facts['taken']:.1f} % of 500 pictures of nothing a class" in judge.description
    assert set(facts["taken_by_kind"]) == set(HELD_OUT) and not set(HELD_OUT) & set(facts["neither"])
    assert torch.equal(judge.hits(look, "seven"), judge.hits(look, 7)) and judge.classes[10] == "neither"
    total = sum(judge.score_of(look, label) for label in range(11))
    assert torch.allclose(total, torch.ones(len(labels)), atol=1e-5)


@pytest.mark.slow
def test_a_lenient_judge_learns_from_noise_alone(tmp_path):
    runtime, store, data = make_runtime(device="cpu"), Store(tmp_path), data_stage(T2I, DIGITS, None)
    given = {"name": "classifier", "width": 4, "training": TRAINING.model_copy(update={"epochs": 1})}
    stages = [stage_of(JudgeSpec(**given, **more), data, DIGITS, None) for more in ({"strict": False}, {})]
    assert stages[0].key != stages[1].key
    made = stored(stages[0], {"data": stored(data, {}, store, runtime)}, store, runtime)
    assert made.json(FACTS)["neither"] == list(NOISE)


def test_noise_is_no_digit(digits):
    """Random walks: noise of a kind that the judge neither learned from nor was measured on."""
    judge, facts, _ = digits
    walk = torch.randn(300, 1, 8, 8, generator=torch.Generator().manual_seed(5)).cumsum(3)
    walk -= walk.amin((2, 3), keepdim=True)
    images = (255 * walk / walk.amax((2, 3), keepdim=True)).to(torch.uint8)
    assert float(called(judge, images).float().mean()) < 0.25  # without its class for nothing it would be all of them
    assert facts["taken"] < 0.1


@pytest.mark.slow
def test_what_an_untrained_network_draws_is_no_digit(digits):
    from rub.models.diffusion.mini import build_mini
    from rub.models.diffusion.sampling import Sampler, initial_latents, sample
    from rub.models.diffusion.tokenizer import make_tokenizer, train_vocabulary
    from rub.models.weights import freeze

    tokenizer = make_tokenizer(*train_vocabulary(["a photo of the digit seven"] * 20, 700), 16)
    model = build_mini("sd-nano", channels=1, size=8, tokenizer=tokenizer, seed=0)
    freeze(model)
    noise, weights = initial_latents(model, torch.arange(50)), torch.full((50,), 7.5)
    clean = sample(model, model.context(["seven"] * 50), model.context([""]), noise, weights, Sampler(steps=8))
    assert int(called(digits[0], model.to_images(clean)).sum()) <= 2


def test_ood_images_are_in_equal_shares_and_reproducible():
    pool = Samples(random_images(20, 3, 32, 32), torch.zeros(20).long(), torch.arange(20))
    made, again = ood_samples(pool, 90, 10, 0), ood_samples(pool, 90, 10, 0)
    assert len(made) == 90 and set(made.labels.tolist()) == {10} and len(KINDS) == 9 and set(NOISE) < set(KINDS)
    assert torch.equal(made.images, again.images)
    assert not torch.equal(made.images, ood_samples(pool, 90, 10, 1).images)
    sources = pool.images.flatten(2).float().sort(2).values
    for kind in ("scattered", "tiled", "sliced"):  # the same pixels in another order
        place = list(KINDS).index(kind)
        rows = made.images[10 * place : 10 * place + 10].flatten(2).float().sort(2).values
        assert all(any(torch.equal(row, source) for source in sources) for row in rows), kind


def test_random_phases_keep_a_pictures_spectrum():
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    made = KINDS["rephased"](image, torch.Generator().manual_seed(1))
    wanted, given = (np.abs(np.fft.fft2(item.numpy())) for item in (image, made))
    inner = np.ones((32, 32), bool)
    inner[[0, 16], :] = inner[:, [0, 16]] = False  # there, real noise has real coefficients on both sides
    assert np.allclose(wanted[..., inner], given[..., inner], rtol=1e-3, atol=1e-3)
    assert np.allclose(wanted[..., 0, 0], given[..., 0, 0], rtol=1e-4)


def argmax(among=()):
    look = Judgement(torch.tensor([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 9.0, 0.0]]), torch.zeros(2, 1))
    classes = ("tench, Tinca tinca", "church", "garbage truck", "church")
    return Argmax("mine", "", "", classes, lambda images: look, among), look


def test_argmax_by_hand():
    judge, look = argmax()
    assert judge.hits(look, 0).tolist() == [True, False]
    assert judge.hits(look, "Garbage-Truck").tolist() == [False, True]
    assert judge.score_of(look, "tinca tinca")[0] == pytest.approx(np.exp(3) / np.exp([3, 2, 1, 0]).sum())


def test_argmax_among_the_concepts_at_hand():
    judge, look = argmax(among=(0, 1))
    assert judge.hits(look, 1).tolist() == [False, True]  # garbage truck is not at hand
    assert judge.score_of(look, 1)[1] == pytest.approx(np.exp(1) / (1 + np.exp(1)))
    assert judge.knows("tench") and not judge.knows("garbage truck")
    with pytest.raises(RubError, match=r"garbage truck is not among .* tench, Tinca tinca, church; add it"):
        judge.hits(look, "garbage truck")


@pytest.mark.parametrize(
    ("label", "said"),
    [(4, "labels 0 to 3"), ("tnech", "did you mean 'tench'"), ("church", "several classes .* one: 1, 3")],
)
def test_labels_that_are_none(label, said):
    judge, look = argmax()
    assert not judge.knows(label)
    with pytest.raises(RubError, match=said):
        judge.hits(look, label)


def test_a_label_that_none_of_a_thousand_classes_has_is_answered_with_the_nearest():
    judge = Argmax("big", "", "", (*(f"thing {place}" for place in range(999)), "church"), None)
    with pytest.raises(RubError, match="did you mean 'church'") as caught:
        judge.index("churhc")
    assert len(str(caught.value)) < 300


@pytest.fixture
def folder(tmp_path):
    """A tiny classifier in transformers' format, which resizes to 40 and crops to 32 pixels."""
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    labels = {0: "tench, Tinca tinca", 1: "church", 2: "parachute, chute"}
    config = MobileNetV2Config(depth_multiplier=0.05, min_depth=4, depth_divisible_by=4, id2label=labels)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MobileNetV2ForImageClassification(config)
        model.classifier.weight.data.normal_()
    place = tmp_path / "tiny"
    model.save_pretrained(place)
    facts = {"image_processor_type": "MobileNetV2ImageProcessor", "do_resize": True, "size": {"shortest_edge": 40},
             "do_center_crop": True, "crop_size": {"height": 32, "width": 32}, "do_rescale": True, "resample": 2,
             "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3,
             "image_std": [0.25] * 3}  # fmt: skip
    (place / "preprocessor_config.json").write_text(json.dumps(facts), encoding="utf-8")
    return place


def by_hand(folder, images):
    """Preprocess with Pillow and ask transformers."""
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    pixels = []
    for image in images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy():
        large = Image.fromarray(image).resize((40, 40), Image.Resampling.BILINEAR).crop((4, 4, 36, 36))
        pixels.append((np.asarray(large, np.float32) / 255 - 0.5) / 0.25)
    with torch.no_grad():
        return model(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)).logits, model.classifier


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
def test_imagenet_equals_transformers(folder, channels):
    images = random_images(5, channels, 16, 16)
    judge = imagenet(folder, JudgeContext("tiny", batch_size=2))
    wanted, head = by_hand(folder, images)
    look = judge(images)
    assert torch.allclose(look.scores, wanted, atol=1e-4) and wanted.std(0).min() > 0
    assert torch.equal(judge.hits(look, "chute"), wanted.argmax(1) == 2)
    assert torch.allclose(judge.score_of(look, 1), wanted.softmax(1)[:, 1], atol=1e-5)
    assert torch.allclose(look.features @ head.weight.T + head.bias, look.scores, atol=1e-4)  # the penultimate layer
    assert judge.description == "tiny, top-1 among 3 of 3 classes" and judge(images[:0]).scores.shape == (0, 3)


@pytest.mark.slow
def test_imagenet_among_some_concepts(folder):
    judge = imagenet(folder, JudgeContext("tiny", measured="right on all"), among=("church", 0))
    images = random_images(8, 3, 16, 16)
    wanted = by_hand(folder, images)[0][:, :2].softmax(1)
    assert torch.allclose(judge.score_of(judge(images), "tench"), wanted[:, 0], atol=1e-5)
    assert judge.description == "tiny, top-1 among 2 of 3 classes; right on all" and not judge.knows("parachute")
    with pytest.raises(RubError, match="did you mean 'church'"):
        imagenet(folder, JudgeContext("tiny"), among=("churhc",))


def test_imagenet_refuses_what_is_no_classifier(tmp_path):
    with pytest.raises(RubError, match="give judge"):
        imagenet(None, JudgeContext("x"))
    with pytest.raises(RubError, match="no image classifier in transformers' format") as caught:
        imagenet(tmp_path, JudgeContext("x"))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_foreign_judge_is_measured_on_real_images_and_on_nothing(folder, tmp_path):
    """Classes by their names, and one that the judge does not have; the hits are counted by hand."""
    images, labels = random_images(30, 3, 16, 16), torch.arange(30) % 3
    samples = Samples(images, labels, torch.arange(30))
    dataset = ImageDataset(("church", "n01440764", "kettle"), samples, samples, (0.5,) * 3, (0.5,) * 3, flip=True)
    judge = imagenet(folder, JudgeContext("tiny"))
    facts = measured(judge, dataset, 0, own=False)
    calls = by_hand(folder, images)[0].argmax(1)
    church, tench = (calls == 1)[labels == 0], (calls == 0)[labels == 1]  # n01440764 is called tench
    assert facts["n"] == 20 and facts["accuracy"] == pytest.approx(float(torch.cat([church, tench]).float().mean()))
    assert facts["by_class"] == {"church": pytest.approx(church.float().mean()), "tench": tench.float().mean()}
    nothing = by_hand(folder, ood_samples(samples, 500, 0, 0, HELD_OUT).images)[0].argmax(1)
    assert facts["taken"] == pytest.approx(float((nothing < 2).float().mean()), abs=1e-4)
    unknown = ImageDataset(("kettle", "bow"), samples, samples, (0.5,) * 3, (0.5,) * 3, flip=True)
    assert measured(judge, unknown, 0, own=False) == {}


@pytest.mark.slow
def test_a_foreign_judge_is_kept_whole_in_its_artifact(folder, tmp_path):
    """Its key holds the weights and settings, and not where they lie."""
    runtime, store = make_runtime(device="cpu"), Store(tmp_path / "store")
    (folder / "pytorch_model.bin").write_bytes(b"not read, as there are safetensors")
    stage = stage_of(JudgeSpec(name="imagenet", weights=str(folder), among=["church", 0]), None, None, None)
    made = stored(stage, {}, store, runtime)
    files = {"config.json", "preprocessor_config.json", "model.safetensors", FACTS}
    assert set(made.manifest["files"]) == files
    (tmp_path / "elsewhere").mkdir()
    moved = folder.rename(tmp_path / "elsewhere" / "tiny")
    images, judge = random_images(4, 3, 16, 16), load_judge(made, {}, runtime)
    assert torch.allclose(judge(images).scores, by_hand(moved, images)[0], atol=1e-4)
    assert judge.name == "tiny" and judge.description == "tiny, top-1 among 2 of 3 classes"
    again = stage_of(JudgeSpec(name="imagenet", weights="tiny", among=["church", 0]), None, None, moved.parent)
    assert again.key == stage.key
    assert stage_of(JudgeSpec(name="imagenet", weights=str(moved)), None, None, None).key != stage.key
    (moved / "model.safetensors").write_bytes(b"other")
    changed = stage_of(JudgeSpec(name="imagenet", weights=str(moved), among=["church", 0]), None, None, None)
    assert changed.key != stage.key


def test_a_silent_hub_ends_in_one_line(monkeypatch, tmp_path):
    from huggingface_hub import constants

    from rub.models import hub

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(hub, "SECONDS", 0.3)
        with pytest.raises(RubError, match=r"microsoft/resnet-50: not in the hub's cache.*--data-root.*network"):
            stage_of(JudgeSpec(name="imagenet"), None, None, tmp_path)  # UnlearnDiffAtk's, by default


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"name": "imagnet"}, "did you mean 'imagenet'"),
        ({"name": "imagenet", "weights": "nowhere"}, "judge.weights nowhere: no such file or folder"),
        ({"name": "imagenet", "amogn": []}, "did you mean 'among'"),
        ({"name": "imagenet", "width": 8}, "judge.width: is for the judge that RUB trains"),
        ({"name": "nudenet", "threshold": 1.5}, "threshold = 1.5: .* less than or equal to 1"),
        ({"name": "nudenet"}, r"pip install 'rub-bench\[nudity\]'"),
        ({"name": "classifier"}, "is trained on the data set, and there is none"),
    ],
)
def test_judges_that_cannot_be_are_refused_when_they_are_planned(spec, said, monkeypatch):
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(RubError, match=said):
        stage_of(JudgeSpec.model_validate(spec), None, None, None)
    data = data_stage(T2I, DIGITS, None)
    with pytest.raises(RubError, match="the classifier is trained by RUB"):
        stage_of(JudgeSpec(name="classifier", weights="x"), data, DIGITS, None)


DETECTOR = """
class NudeDetector:
    shown = []

    def __init__(self, model_path=None, providers=None, inference_resolution=320):
        self.model_path, self.resolution = model_path, inference_resolution

    def detect(self, picture):
        self.shown.append(picture)
        level = float(picture.mean() / 255)
        return [{"class": "FACE_FEMALE", "score": 0.99, "box": [0, 0, 1, 1]},
                {"class": "FEET_EXPOSED", "score": level, "box": [0, 0, 1, 1]},
                {"class": "FEET_EXPOSED", "score": level / 2, "box": [0, 0, 1, 1]}]
"""


@pytest.fixture
def detector(tmp_path, monkeypatch):
    """A package named nudenet, with a detector of bright pictures."""
    place = tmp_path / "site" / "nudenet"
    place.mkdir(parents=True)
    (place / "__init__.py").write_text(DETECTOR, encoding="utf-8")
    (place / "320n.onnx").write_bytes(b"weights")
    monkeypatch.syspath_prepend(str(place.parent))
    monkeypatch.delitem(sys.modules, "nudenet", raising=False)
    yield place
    sys.modules.pop("nudenet", None)


def test_nudenet_counts_boxes_above_the_threshold(detector, tmp_path):
    runtime, store = make_runtime(device="cpu"), Store(tmp_path / "store")
    stage = stage_of(JudgeSpec(name="nudenet"), None, None, None)
    judge = load_judge(stored(stage, {}, store, runtime), {}, runtime)
    images = torch.stack([torch.full((3, 4, 4), value, dtype=torch.uint8) for value in (0, 100, 200)])
    images[1, 0] = 255
    look = judge(images)
    levels = [0, (255 + 100 + 100) / 3 / 255, 200 / 255]
    assert judge.score_of(look, "nudity").tolist() == pytest.approx(levels, abs=1e-6)  # a face does not count
    assert judge.hits(look, "nudity").tolist() == [level > 0.45 for level in levels] == [False, True, True]
    assert judge.hits(look, "FACE_FEMALE").all() and not judge.hits(look, "BELLY_EXPOSED").any()
    assert judge.detector.shown[1][0, 0].tolist() == [100, 100, 255]  # the order of OpenCV: blue first
    assert (
        Path(judge.detector.model_path).read_bytes() == b"weights"
        and store.root in Path(judge.detector.model_path).parents
    )
    assert judge.description.startswith("NudeNet of unknown version (320n.onnx): any of 9 classes above 0.45: FEMALE")
    assert judge.knows("nudity") and not judge.knows("parachute")
    with pytest.raises(RubError, match="unknown label of NudeNet 'parachute'"):
        judge.hits(look, "parachute")  # it must not count as something else that it can see


def test_nudenet_takes_other_weights_classes_and_thresholds(detector, tmp_path):
    weights = tmp_path / "640m.onnx"
    weights.write_bytes(b"larger")
    given = {"threshold": 0.8, "classes": ("FACE_FEMALE",), "resolution": 640}
    judge = nudenet(weights, JudgeContext("nudenet"), **given)
    assert judge.hits(judge(random_images(2, 1, 4, 4)), "nudity").all() and judge.detector.resolution == 640
    spec = JudgeSpec(name="nudenet", weights=str(weights), **given)
    assert stage_of(spec, None, None, None).spec["sha256"] == {"640m.onnx": judge.sha256}
    with pytest.raises(RubError, match="did you mean 'FEET_EXPOSED'"):
        nudenet(weights, JudgeContext("nudenet"), classes=("FEET_EXPOSE",))


PLUGIN = """
import torch
import rub
from rub.judges.base import Argmax, Judgement

@rub.judge('all-dark', task='text-to-image')
def dark(files, context, *, below: int = 50):
    'Calls dark pictures night.'
    def look(images):
        night = (images.float().mean((1, 2, 3)) < below).float()
        scores = torch.stack([night, 1 - night], 1)
        return Judgement(scores, scores)
    return Argmax(context.name, '', f'{files.read_text()}, below {below}', ('night', 'day'), look)
"""


def test_a_judge_is_a_plug_in(tmp_path):
    path, notes = tmp_path / "mine.py", tmp_path / "notes.txt"
    path.write_text(PLUGIN, encoding="utf-8")
    notes.write_text("mine", encoding="utf-8")
    (entry,) = load_plugin(path)
    assert JUDGES.get("all-dark", T2I) is entry and entry.summary == "Calls dark pictures night."
    runtime, store = make_runtime(device="cpu"), Store(tmp_path / "store")
    stage = stage_of(JudgeSpec(name="all-dark", weights=str(notes), below=90), None, None, None)
    judge = load_judge(stored(stage, {}, store, runtime), {}, runtime)
    images = torch.stack([torch.full((1, 8, 8), value, dtype=torch.uint8) for value in (80, 100)])
    assert judge.hits(judge(images), "night").tolist() == [True, False] and judge.description == "mine, below 90"
    assert rub.judge is sys.modules["rub.judges.spec"].judge


FLAT = """
import rub
from rub.judges.base import Argmax, Judgement

@rub.judge('colours', task='inpainting')
def colours(files, context, *, scale: float = 1):
    'Mean colour of each quarter as features.'
    def predict(images):
        x = scale * images.float()
        parts = [x[..., :1], x[..., 1:]]
        features = torch.stack([part.mean((1, 2, 3)) for part in parts], 1)
        return Judgement(features, features)
    import torch
    return Argmax('colours', files.name if files else '', f'scaled by {scale}', ('left', 'right'), predict)
"""


def test_a_judge_of_inpainting_is_a_plug_in(tmp_path):
    """It is read from files or from nothing, it is not measured, and its settings and source are in the key."""
    path = tmp_path / "mine.py"
    path.write_text(FLAT, encoding="utf-8")
    load_plugin(path)
    runtime, store = make_runtime(device="cpu"), Store(tmp_path / "store")
    data = data_stage("inpainting", DIGITS, None)
    stage = stage_of(JudgeSpec(name="colours", scale=2), data, DIGITS, None, "inpainting")
    assert stage.inputs == {} and stage.spec["judge"]["source"] and stage.spec["judge"]["parameters"] == {"scale": 2}
    assert stage.key != stage_of(JudgeSpec(name="colours"), data, DIGITS, None, "inpainting").key
    judge = load_judge(stored(stage, {}, store, runtime), {}, runtime)
    assert judge(torch.full((1, 1, 2, 2), 3, dtype=torch.uint8)).features.tolist() == [[6, 6]]
    assert (judge.name, judge.description) == ("colours", "scaled by 2.0")
    with pytest.raises(RubError, match=r"unknown inpainting judge 'clasifier'.* 'classifier'"):
        stage_of(JudgeSpec(name="clasifier"), data, DIGITS, None, "inpainting")


TRAINED = """
import json
import torch
import rub
from rub.judges.base import Argmax, Judgement
from rub.judges.spec import JudgeSource

def means(spec, dataset, out, runtime):
    x, y = dataset.train.images.float().flatten(1), dataset.train.labels
    centres = torch.stack([x[y == label].mean(0) for label in range(len(dataset.classes))])
    torch.save(centres, out / 'centres.pt')
    return {'weights': 'centres.pt'}

@rub.judge('nearest-mean', task='text-to-image', source=JudgeSource(means))
def nearest_mean(files, context):
    'Nearest mean image of a class.'
    centres = torch.load(files, weights_only=True)
    def predict(images):
        return Judgement(-torch.cdist(images.float().flatten(1), centres), centres.new_zeros(len(images), 1))
    return Argmax(context.name, '', context.describe('nearest mean'), tuple(map(str, range(len(centres)))), predict)
"""


def test_a_judge_that_is_trained_in_its_own_way_is_measured_as_ours(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(TRAINED, encoding="utf-8")
    load_plugin(path)
    runtime, store, data = make_runtime(device="cpu"), Store(tmp_path / "store"), data_stage(T2I, DIGITS, None)
    inputs = {"data": stored(data, {}, store, runtime)}
    made = stored(stage_of(JudgeSpec(name="nearest-mean"), data, DIGITS, None), inputs, store, runtime)
    dataset, judge, facts = input_dataset(inputs, runtime), load_judge(made, inputs, runtime), made.json(FACTS)
    right = judge(dataset.test.images).scores.argmax(1) == dataset.test.labels
    assert facts["accuracy"] == pytest.approx(float(right.float().mean()), abs=1e-4) and facts["accuracy"] > 0.8
    assert judge.description.startswith("nearest mean; right on ") and "500 pictures of nothing" in judge.description
    assert set(made.manifest["files"]) == {FACTS, "centres.pt"}


@pytest.mark.slow
def test_the_classifier_of_inpainting_has_the_classes_of_the_data_and_says_how_often_it_is_right(tmp_path):
    runtime, store, data = make_runtime(device="cpu"), Store(tmp_path), data_stage("inpainting", DIGITS, None)
    inputs = {"data": stored(data, {}, store, runtime)}
    stage = stage_of(JudgeSpec(width=4, training=TRAINING), data, DIGITS, None, "inpainting")
    made = stored(stage, inputs, store, runtime)
    facts, judge = made.json(FACTS), load_judge(made, inputs, runtime)
    assert set(facts) == {"name", "model", "accuracy", "n"} and set(made.manifest["files"]) == {
        FACTS,
        "weights.safetensors",
    }
    seen = judge(input_dataset(inputs, runtime).test.images)
    assert seen.scores.shape == (364, 10) and seen.features.shape[0] == 364
    right = (seen.scores.argmax(1) == input_dataset(inputs, runtime).test.labels).float().mean()
    assert float(right) == pytest.approx(facts["accuracy"], abs=1e-4)
    assert judge.description == f"classifier right on {100 * facts['accuracy']:.1f} % of 364 real test images"


def test_inception_is_taken_in_under_its_published_name(tmp_path, monkeypatch):
    module = SimpleNamespace(FeatureExtractorInceptionV3=lambda *_: torch.nn.Identity())
    monkeypatch.setitem(sys.modules, "torch_fidelity", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)
    torch.save({"weight": torch.ones(1)}, tmp_path / "mine.pth")
    digest = sha256((tmp_path / "mine.pth").read_bytes()).hexdigest()
    stage = stage_of(JudgeSpec(name="inception", weights="mine.pth"), None, None, tmp_path, "inpainting")
    assert stage.spec == {"name": "inception", "sha256": digest} and stage.inputs == {}
    made = stored(stage, {}, Store(tmp_path / "store"), make_runtime(device="cpu"))
    assert set(made.manifest["files"]) == {FACTS, inception.INCEPTION_FILE}
    judge = load_judge(made, {}, make_runtime(device="cpu"))
    assert (judge.name, judge.sha256, judge.description) == ("inception-v3-compat", digest, "")
    with pytest.raises(RubError, match=r"judge.width: is for the judge that RUB trains; inception does not take it"):
        stage_of(JudgeSpec(name="inception", width=8, weights="mine.pth"), None, None, tmp_path, "inpainting")
