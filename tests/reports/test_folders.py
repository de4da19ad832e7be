"""Result folders of anyone: sealed, read without trust, merged into one site; what is changed or hostile is refused."""

import json
import pickle
import random
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from rub.errors import RubError
from rub.reports.folders import copy_gallery, read_folder
from rub.reports.pages import merged
from rub.reports.writing import write_report, write_reports
from rub.store import manifest as sealing
from rub.store.records import read_records, write_records


@pytest.fixture
def copied(tiny_out, tmp_path):
    return Path(shutil.copytree(tiny_out, tmp_path / "copied"))


def resealed(folder):
    sealing.seal_folder(folder, {"command": "rub run tiny", "code_version": "x"})
    return folder


def made(folder, records, suite=None, curves=()):
    """Write a result folder from records alone."""
    write_records(records, {}, folder)
    (folder / "curves.json").write_text(json.dumps(list(curves)))
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite or {"name": "demo", "experiments": []}))
    return resealed(folder)


# The seal.


def test_a_run_is_sealed(tiny_out):
    assert sealing.changed_files(tiny_out) == []
    names = set(sealing.read_manifest(tiny_out)["files"])
    assert {"records.json", "records.parquet", "suite.yaml", "report/index.html"} <= names
    assert any(name.startswith("witnesses/") for name in names)
    assert read_folder(tiny_out).command.startswith("rub run")


@pytest.mark.slow
def test_200_corruptions_of_single_bytes_are_all_found(copied):
    files = sorted(path for path in copied.rglob("*") if path.is_file())
    draw = random.Random(0)
    found = 0
    for _ in range(200):
        path = draw.choice(files)
        before = path.read_bytes()
        place = draw.randrange(len(before))
        flipped = bytearray(before)
        flipped[place] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        try:
            found += bool(sealing.changed_files(copied))
        except RubError as error:
            found += path.name == "manifest.json" and "\n" not in str(error)
        path.write_bytes(before)
    assert found == 200
    assert sealing.changed_files(copied) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["witnesses", "tables", "samples.parquet", "manifest.json"])
def test_every_command_says_which_file_was_changed(copied, rub, refused, tiny, tmp_path, name):
    path = copied / name
    path = next(iter(sorted(path.iterdir()))) if path.is_dir() else path
    path.write_bytes(path.read_bytes().replace(b"a", b"b", 1))
    said = rub("verify", copied, "--store", tiny.store)
    assert said.code == 1
    assert f"{path.name}: changed since" in said.out
    refused("report", copied, "--out", tmp_path / "site", says=f"{path.name}: changed since")
    refused("export", copied, "--method", "ft", says=f"{path.name}: changed since")
    assert rub("submit", copied, "--out", tmp_path / "sub").code == 1
    assert not (tmp_path / "sub").exists()
    assert not (tmp_path / "site").exists()


def test_missing_added_and_linked_files_are_found(copied, tmp_path):
    (copied / "tables" / "new.md").write_text("new")
    (copied / "curves.json").unlink()
    (copied / "suite.yaml").rename(tmp_path / "elsewhere.yaml")
    (copied / "suite.yaml").symlink_to(tmp_path / "elsewhere.yaml")
    (copied / "notes-of-the-user.txt").write_text("is nobody's business")
    assert sealing.changed_files(copied) == [
        "curves.json: missing", "suite.yaml: a link", "tables/new.md: not in the manifest",
    ]  # fmt: skip


def test_a_space_more_in_the_manifest_is_found(copied):
    path = copied / "manifest.json"
    path.write_text(path.read_text().replace("{\n", "{\n ", 1))
    with pytest.raises(RubError, match="changed since it was sealed"):
        sealing.changed_files(copied)


# Folders that are no results, or of another time.


def test_folders_that_are_no_results_are_refused(refused, tmp_path):
    refused("report", tmp_path / "nowhere", "--out", tmp_path / "site", says="no such folder")
    (tmp_path / "empty").mkdir()
    refused("report", tmp_path / "empty", "--out", tmp_path / "site", says="no records here")
    assert not (tmp_path / "site").exists()


