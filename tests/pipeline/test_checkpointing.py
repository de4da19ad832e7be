"""A stage that is killed goes on from the state that it kept, and ends in the same bytes."""

import io
import os
from hashlib import sha256
from typing import ClassVar

import numpy as np
import pytest
import torch

from rub.attacks.base import AttackContext
from rub.attacks.search import Queue, run_queue
from rub.models.mae.masks import keyed_noise, make_mask
from rub.models.mae.model import MAEConfig, MaskedAutoencoder
from rub.models.network import build_network
from rub.pipeline import runtime
from rub.pipeline.checkpointing import Checkpointer, ParameterState
from rub.pipeline.graph import Stage
from rub.pipeline.runtime import Runtime, compute
from rub.store.artifacts import Store, whole_state
from rub.tasks.classification.attacks.base import Budget
from rub.tasks.classification.attacks.harness import make_target
from rub.tasks.classification.attacks.square import square
from rub.tasks.classification.attacks.uma import uma
from rub.tasks.classification.attacks.uma_apgd import uma_apgd
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.inpainting.attacks import base as inpainting_attacks
from rub.tasks.inpainting.attacks.harness import make_target as make_mae_target
from rub.tasks.inpainting.attacks.uma import uma as mae_uma
from rub.tasks.inpainting.context import UnlearnContext as MaeContext
from rub.tasks.inpainting.stages import fit as fit_mae
from rub.training.classifier import train


def weights(model):
    return [value.clone() for value in model.state_dict().values()]


@pytest.mark.slow
def test_a_classifier_in_training(ends_the_same, samples_of):
    samples = samples_of(70)

    def work(context):
        model = build_network("resnet10", num_classes=4, channels=3, stem="cifar", width=2, mean=(0.5,) * 3,
                              std=(0.2,) * 3, seed=0)  # fmt: skip
        return weights(train(model, samples, context, epochs=4, lr=0.1, schedule="onecycle"))

    ends_the_same(work, UnlearnContext(seed=1, batch_size=16, num_classes=4), kills=(7, 8))


MAE = MAEConfig(image_size=8, patch_size=2, channels=3, dim=16, depth=1, heads=2, decoder_dim=16, decoder_depth=1,
                decoder_heads=2)  # fmt: skip


def test_an_autoencoder_in_training(ends_the_same, samples_of):
    samples = samples_of(40)
    training = {"epochs": 4, "lr": 1e-3, "weight_decay": 0.05, "warmup": 0.1}

    def work(context):
        return weights(fit_mae(MaskedAutoencoder(MAE, 0), samples, context, training))

    ends_the_same(work, MaeContext(seed=1, batch_size=16), kills=(5, 4))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "parameters"),
    [(uma, {"steps": 6, "restarts": 2}), (uma_apgd, {"steps": 8, "restarts": 2}), (square, {"steps": 9})],
)
@pytest.mark.parametrize("fast", [False, True])
def test_a_search_on_a_classifier(attack, parameters, fast, ends_the_same, samples_of):
    images = samples_of(20).images
    nets = [build_network("resnet10", num_classes=4, channels=3, stem="cifar", width=2, mean=(0.5,) * 3,
                          std=(0.2,) * 3, seed=seed).eval() for seed in (0, 1)]  # fmt: skip
    target = make_target(*nets, images, torch.arange(20) % 4, 8, torch.device("cpu"))

    def work(context):
        found = attack(target, images, Budget(4), context, **parameters)
        curves = torch.tensor(found.success_curve + found.loss_curve), torch.tensor(found.evaluations)
        return [found.inputs, found.loss, found.step, *curves]

    context = AttackContext(seed=3, ids=torch.arange(20), batch_size=8, fast=fast)
    ends_the_same(work, context, kills=(5, 9))


