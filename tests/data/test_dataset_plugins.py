"""Data sets that others add: read, checked and identified like those that ship, and used by their name."""

import numpy as np
import pytest
import torch

import rub
from rub.data.base import source_of
from rub.data.folders import list_folder, read_listing
from rub.data.selection import EVERYTHING, Read, Selection
from rub.data.sources import check, fingerprint, load_images
from rub.data.spec import DatasetSpec, data_stage
from rub.errors import RubError

IMAGES = np.arange(6 * 8 * 8, dtype=np.uint8).reshape(6, 8, 8)
LABELS = np.array([0, 1, 2, 0, 1, 2])
PLUGIN = """
import numpy as np
import rub

@rub.dataset("grey", images=6, classes=3)
def grey(root):
    images = np.arange(6 * 64, dtype=np.uint8).reshape(6, 8, 8)
    return images, [0, 1, 2, 0, 1, 2], images, [0, 1, 2, 0, 1, 2]
"""


def test_arrays_and_tensors_of_any_layout_become_the_same_images():
    colour = np.repeat(IMAGES[..., None], 3, axis=-1)

    @rub.dataset("grey")
    def grey(root):
        return IMAGES / 255, LABELS, torch.from_numpy(IMAGES), LABELS.tolist()

    @rub.dataset("colour", mean=(0.5,) * 3, std=(0.25,) * 3, flip=True)
    def colours(root):
        return colour, LABELS, colour.transpose(0, 3, 1, 2), LABELS, ("a", "b", "c")

    plain, coloured = load_images("grey", None), load_images("colour", None)
    assert plain.train.images[:, 0].numpy().tolist() == plain.test.images[:, 0].numpy().tolist() == IMAGES.tolist()
    assert (plain.classes, plain.flip) == (("0", "1", "2"), False)
    assert plain.mean == pytest.approx((IMAGES.mean() / 255,), abs=1e-6)
    assert torch.equal(coloured.train.images, coloured.test.images)
    assert (coloured.classes, coloured.flip) == (("a", "b", "c"), True)
    assert (coloured.mean, coloured.std) == ((0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((IMAGES / 2, LABELS, IMAGES, LABELS), ("x_train", "in [0, 1], or uint8", "divide by 255")),
        ((IMAGES, LABELS[:5], IMAGES, LABELS), ("x_train", "6 images, 5 labels")),
        ((IMAGES, LABELS, IMAGES[:, :4], LABELS), ("one shape",)),
        ((IMAGES, LABELS, IMAGES, LABELS, ["a", "b"]), ("names 2 classes", "label is 2")),
        ((IMAGES, LABELS), ("(x_train, y_train, x_test, y_test)", "got tuple")),
        (None, ("got NoneType",)),
    ],
)
def test_what_is_no_data_set_is_refused_by_name(given, words, one_line):
    rub.dataset("odd")(lambda root: given)
    one_line(lambda: load_images("odd", None), "dataset 'odd'", *words)


def test_a_reader_that_fails_is_named_with_its_reason(one_line):
    @rub.dataset("broken")
    def broken(root):
        raise KeyError("labels")

    one_line(lambda: fingerprint("broken", None), "dataset 'broken'", "KeyError: 'labels'")


def test_the_signature_says_which_options_are_taken(one_line):
    seen = []

    @rub.dataset("sized")
    def sized(root, *, size, selection=EVERYTHING):
        seen.append((root, size, selection))
        return IMAGES, LABELS, IMAGES, LABELS

    rub.dataset("plain")(lambda root: (IMAGES, LABELS, IMAGES, LABELS))
    load_images("sized", None, size=16, selection=Selection(per_class=2))
    assert seen == [(None, 16, Selection(per_class=2))]
    one_line(lambda: check("sized"), "give dataset.size")
    one_line(lambda: check("plain", size=16), "dataset.size", "imagenet", "sized only")
    one_line(lambda: check("plain", selection=Selection(per_class=2)), "dataset.per_class", "sized only")
    one_line(
        lambda: rub.dataset("strange")(lambda root, *, colour: None),
        "'strange'",
        "'colour'",
        "size, selection, progress",
    )


def test_a_layout_is_looked_for_below_the_data_root_and_identifies_the_data(tmp_path, one_line):
    @rub.dataset("filed", layout="my-arrays")
    def filed(folder):
        images = np.load(folder / "images.npy")
        return images, LABELS, images, LABELS

    one_line(lambda: fingerprint("filed", None), "no --data-root", "my-arrays/")
    one_line(lambda: load_images("filed", tmp_path), f"my-arrays/ is not under {tmp_path}", "RUB_DATA)")
    (tmp_path / "my-arrays").mkdir()
    np.save(tmp_path / "my-arrays" / "images.npy", IMAGES)
    before = fingerprint("filed", tmp_path)
    assert torch.equal(load_images("filed", tmp_path).train.images[:, 0], torch.from_numpy(IMAGES))
    np.save(tmp_path / "my-arrays" / "images.npy", IMAGES[::-1])
    assert fingerprint("filed", tmp_path) != before


