"""Forgotten classes by name; and what a run tells of its images: on the console, in its files, on its page."""

import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

import rub as library
from rub.api import make_runtime, plan
from rub.config.suite import load_suite
from rub.data.class_names import class_number, titled
from rub.data.spec import DatasetSpec, ForgetSpec, forget_set
from rub.pipeline.graph import in_order
from rub.store.manifest import read_manifest

WNIDS = ("n01440764", "n03028079", "n03394916")  # tench, church, french horn


@pytest.fixture
def photos(tmp_path):
    """Three classes of Imagenette, twelve small pictures each, of which one cannot be read and one has 16 bits."""
    draw = np.random.default_rng(0)
    for label, wnid in enumerate(WNIDS):
        for part, count in (("train", 12), ("val", 4)):
            (folder := tmp_path / "photos" / part / wnid).mkdir(parents=True)
            for number in range(count):
                noise = draw.integers(0, 60, (8, 8, 3)) + 80 * label
                Image.fromarray(noise.astype(np.uint8)).save(folder / f"{number}.png")
    (tmp_path / "photos" / "train" / WNIDS[0] / "3.png").write_bytes(b"text")
    Image.fromarray(np.full((8, 8), 20_000, np.uint16)).save(tmp_path / "photos" / "train" / WNIDS[1] / "7.png")
    return tmp_path / "photos"


@pytest.mark.parametrize(
    ("asked", "number"), [(2, 2), ("n03028079", 1), ("church", 1), ("Chapel", 1), ("french-horn", 2), ("tench", 0)]
)
def test_a_class_is_called_by_number_folder_or_word(asked, number):
    assert class_number(asked, WNIDS) == number


def test_a_name_that_is_unknown_or_of_several_is_refused(one_line):
    def misspelt():
        return class_number("chruch", WNIDS, "forgotten class")

    one_line(misspelt, "unknown forgotten class 'chruch'", "did you mean 'church'?")
    one_line(lambda: class_number("red-fox", ["red fox", "red_fox"]), "'red fox', 'red_fox'", "one of these")
    assert class_number("red_fox", ["red fox", "red_fox"]) == 1
    assert titled(2, WNIDS) == "2 (n03394916, french horn)"


def in_tens(tmp_path):
    """Eleven classes whose folders are 0 to 10: as text, 10 stands before 2."""
    for number in range(11):
        (folder := tmp_path / "tens" / str(number)).mkdir(parents=True)
        for place in range(3):
            Image.new("RGB", (8, 8), (20 * number, place, 0)).save(folder / f"{place}.png")
    return DatasetSpec(name="folder", path=str(tmp_path / "tens"))


@pytest.mark.parametrize("asked", ["-1", "_1", "1-", " 1", "+1", "1.0", "1_0"])
def test_a_number_stands_for_itself(asked, one_line):
    one_line(lambda: class_number(asked, [str(number) for number in range(11)]), f"unknown class '{asked}'")
    assert class_number("1", [str(number) for number in range(11)]) == 1


@pytest.mark.parametrize("number", [2, 3, 9, 10])
def test_a_number_that_is_one_classs_label_and_anothers_name_is_refused(tmp_path, number, one_line):
    data = in_tens(tmp_path)
    one_line(lambda: forget_set(ForgetSpec(classes=(number,)), data, None), "give a name in quotes", f'"{number}"')
    named = forget_set(ForgetSpec(classes=(str(number),)), data, None)
    assert named.classes == (["0", "1", "10", *"23456789"].index(str(number)),)


def test_a_number_that_is_label_and_name_of_one_class_is_read(tmp_path):
    assert forget_set(ForgetSpec(classes=(1, 0)), in_tens(tmp_path), None).classes == (0, 1)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("classes: [0, 1]", "classes: [1, 0]"), ("classes: [0]", "classes: [0, 0]"),
        ("classes: [0, 1]", "classes: [one, zero]"), ("classes: [0, 1]", "classes: [1, zero, 0, one]"),
        ("ids: [3, 7]", "ids: [7, 3]"), ("ids: [3, 7]", "ids: [3, 3, 7]"),
        ("{classes: [0, 1], fraction: 0.5}", "{classes: [1, 0], fraction: 0.5}"),
    ],
)  # fmt: skip
def test_one_forget_set_has_one_key_however_it_is_written(write_suite, tmp_path, one, other):
    def keys(text):
        path = write_suite(tmp_path)
        suite = yaml.safe_load(path.read_text())
        suite["experiments"][0]["forget"] = yaml.safe_load(text if text.startswith("{") else f"{{{text}}}")
        path.write_text(yaml.safe_dump(suite))
        [(_, graph)] = plan(load_suite(str(path)), make_runtime(device="cpu"))
        return {stage.key for stage in in_order(graph.stages)}

    assert keys(one) == keys(other)


def test_names_give_the_stages_that_numbers_give(photos, write_suite, tmp_path, one_line):
    def keys(*classes):
        dataset = {"name": "folder", "path": str(photos), "size": 8, "skip_unreadable": True}
        path = write_suite(tmp_path, dataset=dataset, forget={"classes": list(classes)})
        [(_, graph)] = plan(load_suite(str(path)), make_runtime(device="cpu"))
        return {stage.key for stage in in_order(graph.stages)}

    assert keys("church") == keys(1) == keys("n03028079") != keys(0)
    assert keys("tench", "church") == keys(0, 1)
    one_line(lambda: keys("chruch"), "unknown forgotten class", "did you mean 'church'?")
    one_line(lambda: keys(3), "class 3 does not exist", "0 to 2")
    one_line(lambda: keys("tench", 1, "french horn"), "whole training set")


