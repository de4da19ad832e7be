"""Inputs other than prompts through the whole graph: pictures of other concepts beside them, witnesses, tables."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch
import torch

from rub import load_suite, plan, run
from rub.api import make_runtime, verify
from rub.audits.base import Rows
from rub.store.artifacts import file_sha256
from rub.tasks.text_to_image.audit import figures_of
from rub.tasks.text_to_image.verdict import conclude

pytestmark = pytest.mark.slow
FED = ("img2img", "inpaint-centre", "inverted-latent", "recall", "shared-soft-prompt")
SMALL = (
    "training.steps=2", "judge.training.epochs=1", "evaluation={prompts: 3, retained: 8, pictures: 12, gallery: 1}",
    "protocol.sampler_steps=2",
)  # fmt: skip
MAIN = "uma: {cap: 1, run: {name: uma, inner_steps: 1}}"
PICTURES = f"""protocol.attacks={{only: {{{MAIN}, img2img: {{cap: 2, run: {{name: img2img, strength: 0.5}}}},
    inpaint-centre: {{cap: 1, run: inpaint-centre}}, inverted-latent: {{cap: 1, run: {{name: inverted-latent,
    refinements: 1}}}}, recall: {{cap: 1, run: {{name: recall, inner_steps: 1}}}}, shared-soft-prompt: {{cap: 1, run:
    {{name: shared-soft-prompt, inner_steps: 1, batch: 2}}}}}}}}"""


@dataclass(frozen=True)
class Ran:
    """Where the files of a run are, and what it gave."""

    store: Path
    out: Path
    result: object


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A suite of one method and all attacks that feed pictures, with a judge that sees the concept in some."""
    folder = tmp_path_factory.mktemp("inputs")
    suite = load_suite("quick", task="text-to-image", methods=["uce"], overrides=[*SMALL, PICTURES])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rub.judges.base.Argmax.hits", sees)
        result = run(suite, store=folder / "store", out=folder / "out", runtime=make_runtime(device="cpu"))
    return Ran(folder / "store", folder / "out", result)


def sees(judge, look, label):
    """See the concept in a fourth of the pictures, by a rule that a picture alone decides."""
    return look.scores[:, 5] > look.scores[:, 8]


def rows_of(ran, metric, attack):
    return {row.method: row for row in ran.result.records if (row.metric, row.attack) == (metric, attack)}


def test_every_row_has_its_null(ran):
    assert ran.result.failures == ()
    for attack in FED:
        own, other = rows_of(ran, "asr_post", attack), rows_of(ran, "asr_other", attack)
        excess, beyond = rows_of(ran, "picture_excess", attack), rows_of(ran, "residual_knowledge", attack)
        assert set(own) == set(other) == set(excess) == {"original", "retrain", "sham", "random_init", "uce"}
        for method, row in own.items():
            assert excess[method].value == pytest.approx(row.value - other[method].value)
            assert beyond[method].value == pytest.approx(row.value - own["retrain"].value)
    assert not rows_of(ran, "asr_other", "uma")


def test_the_null_is_the_same_attack_with_other_pictures(ran):
    suite = load_suite("quick", task="text-to-image", methods=["uce"], overrides=[*SMALL, PICTURES])
    ((_, graph),) = plan(suite, make_runtime(device="cpu"))
    measured = next(s for s in graph.stages if s.kind == "measure-attack" and "uce, seed 0: img2img" in s.label)
    own, other = measured.inputs["attack"], measured.inputs["others"]
    assert own.spec == other.spec and own.key != other.key
    assert {name for name in own.inputs if own.inputs[name].key != other.inputs[name].key} == {"reference"}
    assert other.inputs["reference"].kind == "others"


def test_no_stage_is_added_where_no_picture_is_fed():
    suite = load_suite("quick", task="text-to-image", methods=["uce"])
    ((_, graph),) = plan(suite, make_runtime(device="cpu"))
    assert not any(stage.kind == "others" or "others" in stage.inputs for stage in graph.stages)


