"""Lists of sample ids from files."""

import numpy as np
import pytest
import torch
from PIL import Image

from rub.data.id_files import read_ids
from rub.data.samples import ImageDataset, Samples
from rub.data.sources import load_images
from rub.data.spec import DatasetSpec, ForgetSpec, forget_set
from rub.data.splits import split
from rub.errors import RubError


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("ids.txt", "7\n9\n7\n", (7, 9)),
        ("ids.txt", "3, 1 2\n", (3, 1, 2)),
        ("ids.csv", "5,4\n", (5, 4)),
        ("ids.csv", "label, sample_id\n0,8\n1,6\n", (8, 6)),
        ("ids.csv", "\ufeffindex\n12\n", (12,)),
        ("ids.txt", "", ()),
        ("ids.txt", "train/ant/3.jpg\n", (255460237966849,)),
    ],
)
def test_text_and_tables(tmp_path, name, text, found):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_ids(tmp_path / name) == found


def test_arrays(tmp_path):
    np.save(tmp_path / "ids.npy", np.array([4, 2], np.uint16))
    assert read_ids(tmp_path / "ids.npy") == (4, 2)


@pytest.mark.parametrize(
    ("name", "made", "says"),
    [
        ("none.txt", None, "cannot be read"),
        ("ids.txt", b"one\n", "no list of sample ids"),
        ("ids.txt", b"1_0\n", "no list of sample ids"),
        ("ids.txt", b"0x10\n", "no list of sample ids"),
        ("ids.txt", "\u0661\n".encode(), "no list of sample ids"),
        ("ids.csv", "sample_id\n\uff17\n".encode(), "no list of sample ids"),
        ("ids.csv", b"label,id\n3\n", "no list of sample ids"),
        ("ids.txt", b"9" * 5000, "no list of sample ids|whole numbers from 0"),
        ("ids.txt", b"-1\n", "whole numbers from 0"),
        ("ids.csv", b"file,label\na.png,3\n", "no list of sample ids"),
        ("ids.csv", b"sample_id,label\n", None),
        ("ids.csv", b"id,label\n1\n\"", "no list of sample ids"),
        ("ids.txt", b"\xff\xfe1", "no list of sample ids"),
        ("ids.npy", b"\x93NUMPY", "no list of sample ids"),
        ("ids.json", b"[1]", "no list of sample ids"),
        ("ids.txt", b"99999999999999999999999\n", "whole numbers from 0"),
    ],
)  # fmt: skip
def test_what_is_no_list_is_refused_in_one_line(tmp_path, name, made, says):
    if made is not None:
        (tmp_path / name).write_bytes(made)
    if says is None:
        assert read_ids(tmp_path / name) == ()
        return
    with pytest.raises(RubError, match=says) as error:
        read_ids(tmp_path / name)
    assert "\n" not in str(error.value)


def test_floats_and_tables_of_numbers_are_no_ids(tmp_path):
    for values in (np.zeros(3), np.zeros((2, 2), int), np.array(["1"])):
        np.save(tmp_path / "ids.npy", values)
        with pytest.raises(RubError, match="no list of sample ids"):
            read_ids(tmp_path / "ids.npy")


def images(count):
    labels = torch.arange(count) % 4
    return Samples(torch.zeros(count, 1, 2, 2, dtype=torch.uint8), labels, torch.arange(count))


DATA = ImageDataset(tuple("abcd"), images(80), images(40), (0.5,), (0.5,), False)


def test_a_share_of_classes_is_drawn_from_them_alone():
    spec = ForgetSpec(classes=(1, 3), fraction=0.25, seed=2)
    assert spec.samples and spec.title == "25 % of classes 1, 3"
    parts = split(DATA, spec.model_dump(), 0.0)
    assert len(parts.forget) == 10 and set(parts.forget.labels.tolist()) == {1, 3}
    assert parts.forget_classes == (), "no class is forgotten whole"
    assert set(parts.unseen.labels.tolist()) == {1, 3} and len(parts.unseen) == 20
    other = split(DATA, ForgetSpec(classes=(1, 3), fraction=0.25, seed=3).model_dump(), 0.0)
    assert set(other.forget.ids.tolist()) != set(parts.forget.ids.tolist())
    every = ForgetSpec(classes=(0, 1, 2, 3), fraction=0.25).model_dump()
    assert len(split(DATA, every, 0.0).forget) == 20, "all classes may be drawn from"


def test_ids_of_a_file_are_the_forget_set(tmp_path):
    (tmp_path / "forget.txt").write_text("4 8 12", encoding="utf-8")
    spec = ForgetSpec(ids=str(tmp_path / "forget.txt"))
    assert spec.ids == (4, 8, 12) and spec.samples
    parts = split(DATA, spec.model_dump(), 0.0)
    assert parts.forget.ids.tolist() == [4, 8, 12] and set(parts.unseen.labels.tolist()) == {0}


def test_ids_of_file_names_and_patterns_are_those_of_the_folder(tmp_path):
    for split_name, count in (("train", 6), ("val", 2)):
        for label in ("cat", "dog"):
            for number in range(count):
                path = tmp_path / split_name / label / f"{label}_{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    dataset = DatasetSpec(name="folder", path=str(tmp_path))
    images = load_images("folder", None, path=tmp_path)
    named = {name: number for number, name in images.files.items()}
    wanted = [named[f"train/cat/cat_{number}.png"] for number in (1, 3)]
    (tmp_path / "forget.txt").write_text("train/cat/cat_1.png\ntrain/cat/cat_3.png\n", encoding="utf-8")
    assert sorted(read_ids(tmp_path / "forget.txt")) == sorted(wanted)
    found = forget_set(ForgetSpec(files=("train/cat/*_[13].png",)), dataset, None)
    assert found.files is None and found.ids == tuple(sorted(wanted)) and found.samples
    assert sorted(split(images, found.model_dump(), 0.0).forget.ids.tolist()) == sorted(wanted)
    with pytest.raises(RubError, match=r"no training image is called like 'val/\*'; the first is train/"):
        forget_set(ForgetSpec(files=("val/*",)), dataset, None)
    with pytest.raises(RubError, match="data set 'digits' has no files with names; give ids"):
        forget_set(ForgetSpec(files=("*",)), DatasetSpec(name="digits"), None)
    assert "files" not in ForgetSpec(fraction=0.1).model_dump(), "what is left out is in no key"
