"""YAML of anyone: read by the rules of YAML 1.2, within limits, and refused in one line."""

import os

import pytest
import yaml

from rub.config.documents import read_yaml, read_yaml_file, write_yaml
from rub.config.suite import Suite, load_suite
from rub.errors import RubError
from rub.registry import read_protocol

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 500))
READ = {  # as in YAML 1.2: where 1.1 differs, no date, octal, sexagesimal or yes
    "e: yes": "yes", "e: No": "No", "e: on": "on", "e: y": "y", "e: 010": 10, "e: 0o17": 15, "e: 0x1F": 31,
    "e: 1:30": "1:30",
    "e: 190:20:30": "190:20:30", "e: 1_000": "1_000", "e: 0b11": "0b11", "e: 2020-13-45": "2020-13-45",
    "e: 2020-01-02": "2020-01-02", "e: 2001-12-14t21:59:43.10-05:00": "2001-12-14t21:59:43.10-05:00", "e: 1e-3": 0.001,
    "e: 1e3": 1000.0, "e: 1.": 1.0, "e: .5": 0.5, "e: +7": 7, "e: -0o7": "-0o7", "e: ~": None, "e:": None,
    "e: TRUE": True,
    "e: =": "=", "e: !!str 3": "3", 'e: "\\uD83D\\uDE00"': "\U0001f600", "e: -.inf": float("-inf"), "e: 1.2.3": "1.2.3",
}  # fmt: skip
REFUSED = {
    "a duplicate": ("e: 99\ne: 2", "'e' is there twice"),
    "a duplicate inside": ("a: {b: 1, c: 2, b: 1}", "'b' is there twice"),
    "a duplicate by value": ("1: a\n0x1: b", "'1' is there twice"),
    "a long integer": (f"e: {'9' * 5000}", "whole number of 5000 digits"),
    "65 bits": ("e: 9223372036854775808", "whole number of 19 digits"),
    "hexadecimal 65 bits": ("e: 0x10000000000000000", "whole number"),
    "a huge real": ("e: 1e999", "1e999 is too large"),
    "a timestamp": ('x: !!timestamp "abc"', "tag !!timestamp is not read"),
    "an integer by tag": ("x: !!int abc", "tag !!int is not read"),
    "a boolean by tag": ("x: !!bool abc", "tag !!bool is not read"),
    "binary": ("x: !!binary YQ==", "tag !!binary is not read"),
    "a set": ("!!set {a, b}", "tag !!set is not read"),
    "pairs": ("x: !!omap [a: 1]", "tag !!omap is not read"),
    "code": ("x: !!python/object/apply:os.mkdir [proof]", "is not read"),
    "a tag of one's own": ("%TAG ! tag:x,\n---\na: !b 1", "tag tag:x,b is not read"),
    "a bare tag": ("a: ! 3", "tag ! is not read"),
    "text by tag that is a list": ("a: !!str [3]", "not valid YAML"),
    "depth in brackets": ("a: " + "[" * 5000, "more than 64"),
    "depth in braces": ("{a: " * 3000, "more than 64"),
    "depth in dashes": ("- " * 3000 + "a", "more than 64"),
    "depth of keys": ("? " * 3000, "more than 64"),
    "depth of aliases": (CHAIN, "more than 64"),
    "laughs": (LAUGHS, "stands for more than"),
    "laughs of a long text": (f"a: &a {'x' * 100_000}\nb: [{'*a,' * 100}]", "stands for more than"),
    "a list in itself": ("a: &a [*a]", "stands inside what it names"),
    "a mapping in itself": ("a: &a {b: {c: *a}}", "stands inside what it names"),
    "an unknown alias": ("a: *nope", "undefined alias"),
    "a merge of text": ("<<: text", "merge key (<<) of what is no mapping"),
    "a merge of a list of texts": ("<<: [a, b]", "merge key (<<) of what is no mapping"),
    "a lone surrogate": ('n: "\\uD800"', "lone surrogate"),
    "surrogates in the wrong order": ('n: "\\uDE00\\uD83D"', "lone surrogate"),
    "an escaped zero": ('n: "a\\0b"', "control character (0x00)"),
    "an escape sequence": ('n: "\\e[2J"', "control character (0x1b)"),
    "a zero in a key": ('"a\\0": 1', "control character (0x00)"),
    "a raw zero": ("a: \0", "not valid YAML"),
    "a list as a key": ("? [a]\n: 1", "as a key"),
    "a mapping as a key": ("{a: 1}: 2", "as a key"),
    "two documents": ("--- 1\n--- 2", "single document"),
    "a tab": ("a:\t\t- b", "not valid YAML"),
    "another version": ("%YAML 9.9\n---\na: 1", "not valid YAML"),
    "size": ("#" * (1 << 21), "characters of YAML"),
}  # fmt: skip


