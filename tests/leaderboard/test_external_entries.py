"""Published models as an entry: the folder of their audit, what is refused of forged ones, and the files themselves."""

import json

import pytest

from rub.leaderboard.submit import attacked_again, check
from rub.reports.folders import read_folder
from rub.store.artifacts import Store, file_sha256
from rub.store.manifest import changed_files
from rub.witness.claims import Sources
from rub.zoo.lookup import roots

MODELS = roots()[-1] / "digits" / "resnet10-w4"
ROWS = {"original": "original", "unlearned": "ga"}
FILES = {role: MODELS / method / "0" / "model.safetensors" for role, method in ROWS.items()}
PROTOCOL = """
name: theirs-1
summary: as an audit's, and short
attacks:
  uma: {runs: [{name: uma-momentum, divergence: margin, steps: 20}], budgets: [16], splits: [forget], warm_start: true}
eligible: true
radius: {smallest: 1, largest: 32, steps: 4, refine: 4}
relearn: {images: 10, steps: 2, batch_size: 64, lr: 0.01}
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """The folder of an audit of two models that ship, given as files, and its store."""
    from rub import audit
    from rub.api import make_runtime

    folder = tmp_path_factory.mktemp("audited")
    facts = json.loads((MODELS / "original" / "0" / "config.json").read_text())["rub"]["network"]
    network = {name: facts[name] for name in ("arch", "width", "stem", "mean", "std")}
    (folder / "theirs.yaml").write_text(PROTOCOL, encoding="utf-8")
    audit(
        "classification", **FILES, **network, data="digits", forget_classes=[0], samples=10, out=folder / "out",
        protocol=str(folder / "theirs.yaml"), store=folder / "store", runtime=make_runtime(device="cpu"),
    )  # fmt: skip
    return folder


@pytest.fixture
def broken(audited, forge):
    """Forge the folder, and return which rules it breaks."""

    def forged(*edits, **options):
        place = forge(audited / "out", *edits, **options)
        rules = check(place, Sources(store=Store(audited / "store")))
        found = {rule.name: " ".join(rule.problems) for rule in rules if rule.problems}
        assert all("\n" not in line for line in found.values())
        return found

    return forged


def test_a_whole_audit_is_accepted_with_its_files_alone(audited, rub, tmp_path):
    out = tmp_path / "results" / "theirs"
    files = [word for role, path in FILES.items() for word in (f"--{role}", path)]
    said = rub("submit", audited / "out", *files, "--out", out, "--link", "https://example.org/models")
    assert said.code == 0, said.out
    assert said.out.count("kept") == 9
    assert changed_files(out) == []
    facts = json.loads((out / "submission.json").read_text())
    assert (facts["kind"], facts["link"]) == ("external models", "https://example.org/models")
    assert {role: one["checkpoint_sha256"] for role, one in facts["models"].items()} == {
        role: [file_sha256(path)] for role, path in FILES.items()
    }
    [again] = facts["reattacked"]
    assert (again["method"], again["images"], again["more"], again["reason"]) == ("unlearned", 10, 0, "")
    assert (out / "verdict.json").read_bytes() == (audited / "out" / "verdict.json").read_bytes()
    assert rub("verify", out, *files).code == 0
    assert read_folder(out).published == "https://example.org/models"
    assert rub("report", out, "--out", tmp_path / "site", "--workers", 1).code == 0
    [page] = (tmp_path / "site" / "experiments").glob("*.html")
    assert "<dt>published by others</dt><dd>https://example.org/models</dd>" in page.read_text()


def test_other_files_are_not_those_of_the_audit(audited, rub, tmp_path):
    other = MODELS / "ft" / "0" / "model.safetensors"
    said = rub(
        "submit", audited / "out", "--original", FILES["original"], "--unlearned", other, "--out", tmp_path / "sub",
        "--zoo", tmp_path,
    )  # fmt: skip
    assert said.code == 1
    assert "other weights than the unlearned model of the claim (another SHA-256)" in said.out
    [again] = attacked_again(audited / "out", Sources(files={**FILES, "unlearned": other}))
    assert "--original and --unlearned where files were audited" in again.reason


def test_a_lowered_rate_is_found_by_attacking_the_files_again(audited, forge):
    def lowered(folder):
        for row in folder.samples:
            if (row["method"], row["split"]) == ("unlearned", "forget") and not row["clean"]:
                row.update(recovered=False, step=-1)

    [honest] = attacked_again(audited / "out", Sources(files=FILES))
    assert (honest.more, honest.claimed) == (0, honest.found)
    assert honest.found >= 7
    place = forge(audited / "out", lowered, gone)  # a forger would lower the verdict's figures too
    [found] = attacked_again(place, Sources(files=FILES))
    assert found.more == honest.found
    assert found.p < 0.01


def gone(place):
    (place / "verdict.json").unlink()


def verdict(place, **changes):
    path = place / "verdict.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=1), encoding="utf-8")


def checkpoint(place):
    models = json.loads((place / "verdict.json").read_text())["models"]
    models["unlearned"]["checkpoint_sha256"] = ["a" * 64]
    verdict(place, models=models)


def figures(place):
    told = json.loads((place / "verdict.json").read_text())["figures"]
    told["clean"]["value"] += 0.5
    verdict(place, figures=told)


@pytest.mark.parametrize(
    ("files", "rule", "says"),
    [
        (lambda place: verdict(place, verdict="no residual found"), "consistent", "says no residual found; its"),
        (lambda place: verdict(place, why=["all is well"]), "published", "says another why: ['all is well']"),
        (figures, "published", "says another figures"),
        (checkpoint, "published", "names another file of the unlearned model than stages.json"),
        (gone, "published", "verdict.json is missing"),
    ],
)  # fmt: skip
def test_an_edited_verdict_is_refused(broken, files, rule, says):
    assert says in broken(lambda folder: None, files)[rule]


def trained(folder):
    """The unlearned model was made by training here, and not read."""
    number = next(n for n, stage in enumerate(folder.stages) if stage["kind"] == "import" and n > 1)
    folder.stages[number]["kind"] = "unlearn"


def renamed(folder):
    for rows in (folder.records, folder.samples, folder.curves, folder.claims.values()):
        for row in rows:
            if row["method"] == "unlearned":
                row["method"] = "salun"
    for stage in folder.stages:
        if stage["spec"].get("method") == "unlearned":
            stage["spec"]["method"] = "salun"


def bare(folder):
    folder.claims = {name: claim for name, claim in folder.claims.items() if claim["method"] != "unlearned"}


def without(folder):
    for name in ("records", "samples", "curves"):
        setattr(folder, name, [row for row in getattr(folder, name) if row["method"] != "original"])
    folder.claims = {name: claim for name, claim in folder.claims.items() if claim["method"] != "original"}


def other_weights(folder):
    for claim in folder.claims.values():
        if claim["method"] == "unlearned":
            claim["models"]["unlearned"].update(sha256="a" * 64, sources=["a" * 64])


@pytest.mark.parametrize(
    ("edit", "rule", "says"),
    [
        (trained, "published", "unlearned: no stage in stages.json read its weights from a file"),
        (renamed, "published", "the row salun: an audit has original, unlearned, retrained"),
        (bare, "witnesses", "unlearned's inputs were recovered, and left no witnesses"),
        (without, "controls", "no original"),
        (other_weights, "consistent", "no record is about its method, seed, attack, budget and weights"),
    ],
)
def test_forged_folders_are_refused(broken, edit, rule, says):
    assert says in broken(edit)[rule]


def test_a_run_that_is_called_an_audit_is_none(tiny_out, forge):
    def called(folder):
        folder.suite["name"] = "audit"
        for row in (*folder.records, *folder.samples, *folder.curves):
            row["suite"] = "audit"

    place = forge(tiny_out, called, agree=False)
    [rule] = [rule for rule in check(place, Sources()) if rule.name == "published"]
    assert {line.partition(":")[0] for line in rule.problems} == {
        "the row retrain", "the row sham", "the row zero-row", "the row ft", "original", "no row of an unlearned model",
        "verdict.json is missing; give a folder written by rub audit --out",
    }  # fmt: skip


def test_a_folder_that_is_only_sealed_again_is_accepted(broken):
    assert broken(lambda folder: None) == {}
