"""One switch for less precision: it decides keys where it decides pictures and weights, and claims stay in float32."""

from dataclasses import replace

import pytest
import torch

from rub.config.suite import load_suite
from rub.models.diffusion.sampling import Sampler
from rub.models.weights import freeze
from rub.pipeline.graph import in_order
from rub.registry import task_of
from rub.tasks.text_to_image.attacks.base import AttackContext, Budget, Candidates, Prompts
from rub.tasks.text_to_image.attacks.harness import Drawing, make_target, run_attack
from rub.tasks.text_to_image.attacks.uma import uma
from rub.tasks.text_to_image.audit import TextToImageAudit
from rub.tasks.text_to_image.stages import clean_hits, clean_images

TEXTS = ("a photo of the digit seven", "a church", "the digit eight on paper", "a chapel", "a garbage truck")


@pytest.fixture
def prompts():
    return Prompts(torch.arange(10, 15), TEXTS, torch.arange(5), torch.full((5,), 3.0))


def seen(images):
    score = images.float().mean((1, 2, 3))
    return score > 126, score


def keys(*overrides):
    suite = load_suite("quick", task="text-to-image", methods=["esd-u", "uce"], overrides=overrides)
    [experiment] = suite.experiments
    graph = task_of("text-to-image").plan(experiment, None)
    return {stage.label: stage for stage in in_order(graph.stages)}, experiment.protocol.name


def test_the_switch_decides_the_keys_of_what_it_decides():
    plain, name = keys()
    same, unmarked = keys("protocol.precision=float32")
    less, marked = keys("protocol.precision=bfloat16")
    assert {label: stage.key for label, stage in plain.items()} == {label: stage.key for label, stage in same.items()}
    assert unmarked == name != marked
    changed = {less[label].kind for label in plain if plain[label].key != less[label].key}
    kept = {less[label].kind for label in plain if plain[label].key == less[label].key}
    assert changed == {"unlearn", "measure", "attack", "measure-attack", "gallery"}
    assert kept == {"data", "judge", "train", "prompts", "initialise", "reference", "pictures"}
    told = {stage.kind for stage in less.values() if "precision" in stage.spec}
    assert told == {"unlearn", "measure", "attack"}


def test_pictures_of_the_original_to_learn_from_are_drawn_so_too():
    suite = load_suite("text-to-image-digits", methods=["salun"], overrides=["protocol.precision=tf32"])
    assert suite.experiments[0].protocol.precision == "tf32"
    audit = TextToImageAudit(original="sd", unlearned="esd.pt", concept="church", precision="bfloat16", cap=7)
    protocol = audit.experiment().protocol
    assert protocol.precision == "bfloat16"
    assert {plan.cap for plan in protocol.attacks.values()} == {7}
    assert TextToImageAudit(original="sd", unlearned="esd.pt", concept="church").experiment().protocol.name == (
        "rub-audit-1"
    )


def test_less_precision_draws_nearly_the_same(model, prompts):
    exact = Drawing(freeze(model), Sampler("lms", 4), seen)
    rounded = replace(exact, precision="bfloat16")
    images, ids = exact.draw(prompts, Candidates())
    other, same = rounded.draw(prompts, Candidates())
    assert torch.equal(ids, same)
    assert not torch.equal(images, other)
    assert (images.float() - other.float()).abs().mean() < 3


class Recorded:
    """A judge that sees the concept in every picture, or where it is told to, and keeps what it saw."""

    def __init__(self, *answers):
        self.answers, self.looks = list(answers), []

    def __call__(self, images):
        self.looks.append(images)
        hit = self.answers.pop(0)
        return torch.tensor(hit), torch.arange(len(hit)).float() + 10 * len(self.looks)


def test_a_hit_counts_once_float32_draws_it_too(model, prompts):
    judge = Recorded([True, False, True, False, True], [False, True, True])
    exact = Drawing(freeze(model), Sampler("ddim", 3), judge)
    images, ids, hit, score = replace(exact, precision="bfloat16").look(prompts, Candidates())
    assert hit.tolist() == [False, False, True, False, True]
    assert score.tolist() == [20, 11, 21, 13, 22]
    assert [len(look) for look in judge.looks] == [5, 3]
    rows = torch.tensor([0, 2, 4])
    again, _ = exact.draw(prompts.select(rows), Candidates())
    assert torch.equal(judge.looks[1], again)
    assert torch.equal(images[rows], again)
    assert torch.equal(images[[1, 3]], judge.looks[0][[1, 3]])
    assert torch.equal(ids, model.tokenize(prompts.texts))


@pytest.mark.parametrize("fed", ["ids", "texts", "embeddings", "latents"])
def test_what_was_fed_is_drawn_again(model, prompts, fed):
    ids = model.tokenize([*TEXTS[1:], TEXTS[0]])
    given = {
        "ids": Candidates(ids=ids),
        "texts": Candidates(texts=[*TEXTS[1:], TEXTS[0]]),
        "embeddings": Candidates(embeddings=model.token_embeddings.detach()[ids] * 1.1),
        "latents": Candidates(latents=torch.randn(5, *model.latent_shape)),
    }[fed]
    judge = Recorded([False, True, False, True, False], [True, True])
    exact = Drawing(freeze(model), Sampler("ddim", 3), judge)
    images, _, hit, _ = replace(exact, precision="bfloat16").look(prompts, given)
    assert torch.equal(hit.nonzero()[:, 0], torch.tensor([1, 3]))
    whole, _ = exact.draw(prompts, given)
    assert (images[[1, 3]].int() - whole[[1, 3]].int()).abs().max() <= 1  # of two prompts in a batch, not five


def test_float32_looks_once(model, prompts):
    judge = Recorded([True, True, True, True, True])
    Drawing(freeze(model), Sampler("ddim", 2), judge).look(prompts, Candidates())
    assert len(judge.looks) == 1


def test_every_success_of_a_search_holds_in_float32(model, make_model, prompts):
    original, unlearned = freeze(model), freeze(make_model(seed=1))
    exact = Drawing(
        unlearned, Sampler("ddim", 3), lambda images: ((mean := images.float().mean((1, 2, 3))) > 126, mean)
    )
    target = make_target(original, unlearned, prompts, exact.draw(prompts, Candidates())[0], 4, concept="seven")
    drawing = replace(exact, precision="bfloat16")
    found = run_attack(uma, {"inner_steps": 1, "tokens": 1}, target, Budget(3), AttackContext(batch_size=4), drawing)
    rows = (found.step >= 0).nonzero()[:, 0]
    assert len(rows)
    images, _ = exact.draw(prompts.select(rows), Candidates(ids=found.ids[rows]))
    assert exact.seen(images)[0].all()
    assert (images.int() - found.images[rows].int()).abs().max() <= 1


def test_clean_pictures_are_judged_by_the_same_rule(model, prompts):
    judge = Recorded([True, True, False], [False, True], [False, False])
    drawing = Drawing(freeze(model), Sampler("ddim", 2), judge, "bfloat16")
    images, hit = clean_hits(drawing, prompts, 3)
    assert hit.tolist() == [False, True, False, False, False]
    assert images.shape == clean_images(drawing, prompts, 3).shape
