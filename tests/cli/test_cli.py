"""The command line: exit codes, one-line refusals, what is printed, and that nothing heavy is loaded early."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from rub.store.records import identity, read_records

PLUGIN = '''
import torch
import rub
from rub.errors import Diverged

@rub.method("diverges", task="classification")
def diverges(model, forget, retain, context):
    """Say that the loss is not finite."""
    raise Diverged("the loss became nan")

@rub.method("not-finite", task="classification")
def not_finite(model, forget, retain, context):
    """Return weights that are not finite."""
    with torch.no_grad():
        model.fc.bias[1] = float("nan")
    return model
'''

SLEEPS = '''
import os
import time
from pathlib import Path
import rub

@rub.method("sleeps", task="classification")
def sleeps(model, forget, retain, context):
    """Leave a mark and take long."""
    (Path("{marks}") / str(os.getpid())).touch()
    time.sleep(60)
    return model
'''


def words(text):
    return re.findall(r"[\w./+*-]+", text)


# What is refused before anything runs.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "quik"], ("unknown suite 'quik'", "did you mean 'quick'?")),
        (["run", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["plan", "quick", "--methods", "saluun"], ("unknown method 'saluun'", "did you mean 'salun'?")),
        (["plan", "quick", "--methods", "retrain"], "--methods retrain: a control that always runs"),
        (["plan", "table1-cifar10", "--task", "inpainting"], "no experiment of task 'inpainting'"),
        (["plan", "quick", "--seeds", "0"], "--seeds"),
        (["plan", "table1-cifar10", "--prompts", "own"], "suite table1-cifar10 has no text-to-image experiment"),
        (["plan", "text-to-image-digits", "--prompts", "no.csv"], "prompts no.csv: cannot be read"),
        (["plan", "quick", "--set", "training.epochs"], "should be path=value"),
        (["run", "quick", "--device", "tpu"], "should be auto, cpu or cuda"),
        (["run", "quick", "--engine", "slurm"], "should be one of: inline"),
        (["run", "quick", "--batch-size", "0"], "--batch-size"),
        (["run", "quick", "--workers", "0"], "--workers"),
        (["run", "quick", "--data-root", "no/such/folder"], ("data root no/such/folder: no such folder", "cifar-10-b")),
        (["run", "quick", "--plugin", "no-such-file.py"], "--plugin no-such-file.py: no such file"),
        (["run"], "Missing argument"),
        (["run", "quick", "--no-such-option"], "No such option"),
        (["no-such-command"], "No such command 'no-such-command'"),
        (["list", "methds"], ("unknown list 'methds'", "did you mean 'methods'?")),
        (["list", "methods", "--task", "clasification"], "did you mean 'classification'?"),
        (["show", "saluun"], "did you mean 'salun'?"),
        (["show", "ft", "--plugin", "no-such-file.py"], "no such file"),
        (["audit", "classification"], "Missing option"),
    ],
    ids=" ".join,
)
def test_wrong_requests_are_refused_in_one_line(refused, arguments, says):
    refused(*arguments, says=says)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.epochs=abc", "training.epochs = 'abc': input should be a valid integer"),
        ("training.lr=-1", "training.lr = -1: input should be greater than 0"),
        ("protocol.attacks.uma.budgets=[-8]", "eps = -8/255: should be between 0 and 255"),
        ("training.epocs=3", "unknown field 'epocs': did you mean 'epochs'?"),
        ("methods.ft.lrr=0.1", "methods.ft (ft): unknown field 'lrr': did you mean 'lr'?"),
        ("methods.ft.lr=0", "methods.ft (ft): lr = 0: input should be greater than 0"),
        ("methods.ft.epochs=1.5", "methods.ft (ft): epochs = 1.5"),
        ("protocol=rub-papr-1", "unknown protocol 'rub-papr-1': did you mean 'rub-paper-1'?"),
        ("dataset=digit", "unknown dataset 'digit': did you mean 'digits'?"),
        ("dataset={name: npz}", "needs dataset.path"),
        ("protocol.attacks.uma.runs=[umma]", "unknown classification attack 'umma': did you mean 'uma'?"),
        ("protocol.attacks.uma.runs=[{name: uma, stepz: 3}]", "unknown field 'stepz': did you mean 'steps'?"),
        ("protocol.attacks.uma.runs=[{name: uma, steps: 0}]", "steps = 0"),
        ("forget={classes: [0], ids: [1]}", "exactly one of classes, fraction, ids and files"),
    ],
)
def test_wrong_values_are_refused_from_the_command_line_and_from_the_file(
    refused, tmp_path, write_suite, override, says
):
    path = write_suite(tmp_path)
    refused("plan", path, "--set", override, says=says)
    where, _, value = override.partition("=")
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    place, names = raw["experiments"][0], where.split(".")
    for name in names[:-1]:
        place = place[name]
    place[names[-1]] = yaml.safe_load(value)
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    refused("plan", path, says=says)


def test_prompts_are_read_for_each_concept_from_a_folder(rub, refused, tmp_path):
    (tmp_path / "seven.csv").write_text("case_number,prompt\n3,a photo of seven\n", encoding="utf-8")
    assert rub("plan", "text-to-image-digits", "--prompts", tmp_path).code == 0
    other = ("--set", "concept.name=eight")
    refused("plan", "text-to-image-digits", "--prompts", tmp_path, *other, says="prompts.csv or eight.csv")


@pytest.mark.parametrize("text", ["import nothing_such_here\n", "def f(:\n", "x = 1\n", "raise ValueError('a\\nb')\n"])
def test_bad_plugin_files_are_refused(refused, tmp_path, text):
    path = tmp_path / "plugin.py"
    path.write_text(text, encoding="utf-8")
    refused("run", "quick", "--plugin", path, says=f"--plugin {path}: ")


# What is refused once the data, or a checkpoint, has been looked at.


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("forget.classes=[12]", "class 12 does not exist; the data has classes 0 to 9"),
        ("forget={classes: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]}", "the forget set is the whole training set"),
        ("forget={fraction: 0.000001}", "the forget set is empty"),
        ("forget={ids: [100000]}", "ids are not training samples, such as 100000"),
        ("model.arch=resnet11", ("network 'resnet11'", "did you mean 'resnet1")),
    ],
)
def test_what_the_data_does_not_have_is_refused(refused, tiny, override, says):
    refused("run", tiny.path, "--store", tiny.store, "--set", override, says=says)


def cifar(folder):
    """Write a CIFAR-10 of two images per batch."""
    root = folder / "cifar-10-batches-py"
    root.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for name in (*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"):
        batch = {b"data": draw.integers(0, 256, (2, 3072), dtype=np.uint8), b"labels": [0, 1]}
        (root / name).write_bytes(pickle.dumps(batch))
    (root / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"x"] * 10}))
    return root


class Hostile:
    """Unpickling this writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_damaged_cifar_batch_is_named_and_runs_no_code(refused, tmp_path, write_suite):
    root = cifar(tmp_path / "data")
    path = write_suite(tmp_path, dataset="cifar10")
    request = ("run", path, "--data-root", tmp_path / "data", "--device", "cpu")
    batch = root / "data_batch_3"
    whole = batch.read_bytes()
    batch.write_bytes(whole[: len(whole) // 2])
    refused(*request, says=f"{batch}: damaged")
    witness = tmp_path / "code-has-run"
    batch.write_bytes(pickle.dumps({b"data": Hostile(witness), b"labels": [0, 1]}))
    refused(*request, says=f"{batch}: refused")
    assert not witness.exists()
    batch.unlink()
    refused(*request, says=f"{batch}: missing")


def test_a_damaged_npz_is_named(refused, tmp_path, write_suite):
    source = tmp_path / "images.npz"
    images, labels = np.zeros((20, 8, 8), np.uint8), np.arange(20) % 4
    np.savez(source, x_train=images, y_train=labels, x_test=images, y_test=labels)
    whole = source.read_bytes()
    path = write_suite(tmp_path, dataset={"name": "npz", "path": str(source)})
    for content in (whole[: len(whole) // 2], b"", b"PK\x03\x04 no archive", b"text"):
        source.write_bytes(content)
        refused("run", path, "--device", "cpu", says=str(source))


@pytest.mark.slow
def test_offline_without_data_says_both_ways(tmp_path, write_suite):
    path = write_suite(tmp_path, dataset="cifar10")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path / "hub"),
        "RUB_STORE": str(tmp_path / "store"),
    }
    environment.pop("RUB_DATA", None)
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-m", "rub.cli.main", "run", str(path), "--device", "cpu"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    for said in ("cifar10:", "--data-root or RUB_DATA", "cifar-10-batches-py/", "hub data set", "not reachable"):
        assert said in ended.stderr


@pytest.fixture
def checkpoints(tiny, tmp_path):
    """Audit these two files, which are the same at first; returns the folder and the request."""
    source = next((tiny.store / "train").glob("*/weights.safetensors"))
    for name in ("before.safetensors", "after.safetensors"):
        (tmp_path / name).write_bytes(source.read_bytes())
    request = {
        "--original": tmp_path / "before.safetensors",
        "--unlearned": tmp_path / "after.safetensors",
        "--arch": "resnet10",
        "--width": 2,
        "--data": "digits",
        "--forget-classes": "0",
        "--store": tiny.store,
        "--device": "cpu",
        "--samples": 10,
    }

    def arguments(**changes):
        changed = {**request, **{f"--{name.replace('_', '-')}": value for name, value in changes.items()}}
        return ["audit", "classification", *(str(part) for pair in changed.items() for part in pair)]

    return tmp_path, arguments


def test_checkpoints_that_are_not_there(refused, checkpoints):
    folder, arguments = checkpoints
    for option in ("original", "unlearned", "retrained"):
        refused(*arguments(**{option: folder / "none.pth"}), says=f"--{option} {folder / 'none.pth'}: no such file")
        refused(*arguments(**{option: folder}), says=f"checkpoint {folder}: no weights; should hold one of")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.999])
