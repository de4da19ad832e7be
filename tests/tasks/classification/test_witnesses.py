"""Witnesses of classification hold when they are classified again, forged ones do not, and nothing in one can run."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from rub.store.artifacts import file_sha256
from rub.tasks.classification.witnesses import gap


@pytest.fixture(scope="module")
def folder(tiny_out):
    return tiny_out / "witnesses"


@pytest.fixture
def forged(folder, tmp_path):
    """Copy one claim about ft, change it, and make its hash fit again."""

    def forge(change):
        path = next(path for path in sorted(folder.glob("*-ft-0-uma-32*.json")))
        claim, tensors = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
        change(claim, tensors)
        save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / "forged.safetensors")
        claim["tensors_sha256"] = file_sha256(tmp_path / "forged.safetensors")
        (tmp_path / "forged.json").write_text(json.dumps(claim))
        return tmp_path

    return forge


@pytest.mark.slow
def test_witnesses_hold(tiny, tiny_out, rub):
    said = rub("verify", tiny_out, "--store", tiny.store, "--device", "cpu")
    assert said.code == 0, said.out
    claims = [json.loads(path.read_text()) for path in (tiny_out / "witnesses").glob("*.json")]
    held = sum(len(claim["samples"]) for claim in claims)
    assert held > 10
    assert f"{held} witnesses held, 0 not held, 0 files could not be checked" in said.out
    assert {claim["method"] for claim in claims} >= {"original", "ft"}
    for claim in claims:
        assert all(sample["value"] <= 0 for sample in claim["samples"])


def test_they_hold_for_given_weights_and_embedded_data(tiny, folder, rub, tmp_path):
    path = next(iter(sorted(folder.glob("*-ft-0-uma-32*.json"))))
    claim = json.loads(path.read_text())["models"]["unlearned"]
    shutil.copy(path, tmp_path)
    shutil.copy(path.with_suffix(".safetensors"), tmp_path)
    weights = shutil.copy(tiny.store / claim["kind"] / claim["key"] / claim["file"], tmp_path / "mine.safetensors")
    assert rub("verify", tmp_path, "--unlearned", weights, "--store", tmp_path / "none").code == 0
    (tmp_path / "other.safetensors").write_bytes((tmp_path / "mine.safetensors").read_bytes()[:-1] + b"\0")
    said = rub("verify", tmp_path, "--unlearned", tmp_path / "other.safetensors", "--store", tmp_path / "none")
    assert (said.code, "other weights than the unlearned model" in said.out) == (3, True)
    assert rub("verify", tmp_path, "--store", tmp_path / "none").code == 3


def far(claim, tensors):
    tensors["delta"] = tensors["delta"].to(torch.int16)
    tensors["delta"][0, 0, 0, 0] = 33


def off_the_scale(claim, tensors):
    tensors["delta"] = torch.full_like(tensors["delta"], 32)


def nothing_changed(claim, tensors):
    tensors["delta"] = torch.zeros_like(tensors["delta"])


def another_class(claim, tensors):
    tensors["labels"] = (tensors["labels"] + 1) % 10


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (far, "outside the budget 32/255"),
        (off_the_scale, "pixels outside 0 to 255"),
        (another_class, "the data says 0"),
    ],
)
def test_forged_witnesses_do_not_hold(tiny, forged, rub, change, says):
    said = rub("verify", forged(change), "--store", tiny.store)
    assert said.code == 1
    assert says in said.out


def test_clean_images_are_no_witnesses_where_they_are_not_recognised(tiny, forged, rub):
    """The sample table says which images ft does not recognise without a search; their claims fail without delta."""
    place = forged(nothing_changed)
    ids = [sample["id"] for sample in json.loads((place / "forged.json").read_text())["samples"]]
    rows = {
        row["sample_id"]: row["clean"]
        for row in tiny.result.samples
        if (row["method"], row["unlearn_seed"], row["attack"], row["budget"], row["split"])
        == ("ft", 0, "uma", "32/255", "forget")
    }
    wrong = sum(not rows[number] for number in ids)
    said = rub("verify", place, "--store", tiny.store)
    assert f"{len(ids) - wrong} held, {wrong} not held" in said.out


def twice(claim, tensors, count):
    """Say the first sample so often."""
    claim["samples"] = claim["samples"][:1] * count
    tensors.update({name: value[:1].expand(count, *value.shape[1:]) for name, value in tensors.items()})


@pytest.mark.parametrize(
    "budget",
    [
        "9" * 5000 + "/255", "9" * 60 + "/255", "256/255", "-8/255", "8/256", "32/0", "1e3/255", "nan/255", "0x20/255",
        "3 2/255", "32/255\n", "\u0663\u0662/255", "l2:0", "l2:-1", "l2:1e400", "patch:99999", "border:9999",
        "corruption:9", "unbounded", "",
    ],
)  # fmt: skip
def test_budgets_that_are_none_are_one_line(tiny, forged, rub, budget):
    said = rub("verify", forged(lambda claim, _: claim.update(budget=budget)), "--store", tiny.store)
    assert said.code == 3 and "forged: cannot check: " in said.out
    assert "Traceback" not in said.out + said.err and len(said.out) < 600


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda claim, _: claim["settings"]["model"].update(arch="../../x"), "'../../x'"),
        (lambda claim, _: claim["settings"]["model"].update(width=10**9), "less than or equal to 1024"),
        (lambda claim, _: claim["settings"].update(classes=10**9), "how many classes"),
        (lambda claim, _: claim["settings"].update(model=3), "the claim's network"),
        (lambda claim, _: claim["settings"]["model"].update(arch="resnet50", width=1024), "far more than its weights"),
        (lambda claim, _: claim.update(at_most=1e30), "every claim is at most 0"),
        (lambda claim, _: claim.update(samples=[]), "no witness"),
        (lambda claim, _: claim["data"].update(key="0" * 64, spec={"name": "digits", "size": 1024}), "of 1024 px"),
        (lambda claim, _: claim["data"].update(key="0" * 64, spec={"name": "/etc"}), "/etc"),
        (lambda claim, _: claim["samples"][0].update(id=10**9), "has no train image"),
        (lambda claim, _: claim["samples"][0].update(id=True), "not true or false"),
        (lambda claim, _: claim["samples"][0].update(id=str(claim["samples"][0]["id"])), "a valid integer"),
        (lambda claim, _: claim["samples"][0].update(id=float(claim["samples"][0]["id"])), "a valid integer"),
        (lambda claim, _: claim["samples"][0].update(id=-1), "greater than or equal to 0"),
        (lambda claim, _: claim["samples"][0].update(id=1 << 64), "less than 46116"),
        (lambda claim, _: claim["samples"][0].update(value=float("nan")), "a finite number"),
        (lambda claim, _: claim.update(unlearn_seed=-5), "greater than or equal to 0"),
        (lambda claim, _: claim.update(unlearn_seed=1 << 70), "less than 46116"),
        (lambda claim, _: claim.update(unlearn_seed=True), "not true or false"),
        (lambda claim, _: claim.update(task=["classification"]), "a valid string"),
        (lambda claim, _: claim.update(method="m" * 100_000), "at most 300 characters"),
        (lambda claim, _: claim.update(method="f\x1b[2Jt"), "should match pattern"),
        (lambda claim, _: claim.update(method="s\u0430lun"), "should match pattern"),
        (lambda claim, _: claim.update(claim="x" * 100_000), "at most 2000 characters"),
        (lambda claim, _: claim.update(schema_version=99), "less than or equal to 1"),
        (lambda claim, _: claim["models"]["unlearned"].update(kind="../.."), "should match pattern"),
        (lambda claim, _: claim["models"]["unlearned"].update(file="../../x"), "should match pattern"),
        (lambda claim, _: claim["settings"]["model"].update(std=[0.0]), "greater than 0"),
        (lambda claim, _: claim["settings"]["model"].update(std=[float("nan")]), "a finite number"),
        (lambda claim, _: claim["settings"]["model"].update(mean=None), "lacks its normalisation"),
        (lambda claim, _: claim["settings"].update(classes=True), "how many classes"),
        (lambda claim, _: claim["settings"]["model"].update(stem="imagenet"), "another architecture"),
        (lambda claim, _: claim["settings"]["model"].update(arch="hf:/etc"), "lacks its config"),
        (lambda claim, _: claim["settings"]["model"].update(arch="/tmp/x.py:build"), "is code"),
        (lambda claim, tensors: twice(claim, tensors, 2), "a sample counts twice"),
        (lambda claim, tensors: twice(claim, tensors, 100_000), "a sample counts twice"),
        (lambda _, tensors: tensors.update(delta=tensors["delta"].to(torch.complex64)), "should be int8 or int16"),
        (lambda _, tensors: tensors.update(delta=tensors["delta"].bool()), "should be int8 or int16"),
        (lambda _, tensors: tensors.update(delta=tensors["delta"].to(torch.uint16)), "should be int8 or int16"),
        (lambda _, tensors: tensors.update(labels=tensors["labels"].float()), "int64"),
        (lambda _, tensors: tensors.update(labels=tensors["labels"].bool()), "int64"),
        (lambda claim, _: claim["samples"][0].update(sha256="0" * 64), "another SHA-256"),
        (lambda _, tensors: tensors.pop("labels"), "do not fit"),
        (lambda _, tensors: tensors.update(delta=tensors["delta"].float()), "should be int8 or int16"),
        (lambda _, tensors: tensors.update(delta=tensors["delta"].long() + 65536), "should be int8 or int16"),
        (lambda claim, _: claim["settings"]["model"].update(mean=[0.236], std=[0.433]), "another mean"),
        (lambda claim, _: claim["models"]["unlearned"].update(key="../../../etc/passwd"), "no witness"),
    ],
)
def test_hostile_claims_cannot_be_checked_and_say_why(tiny, forged, rub, change, says):
    said = rub("verify", forged(change), "--store", tiny.store)
    assert said.code == 3, said
    assert says in said.out
    assert "Traceback" not in said.out + said.err


def test_the_gap_is_worked_out_by_hand():
    logits = torch.tensor([[2.0, 5.0, 1.0], [2.0, 5.0, 1.0]])
    assert gap(logits, torch.tensor([1, 0])).tolist() == [-3.0, 3.0]


def test_a_claim_about_weights_that_no_record_names_cannot_be_checked(tiny, tiny_out, rub, tmp_path):
    """The original's probes, passed off as those of ft: they hold, but nothing in the folder is about them."""
    from rub.store.manifest import seal_folder

    copy = shutil.copytree(tiny_out, tmp_path / "copy")
    name = "classification-{}-0-uma-32-255-forget"
    claim = json.loads((copy / "witnesses" / f"{name.format('original')}.json").read_text()) | {"method": "ft"}
    (copy / "witnesses" / f"{name.format('ft')}.json").write_text(json.dumps(claim))
    probes = copy / "witnesses" / f"{name.format('original')}.safetensors"
    shutil.copy(probes, copy / "witnesses" / f"{name.format('ft')}.safetensors")
    seal_folder(copy, {})
    said = rub("verify", copy, "--store", tiny.store)
    assert said.code == 1
    assert "no record of this folder is about its method" in said.out
