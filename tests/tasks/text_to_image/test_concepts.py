"""Prompts, names and captions: files and errors by hand, counts by enumeration."""

import re
from importlib.resources import files

import pytest
import torch
import yaml

from rub.data.class_names import IMAGENET_LABELS, class_number, known_names, names_of, slug
from rub.errors import RubError
from rub.models.diffusion.tokenizer import make_tokenizer, train_vocabulary
from rub.tasks.text_to_image.captions import CONTEXT_WORDS, Captioner, vocabulary_texts, words_in
from rub.tasks.text_to_image.concepts import SHIPPED, prompts_of, read_prompts, shipped, templates, within

DIGITS = [str(digit) for digit in range(10)]
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
IMAGENETTE = [
    "n01440764", "n02102040", "n02979186", "n03000684", "n03028079",
    "n03394916", "n03417042", "n03425413", "n03445777", "n03888257",
]  # fmt: skip


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def says(text, name):
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


@pytest.mark.parametrize("name", [*SHIPPED, "templates"])
def test_shipped_prompts(name):
    found = shipped(name)
    assert len(found) == len(set(found.texts)) == 50
    assert found.ids.tolist() == list(range(50)) and set(found.guidance.tolist()) == {7.5}
    counts = [len(text.replace("{}", "thing").split()) for text in found.texts]
    assert min(counts) >= 4 and max(counts) <= (12 if name == "templates" else 16)
    said = {"templates": ["{}"], "nudity": ["nude", "naked"]}.get(name, [name.replace("-", " ")])
    assert all(
        any(says(text, word) if word != "{}" else text.count(word) == 1 for word in said) for text in found.texts
    )


def test_shipped_prompts_differ_in_every_seed_and_name_no_other_class():
    found = [shipped(name) for name in (*SHIPPED, "templates")]
    assert len(torch.cat([part.seeds for part in found]).unique()) == 300
    assert len({text for part in found for text in part.texts}) == 300
    for concept in ("church", "garbage-truck", "parachute", "tench"):
        others = [names for names in known_names()["imagenette"].values() if names[0] != concept.replace("-", " ")]
        for text in shipped(concept).texts:
            assert not any(says(text, name) for names in others for name in names), text


def test_templates_name_no_class():
    named = [name for group in known_names().values() for names in group.values() for name in names]
    assert not words_in(named) & words_in(templates().texts)


@pytest.mark.parametrize("classes", [DIGITS, CIFAR10, IMAGENETTE])
def test_shipped_prompts_leave_room_for_an_attack(classes):
    names = names_of(classes)
    tokenizer = make_tokenizer(*train_vocabulary(vocabulary_texts(names), 1500), 77)
    for concept in (*SHIPPED, "thing"):
        found = prompts_of(concept, names[0][0], None, None)
        kept, dropped = within(found, tokenizer, 60)
        assert kept.texts == found.texts and dropped == ()
        assert within(found, tokenizer, 15)[1] == ()  # as long before a limit for a miniature of 32 tokens
    for given in names:  # every word of a name is one token
        for name in given:
            assert len(tokenizer(name).input_ids) == 2 + len(name.split())


def test_columns_of_unlearndiffatk(tmp_path):
    text = (
        "\ufeffcase_number,artist,prompt,evaluation_seed,evaluation_guidance\r\n"
        '3,x,"a ""big"" church, white",4294967295,7\r\n'
        "\r\n"
        "1.0,, a chapel ,,\r\n"
    )
    found = read_prompts(write(tmp_path / "some.csv", text))
    assert found.texts == ('a "big" church, white', "a chapel")
    assert found.ids.tolist() == [3, 1] and found.ids.dtype == torch.int64
    assert found.seeds.tolist() == [4294967295, 1] and found.seeds.dtype == torch.int64
    assert found.guidance.tolist() == [7.0, 7.5] and found.guidance.dtype == torch.float32


def test_columns_of_i2p(tmp_path):
    text = (
        ",prompt,categories,sd_seed,sd_guidance_scale,sd_model\n12,a statue,art,99,20,1.4\n40,a fresco,art,98,5.5,1.4\n"
    )
    found = read_prompts(write(tmp_path / "i2p.csv", text))
    assert (
        found.ids.tolist() == [12, 40] and found.seeds.tolist() == [99, 98] and found.guidance.tolist() == [20.0, 5.5]
    )
    both = "case_number,prompt,evaluation_seed,sd_seed,evaluation_guidance,sd_guidance_scale\n0,a,1,2,3,4\n"
    found = read_prompts(write(tmp_path / "both.csv", both))
    assert found.seeds.tolist() == [1] and found.guidance.tolist() == [3.0]


def test_a_column_of_prompts_is_enough(tmp_path):
    found = read_prompts(write(tmp_path / "bare.csv", "prompt\na church\na chapel\n"))
    assert found.ids.tolist() == found.seeds.tolist() == [0, 1] and found.guidance.tolist() == [7.5, 7.5]