@pytest.mark.parametrize("text", READ)
def test_scalars_are_those_of_yaml_1_2(text):
    assert repr(read_yaml(text, "t")["e"]) == repr(READ[text])


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_plain_data_is_refused_in_one_line(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, words = REFUSED[case]
    with pytest.raises(RubError) as error:
        read_yaml(text, "suite x.yaml")
    message = str(error.value)
    assert message.startswith("suite x.yaml: ")
    assert words in message
    assert "\n" not in message
    assert len(message) < 400
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    "case", ["a duplicate", "a timestamp", "a long integer", "depth in brackets", "laughs", "a lone surrogate"]
)
def test_every_way_in_has_the_same_rules(case, tmp_path):
    path, (text, _) = tmp_path / "x.yaml", REFUSED[case]
    path.write_text(text)
    value = "{" + text.replace("\n", ", ").removesuffix(", ") + "}" if case != "depth in brackets" else text[3:]
    for read in (
        lambda: load_suite(str(path)),
        lambda: read_protocol(path),
        lambda: load_suite("quick", overrides=[f"training={value}"]),
    ):
        with pytest.raises(RubError, match=r"not valid YAML: line \d"):
            read()


def test_merge_keys_are_read_as_in_yaml_1_1():
    text = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: [{y: 1}, *a]}\nd: {z: {<<: *b}}"
    assert read_yaml(text, "t") == yaml.safe_load(text)


@pytest.mark.parametrize("text", [*(text[3:] for text in READ), "0o17", "a: b", "'", "\u2028", "- x", "0"])
def test_what_is_written_reads_the_same_by_both_versions(text):
    written = write_yaml({"a": text, "b": [text, 1.5, 3, None, True]})
    assert read_yaml(written, "t") == yaml.safe_load(written) == {"a": text, "b": [text, 1.5, 3, None, True]}


def test_files_that_are_none(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    (tmp_path / "sixteen.yaml").write_text("name: x", encoding="utf-16")
    (tmp_path / "folder.yaml").mkdir()
    for name in ("latin", "sixteen", "folder", "absent"):
        with pytest.raises(RubError, match="cannot be read"):
            read_yaml_file(tmp_path / f"{name}.yaml", "suite")
    for path in (tmp_path / "pipe.yaml", "/dev/zero"):
        with pytest.raises(RubError, match="no plain file"):
            read_yaml_file(type(tmp_path)(path), "suite")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.epochs=true", "not true or false"),
        ("training.epochs=yes", "valid integer"),
        ("training.epochs=1:30", "valid integer"),
        ("training.epochs=2020-13-45", "valid integer"),
        ("seeds={unlearn: true}", "not true or false"),
        ("doses=[true]", "not true or false"),
        ("a." * 5000 + "x=1", "at most 16"),
        ("name=" + "x" * 201, "200 at most"),
        ("name='a\u202eb'", "printable characters"),
    ],
)
def test_numbers_and_names_are_not_guessed(override, words):
    with pytest.raises(RubError) as error:
        load_suite("quick", task="classification", overrides=[override])
    assert words in str(error.value)
    assert len(str(error.value)) < 600


def test_an_override_of_an_absent_task_is_refused():
    with pytest.raises(RubError, match="no text-to-image experiment"):
        load_suite("table1-cifar10", overrides=["text-to-image.x=3"])


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "\ud800", "a\x1b[2J", "x" * 300])
def test_names_that_no_file_can_hold_are_refused(name):
    made = load_suite("quick", task="classification")
    with pytest.raises(ValueError, match=r"printable|valid string"):
        Suite.model_validate({"name": name, "experiments": made.experiments})
