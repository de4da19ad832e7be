"""Data sources: what is read is what was written, and damaged or hostile files end in one line that names them."""

import errno
import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rub.data import catalog, hub, sources
from rub.data.folders import sample_id
from rub.data.samples import Samples, concatenate
from rub.data.selection import Selection
from rub.data.sources import fingerprint, load_images
from rub.data.spec import DatasetSpec, ForgetSpec, forget_set
from rub.errors import RubError


def pixels(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def python2(text):
    """Pickle a dictionary the way Python 2 did: byte-string keys, numpy.core, protocol 2."""
    return pickle.dumps(text, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


@pytest.fixture
def cifar(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    arrays = {}
    for seed, name in enumerate([*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"]):
        arrays[name] = pixels(4, seed)
        labels = [(seed + place) % 10 for place in range(4)]
        # both styles of key occur in the wild
        batch = {b"data": arrays[name], b"labels": labels} if seed % 2 else {"data": arrays[name], "labels": labels}
        (folder / name).write_bytes(python2(batch))
    (folder / "batches.meta").write_bytes(python2({b"label_names": [b"class%d" % index for index in range(10)]}))
    return tmp_path, arrays


def test_digits_are_sklearns():
    from sklearn.datasets import load_digits

    data = load_images("digits", None)
    pixel, label = load_digits(return_X_y=True)
    both = concatenate([data.train, data.test])
    assert sorted(both.ids.tolist()) == list(range(1797))
    assert torch.equal(both.labels, torch.tensor(label)[both.ids])
    expected = torch.tensor(pixel)[both.ids] * 255 / 16
    assert (both.images.flatten(1).double() - expected).abs().max() <= 0.5
    assert both.images.max() == 255
    per_class, of_test = Counter(label.tolist()), Counter(data.test.labels.tolist())
    assert all(abs(of_test[digit] / per_class[digit] - 0.2) < 0.01 for digit in range(10))
    assert not data.flip
    unit = data.train.images.double() / 255
    assert data.mean == pytest.approx([unit.mean().item()], abs=1e-5)
    assert data.std == pytest.approx([unit.std(correction=0).item()], abs=1e-5)
    again = load_images("digits", None)
    assert torch.equal(again.test.ids, data.test.ids)
    assert fingerprint("digits", None) == fingerprint("digits", None)


@pytest.mark.parametrize("size", [8, 20, 32])
def test_digits_are_upscaled_bilinearly(size):
    small, large = load_images("digits", None), load_images("digits", None, size=size)
    for before, after in ((small.train, large.train), (small.test, large.test)):
        assert torch.equal(before.ids, after.ids)
        assert torch.equal(before.labels, after.labels)
        expected = torch.nn.functional.interpolate(before.images.double(), size=(size, size), mode="bilinear")
        assert after.images.shape == (len(before), 1, size, size)
        assert (after.images.double() - expected).abs().max() <= 1  # Pillow rounds after each of its two passes
    unit = large.train.images.double() / 255
    assert large.mean == pytest.approx([unit.mean().item()], abs=1e-5)


def test_cifar10_in_batch_order(cifar):
    root, arrays = cifar
    data = load_images("cifar10", root)
    expected = np.concatenate([arrays[f"data_batch_{index}"] for index in range(1, 6)]).reshape(-1, 3, 32, 32)
    assert np.array_equal(data.train.images.numpy(), expected)
    assert data.train.ids.tolist() == list(range(20))
    assert data.train.labels[:5].tolist() == [0, 1, 2, 3, 1]
    assert np.array_equal(data.test.images.numpy().reshape(4, 3072), arrays["test_batch"])
    assert data.classes[3] == "class3"
    assert data.mean == (0.4914, 0.4822, 0.4465)
    assert data.std == (0.2470, 0.2435, 0.2616)
    assert data.flip


def test_cifar100_has_fine_labels(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    names = [f"fine{index}" for index in range(100)]
    (folder / "meta").write_bytes(python2({"fine_label_names": names, "coarse_label_names": ["a"] * 20}))
    for seed, name in enumerate(("train", "test")):
        batch = {b"data": pixels(3, seed), b"fine_labels": [99, 5, 7], b"coarse_labels": [1, 2, 3]}
        (folder / name).write_bytes(python2(batch))
    data = load_images("cifar100", tmp_path)
    assert data.train.labels.tolist() == [99, 5, 7]
    assert data.classes == tuple(names)
    assert np.array_equal(data.test.images.numpy().reshape(3, -1), pixels(3, 1))
    coarse = load_images("cifar100-coarse", tmp_path)
    assert coarse.train.labels.tolist() == [1, 2, 3] and coarse.classes == ("a",) * 20
    assert np.array_equal(coarse.train.images, data.train.images)
    for name in ("cifar100", "cifar100-coarse"):
        found = forget_set(ForgetSpec(files=("train/*/fine5/*",)), DatasetSpec(name=name), tmp_path)
        assert found.ids == (1,), "a subclass"


def test_a_python2_pickle_of_byte_strings_is_read(cifar):
    root, arrays = cifar
    raw = arrays["data_batch_1"]
    # by hand, as Python 2 wrote it: the array's state is a byte string (U), not text passed through _codecs.encode
    kind = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    state = b"(K\x01K\x04M\x00\x0c\x86" + kind + b"\x89"
    content = b"T" + len(raw.tobytes()).to_bytes(4, "little") + raw.tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR" + state + content + b"tb"
    labels = b"](K\x01K\x02K\x03K\x04e"
    batch = b"\x80\x02}(U\x04data" + array + b"U\x06labels" + labels + b"u."
    (root / "cifar-10-batches-py" / "data_batch_1").write_bytes(batch)
    data = load_images("cifar10", root)
    assert np.array_equal(data.train.images[:4].numpy().reshape(4, -1), raw)
    assert data.train.labels[:4].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_batches_of_every_pickle_protocol_are_read(cifar, protocol):
    root, arrays = cifar
    batch = {"data": arrays["test_batch"], "labels": [0, 1, 2, 3]}
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(batch, protocol=protocol))
    assert np.array_equal(load_images("cifar10", root).test.images.numpy().reshape(4, -1), arrays["test_batch"])


def test_a_hostile_pickle_runs_nothing(cifar, one_line):
    root, _ = cifar
    proof, path = root / "proof", root / "cifar-10-batches-py" / "data_batch_3"

    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(proof),)

    path.write_bytes(pickle.dumps({"data": Hostile(), "labels": []}, protocol=2))
    one_line(lambda: load_images("cifar10", root), path, "mkdir")
    assert not proof.exists()
    pickle.loads(path.read_bytes())  # the file is as dangerous as it claims to be
    assert proof.exists()


@pytest.mark.parametrize("module", ["builtins", "os", "numpy", "subprocess"])
def test_every_other_global_is_refused(cifar, module, one_line):
    root, _ = cifar
    path = root / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(b"\x80\x02c" + module.encode() + b"\nload\n.")
    one_line(lambda: load_images("cifar10", root), path, f"{module}.load")


@pytest.mark.parametrize("keep", [0, 1, 40, 5000])
def test_truncated_batches_are_named(cifar, keep, one_line):
    root, _ = cifar
    path = root / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(path.read_bytes()[:keep])
    one_line(lambda: load_images("cifar10", root), path)


@pytest.mark.parametrize(
    "batch",
    [
        [1, 2],
        {"data": "text", "labels": []},
        {"data": pixels(2, 0), "labels": [1]},
        {"data": pixels(2, 0), "labels": [1, 10]},
        {"data": pixels(2, 0), "labels": [1, [2]]},
        {"data": pixels(2, 0).astype(np.int16), "labels": [1, 2]},
        {"data": pixels(2, 0)[:, :100], "labels": [1, 2]},
        {"labels": [1, 2]},
    ],
)
def test_batches_of_another_shape_are_named(cifar, batch, one_line):
    root, _ = cifar
    path = root / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(pickle.dumps(batch, protocol=2))
    one_line(lambda: load_images("cifar10", root), path)


def test_a_missing_batch_is_named(cifar, one_line):
    root, _ = cifar
    path = root / "cifar-10-batches-py" / "data_batch_5"
    path.unlink()
    one_line(lambda: load_images("cifar10", root), path)


def test_the_fingerprint_follows_bytes_and_names(cifar):
    root, _ = cifar
    first = fingerprint("cifar10", root)
    assert first == fingerprint("cifar10", root)
    path = root / "cifar-10-batches-py" / "data_batch_1"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"!")
    second = fingerprint("cifar10", root)
    path.write_bytes(content)
    path.rename(path.with_name("data_batch_9"))
    assert len({first, second, fingerprint("cifar10", root)}) == 3


def picture(path, colour, size=(64, 64), kind=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, kind)


def test_tiny_imagenet_follows_wnids(tmp_path, one_line):
    base = tmp_path / "tiny-imagenet-200"
    base.mkdir()
    (base / "wnids.txt").write_text("n2\nn1\n")  # not sorted: the file decides
    for wnid, colour in (("n1", (10, 0, 0)), ("n2", (0, 200, 0))):
        for index in range(2):
            picture(base / "train" / wnid / "images" / f"{wnid}_{index}.JPEG", colour)
    picture(base / "val" / "images" / "val_1.JPEG", (0, 200, 0))
    picture(base / "val" / "images" / "val_0.JPEG", (10, 0, 0))
    annotations = base / "val" / "val_annotations.txt"
    annotations.write_text("val_1.JPEG\tn2\t0\t0\t1\t1\nval_0.JPEG\tn1\t0\t0\t1\t1\n")
    before = sorted(base.rglob("*"))
    data = load_images("tiny-imagenet", tmp_path)
    assert data.classes == ("n2", "n1")
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    assert data.test.labels.tolist() == [1, 0]  # val_0 first: sorted names
    assert data.train.images.shape == (4, 3, 64, 64)
    assert abs(int(data.train.images[0, 1, 5, 5]) - 200) < 4
    assert data.std == (0.229, 0.224, 0.225)
    assert sorted(base.rglob("*")) == before  # nothing is moved
    for bad in ("val_0.JPEG", "../x.JPEG\tn1", "val_0.JPEG\tn3", "\n\n"):
        annotations.write_text(bad)
        one_line(lambda: load_images("tiny-imagenet", tmp_path), annotations)


def test_a_folder_with_train_and_val(tmp_path, one_line):
    for part, count in (("train", 2), ("val", 1)):
        for label, name in enumerate(("ant", "bee")):
            for index in range(count):
                picture(tmp_path / part / name / f"{index}.png", (label * 100, index, 7), (8, 8))
    data = load_images("folder", None, path=tmp_path)
    assert data.classes == ("ant", "bee")
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    assert data.train.images[:, :, 0, 0].tolist() == [[0, 0, 7], [0, 1, 7], [100, 0, 7], [100, 1, 7]]
    assert data.test.labels.tolist() == [0, 1]
    assert data.mean == pytest.approx([50 / 255, 0.5 / 255, 7 / 255], abs=1e-5)
    assert data.std[0] == pytest.approx(50 / 255, abs=1e-5)
    picture(tmp_path / "val" / "cat" / "0.png", (1, 2, 3), (8, 8))
    one_line(lambda: load_images("folder", None, path=tmp_path), tmp_path / "val" / "cat")


def test_a_flat_folder_is_split_by_name(tmp_path):
    for name, count in (("a", 10), ("b", 15), ("c", 2)):
        for index in range(count):
            picture(tmp_path / name / f"{index}.png", (index, 0, 0), (6, 6))
    data = load_images("folder", None, path=tmp_path)
    assert Counter(data.test.labels.tolist()) == {0: 2, 1: 3, 2: 1}
    assert len(data.train) == 27 - 6
    again = load_images("folder", None, path=tmp_path)
    assert torch.equal(again.test.images, data.test.images)
    train, test = (
        {(label, red) for label, red in zip(p.labels.tolist(), p.images[:, 0, 0, 0].tolist(), strict=True)}
        for p in (data.train, data.test)
    )
    assert len(train | test) == 27  # every image is in exactly one split
    assert not train & test


def test_images_of_other_sizes_need_size(tmp_path, one_line):
    picture(tmp_path / "train" / "a" / "0.png", (1, 1, 1), (8, 8))
    picture(tmp_path / "train" / "b" / "0.png", (1, 1, 1), (8, 10))
    picture(tmp_path / "test" / "a" / "0.png", (1, 1, 1), (8, 8))
    picture(tmp_path / "test" / "b" / "0.png", (1, 1, 1), (8, 8))
    one_line(lambda: load_images("folder", None, path=tmp_path), tmp_path / "train" / "b" / "0.png", "dataset.size")
    wide = Image.new("RGB", (40, 16), (0, 0, 0))
    wide.paste((255, 255, 255), (12, 0, 28, 16))  # the centre square is white
    wide.save(tmp_path / "train" / "b" / "0.png")
    data = load_images("folder", None, path=tmp_path, size=8)
    assert data.train.images.shape == (2, 3, 8, 8)
    assert data.train.images[1, :, :, 1:-1].min() > 250


def test_damaged_and_absent_folders_are_named(tmp_path, one_line):
    for name in ("a", "b"):
        for index in range(5):
            picture(tmp_path / "data" / name / f"{index}.png", (index, 0, 0), (6, 6))
    broken = tmp_path / "data" / "b" / "3.png"
    broken.write_bytes(broken.read_bytes()[:40])
    one_line(lambda: load_images("folder", None, path=tmp_path / "data"), broken)
    broken.write_bytes(b"")
    one_line(lambda: load_images("folder", None, path=tmp_path / "data"), broken)
    one_line(lambda: load_images("folder", None, path=tmp_path / "nowhere"), tmp_path / "nowhere")
    one_line(lambda: load_images("folder", None, path=broken), broken)
    one_line(lambda: load_images("folder", None), "dataset.path")
    (tmp_path / "empty").mkdir()
    one_line(lambda: load_images("folder", None, path=tmp_path / "empty"), tmp_path / "empty")


def test_unreadable_images_are_skipped_and_listed_only_when_asked(tmp_path, one_line):
    shades = {}
    for part, count in (("train", 4), ("val", 2)):
        for label, name in enumerate(("ant", "bee")):
            for index in range(count):
                shade = 10 + 100 * label + index
                picture(tmp_path / part / name / f"{index}.png", (shade, 0, 0), (8, 8))
                shades[part, label, index] = shade
    broken = [tmp_path / "train" / "ant" / "0.png", tmp_path / "train" / "bee" / "2.png"]
    broken[0].write_bytes(broken[0].read_bytes()[:50])
    broken[1].write_bytes(b"text")
    one_line(lambda: load_images("folder", None, path=tmp_path, size=8), broken[0])
    for size in (8, None):  # without a size, the first readable image decides
        data = load_images("folder", None, path=tmp_path, size=size, selection=Selection(skip_unreadable=True))
        assert data.skipped == ("train/ant/0.png", "train/bee/2.png")
        assert data.train.ids.tolist() == [
            sample_id(f"train/{name}/{index}.png")
            for name, kept in (("ant", (1, 2, 3)), ("bee", (0, 1, 3)))
            for index in kept
        ]
        assert data.train.images[:, 0, 3, 3].tolist() == [11, 12, 13, 110, 111, 113]
        assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert len(data.test) == 4
    assert load_images("folder", None, path=tmp_path / "val").skipped == ()
    for path in (tmp_path / "val" / "bee").iterdir():
        path.write_bytes(b"")
    one_line(
        lambda: load_images("folder", None, path=tmp_path, size=8, selection=Selection(skip_unreadable=True)), "'bee'"
    )


def test_a_file_that_the_disk_does_not_give_is_never_skipped(tmp_path, one_line):
    for name in ("a", "b"):
        for index in range(5):
            picture(tmp_path / name / f"{index}.png", (index, 0, 0), (6, 6))
    (gone := tmp_path / "a" / "5.png").symlink_to(tmp_path / "nowhere.png")
    one_line(lambda: load_images("folder", None, path=tmp_path, selection=Selection(skip_unreadable=True)), gone)


def test_a_part_of_a_folder(tmp_path, one_line):
    for part, count in (("train", 7), ("test", 4)):
        for label, name in enumerate("abc"):
            for index in range(count):
                picture(tmp_path / part / name / f"{index}.png", (50 * label + index, 0, 0), (6, 6))
    chosen = Selection(("c", "a"), per_class=3, test_per_class=2)
    data = load_images("folder", None, path=tmp_path, selection=chosen)
    assert data.classes == ("c", "a")
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    reds = []
    for label, name in ((2, "c"), (0, "a")):  # by hand: the three smallest hashes, back in the order of the names
        ranked = sorted(range(7), key=lambda index, name=name: sha256(f"{name}/{index}.png".encode()).hexdigest())
        reds += [50 * label + index for index in sorted(ranked[:3])]
    assert data.train.images[:, 0, 0, 0].tolist() == reds
    one_line(
        lambda: load_images("folder", None, path=tmp_path, selection=Selection(("a", "d", "../b"))), "'d'", "2 of the 3"
    )
    flat = load_images("folder", None, path=tmp_path / "train", selection=Selection(per_class=2))
    whole = load_images("folder", None, path=tmp_path / "train")
    assert len(flat.train) == 6
    assert torch.equal(flat.test.images, whole.test.images)  # the split does not depend on the selection
    assert set(flat.train.images[:, 0, 0, 0].tolist()) <= set(whole.train.images[:, 0, 0, 0].tolist())


def test_the_fingerprint_of_a_part_follows_that_part(tmp_path):
    for part in ("train", "test"):
        for name in "abc":
            for index in range(3):
                picture(tmp_path / part / name / f"{index}.png", (index, 0, 0), (6, 6))
    chosen = Selection(("a", "b"))
    part, whole = (fingerprint("folder", None, path=tmp_path, selection=item) for item in (chosen, Selection()))
    assert fingerprint("folder", None, path=tmp_path, selection=Selection(("a", "b"), skip_unreadable=True)) == part
    (tmp_path / "train" / "c" / "0.png").write_bytes(b"other")
    assert fingerprint("folder", None, path=tmp_path, selection=chosen) == part
    assert fingerprint("folder", None, path=tmp_path) != whole
    (tmp_path / "train" / "b" / "0.png").write_bytes(b"other")
    assert fingerprint("folder", None, path=tmp_path, selection=chosen) != part


@pytest.mark.parametrize("layout", ["NHW", "NHWC", "NCHW"])
def test_npz_layouts(tmp_path, layout):
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 5, 7), dtype=np.uint8)
    stored = {"NHW": images[:, 0], "NHWC": images.transpose(0, 2, 3, 1), "NCHW": images}[layout]
    path = tmp_path / "data.npz"
    labels = np.array([0, 1, 2, 0, 1, 2], dtype=np.uint8)
    np.savez(path, x_train=stored, y_train=labels[:, None], x_test=stored[:2], y_test=labels[:2])
    data = load_images("npz", None, path=path)
    expected = images[:, :1] if layout == "NHW" else images
    assert np.array_equal(data.train.images.numpy(), expected)
    assert data.train.labels.tolist() == labels.tolist()
    assert data.test.ids.tolist() == [0, 1]
    assert data.classes == ("0", "1", "2")
    assert data.mean == pytest.approx((expected / 255).mean(axis=(0, 2, 3)).tolist(), abs=1e-5)
    assert fingerprint("npz", None, path=path) == fingerprint("npz", None, path=path)


def test_unusable_npz_is_named(tmp_path, one_line):
    path, y = tmp_path / "data.npz", np.array([0, 1])
    x = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    good = {"x_train": x, "y_train": y, "x_test": x, "y_test": y}
    for change in (
        {"x_train": x + np.float32(2)},
        {"y_train": y[:1]},
        {"y_test": y - 1},
        {"y_test": y.astype(np.float32)},
        {"x_test": x[:, :4]},
        {"x_train": np.zeros((2, 8, 8, 4), dtype=np.uint8)},
        {"y_train": np.array([{}, {}], dtype=object)},
    ):
        np.savez(path, **{**good, **change})
        one_line(lambda: load_images("npz", None, path=path), path)
    np.savez(path, **{name: value for name, value in good.items() if name != "y_test"})
    one_line(lambda: load_images("npz", None, path=path), path, "y_test")
    np.savez_compressed(path, **good)
    whole = path.read_bytes()
    for damaged in (b"", b"text", whole[:100], whole[:60] + b"\xff" * 30 + whole[90:]):
        path.write_bytes(damaged)
        one_line(lambda: load_images("npz", None, path=path), path)


def test_wrong_requests(one_line):
    one_line(lambda: load_images("cifar11", None), "did you mean 'cifar10'")
    one_line(lambda: fingerprint("cifar11", None), "did you mean 'cifar10'")
    for name in ("cifar10", "cifar100", "tiny-imagenet"):
        one_line(lambda name=name: load_images(name, None, size=16), name, "dataset.size")
    for selection, field in (
        (Selection(("a", "b")), "dataset.classes"),
        (Selection(per_class=3), "dataset.per_class"),
        (Selection(test_per_class=3), "dataset.test_per_class"),
        (Selection(skip_unreadable=True), "dataset.skip_unreadable"),
    ):
        for name in ("digits", "cifar10", "npz"):
            one_line(lambda name=name, chosen=selection: load_images(name, None, selection=chosen), name, field)
    one_line(lambda: load_images("cifar10", None, path=Path()), "cifar10", "dataset.path")
    for classes in ((), ("a",), ("a", "b", "a")):
        one_line(lambda c=classes: load_images("folder", None, selection=Selection(c)), "dataset.classes", len(classes))
    one_line(lambda: load_images("folder", None, selection=Selection(per_class=0)), "dataset.per_class", "1 or more")


def test_without_data_and_hub_both_ways_are_named(tmp_path, monkeypatch, one_line):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(hub, "reachable", lambda seconds: False)
    import datasets
    import huggingface_hub.constants as constants

    seen = []

    def absent(source):
        seen.append((source, constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE))
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", absent)
    before = constants.HF_HUB_OFFLINE
    for call in (lambda: load_images("cifar100", tmp_path), lambda: fingerprint("cifar100", tmp_path)):
        one_line(call, "cifar-100-python/", tmp_path, "--data-root", "uoft-cs/cifar100")
    assert seen == [("uoft-cs/cifar100", True, True)] * 2  # the cache is still asked
    assert before == constants.HF_HUB_OFFLINE  # and the process is left as it was


def test_a_hub_that_never_answers_is_given_up(monkeypatch):
    import socket

    import huggingface_hub.constants as constants

    with socket.socket() as listener:  # takes connections and stays silent
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        assert not hub.reachable(0.3)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub.reachable(60)


def test_what_the_hub_gives_is_read(monkeypatch):
    import datasets

    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=[f"c{index}" for index in range(10)])}
    )
    arrays = [np.full((32, 32, 3), shade, dtype=np.uint8) for shade in (3, 90, 200)]
    rows = {"img": [Image.fromarray(array) for array in arrays], "label": [2, 9, 0]}
    part = datasets.Dataset.from_dict(rows, features=features)
    monkeypatch.setattr(hub, "reachable", lambda seconds: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda source: {"train": part, "test": part.select([1])})
    data = load_images("cifar10", None)
    assert data.train.images[:, 0, 0, 0].tolist() == [3, 90, 200]
    assert data.train.images.shape == (3, 3, 32, 32)
    assert data.train.labels.tolist() == [2, 9, 0]
    assert data.test.labels.tolist() == [9]
    assert data.classes[9] == "c9"
    assert fingerprint("cifar10", None) == fingerprint("cifar10", None)