def test_no_manifest_and_a_newer_schema_are_refused(copied, refused, tmp_path):
    rows = json.loads((copied / "records.json").read_text())
    (copied / "records.parquet").unlink()
    (copied / "records.json").write_text(json.dumps([row | {"schema_version": 2, "aura": 1} for row in rows]))
    resealed(copied)
    refused("report", copied, "--out", tmp_path / "site", says="of a newer RUB (schema 2, here 1)")
    (copied / "manifest.json").unlink()
    refused("report", copied, "--out", tmp_path / "site", says="has no manifest.json")
    manifest = {"schema_version": 9, "files": {}}
    (copied / "manifest.json").write_text(json.dumps(manifest))
    refused("report", copied, "--out", tmp_path / "site", says="of a newer RUB (schema 9)")


def test_an_empty_selection_and_a_strange_format_are_refused(tmp_path, refused, tiny_out):
    made(tmp_path / "none", [])
    refused("report", tmp_path / "none", "--out", tmp_path / "site", says="hold no records of a known task")
    refused("report", tiny_out, "--out", tmp_path / "site", "--format", "pdf", says="some of html, md, tex, csv")
    refused("report", tiny_out, "--out", tmp_path / "site", "--format", "", says="some of html, md, tex, csv")
    (tmp_path / "file").write_text("")
    refused("report", tiny_out, "--out", tmp_path / "file", says="cannot be written")


@pytest.mark.slow
def test_one_refused_folder_is_a_row_beside_the_others(tiny_out, copied, rub, tmp_path):
    (copied / "suite.yaml").write_text("name: mine")
    said = rub("report", tiny_out, copied, "--out", tmp_path / "site")
    assert said.code == 1
    assert f"refused: {copied}: suite.yaml: changed since" in said.out
    text = (tmp_path / "site" / "index.html").read_text()
    assert 'class="refused"' in text
    assert "suite.yaml: changed since the folder was sealed" in text


# Merging.


@pytest.mark.slow
def test_parts_of_one_suite_become_one_page_and_other_runs_stay_apart(records, tmp_path):
    keyed = [record.model_copy(update={"key": f"{record.method}-{record.unlearn_seed}"}) for record in records]
    first = made(tmp_path / "first", [record for record in keyed if record.method != "ft"])
    second = made(tmp_path / "second", [record for record in keyed if record.method in ("ft", "original", "retrain")])
    again = made(tmp_path / "again", [record.model_copy(update={"key": "another run"}) for record in keyed])
    [(_, _, together)] = merged(map(read_folder, (first, second)))
    assert sorted(record.model_dump_json() for record in together) == sorted(r.model_dump_json() for r in keyed)
    assert len(merged(map(read_folder, (first, second, again)))) == 2
    page, refused = write_reports([tmp_path], tmp_path / "site")
    assert refused == {}
    assert len(list((tmp_path / "site" / "experiments").iterdir())) == 2
    assert page.read_text().count("classification-ft.html") == 2


@pytest.mark.slow
def test_two_protocols_never_share_a_table(records, tmp_path):
    made(tmp_path / "one", records)
    made(tmp_path / "two", [record.model_copy(update={"protocol": "rub-strict-1"}) for record in records])
    page, _ = write_reports([tmp_path / "one", tmp_path / "two"], tmp_path / "site")
    text = page.read_text()
    assert text.count('<section class="boards"') == 2
    for name in ("rub-paper-1", "rub-strict-1"):
        assert f'data-protocol="{name}"' in text


def test_formats(tiny_out, rub, tmp_path):
    said = rub("report", tiny_out, "--out", tmp_path / "tables-only", "--format", "tex,csv")
    assert said.code == 0
    assert not list((tmp_path / "tables-only").rglob("*.html"))
    assert {path.suffix for path in (tmp_path / "tables-only").rglob("*.*")} == {".tex", ".csv"}


def test_where_two_folders_disagree_neither_wins(records, tmp_path):
    lie = [
        r.model_copy(update={"value": 0.99} if (r.method, r.metric) == ("salun", "mia_rmia") else {}) for r in records
    ]
    first, second = made(tmp_path / "a", lie), made(tmp_path / "b", records)
    assert len(merged([read_folder(first), read_folder(second)])) == 2