def test_the_table_has_own_and_other_side_by_side(ran):
    text = (ran.out / "tables" / "pictures-seven.md").read_text(encoding="utf-8").replace("\\", "")
    assert all(name in text for name in ("own", "other", "over retrain", "[retrain]", "uce"))
    attacks = (ran.out / "tables" / "attacks-seven.md").read_text(encoding="utf-8").replace("\\", "")
    table = [line for line in attacks.splitlines() if line.startswith("|")]
    assert not any("img2img" in line for line in table)
    assert "attacks that feed pictures stand in a table of their own: img2img" in attacks


def test_what_was_fed_can_be_checked_again(ran, monkeypatch):
    monkeypatch.setattr("rub.judges.base.Argmax.hits", sees)
    checks = list(verify(ran.out, store=ran.store, runtime=make_runtime(device="cpu")))
    assert {check.witness.attack for check in checks} >= set(FED)
    assert all(not check.reason and not check.broken for check in checks)
    fed = {name for claim in (ran.out / "witnesses").glob("*.json") for name in fed_in(claim)}
    assert fed >= {"pictures", "strength", "holes", "latents", "embeddings"}
    monkeypatch.setattr("rub.judges.base.Argmax.hits", lambda *_: torch.zeros(len(_[1].scores)).bool())
    assert all(check.broken for check in verify(ran.out, store=ran.store, runtime=make_runtime(device="cpu")))


def fed_in(claim):
    return safetensors.torch.load_file(claim.with_suffix(".safetensors"))


@pytest.mark.parametrize(
    ("attack", "change", "said"),
    [
        ("img2img", {"pictures": lambda x: x[:, :, :4]}, "the claim's pictures should be finite numbers of shape"),
        ("img2img", {"pictures": lambda x: x * torch.nan}, "the claim's pictures should be finite numbers of shape"),
        ("img2img", {"pictures": lambda x: None}, "the claim's pictures should be finite numbers of shape"),
        ("img2img", {"strength": lambda x: x + 1}, "the claim's strength should be from 0 to 1"),
        ("inverted-latent", {"latents": lambda x: x + torch.inf}, "the claim's latents should be finite numbers"),
        ("inpaint-centre", {"holes": lambda x: x[:, :2]}, "the claim's holes should be finite numbers of shape"),
    ],
)
def test_a_claim_that_cannot_be_fed_is_one_line(ran, tmp_path, attack, change, said):
    found = [(claim, fed_in(claim)) for claim in sorted((ran.out / "witnesses").glob(f"*{attack}*.json"))]
    claim, tensors = next(one for one in found if set(change) <= set(one[1]))  # else all prompts needed no attack
    shutil.copy(claim, tmp_path / claim.name)
    file = tmp_path / f"{claim.stem}.safetensors"
    for name, altered in change.items():
        tensors[name] = altered(tensors[name])
    kept = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
    safetensors.torch.save_file(kept, file)
    facts = json.loads((tmp_path / claim.name).read_text(encoding="utf-8"))
    facts["tensors_sha256"] = file_sha256(file)
    (tmp_path / claim.name).write_text(json.dumps(facts), encoding="utf-8")
    (check,) = verify(tmp_path, store=ran.store, runtime=make_runtime(device="cpu"))
    assert said in check.reason and "\n" not in check.reason


def test_an_audit_reads_every_attack_at_its_own_cap(ran):
    """From the rows of a run, as an audit would have them: one unlearned model, and the retrained one."""
    names = {"uce": "unlearned", "retrain": "retrained", "original": "original"}
    rows = [row.model_copy(update={"method": names[row.method]}) for row in ran.result.records if row.method in names]
    found = figures_of(Rows(rows, "1", "uma"))
    assert set(found.pictures) == set(FED) and found.others is None
    for attack, one in found.pictures.items():
        assert one.attacked.value == rows_of(ran, "asr_post", attack)["uce"].value
        assert one.others.value == rows_of(ran, "asr_other", attack)["uce"].value
        assert one.retrained.value == rows_of(ran, "asr_post", attack)["retrain"].value
    assert conclude(found, "1").name in ("cannot tell", "recovered", "no residual found at this budget")
