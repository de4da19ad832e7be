"""Models of a zoo: published from a run, read elsewhere, checked, attacked, audited; and folders of others."""

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import rub as api
from rub.errors import RubError
from rub.store.artifacts import Store, file_sha256
from rub.zoo.check import problem
from rub.zoo.entry import CONFIG, WEIGHTS, ZooModel, checked, read_model
from rub.zoo.lookup import folder_of, models_in
from rub.zoo.publish import publish, upload

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # SHA-256 of nothing
NAME = "zoo/digits/resnet10-w2/ft/0"


@pytest.fixture(scope="module")
def zoo(tiny, tiny_out, tmp_path_factory):
    """The models of the tiny run."""
    out = tmp_path_factory.mktemp("zoo")
    publish(tiny_out, Store(tiny.store), out, licence="mit")
    return out


@pytest.fixture
def one(zoo, tmp_path):
    """A copy of one of its models, to be damaged freely."""
    return Path(shutil.copytree(zoo / NAME.removeprefix("zoo/"), tmp_path / "one"))


def rewritten(folder, **changes):
    """Its facts with other values, and the files' SHA-256 as they are now."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config["rub"] |= {"files": {WEIGHTS: file_sha256(folder / WEIGHTS)}, **changes}
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")


def test_every_model_of_a_run_is_there_with_what_is_known_of_it(zoo, tiny):
    found = {model.method: (folder, model) for folder, model in models_in(zoo)}
    assert set(found) == {"original", "retrain", "sham", "zero-row", "ft"}
    folder, model = found["ft"]
    assert (model.name, model.task, model.forget["classes"]) == (NAME, "classification", [0])
    assert model.hyperparameters["epochs"] == 1
    assert model.training["lr"] == 0.1
    assert Store(tiny.store).find("unlearn", model.key).sha256("weights.safetensors") == model.measured
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\nlibrary_name: rub-bench\n")
    for said in ("license: mit", NAME, "[retrain]", "forget", "attacked and compared"):
        assert said.replace("[", "\\[").replace("]", "\\]") in text or said in text
    assert "rub-bench/classification" in (folder / ".eval_results" / "rub.yaml").read_text(encoding="utf-8")
    assert list((folder / "witnesses").glob("*.safetensors"))
    assert [problem(place) for place, _ in found.values()] == [""] * 5


def test_a_model_is_the_stored_one(zoo, tiny, monkeypatch):
    monkeypatch.setenv("RUB_ZOO", str(zoo))
    by_name, by_folder = api.load_model(NAME), api.load_model(str(folder_of(NAME)))
    stored = load_file(Store(tiny.store).find("unlearn", read_model(folder_of(NAME)).key).file("weights.safetensors"))
    for model in (by_name, by_folder):
        assert not model.training
        assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())


def test_another_process_reads_it_with_torch_and_safetensors_alone(one, tmp_path):
    code = f"""
        import sys
        from safetensors.torch import load_file
        tensors = load_file({str(one / WEIGHTS)!r})
        assert tensors["fc.weight"].shape[0] == 10
        assert not any(name.startswith(("rub", "transformers")) for name in sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=tmp_path)


def test_half_precision_is_said_and_read_as_float32(tiny, tiny_out, tmp_path):
    [model] = publish(tiny_out, Store(tiny.store), tmp_path, methods=["ft"], dtype="float16")
    folder = tmp_path / model.place
    assert load_file(folder / WEIGHTS)["fc.weight"].dtype == torch.float16
    assert api.load_model(str(folder)).state_dict()["fc.weight"].dtype == torch.float32
    assert "Weights are rounded to float16" in (folder / "README.md").read_text(encoding="utf-8")
    assert model.measured != file_sha256(folder / WEIGHTS)


def test_publishing_again_changes_nothing_and_another_model_is_not_overwritten(tiny, tiny_out, zoo, tmp_path):
    copy = Path(shutil.copytree(zoo, tmp_path / "zoo"))
    before = {path: path.read_bytes() for path in sorted(copy.rglob("*")) if path.is_file()}
    publish(tiny_out, Store(tiny.store), copy, licence="mit")
    assert {path: path.read_bytes() for path in sorted(copy.rglob("*")) if path.is_file()} == before
    with pytest.raises(RubError, match="another model of this name is there"):
        publish(tiny_out, Store(tiny.store), copy, methods=["ft"], dtype="float16")
    assert {path: path.read_bytes() for path in sorted(copy.rglob("*")) if path.is_file()} == before


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"methods": ["salun"]}, "--methods salun: no model of this row"),
        ({"dtype": "int8"}, "--dtype int8: should be one of float32"),
        ({"store": None}, "give the store of the run with --store"),
    ],
)
def test_what_cannot_be_published_is_one_line(tiny, tiny_out, tmp_path, given, says):
    store = Store(tmp_path / "empty") if "store" in given else Store(tiny.store)
    with pytest.raises(RubError, match=says) as error:
        publish(tiny_out, store, tmp_path / "out", **{k: v for k, v in given.items() if k != "store"})
    assert "\n" not in str(error.value)


