"""What methods cost: passes as planned; memory, of which less gives the same result.

Activations are made again, pictures are decoded in slices, batches halve.
"""

import json

import pytest
import torch

from rub.config.hyperparameters import resolve
from rub.models.diffusion import model as diffusion
from rub.models.diffusion.adapters import Adapter
from rub.models.diffusion.sampling import Sampler
from rub.pipeline.execution import attempt
from rub.pipeline.graph import Stage
from rub.pipeline.runtime import Runtime
from rub.registry import METHODS, card_of
from rub.store.artifacts import Store
from rub.tasks.text_to_image import stages
from rub.tasks.text_to_image.context import Side, UnlearnContext
from rub.tasks.text_to_image.task import TASK

NAMES = ("church", "a photo of a church", "an old church")
OTHERS = ("a garbage truck", "the digit seven", "a drawing of the digit one")
SETTINGS = {
    "esd-x": {},
    "esd-u": {"drawn_by": "base"},
    "fmn": {"template": "a photo of {}"},
    "spm": {"rank": 2},
    "salun": {"mask_batches": 2},
    "erasediff": {"inner_steps": 2, "every": 2},
    "scissorhands": {"prune_batches": 2},
    "concept-ablation": {"pictures": 6, "prior_weight": 0.5},
    "advunlearn": {"warmup": 1, "attack_every": 1, "attack_steps": 2, "k": 2, "retain_batch": 4},
}
STEPLESS = {"uce", "rece", "sld", "negative-prompt"}


@pytest.fixture
def exactly():
    """Compute in float64, where Adam does not make a step of a rounding error."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def side(prompts, seed):
    latents = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return Side(prompts, latents, tuple(prompts[i % 3] for i in range(8)))


def unlearned(name, model, precision="float32", iterations=3):
    entry = METHODS.get(name, "text-to-image")
    parameters = resolve(entry, {"iterations": iterations, "lr": 1e-3, **SETTINGS[name]}, "test")
    context = UnlearnContext(seed=3, batch_size=4, sampler=Sampler("ddim", 3), anchor="a photo", precision=precision)
    made = entry.load()(model, side(NAMES, 0), side(OTHERS, 1), context, **parameters)
    return made.state if isinstance(made, Adapter) else made.state_dict()


def test_every_method_that_takes_steps_is_here():
    known = {entry.name for entry in METHODS.entries("text-to-image") if entry.origin == "rub"}
    assert known - STEPLESS == set(SETTINGS)


def counted(name, model, batch=2, sampler_steps=8, **settings):
    """UNet passes of a method, a backward pass counting as two, and those that its card tells."""
    entry, passes = METHODS.get(name, "text-to-image"), []

    def hook(unet, given, made):
        passes.append(len(made.sample) * (3 if made.sample.requires_grad else 1))

    handle = model.unet.register_forward_hook(hook)  # copies of the model have it too
    parameters = resolve(entry, settings, "test")
    context = UnlearnContext(seed=3, batch_size=batch, sampler=Sampler("ddim", sampler_steps), anchor="a photo")
    entry.load()(model, side(NAMES, 0), side(OTHERS, 1), context, **parameters)
    handle.remove()
    return sum(passes), card_of(entry).passes(**parameters, batch=batch, sampler_steps=sampler_steps, shown=8)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_the_plan_knows_a_methods_passes_to_a_factor_of_two(name, make_model):
    settings = SETTINGS[name] | ({"mask_batches": None} if name == "salun" else {})
    found, planned = counted(name, make_model(), iterations=8, **settings)
    assert found / 2 <= planned <= 2 * found


@pytest.mark.parametrize("name", ["uce", "rece"])
def test_edits_take_no_passes(name, make_model):
    assert counted(name, make_model()) == (0, 0)


def test_the_passes_of_advunlearn_are_mostly_its_attacks():
    entry = METHODS.get("advunlearn", "text-to-image")
    given = {"batch": 1, "sampler_steps": 50, "shown": 800}
    planned = card_of(entry).passes(**resolve(entry, {}, "test"), **given)
    assert 1.5e6 / 2 < planned < 2 * 1.5e6  # 800 attacks of 30 steps, each with a DDIM run of about 25 steps


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_micro_batches_change_nothing_but_memory(name, make_model, exactly):
    whole, parts = make_model(), make_model()
    parts.micro_batch = 1
    before = {key: value.clone() for key, value in whole.state_dict().items()}
    expected, found = unlearned(name, whole), unlearned(name, parts)
    assert parts.widest == 4
    assert all(torch.allclose(found[key], value, atol=2e-6, rtol=0) for key, value in expected.items())
    assert not all(torch.equal(value, before.get(key, torch.zeros(()))) for key, value in expected.items())


def held(model, rows):
    """Bytes that a prediction of so many rows keeps for its gradient."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        made = model.predict(torch.randn(rows, 1, 8, 8), torch.arange(rows), torch.randn(rows, 16, 32))
    return made, sum(kept.values())


