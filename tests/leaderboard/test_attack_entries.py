"""An attack as an entry: its folder, what is refused of forged ones, and that nothing of the attack is run again."""

import json
import re
import shutil
from pathlib import Path

import pytest

from rub.leaderboard.submit import check
from rub.registry import ATTACKS, scoped
from rub.reports.folders import read_folder
from rub.store.manifest import changed_files
from rub.witness.claims import Sources
from rub.zoo.lookup import roots

ROW = {"method": "ga", "attack": "mine", "budget": "32/255"}
BASE = "zoo/digits/resnet10-w4"
MINE = """
import rub
from rub.tasks.classification.attacks.uma import uma


@rub.attack("mine", task="classification")
def mine(target, images, budget, context, *, steps: int = 12):
    '''Search with cross-entropy.'''
    return uma(target, images, budget, context, divergence="ce", steps=steps)
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """What `rub attack --out` writes of two models that ship."""
    from rub.api import make_runtime
    from rub.registry import load_plugin
    from rub.tasks.classification.attack_result import save_attacks
    from rub.tasks.classification.attack_zoo import attack_models

    folder = tmp_path_factory.mktemp("attacked")
    (folder / "mine.py").write_text(MINE, encoding="utf-8")
    runtime = make_runtime(device="cpu")
    with scoped():
        load_plugin(folder / "mine.py")
        names = [f"{BASE}/ga/0", f"{BASE}/ct/0"]
        found = attack_models(names, ["uma-momentum", "mine"], [16, 32], 12, runtime)
        rows = save_attacks(found, folder / "out", "rub attack", runtime)
    return folder / "out", rows


@pytest.fixture
def broken(attacked, forge):
    """Forge the folder, and return which rules it breaks."""

    def forged(*edits, **options):
        place = forge(attacked[0], *edits, **options)
        rules = {rule.name: " ".join(rule.problems) for rule in check(place, Sources(zoo=roots()[-1])) if rule.problems}
        assert all("\n" not in line for line in rules.values())
        return rules

    return forged


def test_the_command_writes_what_it_prints(rub, tmp_path):
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    out = tmp_path / "out"
    said = rub(
        "attack", f"{BASE}/ga/0", "--plugin", tmp_path / "mine.py", "--budgets", "32", "--images", 10, "--out", out,
        "--device", "cpu",
    )  # fmt: skip
    assert said.code == 0, said.err
    [own] = [row for row in read_folder(out).records if (row.attack, row.metric) == ("mine", "ua")]
    assert f"{100 * own.value:.1f}" in said.out
    assert own.n == 10
    assert json.loads((out / "manifest.json").read_text())["command"].startswith("rub attack zoo/digits/")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "suite.yaml").write_text("name: tiny\n", encoding="utf-8")
    assert rub("attack", f"{BASE}/ga/0", "--out", tmp_path / "other").code == 2


def test_records_witnesses_and_rows_are_the_same_numbers(attacked):
    out, rows = attacked
    found = read_folder(out)
    shown = {claim.row: claim.count for claim in found.claims}
    for row in rows:
        assert row.model.files["model.safetensors"] in {record.weights_sha256 for record in found.records}
        for (attack, level), (share, low, high) in row.shares.items():
            [record] = [
                one for one in found.records
                if (one.method, one.attack, one.budget, one.metric) == (row.model.method, attack, f"{level}/255", "ua")
            ]  # fmt: skip
            assert (record.value, record.n) == (share, 12)
            assert (record.ci_low, record.ci_high) == pytest.approx((low, high))
            claim = f"{row.model.method}, seed 0: {attack} at {level}/255"
            assert shown.get(claim, 0) == round(share * 12)
        assert row.passes["mine"] == sum(
            one.evaluations for one in found.records
            if (one.method, one.attack, one.metric) == (row.model.method, "mine", "ua")
        )  # fmt: skip
    assert sum(shown.values()) > 12


def test_a_whole_folder_is_accepted_without_the_attacks_code(attacked, rub, tmp_path):
    out = tmp_path / "results" / "mine"
    assert "mine" not in {entry.name for entry in ATTACKS.entries("classification")}
    said = rub("submit", attacked[0], "--out", out)
    assert said.code == 0, said.out
    assert said.out.count("kept") == 5
    assert changed_files(out) == []
    facts = json.loads((out / "submission.json").read_text())
    assert facts["kind"] == "attack"
    assert {(one["method"], one["budget"], one["more"]) for one in facts["reattacked"]} == {
        (method, budget, 0) for method in ("ga", "ct") for budget in ("16/255", "32/255")
    }
    assert not list(out.rglob("*.png")) + list(out.rglob("*.html"))
    assert rub("verify", out).code == 0
    assert rub("submit", out, "--out", tmp_path / "again").code == 0


def test_models_that_are_not_in_the_zoo_cannot_be_checked(attacked, tmp_path):
    rules = {rule.name: " ".join(rule.problems) for rule in check(attacked[0], Sources(zoo=tmp_path))}
    assert "no model of this row with its weights" in rules["compared"]
    assert "cannot be checked" in rules["witnesses"]


def of(rows, **given):
    return [row for row in rows if all(row[name] == value for name, value in {**ROW, **given}.items())]


def raised(folder):
    for row in of(folder.samples, method="ct"):
        row.update(recovered=True, step=max(row["step"], 1))


def unshown(folder):
    del folder.claims[next(name for name, claim in folder.claims.items() if of([claim]))]


def fewer(folder):
    """Images that the attack does not recover are left out, everywhere."""
    gone = {row["sample_id"] for row in of(folder.samples, method="ct") if not row["recovered"]}
    gone = set(sorted(gone)[:2])
    folder.samples = [row for row in folder.samples if row["method"] != "ct" or row["sample_id"] not in gone]
    for claim in folder.claims.values():
        if claim["method"] == "ct":
            claim["samples"] = [one for one in claim["samples"] if one["id"] not in gone]
    for stage in folder.stages:
        if stage["spec"]["method"] == "ct":
            stage["spec"]["images"] -= len(gone)


def swapped(folder):
    """The weights of the model beside it."""
    [wanted] = {row["weights_sha256"] for row in folder.records if row["method"] == "ct"}
    for row in folder.records:
        row["weights_sha256"] = wanted
    for claim in folder.claims.values():
        claim["models"]["unlearned"]["sha256"] = wanted
    for stage in folder.stages:
        stage["spec"]["weights"] = wanted


def alone(folder):
    for name in ("records", "samples", "curves"):
        setattr(folder, name, [row for row in getattr(folder, name) if row["attack"] == "mine"])
    folder.claims = {name: claim for name, claim in folder.claims.items() if claim["attack"] == "mine"}


def narrower(folder):
    for name in ("records", "samples", "curves"):
        rows = getattr(folder, name)
        setattr(folder, name, [row for row in rows if (row["attack"], row["budget"]) != ("mine", "16/255")])
    mine = {n for n, claim in folder.claims.items() if (claim["attack"], claim["budget"]) == ("mine", "16/255")}
    folder.claims = {name: claim for name, claim in folder.claims.items() if name not in mine}


def unspent(folder):
    for row in of(folder.records):
        row["evaluations"] = None


def more(folder):
    row = of(folder.records)[0]
    folder.records.append({**row, "metric": "ta", "attack": "none", "budget": "none", "split": "test"})


def another_original(folder):
    for stage in folder.stages:
        stage["spec"]["original"] = "a" * 64


@pytest.mark.parametrize(
    ("edit", "rule", "says"),
    [
        (raised, "witnesses", "12 images are counted as recovered, and"),
        (unshown, "witnesses", "images are counted as recovered, and 0 have a witness"),
        (fewer, "compared", "of other images than rub attack draws"),
        (swapped, "compared", "ga, seed 0: no model of this row with its weights"),
        (alone, "compared", "no row of uma-momentum beside the attack"),
        (narrower, "compared", "mine at other budgets than uma-momentum"),
        (unspent, "compared", "does not say how many images it gave to the network"),
        (more, "compared", "a row of ta"),
        (another_original, "compared", "attacked with another original than the zoo's"),
    ],
)
def test_forged_folders_that_agree_with_themselves_are_refused(broken, edit, rule, says):
    assert says in broken(edit)[rule]


def test_a_folder_that_is_only_sealed_again_is_accepted(broken):
    assert broken(lambda folder: None) == {}


def test_forged_folders_that_contradict_themselves_are_refused(broken):
    def rate(folder):
        for row in of(folder.records, method="ct", metric="ua"):
            row.update(value=1.0, ci_low=0.7575, ci_high=1.0)

    assert "ua of ct, seed 0, on forget, mine at 32/255" in broken(rate, agree=False)["consistent"]

    def twice(folder):
        claim = next(claim for claim in folder.claims.values() if of([claim]))
        claim["samples"].append(claim["samples"][0])

    assert "a sample counts twice" in broken(twice, agree=False)["whole"]


def test_a_second_witness_of_an_image_counts_for_nothing(broken):
    def copied(place):
        path = next(path for path in sorted((place / "witnesses").glob("*-ga-0-mine-32-255-*.json")))
        for one in (path, path.with_suffix(".safetensors")):
            shutil.copyfile(one, one.with_name(f"again{one.suffix}"))

    assert "has two witnesses" in broken(lambda folder: None, copied)["witnesses"]


def test_a_witness_of_another_budget_does_not_hold(broken):
    def closer(folder):
        for rows in (folder.records, folder.samples, folder.curves, folder.claims.values()):
            for row in rows:
                if row["budget"] == "32/255":
                    row["budget"] = "24/255"
        for stage in folder.stages:
            if stage["spec"]["budget"] == "32/255":
                stage["spec"]["budget"] = "24/255"
        for row in folder.samples:
            row["linf"] = min(row["linf"], 16)

    assert "outside the budget 24/255" in broken(closer)["witnesses"]


def test_a_lowered_default_search_is_found_by_running_it_again(attacked, forge, rub, tmp_path):
    def lowered(folder):
        for row in of(folder.samples, attack="uma-momentum"):
            if not row["clean"]:
                row.update(recovered=False, step=-1)

    place = forge(attacked[0], lowered)
    said = rub("submit", place, "--out", tmp_path / "sub")
    assert said.code == 1
    assert "broken  attacked again" in said.out, said.out
    assert "ga, seed 0, at 32/255: of 12 samples 0 are claimed" in said.out
    assert not (tmp_path / "sub").exists()


def test_a_link_is_for_published_models(attacked, refused, tmp_path):
    out = Path(tmp_path / "sub")
    refused("submit", attacked[0], "--out", out, "--link", "javascript:alert(1)", says="should be a web address")
    refused("submit", attacked[0], "--out", out, "--link", "https://a.org/b", says="is of no published models")


def test_attacks_of_several_entries_stand_beside_one_another_with_the_worst_of_all(attacked, forge, rub, tmp_path):
    def theirs(folder):
        for rows in (folder.records, folder.samples, folder.curves, folder.claims.values()):
            for row in rows:
                row["attack"] = "theirs" if row["attack"] == "mine" else row["attack"]
        for stage in folder.stages:
            stage["spec"]["attack"] = "theirs" if stage["spec"]["attack"] == "mine" else stage["spec"]["attack"]
        for row in of(folder.samples, method="ct", attack="theirs"):
            row.update(recovered=True, step=max(row["step"], 1))

    other = forge(attacked[0], theirs)
    said = rub("report", attacked[0], other, "--out", tmp_path / "site", "--format", "html,md", "--workers", 1)
    assert said.code == 0, said.out
    [table] = (tmp_path / "site" / "tables").rglob("attacks-32-*.md")
    header, _, *rows = (line for line in table.read_text().splitlines() if line.startswith("|"))
    assert [cell.strip(" ↓") for cell in header.split("|")[1:-1]] == [
        "method", "uma-momentum before", "uma-momentum UA", "mine UA", "theirs UA", "worst of all",
    ]  # fmt: skip
    worst = {row.split("|")[1].strip(): row.split("|")[-2].strip() for row in rows}
    assert worst == {"ga": "100.0 uma-momentum", "ct": "100.0 theirs"}
    page = (tmp_path / "site" / "index.html").read_text()
    columns = re.findall(r'<th scope="col"><button type="button">([^<]*) ↓</button></th>', page)
    assert columns == ["uma-momentum", "mine", "theirs"] * 2  # at either budget
    assert "rub run suite.yaml" not in next((tmp_path / "site" / "experiments").glob("*.html")).read_text()