# Folders of others.


def longer(folder):
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"\0")


def linked(folder):
    target = folder.parent / "elsewhere.safetensors"
    (folder / WEIGHTS).rename(target)
    (folder / WEIGHTS).symlink_to(target)


def infinite(folder):
    tensors = load_file(folder / WEIGHTS)
    tensors["fc.bias"][0] = float("inf")
    save_file(tensors, folder / WEIGHTS)
    rewritten(folder)


def fewer_classes(folder):
    network = read_model(folder).network
    rewritten(folder, network={**network, "classes": network["classes"][:-1]})


def network(**changes):
    return lambda folder: rewritten(folder, network={**read_model(folder).network, **changes})


ODD = {
    "a changed file": (longer, "has another SHA-256"),
    "a missing file": (lambda folder: (folder / WEIGHTS).unlink(), "model.safetensors is missing"),
    "a link": (linked, "is a link"),
    "a pickle": (lambda folder: (folder / "model.pkl").write_bytes(b"\x80\x04."), "could run code"),
    "code": (lambda folder: (folder / "modeling.py").write_text("1"), "could run code"),
    "code further down": (
        lambda folder: ((folder / "sub").mkdir(), (folder / "sub" / "net.py").touch()),
        "could run code",
    ),
    "a file that is not named": (lambda folder: (folder / "more.json").write_text("{}"), "is not among the files"),
    "weights that are not named": (
        lambda folder: ((folder / "x.txt").write_text(""), rewritten(folder, files={"x.txt": EMPTY})),
        "does not name model.safetensors",
    ),
    "many names of one file": (
        lambda folder: rewritten(folder, files={f"a{'/.' * n}/b.json": "0" * 64 for n in (1, 2, 3)}),
        "plain name",
    ),
    "images of no size": (network(size=0), "images of 1 x 0 x 0"),
    "images of a million pixels a side": (network(size=10**6), "images of 1 x 1000000"),
    "a name that is no text": (network(arch=["a"]), "unknown classification network"),
    "nothing of the network": (lambda folder: rewritten(folder, network={}), "lacks or misstates"),
    "another class count": (fewer_classes, "another architecture"),
    "another width": (network(width=3), "another architecture"),
    "no width": (network(width="wide"), "network"),
    "an unknown network": (network(arch="resnet9000"), "unknown"),
    "a network that is code": (network(arch="evil.py:build"), "is code"),
    "no classes": (network(classes=None), "network"),
    "huge images": (network(size="1e9"), "network"),
    "values that are not finite": (infinite, "finite"),
    "an unknown task": (lambda folder: rewritten(folder, task="telepathy"), "telepathy"),
    "a path that climbs out": (lambda folder: rewritten(folder, files={"../../x.safetensors": "0" * 64}), "plain name"),
    "a file that is none": (lambda folder: rewritten(folder, files={"model.pkl": "0" * 64}), "plain name"),
    "no files": (lambda folder: rewritten(folder, files={}), "files"),
    "a newer schema": (lambda folder: rewritten(folder, schema_version=2), "schema_version"),
    "no config": (lambda folder: (folder / CONFIG).unlink(), f"no {CONFIG} here"),
    "no object": (lambda folder: (folder / CONFIG).write_text("[]"), "JSON object"),
    "no facts": (lambda folder: (folder / CONFIG).write_text("{}"), "no object 'rub'"),
    "depth": (lambda folder: (folder / CONFIG).write_text("[" * 100_000), "JSON object"),
    "a large config": (lambda folder: (folder / CONFIG).write_text(" " * (2 << 20)), "JSON object"),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_folder_of_anyone_is_read_or_refused_in_one_line(one, kind):
    change, says = ODD[kind]
    change(one)
    said = problem(one)
    assert says in said
    assert "\n" not in said
    assert len(said) < 2000


def test_a_model_lies_where_its_name_says(zoo, tmp_path):
    root = tmp_path / "zoo"
    shutil.copytree(zoo / "digits", root / "digits")
    shutil.copytree(zoo / NAME.removeprefix("zoo/"), root / "digits" / "resnet10-w2" / "salun" / "0")
    with pytest.raises(RubError, match="a model lies where its name says"):
        list(models_in(root))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("zoo/digits/resnet10-w2/fd/0", r"did you mean 'zoo/digits/resnet10-w2/ft/0'\?"),
        ("zoo/../../etc/passwd", "should be zoo/DATASET/NETWORK/METHOD/SEED"),
        ("nowhere/at-all/of-it", "no such file or folder, and no hub id"),
        ("/nowhere", "no such file or folder"),
    ],
)
def test_an_unknown_name_is_one_line(zoo, monkeypatch, name, says):
    monkeypatch.setenv("RUB_ZOO", str(zoo))
    with pytest.raises(RubError, match=says):
        folder_of(name)


