"""Rows of autoencoders and text-to-image models attacked again: a lowered rate is found, other models are noticed."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import yaml

import rub.judges.base as judges
from rub import load_suite, run
from rub.api import make_runtime, report
from rub.config.suite import protocol_kind, protocol_of
from rub.errors import RubError
from rub.leaderboard.submit import SIGNIFICANT, attacked_again, power
from rub.registry import load_target, task_of
from rub.reports.folders import protocols_in, read_folder
from rub.reports.lineage import read_stages
from rub.reports.samples import CELL
from rub.store.artifacts import Store, file_sha256, seal
from rub.tasks.inpainting.reattack import budgets_before
from rub.witness.claims import Sources
from rub.witness.reattack import ReattackRequest
from rub.zoo.publish import publish

pytestmark = pytest.mark.slow

JUDGE = {"epochs": 1, "lr": 0.1, "schedule": "onecycle", "batch_size": 64, "padding": 0}
INPAINTING = {
    "task": "inpainting",
    "dataset": {"name": "digits", "size": 16, "validation": 0},
    "model": {"arch": "mae-mini", "patch_size": 4, "mask_ratio": 0.5},
    "training": {"epochs": 4, "lr": 0.004, "batch_size": 64, "padding": 0},
    "judge": {"arch": "resnet10", "stem": "half", "width": 4, "training": JUDGE},
    "forget": {"classes": [0, 1]},
    "retrains": 0,
    "evaluation": {"samples": 24, "gallery": 0},
    "protocol": {
        "name": "rub-paper-2",
        "is_splits": 2,
        "recovered_below": 0.0007,
        "attacks": {
            "only": {
                "uma": {
                    "runs": [{"name": "uma", "steps": 10, "adam_steps": 5}],
                    "budgets": [64, 128, "free"],
                    "splits": ["forget"],
                    "warm_start": True,
                }
            }
        },
    },
    "methods": {"max-loss": {"epochs": 1}},
}
TEXT_TO_IMAGE = {
    "task": "text-to-image",
    "dataset": {"name": "digits", "validation": 0},
    "model": {"arch": "sd-nano", "length": 24},
    "training": {"steps": 4, "lr": 0.004, "batch_size": 16},
    "judge": {"name": "classifier", "width": 4, "training": JUDGE},
    "concept": {"name": "seven", "anchor": "a photo of one", "tokens": 2},
    "batch_size": 4,
    "retrains": 0,
    "evaluation": {"prompts": 24, "retained": 4, "pictures": 8, "gallery": 0},
    "protocol": {
        "name": "rub-quick-1",
        "sampler_steps": 2,
        "main": "seed-search",
        "attacks": {
            "only": {
                "seed-search": {"cap": 8, "run": {"name": "seed-search"}},
                "uma": {"cap": 1, "run": {"name": "uma", "inner_steps": 1}},
            }
        },
    },
    "methods": {"uce": {}},
}
METHODS = {"classification": "ft", "inpainting": "max-loss", "text-to-image": "uce"}
RATES = {"classification": "ua", "inpainting": "recovered", "text-to-image": "asr_post"}


@dataclass(frozen=True)
class Ran:
    """A finished run: its task, its store and its result folder."""

    task: str
    store: Path
    out: Path


@pytest.fixture(scope="module", autouse=True)
def _judge_of_noise():
    """A judge that sees the concept in about half of all pictures, by a rule that a picture alone decides."""
    patch = pytest.MonkeyPatch()
    patch.setattr(judges.Argmax, "hits", lambda self, look, label: look.scores[:, 0] < look.scores[:, 1])
    yield
    patch.undo()


def finished(experiment, folder):
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump({"name": "again", "experiments": [experiment]}, sort_keys=False), encoding="utf-8")
    runtime, where = make_runtime(device="cpu"), {"store": folder / "store", "out": folder / "out"}
    assert not run(load_suite(str(path)), runtime=runtime, command="rub run suite.yaml", **where).failures
    return Ran(experiment["task"], folder / "store", folder / "out")


@pytest.fixture(scope="module")
def inpainting(tmp_path_factory):
    return finished(INPAINTING, tmp_path_factory.mktemp("inpainting"))


@pytest.fixture(scope="module")
def text_to_image(tmp_path_factory):
    return finished(TEXT_TO_IMAGE, tmp_path_factory.mktemp("text-to-image"))


@pytest.fixture(params=["inpainting", "text_to_image"])
def ran(request):
    return request.getfixturevalue(request.param)


def changed_store(ran, tmp_path, *, kind, role, edit):
    """A copy of the store in which the files of one stage of the method's main search are others, sealed again."""
    store = Path(shutil.copytree(ran.store, tmp_path / "store"))
    search = json.loads((store / "attack" / asked(ran, Sources()).search / "manifest.json").read_text())
    made = store / kind / search["inputs"][role] / "manifest.json"
    manifest = json.loads(made.read_text())
    edit(made.parent)
    manifest["files"] = {name: file_sha256(made.parent / name) for name in manifest["files"]}
    manifest.pop("seal")
    made.write_text(json.dumps({**manifest, "seal": seal(manifest)}))
    return Store(store)


