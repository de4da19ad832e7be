"""Requests of audits, said once: each command has their fields as options, and says in one line what is wrong."""

from dataclasses import replace

import pytest

from rub.audits.base import audit_of
from rub.cli.audit import _command
from rub.errors import RubError
from rub.registry import TASKS, Entry

AUDITED = [entry.name for entry in TASKS.entries() if entry.load().audit]
CLASSIFIERS = (
    "audit",
    "classification",
    *["--original", "a", "--unlearned", "b", "--arch", "resnet10", "--data", "digits"],
)
SHARED = {"overwrite", "store", "out", "data_root", "device", "batch_size", "plugin", "help"}


@pytest.mark.parametrize("task", AUDITED)
def test_every_field_of_a_request_is_an_option_of_its_command(task):
    request, options = audit_of(task).request, {option.name: option for option in _command(task).params}
    assert options.keys() - SHARED == request.model_fields.keys()
    for name, field in request.model_fields.items():
        option = options[name]
        assert option.opts == [f"--{name.replace('_', '-')}"]
        assert option.help == field.description and len(field.description) > 10
        assert option.required == field.is_required()
        if field.default and not field.is_required():
            assert option.default == field.default


@pytest.mark.parametrize("task", AUDITED)
def test_the_example_of_a_command_has_options_that_it_has(task):
    audit, options = audit_of(task), {name for option in _command(task).params for name in option.opts}
    assert {word for word in audit.example.split() if word.startswith("--")} <= options
    assert audit.request.__doc__.startswith("Measure an unlearned ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--forget-classes", "0", "--mean", "a"), "--mean a: should be numbers with commas between them"),
        (("--forget-classes", ""), "--forget-classes : should be numbers or names"),
        (("--forget-classes", "0", "--width", "0"), "audit: model.width = 0"),
        (("--forget-classes", "0", "--stem", "wide"), "audit: model.stem = 'wide'"),
        (("--forget-classes", "0", "--protocol", "rub-audit-3"), "did you mean 'rub-audit-2'"),
        (("--forget-classes", "0"), "--original a: no such file; give a checkpoint"),
    ],
)
def test_a_wrong_request_is_one_line(refused, arguments, says):
    refused(*CLASSIFIERS, *arguments, says=says)


def test_a_task_without_audits_has_no_command(rub):
    plain = replace(TASKS.get("inpainting", "inpainting").load(), name="plain", audit="")
    TASKS.add(Entry("plain", "plain", "without audits", plain, "test"))
    with pytest.raises(RubError, match="task plain: its models cannot be audited"):
        audit_of("plain")
    assert rub("audit", "plain", "--help").code == 2
    assert "plain" not in rub("audit", "--help").out
