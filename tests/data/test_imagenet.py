"""ImageNet: the paper's class list, what is read of the folder layout and of the hub, and the data stage."""

import io
import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from rub.data import hub
from rub.data.folders import sample_id
from rub.data.imagenet import HUB_ID, i2i_classes, i2i_wnids
from rub.data.selection import Selection
from rub.data.sources import DECODING, fingerprint, load_images
from rub.data.spec import DatasetSpec, data_stage
from rub.data.splits import load_dataset, read
from rub.pipeline.runtime import Runtime
from rub.store.artifacts import Artifact

WNIDS = ("n01443537", "n01484850", "n02094433", "n07873807")  # indices 1, 2, 187, 963; the last one is retained
INDEX = dict(zip(WNIDS, (1, 2, 187, 963), strict=True))
STRANGER = "n01498041"  # index 6, in no test wanted
SIZE = 8


def shade(wnid, index, train):
    if wnid == STRANGER:
        return 255
    return 20 + 50 * WNIDS.index(wnid) + 5 * index + (0 if train else 2)


def jpeg(value, size=(24, 16)):
    stream = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(stream, "JPEG", quality=95)
    return stream.getvalue()


@pytest.fixture
def root(tmp_path):
    for split, count in (("train", 6), ("val", 3)):
        for wnid in WNIDS:
            folder = tmp_path / "imagenet" / split / wnid
            folder.mkdir(parents=True)
            for index in range(count):
                content = jpeg(shade(wnid, index, split == "train"), (24 + index, 16))
                (folder / f"{wnid}_{index}.JPEG").write_bytes(content)
    return tmp_path


def shades(samples):
    return samples.images.float().mean((1, 2, 3)).round().int().tolist()


def smallest(wnid, count, of):
    """By hand: which images have the smallest SHA-256 of <class>/<file>, in the order of their names."""
    ranked = sorted(range(of), key=lambda index: sha256(f"{wnid}/{wnid}_{index}.JPEG".encode()).digest())
    return sorted(ranked[:count])


def test_the_papers_classes():
    classes = i2i_classes()
    assert len(classes) == 200
    assert i2i_wnids() == tuple(sorted(classes))
    forget, retain = list(classes.values())[:100], list(classes.values())[100:]
    assert max(forget) == 353
    assert (min(retain), max(retain)) == (355, 988)
    assert sum(index <= 397 for index in retain) == 12
    assert forget + retain == sorted(set(forget + retain))  # sorted wnids have rising indices
    assert {wnid: classes[wnid] for wnid in WNIDS} == INDEX


def test_the_whole_folder(root):
    data = load_images("imagenet", root, size=SIZE)
    assert data.classes == tuple(sorted(WNIDS))
    assert data.train.images.shape == (24, 3, SIZE, SIZE)
    assert data.train.labels.tolist() == [label for label in range(4) for _ in range(6)]
    assert data.test.labels.tolist() == [label for label in range(4) for _ in range(3)]
    assert data.train.ids.tolist() == [
        sample_id(f"train/{wnid}/{wnid}_{index}.JPEG") for wnid in WNIDS for index in range(6)
    ]
    assert shades(data.train) == [shade(wnid, index, True) for wnid in WNIDS for index in range(6)]
    assert shades(data.test) == [shade(wnid, index, False) for wnid in WNIDS for index in range(3)]
    assert data.mean == (0.485, 0.456, 0.406)
    assert data.flip
    assert data.train.images.is_contiguous()


def test_a_part_of_the_folder(root):
    wanted = (WNIDS[3], WNIDS[0], WNIDS[2])  # labels follow this order
    data = load_images("imagenet", root, size=SIZE, selection=Selection(wanted, per_class=2, test_per_class=1))
    assert data.classes == wanted
    assert data.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.test.labels.tolist() == [0, 1, 2]
    assert shades(data.train) == [shade(wnid, index, True) for wnid in wanted for index in smallest(wnid, 2, 6)]
    assert shades(data.test) == [shade(wnid, index, False) for wnid in wanted for index in smallest(wnid, 1, 3)]
    more = load_images("imagenet", root, size=SIZE, selection=Selection(wanted, per_class=99))
    assert len(more.train) == 18  # what is there


