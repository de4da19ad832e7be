"""Registries: what ships, plug-ins from files and packages, hyperparameters and their messages."""

import inspect
import subprocess
import sys
from hashlib import sha256
from typing import Annotated, Literal

import pytest
from pydantic import Field

from rub import registry
from rub.config.hyperparameters import Hyper, hyperparameters, resolve
from rub.errors import RubError, unknown
from rub.registry import ATTACKS, CONTROLS, JUDGES, METHODS, Card, Entry, Registry, card_of, load_plugin

PLUGIN = '''
import rub

@rub.method("{name}", task="{task}")
def mine(model, forget, retain, context, *, lr: float = 0.5):
    """Leave the model as it is."""
    return model
'''


def plugin(folder, text=PLUGIN, name="mine", task="classification", file="plugin.py"):
    path = folder / file
    path.write_text(text.replace("{name}", name).replace("{task}", task), encoding="utf-8")
    return path


def shipped(*registries):
    return [
        pytest.param(entry, id=entry.name) for known in registries for entry in known.entries() if entry.origin == "rub"
    ]


@pytest.mark.parametrize("entry", shipped(METHODS, ATTACKS))
def test_what_ships_is_whole(entry):
    function, card = entry.load(), card_of(entry)
    assert callable(function)
    assert entry.summary
    assert len(entry.summary) <= 80
    fields = hyperparameters(function).model_fields
    assert not [name for name, field in fields.items() if field.is_required()]
    assert card.paper or entry.name == "noise", "only a control of this benchmark is without a paper"
    assert card.equation
    assert inspect.getdoc(function)


@pytest.mark.parametrize("entry", shipped(METHODS, CONTROLS, ATTACKS, JUDGES))
def test_every_hyperparameter_says_what_it_means_and_where_its_default_is_from(entry):
    for name, field in hyperparameters(entry.load()).model_fields.items():
        said = Hyper.of(field.metadata)
        assert said.doc, f"{name} has no meaning"
        assert said.source, f"the default of {name} has no source"
        assert said.range or field.annotation not in (int, float) or name == "alpha", f"{name} has no range"


def test_a_later_annotation_overrides_meaning_and_source_and_adds_to_the_range():
    rate = Annotated[float, Hyper("learning rate", source="a", gt=0)]

    def component(
        *, lr: Annotated[rate, Hyper("of Adam", le=1)] = 0.1, most: Annotated[float | None, Hyper(ge=1)] = None
    ):
        """A component."""

    fields = hyperparameters(component).model_fields
    assert Hyper.of(fields["lr"].metadata) == Hyper("of Adam", source="a", gt=0, le=1)
    assert Hyper.of(fields["lr"].metadata).range == "> 0, <= 1"
    entry = Entry("component", "classification", "", component, "tests")
    assert resolve(entry, {"lr": 1}, "x") == {"lr": 1.0, "most": None}
    for bad in ({"lr": 0}, {"lr": 2}, {"most": 0.5}, {"most": float("inf")}):
        with pytest.raises(RubError, match="input should be"):
            resolve(entry, bad, "x")