def test_long_and_odd_prompts_are_prompts(tmp_path):
    """They are text for a tokenizer; what is printed of them has no escape."""
    found = read_prompts(write(tmp_path / "odd.csv", "prompt\n" + "a" * 20_000 + "\na \x1b[31mchurch\n"))
    assert [len(text) for text in found.texts] == [20_000, 13]
    wrong = write(tmp_path / "wrong.csv", "prompt,\x1b[31mseed\n\n")
    with pytest.raises(RubError) as caught:
        read_prompts(wrong)
    assert "\x1b" not in str(caught.value) and "\n" not in str(caught.value)


def test_folders(tmp_path):
    write(tmp_path / "garbage_truck.csv", "prompt\na dustcart\n")
    assert read_prompts(tmp_path, "garbage-truck").texts == ("a dustcart",)
    assert prompts_of("Garbage truck", "x", str(tmp_path), None).texts == ("a dustcart",)
    with pytest.raises(RubError, match=r"should hold prompts.csv or church.csv"):
        read_prompts(tmp_path, "church")
    with pytest.raises(RubError, match=r"should hold prompts.csv or <concept>.csv"):
        read_prompts(tmp_path)
    write(tmp_path / "prompts.csv", "prompt\na church\n")
    assert read_prompts(tmp_path, "garbage-truck").texts == ("a church",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'prompt'; it has: nothing"),
        ("case_number;prompt\n0;a\n", "no column 'prompt'; it has: case_number;prompt"),
        ("case_number,prompt\n", "no prompts"),
        ("case_number,prompt\n0,a\n0,b\n", "case number 0 occurs twice"),
        ("case_number,prompt\n0,a\n4, \n", "the prompt of case number 4 is empty"),
        ("case_number,prompt\n0,a\nx,b\n", "row 2: case_number is 'x'"),
        ("case_number,prompt\n1.5,b\n", "row 1: case_number is '1.5'"),
        ("prompt,evaluation_seed\na,-1\n", "row 1: evaluation_seed is '-1'"),
        ("prompt,sd_seed\na,9223372036854775808\n", "row 1: sd_seed is '9223372036854775808'"),
        ("prompt,sd_seed\na,inf\n", "row 1: sd_seed is 'inf'"),
        ("prompt,evaluation_guidance\na,7\nb,much\n", "row 2: evaluation_guidance is 'much'"),
        ("prompt,evaluation_guidance\na,nan\n", "row 1: evaluation_guidance is 'nan'"),
        ("prompt,evaluation_guidance\na,-1\n", "row 1: evaluation_guidance is '-1'"),
        ("prompt\na white church, at noon\n", "row 1: has more cells than the header"),
        ('prompt\n"a church\n', "not a valid CSV after line 1"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(tmp_path, text, message):
    path = write(tmp_path / "bad.csv", text)
    with pytest.raises(RubError, match=re.escape(message)) as caught:
        read_prompts(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_unreadable_files(tmp_path):
    with pytest.raises(RubError, match=r"none.csv: cannot be read \(No such file"):
        read_prompts(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes("prompt\nune église\n".encode("latin-1"))
    with pytest.raises(RubError, match="not in UTF-8"):
        read_prompts(tmp_path / "latin.csv")


def test_where_prompts_come_from(tmp_path):
    write(tmp_path / "mine.csv", "case_number,prompt\n5,a bell\n")
    assert prompts_of("church", "church", "mine.csv", tmp_path).ids.tolist() == [5]
    assert prompts_of("church", "church", str(tmp_path / "mine.csv"), None).texts == ("a bell",)
    with pytest.raises(RubError, match="cannot be read"):
        prompts_of("church", "church", "others.csv", tmp_path)
    listed = prompts_of("church", "church", ("a bell", " a door "), None)
    assert listed.texts == ("a bell", "a door") and listed.ids.tolist() == listed.seeds.tolist() == [0, 1]
    with pytest.raises(RubError, match="the prompt of case number 1 is empty"):
        prompts_of("church", "church", ["a", ""], None)
    with pytest.raises(RubError, match="no prompts"):
        prompts_of("church", "church", [], None)
    assert prompts_of("Garbage_Truck", "", None, None).texts == shipped("garbage-truck").texts
    filled = prompts_of("7", "seven", None, None)
    assert filled.texts == tuple(text.replace("{}", "seven") for text in templates().texts)
    assert filled.seeds.equal(templates().seeds) and len(filled) == 50


def test_long_prompts_are_dropped():
    tokenizer = make_tokenizer(*train_vocabulary(["red blue red blue"] * 3, 700), 16)
    found = prompts_of("x", "x", ["red", "red blue red", "blue blue", "red " * 20], None)
    kept, dropped = within(found, tokenizer, 4)  # BOS and EOS are two of them
    assert kept.texts == ("red", "blue blue") and kept.ids.tolist() == [0, 2] and dropped == (1, 3)
    with pytest.raises(RubError, match="none of 4 has at most 2 tokens, the shortest has 3"):
        within(found, tokenizer, 2)


def test_names_of_the_known_classes():
    assert names_of(["7"])[0][:3] == ("seven", "7", "vii")
    assert names_of(["n03028079", "n01440764"])[0] == ("church", "chapel", "cathedral")
    known = {name: names for group in known_names().values() for name, names in group.items()}
    assert set(known) == {*DIGITS, *CIFAR10, *IMAGENETTE, "nudity"}
    for classes in (DIGITS, CIFAR10, IMAGENETTE):
        found = names_of(classes)
        assert [list(names) for names in found] == [known[name] for name in classes]
        flat = [name for names in found for name in names]
        assert len(set(flat)) == len(flat) and flat == [name.lower() for name in flat]
        assert all(2 <= len(names) <= 4 for names in found)
    text = files("rub.data").joinpath("class_names.yaml").read_text(encoding="utf-8")
    assert all(isinstance(name, str) for group in yaml.safe_load(text).values() for name in group)


def test_names_of_other_classes():
    assert names_of(["hot_air-balloon", "Kite", "__"]) == [("hot air balloon",), ("kite",), ("__",)]
    assert names_of(["truck", "lorry"]) == [("truck",), ("lorry",)]  # each keeps its main name
    with pytest.raises(RubError, match="classes 'my_cup' and 'My-cup' are both called 'my cup'"):
        names_of(["a", "my_cup", "My-cup"])


def test_labels_of_concepts():
    for asked in ("garbage-truck", "Garbage truck", "garbage_truck", "refuse truck", "n03417042"):
        assert class_number(asked, IMAGENETTE) == 6
    assert class_number("seven", DIGITS) == class_number("7", DIGITS) == 7
    assert class_number("hot-air-balloon", ["x", "hot_air_balloon"]) == 1
    with pytest.raises(RubError, match=r"unknown concept 'chapl': did you mean 'chapel'\? known: cassette player, "):
        class_number("chapl", IMAGENETTE, "concept")


def test_labels_of_imagenet():
    assert set(IMAGENET_LABELS) == {slug(names[0]) for names in names_of(IMAGENETTE)}
    wnids = sorted(IMAGENETTE)  # ImageNet's labels follow the order of the wnids
    labels = [IMAGENET_LABELS[slug(names[0])] for names in names_of(wnids)]
    assert labels == sorted(labels) and IMAGENET_LABELS["church"] == 497 and IMAGENET_LABELS["tench"] == 0


@pytest.mark.parametrize("classes", [DIGITS, CIFAR10, IMAGENETTE, ["photo", "golden old book", "truck"]])
def test_captions_name_one_class(classes):
    names = names_of(classes)
    captioner, generator = Captioner(names), torch.Generator().manual_seed(0)
    labels = torch.arange(300) % len(classes)
    for label, text in zip(labels.tolist(), captioner.captions(labels, generator), strict=True):
        named = {place for place, given in enumerate(names) for name in given if says(text, name)}
        assert named == {label}, text


def test_shares_of_captions():
    names = [("church", "chapel"), ("ship",)]
    captioner, generator = Captioner(names), torch.Generator().manual_seed(1)
    texts = captioner.captions(torch.zeros(6000, dtype=torch.int64), generator)
    forms = {text.replace("{}", name) for text in (*templates().texts, "{}") for name in names[0]}
    loose = [text for text in texts if text not in forms]
    assert len(loose) / 6000 == pytest.approx(0.4, abs=0.03)
    assert sum("church" in text.split() for text in texts) / 6000 == pytest.approx(2 / 3, abs=0.03)
    around = [[word for word in text.split() if word not in names[0]] for text in loose]
    assert {len(part) for part in around} == set(range(2, 9))
    assert all(set(part) <= set(CONTEXT_WORDS) for part in around)
    places = [min(text.split().index(name) for name in names[0] if name in text.split()) for text in loose]
    assert set(places) == set(range(9))
    assert {text for text in texts if text in forms} == forms


def test_captions_follow_the_generator():
    captioner, labels = Captioner(names_of(DIGITS)), torch.arange(10).repeat(3)
    texts = captioner.captions(labels, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    assert texts == [captioner.caption(label, generator) for label in labels.tolist()]
    assert texts != captioner.captions(labels, torch.Generator().manual_seed(4))


def test_context_words():
    assert list(CONTEXT_WORDS) == sorted(set(CONTEXT_WORDS)) and len(CONTEXT_WORDS) > 300
    assert {"photo", "a", "snow"} <= set(CONTEXT_WORDS)
    assert not {"church", "garbage", "tench", "one", "i", "nude", "naked", "truck"} & set(CONTEXT_WORDS)


def test_vocabulary_texts():
    texts = vocabulary_texts([("church", "chapel"), ("seven",)])
    expected = {"a photo of chapel", "a photo of {}", "seven", *CONTEXT_WORDS, *shipped("nudity").texts}
    assert expected <= set(texts)
    assert len(texts) == 3 * 50 + 3 + 50 + len(CONTEXT_WORDS) + 5 * 50