def test_statistics_agree_with_numpy():
    images = np.random.default_rng(1).integers(0, 256, (2100, 2, 3, 3), dtype=np.uint8)
    index = torch.arange(2100)
    mean, std = sources.statistics(Samples(torch.from_numpy(images), index, index))
    assert mean == pytest.approx((images / 255).mean(axis=(0, 2, 3)).tolist(), abs=1e-6)
    assert std == pytest.approx((images / 255).std(axis=(0, 2, 3)).tolist(), abs=1e-6)


@pytest.mark.slow
def test_importing_sources_imports_no_heavy_library():
    code = "import json, sys, rub.data.sources; print(json.dumps([m for m in sys.modules if '.' not in m]))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"sklearn", "datasets", "PIL"} & set(json.loads(out))


def test_missing_class_names_are_named(cifar, one_line):
    root, _ = cifar
    path = root / "cifar-10-batches-py" / "batches.meta"
    path.write_bytes(python2({"label_names": [b"a", b"b"]}))
    one_line(lambda: load_images("cifar10", root), path, "10 class names")
    path.unlink()
    one_line(lambda: load_images("cifar10", root), path, "missing")


def test_the_fingerprint_does_not_depend_on_the_root(cifar, tmp_path):
    root, _ = cifar
    first = fingerprint("cifar10", root)
    (elsewhere := tmp_path / "else" / "where").mkdir(parents=True)
    (root / "cifar-10-batches-py").rename(elsewhere / "cifar-10-batches-py")
    assert fingerprint("cifar10", elsewhere) == first