def asked(ran, sources, attack=None):
    """The request of the method's row after its main attack, or another one, for all of its samples."""
    found = read_folder(ran.out)
    [protocol] = protocols_in(found.suite).values()
    place = (METHODS[ran.task], RATES[ran.task], attack or protocol.main_attack, "forget")
    rows = [row for row in found.records if (row.method, row.metric, row.attack, row.split) == place]
    rows = [row for row in rows if row.budget != "free"]
    own = [
        row
        for row in pyarrow.parquet.read_table(ran.out / "samples.parquet").to_pylist()
        if all(row[name] == getattr(rows[-1], name) for name in CELL)
    ]
    return ReattackRequest(
        record=rows[-1],
        ids=np.array([row["sample_id"] for row in own]),
        clean=np.array([row["clean"] for row in own]),
        probe=own[0]["probe"],
        protocol=protocol,
        seal="seal",
        originals={row.weights_sha256 for row in found.records if row.method == "original"},
        stages=read_stages(ran.out),
        sources=sources,
    )


def test_an_honest_row_passes_at_the_largest_budget_with_a_number(ran):
    [honest] = attacked_again(ran.out, Sources(store=Store(ran.store)))
    assert (honest.task, honest.method, honest.reason, honest.images) == (ran.task, METHODS[ran.task], "", 24)
    assert honest.p >= SIGNIFICANT
    row = asked(ran, Sources()).record
    assert row.budget == {"inpainting": "128/255", "text-to-image": "8"}[ran.task]
    assert honest.claimed == round(row.value * row.n)  # all of its samples are drawn
    assert honest.found >= honest.claimed - 3  # other seeds find about as many


def test_a_rate_that_was_lowered_everywhere_is_found(ran, kinds, tmp_path):
    [(_, place)] = kinds.forged(tmp_path / "f", ran.out, kinds.SILENT[:1], 1)
    read_folder(place)  # nothing in it contradicts it
    [lowered] = attacked_again(place, Sources(store=Store(ran.store)))
    assert lowered.reason == ""
    assert lowered.more >= 7
    assert lowered.p < SIGNIFICANT


def test_without_store_or_zoo_the_reason_says_what_is_wanted(ran, tmp_path):
    for sources in (Sources(), Sources(store=Store(tmp_path / "empty"))):
        [missing] = attacked_again(ran.out, sources)
        assert missing.images == 0
        assert "its search is not in the store; give the store of the run with --store" in missing.reason


def test_other_weights_in_the_store_are_noticed(ran, tmp_path):
    name = {"inpainting": "weights.safetensors", "text-to-image": "model.safetensors"}[ran.task]

    def swap(place):
        with (place / name).open("r+b") as file:  # the last weight of all
            file.seek(-4, 2)
            file.write(b"\0\0\0\0")

    store = changed_store(ran, tmp_path, kind="train", role="original", edit=swap)
    [other] = attacked_again(ran.out, Sources(store=store))
    assert "the store's original model has other weights than the records name" in other.reason


def test_a_model_that_does_otherwise_without_the_attack_is_noticed(ran):
    request = asked(ran, Sources(store=Store(ran.store)))
    reattack = load_target(task_of(ran.task).reattack)
    assert reattack(request).shape == (24,)
    with pytest.raises(RubError, match="its model says otherwise than the folder of 24 of 24 samples"):
        reattack(replace(request, clean=~request.clean))
    with pytest.raises(RubError, match="its sample 99999 is not among those of its search"):
        reattack(replace(request, ids=np.where(request.ids == request.ids[3], 99_999, request.ids)))


def test_a_judge_that_is_gone_or_another_is_the_reason(text_to_image, tmp_path):
    place = Path(shutil.copytree(text_to_image.store, tmp_path / "gone"))
    shutil.rmtree(place / "judge")
    [gone] = attacked_again(text_to_image.out, Sources(store=Store(place)))
    assert "its judge is not in the store" in gone.reason

    def rename(folder):
        facts = json.loads((folder / "judge.json").read_text())
        (folder / "judge.json").write_text(json.dumps({**facts, "name": "stranger"}))

    store = changed_store(text_to_image, tmp_path, kind="judge", role="judge", edit=rename)
    [other] = attacked_again(text_to_image.out, Sources(store=store))
    assert "the store's judge is stranger@" in other.reason


