"""Images as users have them: scaled and not clipped, upright, on white, the first picture, within a bound of memory."""

import os
import shutil
import struct
import subprocess
import sys
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from rub.data import image_file
from rub.data.folders import list_folder, sample_id
from rub.data.id_files import read_ids
from rub.data.image_file import FRAMES, LAID, SCALED, TURNED, Room, Unreadable, read_image
from rub.data.selection import Selection
from rub.data.sources import fingerprint, load_images
from rub.data.spec import DatasetSpec, ForgetSpec, data_stage, forget_set
from rub.errors import RubError
from rub.tasks.text_to_image.concepts import read_prompts

RAMP = np.arange(64 * 64).reshape(64, 64) * 16  # 0 to 65,520
NOISE = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)


def grey(values):
    return np.repeat(np.asarray(values)[..., None], 3, axis=-1).tolist()


@pytest.mark.parametrize(
    ("values", "kind", "mode"),
    [
        (RAMP.astype(np.uint16), "PNG", "I;16"),
        (RAMP.astype(np.uint16), "TIFF", "I;16"),
        (RAMP.astype(">u2"), "TIFF", "I;16B"),
        (RAMP.astype(np.uint16), "PPM", "I"),
        (RAMP.astype(np.int32), "TIFF", "I"),
    ],
)
def test_sixteen_bits_are_scaled(tmp_path, values, kind, mode):
    Image.fromarray(values).save(path := tmp_path / "ramp", kind)
    assert Image.open(path).mode == mode
    pixels, remarks = read_image(path, None)
    assert pixels.tolist() == grey(np.floor(RAMP * 255 / 65535 + 0.5))
    assert remarks == (SCALED,)