def test_truncated_checkpoints(refused, checkpoints, suffix, keep):
    folder, arguments = checkpoints
    path = folder / f"cut{suffix}"
    if suffix == ".pth":
        torch.save({"fc.weight": torch.zeros(1000)}, path)
        whole = path.read_bytes()
    else:
        whole = (folder / "after.safetensors").read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    refused(*arguments(unlearned=path), says=f"checkpoint {path}: truncated")


def test_checkpoints_of_another_architecture_name_the_keys(refused, checkpoints):
    _, arguments = checkpoints
    refused(*arguments(arch="resnet18"), says=("another architecture", "missing", "layer1.1."))
    refused(*arguments(width=3), says=("another architecture", "misshapen", "conv1.weight (2, 1, 3, 3)"))
    refused(*arguments(arch="resnet11"), says="unknown classification network 'resnet11': did you mean")


def test_code_in_a_checkpoint_does_not_run(refused, checkpoints):
    folder, arguments = checkpoints
    witness, path = folder / "code-has-run", folder / "hostile.pth"
    torch.save({"fc.weight": Hostile(witness)}, path)
    refused(*arguments(unlearned=path), says=(f"checkpoint {path}", "could run code"))
    assert not witness.exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"forget_classes": "12"}, "class 12 does not exist"),
        ({"forget_classes": "zeroo"}, "unknown forgotten class 'zeroo': did you mean 'zero'?"),
        ({"forget_classes": "0,,1"}, "--forget-classes 0,,1: should be numbers or names with commas between them"),
        ({"forget_classes": "0.7"}, "unknown forgotten class '0.7'"),
        ({"forget_classes": chr(0x661)}, "unknown forgotten class"),
        ({"forget_classes": "1_0"}, "unknown forgotten class '1_0'"),
        ({"forget_classes": '"12"'}, "unknown forgotten class '12'"),
        ({"forget_classes": "-1"}, "unknown forgotten class '-1'"),
        ({"mean": "a,b"}, "--mean a,b: should be numbers"),
        ({"std": "nan"}, "std"),
        ({"data": "digit"}, "did you mean 'digits'?"),
        ({"data": "nowhere.npz"}, "nowhere.npz: no such folder or file"),
        ({"protocol": "rub-papr-1"}, "did you mean 'rub-paper-1'?"),
        ({"stem": "vgg"}, "stem = 'vgg'"),
        ({"width": "0"}, "width = 0"),
        ({"samples": "5"}, "--samples"),
    ],
)
def test_wrong_audits_are_refused(refused, checkpoints, changes, says):
    _, arguments = checkpoints
    refused(*arguments(**changes), says=says)