def test_a_search_on_an_autoencoder(ends_the_same, samples_of):
    images, ids = samples_of(12).images, torch.arange(12)
    mask = make_mask(keyed_noise(ids, MAE.patches), 0.75)
    target = make_mae_target(MaskedAutoencoder(MAE, 1), MaskedAutoencoder(MAE, 0), images, mask, 4, torch.device("cpu"))

    def work(context):
        found = mae_uma(target, images, inpainting_attacks.Budget.parse("8/255"), context, steps=5, restarts=2)
        return [found.inputs, found.loss, found.step, torch.tensor(found.loss_curve + found.success_curve)]

    context = inpainting_attacks.AttackContext(seed=3, ids=ids, threshold=0.01, batch_size=5, fast=False)
    ends_the_same(work, context, kills=(5, 9))


def test_those_that_were_in_a_larger_batch_enter_first():
    def admit(rows):
        return {"row": rows, "t": torch.zeros_like(rows)}

    batches = []

    def observe(state):
        batches.append(list(zip(state["row"].tolist(), state["t"].tolist(), strict=True)))
        return (), state["t"] == 2

    queue = Queue(torch.device("cpu"))
    queue.load_state_dict({
        "batch": {"row": torch.tensor([4, 5, 6]), "t": torch.tensor([1, 2, 2])}, "resumed": {},
        "pending": torch.tensor([7, 8]),
    })  # fmt: skip
    assert len(queue) == 5
    run_queue(queue, 2, admit, observe, lambda state: None, lambda left: None)
    # Six is taken up where it was, before seven starts; nobody is seen twice at one step.
    assert batches == [[(4, 1), (5, 2)], [(4, 2), (6, 2)], [(7, 0), (8, 0)], [(7, 1), (8, 1)], [(7, 2), (8, 2)]]


def kept_state(folder, mark="now"):
    checkpointer = Checkpointer(folder, 0.0, mark)
    checkpointer.section("loop", {"draws": torch.Generator().manual_seed(5)}).keep(3)
    return folder / "loop-1.state"


def test_a_damaged_state_is_passed_over(tmp_path):
    path = kept_state(tmp_path)
    content = path.read_bytes()
    assert Checkpointer(tmp_path, 0.0, "now").section("loop", {"draws": torch.Generator()}).restore() == 3
    for place in np.linspace(0, len(content) - 1, 25).astype(int):
        path.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
        assert (
            not whole_state(path)
            and Checkpointer(tmp_path, 0.0, "now").section("loop", {"draws": torch.Generator()}).restore() == 0
        )
    path.write_bytes(content[:-9])
    assert not whole_state(path)


def sealed(value):
    """Return a state file of any content, with the right checksum."""
    stream = io.BytesIO()
    torch.save(value, stream)
    return sha256(stream.getvalue()).hexdigest().encode() + stream.getvalue()


@pytest.mark.parametrize(
    "value",
    [
        {},
        [1],
        {"mark": "now", "seconds": "soon", "state": {}},
        b"not a dict",
        {"mark": "now", "seconds": 1, "state": {}},
    ],
)
def test_a_file_of_others_that_is_no_state_is_passed_over(value, tmp_path):
    (tmp_path / "loop-1.state").write_bytes(sealed(value))
    assert whole_state(tmp_path / "loop-1.state")
    assert Checkpointer(tmp_path, 0.0, "now").section("loop", {"draws": torch.Generator()}).restore() == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_pipes_and_links_are_no_states(tmp_path):
    os.mkfifo(tmp_path / "loop-1.state")
    assert not whole_state(tmp_path / "loop-1.state")  # and it does not wait for a writer
    (tmp_path / "loop-1.state").unlink()
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "loop-1.state.new").symlink_to(tmp_path / "victim")
    kept_state(tmp_path)
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "loop-1.state").is_symlink() and whole_state(tmp_path / "loop-1.state")
    (tmp_path / "loop-2.state").symlink_to(tmp_path / "loop-1.state")
    assert not whole_state(tmp_path / "loop-2.state")


def test_a_state_of_other_code_is_passed_over(tmp_path):
    kept_state(tmp_path, mark="then")
    assert Checkpointer(tmp_path, 0.0, "now").section("loop", {"draws": torch.Generator()}).restore() == 0