def test_a_long_look_through_files_says_how_far_it_is(tmp_path, monkeypatch, caplog, rub, write_suite):
    for name in ("a", "b"):
        for index in range(4):
            picture(tmp_path / name / f"{index}.bmp", (index, 0, 0), (32, 32))  # 3,126 bytes each
    quiet = fingerprint("folder", None, path=tmp_path)
    monkeypatch.setattr("rub.data.folders.SAID", 10_000)
    with caplog.at_level("INFO", logger="rub"):
        assert fingerprint("folder", None, path=tmp_path) == quiet
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert all(line.startswith("0.0 GB of data looked through for changes, now at ") for line in said)
    suite = write_suite(tmp_path, dataset={"name": "folder", "path": str(tmp_path)})
    assert rub("plan", suite).err.count("looked through for changes") == 2


def test_an_added_image_moves_at_most_one_other_of_its_class(tmp_path):
    for name in ("a", "b"):
        for index in range(11):
            picture(tmp_path / name / f"{index}.png", (index, 0, 0), (6, 6))

    def held():
        test = load_images("folder", None, path=tmp_path).test
        return set(zip(test.labels.tolist(), test.images[:, 0, 0, 0].tolist(), strict=True))

    for index in range(11, 20):
        before = held()
        picture(tmp_path / "a" / f"{index}.png", (index, 0, 0), (6, 6))
        moved = {pair for pair in before ^ held() if pair != (0, index)}
        assert len(moved) <= 1
        assert all(label == 0 for label, _ in moved)