def test_the_hubs_cache_of_links_is_read(zoo, tmp_path, monkeypatch):
    """Its files are links to blobs that lie beside them."""
    repository = tmp_path / "models--someone--zoo"
    place = repository / "snapshots" / "0a1b" / NAME.removeprefix("zoo/")
    (repository / "blobs").mkdir(parents=True)
    place.mkdir(parents=True)
    for number, name in enumerate((CONFIG, WEIGHTS)):
        shutil.copyfile(zoo / NAME.removeprefix("zoo/") / name, repository / "blobs" / str(number))
        (place / name).symlink_to(repository / "blobs" / str(number))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda **given: str(place.parents[3]))
    assert api.load_model("someone/zoo:digits/resnet10-w2/ft/0") is not None
    (place / WEIGHTS).unlink()
    (place / WEIGHTS).symlink_to(zoo / NAME.removeprefix("zoo/") / WEIGHTS)
    with pytest.raises(RubError, match=f"{WEIGHTS} is a link"):
        api.load_model("someone/zoo:digits/resnet10-w2/ft/0")


def test_a_folder_of_ones_own_that_is_called_zoo_is_that_folder(zoo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = Path(shutil.copytree(zoo, tmp_path / "zoo"))
    assert folder_of(NAME) == Path(NAME)
    longer(mine / NAME.removeprefix("zoo/"))
    with pytest.raises(RubError, match="another SHA-256"):
        api.load_model(NAME)


def test_a_hub_repository_is_fetched_at_its_revision(zoo, monkeypatch):
    asked = []

    def fetched(**given):
        asked.append(given)
        return str(zoo)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    model = checked(folder_of("someone/zoo@v1:digits/resnet10-w2/ft/0"))
    assert model.name == NAME
    assert asked[0]["repo_id"] == "someone/zoo"
    assert asked[0]["revision"] == "v1"


def test_upload_is_of_the_models_alone_and_its_failures_are_one_line(zoo, monkeypatch):
    did = []

    class Api:
        def create_repo(self, name, **given):
            did.append(name)

        def upload_folder(self, **given):
            did.extend((given["folder_path"], given["allow_patterns"]))

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    one = read_model(zoo / NAME.removeprefix("zoo/"))
    assert upload(zoo, [one], "me/zoo") == "https://huggingface.co/me/zoo"
    assert did == ["me/zoo", str(zoo), ["digits/resnet10-w2/ft/0/**"]]  # and nothing else that lies in the folder

    def refused(self, name, **given):
        raise ValueError("401: no\nlonger text")

    monkeypatch.setattr(Api, "create_repo", refused)
    with pytest.raises(RubError, match=r"--push me/zoo: ValueError: 401: no; log in") as error:
        upload(zoo, [one], "me/zoo")
    assert "\n" not in str(error.value)


def test_names_are_folders():
    facts = {
        "task": "classification",
        "dataset": "digits",
        "model": "m",
        "method": "ft",
        "network": {},
        "files": {"a": ""},
    }
    assert ZooModel(**facts, seed=3).name == "zoo/digits/m/ft/3"
    assert ZooModel(**facts, seed=3, original=1).place == "digits/m/ft/original-1-3"


# The command line.


def test_commands(zoo, tiny, tiny_out, tmp_path, rub, monkeypatch):
    monkeypatch.setenv("RUB_ZOO", str(zoo))
    assert NAME in rub("zoo", "list", "--zoo", zoo).out
    assert {row["method"] for row in json.loads(rub("zoo", "list", "--zoo", zoo, "--json").out)} >= {"ft", "original"}
    said = rub("zoo", "verify", "--zoo", zoo)
    assert (said.code, said.out) == (0, "5 models, 0 not as they should be\n")
    assert rub("zoo", "get", NAME, "--out", tmp_path / "got").code == 0
    assert problem(tmp_path / "got") == ""
    assert rub("zoo", "get", NAME, "--out", tmp_path / "got").code == 2
    longer(tmp_path / "got")
    assert rub("zoo", "verify", tmp_path / "got").code == 1
    said = rub("publish", tiny_out, "--store", tiny.store, "--out", tmp_path / "mine", "--methods", "ft,original")
    assert said.out.endswith(f"2 models: {tmp_path / 'mine'}\n")
    assert rub("publish", tiny_out, "--store", tiny.store, "--out", tmp_path / "mine", "--seeds", "x").code == 2


@pytest.mark.slow
def test_an_attack_against_every_model_of_a_zoo(zoo, rub, monkeypatch):
    monkeypatch.setenv("RUB_ZOO", str(zoo))
    said = rub("attack", zoo, "--attacks", "uma-momentum,noise", "--budgets", "32,64", "--images", "8")
    assert said.code == 0, said.err
    for word in ("zoo/digits/resnet10-w2", "ft/0", "retrain/0", "sham/0", "uma-momentum", "noise", "64/255"):
        assert word in said.out


@pytest.mark.slow
def test_an_audit_of_two_models_of_a_zoo_needs_nothing_else(zoo, rub, monkeypatch, tmp_path):
    monkeypatch.setenv("RUB_ZOO", str(zoo))
    base = "zoo/digits/resnet10-w2"
    said = rub(
        "audit", "classification", "--original", f"{base}/original/0", "--unlearned", f"{base}/ft/0", "--retrained",
        f"{base}/retrain/0", "--samples", "10", "--store", tmp_path / "store",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert "forgotten: class 0" in said.out
    assert "Verdict: " in said.out


# What ships.


def test_the_models_that_ship_are_whole_and_small():
    root = Path(api.__file__).parent / "zoo" / "models"
    found = list(models_in(root))
    rows = {"original", "retrain", "sham", "zero-row", "salun", "delete", "ct", "dose-5", "i2i", "esd-x", "uce", "sld"}
    assert rows <= {model.method for _, model in found}
    assert [problem(folder) for folder, _ in found] == [""] * len(found)
    assert sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) < 8 << 20  # 5.5 MiB in the wheel
    tasks = {model.task for _, model in models_in(root)}
    assert tasks == {"classification", "inpainting", "text-to-image"}
    model = api.load_model("zoo/digits/resnet10-w4/salun/0")
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_an_attack_of_twenty_lines_against_a_model_that_ships(rub):
    path = Path(__file__).parents[2] / "examples" / "my_attack.py"
    said = rub("attack", "zoo/digits/resnet10-w4/ga/0", "--plugin", path, "--budgets", "64", "--images", "16")
    assert said.code == 0, said.err
    assert "corners" in said.out
    assert "images given to a network: uma-momentum" in said.out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "verdict"), [("original", "recovered"), ("retrain", "no residual found"), ("sham", "hidden")]
)
def test_audits_of_the_models_that_ship(rub, tmp_path, method, verdict):
    base = "zoo/digits/resnet10-w4"
    said = rub(
        "audit", "classification", "--original", f"{base}/original/0", "--unlearned", f"{base}/{method}/0",
        "--protocol", "rub-quick-2", "--samples", "64", "--store", tmp_path / "store",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert f"Verdict: {verdict}" in said.out


@pytest.mark.slow
@pytest.mark.parametrize(("method", "verdicts"), [("original", ["recovered"]), ("retrain", ["no residual found"])])
def test_audits_of_the_autoencoders_that_ship(rub, tmp_path, method, verdicts):
    pair = ("--original", "zoo/digits/mae-nano/original/0", "--unlearned", f"zoo/digits/mae-nano/{method}/0")
    few = ("--protocol", "rub-quick-1", "--samples", "60", "--store", tmp_path / "store")
    said = rub("audit", "inpainting", *pair, *few)
    assert said.code == 0, said.err
    assert "forgotten: classes 0, 1, 2, 3, 4" in said.out
    assert any(f"Verdict: {verdict}\n" in said.out for verdict in verdicts)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "verdicts"),
    [
        ("original", ["recovered"]),
        ("retrain", ["no residual found at this budget", "cannot tell"]),
        ("sham", ["no residual found at this budget", "cannot tell"]),
        ("random-init", ["destroyed"]),
    ],
)
def test_audits_of_the_text_to_image_models_that_ship(rub, tmp_path, method, verdicts):
    base = "zoo/digits-seven/sd-pico"
    pair = ("--original", f"{base}/original/0", "--unlearned", f"{base}/{method}/0")
    few = ("--protocol", "rub-quick-1", "--retain", "one,eight", "--count", "20", "--store", tmp_path / "store")
    said = rub("audit", "text-to-image", *pair, *few)
    assert said.code == 0, said.err
    assert any(f"Verdict: {verdict}\n" in said.out for verdict in verdicts), said.out