def tiff(path, content, width, bits, kind, white_is_zero):
    """A grey TIFF of one row, written by hand: Pillow writes none of 12 bits, nor with white as zero."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: 0 if white_is_zero else 1, 273: 8, 277: 1, 278: 1,
            279: len(content), 339: kind}  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = struct.pack("<2sHI", b"II", 42, 8 + len(content)) + content
    path.write_bytes(head + struct.pack("<H", len(tags)) + entries + bytes(4))


def test_a_tiff_of_12_bits_fills_the_range(tmp_path):
    values = [0, 8, 9, 2048, 4000, 4095]
    pairs = zip(values[::2], values[1::2], strict=True)
    packed = b"".join(((first << 12) | second).to_bytes(3, "big") for first, second in pairs)
    tiff(tmp_path / "0.tif", packed, len(values), 12, 1, white_is_zero=False)
    expected = [round(255 * value / 4095) for value in values]
    assert read_image(tmp_path / "0.tif", None).pixels[0, :, 0].tolist() == expected


def test_where_white_is_zero_a_tiff_is_turned_round(tmp_path):
    tiff(tmp_path / "0.tif", struct.pack("<3H", 0, 257, 65535), 3, 16, 1, white_is_zero=True)
    assert read_image(tmp_path / "0.tif", None).pixels[0, :, 0].tolist() == [255, 254, 0]
    tiff(tmp_path / "1.tif", struct.pack("<2f", 0.2, 1), 2, 32, 3, white_is_zero=True)
    assert read_image(tmp_path / "1.tif", None).pixels[0, :, 0].tolist() == [204, 0]


def test_floats_from_0_to_1_are_taken_as_they_are(tmp_path):
    values = np.linspace(0, 1, 60, dtype=np.float32).reshape(6, 10)
    Image.fromarray(values).save(path := tmp_path / "floats.tiff")
    pixels, remarks = read_image(path, None)
    assert pixels.tolist() == grey(np.rint(values.astype(np.float64) * 255)) and remarks == (SCALED,)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.float32([[0, 255]]), "values from 0 to 255; floats should be in [0, 1]"),
        (np.float32([[-0.5, 1]]), "values from -0.5 to 1;"),
        (np.float32([[0, np.nan]]), "floats should be in [0, 1]"),
        (np.int32([[0, 65536]]), "values from 0 to 65536; whole numbers of more than 8 bits should be 0 to 65535"),
        (np.int32([[-1, 5]]), "values from -1 to 5;"),
    ],
)
def test_values_without_a_declared_range_are_refused_and_never_skipped(tmp_path, values, says, one_line):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.fromarray(values).save(tmp_path / name / f"{number}.tiff")
    one_line(lambda: load_images("folder", None, path=tmp_path, selection=Selection(skip_unreadable=True)), says)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_pictures_stand_upright(tmp_path, orientation, kind):
    upright = np.zeros((24, 16, 3), np.uint8)
    upright[:8, :8] = 250  # bright in the upper left corner
    upright[16:, :8] = 120
    # by hand: what a camera stores, of which the orientation says where the first row and column belong
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1], 8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    quality = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(kind, {})
    Image.fromarray(np.ascontiguousarray(stored)).save(path := tmp_path / "photo", kind, exif=exif, **quality)
    pixels, remarks = read_image(path, None)
    assert pixels.shape == upright.shape and np.abs(pixels.astype(int) - upright).max() < 12
    assert remarks == ((TURNED,) if orientation > 1 and kind != "TIFF" else ())  # Pillow itself turns a TIFF


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_make_a_photo_unreadable(tmp_path):
    Image.fromarray(NOISE).save(path := tmp_path / "0.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert read_image(path, None).pixels.tolist() == NOISE.tolist()


def half_clear(mode):
    """Left half opaque (10, 60, 200), or its grey; right half transparent, with other colours below."""
    image = Image.new("RGBA", (8, 4), (10, 60, 200, 255))
    image.paste((90, 0, 0, 0), (4, 0, 8, 4))
    return image if mode == "RGBA" else image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_pixels_are_laid_on_white(tmp_path, mode):
    image = half_clear("RGBA" if mode in ("P", "RGB") else mode)
    if mode == "P":
        image = image.quantize(8)
    if mode == "RGB":
        image = image.convert("RGB")
        image.info["transparency"] = (90, 0, 0)
    image.save(path := tmp_path / "0.png", **({"transparency": (90, 0, 0)} if mode == "RGB" else {}))
    assert Image.open(path).mode == mode
    pixels, remarks = read_image(path, None)
    assert remarks == (LAID,)
    colour = [61] * 3 if mode == "LA" else [10, 60, 200]  # .299 * 10 + .587 * 60 + .114 * 200
    assert pixels[0].tolist() == [colour] * 4 + [[255] * 3] * 4


def test_half_transparent_pixels_are_mixed_with_white(tmp_path):
    Image.new("RGBA", (2, 2), (100, 0, 255, 128)).save(path := tmp_path / "0.png")
    expected = [100 * 128 / 255 + 127, 127, 255]
    assert np.abs(read_image(path, None).pixels[0, 0] - np.array(expected)).max() <= 1


def test_sixteen_bit_grey_with_a_transparent_value(tmp_path):
    Image.fromarray(np.uint16([[0, 1000, 40000]])).save(path := tmp_path / "0.png", transparency=1000)
    pixels, remarks = read_image(path, None)
    assert pixels[0, :, 0].tolist() == [0, 255, 156] and remarks == (LAID, SCALED)


def test_opaque_alpha_changes_nothing(tmp_path):
    Image.fromarray(np.dstack([NOISE, np.full(NOISE.shape[:2], 255, np.uint8)])).save(path := tmp_path / "0.png")
    assert read_image(path, None) == (pytest.approx(NOISE), ())


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_not_inverted(tmp_path, kind):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(path := tmp_path / "0", kind)  # red; a JPEG of Adobe is inverted
    assert np.abs(read_image(path, None).pixels.astype(int) - [255, 0, 0]).max() < 12


def test_palettes_and_bilevel_images(tmp_path):
    colours = Image.new("P", (4, 4), 1)
    colours.putpalette([0, 0, 0, 200, 100, 50])
    colours.save(tmp_path / "p.png")
    Image.new("1", (4, 4), 1).save(tmp_path / "one.png")
    assert read_image(tmp_path / "p.png", None).pixels[0, 0].tolist() == [200, 100, 50]
    assert read_image(tmp_path / "one.png", None).pixels[0, 0].tolist() == [255] * 3


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_of_several_pictures_the_first_is_read(tmp_path, kind):
    first, *further = (Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (40, 130, 220))
    first.save(path := tmp_path / "0", kind, save_all=True, append_images=further)
    pixels, remarks = read_image(path, None)
    assert np.abs(pixels.astype(int) - [40, 0, 0]).max() < 6 and FRAMES in remarks


def test_what_was_done_to_which_images_is_noted(tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for number in range(6):
            Image.fromarray(NOISE).save(tmp_path / name / f"{number}.png")
    Image.fromarray(RAMP.astype(np.uint16)).save(tmp_path / "bee" / "3.png")
    half_clear("RGBA").save(tmp_path / "ant" / "5.png")
    Image.fromarray(RAMP.astype(np.uint16)).save(tmp_path / "bee" / "4.tif")
    data = load_images("folder", None, path=tmp_path, size=8)
    scaled, laid = sorted(data.notes)
    assert scaled.startswith("more than 8 bits, scaled to 8: 2 images, such as bee/")
    assert laid == "transparent in part, laid on white: 1 image, such as ant/5.png"


def test_names_that_begin_with_a_dot_are_not_looked_at(tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for number in range(6):
            Image.fromarray(NOISE + number).save(tmp_path / name / f"{number}.png")
    before, key = load_images("folder", None, path=tmp_path), fingerprint("folder", None, path=tmp_path)
    (checkpoints := tmp_path / ".ipynb_checkpoints").mkdir()
    Image.fromarray(NOISE).save(checkpoints / "0.png")
    (tmp_path / "ant" / "._0.png").write_bytes(b"resource fork")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    after = load_images("folder", None, path=tmp_path)
    assert after.classes == ("ant", "bee")
    assert torch.equal(after.train.images, before.train.images) and torch.equal(after.train.ids, before.train.ids)
    assert fingerprint("folder", None, path=tmp_path) == key


@pytest.fixture
def insects(tmp_path):
    """A folder of two classes with six pictures each."""
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for number in range(6):
            Image.fromarray(NOISE + number).save(tmp_path / name / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("ending", "kind"),
    [("jfif", "JPEG"), ("JPE", "JPEG"), ("pgm", "PPM"), ("pnm", "PPM"), ("jp2", "JPEG2000"), ("TIF", "TIFF")],
)
def test_every_ending_of_a_picture_is_read(insects, ending, kind):
    Image.fromarray(NOISE).convert("L" if ending == "pgm" else "RGB").save(insects / "ant" / f"a.{ending}", kind)
    data = load_images("folder", None, path=insects)
    assert f"ant/a.{ending}" in data.files.values() and len(data.train) + len(data.test) == 13


@pytest.mark.parametrize("ending", ["avif", "heic", "HEIF", "jfif", "jp2", "pbm"])
@pytest.mark.parametrize("content", [b"", b"\0\0\0\x18ftypheic"])
def test_a_picture_that_cannot_be_read_is_never_left_out_in_silence(insects, ending, content, one_line):
    (odd := insects / "ant" / f"odd.{ending}").write_bytes(content)
    one_line(lambda: load_images("folder", None, path=insects), odd, "save it as PNG")
    data = load_images("folder", None, path=insects, selection=Selection(skip_unreadable=True))
    assert data.skipped == (f"ant/odd.{ending}",)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(proof) (w) file closefile showpage\n"


def test_no_program_is_started_for_a_picture(insects, one_line, monkeypatch):
    """Pillow calls Ghostscript for PostScript, whatever the name of a file ends in."""
    from PIL import EpsImagePlugin

    called = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **b: called.append(a) or Image.new("RGB", (8, 8)).im)
    (odd := insects / "ant" / "a.png").write_bytes(POSTSCRIPT)
    with Image.open(odd) as opened:  # the file is as dangerous as it claims to be
        opened.load()
    assert called
    called.clear()
    one_line(lambda: load_images("folder", None, path=insects), odd, "not a readable image")
    assert not called


@pytest.mark.parametrize(
    "name",
    [
        "__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found", "System Volume Information", "__pycache__",
        ".ipynb_checkpoints", ".Trashes", ".thumbnails",
    ],
)  # fmt: skip
@pytest.mark.parametrize("empty", [False, True])
def test_what_programs_leave_is_no_class(insects, name, empty):
    before, key = load_images("folder", None, path=insects), fingerprint("folder", None, path=insects)
    for place in (insects / name, insects / "ant" / name):
        place.mkdir()
        if not empty:
            Image.fromarray(NOISE).save(place / "0.png")
    after = load_images("folder", None, path=insects)
    assert after.classes == ("ant", "bee") and after.notes == ()
    assert torch.equal(after.train.images, before.train.images)
    assert fingerprint("folder", None, path=insects) == key


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "desktop.ini", "._0.png", "README.txt"])
def test_files_that_are_no_pictures_change_nothing(insects, name):
    key = fingerprint("folder", None, path=insects)
    for place in (insects / name, insects / "ant" / name):
        place.write_bytes(b"x")
    assert load_images("folder", None, path=insects).notes == ()
    assert fingerprint("folder", None, path=insects) == key


@pytest.mark.parametrize(
    ("parts", "extra", "says"),
    [
        (("",), "ant/more/0.png", "in a folder below that of a class: 1 image, such as ant/more/0.png"),
        (("",), "ant/more/and/more/0.png", "such as ant/more/and/more/0.png"),
        (("",), "loose.png", "beside the folders of classes: 1 image, such as loose.png"),
        (("train/", "val/"), "val/loose.png", "beside the folders of classes: 1 image, such as val/loose.png"),
        (("train/", "val/"), "test/ant/0.png", "such as"),
        (("train/",), "dev/ant/0.png", "beside train: 1 image, such as dev/ant/0.png"),
        (("train/",), "holdout/0.png", "beside train: 1 image, such as holdout/0.png"),
    ],
)
def test_pictures_where_none_are_looked_for_are_noted(tmp_path, parts, extra, says):
    for part in parts:
        for name in ("ant", "bee"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(3):
                Image.fromarray(NOISE).save(tmp_path / part / name / f"{number}.png")
    (tmp_path / extra).parent.mkdir(parents=True, exist_ok=True)
    if extra == "test/ant/0.png":  # of two parts that are held out, test is the one that is read
        (tmp_path / "test" / "bee").mkdir()
        Image.fromarray(NOISE).save(tmp_path / "test" / "bee" / "0.png")
        says = "beside train and test: 6 images, such as val/ant/0.png"
    Image.fromarray(NOISE).save(tmp_path / extra)
    [note] = load_images("folder", None, path=tmp_path).notes
    assert note.startswith("not read, ") and says in note


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
@pytest.mark.parametrize("device", [False, True])
@pytest.mark.parametrize("where", ["image", "npz", "ids", "prompts"])
def test_what_never_ends_is_not_read(tmp_path, where, device, one_line):
    names = {"image": "photos/ant/0.png", "npz": "a.npz", "ids": "a.txt", "prompts": "a.csv"}
    path = tmp_path / names[where]
    path.parent.mkdir(parents=True, exist_ok=True)
    if device:
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path)
    if where == "image":
        (tmp_path / "photos" / "bee").mkdir()
        for name in ("ant/1.png", "bee/0.png", "bee/1.png"):
            Image.fromarray(NOISE).save(tmp_path / "photos" / name)
    readers = {
        "image": [lambda: load_images("folder", None, path=tmp_path / "photos"),
                  lambda: fingerprint("folder", None, path=tmp_path / "photos")],
        "npz": [lambda: load_images("npz", None, path=path),
                lambda: forget_set(ForgetSpec(classes=(0,)), DatasetSpec(name="npz", path=str(path)), None)],
        "ids": [lambda: read_ids(path), lambda: ForgetSpec(ids=path)],
        "prompts": [lambda: read_prompts(path)],
    }  # fmt: skip
    for read in readers[where]:
        one_line(read, path, "no plain file")


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb", "a\udcffb"])
@pytest.mark.parametrize("where", ["class", "file"])
def test_names_that_are_no_text_are_refused(insects, name, where, one_line):
    if where == "class":
        (insects / "ant").rename(insects / name)
    else:
        (insects / "ant" / "0.png").rename(insects / "ant" / f"{name}.png")
    one_line(lambda: load_images("folder", None, path=insects), "is no text; rename it")


@pytest.mark.parametrize(("train", "held"), [("Train", "Test"), ("TRAIN", "VALID"), ("train", "Validation")])
def test_parts_are_known_in_any_case(tmp_path, train, held):
    for part, shade in ((train, 10), (held, 200)):
        for name in ("ant", "bee"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (4, 4), (shade,) * 3).save(tmp_path / part / name / "0.png")
    data = load_images("folder", None, path=tmp_path)
    assert data.train.images.unique().tolist() == [10] and data.test.images.unique().tolist() == [200]


@pytest.mark.parametrize("held", ["test", "val", "validation", "valid"])
def test_held_out_images_are_not_trained_on(tmp_path, held):
    for part, shade in (("train", 10), (held, 200)):
        for name in ("ant", "bee"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (4, 4), (shade,) * 3).save(tmp_path / part / name / "0.png")
    data = load_images("folder", None, path=tmp_path)
    assert data.train.images.unique().tolist() == [10] and data.test.images.unique().tolist() == [200]


@pytest.mark.parametrize("parts", [("",), ("train/", "test/")])
def test_an_added_file_moves_no_id(tmp_path, parts):
    for part in parts:
        for name in ("ant", "bee"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(10):
                Image.fromarray(NOISE + number).save(tmp_path / part / name / f"{number}.png")

    def ids():
        data = load_images("folder", None, path=tmp_path)
        assert {*data.train.ids.tolist(), *data.test.ids.tolist()} == data.files.keys()
        return {name: number for number, name in data.files.items()}

    before = ids()
    assert before == {name: sample_id(name) for name in before} and len(before) == 20 * len(parts)
    Image.fromarray(NOISE).save(tmp_path / parts[0] / "ant" / "00new.png")
    (tmp_path / parts[0] / "bee" / "7.png").unlink()
    after = ids()
    assert after.keys() - before.keys() == {f"{parts[0]}ant/00new.png"}
    assert all(before[name] == number for name, number in after.items() if name in before)


def test_two_files_never_share_an_id(tmp_path, monkeypatch):
    monkeypatch.setattr("rub.data.folders.sample_id", lambda name: 7)
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.fromarray(NOISE).save(tmp_path / name / f"{number}.png")
    assert sorted(list_folder(tmp_path).files) == [7, 8, 9, 10, 11, 12]


def test_mnist_as_a_folder_and_as_npz(tmp_path):
    digits = np.random.default_rng(1).integers(64, 192, (20, 28, 28), dtype=np.uint8)
    for number, image in enumerate(digits):
        (folder := tmp_path / "png" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    data = load_images("folder", None, path=tmp_path / "png")
    assert data.train.shape == (3, 28, 28) and torch.equal(data.train.images[:, 0], data.train.images[:, 2])
    labels = np.arange(20) % 2
    np.savez(path := tmp_path / "mnist.npz", x_train=digits, y_train=labels, x_test=digits, y_test=labels)
    assert load_images("npz", None, path=path).train.shape == (1, 28, 28)
    resized = load_images("npz", None, path=path, size=32)
    assert resized.train.shape == resized.test.shape == (1, 32, 32)
    assert resized.train.ids.tolist() == list(range(20)) and resized.train.labels.tolist() == labels.tolist()
    floats = torch.from_numpy(digits)[:, None].double()
    expected = torch.nn.functional.interpolate(floats, size=(32, 32), mode="bicubic", antialias=True).clamp(0, 255)
    assert (resized.train.images.double() - expected).abs().max() < 2
    keys = {data_stage("classification", DatasetSpec(name="npz", path=str(path), size=size), None).key
            for size in (None, 28, 32)}  # fmt: skip
    assert len(keys) == 3


def test_npz_of_colour_is_resized_as_folders_are(tmp_path):
    wide = np.random.default_rng(2).integers(0, 256, (4, 12, 20, 3), dtype=np.uint8)
    np.savez(path := tmp_path / "wide.npz", x_train=wide, y_train=[0, 1, 0, 1], x_test=wide, y_test=[0, 1, 0, 1])
    for number, image in enumerate(wide):
        (folder := tmp_path / "wide" / "train" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    for name in "01":
        (tmp_path / "wide" / "test" / name).mkdir(parents=True)
        Image.fromarray(wide[0]).save(tmp_path / "wide" / "test" / name / "0.png")
    npz = load_images("npz", None, path=path, size=8).train.images
    folder = load_images("folder", None, path=tmp_path / "wide", size=8).train.images
    assert torch.equal(npz[[0, 2, 1, 3]], folder)


def test_ordinary_pixels_are_what_they_were(tmp_path):
    """Of 8-bit RGB, Pillow's own: ``convert`` and ``ImageOps.fit``, whatever else is done to other images."""
    from PIL import ImageOps

    large = np.random.default_rng(3).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    for kind in ("PNG", "JPEG", "WEBP", "BMP"):
        Image.fromarray(large).save(path := tmp_path / f"0.{kind.lower()}")
        plain = Image.open(path).convert("RGB")
        assert np.array_equal(read_image(path, None).pixels, np.asarray(plain))
        resized = ImageOps.fit(plain, (32, 32), Image.Resampling.BICUBIC)
        assert read_image(path, 32) == (pytest.approx(np.asarray(resized)), ())


