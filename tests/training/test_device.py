"""Speed changes no result beyond rounding, and claims are made without it."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from rub.attacks.base import AttackContext
from rub.data.samples import Samples, to_unit
from rub.models.diffusion.mini import build_mini
from rub.models.diffusion.tokenizer import make_tokenizer, train_vocabulary
from rub.models.mae.masks import keyed_noise, make_mask
from rub.models.mae.model import MAEConfig, MaskedAutoencoder
from rub.models.network import build_network
from rub.models.weights import freeze
from rub.pipeline.memory import retain_freed_memory
from rub.tasks.classification.attacks.harness import make_target
from rub.tasks.classification.attacks.scoring import Scorer
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.inpainting.attacks import guide as guides
from rub.tasks.inpainting.attacks.base import AttackContext as MaeContext
from rub.tasks.text_to_image.attacks.base import AttackContext as PromptContext
from rub.tasks.text_to_image.attacks.base import Budget, Prompts
from rub.tasks.text_to_image.attacks.concept_inversion import concept_inversion
from rub.tasks.text_to_image.attacks.harness import make_target as make_prompt_target
from rub.tasks.text_to_image.attacks.p4d import p4d
from rub.tasks.text_to_image.attacks.uma import uma
from rub.training.classifier import train
from rub.training.device import PaddedBatches, bucket, compiled, on_device, tf32

NETWORK = {"num_classes": 4, "channels": 3, "stem": "cifar", "width": 2, "mean": (0.5,) * 3, "std": (0.2,) * 3}


@pytest.fixture
def eagerly(monkeypatch):
    """Trace and differentiate as the compiler does, without generating code, which takes most of a minute."""
    real, made = torch.compile, []

    def fake(function, **options):
        made.append(function)
        return real(function, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", fake)
    yield made
    torch._dynamo.reset()


def samples():
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 8, 8), generator=draw, dtype=torch.uint8)
    return Samples(images, torch.arange(40) % 4, torch.arange(40))


def test_every_count_is_filled_up_to_a_bucket_that_holds_it():
    for most in (1, 7, 64):
        sizes = {bucket(count, most) for count in range(1, most + 1)}
        assert all(count <= bucket(count, most) <= most for count in range(1, most + 1))
        assert len(sizes) <= most.bit_length()


def test_filling_changes_neither_values_nor_gradients():
    seen = []

    def double(x, y):
        seen.append(len(x))
        return 2 * x * y

    for count in range(1, 9):
        x, y = torch.rand(count, 3, requires_grad=True), torch.rand(count, 3)
        made = PaddedBatches(double, 8)(x, y)
        (gradient,) = torch.autograd.grad(made.sum(), x)
        assert torch.equal(made, 2 * x * y) and torch.equal(gradient, 2 * y)
    assert set(seen) == {1, 2, 4, 8}


def test_tf32_ends_with_its_body_also_when_it_fails():
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    with pytest.raises(ValueError, match="no"), tf32(True):
        assert [flag.allow_tf32 for flag in flags] == [True, True]
        with tf32(False):
            assert [flag.allow_tf32 for flag in flags] == [False, False]
        raise ValueError("no")
    assert [flag.allow_tf32 for flag in flags] == before


def test_data_stays_where_it_is_without_an_accelerator():
    some = samples()
    assert on_device(some, torch.device("cpu")) is some


FAULTS = """
import resource, sys, torch
from contextlib import nullcontext
from rub.pipeline.memory import retain_freed_memory
x = torch.ones(2**24)
def rounds(count):
    for _ in range(count):
        y = x + 1
        del y
def resident():
    return int(open("/proc/self/statm").read().split()[1])
with retain_freed_memory() if "keep" in sys.argv else nullcontext():
    rounds(20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    rounds(40)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    held = resident()
print(faults, held - resident())
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="about glibc")
def test_memory_kept_is_not_cleared_again_and_goes_back_at_the_end():
    with retain_freed_memory() as possible:
        if not possible:
            pytest.skip("another C library than glibc")
    run = [sys.executable, "-c", FAULTS]
    (returned, _), (kept, released) = (
        map(int, subprocess.run([*run, *more], capture_output=True, text=True, check=True).stdout.split())
        for more in ([], ["keep"])
    )
    assert returned > 40  # 64 MiB in each round, at least a page however large pages are
    assert kept < returned / 4  # the heap may grow a few times before a free place is always large enough
    assert released * 4096 > 2**25