def test_tiny_imagenet_with_a_damaged_or_hostile_listing(tmp_path, one_line):
    base = tmp_path / "tiny-imagenet-200"
    picture(base / "train" / "n1" / "images" / "0.JPEG", (9, 9, 9))
    picture(base / "val" / "images" / "0.JPEG", (9, 9, 9))
    picture(tmp_path / "images" / "secret.png", (1, 2, 3))
    (base / "wnids.txt").write_text("n1\n")
    (annotations := base / "val" / "val_annotations.txt").write_text("0.JPEG\tn1\n")
    assert len(load_images("tiny-imagenet", tmp_path).test) == 1
    for bad in ("../../images/secret.png\tn1", f"{tmp_path}/images/secret.png\tn1", ""):
        annotations.write_text(bad)
        one_line(lambda: load_images("tiny-imagenet", tmp_path), annotations)
    annotations.write_text("1.JPEG\tn1\n")
    one_line(lambda: load_images("tiny-imagenet", tmp_path), base / "val" / "images" / "1.JPEG")
    for bad in (b"", b"n1\n../../..\n", b"\xff\xfe/\n"):
        (base / "wnids.txt").write_bytes(bad)
        one_line(lambda: load_images("tiny-imagenet", tmp_path), base / "wnids.txt")


def test_a_class_without_images_is_named(tmp_path, one_line):
    for part in ("train", "test"):
        for name in ("a", "b"):
            picture(tmp_path / part / name / "0.png", (1, 2, 3), (6, 6))
    (tmp_path / "test" / "b" / "0.png").unlink()
    one_line(lambda: load_images("folder", None, path=tmp_path), tmp_path / "test" / "b")