def test_what_was_measured_takes_the_place_of_what_failed_in_any_order(records, tmp_path):
    lost = {"value": None, "status": "failed", "n": 0, "reason": "out of memory"}
    broken = [r.model_copy(update=lost if r.method == "salun" else {}) for r in records]
    first, second = read_folder(made(tmp_path / "a", broken)), read_folder(made(tmp_path / "b", records))
    for order in ((first, second), (second, first)):
        [(_, folder, together)] = merged(order)
        assert {r.status for r in together if r.method == "salun"} == {"ok"}
        assert len(together) == len(records)
        assert len(folder.places) == 2


@pytest.mark.slow
def test_numbers_that_cannot_be_reported_do_not_harm_the_others(records, tmp_path):
    wild = [r.model_copy(update={"value": 2.0, "unlearn_seed": 0, "suite": "wild"}) for r in records]
    page, refused = write_reports([made(tmp_path / "wild", wild), made(tmp_path / "good", records)], tmp_path / "site")
    [reason] = refused.values()
    assert "ta of original is 2; it lies from -1e-06 to 1" in reason
    assert "\n" not in reason
    assert "classification-ft.html" in page.read_text()


def test_a_report_inside_a_result_folder_is_refused(copied, refused):
    for place in (copied, copied / "report", copied / "new"):
        refused("report", copied, "--out", place, says="lies in the result folder")
    assert sealing.changed_files(copied) == []


@pytest.mark.slow
def test_pages_of_a_report_before_do_not_stay(records, tmp_path):
    one, two = made(tmp_path / "one", records), made(tmp_path / "two", [r for r in records if r.method != "salun"])
    write_reports([one], tmp_path / "site")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious.html").write_text("x")
    write_reports([two], tmp_path / "site")
    assert not (tmp_path / "site" / "methods" / "classification-salun.html").exists()
    shutil.rmtree(tmp_path / "site" / "methods")
    (tmp_path / "site" / "methods").symlink_to(tmp_path / "elsewhere")
    write_reports([two], tmp_path / "site")
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["precious.html"]


def test_a_small_file_that_stands_for_millions_of_records_is_refused(records, refused, tmp_path, monkeypatch):
    from rub.store import records as known

    folder = made(tmp_path / "bomb", records)
    monkeypatch.setattr(known, "MOST_RECORDS", 100)
    refused("report", folder, "--out", tmp_path / "site", says="at most 100 are read")


# Hostile folders.

NAMES = (
    "<script>alert(1)</script>",
    "../../../escape",
    "a\x1b[2Jb",
    "nul\0",
    "x" * 300,
    "{{ 7 * 7 }}",
    "' onload='x",
    "..",
)


@pytest.mark.slow
def test_hostile_names_stay_inside_the_site_and_are_text(records, tmp_path):
    rows = []
    for number, name in enumerate(NAMES):
        own = {"method": name, "model": name, "dataset": name, "experiment": name, "suite": name, "reason": name}
        [one] = {(record.method, record.unlearn_seed) for record in records[:1]}
        mine = [record for record in records if (record.method, record.unlearn_seed) == one][: 40 + number]
        rows += [record.model_copy(update={**own, "code_version": name}) for record in mine]
    made(tmp_path / "evil", rows, {"summary": NAMES[0], "experiments": []})
    write_reports([tmp_path / "evil"], tmp_path / "deep" / "er" / "site")
    written = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert not {path for path in written if "escape" in path.name and "site" not in path.parts}
    assert {path.relative_to(tmp_path).parts[0] for path in written} == {"evil", "deep"}
    for path in (tmp_path / "deep").rglob("*.html"):
        text = path.read_text()
        assert "<script>alert" not in text
        assert "onload='x'" not in text.replace("&#39;", "\0")
        assert "\x1b" not in text
    assert "{{ 7 * 7 }}" in (tmp_path / "deep" / "er" / "site" / "index.html").read_text()