def test_a_concept_has_its_own_number_of_inserted_tokens(text_to_image, monkeypatch):
    import rub.tasks.text_to_image.reattack as module

    specs, search = [], module.search
    monkeypatch.setattr(module, "search", lambda spec, *given: (specs.append(spec), search(spec, *given))[1])
    request = asked(text_to_image, Sources(store=Store(text_to_image.store)), "uma")
    assert module.reattack(request).shape == (24,)
    [spec] = specs
    assert spec["run"]["parameters"]["tokens"] == 2
    assert (spec["cap"], spec["seed"], spec["sampler"]["steps"]) == (1, request.seed, 2)


def test_published_autoencoders_are_attacked_again_and_published_diffusion_models_lack_a_judge(ran, tmp_path):
    publish(ran.out, Store(ran.store), tmp_path / "zoo")
    [found] = attacked_again(ran.out, Sources(zoo=tmp_path / "zoo"))
    if ran.task == "inpainting":
        [stored] = attacked_again(ran.out, Sources(store=Store(ran.store)))
        assert found == stored  # the same images, masks, models and seeds
    else:
        assert "published models come without the judge and the pictures of their run" in found.reason


def test_a_classifiers_search_of_another_norm_starts_from_its_own_smaller_budgets(tiny, tiny_out, monkeypatch):
    import rub.tasks.classification.reattack as module

    budgets, search = [], module.run_attacks
    monkeypatch.setattr(module, "run_attacks", lambda *given: (budgets.append(given[3].name), search(*given))[1])
    request = asked(Ran("classification", tiny.store, tiny_out), Sources(store=Store(tiny.store)))
    changes = {"only": {"uma": {"runs": ["uma"], "budgets": [8, "l2:0.5", "l2:1"], "warm_start": True}}}
    given = {"name": "rub-paper-1", "attacks": changes}
    protocol = protocol_of(given, "classification", protocol_kind("classification"))
    record = request.record.model_copy(update={"budget": "l2:1"})
    assert module.reattack(replace(request, record=record, protocol=protocol)).shape == (8,)
    assert budgets == ["l2:0.5", "l2:1"]
    with pytest.raises(RubError, match=r"its protocol has no budget 32/255: 8/255, l2:0\.5, l2:1"):
        module.reattack(replace(request, protocol=protocol))


def test_what_stops_a_search_is_the_reason_without_a_place_of_this_machine(inpainting, monkeypatch):
    import rub.tasks.inpainting.reattack as module

    def stop(*given):
        raise RuntimeError("out of memory in /home/me/store/weights.safetensors\nat once")

    monkeypatch.setattr(module, "search", stop)
    [stopped] = attacked_again(inpainting.out, Sources(store=Store(inpainting.store)))
    assert stopped.reason == "out of memory in weights.safetensors"


def test_budgets_of_another_protocol_and_those_that_others_start_from():
    given = {"name": "rub-strict-1", "attacks": {"uma": {"budgets": [8, "free", 16, "unbounded"]}}}
    plan = protocol_of(given, "inpainting", protocol_kind("inpainting")).attacks["uma"]
    assert plan.warm_start
    assert budgets_before(plan, "8/255") == (8,)
    assert budgets_before(plan, "unbounded") == ("free", 16, "unbounded")
    with pytest.raises(RubError, match="its protocol has no budget 4/255: 8/255, free"):
        budgets_before(plan, "4/255")


def test_a_folder_that_was_submitted_before_is_the_boards_to_repeat(inpainting, text_to_image, monkeypatch, tmp_path):
    import rub.leaderboard.submit as module

    monkeypatch.setattr(module, "check", lambda folder, sources: [])  # of a protocol that the tests made small
    module.submit(inpainting.out, tmp_path / "theirs", Sources())
    facts = json.loads((tmp_path / "theirs" / "submission.json").read_text())
    place, reason = ("inpainting", "", "max-loss"), facts["reattacked"][0]["reason"]
    assert read_folder(tmp_path / "theirs").reattacked == {place: f"no: {reason}"}
    module.submit(tmp_path / "theirs", tmp_path / "ours", Sources(store=Store(inpainting.store)))
    facts = json.loads((tmp_path / "ours" / "submission.json").read_text())
    assert read_folder(tmp_path / "ours").reattacked == {place: f"{facts['date']} by the board, 24 samples"}
    page, refused = report([tmp_path / "ours", text_to_image.out], tmp_path / "site", ("html",))
    assert not refused
    assert f">{facts['date']} by the board, 24 samples</td>" in page.read_text()
    assert ">no: not submitted</td>" in page.read_text()


def test_the_power_grows_with_the_samples():
    assert [round(power(0.5, images), 2) for images in (6, 10, 25, 50)] == [0, 0.17, 0.99, 1]