def test_grey_and_transparent_images_become_three_channels(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4), 77).save(tmp_path / name / "0.png")
        Image.new("RGBA", (4, 4), (10, 20, 30, 255)).save(tmp_path / name / "1.PNG")
    data = load_images("folder", None, path=tmp_path)
    both = concatenate([data.train, data.test])
    assert {tuple(row) for row in both.images[:, :, 0, 0].tolist()} == {(77, 77, 77), (10, 20, 30)}


def test_npz_labels_that_are_no_class_numbers_are_refused(tmp_path, one_line):
    x, y = np.zeros((2, 8, 8), dtype=np.uint8), np.array([0, 10**12])
    np.savez(path := tmp_path / "data.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    one_line(lambda: load_images("npz", None, path=path), path, "class numbers")
    np.savez(path, x_train=x, y_train=y.astype(np.uint64) * 18446744, x_test=x, y_test=y)
    one_line(lambda: load_images("npz", None, path=path), path, "class numbers")


def test_an_unreachable_hub_ends_in_one_line(tmp_path, monkeypatch, one_line):
    import socket

    import huggingface_hub.constants as constants

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]  # nobody listens here once it is closed
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    absent = hub.HubDataset("nobody-at-all/not-a-data-set", "img", "label", "test")
    monkeypatch.setattr(catalog, "CIFAR10", replace(catalog.CIFAR10, hub=absent))
    one_line(
        lambda: load_images("cifar10", tmp_path), "cifar-10-batches-py/", "--data-root", "nobody-at-all", "reachable"
    )