def test_listing_loads_no_component():
    code = (
        "import sys; from rub.registry import KINDS\n"
        "names = [entry.name for known in KINDS.values() for entry in known.entries()]\n"
        "assert 'salun' in names and 'resnet50' in names\n"
        "assert not {'torch', 'numpy', 'rub.tasks.classification.methods.salun'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_loading_a_component_keeps_its_place_and_summary():
    for known in (METHODS, ATTACKS):
        listed = [(task, name) for task, names in registry.builtin()[known.kind].items() for name in names]
        for task, name in reversed(listed):
            known.get(name, task).load()
        assert [(entry.task, entry.name) for entry in known.entries()][: len(listed)] == listed
        for task, name in listed:
            assert known.get(name, task).summary == registry.builtin()[known.kind][task][name][1]


def test_a_method_says_what_data_it_takes():
    for name, facts, marks in (
        ("a", {}, ""),
        ("b", {"retain_free": True}, "retain-free"),
        ("c", {"needs_training": True}, "needs the original's training"),
        ("d", {"retain_free": True, "needs_training": True}, "retain-free, needs the original's training"),
        ("e", {"classes_only": True}, "whole classes only"),
    ):
        registry.method(name, task="classification", **facts)(component)
        assert METHODS.get(name, "classification").marks == marks
    assert METHODS.get("delete", "classification").retain_free, "listed without its module"
    registry.guidance("f")(lambda concept, anchor: None)
    assert METHODS.get("f", "text-to-image").retain_free, "it has no retain side"


def test_did_you_mean():
    with pytest.raises(
        RubError, match=r"^unknown classification method 'saluun': did you mean 'salun'\? known: amun, b"
    ):
        METHODS.get("saluun", "classification")
    assert str(unknown("thing", "zzz", [])) == "unknown thing 'zzz': known: none"
    assert "did you mean" not in str(unknown("thing", "zzz", ["abc"]))


def test_one_name_belongs_to_one_origin():
    known = Registry("thing")
    known.add(Entry("a", "t", "", len, "first"))
    known.add(Entry("a", "other task", "", len, "second"))
    known.add(Entry("a", "t", "again", len, "first"))
    with pytest.raises(RubError, match="thing 'a' \\(t\\) of second is already defined by first"):
        known.add(Entry("a", "t", "", len, "second"))
    assert [entry.summary for entry in known.entries("t")] == ["again"]


def test_owns_is_about_the_very_entry():
    known = Registry("thing")
    entry = Entry("a", "t", "", len, "first")
    known.add(entry)
    assert known.owns(entry, "t")
    assert not known.owns(entry, "other")
    assert not known.owns(Entry("b", "t", "", len, "first"), "t")


def component(
    model,
    context,
    *,
    needed: int,
    rate: Annotated[float, Field(gt=0, le=1)] = 0.1,
    mode: Literal["a", "b"] = "a",
    bare=None,
):
    """Stand in for a method."""


ENTRY = Entry("component", "t", "", component, "test")


def test_hyperparameters_are_the_keyword_only_arguments():
    fields = hyperparameters(component).model_fields
    assert list(fields) == ["needed", "rate", "mode", "bare"]
    assert resolve(ENTRY, {"needed": 3}, "here") == {"needed": 3, "rate": 0.1, "mode": "a", "bare": None}
    assert resolve(ENTRY, {"needed": 3, "rate": 1, "mode": "b"}, "here")["rate"] == 1.0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "here (component): needed: field required"),
        ({"needed": "x"}, "needed = 'x': input should be a valid integer"),
        ({"needed": 1.5}, "needed = 1.5: input should be a valid integer"),
        ({"needed": 1, "rate": 0}, "rate = 0: input should be greater than 0"),
        ({"needed": 1, "rate": float("nan")}, "rate = nan"),
        ({"needed": 1, "mode": "c"}, "mode = 'c': input should be 'a' or 'b'"),
        ({"needed": 1, "rat": 1}, "unknown field 'rat': did you mean 'rate'?"),
        ({"needed": "x" * 500}, "...: input should be a valid integer"),
    ],
)
def test_wrong_hyperparameters_are_refused(given, says):
    with pytest.raises(RubError) as error:
        resolve(ENTRY, given, "here")
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250


def test_a_wrong_default_is_refused():
    def odd(model, *, rate: Annotated[float, Field(gt=0)] = -1.0):
        """Have a default outside its own range."""

    with pytest.raises(RubError, match=r"rate = -1\.0: input should be greater than 0"):
        resolve(Entry("odd", "t", "", odd, "test"), {}, "here")