def test_names_that_are_not_declared_are_read(tmp_path, one_line):
    x, y = np.zeros((4, 8, 8), np.uint8), [0, 1, 0, 1]

    @library.dataset("pets")
    def pets(root):
        return x, y, x, y, ("cat", "dog")

    def asked(name, dataset):
        return forget_set(ForgetSpec(classes=(name,)), dataset, None).classes

    assert asked("Dog", DatasetSpec(name="pets")) == (1,)
    assert asked("plane", DatasetSpec(name="cifar10")) == (0,)  # without its files
    assert asked("7", DatasetSpec(name="digits")) == asked("seven", DatasetSpec(name="digits")) == (7,)
    np.savez(tmp_path / "x.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    assert asked("1", DatasetSpec(name="npz", path=str(tmp_path / "x.npz"))) == (1,)
    assert asked("n01443537", DatasetSpec(name="imagenet", size=8, classes="i2i", per_class=1)) == (0,)
    one_line(lambda: asked("cow", DatasetSpec(name="pets")), "unknown forgotten class 'cow'", "cat, dog")


@pytest.mark.slow
def test_a_run_tells_of_its_images_and_old_witnesses_hold_when_one_is_added(photos, write_suite, tmp_path, rub):
    dataset = {"name": "folder", "path": str(photos), "size": 8, "skip_unreadable": True, "validation": 0}
    suite = write_suite(
        tmp_path, dataset=dataset, forget={"classes": ["church"]}, training={"epochs": 8, "batch_size": 16},
        evaluation={"retain_samples": 8},
    )  # fmt: skip
    out, store = tmp_path / "out", tmp_path / "store"
    said = rub("run", suite, "--out", out, "--store", store, "--device", "cpu")
    assert said.code == 0, said
    broken, scaled = f"train/{WNIDS[0]}/3.png", f"train/{WNIDS[1]}/7.png"
    told = [
        "forgotten: class 1 (n03028079, church)",
        f"left out, cannot be read: 1 image: {broken}",
        f"more than 8 bits, scaled to 8: 1 image, such as {scaled}",
    ]
    assert all(line in said.out.splitlines() for line in told)
    (facts,) = read_manifest(out)["data"]
    assert facts["skipped"] == [broken] and facts["forgotten"] == ["1 (n03028079, church)"] and len(facts["notes"]) == 1
    page = next((out / "report" / "experiments").glob("*.html")).read_text()
    assert "1 image left out" in page and broken in page and "1 (n03028079, church)" in page and scaled in page

    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(out / "samples.parquet").to_pylist()
    forgotten = [row for row in rows if row["split"] == "forget"]
    assert forgotten and {row["class"] for row in forgotten} == {"n03028079"}
    assert {row["file"] for row in forgotten} <= {f"train/{WNIDS[1]}/{number}.png" for number in range(12)}

    report = tmp_path / "site"
    assert rub("report", out, "--out", report, "--format", "html").code == 0
    assert broken in next((report / "experiments").glob("*.html")).read_text()

    claims = [json.loads(path.read_text()) for path in (out / "witnesses").glob("*.json")]
    count = sum(len(claim["samples"]) for claim in claims)
    assert count
    shutil.rmtree(store / "data")  # so that the images are read from the folder again
    Image.new("RGB", (8, 8)).save(photos / "train" / WNIDS[0] / "00new.png")
    held = rub("verify", out, "--store", store, "--data-root", photos, "--device", "cpu")
    assert held.code == 0 and f"{count} witnesses held" in held.out, held


def test_an_image_that_went_to_the_other_part_is_found_there(tmp_path):
    from rub.data.folders import list_folder
    from rub.witness.claims import Sources, Witness
    from rub.witness.images import claimed_images, image_sha256

    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for number in range(12):
            Image.new("RGB", (6, 6), (number, 0, 0)).save(tmp_path / name / f"{number}.png")

    from rub.data.sources import load_images

    train = load_images("folder", None, path=tmp_path).train
    claimed = [{"id": int(number), "sha256": image_sha256(image), "value": 0.0}
               for number, image in zip(train.ids, train.images, strict=True)]  # fmt: skip
    witness = Witness(
        task="classification", method="ft", unlearn_seed=0, attack="uma", budget="8/255", split="forget", claim="",
        at_most=0, models={}, data={"key": "0" * 64, "images": "train", "spec": {"name": "folder"}},
        samples=claimed, tensors_sha256="0" * 64,
    )  # fmt: skip
    before = {path.name for path, _ in list_folder(tmp_path).test}
    for number in range(12, 18):  # three more test images: one of them, or of the old ones, moves
        Image.new("RGB", (6, 6), (number, 0, 0)).save(tmp_path / "ant" / f"{number}.png")
    moved = {path.name for path, _ in list_folder(tmp_path).test if int(path.stem) < 12} - before
    assert moved, "else this shows nothing"
    assert claimed_images(witness, Sources(data_root=tmp_path)).ids.tolist() == train.ids.tolist()