@pytest.mark.parametrize("protocol", range(2, 6))
def test_arrays_of_every_pickle_protocol_are_read_as_they_are(tmp_path, protocol):
    from rub.data.unpickle import load_arrays

    counted = np.arange(12, dtype=np.int64).reshape(3, 4)
    path = tmp_path / "arrays"
    path.write_bytes(pickle.dumps({"a": counted, "b": np.asfortranarray(counted).astype(np.uint8)}, protocol=protocol))
    read = load_arrays(path)
    assert np.array_equal(read["a"], counted)
    assert np.array_equal(read["b"], counted)
    assert read["a"].flags.writeable


@pytest.mark.parametrize(
    "value",
    [np.array([{}], dtype=object), np.array(["x"]), np.array([(1, 2)], dtype=[("a", "i4"), ("b", "i4")])],
    ids=["objects", "text", "records"],
)
def test_arrays_of_anything_but_plain_numbers_are_refused(tmp_path, value):
    from rub.data.unpickle import load_arrays

    path = tmp_path / "arrays"
    path.write_bytes(pickle.dumps({"a": value}, protocol=2))
    with pytest.raises(RubError, match=r"damaged|refused"):
        load_arrays(path)


def test_subsets_share_the_array_and_take_what_they_say():
    stored = torch.randint(0, 256, (9, 1, 2, 2), dtype=torch.uint8)
    whole = Samples(stored, torch.arange(9), torch.arange(9))
    some = whole.select(torch.arange(9) % 2 == 0).select([3, 0, 1])
    both = concatenate([some, whole])
    assert some.stored is stored and both.stored is stored
    assert some.labels.tolist() == some.ids.tolist() == [6, 0, 2]
    assert torch.equal(some.images, stored[[6, 0, 2]]) and torch.equal(some.take([2, 0]), stored[[2, 6]])
    assert torch.equal(both.take(slice(1, 5)), stored[[0, 2, 0, 1]])
    other = Samples(stored.clone(), torch.arange(9), torch.arange(9))
    assert torch.equal(concatenate([some, other]).images, torch.cat([some.images, stored]))
    with pytest.raises(ValueError, match="lengths differ: 2 images"):
        Samples(stored, torch.arange(3), torch.arange(3), torch.arange(2))