def test_a_path_of_the_suite_is_given_to_those_that_take_one(tmp_path, one_line):
    @rub.dataset("single", by_path=True)
    def single(path):
        images = np.load(path)
        return images, LABELS, images, LABELS

    np.save(tmp_path / "some.npy", IMAGES)
    assert len(load_images("single", None, path=tmp_path / "some.npy").train) == 6
    assert DatasetSpec(name="single", path="data/some.npy").title == "some"
    assert DatasetSpec(name="single", path="data/cifar10.npy").title == "cifar10 (single)"
    one_line(lambda: load_images("single", None), "needs dataset.path")
    one_line(lambda: load_images("cifar10", None, path=tmp_path), "folder, npz and single")


def test_without_files_what_the_reader_gives_identifies_the_data():
    labels = LABELS.copy()
    rub.dataset("made")(lambda root: (IMAGES, labels, IMAGES, LABELS))
    before = fingerprint("made", None)
    assert fingerprint("made", None) == before
    labels[0] = 2
    assert fingerprint("made", None) != before


def test_class_folders_are_read_with_the_decoder_that_ships(tmp_path):
    from PIL import Image

    for name in ("flat/a", "flat/b"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (9, 8), (number, 0, 0)).save(tmp_path / name / f"{number}.png")

    @rub.dataset("folders", by_path=True)
    def folders(folder, *, size, selection, progress) -> Read:
        return read_listing(list_folder(folder / "flat", selection), size, selection.skip_unreadable, progress)

    found = load_images("folders", None, path=tmp_path, size=8, selection=Selection(("b", "a"), per_class=1))
    assert (found.classes, found.train.labels.tolist(), found.train.shape) == (("b", "a"), [0, 1], (3, 8, 8))


def test_the_stage_key_holds_the_source_of_a_plugin(tmp_path):
    from rub.registry import load_plugin, scoped

    def key(text):
        (tmp_path / "plugin.py").write_text(text)
        with scoped():
            (entry,) = load_plugin(tmp_path / "plugin.py")
            assert (entry.name, entry.task) == ("grey", "any")
            assert source_of("grey").classes == 3
            keys = {data_stage("classification", DatasetSpec(name="grey"), None).key for _ in range(2)}
            assert len(keys) == 1
            return keys

    assert key(PLUGIN) != key(PLUGIN + "# another reader\n")
    assert "source" not in data_stage("classification", DatasetSpec(name="digits"), None).spec


def test_a_witness_names_the_data_as_a_suite_does(tmp_path):
    """Its images are checked one by one, so that neither place nor source of the reader counts."""
    from rub.api import make_runtime
    from rub.pipeline.runtime import compute
    from rub.registry import TASKS, load_plugin
    from rub.store.artifacts import Store
    from rub.witness.images import data_reference

    (tmp_path / "plugin.py").write_text(PLUGIN)
    load_plugin(tmp_path / "plugin.py")
    stage, task = (
        data_stage("classification", DatasetSpec(name="grey"), None),
        TASKS.get("classification", "classification").load(),
    )
    made = compute(stage, task, {}, Store(tmp_path / "store"), make_runtime(device="cpu"))
    assert made.manifest["spec"]["source"]
    assert DatasetSpec.model_validate(data_reference(made, "train")["spec"]) == DatasetSpec(name="grey")


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(RubError, match="dataset 'digits'"):
        rub.dataset("digits")(lambda root: None)


def test_it_is_listed_and_its_forgotten_classes_are_checked_before_the_run(tmp_path, rub, refused):
    (tmp_path / "plugin.py").write_text(PLUGIN)
    said = rub("list", "datasets", "--plugin", tmp_path / "plugin.py")
    assert "grey" in said.out and "rub_plugin_plugin" in said.out
    wrong = ("--set", "classification.dataset=grey", "--set", "classification.forget.classes=[7]")
    refused(
        "plan", "quick", "--task", "classification", "--plugin", tmp_path / "plugin.py", *wrong, says="classes 0 to 2"
    )


def test_rub_show_says_what_is_declared(tmp_path, rub):
    (tmp_path / "plugin.py").write_text(PLUGIN.replace("images=6", 'layout="grey-arrays", images=6'))
    said = rub("show", "grey", "--plugin", tmp_path / "plugin.py").out
    for part in ("grey-arrays/ below the data root", "6 training images, 3 classes", "of its training images"):
        assert part in said
    said = rub("show", "tiny-imagenet").out
    assert "tiny-imagenet-200/ below the data root, else zh-plus/tiny-imagenet on the hub" in said


def test_a_name_goes_before_a_folder_of_that_name(tmp_path, monkeypatch):
    from rub.audits.base import dataset_of

    rub.dataset("grey")(lambda root: (IMAGES, LABELS, IMAGES, LABELS))
    monkeypatch.chdir(tmp_path)
    for name in ("grey", "photos"):
        (tmp_path / name).mkdir()
    assert dataset_of("grey", None) == {"name": "grey", "size": None, "validation": 0.0}
    assert dataset_of("photos", 32)["path"] == "photos"