def test_a_state_of_another_kind_of_device_is_read(tmp_path, monkeypatch):
    def changing(seed):
        weight = torch.nn.Parameter(torch.full((2,), float(seed)))
        optimizer = torch.optim.Adam([weight])
        weight.grad = torch.full((2,), float(seed))
        optimizer.step()
        return {"weights": ParameterState({"w": weight}), "optimizer": optimizer}, weight

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)  # as on a machine with two GPUs
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [torch.get_rng_state()] * 2)
    there, weight = changing(3)
    Checkpointer(tmp_path, 0.0, "now", "cuda NVIDIA A100").section("loop", there).keep(7)
    here, other = changing(5)
    checkpointer = Checkpointer(tmp_path, 0.0, "now", "cpu x2")
    assert checkpointer.section("loop", here).restore() == 7
    assert torch.equal(other, weight)
    assert all(
        torch.equal(here["optimizer"].state[other][name], value)
        for name, value in there["optimizer"].state[weight].items()
    )
    assert checkpointer.devices == ("cuda NVIDIA A100", "cpu x2")
    checkpointer.section("loop", here).keep(9)
    back = Checkpointer(tmp_path, 0.0, "now", "cuda NVIDIA A100")
    assert back.read("loop-2.state") is not None
    assert back.devices == ("cuda NVIDIA A100", "cpu x2", "cuda NVIDIA A100")


def test_parts_of_one_name_keep_apart(tmp_path):
    kept = Checkpointer(tmp_path)
    kept.section("loop", {"draws": torch.Generator()}).keep(4)
    kept.section("loop", {"draws": torch.Generator()}).keep(9)
    again = Checkpointer(tmp_path)
    assert [again.section("loop", {"draws": torch.Generator()}).restore() for _ in range(3)] == [4, 9, 0]


def test_nothing_is_kept_before_it_is_time(tmp_path):
    Checkpointer(tmp_path / "at", every=3600).section("loop", {"draws": torch.Generator()}).keep(3)
    assert not (tmp_path / "at").exists()


def counting(stage, inputs, out, runtime):
    """Stage function: counts to six, and is killed at the number in the file beside its output's store."""
    draws = torch.Generator().manual_seed(stage.spec["seed"])
    part = runtime.checkpointer.section("count", {"draws": draws})
    values = []
    for step in range(part.restore(), 6):
        values.append(float(torch.rand((), generator=draws)))
        part.keep(step + 1)
        runtime.progress(step + 1, 6)
    (out / "last.txt").write_text(f"{len(values)} {values[-1]}")


class Counting:
    functions: ClassVar = {"count": f"{__name__}:counting"}


def test_a_stage_keeps_its_state_in_the_store_until_it_ends(tmp_path):
    store, stage = Store(tmp_path), Stage("t", "count", 1, "count", {"seed": 1})

    def progress(done, total, note=""):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute(stage, Counting(), {}, store, Runtime(checkpoint_seconds=0.0, progress=progress))
    assert [key for key, _ in store.partials()] == [stage.key]
    made = compute(stage, Counting(), {}, store, Runtime(checkpoint_seconds=0.0))
    assert not list(store.partials())
    draws = torch.Generator().manual_seed(1)
    assert made.file("last.txt").read_text() == f"2 {torch.rand(6, generator=draws)[5].item()}"
    assert made.manifest["seconds"] >= 0


def test_an_artifact_names_the_devices_that_made_it(tmp_path, monkeypatch):
    store, stage = Store(tmp_path), Stage("t", "count", 1, "count", {"seed": 1})

    def progress(done, total, note=""):
        if done == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(runtime, "device_name", lambda device: "cuda NVIDIA A100")
    with pytest.raises(KeyboardInterrupt):
        compute(stage, Counting(), {}, store, Runtime(checkpoint_seconds=0.0, progress=progress))
    monkeypatch.setattr(runtime, "device_name", lambda device: "cpu x2")
    made = compute(stage, Counting(), {}, store, Runtime(checkpoint_seconds=0.0))
    assert made.manifest["device"] == "cuda NVIDIA A100, then cpu x2"
    assert made.file("last.txt").read_text().startswith("2 ")  # went on after the fourth
