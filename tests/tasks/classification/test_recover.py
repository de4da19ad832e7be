"""`rub.recover` on models in memory: what the stages of a suite find, and models that are no RUB's."""

import copy
import json
import math
from types import SimpleNamespace
from typing import Annotated

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import rub
from rub.attacks.base import Probes
from rub.data.samples import Samples
from rub.data.splits import load_dataset
from rub.errors import RubError
from rub.pipeline.graph import in_order
from rub.store.artifacts import Store
from rub.tasks.classification.recover import levels_of
from rub.tasks.classification.stages import aim, load_model

IMAGES = torch.randint(0, 256, (12, 3, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def network(seed, channels=3, classes=4):
    torch.manual_seed(seed)
    layers = nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, classes)
    return nn.Sequential(*layers).eval()


ORIGINAL, UNLEARNED = network(0), network(1)
with torch.no_grad():
    LABELS = ORIGINAL(IMAGES / 255).argmax(1)


@pytest.mark.slow
def test_it_finds_what_the_attack_stage_finds(tiny):
    """The same probes of the same models and images, to the last bit, as a suite's artifact holds."""
    store = Store(tiny.store)
    [(_, graph)] = rub.plan(tiny.suite, rub.api.make_runtime(device="cpu"))
    stages = [stage for stage in in_order(graph.stages) if stage.kind == "attack" and stage.spec["split"] == "forget"]
    checked = 0
    for stage in stages:
        inputs = {role: store.find(need.kind, need.key) for role, need in stage.inputs.items()}
        dataset = load_dataset(inputs["data"])
        samples, _ = aim(stage.spec, inputs, dataset, rub.api.make_runtime(device="cpu"))
        original, unlearned = (load_model(inputs[role], dataset) for role in ("original", "unlearned"))
        (run,) = stage.spec["runs"]
        result = rub.recover(
            unlearned, original, samples.images, samples.labels, eps=stage.spec["levels"], attack=run["name"],
            seed=stage.spec["seed"], ids=samples.ids, **run["parameters"],
        )  # fmt: skip
        kept = store.find(stage.kind, stage.key)
        assert np.array_equal(result.probes[0].numpy(), np.load(kept.file("probes.npy")))
        listed = np.load(kept.file("samples.npz"))
        for name, ours in (("step", result.steps[0]), ("loss", result.distance[0]), ("ids", result.ids)):
            assert np.array_equal(ours.numpy(), listed[name]), name
        assert result.success_curves[0] == pytest.approx(kept.json("attack.json")["success_curve"], abs=1e-6)
        checked += 1
    assert checked >= 4  # uma on every row


def state(model):
    """All that a use of a model could leave behind."""
    return {
        "modes": [module.training for module in model.modules()],
        "hooks": [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()],
        "wants": [(parameter.requires_grad, parameter.dtype, parameter.device) for parameter in model.parameters()],
        "tensors": [*model.state_dict().values(), *(parameter.grad for parameter in model.parameters())],
    }


def test_the_models_stay_as_they_are():
    original, unlearned = copy.deepcopy(ORIGINAL).train(), copy.deepcopy(UNLEARNED).half().train()
    unlearned[1].eval()
    for model in (original, unlearned):
        sum(parameter.float().sum() for parameter in model.parameters()).backward()
    before = [copy.deepcopy(state(model)) for model in (original, unlearned)]
    assert len(rub.recover(unlearned, original, IMAGES, LABELS, eps=8, steps=3)) == 12
    for model, was in zip((original, unlearned), before, strict=True):
        now = state(model)
        assert all(torch.equal(*pair) for pair in zip(now.pop("tensors"), was.pop("tensors"), strict=True))
        assert now == was


class Shown(nn.Module):
    """A model whose answer comes in a form of its own."""

    def __init__(self, model, answer):
        super().__init__()
        self.model, self.answer = model, answer

    def forward(self, x):
        return self.answer(self.model(x))


@pytest.mark.slow
@pytest.mark.parametrize(
    "shown",
    [
        lambda model: Shown(model, lambda logits: (logits, "aux")),
        lambda model: Shown(model, lambda logits: [logits]),
        lambda model: Shown(model, lambda logits: SimpleNamespace(logits=logits)),
        lambda model: Shown(model, lambda logits: {"logits": logits}),
        lambda model: copy.deepcopy(model).double(),
        nn.DataParallel,
        torch.compile,
        lambda model: copy.deepcopy(model).train(),
    ],
)
def test_the_same_model_in_every_form(shown):
    wanted = rub.recover(UNLEARNED, ORIGINAL, IMAGES, LABELS, eps=16, steps=4)
    answer = shown(UNLEARNED)
    if isinstance(answer, Shown) and isinstance(answer.answer(torch.zeros(1, 2)), SimpleNamespace | dict):
        with torch.no_grad(), torch.inference_mode():  # whatever the caller is in
            found = rub.recover(answer, shown(ORIGINAL), (IMAGES / 255).numpy(), LABELS.numpy(), eps=16 / 255, steps=4)
    else:
        found = rub.recover(answer, ORIGINAL, TensorDataset(IMAGES, LABELS), eps=16, steps=4)
    assert torch.equal(found.probes, wanted.probes) and torch.equal(found.recovered, wanted.recovered)
    assert wanted.shares[0] > wanted.clean.double().mean()


def test_features_are_compared_where_a_last_layer_has_them():
    near = rub.recover(UNLEARNED, ORIGINAL, IMAGES, LABELS, eps=16, steps=4, divergence="features-l2")
    with torch.no_grad():
        found = UNLEARNED[:-1](near.probes[0] / 255) - ORIGINAL[:-1](IMAGES / 255)
    assert torch.allclose(near.distance[0], found.norm(dim=1), atol=1e-4)


def test_budgets_grow_from_one_another_when_asked_to():
    apart = rub.recover(UNLEARNED, ORIGINAL, IMAGES, LABELS, eps=[16, 2, 8], steps=2)
    warm = rub.recover(UNLEARNED, ORIGINAL, IMAGES, LABELS, eps=[2, 8, 16], steps=2, warm_start=True)
    assert apart.eps == warm.eps == (2, 8, 16)
    assert (warm.recovered[1:] >= warm.recovered[:-1]).all()
    assert torch.equal(apart.probes[0], warm.probes[0]) and not torch.equal(apart.probes[2], warm.probes[2])


def test_a_budget_that_misses_what_a_smaller_one_found_has_not_converged():
    def whole(target, images, budget, context):
        """A search that works at 40/255 alone, and says of itself that it is done."""
        found = images.clone() if budget.levels > 40 else rub.recover(
            target.model, ORIGINAL, images, target.labels, budget.levels, batch_size=12, device="cpu"
        ).probes[0]  # fmt: skip
        count = len(images)
        nothing = torch.full((count,), -1)
        return Probes(found, torch.zeros(count), nothing, (0.0, 0.0), (1.0, 1.0), count, converged=True)

    result = rub.recover(UNLEARNED, ORIGINAL, IMAGES, LABELS, (40, 60), attack=whole)
    assert result.shares[0] > result.shares[1] + 0.01
    assert result.converged == (True, False)


def test_a_result_is_told_in_rows_in_json_in_80_columns_and_as_html():
    result = rub.recover(UNLEARNED, ORIGINAL, IMAGES, LABELS, eps=[0, 16], steps=4, ids=range(100, 112))
    rows = result.rows()
    assert len(rows) == 24 and rows[12]["id"] == 100 and rows[12]["eps"] == 16
    assert [row["recovered"] for row in rows[12:]] == result.recovered[1].tolist()
    assert [row["recovered"] for row in rows[:12]] == result.clean.tolist()
    assert all(row["linf"] <= row["eps"] and row["original"] for row in rows)
    facts = json.loads(json.dumps(result.to_dict()))
    assert facts["attack"] == "uma-momentum" and facts["parameters"]["steps"] == 4 and facts["original"]["share"] == 1
    assert facts["eps"]["16"]["share"] == pytest.approx(result.shares[1])
    assert facts["eps"]["16"]["low"] <= facts["eps"]["16"]["share"] <= facts["eps"]["16"]["high"]
    assert len(facts["eps"]["16"]["success_curve"]) == 5
    lines = repr(result).split("\n")
    assert len(lines) == 6 and all(len(line) <= 80 for line in lines)
    assert lines[0] == "Recovery of 12 images by uma-momentum"
    assert lines[2].split()[:4] == ["original,", "clean", "100.0", "%"]
    named = rub.recover(
        UNLEARNED, ORIGINAL, IMAGES, LABELS, eps=1, attack=rub.attacks.adapt(lambda m, x, y, e: x, name="<b>")
    )
    assert "&lt;b&gt;" in named._repr_html_() and "<b>" not in named._repr_html_()
    with pytest.raises(KeyError, match="attacked at 0, 16"):
        result[3]


def test_budgets_are_whole_steps():
    assert levels_of(8) == (8,)
    assert levels_of(0.0) == (0,)
    assert levels_of([2.0, 16 / 255, 1]) == (1, 2, 16)
    assert levels_of(np.array([8, 2])) == levels_of(torch.tensor([8, 2])) == levels_of(np.array([8, 2]) / 255) == (2, 8)


@pytest.mark.parametrize(
    ("eps", "says"),
    [
        ([], "there are none"),
        (300, "0 to 255"),
        (-1, "0 to 255"),
        *((wrong, "whole steps") for wrong in (0.3, 0.5, 1.0, True, "8", math.nan, math.inf, None)),
    ],
)
def test_other_budgets_are_refused(eps, says):
    with pytest.raises(RubError, match=says):
        levels_of(eps)


class Blind(nn.Module):
    """No gradient comes through."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    @torch.no_grad()
    def forward(self, x):
        return self.model(x)


def broken(value):
    return Shown(UNLEARNED, lambda logits: torch.where(logits == logits.amax(1, keepdim=True), value, logits))


REFUSED = {
    "no module": ({"unlearned": lambda x: x}, "unlearned: got function; should be a torch.nn.Module"),
    "other channels": ({"original": network(0, channels=1)}, "original: fails on an image (3, 6, 6): RuntimeError"),
    "no logits": ({"unlearned": Shown(UNLEARNED, lambda z: z.argmax(1))}, "unlearned: gives (1,) for one image"),
    "no tensor": ({"unlearned": Shown(UNLEARNED, lambda z: "cat")}, "unlearned: gives NoneType for one image"),
    "other classes": ({"unlearned": network(0, classes=5)}, "unlearned: gives 5 logits, and the original 4"),
    "a label too many": ({"labels": LABELS + 2}, "the models have classes 0 to 3"),
    "NaN": ({"unlearned": broken(torch.nan)}, "the unlearned model's outputs are not finite on 12 images"),
    "NaN before": ({"original": broken(torch.nan)}, "original: its outputs are not finite"),
    "no images": ({"images": IMAGES[:0], "labels": LABELS[:0]}, "images: there are none"),
    "no gradient": ({"unlearned": Blind(UNLEARNED)}, "attack 'uma-momentum': RuntimeError: element 0 of tensors"),
    "no such device": ({"device": "gpu"}, "device 'gpu': Expected one of"),
    "no batch": ({"batch_size": 0}, "batch_size = 0: should be 1 or more"),
    "an unknown attack": ({"attack": "umma"}, "unknown classification attack 'umma': did you mean 'uma'?"),
    "an unknown parameter": ({"step": 3}, "did you mean 'steps'?"),
    "a value out of range": ({"steps": 0}, "recover (uma-momentum): steps = 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(name):
    changed, says = REFUSED[name]
    call = {"unlearned": UNLEARNED, "original": ORIGINAL, "images": IMAGES, "labels": LABELS, "eps": 4, **changed}
    with pytest.raises(RubError) as refused:
        rub.recover(**call)
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_samples_of_rub_are_images_too():
    samples = Samples(IMAGES, LABELS, torch.arange(50, 62))
    result = rub.recover(UNLEARNED, ORIGINAL, samples, eps=16, attack="square", steps=5)
    assert result.ids.tolist() == samples.ids.tolist() and result.attack == "square"


def darker(target, images, budget, context, *, levels: Annotated[int, rub.Hyper("how many", ge=1)] = 3):
    """Probes alone, without a word on how they were found."""
    target.model(images / 255)
    return (images.int() - min(levels, budget.levels)).clamp(0, 255).to(torch.uint8)


def test_an_attack_of_ones_own_may_give_its_probes_alone():
    result = rub.recover(UNLEARNED, ORIGINAL, IMAGES, LABELS, eps=[2, 64], attack=darker, levels=64)
    assert result.attack == "darker" and result.parameters == {"levels": 64}
    with torch.no_grad():
        hits = UNLEARNED((IMAGES.int() - 64).clamp(0, 255) / 255).argmax(1) == LABELS
    assert torch.equal(result.recovered[1], hits | result.clean) and result.shares[1] > result.shares[0]
    assert torch.equal(result.steps[1], torch.where(result.clean, 0, torch.where(hits, 1, -1)))
    assert result.success_curves[1] == pytest.approx([result.clean.double().mean().item(), result.shares[1]])
    assert result[64].evaluations == len(IMAGES) and result.loss_curves[1][1] <= result.loss_curves[1][0]
    for wrong, says in (({"levels": 0}, "recover (darker): levels = 0"), ({"level": 1}, "did you mean 'levels'?")):
        with pytest.raises(RubError) as refused:
            rub.recover(UNLEARNED, ORIGINAL, IMAGES, LABELS, eps=2, attack=darker, **wrong)
        assert says in str(refused.value)
