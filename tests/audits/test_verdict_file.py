"""The verdict on paper: what it says, that it is sealed, and that another machine can check it with the files alone."""

import json
import re
import shutil
from pathlib import Path

import pytest

import rub as api
from rub.store.artifacts import file_sha256
from rub.store.manifest import changed_files

pytestmark = pytest.mark.slow
ZOO = Path(api.__file__).parent / "zoo" / "models" / "digits" / "resnet10-w4"
ROLES = {"original": "original", "unlearned": "sham", "retrained": "retrain"}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    place = tmp_path_factory.mktemp("audit")
    api.audit(
        "classification", **{role: str(ZOO / row / "0") for role, row in ROLES.items()}, protocol="rub-quick-2",
        samples=64, store=place / "store", out=place / "out", command="rub audit",
    )  # fmt: skip
    return place / "out"


def test_it_says_what_was_found_of_which_models_and_what_it_does_not_say(out):
    told = json.loads((out / "verdict.json").read_text(encoding="utf-8"))
    assert told["verdict"] == "hidden"
    assert told["samples"] == 64
    assert told["forgotten"]["classes"] == [0]
    assert any("still in the weights" in sentence for sentence in told["why"])
    assert told["figures"]["accuracy"]["unlearned"] > 0.9
    for role, row in ROLES.items():
        files = told["models"][role]["checkpoint_sha256"]
        assert file_sha256(ZOO / row / "0" / "model.safetensors") in files
        assert re.fullmatch("[0-9a-f]{64}", told["models"][role]["weights_sha256"])
    assert len(told["does_not_say"]) > 2
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", told["date"])
    page = (out / "verdict.html").read_text(encoding="utf-8")
    for said in ("Verdict: hidden", told["why"][0], told["does_not_say"][0], "N = 64", "sealed", told["verify"]):
        assert said.replace("'", "&#39;") in page
    assert "<script" not in page
    assert str(out.parent) not in page + json.dumps(told)


def test_it_is_sealed(out, tmp_path):
    assert changed_files(out) == []
    copy = Path(shutil.copytree(out, tmp_path / "copy"))
    for name in ("verdict.json", "verdict.html"):
        place = copy / name
        place.write_text(place.read_text(encoding="utf-8").replace("hidden", "no residual found"), encoding="utf-8")
        assert changed_files(copy) == [f"{name}: changed since the folder was sealed"]
        shutil.copyfile(out / name, place)


def test_a_verdict_that_its_records_do_not_give_is_refused(out, tmp_path, rub):
    from rub.reports.folders import contradictions_in
    from rub.store.manifest import read_manifest, seal_folder

    assert list(contradictions_in(out)) == []
    copy = Path(shutil.copytree(out, tmp_path / "copy"))
    place, facts = copy / "verdict.json", read_manifest(out)
    for text, says in (
        (place.read_text(encoding="utf-8").replace('"hidden"', '"no residual found"'), "its records give hidden"),
        ("[]", "should be a JSON object with a verdict"),
    ):
        place.write_text(text, encoding="utf-8")
        seal_folder(copy, {name: facts[name] for name in ("command", "code_version", "data")})
        [said] = contradictions_in(copy)
        assert says in said
        assert rub("verify", copy, "--store", tmp_path / "none").code == 1


def test_another_machine_verifies_it_with_the_files_alone(out, tmp_path, rub):
    copy = Path(shutil.copytree(out, tmp_path / "elsewhere"))
    files = {role: ZOO / row / "0" / "model.safetensors" for role, row in ROLES.items()}
    given = [word for role, path in files.items() for word in (f"--{role}", path)]
    said = rub("verify", copy, "--store", tmp_path / "none", *given)
    assert said.code == 0, said.out
    assert " 0 not held, 0 files could not be checked" in said.out
    said = rub("verify", copy, "--store", tmp_path / "none", "--unlearned", files["retrained"])
    assert said.code == 3
    assert "other weights than the unlearned model of the claim" in said.out