@pytest.mark.slow
def test_a_compiled_training_gives_the_same_weights_to_rounding(eagerly):
    made = []
    for compile_ in (False, True):
        context = UnlearnContext(seed=1, batch_size=16, num_classes=4, compile=compile_)
        model = build_network("resnet10", seed=0, **NETWORK)
        made.append(train(model, samples(), context, epochs=2, lr=0.05).state_dict())
    assert eagerly
    for name, value in made[0].items():
        assert torch.allclose(value.double(), made[1][name].double(), rtol=1e-3, atol=1e-4), name


@pytest.mark.slow
def test_a_compiled_guide_scores_and_slopes_as_the_network_does(eagerly):
    nets = [build_network("resnet10", seed=seed, **NETWORK).eval() for seed in (0, 1)]
    some = samples()
    target = make_target(*nets, some.images, some.labels, 16, torch.device("cpu"))
    context = AttackContext(seed=0, ids=some.ids, batch_size=16, fast=False)
    plain, fast = (Scorer(target, "kl", replace(context, compile=compile_)) for compile_ in (False, True))
    for rows in (torch.arange(16), torch.arange(5), torch.tensor([30])):
        x = to_unit(some.images[rows])
        one, other = (scorer.guide(x, rows, gradient=True) for scorer in (plain, fast))
        assert torch.allclose(one.loss, other.loss, atol=1e-4)
        assert torch.allclose(one.gradient, other.gradient, atol=1e-5)
    assert fast.evaluations == plain.evaluations == 22
    assert torch.equal(plain.exact(some.images, some.ids).loss, fast.exact(some.images, some.ids).loss)


@pytest.mark.slow
def test_a_compiled_guide_of_an_autoencoder(eagerly):
    config = MAEConfig(16, 4, 3, 16, 1, 2, 16, 1, 2, mean=(0.5,) * 3, std=(0.2,) * 3)
    model, ids = MaskedAutoencoder(config, 0).eval().requires_grad_(False), torch.arange(6)
    mask = make_mask(keyed_noise(ids, config.patches), 0.75)
    visible = torch.rand(*mask.keep.shape, config.patch_dim)
    reference = torch.rand(*mask.hidden.shape, config.patch_dim)
    context = MaeContext(seed=0, ids=ids, threshold=0.0, batch_size=4, fast=False)
    plain, fast = (guides.Guide(model, replace(context, compile=compile_)) for compile_ in (False, True))
    for count in (4, 3, 1):
        part = slice(0, count)
        one, other = (
            guide(visible[part], mask.select(part), reference[part], gradient=True) for guide in (plain, fast)
        )
        assert torch.allclose(one.loss, other.loss, rtol=1e-5)
        assert torch.allclose(one.gradient, other.gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("search", [uma, p4d, concept_inversion])
def test_compiled_searches_of_prompts_move_as_the_others_do(eagerly, search):
    tokenizer = make_tokenizer(*train_vocabulary(["a photo of a church", "a chapel"], 300), 16)
    original, unlearned = (
        freeze(build_mini("sd-nano", channels=1, size=8, tokenizer=tokenizer, seed=seed)) for seed in (0, 1)
    )
    prompts = Prompts(torch.arange(3), ("a church", "a chapel", "a photo"), torch.arange(3), torch.full((3,), 3.0))
    pictures = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    target = make_prompt_target(original, unlearned, prompts, pictures, 3, concept="church")
    moved = []
    for compile_ in (False, True):
        found = search(target, prompts, Budget(2), PromptContext(batch_size=4, compile=compile_), inner_steps=2)
        state = {name: torch.arange(3) for name in ("row", "id")} | {"t": torch.zeros(3).long()}
        found.begin(state)
        found.move(state)
        moved.append(state)
    assert eagerly
    for name, values in moved[0].items():
        assert torch.allclose(values, moved[1][name], atol=1e-4), name


@pytest.mark.slow
def test_networks_of_one_shape_share_what_was_compiled():
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    x = torch.rand(4, 3)
    for seed in range(3):
        torch.manual_seed(seed)
        layer = nn.Linear(3, 2)
        assert torch.allclose(compiled(layer)(x), layer(x), atol=1e-6)
    assert counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()


@pytest.mark.slow
def test_the_benchmark_of_a_device_runs_at_a_size_for_a_cpu():
    script = Path(__file__).parents[2] / "benchmarks" / "device.py"
    words = [sys.executable, str(script), "--tiny", "--compile", "no", "--device", "cpu"]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    rows = [line.split(" | ") for line in said.splitlines() if line.startswith("| ")][1:]
    assert [row[0].strip("| ") for row in rows] == ["training"] * 3 + ["attack"] * 2 + ["UMA on prompts"]
    shares = [float(row[4].split()[0]) for row in rows]  # of a bfloat16 product, which some processors emulate
    assert all(0 < share < math.inf for share in shares), rows
    assert "best training" in said and "convolutions and products" in said