def test_a_smaller_part_is_inside_a_larger_one(root):
    few, many = (load_images("imagenet", root, size=SIZE, selection=Selection(per_class=n)).train for n in (2, 4))
    assert set(shades(few)) < set(shades(many))


def test_the_centre_is_cut_out_after_the_shorter_side_is_resized(root):
    wide = Image.new("RGB", (80, 32), (0, 0, 0))
    wide.paste((255, 255, 255), (24, 0, 56, 32))
    folder = root / "imagenet" / "train" / WNIDS[0]
    for path in folder.iterdir():
        wide.save(path, "JPEG", quality=95)
    data = load_images("imagenet", root, size=SIZE)
    assert data.train.images[0, :, :, 1:-1].min() > 245
    noise = np.random.default_rng(0).integers(0, 256, (37, 37, 3), dtype=np.uint8)
    for path in folder.iterdir():
        Image.fromarray(noise).save(path, "PNG")
    data = load_images("imagenet", root, size=16)
    floats = torch.from_numpy(noise).permute(2, 0, 1)[None].double()
    expected = torch.nn.functional.interpolate(floats, size=(16, 16), mode="bicubic", antialias=True)
    assert (data.train.images[0].double() - expected[0].clamp(0, 255)).abs().max() < 2


def test_requests_that_cannot_be(root, one_line):
    one_line(lambda: load_images("imagenet", root), "dataset.size", "224")
    one_line(lambda: load_images("imagenet", root, size=SIZE, path=root), "dataset.path")
    absent = Selection((*WNIDS[:2], "n00000001"))
    for call in (
        lambda: load_images("imagenet", root, size=SIZE, selection=absent),
        lambda: fingerprint("imagenet", root, selection=absent),
    ):
        one_line(call, "n00000001", root / "imagenet" / "train")
    (root / "imagenet" / "val").rename(root / "imagenet" / "test")  # the test images of ILSVRC have no labels
    one_line(lambda: load_images("imagenet", root, size=SIZE), root / "imagenet" / "val")
    (root / "imagenet" / "test").rename(root / "imagenet" / "val")
    (root / "imagenet" / "val" / WNIDS[1]).rename(root / "imagenet" / "val" / "other")
    one_line(lambda: load_images("imagenet", root, size=SIZE), root / "imagenet" / "val" / "other")
    one_line(
        lambda: load_images("imagenet", root, size=SIZE, selection=Selection(WNIDS)),
        root / "imagenet" / "val" / WNIDS[1],
    )


def test_the_fingerprint_follows_the_selected_files_alone(root):
    chosen = Selection(WNIDS[:2], per_class=2, test_per_class=2)

    def print_of(selection=chosen, where=root):
        return fingerprint("imagenet", where, selection=selection)

    first = print_of()
    assert print_of() == first
    keep = smallest(WNIDS[0], 2, 6)
    outside = next(index for index in range(6) if index not in keep)
    folder = root / "imagenet" / "train" / WNIDS[0]
    (folder / f"{WNIDS[0]}_{outside}.JPEG").write_bytes(b"other")
    (root / "imagenet" / "train" / WNIDS[3] / "more.JPEG").write_bytes(b"other")
    assert print_of() == first
    assert print_of(Selection(WNIDS[:2])) != first
    inside = folder / f"{WNIDS[0]}_{keep[0]}.JPEG"
    content = inside.read_bytes()
    inside.write_bytes(content[:-1] + b"!")
    second = print_of()
    inside.write_bytes(content)
    assert print_of() == first != second
    (elsewhere := root / "else").mkdir()
    (root / "imagenet").rename(elsewhere / "imagenet")
    assert print_of(where=elsewhere) == first