def test_micro_batches_hold_the_rows_alone(model):
    usual = held(model, 8)[1]
    model.micro_batch = 2
    made, kept = held(model, 8)
    assert kept < usual / 10
    assert made.shape == (8, 1, 8, 8)
    model.micro_batch = 8
    assert held(model, 8)[1] == usual


@pytest.mark.parametrize("t", [3, torch.tensor(3), torch.tensor([3, 5, 7, 9, 11])])
def test_micro_batches_take_one_time_step_or_one_for_each_row(model, t):
    x, context = torch.randn(5, 1, 8, 8), torch.randn(1, 16, 32)
    expected = model.predict(x, t, context)
    model.micro_batch = 2
    assert torch.allclose(model.predict(x, t, context), expected, atol=1e-5)


def test_a_method_in_bfloat16_goes_in_micro_batches_too(make_model):
    model = make_model()
    model.micro_batch = 3
    found = unlearned("erasediff", model, precision="bfloat16", iterations=2)
    assert all(value.isfinite().all() for value in found.values())
    assert {value.dtype for key, value in found.items() if key.startswith("unet")} == {torch.float32}


@pytest.mark.parametrize("arch", ["sd-latent", "sd-small"])
def test_pictures_go_through_the_autoencoder_in_slices(arch, make_model, monkeypatch):
    model = make_model(arch=arch, channels=3, size=16)
    images = torch.randint(0, 256, (7, 3, 16, 16), dtype=torch.uint8)
    latents = model.to_latents(images)
    drawn = model.to_images(latents)
    sizes = []
    for name in ("encode", "decode"):
        inner = getattr(model.vae, name)
        monkeypatch.setattr(model.vae, name, lambda x, inner=inner: sizes.append(len(x)) or inner(x))
    monkeypatch.setattr(diffusion, "PIXELS", 3 * 16 * 16)
    assert torch.allclose(model.to_latents(images), latents, atol=1e-5)
    assert (model.to_images(latents).int() - drawn.int()).abs().max() <= 1
    assert sizes == [3, 3, 1, 3, 3, 1]


class Tight:
    """Memory for so many rows with a gradient."""

    def __init__(self, rows):
        self.rows, self.tries = rows, []

    def __call__(self, model, forget, retain, context):
        """Predict four rows, then step."""
        self.tries.append(model.micro_batch)
        model.predict(torch.randn(4, 1, 8, 8), 3, model.context(["a church"]))
        if min(model.widest, model.micro_batch) > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        with torch.no_grad():
            model.unet.conv_out.weight.add_(1)
        return model


@pytest.fixture
def tight(make_model, monkeypatch, tmp_path):
    def run(rows):
        method = Tight(rows)
        monkeypatch.setattr(stages, "unlearner", lambda name, task: type("Entry", (), {"load": lambda self: method})())
        monkeypatch.setattr(stages, "model_of", lambda inputs, role, runtime: make_model())
        monkeypatch.setattr(stages, "side_of", lambda inputs, side_: None)
        spec = {
            "method": {"name": "tight", "parameters": {}}, "anchor": "", "sampler_steps": 3, "batch_size": 4,
            "seed": rows,
        }  # fmt: skip
        stage = Stage("text-to-image", "unlearn", 1, "unlearn tight", spec)
        return attempt(stage, TASK, {}, Store(tmp_path), Runtime()), method.tries

    return run


def test_where_memory_runs_out_pictures_per_pass_halve(tight):
    outcome, tries = tight(1)
    assert outcome.status == "done", outcome.reason
    assert tries == [32, 2, 1]
    assert json.loads(outcome.artifact.file("unlearned.json").read_text())["file"] == "unet.safetensors"


def test_where_one_picture_is_too_much_the_failure_says_so(tight):
    outcome, tries = tight(0)
    assert outcome.status == "failed"
    assert outcome.reason == "unlearn tight: out of memory, with 1 picture at a time too"
    assert tries == [32, 2, 1]