# Published weights make a claim checkable.


def test_witnesses_hold_with_the_published_weights_alone(zoo, tiny, tiny_out, tmp_path, rub):
    claims = [path.stem for path in (tiny_out / "witnesses").glob("*.json")]
    said = rub("verify", tiny_out, "--store", tmp_path / "none", "--zoo", zoo)
    assert said.code == 0, said.out
    assert " 0 files could not be checked" in said.out
    assert len(claims) == 2
    said = rub("verify", tiny_out, "--store", tmp_path / "none")
    assert said.code == 3
    own = zoo / NAME.removeprefix("zoo/") / "witnesses"
    assert rub("verify", own, "--store", tmp_path / "none", "--zoo", zoo).code == 0


def test_other_weights_beside_the_claimed_file_are_not_attacked(zoo, tiny_out, tmp_path):
    """The file that the records name lies there under another name, and a model that forgot more under its own."""
    from rub.leaderboard.submit import attacked_again
    from rub.witness.claims import Sources

    forged = Path(shutil.copytree(zoo, tmp_path / "zoo"))
    folder, other = forged / NAME.removeprefix("zoo/"), forged / "digits/resnet10-w2/retrain/0"
    shutil.copyfile(folder / WEIGHTS, folder / "claimed.safetensors")
    shutil.copyfile(other / WEIGHTS, folder / WEIGHTS)
    names = (WEIGHTS, "claimed.safetensors")
    rewritten(folder, files={name: file_sha256(folder / name) for name in names})
    [found] = attacked_again(tiny_out, Sources(zoo=forged))
    assert found.images == 0
    original = forged / "digits/resnet10-w2/original/0"
    shutil.rmtree(folder)
    shutil.copytree(zoo / NAME.removeprefix("zoo/"), folder)
    shutil.copyfile(other / WEIGHTS, original / WEIGHTS)
    rewritten(original)
    [found] = attacked_again(tiny_out, Sources(zoo=forged))
    assert "the zoo's original has other weights than the records' original" in found.reason