def test_a_damaged_image_is_named_or_skipped(root, one_line):
    broken = root / "imagenet" / "train" / WNIDS[1] / f"{WNIDS[1]}_3.JPEG"
    broken.write_bytes(broken.read_bytes()[:200])
    one_line(lambda: load_images("imagenet", root, size=SIZE), broken)
    data = load_images("imagenet", root, size=SIZE, selection=Selection(skip_unreadable=True))
    assert data.skipped == (f"train/{WNIDS[1]}/{WNIDS[1]}_3.JPEG",)
    assert len(data.train) == 23 and sample_id(data.skipped[0]) not in data.train.ids.tolist()
    assert shades(data.train)[9] == shade(WNIDS[1], 4, True)


# the hub


def rows_of(split, order, damaged=()):
    for index, wnid in order:
        name = f"{wnid}_{index}_{wnid}.JPEG" if split == "train" else f"ILSVRC2012_val_{index:08}_{wnid}.JPEG"
        content = b"text" if (index, wnid) in damaged else jpeg(shade(wnid, index, split == "train"))
        yield {"image": {"path": name, "bytes": content}, "label": INDEX.get(wnid, 6)}


class Rows:
    """A split as `datasets` streams it, which counts the rows that were asked for."""

    def __init__(self, rows):
        self.rows, self.asked = rows, 0

    def cast_column(self, name, feature):
        assert (name, feature.decode) == ("image", False)
        return self

    def __iter__(self):
        for row in self.rows:
            self.asked += 1
            yield row


@pytest.fixture
def streamed(monkeypatch):
    import datasets
    import huggingface_hub

    def use(train, validation):
        def load(source, streaming):
            assert (source, streaming) == (HUB_ID, True)
            return {"train": train, "validation": validation}

        monkeypatch.setattr(datasets, "load_dataset", load)

    class Api:
        def dataset_info(self, source, timeout):
            return type("Info", (), {"sha": f"commit of {source}"})

    monkeypatch.setattr(hub, "reachable", lambda seconds: True)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return use


def mixed(count):
    """All four classes and a class that nobody wants, in turn."""
    return [(index, wnid) for index in range(count) for wnid in (*WNIDS, STRANGER)]


def test_the_hub_is_read_until_every_class_is_full(streamed):
    train = Rows(list(rows_of("train", mixed(6))))
    validation = Rows(list(rows_of("validation", mixed(3))))
    streamed(train, validation)
    wanted, seen = (WNIDS[3], WNIDS[1]), []
    data = load_images(
        "imagenet", None, size=SIZE, selection=Selection(wanted, 2, 1), progress=lambda *step: seen.append(step[:2])
    )
    assert data.classes == wanted
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    assert data.test.labels.tolist() == [0, 1]
    assert data.train.ids.tolist() == [0, 1, 2, 3]
    assert shades(data.train) == [shade(wnid, index, True) for wnid in wanted for index in range(2)]
    assert shades(data.test) == [shade(wnid, 0, False) for wnid in wanted]
    assert train.asked == 9  # the second image of WNIDS[3] is the ninth row
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4), (1, 2), (2, 2)]
    all_of_val = load_images("imagenet", None, size=SIZE, selection=Selection(wanted, per_class=2))
    assert len(all_of_val.test) == 6
    chosen = Selection(wanted, per_class=2)
    revision = sha256(f"{HUB_ID}@commit of {HUB_ID}".encode()).hexdigest()
    expected = sha256(f"{DECODING} {revision}".encode()).hexdigest()
    assert fingerprint("imagenet", None, selection=chosen) == expected