# What works.


@pytest.mark.slow
def test_a_run_prints_its_table_and_writes_its_files(rub, tiny, tmp_path):
    out = tmp_path / "out"
    said = rub("run", tiny.path, "--store", tiny.store, "--out", out, "--device", "cpu")
    assert (said.code, said.err) == (0, "")
    count = tiny.result.counts["done"]
    assert f"{count} stages, {count} in the store, 0 to run" in said.out
    assert f"0 stages run, {count} from the store, 0 failed, 0 blocked" in said.out
    for name in ("original", "retrain", "sham", "ft"):
        assert name in words(said.out.lower())
    assert f"Results: {out}" in said.out
    assert read_records(out) == list(tiny.result.records)
    assert (out / "report" / "index.html").is_file()
    again = yaml.safe_load((out / "suite.yaml").read_text(encoding="utf-8"))
    assert again["experiments"][0]["methods"] == {"ft": {"epochs": 1}}


def test_the_suite_that_was_written_can_be_run_again(rub, tiny, tiny_out):
    said = rub("run", tiny_out / "suite.yaml", "--store", tiny.store, "--device", "cpu")
    assert said.code == 0
    assert f"0 stages run, {tiny.result.counts['done']} from the store" in said.out


@pytest.mark.slow
def test_failed_methods_are_shown_and_the_others_complete(rub, tiny, tmp_path):
    plugin = tmp_path / "plugin.py"
    plugin.write_text(PLUGIN, encoding="utf-8")
    out = tmp_path / "out"
    said = rub("run", tiny.path, "--store", tiny.store, "--plugin", plugin, "--out", out, "--device", "cpu")
    assert said.code == 3
    assert said.err == ""
    for line in (
        "failed: unlearn diverges, seed 0: diverged: the loss became nan",
        "failed: unlearn not-finite, seed 0: diverged: fc.bias holds values that are not finite",
    ):
        assert line in said.out.splitlines()
    assert "2 failed" in said.out
    rows = read_records(out)
    assert {row.method for row in rows if row.status == "failed"} == {"diverges", "not-finite"}
    assert [row for row in rows if row.status == "ok"] == list(tiny.result.records)
    assert all(row.value is None and "diverged" in row.reason for row in rows if row.status == "failed")