def test_a_large_jpeg_is_decoded_smaller_and_looks_the_same(tmp_path, monkeypatch):
    smooth = np.asarray(Image.fromarray(NOISE).resize((800, 600), Image.Resampling.BICUBIC))
    Image.fromarray(smooth).save(path := tmp_path / "0.jpg", quality=95)
    whole = read_image(path, 32).pixels.astype(int)
    monkeypatch.setattr(image_file, "REDUCED", 1000)
    decoded, made = [], image_file._picture
    monkeypatch.setattr(
        image_file, "_picture", lambda opened, *rest: decoded.append(opened.size) or made(opened, *rest)
    )
    small = read_image(path, 32).pixels.astype(int)
    assert decoded == [(200, 150)]  # a quarter: still three times 32
    assert np.abs(small - whole).max() <= 6


def test_too_many_pixels_are_refused_with_the_bound_or_skipped(tmp_path, monkeypatch, one_line):
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(NOISE).save(tmp_path / name / f"{number}.png")
    Image.new("RGB", (60, 60)).save(huge := tmp_path / "train" / "a" / "0.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)
    with pytest.raises(Unreadable):
        read_image(huge, 8)
    one_line(lambda: load_images("folder", None, path=tmp_path, size=8), huge, "3,000 pixels", "make it smaller")
    data = load_images("folder", None, path=tmp_path, size=8, selection=Selection(skip_unreadable=True))
    assert data.skipped == ("train/a/0.png",)


def test_room_is_shared_and_given_back():
    room, most, inside, lock = Room(100), [], Counter(), threading.Lock()

    def work(wanted):
        with room.of(wanted):
            with lock:
                inside[wanted] += 1
                most.append(sum(size * count for size, count in inside.items()))
            with lock:
                inside[wanted] -= 1

    threads = [threading.Thread(target=work, args=(wanted,)) for wanted in [40, 70, 30] * 20]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(most) == 60 and max(most) <= 100 and room.left == 100
    with room.of(10**9):  # more than all of it: alone
        assert room.left == 0
    with pytest.raises(RubError), room.of(50):
        raise RubError("damaged")
    assert room.left == 100


LARGE = """
import sys
from pathlib import Path
from rub.data.sources import load_images

def most():  # kB, of this program alone: getrusage begins with what its parent had
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])

before = most()
data = load_images("folder", None, path=Path(sys.argv[1]), size=32)
print(most() - before, *data.train.images[:, 0].float().mean((1, 2)).tolist())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_images_of_13000_pixels_fit_into_the_room(tmp_path, kind):
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (40, 40), (90, 0, 0)).save(tmp_path / part / name / "0.png")
    Image.new("L", (13000, 13000), 90).save(huge := tmp_path / "train" / "a" / f"1.{kind}", compress_level=1)
    shutil.copy(huge, huge.with_stem("2"))  # together they do not fit into the room
    done = subprocess.run(
        [sys.executable, "-c", LARGE, str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "DecompressionBomb" not in done.stderr
    grown, *shades = map(float, done.stdout.split())
    assert grown < image_file.ROOM / 1024 and all(abs(shade - 90) < 2 for shade in shades)