def test_what_datasets_itself_streams_is_read(streamed):
    import datasets

    names = [f"class {index}" for index in range(1000)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    parts = []
    for split, count in (("train", 4), ("validation", 2)):
        rows = list(rows_of(split, mixed(count)))
        columns = {name: [row[name] for row in rows] for name in ("image", "label")}
        parts.append(datasets.Dataset.from_dict(columns, features=features).to_iterable_dataset())
    streamed(*parts)
    data = load_images("imagenet", None, size=SIZE, selection=Selection(WNIDS[:2], 3, 2))
    assert shades(data.train) == [shade(wnid, index, True) for wnid in WNIDS[:2] for index in range(3)]
    assert shades(data.test) == [shade(wnid, index, False) for wnid in WNIDS[:2] for index in range(2)]


def test_damaged_and_contradicting_rows_of_the_hub(streamed, one_line):
    wanted = WNIDS[:2]
    damaged = [(1, WNIDS[0])]
    validation = list(rows_of("validation", mixed(2)))
    streamed(Rows(list(rows_of("train", mixed(3), damaged))), Rows(validation))
    one_line(lambda: load_images("imagenet", None, size=SIZE, selection=Selection(wanted, 3)), f"{WNIDS[0]}_1")
    data = load_images("imagenet", None, size=SIZE, selection=Selection(wanted, 3, skip_unreadable=True))
    assert data.skipped == (f"train/{WNIDS[0]}_1_{WNIDS[0]}.JPEG",)
    assert data.train.ids.tolist() == [0, 2, 3, 4, 5]
    assert shades(data.train)[1] == shade(WNIDS[0], 2, True)
    wrong = list(rows_of("train", [(0, WNIDS[0]), (0, WNIDS[1])]))
    wrong[1]["label"] = 1
    streamed(Rows(wrong), Rows(validation))
    one_line(lambda: load_images("imagenet", None, size=SIZE, selection=Selection(wanted, 1)), WNIDS[1], "labelled 1")
    streamed(Rows(list(rows_of("train", [(0, WNIDS[0])]))), Rows(validation))
    one_line(lambda: load_images("imagenet", None, size=SIZE, selection=Selection(wanted, 1)), "1 of 2", WNIDS[1])


def test_a_connection_that_breaks_ends_in_one_line(streamed, one_line):
    def breaking():
        yield from rows_of("train", mixed(1))
        raise ConnectionError("gone\naway")

    streamed(Rows(breaking()), Rows([]))
    one_line(lambda: load_images("imagenet", None, size=SIZE, selection=Selection(WNIDS, 3)), HUB_ID, "ConnectionError")


def test_without_access_both_ways_are_named(tmp_path, monkeypatch, one_line):
    import datasets

    def gated(source, streaming):
        raise datasets.exceptions.DatasetNotFoundError("Dataset is gated\nlog in")

    monkeypatch.setattr(datasets, "load_dataset", gated)
    for reachable, word in ((True, "hf auth login"), (False, "not reachable")):
        monkeypatch.setattr(hub, "reachable", lambda seconds, answer=reachable: answer)
        for call in (
            lambda: load_images("imagenet", tmp_path, size=SIZE, selection=Selection(WNIDS, 2)),
            lambda: fingerprint("imagenet", tmp_path, selection=Selection(WNIDS, 2)),
        ):
            one_line(call, "gated", word, "imagenet/{train,val}/<wnid>/", tmp_path, "--data-root", HUB_ID)


def test_what_would_stream_everything_is_refused(monkeypatch, one_line):
    monkeypatch.setattr(hub, "reachable", lambda seconds: pytest.fail("asked the hub"))
    for selection, word in (
        (Selection(WNIDS), "dataset.per_class"),
        (Selection(per_class=2), "dataset.classes"),
        (Selection(("n01440764", WNIDS[0]), per_class=2), "n01440764"),
    ):
        one_line(lambda chosen=selection: load_images("imagenet", None, size=SIZE, selection=chosen), word)
        one_line(lambda chosen=selection: fingerprint("imagenet", None, selection=chosen), word)


# the stage


def run(stage, root, folder):
    folder.mkdir()
    read(stage, {}, folder, Runtime(data_root=root))
    names = {path.name: sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    return load_dataset(Artifact(folder, {"key": stage.key, "files": names}))


def test_a_spec_without_a_selection_is_what_it_was():
    stage = data_stage("classification", DatasetSpec(name="digits"), None)
    assert set(stage.spec) == {"name", "size", "fingerprint"}
    # the key of the quick suite's data before there were selections
    assert stage.key == "2866dea2aa62570072000da4fb9263b080adabf80c7f00f4ab85b21db7b4b8cd"


def test_the_stage_reads_the_selection(root, tmp_path):
    asked = {"name": "imagenet", "size": SIZE, "classes": list(WNIDS[1:3]), "per_class": 2}
    broken = root / "imagenet" / "val" / WNIDS[1] / f"{WNIDS[1]}_0.JPEG"
    broken.write_bytes(b"text")
    stage = data_stage("inpainting", DatasetSpec(**asked, skip_unreadable=True), root)
    json.dumps(stage.spec)
    assert set(stage.spec) == {"name", "size", "fingerprint", "classes", "per_class", "skip_unreadable"}
    dataset = run(stage, root, tmp_path / "out")
    assert dataset.classes == WNIDS[1:3]
    assert len(dataset.train) == 4
    assert dataset.skipped == (f"val/{WNIDS[1]}/{WNIDS[1]}_0.JPEG",)
    keys = {
        data_stage("inpainting", DatasetSpec(**{**asked, **change}), root).key
        for change in ({}, {"classes": WNIDS[2:0:-1]}, {"per_class": 3}, {"test_per_class": 3}, {"size": 9})
    }
    assert len({*keys, stage.key}) == 6


def test_artifacts_without_the_list_of_skipped_images_load(tmp_path):
    stage = data_stage("classification", DatasetSpec(name="digits", size=32), None)
    dataset = run(stage, None, tmp_path / "out")
    assert dataset.train.images.shape == (1433, 1, 32, 32)
    facts = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert facts.pop("skipped") == []
    (tmp_path / "out" / "meta.json").write_text(json.dumps(facts))
    names = dict.fromkeys((path.name for path in (tmp_path / "out").iterdir()), "")
    assert load_dataset(Artifact(tmp_path / "out", {"key": "", "files": names})).skipped == ()


def test_i2i_stands_for_the_papers_classes_in_order(tmp_path):
    for split in ("train", "val"):
        for wnid in (*i2i_wnids(), "n01440764"):
            (folder := tmp_path / "imagenet" / split / wnid).mkdir(parents=True)
            (folder / "0.JPEG").write_bytes(jpeg(100))
    short = data_stage("inpainting", DatasetSpec(name="imagenet", size=4, classes="i2i"), tmp_path)
    spelled = data_stage("inpainting", DatasetSpec(name="imagenet", size=4, classes=i2i_wnids()), tmp_path)
    assert short.key == spelled.key
    dataset = run(short, tmp_path, tmp_path / "out")
    assert dataset.classes == i2i_wnids()
    assert dataset.train.labels.tolist() == list(range(200))
    as_folder = DatasetSpec(name="folder", path=str(tmp_path / "imagenet"), size=4, classes="i2i")
    assert len(data_stage("inpainting", as_folder, None).spec["classes"]) == 200


def test_wrong_specs_are_refused_when_planned(one_line):
    for fields, word in (
        ({"name": "imagenet"}, "dataset.size"),
        ({"name": "cifar10", "size": 16}, "dataset.size"),
        ({"name": "cifar10", "classes": "i2i"}, "dataset.classes"),
        ({"name": "digits", "per_class": 5}, "dataset.per_class"),
        ({"name": "npz", "skip_unreadable": True}, "dataset.skip_unreadable"),
    ):
        one_line(lambda given=fields: data_stage("classification", DatasetSpec(**given), Path()), word)
    for fields in ({"classes": "i2j"}, {"per_class": 0}, {"test_per_class": -1}):
        with pytest.raises(ValidationError):
            DatasetSpec(name="imagenet", size=8, **fields)
