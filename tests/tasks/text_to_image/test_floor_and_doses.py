"""Models of known truth: a class that no model ever saw, and models that saw a share of the concept's pictures."""

import pytest
import torch

from rub import load_suite, plan, run
from rub.api import make_runtime
from rub.data.sources import load_images
from rub.errors import RubError
from rub.metrics.dose import DOSES
from rub.tasks.text_to_image import stages

pytestmark = pytest.mark.slow
SMALL = (
    "training.steps=2", "judge.training.epochs=1", "evaluation={prompts: 2, retained: 8, pictures: 12, gallery: 0}",
    "protocol.sampler_steps=2", "protocol.attacks={uma: {cap: 2, run: {name: uma, inner_steps: 2}}}",
)  # fmt: skip


def suite(*more):
    overrides = [*SMALL, "floor=nine", "doses=[20]", "seeds.doses=1", *more]
    return load_suite("quick", task="text-to-image", methods=["uce"], overrides=overrides)


def ran(tmp_path, *more):
    given = suite(*more)
    return run(given, store=tmp_path / "store", out=tmp_path / "out", runtime=make_runtime(device="cpu"))


def test_no_model_sees_the_floor_and_a_dose_sees_a_share_of_the_concept(monkeypatch, tmp_path):
    dataset, seen = load_images("digits", None), {}

    def noted(model, samples, captions, context, training):
        seen[context.seed] = torch.bincount(samples.labels, minlength=10)
        return model

    monkeypatch.setattr(stages, "fit", noted)
    monkeypatch.setattr("rub.judges.base.Argmax.hits", lambda self, look, label: torch.zeros(len(look.scores)).bool())
    result = ran(tmp_path)
    assert not result.failures
    whole = torch.bincount(dataset.train.labels, minlength=10)
    original, retrained, dose = seen[0], seen[1000], seen[3000]
    kept = torch.tensor([label for label in range(10) if label not in (7, 9)])
    for counts in (original, retrained, dose):
        assert counts[9] == 0 and torch.equal(counts[kept], whole[kept])
    assert (original[7], retrained[7], dose[7]) == (whole[7], 0, round(0.2 * int(whole[7])))

    rows = [row for row in result.records if row.split == "floor"]
    assert {row.method for row in rows} == {"original", "retrain", "dose-20", "sham", "random_init", "uce"}
    assert {(row.metric, row.attack, row.budget, row.value) for row in rows} == {
        ("asr_pre", "uma", "2", 0.0), ("asr_post", "uma", "2", 0.0),
    }  # fmt: skip
    scale = [row for row in result.records if row.method == DOSES]
    assert {row.metric.rpartition("_")[0] for row in scale} == {"asr_pre", "asr_post", "steps_mean"}
    assert {row.split for row in scale} == {"forget"}
    names = {path.name for path in (tmp_path / "out" / "tables").iterdir()}
    assert any(name.startswith("dose") for name in names)


def test_a_suite_without_a_floor_is_what_it_was():
    keys = [
        {stage.key for _, graph in plan(load_suite("quick", task="text-to-image", overrides=more), make_runtime())
         for stage in graph.stages}
        for more in ([], ["floor=null"])
    ]  # fmt: skip
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("floor=seven", "floor = 'seven': is the concept itself"),
        ("floor=ten", "unknown concept 'ten'"),
        ("retrains=0", "the scale begins with the retrained model"),
    ],
)
def test_wrong_requests_are_one_line(tmp_path, change, said):
    with pytest.raises(RubError, match=said):
        raise RubError(ran(tmp_path, change).failures[0])