def test_audits_take_what_the_user_says(zoo, tmp_path, monkeypatch):
    from rub.zoo.audits import with_facts

    original = str(zoo / "digits/resnet10-w2/original/0")
    made = with_facts({"original": original, "unlearned": original, "width": 8, "stem": "cifar"}, "classification")
    assert (made["width"], made["arch"], made["forget_classes"]) == (8, "resnet10", [0])
    monkeypatch.chdir(original)
    assert (
        with_facts({"original": original, "unlearned": original, "retrained": None}, "classification")["retrained"]
        is None
    )
    one = Path(shutil.copytree(original, tmp_path / "one"))
    rewritten(one, forget={"fraction": 0.1, "seed": 0})
    assert "forget_classes" not in with_facts({"original": str(one), "unlearned": original}, "classification")
    (one / "net.py").write_text("print('ran')", encoding="utf-8")
    rewritten(one, network={**read_model(one).network, "arch": f"{one}/net.py:build"})
    with pytest.raises(RubError, match="could run code"):
        with_facts({"original": str(one), "unlearned": original}, "classification")
    (one / "net.py").rename(tmp_path / "net.py")
    rewritten(one, network={**read_model(one).network, "arch": f"{tmp_path}/net.py:build"})
    with pytest.raises(RubError, match="is code"):
        with_facts({"original": str(one), "unlearned": original}, "classification")
    with pytest.raises(RubError, match="is a model of classification; give one of inpainting"):
        with_facts({"original": original, "unlearned": original}, "inpainting")


def test_published_models_are_attacked_again_and_a_lowered_rate_is_found(zoo, tiny_out, tmp_path):
    from rub.leaderboard.submit import attacked_again
    from rub.witness.claims import Sources

    [honest] = attacked_again(tiny_out, Sources(zoo=zoo))
    assert (honest.reason, honest.more, honest.images) == ("", 0, 8)
    [nowhere] = attacked_again(tiny_out, Sources(zoo=tmp_path))
    assert "or its models with --zoo" in nowhere.reason