LARGER_THAN_MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from rub.tasks.classification.context import UnlearnContext
from rub.data.splits import mapped
from rub.data.samples import Samples
from rub.pipeline.execution import limit_memory

path, count, side = Path(sys.argv[1]), 40_000, 224
shape = (count, 3, side, side)
with path.open("wb") as file:  # zeros that the file system does not store
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    file.truncate(file.tell() + count * 3 * side * side)
limit_memory(2)
whole = Samples(mapped(path), torch.arange(count) % 10, torch.arange(count))
half = whole.select(torch.arange(count) % 2 == 0)
context = UnlearnContext(seed=0, batch_size=32, num_classes=10)
for step, (x, y) in enumerate(context.epochs(half, 1)):
    if step == 5:
        break
print(path.stat().st_size / 1e9, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""


@pytest.mark.slow
def test_data_larger_than_memory_is_trained_on(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LARGER_THAN_MEMORY, str(tmp_path / "images.npy")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    file, memory = map(float, done.stdout.split())
    assert file > 6 and memory < 2


def test_large_sets_are_decoded_into_a_file(tmp_path, monkeypatch):
    from rub.data import decoding

    for name in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8), (40 * number, len(name), 7)).save(tmp_path / name / f"{number}.png")
    small = load_images("folder", None, path=tmp_path, size=8, selection=Selection())
    monkeypatch.setattr(decoding, "LARGE", 100)
    assert isinstance(decoding.allocate((3, 3, 8, 8)), np.memmap)
    large = load_images("folder", None, path=tmp_path, size=8, selection=Selection())
    assert torch.equal(small.train.images, large.train.images)

    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(decoding.os, "posix_fallocate", full)
    with pytest.raises(RubError, match="set TMPDIR to a larger disk"):
        decoding.allocate((3, 3, 8, 8))
