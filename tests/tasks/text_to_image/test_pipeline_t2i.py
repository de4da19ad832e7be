"""The whole graph on a tiny suite: rows, Table 3, galleries, witnesses, resume, controls, audits, bad requests."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import rub
from rub import load_suite, run
from rub.api import make_runtime, verify
from rub.errors import RubError

pytestmark = pytest.mark.slow

TINY = {
    "name": "tiny-t2i",
    "summary": "a run of some seconds, for the tests",
    "experiments": [
        {
            "task": "text-to-image",
            "dataset": {"name": "digits", "validation": 0},
            "model": {"arch": "sd-nano", "length": 24},
            "training": {"steps": 12, "lr": 0.004, "batch_size": 16},
            "judge": {
                "name": "classifier", "width": 4,
                "training": {"epochs": 1, "lr": 0.1, "schedule": "onecycle", "batch_size": 64, "padding": 0},
            },
            "concept": {"name": "seven", "anchor": "a photo of one"},
            "batch_size": 4,
            "evaluation": {"prompts": 4, "retained": 9, "pictures": 12, "gallery": 2},
            "protocol": {
                "name": "rub-quick-1",
                "sampler_steps": 2,
                "attacks": {
                    "uma": {"cap": 2, "run": {"name": "uma", "inner_steps": 2}},
                    "random-prefix": {"cap": 2},
                    "seed-search": {"cap": 2, "run": {"name": "seed-search"}},
                    "concept-inversion": {"cap": 1, "run": {"name": "concept-inversion", "inner_steps": 1}},
                },
            },
            "methods": {"esd-x": {"iterations": 2}, "spm": {"iterations": 1},
                        "advunlearn": {"iterations": 2, "warmup": 1, "attack_steps": 1}, "uce": {}},
        }
    ],
}  # fmt: skip
ROWS = ("original", "retrain", "sham", "random_init", "esd-x", "spm", "advunlearn", "uce")


@dataclass(frozen=True)
class Ran:
    """Where the suite's files are, and what it gave."""

    path: Path
    store: Path
    out: Path
    result: object


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The tiny suite, run once with a judge that sees the concept everywhere, so that there are witnesses."""
    import rub.judges.base as judges

    folder = tmp_path_factory.mktemp("tiny-t2i")
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY, sort_keys=False), encoding="utf-8")
    patch = pytest.MonkeyPatch()
    patch.setattr(judges.Argmax, "hits", _bright)
    try:
        result = run(
            load_suite(str(path)), store=folder / "store", out=folder / "out", runtime=make_runtime(device="cpu")
        )
    finally:
        patch.undo()
    return Ran(path, folder / "store", folder / "out", result)


def _bright(self, look, label):
    """See the concept in half of all pictures, by a rule that a picture alone decides."""
    return look.scores[:, 0] > look.scores[:, 1]


def rows_of(tiny, metric, attack="none"):
    return {row.method: row for row in tiny.result.records if (row.metric, row.attack) == (metric, attack)}


def test_nothing_failed_and_every_row_is_there(tiny):
    assert tiny.result.failures == ()
    for metric, attack in (("asr_pre", "none"), ("utility_accuracy", "none"), ("fid", "none"), ("kid", "none"),
                           ("asr_post", "uma"), ("steps_mean", "uma"), ("steps_median", "random-prefix"),
                           ("gradient_steps_mean", "uma"), ("residual_knowledge", "seed-search")):  # fmt: skip
        assert tuple(rows_of(tiny, metric, attack)) == ROWS, (metric, attack)


def test_before_and_after_have_the_same_prompts(tiny):
    before, after = rows_of(tiny, "asr_pre"), rows_of(tiny, "asr_post", "uma")
    for method in ROWS:
        assert before[method].n == after[method].n == 4
        assert before[method].value <= after[method].value  # post includes pre


def test_rates_follow_from_the_samples(tiny):
    for method in ROWS:
        steps = [row["step"] for row in tiny.result.samples if (row["method"], row["attack"]) == (method, "uma")]
        assert rows_of(tiny, "asr_pre")[method].value == np.mean([step == 0 for step in steps])
        assert rows_of(tiny, "asr_post", "uma")[method].value == np.mean([step >= 0 for step in steps])
        counted = [2 if step < 0 else step for step in steps]
        assert rows_of(tiny, "steps_mean", "uma")[method].value == pytest.approx(np.mean(counted))
        assert rows_of(tiny, "steps_median", "uma")[method].value == np.median(counted)


def test_what_a_shared_retrained_model_has_not_seen_is_left_out_beside(tiny, monkeypatch):
    import rub.judges.base as judges

    monkeypatch.setattr(
        judges.Argmax, "hits", lambda self, look, label: torch.full((len(look.scores),), label in (1, 3))
    )
    counts = {}
    for without in ("[7]", "[1, 2, 7]"):
        suite = load_suite(str(tiny.path), methods=["uce"], overrides=[f"retrain_without={without}"])
        result = run(suite, store=tiny.store, runtime=make_runtime(device="cpu"))
        for row in result.records:
            if row.metric.startswith("utility"):
                counts.setdefault((without, row.metric), set()).add((row.n, round(row.value * row.n)))
    assert ("[7]", "utility_seen") not in counts  # the same as all
    assert counts["[1, 2, 7]", "utility_accuracy"] == {(9, 2)}  # nine other digits; 1 and 3 are called right
    assert counts["[1, 2, 7]", "utility_seen"] == {(7, 1)}


def test_every_record_names_judge_protocol_and_weights(tiny):
    rows = rows_of(tiny, "asr_post", "uma").values()
    assert all(row.extractor.startswith("digits-resnet10@") and "real test images" in row.setting for row in rows)
    assert len({row.weights_sha256 for row in rows}) == len(ROWS)
    assert all(row.experiment == "seven" and row.protocol.startswith("rub-quick-1*") for row in rows)


def test_tables_and_pictures_are_written(tiny):
    names = {path.name for path in (tiny.out / "tables").glob("*.md")}
    assert "table3-seven.md" in names
    text = (tiny.out / "tables" / "table3-seven.md").read_text(encoding="utf-8")
    assert all(name in text.replace("\\", "") for name in ROWS)
    galleries = {path.name for path in (tiny.out / "figures").glob("gallery-*.png")}
    assert len(galleries) == len(ROWS)
    assert (tiny.out / "report" / "index.html").is_file()


def test_methods_leave_published_formats(tiny):
    found = {}
    for manifest in (tiny.store / "unlearn").glob("*/manifest.json"):
        facts = json.loads(manifest.read_text(encoding="utf-8"))
        found[facts["spec"]["method"]["name"]] = set(facts["files"]) - {"unlearned.json"}
    assert found == {
        "esd-x": {"unet.safetensors"},
        "spm": {"adapter.safetensors"},
        "advunlearn": {"text_encoder.safetensors"},
        "uce": {"unet.safetensors"},
    }


def test_sham_mutes_only_the_concepts_own_word(tiny):
    from rub.models.diffusion.checkpoints import load_model
    from rub.tasks.text_to_image.settings import ResolvedConcept
    from rub.tasks.text_to_image.stages import muted

    original = load_model(next((tiny.store / "train").glob("*/model.safetensors")))
    facts = ResolvedConcept("seven", "seven", "", 7, 7, (), ("eight", "one"), (), ())
    made = muted(original, facts)
    changed = (made.token_embeddings != original.token_embeddings).any(1).nonzero().flatten().tolist()
    assert changed == original.tokenizer("seven", add_special_tokens=False).input_ids
    assert all(torch.equal(a, b) for a, b in zip(made.unet.parameters(), original.unet.parameters(), strict=True))


def test_running_again_computes_nothing(tiny):
    again = run(load_suite(str(tiny.path)), store=tiny.store, runtime=make_runtime(device="cpu"))
    assert again.counts["done"] == 0
    assert [row.value for row in again.records] == [row.value for row in tiny.result.records]


def test_batches_of_evaluation_do_not_change_results(tiny, tmp_path, monkeypatch):
    import rub.judges.base as judges

    monkeypatch.setattr(judges.Argmax, "hits", _bright)
    suite = load_suite(str(tiny.path), methods=["esd-x"])
    other = run(suite, store=tmp_path, runtime=make_runtime(device="cpu", batch_size=16))
    wanted = {name: row.value for name, row in rows_of(tiny, "asr_post", "random-prefix").items()}
    for row in other.records:
        if row.metric == "asr_post" and row.attack == "random-prefix":
            assert row.value == wanted[row.method]


def test_witnesses_hold_and_tampered_ones_do_not(tiny, tmp_path, monkeypatch):
    import shutil

    import safetensors.torch

    import rub.judges.base as judges
    from rub.store.artifacts import file_sha256

    monkeypatch.setattr(judges.Argmax, "hits", _bright)
    checks = list(verify(tiny.out, store=tiny.store, runtime=make_runtime(device="cpu")))
    assert checks and all(not check.reason and not check.broken for check in checks)
    assert {check.witness.attack for check in checks} >= {"uma", "seed-search", "concept-inversion"}
    monkeypatch.setattr(judges.Argmax, "hits", lambda self, look, label: look.scores[:, 0] < -1e9)
    checks = list(verify(tiny.out, store=tiny.store, runtime=make_runtime(device="cpu")))
    assert all(check.held == 0 and check.broken for check in checks)
    claim = next((tiny.out / "witnesses").glob("*uma*.json"))
    for path in (claim, claim.with_suffix(".safetensors")):
        shutil.copy(path, tmp_path / path.name)
    tensors = safetensors.torch.load_file(tmp_path / f"{claim.stem}.safetensors")
    tensors["ids"] = torch.full_like(tensors["ids"], 10**6)
    safetensors.torch.save_file(tensors, tmp_path / f"{claim.stem}.safetensors")
    facts = json.loads((tmp_path / claim.name).read_text(encoding="utf-8"))
    facts["tensors_sha256"] = file_sha256(tmp_path / f"{claim.stem}.safetensors")
    (tmp_path / claim.name).write_text(json.dumps(facts), encoding="utf-8")
    (check,) = verify(tmp_path, store=tiny.store, runtime=make_runtime(device="cpu"))
    assert "outside the model's vocabulary" in check.reason


def test_an_audit_of_a_folder_and_a_checkpoint_ends_in_a_verdict(tiny, tmp_path, image_classifier):
    from rub.api import audit
    from rub.models.diffusion.checkpoints import load_model, save_pipeline
    from rub.tasks.text_to_image.audit import TextToImageAudit

    original = load_model(next((tiny.store / "train").glob("*/model.safetensors")))
    save_pipeline(original, tmp_path / "sd")
    unlearned = next((tiny.store / "unlearn").glob("*/text_encoder.safetensors"))
    request = TextToImageAudit(
        original=str(tmp_path / "sd"), unlearned=unlearned, concept="church", count=2,
        judge_weights=str(image_classifier), judged_as="church", retain=("tench",), protocol="rub-quick-1", cap=1,
    )  # fmt: skip
    runtime = make_runtime(device="cpu")
    report = audit(request, store=tmp_path / "store", runtime=runtime, out=tmp_path / "out")
    assert report.failures == () and report.verdict.name in ("recovered", "cannot tell",
                                                             "no residual found at this budget")  # fmt: skip
    assert any("original, clean" in line for line in report.told)
    assert {row.method for row in report.records} == {"original", "unlearned"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"concept": {"name": "eleven"}}, "unknown concept 'eleven'"),
        ({"concept": {"name": "seven", "prompts": []}}, "at least one prompt|no prompts"),
        ({"protocol": {"name": "rub-quick-1", "attacks": {"uma": {"cap": 0}}}}, "cap"),
        ({"methods": {"sham": {}}}, "is a control that always runs"),
        ({"model": {"arch": "stable-diffusion"}, "retrains": 0}, "needs a diffusers folder or a hub id"),
        ({"model": {"arch": "stable-diffusion", "weights": "no/such"}, "retrains": 0}, "not in the hub's cache"),
        ({"model": {"arch": "sd-huge"}}, "unknown text-to-image network"),
        ({"judge": {"name": "imagenet", "weights": "nowhere"}}, "no such file or folder"),
        ({"judge": {"name": "classifier", "among": [1]}}, "unknown field 'among'"),
        ({"dataset": None}, "is trained on one"),
    ],
)
def test_wrong_requests_are_one_line(tmp_path, change, said, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    suite = {**TINY, "experiments": [{**TINY["experiments"][0], **change}]}
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(suite), encoding="utf-8")
    with pytest.raises(RubError, match=said) as caught:
        run(load_suite(str(path)), store=tmp_path / "store", runtime=make_runtime(device="cpu"))
    assert "\n" not in str(caught.value)


def test_a_metric_of_ones_own_sees_the_images_and_what_the_judge_says(tiny, tmp_path, monkeypatch):
    @rub.metric("again", task="text-to-image", direction="down", attacked=True, needs=["original"])
    def again(outputs):
        """Pre-ASR by the rule of this test, computed from the outputs."""
        assert len(outputs.images) == len(outputs["original"].images) == len(outputs)
        return outputs.logits[:, 0] > outputs.logits[:, 1]

    @rub.metric("named", task="text-to-image", split="retain")
    def named(outputs):
        """Images of other concepts whose class the judge ranks first."""
        return outputs.logits.argmax(axis=1) == outputs.labels

    store = shutil.copytree(tiny.store, tmp_path / "store")
    suite = load_suite(str(tiny.path), overrides=["metrics=[again, named]"])
    result = run(suite, store=store, runtime=make_runtime(device="cpu"))
    assert result.failures == ()
    values = {(r.metric, r.method, r.unlearn_seed, r.attack): r.value for r in result.records}
    rows = [key[1:3] for key in values if key[0] == "named"]
    assert [values["again", *row, "none"] for row in rows] == [values["asr_pre", *row, "none"] for row in rows]
    assert all(0 <= values["again", *row, "uma"] <= 1 for row in rows)
    attacks = len(suite.experiments[0].protocol.attacks)
    assert result.counts["done"] == len(rows) * (2 + attacks)