def test_a_plugin_file_registers_with_its_origin(tmp_path):
    path = plugin(tmp_path)
    [entry] = load_plugin(path)
    assert (entry.name, entry.task, entry.summary) == ("mine", "classification", "Leave the model as it is.")
    assert METHODS.get("mine", "classification") is entry
    assert registry.source_hash(entry) == sha256(path.read_bytes()).hexdigest()
    assert resolve(entry, {}, "here") == {"lr": 0.5}
    assert card_of(entry) == Card()
    assert load_plugin(path) == [entry], "a second time changes nothing"


def test_what_ships_has_a_version_instead_of_a_hash():
    assert registry.source_hash(METHODS.get("ft", "classification")) == ""
    assert card_of(METHODS.get("ft", "classification")).version >= 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\n", "registers nothing"),
        ("def f(:\n", "SyntaxError"),
        ("import rub_no_such_module\n", "No module named 'rub_no_such_module'"),
        ("raise ValueError('first line\\nsecond line')\n", "ValueError: first line"),
        ("import sys\nsys.exit(0)\n", "SystemExit"),
        (
            PLUGIN.replace("{task}", "clasification"),
            "mine: unknown task 'clasification': did you mean 'classification'?",
        ),
        (PLUGIN.replace("{name}", "ft"), "method 'ft' (classification) of rub_plugin_plugin_"),
    ],
)
def test_bad_plugin_files_are_refused(tmp_path, text, says):
    with pytest.raises(RubError) as error:
        load_plugin(plugin(tmp_path, text))
    assert says in str(error.value)


def test_plugin_files_that_are_none(tmp_path):
    with pytest.raises(RubError, match="no such file"):
        load_plugin(tmp_path / "none.py")
    with pytest.raises(RubError, match="no such file"):
        load_plugin(tmp_path)
    with pytest.raises(RubError, match=r"its name should end in \.py"):
        load_plugin(plugin(tmp_path, file="plugin.txt"))


def test_a_plugin_cannot_replace_what_ships(tmp_path):
    before = METHODS.get("ft", "classification")
    with pytest.raises(RubError, match="already defined by rub"):
        load_plugin(plugin(tmp_path, name="ft"))
    assert METHODS.get("ft", "classification") is before


class Point:
    """An installed entry point."""

    name, value, group = "mine", "package.module:mine", "rub.methods"

    def __init__(self, load):
        self.load = load


def test_entry_points_register_once(monkeypatch):
    known, asked = Registry("method"), []

    def load():
        asked.append(1)
        known.add(Entry("mine", "classification", "from a package", len, "package"))

    monkeypatch.setattr(registry, "entry_points", lambda group: [Point(load)] if group == "rub.methods" else [])
    assert known.get("mine", "classification").origin == "package"
    assert known.get("ft", "classification").origin == "rub"
    assert len(asked) == 1


def test_a_broken_package_is_named(monkeypatch):
    def load():
        raise ImportError("cannot import name 'x'")

    monkeypatch.setattr(registry, "entry_points", lambda group: [Point(load)])
    with pytest.raises(RubError, match=r"plug-in mine = package.module:mine .*ImportError: cannot import name 'x'"):
        Registry("method").get("mine", "classification")


def test_annotations_of_other_arguments_may_be_for_type_checkers_only(tmp_path):
    plugin = tmp_path / "typed.py"
    plugin.write_text(
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "import rub\n"
        "if TYPE_CHECKING:\n    from torch import nn\n"
        "@rub.method('typed-only', task='classification')\n"
        "def typed(model: nn.Module, forget, retain, context, *, lr: float = 0.1):\n    return model\n",
        encoding="utf-8",
    )
    [entry] = load_plugin(plugin)
    assert resolve(entry, {"lr": 1}, "here") == {"lr": 1.0}
    with pytest.raises(RubError, match="lr = True: should not be true or false"):
        resolve(entry, {"lr": True}, "here")


def test_an_annotation_that_no_value_has_is_one_line():
    import torch

    def odd(model, forget, retain, context, *, weights: torch.Tensor = None): ...

    with pytest.raises(RubError, match="annotation cannot be used"):
        hyperparameters(odd)