def test_a_full_disk_is_one_line(refused, tiny, copied_store, monkeypatch):
    from rub.tasks.classification import measure as measuring

    def full(self, out):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(measuring.Measured, "save", full)
    refused(
        "run", tiny.path, "--store", copied_store, "--device", "cpu", "--set", "protocol.probe_per_class=12",
        says=(f"store {copied_store}: the disk is full", "finished stages are kept"),
    )  # fmt: skip


def test_an_interrupt_is_one_line_and_code_130(rub, tiny, monkeypatch):
    from rub import api

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "run_inline", interrupted)
    said = rub("run", tiny.path, "--store", tiny.store, "--device", "cpu")
    assert said.code == 130
    assert " ".join(said.err.split()) == (
        "interrupted: finished stages are kept, and the last checkpoint of a long one; the same command goes on"
    )


@pytest.mark.slow
def test_a_stopped_run_goes_on_from_there(rub, tiny, tmp_path):
    store = tmp_path / "store"
    command = [sys.executable, "-m", "rub.cli.main", "run", str(tiny.path), "--store", str(store), "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline() for _ in range(6)]
        process.terminate()
        _, error = process.communicate(timeout=60)
    assert lines[5].startswith("[5/"), lines
    assert process.returncode == 130
    assert "interrupted: finished stages are kept" in error
    assert "Traceback" not in error
    kept = sum(1 for _ in store.glob("*/*/manifest.json"))
    assert kept >= 5
    assert not [path for path in store.rglob(".*") if path.is_dir()]
    said = rub("run", tiny.path, "--store", store, "--device", "cpu")
    assert said.code == 0
    assert f"{tiny.result.counts['done'] - kept} stages run, {kept} from the store" in said.out


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal here")
@pytest.mark.parametrize("name", ["SIGHUP", "SIGQUIT"])
def test_a_terminal_that_closes_loses_nothing(rub, tiny, tmp_path, name):
    store = tmp_path / "store"
    command = [sys.executable, "-m", "rub.cli.main", "run", str(tiny.path), "--store", str(store), "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        for _ in range(6):
            process.stdout.readline()
        process.send_signal(getattr(signal, name))
        process.communicate(timeout=60)
    assert process.returncode == -getattr(signal, name)
    assert rub("store", "check", "--store", store).code == 0
    said = rub("run", tiny.path, "--store", store, "--out", tmp_path / "out", "--device", "cpu")
    assert said.code == 0
    assert [identity(row) for row in read_records(tmp_path / "out")] == [identity(row) for row in tiny.result.records]


def test_another_version_of_the_code_reads_the_store_and_says_whose_numbers_they_are(tiny, copied_store, monkeypatch):
    """Keys hold the stages' versions: a change that changes no number computes nothing again."""
    from rub import api, load_suite
    from rub.pipeline import runtime

    monkeypatch.setattr(runtime, "code_version", lambda: "9.9.9+later")
    again = api.run(load_suite(str(tiny.path)), store=copied_store, runtime=api.make_runtime(device="cpu"))
    assert again.counts["done"] == 0
    assert {row.code_version for row in again.records} == {row.code_version for row in tiny.result.records}


def test_an_out_folder_that_cannot_be_written(refused, tiny, tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    request = ("run", tiny.path, "--store", tiny.store, "--device", "cpu", "--out", tmp_path / "file")
    refused(*request, says=(f"--out {tmp_path / 'file'}: cannot be written", "give another folder"))


def test_a_store_that_cannot_be_made(refused, tiny, tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    refused("run", tiny.path, "--store", tmp_path / "file", says="cannot be created")


def test_a_plan_counts_what_is_in_the_store(rub, tiny, tmp_path):
    empty, full = (rub("plan", tiny.path, "--store", store) for store in (tmp_path / "empty", tiny.store))
    assert empty.code == full.code == 0
    assert not [path for path in (tmp_path / "empty").rglob("*") if path.is_file()], "a plan runs nothing"
    for said, there in ((empty, 0), (full, 1)):
        counted = {line.split()[0]: [int(part) for part in line.split()[1:5]] for line in said.out.splitlines()[-8:]}
        assert counted["train"] == [2, 2 * there, 0, 2 - 2 * there]
        assert counted["unlearn"] == [3, 3 * there, 0, 3 - 3 * there]
        assert set(counted) == {"data", "train", "shadow", "unlearn", "attack", "measure", "measure-attack", "gap"}


@pytest.mark.slow
def test_a_killed_stage_is_partial_and_goes_on(rub, tiny, tmp_path):
    store = tmp_path / "store"
    command = [sys.executable, "-m", "rub.cli.main", "run", str(tiny.path), "--store", str(store), "--device", "cpu"]
    with subprocess.Popen([*command, "--checkpoint", "0"], stdout=subprocess.DEVNULL) as process:
        while not list(store.glob("partial/*/steps-1.state")) and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    said = rub("plan", tiny.path, "--store", store)
    [train] = [line.split() for line in said.out.splitlines() if line.split()[:1] == ["train"]]
    assert train[1:5] == ["2", "0", "1", "1"]
    assert "partial" in rub("store", "ls", "--store", store).out
    assert rub("store", "check", "--store", store).code == 0
    again = rub("run", tiny.path, "--store", store, "--out", tmp_path / "out", "--device", "cpu")
    assert again.code == 0 and "to run, 1 from its checkpoint" in again.out
    assert [identity(row) for row in read_records(tmp_path / "out")] == [identity(row) for row in tiny.result.records]
    assert not list(store.glob("partial/*"))


@pytest.mark.slow
def test_a_helper_leaves_when_the_first_process_is_killed(tiny, copied_store, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    (tmp_path / "plugin.py").write_text(SLEEPS.format(marks=str(marks)), encoding="utf-8")
    words = ["run", tiny.path, "--store", copied_store, "--device", "cpu", "--workers", "2", "--seeds", "2",
             "--plugin", tmp_path / "plugin.py", "--set", "methods=[sleeps]"]  # fmt: skip
    command = [sys.executable, "-m", "rub.cli.main", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while len(list(marks.iterdir())) < 2 and process.poll() is None:
            time.sleep(0.05)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    [helper] = [int(mark.name) for mark in marks.iterdir() if int(mark.name) != process.pid]
    deadline = time.monotonic() + 20  # it would sleep for longer
    while Path(f"/proc/{helper}/task").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{helper}/task").exists()


def test_a_state_that_nobody_needs_is_freed(rub, tiny, copied_store):
    finished = next(copied_store.glob("train/*")).name
    for key in (finished, "0" * 64):
        (copied_store / "partial" / key).mkdir(parents=True)
        (copied_store / "partial" / key / "steps-1.state").write_bytes(b"torn")
    assert "2 damaged" in rub("store", "check", "--store", copied_store).out
    assert rub("store", "gc", tiny.path, "--store", copied_store, "--yes").code == 0
    assert not list(copied_store.glob("partial/*"))


def test_a_plan_tells_its_notes(rub, tiny):
    said = rub("plan", tiny.path, "--store", tiny.store, "--set", "forget={fraction: 0.1}")
    assert "note: controls and measures of the head need forgotten classes" in " ".join(said.out.split())


LISTS = [
    "methods", "attacks", "metrics", "datasets", "models", "networks", "controls", "tasks", "suites", "protocols",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("what", LISTS)
def test_lists_keep_every_word_whole_at_80_columns(rub, what):
    said = rub("list", what)
    assert said.code == 0
    assert all(len(line) <= 80 for line in said.out.splitlines())
    assert "…" not in said.out
    rows = json.loads(rub("list", what, "--json").out)
    assert rows
    shown = said.out.split()
    for row in rows:
        for value in row.values():
            missing = [word for word in str(value).split() if word not in shown]
            assert not missing, f"{missing} of '{value}' is cut"
    names = [row["name"] for row in rows]
    first = [line.split()[0] for line in said.out.splitlines() if line and not line.startswith(" ")]
    assert first == names


def test_lists_have_everything(rub):
    methods = {row["name"] for row in json.loads(rub("list", "methods", "--task", "classification", "--json").out)}
    assert methods == {
        "ft", "rl", "iu", "iu-exact", "l1-sparse", "salun", "ga", "neggrad-plus", "scrub", "bad-teacher", "ssd",
        "boundary-shrink", "delete", "msg", "ct", "rurk", "amun", "sfron", "fisher", "cf-k", "eu-k", "unsir", "jit",
        "l2ul", "boundary-expand",
    }  # fmt: skip
    controls = {row["name"] for row in json.loads(rub("list", "controls", "--task", "classification", "--json").out)}
    assert controls == {
        "original", "retrain", "retrained", "sham", "zero-row", "gauge", "drift", "random_init", "other-seed",
    }  # fmt: skip
    metrics = {row["name"]: row["direction"] for row in json.loads(rub("list", "metrics", "--json").out)}
    assert (metrics["ta"], metrics["ra"], metrics["ua"], metrics["mia_shadow"]) == ("up", "up", "down", "down")
    assert {row["name"] for row in json.loads(rub("list", "attacks", "--task", "classification", "--json").out)} == {
        "uma", "uma-momentum", "uma-apgd", "universal", "square", "noise", "corruptions",
    }  # fmt: skip


def test_plan_tables_keep_every_word_whole_at_80_columns(rub, tiny):
    said = rub("plan", tiny.path, "--store", tiny.store)
    assert all(len(line) <= 80 for line in said.out.splitlines())
    assert "…" not in said.out
    headers = ["stage", "number", "in", "store", "partial", "missing", "MiB", "kept", "million", "passes"]
    assert not {*headers, "measure-attack"} - set(said.out.split())


def test_run_tables_are_not_cut_at_80_columns(rub, tiny):
    said = rub("run", tiny.path, "--store", tiny.store, "--device", "cpu")
    assert "…" not in said.out


def test_show_tells_paper_equation_defaults_and_differences(rub):
    said = rub("show", "salun")
    assert said.code == 0
    for part in (
        "SalUn",
        "ICLR 2024",
        "equation",
        "upstream",
        "OPTML-Group/Unlearn-Saliency",
        "differences",
        "version",
    ):
        assert part in said.out
    assert "k: float (0 to 1) = 0.5  fraction of weights that may move\n      default: upstream README" in said.out
    assert "epochs: int (>= 1) = 10  passes over both sets" in said.out
    assert "mixing: sequential | mixed = 'sequential'" in said.out
    assert "allow_inf_nan" not in rub("show", "uma").out


@pytest.mark.parametrize(("name", "free"), [("delete", "yes"), ("ft", "no")])
def test_lists_and_cards_say_which_methods_are_retain_free(rub, name, free):
    rows = {
        row["name"]: row["marks"]
        for row in json.loads(rub("list", "methods", "--task", "classification", "--json").out)
    }
    assert (rows[name] == "retain-free") == (free == "yes")
    shown = rub("show", name).out
    assert f"retain-free  {free}\n" in shown
    assert "needs the original's training  no\n" in shown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("uma", ("attack, classification", "steps: int")),
        ("ua", ("metric, classification", "better: down", "shown as UA", "in percent")),
        ("inpainting", ("task, inpainting", "mask_ratio: float = 0.75", "recovered_below")),
        ("rub-paper-1", ("protocol, classification", "shadows_per_seed: 2", "budgets")),
        ("quick", ("suite", "protocol: rub-quick-1")),
        ("retrain", ("control, classification",)),
        ("resnet18", ("network, classification",)),
    ],
)
def test_show_knows_every_kind(rub, name, parts):
    said = rub("show", name)
    assert said.code == 0
    assert all(part in said.out for part in parts), said.out


def test_show_knows_plugins(rub, tmp_path):
    (tmp_path / "plugin.py").write_text(PLUGIN, encoding="utf-8")
    said = rub("show", "not-finite", "--plugin", tmp_path / "plugin.py")
    assert said.code == 0
    assert "Return weights that are not finite." in said.out


def test_doctor_tells_what_is_there(rub, tmp_path):
    cifar(tmp_path / "data")
    said = rub("doctor", "--data-root", tmp_path / "data", "--store", tmp_path / "store")
    assert said.code == 0
    assert torch.__version__ in said.out
    assert f"cifar10: found at {tmp_path / 'data' / 'cifar-10-batches-py'}" in said.out
    assert "cifar100: absent" in said.out
    assert "GiB free" in said.out
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "command", [[], ["run"], ["plan"], ["list"], ["show"], ["doctor"], ["audit", "classification"]]
)
def test_help_has_an_example(rub, command):
    said = rub(*command, "--help")
    assert said.code == 0
    assert "Usage:" in said.out
    assert not command or "Example: rub" in said.out
    assert "[default: " not in said.out or "[default: ]" not in said.out


@pytest.mark.parametrize("command", [[], ["audit"]])
def test_without_a_command_the_help_is_shown(rub, command):
    said = rub(*command)
    assert (said.code, said.err) == (2, "")
    assert "Usage:" in said.out


@pytest.mark.slow
def test_help_and_lists_load_nothing_heavy():
    code = f"""
import io, sys
from contextlib import redirect_stdout
from rub.cli.main import main
for request in [["--help"], ["run", "--help"], *(["list", what] for what in {LISTS})]:
    sys.argv = ["rub", *request]
    with redirect_stdout(io.StringIO()) as said:
        try:
            main()
        except SystemExit as stop:
            assert not stop.code, request
    assert said.getvalue()
    heavy = {{"torch", "sklearn", "scipy", "datasets", "transformers", "pandas", "duckdb"}} & set(sys.modules)
    assert not heavy, (request, heavy)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.slow
def test_the_folder_of_another_suite_is_replaced_only_when_asked(rub, tiny, tmp_path):
    out = tmp_path / "out"
    assert rub("run", tiny.path, "--store", tiny.store, "--out", out, "--tables", "none").code == 0
    assert rub("run", tiny.path, "--store", tiny.store, "--out", out, "--tables", "none").code == 0
    other = tmp_path / "other.yaml"
    other.write_text(tiny.path.read_text(encoding="utf-8").replace("name: tiny", "name: mine", 1), encoding="utf-8")
    said = rub("run", other, "--store", tiny.store, "--out", out)
    assert said.code == 2
    assert "holds a run of the suite 'tiny'; give another folder, or --overwrite" in said.err
    assert "name: tiny" in (out / "suite.yaml").read_text(encoding="utf-8")
    assert rub("run", other, "--store", tiny.store, "--out", out, "--overwrite", "--tables", "none").code == 0
    assert "name: mine" in (out / "suite.yaml").read_text(encoding="utf-8")
    for name in ("verdict.json", "submission.json", "hyperparameters.json"):  # of whatever was here before
        (out / name).write_text("{}", encoding="utf-8")
    assert rub("run", other, "--store", tiny.store, "--out", out, "--tables", "none").code == 0
    assert not {"verdict.json", "submission.json"} & set(json.loads((out / "manifest.json").read_text())["files"])