class Hostile:
    """Runs code when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.slow
def test_a_hostile_submission_does_nothing(copied, rub, tiny, tmp_path):
    """Pickles where tensors, galleries and parquet should be; a gallery and a witness that point elsewhere."""
    mark = tmp_path / "code-has-run"
    load = pickle.dumps(Hostile(mark))
    claim = next(iter(sorted((copied / "witnesses").glob("*.json"))))
    claim.with_suffix(".safetensors").write_bytes(load)
    (copied / "samples.parquet").write_bytes(load)
    (copied / "figures" / "gallery-x.png").write_bytes(load)
    group = ["classification", "tiny", "", "digits", "resnet10-w2", "rub-paper-1"]
    for name in ("../../escape", "gallery-../x", "gallery-x"):
        (copied / "galleries.json").write_text(json.dumps([{"group": group, "name": name, "caption": "<b>"}]))
        resealed(copied)
        assert rub("report", copied, "--out", tmp_path / "site").code in (0, 1, 2)
        assert rub("submit", copied, "--store", tiny.store, "--out", tmp_path / "sub").code == 1
        assert rub("verify", copied, "--store", tiny.store).code in (1, 3)
    assert not mark.exists()
    assert not (tmp_path / "sub").exists()
    assert not list(tmp_path.rglob("escape*"))
    assert not list((tmp_path / "site").rglob("gallery-*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("suite.yaml", "!!python/object/apply:os.system [true]", "the tag !!python/object/apply:os.system is not read"),
        ("suite.yaml", "[1, 2]", "should be a mapping"),
        ("suite.yaml", "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
            f"{c}: &{c} [{', '.join([f'*{chr(ord(c) - 1)}'] * 9)}]\n" for c in "bcdefghi"), "stands for more than"),
        ("suite.yaml", "experiments: 3", "should be a mapping"),
        ("curves.json", "[{\"task\": 3}]", "curves.json: 0.task"),
        ("curves.json", "[" * 100_000, "cannot be read"),
        ("curves.json", "[NaN]", "curves.json: 0"),
        ("galleries.json", "{}", "galleries.json"),
        ("suite.yaml", "experiments: [{task: classification, name: [a]}]", "should be a mapping"),
        ("suite.yaml", "a: [" + "1, " * 250_000 + "1]", "stands for more than"),
    ],
)  # fmt: skip
def test_hostile_files_are_refused_in_one_line(copied, refused, tmp_path, name, text, says):
    (copied / name).write_text(text)
    resealed(copied)
    refused("report", copied, "--out", tmp_path / "site", says=says)


def test_values_that_are_no_numbers_are_refused(copied, refused, tmp_path):
    rows = json.loads((copied / "records.json").read_text())
    rows[0]["value"] = float("inf")
    (copied / "records.parquet").unlink()
    (copied / "records.json").write_text(json.dumps(rows))
    resealed(copied)
    refused("report", copied, "--out", tmp_path / "site", says="value: Input should be a finite number")


def test_a_gallery_is_drawn_anew(tmp_path):
    source, target = tmp_path / "a.png", tmp_path / "b.png"
    Image.new("RGB", (4, 4), (1, 2, 3)).save(source)
    source.write_bytes(source.read_bytes() + b"<script>alert(1)</script>")
    copy_gallery(source, target)
    assert b"script" not in target.read_bytes()
    assert Image.open(target).getpixel((3, 3)) == (1, 2, 3)
    source.write_bytes(b"GIF89a")
    with pytest.raises(RubError, match="cannot be read as PNG"):
        copy_gallery(source, target)
    (tmp_path / "link.png").symlink_to(target)
    with pytest.raises(RubError, match="no such picture"):
        copy_gallery(tmp_path / "link.png", target)


@pytest.mark.slow
def test_results_stay_until_there_are_better_ones(tiny, tmp_path, monkeypatch):
    from rub import api

    out = tmp_path / "out"
    api.run(tiny.suite, store=tiny.store, out=out, runtime=api.make_runtime(device="cpu"))

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "run_inline", interrupted)
    with pytest.raises(KeyboardInterrupt):
        api.run(tiny.suite, store=tiny.store, out=out, runtime=api.make_runtime(device="cpu"))
    assert sealing.changed_files(out) == []
    assert len(read_records(out)) == len(tiny.result.records)


@pytest.mark.slow
def test_a_second_run_into_one_folder_leaves_nothing_of_the_first(tiny, tmp_path):
    from rub.reports.result_folder import prepare, write_result

    for _ in range(2):
        prepare(tmp_path / "out", "tiny")
        write_result(tiny.result, tmp_path / "out", "rub run tiny")
        assert sealing.changed_files(tmp_path / "out") == []
        (tmp_path / "out" / "report" / "methods" / "old.html").write_text("old")
    assert len(read_records(tmp_path / "out")) == len(tiny.result.records)


def test_a_report_of_no_records(tmp_path):
    assert "There are no records" in write_report([], [], tmp_path, {}).read_text()
